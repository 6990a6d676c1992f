"""Who may import whom, read off the syntax trees: lazy imports count as much as those at the top."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SRC / "pmforensics"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms of ours that a room may import besides itself.
MAY_IMPORT = {
    "errors": set(),
    "model": set(),
    "formats": {"errors", "model"},
    "collect": {"errors", "model", "formats"},
    "bundle": {"errors", "model", "formats"},
    "verify": {"errors", "model", "formats", "bundle"},
    "tells": {"errors", "model"},
    "timeline": {"errors", "model"},
    "postmortem": {"errors", "model"},
    "kube": {"errors", "model", "collect"},
    "cli": {"errors", "model", "formats", "collect", "bundle", "verify", "tells", "timeline", "postmortem", "kube"},
    "__init__": set(),
    "__main__": {"cli"},
}  # fmt: skip
# Third-party packages, and the rooms that may import them.
MAY_USE = {
    "click": {"cli"},
    "psutil": {"cli"},
    "backports": {"bundle", "formats", "verify"},
    "kubernetes": {"kube"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base_utils", "tools", "lib"}


def room_of(path: Path) -> str:
    """The room, or the name of a module that stands alone."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The rooms that a file imports; `__version__` of the package is everybody's."""
    rooms = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "pmforensics" and parts[1:] != ["__version__"]:
            rooms.add(parts[1] if len(parts) > 1 else "__init__")
    return rooms


def relative(path: Path) -> str:
    """For test ids."""
    return str(path.relative_to(PACKAGE))


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 40
    assert {"errors", "model", "formats", "collect", "bundle", "verify", "cli"} <= {room_of(path) for path in FILES}


def test_every_room_has_a_rule() -> None:
    assert {room_of(path) for path in FILES} <= MAY_IMPORT.keys(), "a new room needs a decision, and a line here"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    too_far = ours(path) - MAY_IMPORT[room] - {room}
    assert not too_far, f"{room} may not import {too_far}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_uses_only_third_party_packages_that_its_room_may(path: Path) -> None:
    for name in imports_of(path):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in ("pmforensics", "compression"):
            continue
        assert room_of(path) in MAY_USE.get(top, set()), f"{name} in {room_of(path)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_module_is_named_after_its_subject(path: Path) -> None:
    for part in path.relative_to(SRC).with_suffix("").parts:
        assert part not in FORBIDDEN_NAMES


def test_nothing_of_the_tests_is_imported_by_the_package() -> None:
    for path in FILES:
        assert not {
            name for name in imports_of(path) if name.split(".")[0] in ("tests", "benchmarks", "pytest", "bagit")
        }


@pytest.mark.parametrize("room", ["model", "formats"])
def test_pure_rooms_open_nothing_and_look_at_no_clock(room: str) -> None:
    looked_at = 0
    for path in FILES:
        if room_of(path) != room:
            continue
        looked_at += 1
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("open", "time.time", "time.monotonic", "datetime.now", "print", "os.open"), (
                    f"{relative(path)}:{node.lineno}: {called}"
                )
    assert looked_at > 3


def test_library_neither_prints_nor_exits() -> None:
    for path in FILES:
        if room_of(path) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.exit", "exit", "quit"), f"{relative(path)}:{node.lineno}: {called}"
