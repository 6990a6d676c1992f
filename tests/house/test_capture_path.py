"""The capture path stays light: standard library, click and zstd, whatever the target is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import zoo

ALLOWED = {"pmforensics", "click", "backports", "compression"}

# Runs in place of the console script and tells, at its end, every module that was loaded; also in each collector's
# own process, which ends by os._exit.
WATCH = """
import atexit, json, os, sys
out = os.environ["WATCH_MODULES"]
def tell():
    with open(os.path.join(out, str(os.getpid())), "w") as file:
        json.dump(sorted(name for name in sys.modules), file)
real = os._exit
def leave(code):
    tell()
    real(code)
os._exit = leave
atexit.register(tell)
from pmforensics.cli import main
main()
"""


def third_party(modules: list[str]) -> set[str]:
    """Top-level packages that are neither ours nor the standard library's."""
    tops = {name.split(".")[0] for name in modules}
    return {top for top in tops if top not in sys.stdlib_module_names and not top.startswith(("_", "sitecustomize"))}


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("program", "way"), [("c", "threads"), ("go", "idle"), ("java17", "idle"), ("python", "idle"), ("node", "idle")]
)
def test_capture_loads_nothing_heavy(program: str, way: str, tmp_path: Path, needs: object) -> None:
    needs(*zoo.tools(program))  # type: ignore[operator] # a fixture that is called
    seen = tmp_path / "modules"
    seen.mkdir()
    with zoo.start(program, way) as sick:
        subprocess.run(
            [sys.executable, "-c", WATCH, "capture", "--pid", str(sick.pid), "--evidence", str(tmp_path / "e"), "--force"],
            env={**os.environ, "WATCH_MODULES": str(seen)},
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=120,
        )
    told = [json.loads(path.read_text()) for path in seen.iterdir()]
    assert len(told) > 10, "the capture and each of its collectors tell what they loaded"
    assert any("pmforensics.collect.goroutines" in modules for modules in told)
    for modules in told:
        foreign = third_party(modules) - ALLOWED
        # The editable install of a development checkout adds import hooks of its own.
        foreign = {name for name in foreign if not name.startswith(("__editable__", "distutils", "sphinxcontrib"))}
        assert not foreign
