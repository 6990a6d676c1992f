"""python -m benchmarks [NAME ...]: all benchmarks, or the named ones, as one table."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.timing import head

ALL = ("start_up", "bulk", "log_slice", "stacks", "verify_core")


def main() -> None:
    """Run them in turn."""
    (Path.cwd() / ".cache").mkdir(exist_ok=True)
    names = sys.argv[1:] or ALL
    head()
    for name in names:
        importlib.import_module(f"benchmarks.{name}").run()


main()
