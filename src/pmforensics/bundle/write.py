"""Write a bundle while it is being collected: every artifact is safe before the next one begins."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pmforensics.bundle.custody import write_custody
from pmforensics.bundle.journal import Journal
from pmforensics.bundle.layout import (
    BAGIT,
    BAGIT_TEXT,
    DATA,
    PARTIAL_SUFFIX,
    RESERVE,
    SPOOL,
    bundle_name,
    is_payload_path,
    safe_component,
)
from pmforensics.bundle.regular import open_regular
from pmforensics.bundle.volume import Volume
from pmforensics.errors import VolumeFull, VolumeUnusable
from pmforensics.model.capture import (
    KIB,
    MIB,
    Artifact,
    CollectorEnded,
    CollectorStarted,
    Fact,
    Gap,
    Item,
    Json,
    Outcome,
    Reason,
    Touch,
)

NO_ROOM = Reason(
    "volume-full", "the evidence volume is full; what is left is for the seal", "Give a larger volume with --evidence."
)
CHUNK_BYTES = MIB
RESERVE_BYTES = 4 * MIB  # released when the volume is full, so that the seal still fits
SEAL_BYTES = 2 * MIB  # of it, what no artifact may use up
PROBE_BYTES = 8 * MIB  # of a bulk artifact, to measure volume against compressor
SYNC_TOGETHER_BELOW_BYTES = 64 * KIB  # smaller files are synced when their collector ends
WATCH_BYTES = 16 * MIB  # between two looks at the free space
THREAD_FROM_BYTES = 4 * MIB  # bodies above this are hashed beside the writing
DROP_CACHE_FROM_BYTES = 64 * MIB
HASH_SHARE = 0.6  # of the time that is left, for hashing one spooled file: what follows needs some too
WRITERS_GO_WITHIN_S = 0.2  # a killed process closes its files within milliseconds
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class BundleWriter:
    """
    One bundle, being written.

    `create` makes the folder; `add` takes items in the order in which they happen; `drop_spool` ends it.
    Sealing is `seal.seal`, which needs nothing but the folder.
    """

    def __init__(self, folder: Path, volume: Volume, journal: Journal, *, hash_until: float = math.inf) -> None:
        self.folder = folder
        self.journal = journal
        self.spool_root = folder / SPOOL
        self._volume = volume
        self._hash_until = hash_until
        self._number = 0
        self._collector = "capture"
        self._paths: set[str] = set()
        self._full = False
        self._compress: bool | None = None
        self._unsynced = _Unsynced()
        self._is_anything_durable = False  # the very first artifact is synced at once

    @classmethod
    def create(
        cls,
        evidence: Path,
        volume: Volume,
        *,
        service: str,
        host: str,
        capture_id: str,
        at: datetime,
        opening: dict[str, Json],
        hash_until: float = math.inf,
    ) -> BundleWriter:
        """
        Make SERVICE/HOST-TIME-ID under `evidence` and write the first record.

        `hash_until` is a time of the monotonic clock: a spooled file that is not hashed well before it is cut, so
        that the seal still comes in time. Errors: VolumeUnusable (cannot create), VolumeFull.
        """
        folder = evidence.absolute() / safe_component(service, "service") / bundle_name(host, at, capture_id)
        try:
            for parent in (evidence, folder.parent):
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            (folder / DATA).mkdir(mode=0o700)
            (folder / SPOOL).mkdir(mode=0o700)
            journal = Journal(folder, create=True)
            writer = cls(folder, volume, journal, hash_until=hash_until)
            writer._take_reserve()
            _write_file(folder / BAGIT, BAGIT_TEXT.encode())
            journal.write("open", sync=True, **opening)
            write_custody(folder, "opened", capture=capture_id)
            sync_folder(folder)
            sync_folder(folder.parent)
        except OSError as error:
            if error.errno in FULL:
                raise VolumeFull(
                    f"{evidence} is full", hint="Give another volume with --evidence, or make room."
                ) from None
            raise VolumeUnusable(
                f"no bundle can be made under {evidence} ({error.strerror})",
                hint="Give a writable folder with --evidence, or set PMF_EVIDENCE.",
            ) from None
        return writer

    def add(self, item: Item) -> None:
        """
        Keep one item. A full or vanished volume never raises here while a record can still be written.

        Errors: VolumeUnusable when not even the journal can be written.
        """
        try:
            match item:
                case CollectorStarted():
                    self._number += 1
                    self._collector = item.name
                    self._record("collector", sync=False, name=item.name, limit_s=round(item.limit_s, 3))
                case CollectorEnded():
                    self._record(
                        "collector-end",
                        name=item.name,
                        outcome=item.outcome.value,
                        seconds=round(item.seconds, 6),
                        runs_again=item.runs_again,
                    )
                    self._collector = "capture"
                case Artifact():
                    self._add_artifact(item)
                case Gap():
                    self._add_gap(item)
                case Touch():
                    self._record(
                        "touch",
                        sync=False,
                        verb=item.verb,
                        what=item.what,
                        seconds=item.seconds,
                        result=item.result,
                    )
                case Fact():
                    self._record("fact", name=item.name, value=item.value)
        except OSError as error:
            raise VolumeUnusable(
                f"{self.folder} cannot be written any more ({error.strerror})",
                hint="What was saved before is there: run `pmf recover` on the folder when the volume is back.",
            ) from None

    def release_reserve(self) -> None:
        """Give back the space that was kept for sealing."""
        (self.folder / RESERVE).unlink(missing_ok=True)

    def drop_spool(self) -> None:
        """No more collectors: remove their private folders, fenced-off leftovers included."""
        import shutil

        shutil.rmtree(self.spool_root, ignore_errors=True)

    # -- one artifact --------------------------------------------------------------------------------------------

    def _add_artifact(self, item: Artifact) -> None:
        path = self._payload_path(item.path)
        if path is None:
            self._drain(item)
            self._add_gap(
                Gap(
                    f"{self._collector}/{safe_component(item.path, 'artifact')}",
                    Outcome.FAILED,
                    Reason("bad-path", "the collector named a path that a bundle cannot hold, or twice the same"),
                )
            )
            return
        final = self.folder / path
        if self._full and (item.bulk or self._free_bytes() < SEAL_BYTES):
            if not item.bulk:
                self._drain(item)
            self._add_gap(Gap(f"{self._collector}/{item.path}", Outcome.REFUSED, NO_ROOM))
            return
        self._record("begin", sync=False, path=path, source=item.source, media_type=item.media_type)
        begun_ns = time.monotonic_ns()
        stored = _Stored(final, self._volume.floor_bytes)
        try:
            self._make_folder(final.parent)
            if isinstance(item.body, Path):
                left_s = self._hash_until - time.monotonic()
                stored.adopt(item.body, time.monotonic() + HASH_SHARE * left_s)
            else:
                chunks = iter((item.body,)) if isinstance(item.body, bytes) else iter(item.body)
                stored.write(chunks, bulk=item.bulk, compress=self._choose)
        except OSError as error:
            self._refused(stored, error)
            if not item.bulk:
                self._drain(item)  # a small one: what the collector has behind it may still find room
        self._keep(item, stored, path, begun_ns)

    def _refused(self, stored: _Stored, error: OSError) -> None:
        """The volume did not take it: the artifact ends here, the capture only when the volume is gone."""
        if not self.journal.is_in_place():
            raise error
        full = error.errno in FULL
        stored.break_off(
            Reason(
                "volume-full" if full else "volume-failed",
                f"the evidence volume refused after {stored.stored_bytes:,} bytes ({error.strerror})",
                "Give a larger volume with --evidence.",
            )
        )
        if full:
            self._full = True
            self.release_reserve()

    def _keep(self, item: Artifact, stored: _Stored, path: str, begun_ns: int) -> None:
        settled = item.settled()
        try:
            final = stored.finish(self._unsynced) if stored.stored_bytes or stored.broken is None else None
        except OSError as error:
            self._refused(stored, error)
            final = None
        if final is None:
            assert stored.broken is not None
            stored.discard()
            self._add_gap(Gap(f"{self._collector}/{item.path}", Outcome.FAILED, stored.broken))
            return
        outcome, reason = settled.outcome, settled.reason
        if stored.broken is not None:
            # The volume's word outweighs the collector's: the body was not taken to its end.
            outcome, reason = Outcome.PARTIAL, stored.broken
        self._record(
            "artifact",
            sync=not self._unsynced or not self._is_anything_durable or len(self._unsynced) >= _Unsynced.MOST,
            path=str(final.relative_to(self.folder)),
            collector=self._collector,
            outcome=outcome.value,
            reason=reason.json() if reason else None,
            source=item.source,
            media_type=item.media_type,
            bytes=stored.content_bytes(),
            stored_bytes=stored.stored_bytes,
            sha256=stored.sha256(),
            encoding=stored.encoding,
            content_sha256=stored.content_sha256(),
            facts=dict(settled.facts),
            pause=settled.pause.json() if settled.pause else None,
            seconds=round((time.monotonic_ns() - begun_ns) / 1e9, 6),
        )

    def _payload_path(self, path: str) -> str | None:
        if not is_payload_path(path):
            return None
        full = f"{DATA}/{self._number:02d}-{self._collector}/{path}"
        if full in self._paths:
            return None
        self._paths.add(full)
        return full

    def _make_folder(self, folder: Path) -> None:
        """The folders between data/ and an artifact. Never data/ itself: where that is gone, so is the volume."""
        place = self.folder / DATA
        for part in folder.relative_to(place).parts:
            place /= part
            if not place.is_dir():
                place.mkdir(mode=0o700)
                sync_folder(place.parent)

    def _free_bytes(self) -> int:
        place = os.fstatvfs(self.journal.fd)
        return place.f_bavail * place.f_frsize

    def _drain(self, item: Artifact) -> None:
        if not isinstance(item.body, bytes | Path):
            for _ in item.body:
                pass

    def _add_gap(self, gap: Gap) -> None:
        self._record(
            "gap",
            collector=self._collector,
            wanted=gap.wanted,
            outcome=gap.outcome.value,
            reason=gap.reason.json(),
            question=gap.question,
        )

    def _record(self, event: str, *, sync: bool = True, **values: Json) -> None:
        """One line of the journal. With `sync`, it and all that it follows is on the disk: files before lines."""
        if sync and self._unsynced:
            self._is_anything_durable = True
            self._sync_small_files()
        try:
            self.journal.write(event, sync=sync, **values)
        except OSError as error:
            if error.errno not in FULL or not (self.folder / RESERVE).exists():
                raise
            self._full = True
            self.release_reserve()
            self.journal.end_torn_line()
            self.journal.write(event, sync=sync, **values)

    def _sync_small_files(self) -> None:
        try:
            self._unsynced.sync()
        except OSError as error:
            if not self.journal.is_in_place():
                raise
            says = f"the evidence volume failed to take small files to the disk ({error.strerror})"
            gap = Gap(f"{self._collector}: durable small files", Outcome.PARTIAL, Reason("volume-failed", says))
            self._add_gap(gap)

    def _take_reserve(self) -> None:
        fd = os.open(self.folder / RESERVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        finally:
            os.close(fd)

    def _choose(self, sample: bytes, write_bytes_s: float) -> bool:
        """Whether to compress bulk: yes where the volume is slower than zstd level 1 on these very bytes."""
        if self._compress is None:
            zstd = _zstd()
            began = time.perf_counter()
            packed = zstd.compress(sample, level=1)
            compress_bytes_s = len(sample) / max(time.perf_counter() - began, 1e-6)
            ratio = len(sample) / max(len(packed), 1)
            self._compress = write_bytes_s < compress_bytes_s and ratio > 1.1
            self._record(
                "fact",
                name="compression",
                value={
                    "chosen": "zstd-1" if self._compress else "none",
                    "volume_mb_s": round(write_bytes_s / 1e6, 1),
                    "zstd_1_mb_s": round(compress_bytes_s / 1e6, 1),
                    "ratio": round(ratio, 2),
                    "sample_bytes": len(sample),
                },
            )
        return self._compress


class _Stored:
    """One file on its way: written once, hashed as it goes by, renamed into place when it is on the disk."""

    def __init__(self, final: Path, floor_bytes: int) -> None:
        self.final = final
        self.body_bytes = 0
        self.stored_bytes = 0
        self.encoding: str | None = None
        self.broken: Reason | None = None
        self._content_known = True
        self._floor_bytes = floor_bytes
        self._stored_hash = hashlib.sha256()
        self._content_hash: Any = None
        self._partial: Path | None = None
        self._fd = -1
        self._hasher: _Hasher | None = None

    def write(self, chunks: Iterator[bytes], *, bulk: bool, compress: Any) -> None:
        """Take the body to its end, or to the floor of the volume."""
        self._open(self.final)
        if bulk:
            probe: list[bytes] = []
            size = 0
            began = time.perf_counter()
            for chunk in chunks:
                probe.append(chunk)
                size += len(chunk)
                self._write_raw(chunk)
                if size >= PROBE_BYTES:
                    break
            self.body_bytes = size
            if size >= PROBE_BYTES:
                os.fdatasync(self._fd)
                rate = size / max(time.perf_counter() - began, 1e-6)
                sample = b"".join(probe)
                probe.clear()
                if compress(sample, rate):
                    self._restart_compressed(sample, chunks)
                    return
        self._copy(chunks)

    def adopt(self, spooled: Path, hash_until: float) -> None:
        """
        Take over a file that a tool wrote on this volume: hashed where it lies, moved into place.

        The spool may have been open to the target's user: a link or a device there is refused, and the file is
        made ours before it is read. A file that somebody can still write to is copied instead: the copy cannot
        change any more, whatever the writer does.
        """
        fd = open_regular(spooled)
        try:
            status = os.fstat(fd)
            if os.geteuid() == 0:
                os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o600)
            if is_being_written(fd, WRITERS_GO_WITHIN_S):
                self._open(self.final)
                self._copy(_pieces(fd, status.st_size, hash_until))
                self.broken = self.broken or Reason(
                    "still-written",
                    "a process that could not be ended was still writing it;"
                    f" this is a copy of the first {self.body_bytes:,} bytes",
                )
                return
            self._partial = self.final.with_name(self.final.name + PARTIAL_SUFFIX)
            os.rename(spooled, self._partial)
            self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)
        for chunk in _pieces(self._fd, status.st_size, hash_until):
            self._hash(chunk)
            self.stored_bytes += len(chunk)
        self.body_bytes = self.stored_bytes
        if self.stored_bytes < status.st_size:
            os.truncate(self._partial, self.stored_bytes)
            self.broken = Reason(
                "deadline-passed",
                f"cut after {self.stored_bytes:,} of {status.st_size:,} bytes: no time was left to hash more",
                "Give more time: --budget",
            )

    def break_off(self, why: Reason) -> None:
        """The volume refused: what the disk holds is all there will be."""
        self.broken = why
        # Of a compressed body it is not known how much of it the bytes on the disk still decode to.
        self._content_hash = None
        self._content_known = False

    def finish(self, unsynced: _Unsynced) -> Path:
        """Under its final name, which is returned; on the disk, unless it is small and left to `unsynced`."""
        if self._hasher is not None:
            self._hasher.join()
        assert self._partial is not None
        small = self.stored_bytes < SYNC_TOGETHER_BELOW_BYTES
        if not small:
            os.fsync(self._fd)
        if self.stored_bytes >= DROP_CACHE_FROM_BYTES:
            # The target's own files should not be pushed out of memory by our dump.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        final = self._partial.with_name(self._partial.name.removesuffix(PARTIAL_SUFFIX))
        os.rename(self._partial, final)
        if small:
            unsynced.add(self._fd, final.parent)
            self._fd = -1
        else:
            self._close()
            sync_folder(final.parent)
        return final

    def discard(self) -> None:
        """Nothing of it is worth a file."""
        if self._hasher is not None:
            self._hasher.join()
        self._close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sha256(self) -> str:
        """Of the bytes as stored."""
        return self._stored_hash.hexdigest()

    def content_bytes(self) -> int | None:
        """Of the evidence itself; None when a compressed file was cut by the volume."""
        if self.encoding is None:
            return self.stored_bytes
        return self.body_bytes if self._content_known else None

    def content_sha256(self) -> str | None:
        """Of the bytes before compression; None when that is the same."""
        return None if self._content_hash is None else str(self._content_hash.hexdigest())

    def _open(self, final: Path) -> None:
        self._partial = final.with_name(final.name + PARTIAL_SUFFIX)
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _copy(self, chunks: Iterator[bytes]) -> None:
        looked_at = self.stored_bytes
        for chunk in chunks:
            self._write_raw(chunk)
            self.body_bytes += len(chunk)
            if self.stored_bytes - looked_at >= WATCH_BYTES:
                looked_at = self.stored_bytes
                if self._at_floor():
                    return

    def _restart_compressed(self, sample: bytes, chunks: Iterator[bytes]) -> None:
        """The volume is the slow part: begin again, compressed. Independent 8 MiB frames keep random access."""
        zstd = _zstd()
        assert self._partial is not None
        if self._hasher is not None:
            self._hasher.join()
            self._hasher = None
        os.close(self._fd)
        self._partial.unlink()
        self.final = self.final.with_name(self.final.name + ".zst")
        self.encoding = "zstd"
        self.stored_bytes = 0
        self._stored_hash = hashlib.sha256()
        self._content_hash = hashlib.sha256(sample)
        self._open(self.final)
        self._write_raw(zstd.compress(sample, level=1))
        del sample
        packer = zstd.ZstdCompressor(level=1)
        in_frame = 0
        for chunk in chunks:
            self.body_bytes += len(chunk)
            self._content_hash.update(chunk)
            self._write_raw(packer.compress(chunk))
            in_frame += len(chunk)
            if in_frame >= PROBE_BYTES:
                self._write_raw(packer.flush(zstd.ZstdCompressor.FLUSH_FRAME))
                in_frame = 0
                if self._at_floor():
                    return
        if in_frame:
            self._write_raw(packer.flush(zstd.ZstdCompressor.FLUSH_FRAME))

    def _write_raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            # Only what the volume took: on a full one the last write is short, and the next one fails.
            self._hash(view[:count])
            self.stored_bytes += count
            view = view[count:]

    def _hash(self, data: bytes | memoryview) -> None:
        if self._hasher is None and self.stored_bytes >= THREAD_FROM_BYTES:
            self._hasher = _Hasher(self._stored_hash)
        if self._hasher is not None:
            self._hasher.update(data)
        else:
            self._stored_hash.update(data)

    def _at_floor(self) -> bool:
        place = os.fstatvfs(self._fd)
        if place.f_bavail * place.f_frsize >= self._floor_bytes:
            return False
        self.broken = Reason(
            "volume-full",
            f"cut after {self.body_bytes:,} bytes: the volume reached the floor of"
            f" {self._floor_bytes // MIB} MiB that is kept free",
            "Give a larger volume with --evidence.",
        )
        return True


class _Unsynced:
    """
    Small files that have their final names and are not yet known to be on the disk.

    A sync costs a journal commit of the file system, milliseconds on a network volume, and one commit takes all files
    before it along: sixty small files of one collector cost little more than one.
    """

    MOST = 128  # descriptors held open

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._folders: set[Path] = set()

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, fd: int, folder: Path) -> None:
        """Take over the descriptor of a file in `folder`."""
        self._fds.append(fd)
        self._folders.add(folder)

    def sync(self) -> None:
        """All of them are on the disk, under their names. The first error is raised once all were tried."""
        fds, self._fds = self._fds, []
        folders, self._folders = self._folders, set()
        broken: OSError | None = None
        for fd in fds:
            try:
                os.fsync(fd)
            except OSError as error:
                broken = broken or error
            os.close(fd)
        for folder in folders:
            sync_folder(folder)
        if broken is not None:
            raise broken


class _Hasher:
    """sha256 beside the writing: hashing releases the interpreter lock, so both cores work."""

    DEPTH = 4  # chunks in flight; bounds the memory to 4 MiB

    def __init__(self, digest: Any) -> None:
        import threading
        from collections import deque

        self._digest = digest
        self._queue: deque[bytes | memoryview | None] = deque()
        self._filled = threading.Semaphore(0)
        self._room = threading.Semaphore(self.DEPTH)
        self._thread: threading.Thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def update(self, data: bytes | memoryview) -> None:
        """Hash `data` after everything before it; waits while too much is in flight."""
        self._room.acquire()
        self._queue.append(data)
        self._filled.release()

    def join(self) -> None:
        """All that was given is in the digest now; idempotent."""
        if self._thread.is_alive():
            self._queue.append(None)
            self._filled.release()
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._filled.acquire()
            data = self._queue.popleft()
            if data is None:
                return
            self._digest.update(data)
            self._room.release()


def is_being_written(fd: int, within_s: float) -> bool:
    """
    Whether another process has the file of this read-only descriptor open for writing, or mapped so, and for how
    long it stays that way: a writer that goes away `within_s` is none.

    Asked of the kernel by a read lease, which it grants only when there is no writer. Where leases are not known
    (or the file is not ours) the answer is no.
    """
    give_up = time.monotonic() + within_s
    # Should somebody open the file for writing just now, the kernel says so by a signal: not by SIGIO, which kills.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return False
            if time.monotonic() >= give_up:
                return True
            time.sleep(0.005)
            continue
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False


def _pieces(fd: int, size_bytes: int, until: float) -> Iterator[bytes]:
    """The first bytes of a file, as far as the time goes; never more, however fast it grows."""
    while size_bytes > 0 and time.monotonic() < until and (chunk := os.read(fd, min(CHUNK_BYTES, size_bytes))):
        size_bytes -= len(chunk)
        yield chunk


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_tag_file(path: Path, content: bytes) -> None:
    """Write, sync, rename, sync: the file is either the old one or the whole new one."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.unlink(missing_ok=True)
    _write_file(partial, content)
    os.rename(partial, path)
    sync_folder(path.parent)


def _write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _zstd() -> Any:
    """The zstd module of Python 3.14, or its backport; loaded only when something large is written."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # new in 3.14
    except ImportError:
        from backports import zstd  # type: ignore[no-redef, unused-ignore] # below 3.14
    return zstd
