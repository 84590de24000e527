"""``python -m benchmarks``: all of them; ``python -m benchmarks loader splat``: those."""

import importlib
import sys

ALL = ("loader", "unet", "splat", "procedural")

for name in sys.argv[1:] or ALL:
    print(f"\n== {name}")
    importlib.import_module(f"benchmarks.{name}").main()
