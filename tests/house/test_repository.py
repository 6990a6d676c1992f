"""The project's own files address no package registry: every machine has its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests import zoo

REGISTRY = re.compile(
    r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|crates\.io|proxy\.golang|deb\.debian|repo\.maven)", re.IGNORECASE
)


def tracked_files() -> list[Path]:
    """Files of the project as git knows them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=zoo.REPO, capture_output=True, check=True)
    return [zoo.REPO / name for name in listed.stdout.decode().split("\0") if name and (zoo.REPO / name).is_file()]


def test_no_package_registry_is_addressed() -> None:
    files = tracked_files()
    assert len(files) > 50
    addressed = []
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if REGISTRY.search(text):
            addressed.append(str(path.relative_to(zoo.REPO)))
    assert not addressed
