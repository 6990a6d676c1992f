"""What the project's own files promise: docstrings, no foreign addresses, nothing of the machine they came from."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests import zoo

SOURCE = sorted((zoo.REPO / "src").rglob("*.py"))
REQUIREMENTS = sorted((zoo.REPO / "requirements").glob("*.txt"))
# Words that only make sense on the machine where a file was written.
FOREIGN = re.compile(r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|crates\.io|proxy\.golang|deb\.debian)", re.IGNORECASE)


def tracked_files() -> list[Path]:
    """Text files of the project, as git knows them, or as they lie there when there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=zoo.REPO, capture_output=True, check=False)
    names = [name for name in listed.stdout.decode().split("\0") if name]
    if not names:
        names = [str(path.relative_to(zoo.REPO)) for path in (*SOURCE, *REQUIREMENTS)]
    return [zoo.REPO / name for name in names if (zoo.REPO / name).is_file()]


def test_files_were_found() -> None:
    assert len(SOURCE) > 50
    assert len(REQUIREMENTS) >= 4
    assert len(tracked_files()) > 50


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_pins_have_hashes_and_no_index(path: Path) -> None:
    text = path.read_text()
    pins = re.findall(r"^([a-z0-9][\w.-]*)==", text, re.MULTILINE | re.IGNORECASE)
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert "--index" not in text


def test_no_package_registry_is_addressed() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if FOREIGN.search(text) and path != Path(__file__):
            found.append(str(path))
    assert not found


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(zoo.REPO / "src")))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} says nothing about itself"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{path}: {node.name}"
        if isinstance(node, ast.ClassDef):
            _check_methods(path, node)


def _check_methods(path: Path, cls: ast.ClassDef) -> None:
    """Methods that implement a protocol are documented there."""
    implements = {"applies_to", "collect", "get_command", "list_commands", "format_commands", "convert"}
    if cls.name == "LocalHost":
        return
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in implements:
            assert ast.get_docstring(node), f"{path}: {cls.name}.{node.name}"
