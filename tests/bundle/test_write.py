"""The writer: what is on the disk after each item, and what it does when the volume refuses."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmforensics.bundle import write
from pmforensics.bundle.recover import recover
from pmforensics.errors import VolumeFull, VolumeUnusable
from pmforensics.model.capture import MIB, Artifact, CollectorStarted, Gap, Outcome, Reason, Settlement
from tests import captures, volumes
from tests.bundle import synthetic


def rows(folder: Path) -> dict[str, dict[str, object]]:
    """The artifact rows of a sealed bundle, by path below data/."""
    return {row["path"].removeprefix("data/"): row for row in captures.evidence_of(folder)["artifacts"]}


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def chunked(body: bytes, size: int = MIB) -> Iterator[bytes]:
    """A body as collectors send it."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


# ---- one artifact


def test_artifact_is_on_disk_and_journaled_when_add_returns(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    made.add(synthetic.artifact("status", b"Name: x\n"))
    stored = made.folder / "data" / "01-first" / "status"
    assert stored.read_bytes() == b"Name: x\n"
    (record,) = [record for record in captures.journal_of(made.folder) if record["event"] == "artifact"]
    assert record["sha256"] == captures.sha256(stored)
    assert record["path"] == "data/01-first/status"


def test_file_is_called_partial_until_its_last_byte_is_there(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    seen = []

    def body() -> Iterator[bytes]:
        yield b"one"
        seen.append(sorted(path.name for path in (made.folder / "data" / "01-first").iterdir()))
        yield b"two"

    made.add(synthetic.artifact("core", body()))
    assert seen == [["core.partial"]]
    assert [path.name for path in (made.folder / "data" / "01-first").iterdir()] == ["core"]


def test_streamed_body_is_hashed_in_pieces_as_sha256sum_hashes_the_file(tmp_path: Path) -> None:
    body = noise(9 * MIB + 12345)  # above the size from which hashing runs beside the writing
    sealed = synthetic.bundle(tmp_path, synthetic.collector("first", synthetic.artifact("big", chunked(body, 77_777))))
    captures.judge(sealed.folder)
    row = rows(sealed.folder)["01-first/big"]
    assert (row["bytes"], row["stored_bytes"]) == (len(body), len(body))
    assert row["sha256"] == hashlib.sha256(body).hexdigest()


def test_settle_is_asked_after_the_last_byte(tmp_path: Path) -> None:
    sent = []

    def body() -> Iterator[bytes]:
        for part in (b"a", b"b"):
            sent.append(part)
            yield part

    late = Artifact(
        "dump",
        body(),
        "x",
        settle=lambda: Settlement(Outcome.PARTIAL, Reason("cut", f"{len(sent)} pieces"), {"pieces": len(sent)}),
    )
    sealed = synthetic.bundle(tmp_path, synthetic.collector("first", late))
    row = rows(sealed.folder)["01-first/dump"]
    assert (row["outcome"], row["facts"]) == ("partial", {"pieces": 2})


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", ".hidden", "a//b", "", "a b", "a\n", "x" * 401, "a/.b"]
)
def test_path_that_a_bundle_cannot_hold_becomes_a_gap_and_never_a_file(tmp_path: Path, path: str) -> None:
    bad = synthetic.artifact(path, iter([b"x"]))
    sealed = synthetic.bundle(tmp_path / "evidence", synthetic.collector("first", bad, synthetic.artifact("good")))
    evidence = captures.judge(sealed.folder)
    assert [row["path"] for row in evidence["artifacts"]] == ["data/01-first/good"]
    assert [gap["reason"]["code"] for gap in evidence["gaps"]] == ["bad-path"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["evidence"]


def test_same_path_twice_keeps_the_first_and_records_the_second(tmp_path: Path) -> None:
    items = synthetic.collector("first", synthetic.artifact("a", b"1"), synthetic.artifact("a", b"2"))
    sealed = synthetic.bundle(tmp_path, items)
    captures.judge(sealed.folder)
    assert (sealed.folder / "data" / "01-first" / "a").read_bytes() == b"1"
    assert captures.gap_codes(sealed.folder) == {"bad-path"}


# ---- spooled files


def spooled(made: write.BundleWriter, name: str, body: bytes) -> Path:
    """A file as a tool leaves it in the spool folder."""
    folder = made.spool_root / "first"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(body)
    path.chmod(0o666)
    return path


def test_spooled_file_is_moved_not_copied_and_made_ours(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    path = spooled(made, "heap", noise(3 * MIB))
    inode = path.stat().st_ino
    made.add(Artifact("heap", path, "a tool", bulk=True))
    final = made.folder / "data" / "01-first" / "heap"
    assert final.stat().st_ino == inode
    assert final.stat().st_mode & 0o777 == 0o600
    captures.judge(synthetic.finish(made).folder)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "gone"])
def test_spooled_name_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    made = synthetic.writer(tmp_path / "evidence")
    made.add(CollectorStarted("first", 5.0))
    path = made.spool_root / "heap"
    {
        "link": lambda: path.symlink_to(secret),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "gone": lambda: None,
    }[kind]()
    made.add(Artifact("heap", path, "a tool"))
    sealed = synthetic.finish(made)
    evidence = captures.judge(sealed.folder)
    assert evidence["artifacts"] == []
    assert captures.gap_codes(sealed.folder) == {"volume-failed"}
    assert secret.stat().st_mode & 0o777 != 0o600


@pytest.mark.parametrize("mapped", [False, True], ids=["open", "mapped"])
def test_file_that_somebody_still_writes_is_copied_and_cannot_change_any_more(tmp_path: Path, mapped: bool) -> None:
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    path = spooled(made, "heap", b"\0" * (2 * MIB))
    # A process of its own: the fence is against processes that pmf could not end.
    late_writer = f"""
import mmap, sys, time
file = open({str(path)!r}, "r+b")
view = mmap.mmap(file.fileno(), 0) if {mapped} else None
if view: file.close()
print("open", flush=True)
while True:
    if view:
        view[0:5] = b"late!"
    else:
        file.seek(0); file.write(b"late!"); file.seek(0, 2); file.write(b"more"); file.flush()
    time.sleep(0.001)
"""
    with subprocess.Popen(["python3", "-c", late_writer], stdout=subprocess.PIPE, text=True) as late:
        try:
            assert late.stdout is not None
            assert late.stdout.readline() == "open\n"
            made.add(Artifact("heap", path, "a tool", bulk=True))
            sealed = synthetic.finish(made)
            time.sleep(0.05)
            evidence = captures.judge(sealed.folder)
        finally:
            late.kill()
    (row,) = evidence["artifacts"]
    assert row["outcome"] == "partial"
    assert row["reason"]["code"] == "still-written"
    assert evidence["completeness"] == "incomplete"


def test_spooled_file_that_time_does_not_suffice_to_hash_is_cut_and_says_so(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path, hash_until=time.monotonic() + 0.3)
    made.add(CollectorStarted("first", 5.0))
    path = spooled(made, "heap", b"")
    with path.open("r+b") as file:
        file.truncate(64 << 30)  # a sparse core is as long to hash as a full one
    began = time.monotonic()
    made.add(Artifact("heap", path, "a tool", bulk=True))
    assert time.monotonic() - began < 20  # 64 GiB take more than half a minute on any machine
    evidence = captures.judge(synthetic.finish(made).folder)
    (gap,) = evidence["gaps"]
    assert gap["reason"]["code"] == "deadline-passed"
    for row in evidence["artifacts"]:
        assert row["outcome"] == "partial"
        assert row["stored_bytes"] < 64 << 30


# ---- compression: the volume is made slow by delaying fdatasync, through which the writer measures it


def slow_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that takes 4 s to sync the probe, slower than any compressor; everything else is real."""
    real = os.fdatasync

    def slow(fd: int) -> None:
        if os.fstat(fd).st_size >= write.PROBE_BYTES:
            time.sleep(4.0)
        real(fd)

    monkeypatch.setattr(write.os, "fdatasync", slow)


def compressible(size: int, seed: int = 1) -> bytes:
    """Half noise, half zeros, like memory."""
    return b"".join(noise(32 * 1024, seed + number) + bytes(32 * 1024) for number in range(size // (64 * 1024)))


@pytest.mark.needs("zstd")
def test_slow_volume_gets_zstd_that_decodes_to_the_recorded_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_volume(monkeypatch)
    body = compressible(21 * MIB) + b"the end"
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    made.add(synthetic.artifact("core", chunked(body, 1_000_003), bulk=True))
    made.add(synthetic.artifact("second", chunked(body), bulk=True))
    monkeypatch.undo()
    sealed = synthetic.finish(made)
    evidence = captures.judge(sealed.folder)
    assert evidence["volume"]["compression"]["chosen"] == "zstd-1"
    for name in ("core", "second"):
        row = rows(sealed.folder)[f"01-first/{name}.zst"]
        assert row["encoding"] == "zstd"
        stored = sealed.folder / "data" / "01-first" / f"{name}.zst"
        decoded = subprocess.run(["zstd", "-dc", stored], capture_output=True, check=True).stdout
        assert hashlib.sha256(decoded).hexdigest() == row["content_sha256"] == hashlib.sha256(body).hexdigest()
        assert row["bytes"] == len(decoded) == len(body)
        assert row["stored_bytes"] == stored.stat().st_size < len(body)
        # One frame each 8 MiB: a cut file keeps all frames before the cut.
        listed = subprocess.run(["zstd", "-lv", stored], capture_output=True, text=True, check=True).stdout
        assert int(listed.split("# Zstandard Frames: ")[1].split()[0]) >= 3


def test_fast_volume_is_not_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.perf_counter
    # The compressor is made slow here instead: the clock jumps by a minute each time it is about to run.
    jumps = iter(range(1000))

    class Slow:
        @staticmethod
        def compress(data: bytes, level: int) -> bytes:
            next(jumps)
            monkeypatch.setattr(write.time, "perf_counter", lambda: real() + 60.0)
            return data[: len(data) // 2]

    monkeypatch.setattr(write, "_zstd", lambda: Slow)
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    made.add(synthetic.artifact("core", chunked(compressible(9 * MIB)), bulk=True))
    monkeypatch.undo()
    sealed = synthetic.finish(made)
    evidence = captures.judge(sealed.folder)
    assert evidence["volume"]["compression"]["chosen"] == "none"
    assert list(rows(sealed.folder)) == ["01-first/core"]


def test_noise_is_not_compressed_even_on_a_slow_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_volume(monkeypatch)
    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    made.add(synthetic.artifact("core", chunked(noise(9 * MIB)), bulk=True))
    monkeypatch.undo()
    sealed = synthetic.finish(made)
    captures.judge(sealed.folder)
    assert list(rows(sealed.folder)) == ["01-first/core"]


def test_small_bulk_is_neither_measured_nor_compressed(tmp_path: Path) -> None:
    items = synthetic.collector("first", synthetic.artifact("core", chunked(compressible(7 * MIB)), bulk=True))
    sealed = synthetic.bundle(tmp_path, items)
    assert captures.evidence_of(sealed.folder)["volume"]["compression"] is None
    assert list(rows(sealed.folder)) == ["01-first/core"]


# ---- the volume refuses


def endless() -> Iterator[bytes]:
    """A body without end; the same noise again and again."""
    block = noise(MIB)
    while True:
        yield block


@pytest.mark.needs("root", "mkfs.ext4")
def test_bulk_stops_at_the_floor_and_the_rest_is_still_kept(tmp_path: Path) -> None:
    floor_bytes = 40 * MIB
    with volumes.ext4(tmp_path / "volume", 128) as place:
        made = synthetic.writer(place, floor_bytes=floor_bytes)
        made.add(CollectorStarted("first", 5.0))
        made.add(synthetic.artifact("core", endless(), bulk=True))
        assert volumes.free_bytes(place) > floor_bytes - write.WATCH_BYTES - 2 * MIB
        made.add(synthetic.artifact("after", b"still kept"))
        sealed = synthetic.finish(made)
        evidence = captures.judge(sealed.folder)
        row = rows(sealed.folder)["01-first/core"]
        assert (row["outcome"], row["reason"]["code"]) == ("partial", "volume-full")  # type: ignore[index]
        assert row["stored_bytes"] > 16 * MIB  # type: ignore[operator]
        assert rows(sealed.folder)["01-first/after"]["outcome"] == "collected"
        assert evidence["completeness"] == "incomplete"


@pytest.mark.needs("root", "mkfs.ext4", "zstd")
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
def test_volume_that_fills_up_under_an_artifact_leaves_a_true_partial_and_room_for_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    if compress:
        slow_volume(monkeypatch)
    with volumes.ext4(tmp_path / "volume", 64) as place:
        # No floor: another writer on the same volume is as fast as we are.
        made = synthetic.writer(place, floor_bytes=0)
        made.add(CollectorStarted("first", 5.0))
        body = (compressible(MIB, number) for number in itertools.count()) if compress else endless()
        made.add(synthetic.artifact("core", body, bulk=True))
        made.add(CollectorStarted("second", 5.0))
        made.add(synthetic.artifact("small", b"after"))
        made.add(synthetic.artifact("large", endless(), bulk=True))
        made.add(Gap("something", Outcome.MISSING, Reason("not-there", "it is not there")))
        sealed = synthetic.finish(made)
        evidence = captures.judge(sealed.folder)
        name = "01-first/core.zst" if compress else "01-first/core"
        row = rows(sealed.folder)[name]
        assert (row["outcome"], row["reason"]["code"]) == ("partial", "volume-full")  # type: ignore[index]
        stored = sealed.folder / "data" / name
        assert stored.stat().st_size == row["stored_bytes"]
        assert rows(sealed.folder)["02-second/small"]["outcome"] == "collected"
        assert "second/large" in {gap["wanted"] for gap in evidence["gaps"]}
        if compress:
            assert row["content_sha256"] is None
            cut = subprocess.run(["zstd", "-dc", stored], capture_output=True, check=False).stdout
            assert cut[:MIB] == compressible(MIB, 0)
            assert len(cut) > 8 * MIB


@pytest.mark.needs("root", "mkfs.ext4")
def test_volume_filled_by_somebody_else_still_takes_gaps_and_the_seal(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        made = synthetic.writer(place, floor_bytes=0)
        made.add(CollectorStarted("first", 5.0))
        made.add(synthetic.artifact("before", b"kept"))
        volumes.fill(place, 0)
        for number in range(200):
            made.add(synthetic.artifact(f"n{number}", b"x" * 4000))
        made.add(CollectorStarted("second", 5.0))
        made.add(synthetic.GAP)
        sealed = synthetic.finish(made)
        evidence = captures.judge(sealed.folder)
        assert rows(sealed.folder)["01-first/before"]["outcome"] == "collected"
        assert "second/stacks" in {gap["wanted"] for gap in evidence["gaps"]}


@pytest.mark.needs("root", "mkfs.ext4")
def test_volume_too_full_for_the_seal_is_finished_by_recover_once_there_is_room(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        made = synthetic.writer(place, floor_bytes=0)
        made.add(CollectorStarted("first", 5.0))
        made.add(synthetic.artifact("before", b"kept"))
        made.release_reserve()
        filler = volumes.fill(place, 0)
        (made.folder / "journal.jsonl").stat()
        with pytest.raises((VolumeFull, VolumeUnusable)) as caught:
            for _ in range(1000):  # the journal's own last block may still have room
                made.add(synthetic.GAP)
            synthetic.finish(made)
        assert "pmf recover" in caught.value.hint
        filler.unlink()
        made.journal.close()
        sealed, worked = recover(made.folder)
        assert worked
        assert rows(sealed.folder)["01-first/before"]["outcome"] == "collected"
        captures.judge(sealed.folder)


@pytest.mark.needs("root", "mkfs.ext4", "e2fsck")
def test_volume_that_fails_and_turns_read_only_is_a_volume_error_and_recovers_after_repair(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        made = synthetic.writer(place)
        made.add(CollectorStarted("first", 5.0))
        made.add(synthetic.artifact("before", b"kept"))
        volumes.break_down(place)
        with pytest.raises(VolumeUnusable, match="cannot be written any more") as caught:
            made.add(synthetic.artifact("after", b"lost"))
        assert "pmf recover" in caught.value.hint
        os.close(made.journal.fd)
        with pytest.raises(VolumeUnusable, match="Read-only"):
            recover(made.folder)
        volumes.repair(place)
        sealed, _ = recover(made.folder)
        assert rows(sealed.folder)["01-first/before"]["outcome"] == "collected"
        captures.judge(sealed.folder)


@pytest.mark.needs("root", "mkfs.ext4")
def test_unmounted_volume_ends_the_writing_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        made = synthetic.writer(place)
        made.add(CollectorStarted("first", 5.0))
        made.add(synthetic.artifact("before", b"kept"))
        volumes.unmount(place)
        with pytest.raises(VolumeUnusable, match="cannot be written any more"):
            made.add(synthetic.artifact("after", b"lost"))
        assert list(place.iterdir()) == []
        made.journal.close()
        volumes.mount_again(place)
        sealed, _ = recover(made.folder)
        assert rows(sealed.folder)["01-first/before"]["outcome"] == "collected"
        captures.judge(sealed.folder)


def test_removed_folder_ends_the_writing_and_is_not_made_again(tmp_path: Path) -> None:
    import shutil

    made = synthetic.writer(tmp_path)
    made.add(CollectorStarted("first", 5.0))
    shutil.rmtree(made.folder)
    with pytest.raises(VolumeUnusable):
        made.add(synthetic.artifact("after", b"lost"))
    assert not made.folder.exists()


def test_hashing_beside_the_writing_leaves_no_thread(tmp_path: Path) -> None:
    synthetic.bundle(tmp_path, synthetic.collector("first", synthetic.artifact("big", chunked(noise(6 * MIB)))))
    assert threading.active_count() == 1


def test_opening_record_is_what_was_given(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    first = captures.journal_of(made.folder)[0]
    assert first["event"] == "open"
    assert {key: first[key] for key in synthetic.opening()} == json.loads(json.dumps(synthetic.opening()))
