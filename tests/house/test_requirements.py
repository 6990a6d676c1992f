"""Dependencies: pinned, hashed, and naming no place to get them from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LOCKS = sorted((REPO / "requirements").glob("*.txt"))


def entries(path: Path) -> list[str]:
    """One logical line for each requirement: continuations joined, comments dropped."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_there_are_locks_to_look_at() -> None:
    assert {"build", "run", "test"} <= {path.stem for path in LOCKS}
    assert all(entries(path) for path in LOCKS)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_to_one_version_with_hashes(path: Path) -> None:
    for entry in entries(path):
        assert re.match(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==\S+", entry), entry[:80]
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]
        assert not re.findall(r"--hash=(?!sha256:[0-9a-f]{64}\b)", entry)


@pytest.mark.parametrize("path", sorted((REPO / "requirements").iterdir()), ids=lambda path: path.name)
def test_no_index_address_stands_in_the_requirements(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)


def test_lock_of_a_running_pmf_holds_what_the_project_declares_and_no_more() -> None:
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[a-z0-9.-]+", line)[0].replace(".", "-") for line in declared}  # type: ignore[index]
    locked = {
        re.match(r"[a-z0-9._-]+", line)[0].replace(".", "-") for line in entries(REPO / "requirements" / "run.txt")
    }  # type: ignore[index]
    assert names <= locked
    assert len(locked) <= len(names) + 2, f"what came in with them? {locked - names}"


def test_python_versions_agree() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["mypy"]["python_version"] == "3.11"
    assert project["tool"]["ruff"]["target-version"] == "py311"
