"""Whatever instant a capture dies at: what was saved is sealed, the rest is said, and nothing passes for complete."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmforensics.bundle.recover import recover
from pmforensics.errors import BundleBroken, BundleBusy, BundleError, NotABundle
from pmforensics.model.capture import Artifact, CollectorStarted, Item
from pmforensics.verify.integrity import Integrity, check_integrity
from tests import captures
from tests.bundle import synthetic
from tests.bundle.kills import killed_at

SEED = 20261120


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill loses nothing that was written, synced or not."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


def items(spool: Path) -> Iterator[Item]:
    """A capture with every kind of item, a streamed body and a spooled file among them."""
    yield from synthetic.whole()
    yield CollectorStarted("second_last", 5.0)
    yield synthetic.artifact("streamed", iter([b"x" * 5000] * 3), bulk=True)
    folder = spool / "second_last"
    folder.mkdir()
    (folder / "tool-output").write_bytes(b"t" * 4000)
    yield Artifact("spooled", folder / "tool-output", "a tool", bulk=True)
    (folder / "left behind").write_bytes(b"l" * 3000)
    yield from synthetic.collector("last", synthetic.GAP)


def capture(evidence: Path) -> None:
    """From the first folder to the seal."""
    made = synthetic.writer(evidence, plan=["first", "second", "second_last", "last"])
    for item in items(made.spool_root):
        made.add(item)
    synthetic.finish(made)


def journaled(folder: Path) -> dict[str, str]:
    """What the journal promises: path to digest."""
    return {record["path"]: record["sha256"] for record in captures.journal_of(folder) if record["event"] == "artifact"}


def assert_promises_kept(folder: Path, promised: dict[str, str]) -> None:
    """Every finished artifact lies there whole, and the one in flight is the only one that can be lost."""
    for path, digest in promised.items():
        assert captures.sha256(folder / path) == digest, path


def assert_recovered(folder: Path, promised: dict[str, str]) -> dict[str, Any]:
    """Sealed, valid, unaltered, and every promise kept."""
    evidence = captures.judge(folder, coreutils=False)
    assert check_integrity(folder).verdict is not Integrity.ALTERED
    rows = {row["path"]: row for row in evidence["artifacts"]}
    for path, digest in promised.items():
        assert rows[path]["sha256"] == digest
    return evidence


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_capture_killed_before_any_change_of_the_disk_is_finished_by_recover(quick_path: Path, torn: bool) -> None:
    sealed_by_itself = 0
    for number in itertools.count(1):
        evidence = quick_path / str(number)
        if not killed_at(number, lambda to=evidence: capture(to), torn=torn):  # type: ignore[misc]
            break
        for folder in captures.bundles(evidence):
            promised = journaled(folder) if (folder / "journal.jsonl").exists() else {}
            assert_promises_kept(folder, promised)
            was_sealed = (folder / "tagmanifest-sha256.txt").exists()
            sealed_by_itself += was_sealed
            try:
                _, worked = recover(folder)
            except (NotABundle, BundleBroken):
                # Killed before the first record: then nothing can have been collected either.
                assert not promised
                assert not [path for path in folder.rglob("data/*/*") if path.is_file()]
                continue
            assert worked is not was_sealed
            found = assert_recovered(folder, promised)
            if worked:
                assert found["completeness"] == "incomplete"
                assert found["capture"]["ended_by"] == "killed"
        shutil.rmtree(evidence, ignore_errors=True)
    assert number > 100, "the capture hardly touched the disk: are the calls still counted?"
    assert sealed_by_itself > 0


def killed_capture(tmp_path: Path) -> Path:
    """A capture that died inside its streamed artifact, with files in the spool and a torn journal line."""
    pid = os.fork()
    if pid == 0:
        try:
            _die_capturing(tmp_path)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    return captures.only_bundle(tmp_path)


def _die_capturing(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path, plan=["first", "second", "second_last", "last"])
    for item in synthetic.whole():
        made.add(item)
    made.add(CollectorStarted("second_last", 5.0))

    def body() -> Iterator[bytes]:
        yield b"so far"
        os.write(made.journal.fd, b'{"event": "artifact", "path": "data/03-sec')
        os.kill(os.getpid(), signal.SIGKILL)

    folder = made.spool_root / "second_last"
    for name in ("deep/tool-output", "deep/er/tool-output", "tool output", "tool-output"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    made.add(synthetic.artifact("streamed", body()))


def test_recover_keeps_the_file_in_flight_and_every_spooled_file_and_overwrites_none(tmp_path: Path) -> None:
    folder = killed_capture(tmp_path)
    promised = journaled(folder)
    _, worked = recover(folder)
    assert worked
    evidence = assert_recovered(folder, promised)
    bodies = sorted((folder / row["path"]).read_bytes() for row in evidence["artifacts"] if row["outcome"] == "partial")
    names = ("deep/tool-output", "deep/er/tool-output", "tool output", "tool-output")
    assert bodies == sorted([b"so far", *(name.encode() * 100 for name in names)])
    reasons = {row["reason"]["code"] for row in evidence["artifacts"] if row["outcome"] == "partial"}
    assert reasons == {"capture-killed"}
    assert {gap["wanted"] for gap in evidence["gaps"]} >= {"last", "second_last", "journal.jsonl"}
    row = next(row for row in evidence["artifacts"] if row["path"].endswith("/streamed"))
    assert row["source"] == "/proc/4711/streamed"


def test_recover_killed_before_any_change_of_the_disk_is_finished_by_the_next(quick_path: Path) -> None:
    original = killed_capture(quick_path / "original")
    promised = journaled(original)
    for number in itertools.count(1):
        folder = quick_path / str(number)
        shutil.copytree(original, folder)
        finished = not killed_at(number, lambda to=folder: recover(to))  # type: ignore[misc]
        recover(folder)
        evidence = assert_recovered(folder, promised)
        partial = [row for row in evidence["artifacts"] if row["outcome"] == "partial"]
        assert sum(row["stored_bytes"] for row in partial) == 6 + 100 * (16 + 19 + 11 + 11)
        wanted = [gap["wanted"] for gap in evidence["gaps"]]
        assert len(wanted) == len(set(wanted)), "a gap was recorded twice"
        shutil.rmtree(folder)
        if finished:
            break
    assert number > 50


def test_recover_survives_kills_of_capture_and_recover_together(quick_path: Path) -> None:
    chance = random.Random(SEED)
    print("seed", SEED)
    for attempt in range(60):
        evidence = quick_path / str(attempt)
        killed_at(chance.randrange(20, 150), lambda to=evidence: capture(to), torn=chance.random() < 0.5)  # type: ignore[misc]
        folder = captures.only_bundle(evidence)
        promised = journaled(folder)
        for _ in range(3):
            killed_at(chance.randrange(1, 60), lambda to=folder: recover(to), torn=chance.random() < 0.5)  # type: ignore[misc]
        recover(folder)
        assert_recovered(folder, promised)
        shutil.rmtree(evidence)


def test_recovering_again_changes_nothing(tmp_path: Path) -> None:
    folder = killed_capture(tmp_path)
    sealed, _ = recover(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again, worked = recover(folder)
    assert not worked
    assert again.digest == sealed.digest
    assert again.evidence == captures.evidence_of(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- power cuts: the disk lost what it had promised


def zero(path: Path) -> None:
    """The length is there, the bytes are not."""
    path.write_bytes(bytes(path.stat().st_size))


def halve(path: Path) -> None:
    """The second half never reached the disk."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Only the name reached the disk."""
    os.truncate(path, 0)


DAMAGE = {"zeroed": zero, "halved": halve, "emptied": empty, "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_artifact_lost_by_a_power_cut_is_recorded_and_the_rest_is_sealed(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = killed_capture(tmp_path)
    promised = journaled(folder)
    hit = "data/01-first/net/tcp"
    damage(folder / hit)
    recover(folder)
    promised.pop(hit)
    evidence = assert_recovered(folder, promised)
    assert evidence["completeness"] == "incomplete"
    assert (hit, "lost") in {(gap["wanted"], gap["reason"]["code"]) for gap in evidence["gaps"]}
    left = [row for row in evidence["artifacts"] if row["path"] == hit]
    assert [row["outcome"] for row in left] == ([] if damage is Path.unlink else ["partial"])


@pytest.mark.parametrize("name", ["custody.jsonl", "bagit.txt"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_tag_file_lost_by_a_power_cut_never_passes_for_complete(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    folder = killed_capture(tmp_path)
    promised = journaled(folder)
    damage(folder / name)
    recover(folder)
    assert set(promised) <= {row["path"] for row in captures.judge(folder)["artifacts"]}
    # A log of custody that is torn is told as that: nobody can say who tore it.
    assert check_integrity(folder).verdict is not Integrity.INTACT


def test_journal_cut_at_any_byte_keeps_the_evidence_it_no_longer_names(quick_path: Path) -> None:
    original = killed_capture(quick_path / "original")
    bodies = sorted(
        path.read_bytes() for top in ("data", ".spool") for path in (original / top).rglob("*") if path.is_file()
    )
    size = (original / "journal.jsonl").stat().st_size
    first_line = (original / "journal.jsonl").read_bytes().index(b"\n") + 1
    chance = random.Random(SEED)
    print("seed", SEED)
    for cut in [first_line, first_line + 1, size - 1, *(chance.randrange(first_line, size) for _ in range(40))]:
        folder = quick_path / "cut"
        shutil.copytree(original, folder)
        if chance.random() < 0.5:
            os.truncate(folder / "journal.jsonl", cut)
        else:  # the blocks were allocated and never written
            whole = (folder / "journal.jsonl").read_bytes()
            (folder / "journal.jsonl").write_bytes(whole[:cut] + bytes(size - cut))
        recover(folder)
        evidence = assert_recovered(folder, {})
        assert evidence["completeness"] == "incomplete"
        assert sorted(path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()) == bodies
        shutil.rmtree(folder)


# ---- who may recover, and what


def test_bundle_that_is_being_written_is_busy(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    holder = f"""
import sys
from pathlib import Path
from pmforensics.bundle.recover import recover
from pmforensics.errors import BundleBusy
try:
    recover(Path({str(made.folder)!r}))
except BundleBusy:
    sys.exit(42)
"""
    assert subprocess.run([captures.sys.executable, "-c", holder], check=False).returncode == 42
    made.journal.close()
    assert subprocess.run([captures.sys.executable, "-c", holder], check=False).returncode == 0


def test_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    folder = killed_capture(tmp_path)
    with (folder / "journal.jsonl").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BundleBusy):
            recover(folder)
    recover(folder)


def test_spooled_file_that_a_tool_still_writes_is_waited_for(tmp_path: Path) -> None:
    folder = killed_capture(tmp_path)
    promised = journaled(folder)
    with (
        (folder / ".spool" / "second_last" / "tool-output").open("ab") as tool,
        pytest.raises(BundleBusy, match="still writing"),
    ):
        tool.write(b"more")
        recover(folder)
    recover(folder)
    assert_recovered(folder, promised)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotABundle):
        recover(tmp_path / place)
    assert list((tmp_path / "empty").iterdir()) == []


LINKS = ["data", ".spool", "schema", "data/01-first", "data/99-recovered", ".spool/second_last/deep"]


@pytest.mark.parametrize("place", LINKS)
def test_link_in_place_of_a_folder_leads_nothing_out_of_the_bundle(tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = killed_capture(tmp_path / "evidence")
    shutil.rmtree(folder / place, ignore_errors=True)
    (folder / place).symlink_to(outside)
    with pytest.raises(BundleBroken, match="link"):
        recover(folder)
    assert list(outside.iterdir()) == []


def with_records(folder: Path, *records: object) -> Path:
    """The bundle with more lines in its journal."""
    with (folder / "journal.jsonl").open("a") as journal:
        journal.writelines("\n" + json.dumps(record) + "\n" for record in records)
    return folder


ARTIFACT = {
    "event": "artifact", "path": "data/01-x/a", "sha256": "0" * 64, "collector": "x", "outcome": "collected",
    "stored_bytes": 1, "facts": {},
}  # fmt: skip
HOSTILE_RECORDS: dict[str, object] = {
    "path-up": {**ARTIFACT, "path": "data/../../../etc/passwd"},
    "path-absolute": {**ARTIFACT, "path": "/etc/passwd"},
    "path-tag-file": {**ARTIFACT, "path": "bagit.txt"},
    "path-number": {**ARTIFACT, "path": 7},
    "path-list": {**ARTIFACT, "path": ["a"]},
    "path-missing": {"event": "artifact"},
    "begin-missing": {"event": "begin"},
    "open-again": {"event": "open", "plan": 7, "clock": "x", "target": [1]},
    "gap-empty": {"event": "gap"},
    "fact-list": {"event": "fact", "name": ["x"], "value": 1},
    "target-text": {"event": "fact", "name": "target", "value": "no"},
    "time-text": {"event": "collector", "name": "x", "mono_ns": "soon"},
    "event-number": {"event": 5},
    "not-an-object": [1, 2, 3],
    "deep": json.loads("[" * 500 + "]" * 500),
}


@pytest.mark.parametrize("record", HOSTILE_RECORDS.values(), ids=HOSTILE_RECORDS)
def test_journal_that_somebody_wrote_into_is_an_error_or_a_finding_never_a_crash(
    tmp_path: Path, record: object
) -> None:
    folder = with_records(killed_capture(tmp_path / "evidence"), record)
    outside = {path.name for path in tmp_path.iterdir()}
    try:
        recover(folder)
    except BundleError:
        assert not (folder / "tagmanifest-sha256.txt").exists()
    else:
        assert captures.evidence_of(folder)["completeness"] == "incomplete"
        assert check_integrity(folder).verdict is not Integrity.INTACT
    assert {path.name for path in tmp_path.iterdir()} == outside


def test_file_with_a_name_that_no_bundle_holds_is_kept_under_another(tmp_path: Path) -> None:
    folder = killed_capture(tmp_path)
    strange = folder / "data" / "01-first" / "line\nbreak \x1b[31m"
    strange.write_bytes(b"strange")
    recover(folder)
    evidence = assert_recovered(folder, {})
    assert b"strange" in [(folder / row["path"]).read_bytes() for row in evidence["artifacts"]]
