"""Conclusions in a bundle: outside its seal, citing artifacts, and found when they are changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import bagit
import pytest

from pmforensics.bundle.custody import read_custody
from pmforensics.bundle.layout import CUSTODY
from pmforensics.bundle.read import read_bundle
from pmforensics.verify import derived as derived_module
from pmforensics.verify.derived import write_derived
from pmforensics.verify.integrity import Integrity, check_integrity
from tests import captures
from tests.bundle import synthetic

CITED = "data/01-first/status"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic.bundle(tmp_path).folder


def conclude(folder: Path, verdict: str = "MATCH") -> Path:
    return write_derived(read_bundle(folder), "verify", {"verdict": verdict}, [CITED])


def test_conclusion_cites_artifacts_by_digest_in_its_file_and_in_the_custody_log(folder: Path) -> None:
    path = conclude(folder)
    cited = [{"path": CITED, "sha256": captures.sha256(folder / CITED)}]
    assert path == folder / "derived" / "0001-verify.json"
    assert json.loads(path.read_text()) == {"cites": cited, "verdict": "MATCH"}
    records, _, broken = read_custody(folder)
    assert broken == ""
    assert {key: records[-1][key] for key in ("event", "path", "sha256", "cites")} == {
        "event": "derived",
        "path": "derived/0001-verify.json",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "cites": cited,
    }


def test_bundle_stays_what_was_sealed(folder: Path) -> None:
    before = check_integrity(folder)
    conclude(folder)
    conclude(folder, "MISMATCH")
    after = check_integrity(folder)
    assert (after.verdict, after.seal) == (Integrity.INTACT, before.seal)
    assert sorted(path.name for path in (folder / "derived").iterdir()) == ["0001-verify.json", "0002-verify.json"]
    bagit.Bag(str(folder)).validate()
    captures.sha256sum(folder, "tagmanifest-sha256.txt")


def test_incomplete_bundle_stays_incomplete(tmp_path: Path) -> None:
    folder = synthetic.bundle(tmp_path, synthetic.with_gap()).folder
    conclude(folder)
    assert check_integrity(folder).verdict is Integrity.INCOMPLETE


@pytest.mark.parametrize("change", ["edited", "removed", "added", "renamed", "linked"])
def test_changed_conclusion_is_found(folder: Path, tmp_path: Path, change: str) -> None:
    path = conclude(folder, "MISMATCH")
    if change == "edited":
        path.write_text(path.read_text().replace("MISMATCH", "MATCH"))
    elif change == "removed":
        path.unlink()
    elif change == "added":
        (folder / "derived" / "0002-verify.json").write_text('{"verdict": "MATCH"}')
    elif change == "renamed":
        path.rename(path.with_name("0009-verify.json"))
    else:
        (folder / "derived").rename(tmp_path / "elsewhere")
        (folder / "derived").symlink_to(tmp_path / "elsewhere")
    report = check_integrity(folder)
    assert report.verdict is Integrity.ALTERED
    assert any("derived" in sentence for sentence in report.alterations)


def test_custody_line_that_cannot_be_written_leaves_no_conclusion_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(derived_module, "write_custody", full)
    with pytest.raises(OSError, match="No space left"):
        conclude(folder)
    assert list((folder / "derived").iterdir()) == []
    assert "derived" not in (folder / CUSTODY).read_text()


def test_only_artifacts_of_the_bundle_can_be_cited(folder: Path) -> None:
    with pytest.raises(KeyError):
        write_derived(read_bundle(folder), "verify", {}, ["data/01-first/nothing"])
    assert not (folder / "derived").exists()
