"""Photographs as people have them: files, lenses, keyframes, unposed scenes."""
