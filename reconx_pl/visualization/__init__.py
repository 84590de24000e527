"""Videos, contact sheets, curves, parts of HTML reports, and the viewer."""
