"""Opening a bundle that somebody else may have touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmforensics.bundle.read import read_bundle, read_tag_file
from pmforensics.errors import BundleBroken, NotABundle, NotSealed
from tests.bundle import synthetic


def test_sealed_bundle_reads_as_it_was_sealed(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    assert read_bundle(sealed.folder).evidence == sealed.evidence


def test_unsealed_bundle_says_how_to_finish_it(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    with pytest.raises(NotSealed) as caught:
        read_bundle(made.folder)
    assert str(made.folder) in caught.value.hint


@pytest.mark.parametrize("kind", ["nothing", "file", "empty-folder"])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    {"nothing": lambda: None, "file": place.touch, "empty-folder": place.mkdir}[kind]()
    with pytest.raises(NotABundle):
        read_bundle(place)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "device", "huge", "missing"])
def test_tag_file_that_is_none_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    folder = synthetic.bundle(tmp_path).folder
    path = folder / "evidence.json"
    path.unlink()

    def huge() -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("/dev/zero"),
        "device": lambda: os.mknod(path, 0o020600, os.makedev(1, 5)) if os.geteuid() == 0 else os.mkfifo(path),
        "huge": huge,
        "missing": lambda: None,
    }[kind]()
    with pytest.raises(BundleBroken):
        read_tag_file(folder, "evidence.json")
    with pytest.raises(BundleBroken):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "[]", "null", "1" * 10_000, "\0", "{}" * 2])
def test_manifest_that_is_no_json_object_is_broken(tmp_path: Path, text: str) -> None:
    folder = synthetic.bundle(tmp_path).folder
    (folder / "evidence.json").write_text(text)
    with pytest.raises(BundleBroken):
        read_bundle(folder)
