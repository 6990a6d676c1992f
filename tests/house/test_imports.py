"""What a capture really imports, seen by the interpreter itself, in the collectors' own processes too."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import captures, zoo

# Written by each process of the capture, forked ones included, at the moment of each import.
WATCH = """
import os, sys
log = os.environ["IMPORT_LOG"]
def hook(event, args):
    if event == "import":
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, (args[0] + "\\n").encode())
        os.close(fd)
before = set(sys.modules)
sys.addaudithook(hook)
sys.argv = ["pmf", *sys.argv[1:]]
from pmforensics.cli import main
try:
    main()
finally:
    with open(log + ".end", "w") as file:
        file.write("\\n".join(sorted(set(sys.modules) - before)))
"""
ALLOWED = {"pmforensics", "click", "backports", "compression"}
# Loaded for one kind of target or one option only: a capture that does not need them must not pay for them.
HEAVY = {
    "asyncio",
    "email",
    "ssl",
    "http.client",
    "urllib.request",
    "zipfile",
    "tempfile",
    "logging",
    "unittest",
    "xml",
}


def imported(tmp_path: Path, *args: object) -> tuple[set[str], set[str]]:
    """All imports of a run of pmf in all its processes, and the modules of its main process at the end."""
    log = tmp_path / "imports"
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *map(str, args)],
        env={**os.environ, "IMPORT_LOG": str(log)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    return set(log.read_text().split()), set(log.with_name("imports.end").read_text().split())


def third_party(names: set[str]) -> set[str]:
    """Top packages that are here and neither of the standard library nor ours; `copy` asks for Jython's, in vain."""
    tops = {name.split(".")[0] for name in names}
    others = {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_")} - ALLOWED
    return {top for top in others if importlib.util.find_spec(top) is not None}


def test_a_third_party_package_would_be_noticed() -> None:
    assert third_party({"psutil", "json", "pmforensics.errors", "org.python.core"}) == {"psutil"}


@pytest.mark.parametrize(("program", "way"), [("c", "threads"), ("python", "idle"), ("go", "idle"), ("node", "idle")])
def test_capture_imports_only_the_standard_library_click_and_zstd(
    tmp_path: Path, needs: object, program: str, way: str
) -> None:
    needs(*zoo.tools(program))  # type: ignore[operator]
    with zoo.start(program, way) as sick:
        everywhere, at_end = imported(
            tmp_path, "capture", "--pid", sick.pid, "--evidence", tmp_path / "e", "--force", "--include", "executable",
            "--core", "full",
        )  # fmt: skip
    captures.judge(captures.only_bundle(tmp_path / "e"))
    assert "pmforensics.collect.process_state" in everywhere | at_end
    assert "click" in at_end
    assert len(everywhere) > 50
    assert third_party(everywhere) == set()
    assert third_party(at_end) == set()


def test_bulk_loads_zstd_and_small_captures_do_not(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as target:
        _, at_end = imported(
            tmp_path, "capture", "--pid", target.pid, "--evidence", tmp_path / "e", "--force", "--core", "none"
        )
        target.kill()
    assert not {name for name in at_end if "zstd" in name}
    assert at_end & HEAVY == set()


def test_version_loads_neither_commands_nor_collectors(tmp_path: Path) -> None:
    everywhere, at_end = imported(tmp_path, "--version")
    loaded = {name for name in everywhere | at_end if name.startswith("pmforensics.")}
    assert "pmforensics.cli" in loaded
    assert not {name for name in loaded if name.startswith(("pmforensics.collect", "pmforensics.bundle"))}
    assert at_end & HEAVY == set()


def test_commands_on_bundles_load_no_collector(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as target:
        folder = captures.capture(target.pid, tmp_path / "e")
        target.kill()
    for command in ("show", "check", "recover"):
        everywhere, at_end = imported(tmp_path, command, folder)
        assert not {name for name in everywhere | at_end if name.startswith("pmforensics.collect")}
        assert third_party(everywhere) == set()
