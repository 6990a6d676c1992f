"""
journal.jsonl: what happened, one JSON object per line.

Written while capturing and synced before the next artifact begins, so that a capture which was killed at any instant
can be finished from it. Everything in the manifest is derived from here, in a normal capture too: there is one way
to make a manifest, not one for good days and one for bad ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pmforensics.bundle.layout import JOURNAL
from pmforensics.bundle.regular import open_regular
from pmforensics.errors import BundleBroken, BundleBusy, NotABundle
from pmforensics.model.capture import MIB, Json

MAX_JOURNAL_BYTES = 256 * MIB
Record = dict[str, Any]


def utc_text(ns: int) -> str:
    """A time in ns since the epoch as RFC 3339 UTC with microseconds."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


class Journal:
    """The journal of one bundle, open for appending and locked against a second writer."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        self._path = folder / JOURNAL
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self.fd = os.open(self._path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        except FileNotFoundError:
            raise NotABundle(f"{folder} has no {JOURNAL}", hint="Give the folder that `pmf capture` printed.") from None
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise BundleBroken(f"{self._path} is not a regular file")
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.fd)
            raise BundleBusy(
                f"another pmf is writing to {folder}", hint="Wait for it to end, then try again."
            ) from None

    def write(self, event: str, *, sync: bool = True, **values: Json) -> None:
        """Append one record; with `sync` it is on the disk before this returns."""
        record = {"event": event, "at": utc_text(time.time_ns()), "mono_ns": time.monotonic_ns(), **values}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        while line:
            line = line[os.write(self.fd, line) :]
        if sync:
            os.fdatasync(self.fd)

    def end_torn_line(self) -> int:
        """After a kill: close a last line that was cut, so that new records start on a line of their own."""
        size = os.fstat(self.fd).st_size
        if size and os.pread(self.fd, 1, size - 1) != b"\n":
            os.write(self.fd, b"\n")
            return 1
        return 0

    def is_in_place(self) -> bool:
        """Whether its name still leads to it: not when the folder was removed or its volume unmounted."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        here = os.fstat(self.fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def close(self) -> None:
        """Sync, unlock, close; idempotent."""
        if self.fd >= 0:
            try:
                os.fsync(self.fd)
            finally:
                os.close(self.fd)
                self.fd = -1


def read_journal(folder: Path, *, without: frozenset[str] = frozenset()) -> tuple[list[Record], int]:
    """
    All whole records but those of the events in `without`, and the number of lines that could not be read.

    A kill can tear the last line; anything else unreadable means that somebody wrote into the file.
    Errors: NotABundle, BundleBroken (too large, no record at all).
    """
    path = folder / JOURNAL
    try:
        fd = open_regular(path)
    except OSError:
        raise NotABundle(f"{folder} has no {JOURNAL}", hint="Give the folder that `pmf capture` printed.") from None
    with os.fdopen(fd, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_JOURNAL_BYTES:
            raise BundleBroken(f"{path} is larger than any journal that pmf writes")
        records: list[Record] = []
        unread = 0
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                unread += 1
                continue
            if not isinstance(record, dict) or not isinstance(record.get("event"), str):
                unread += 1
            elif record["event"] not in without:
                records.append(record)
    if not records:
        raise BundleBroken(f"{path} holds no readable record")
    return records, unread
