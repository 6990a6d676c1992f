"""
custody.jsonl: who did what to the bundle.

Each line carries the sha256 of the line before it, so that a line cannot be changed, dropped or slipped in without
breaking every later one. A chain alone does not show a cut tail; the seal therefore names the head that it saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from pmforensics import __version__
from pmforensics.bundle.journal import Record, utc_text
from pmforensics.bundle.layout import CUSTODY
from pmforensics.bundle.regular import open_regular
from pmforensics.model.capture import MIB, Json

MAX_CUSTODY_BYTES = 16 * MIB
GENESIS = "0" * 64


def write_custody(folder: Path, event: str, **values: Json) -> str:
    """Append one event and sync it; returns the sha256 of the new line."""
    fd = os.open(folder / CUSTODY, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        content = os.pread(fd, MAX_CUSTODY_BYTES, 0)
        if content and not content.endswith(b"\n"):
            os.write(fd, b"\n")  # a power cut tore the last line: it stays, and what follows gets its own
            content += b"\n"
        lines = content.splitlines(keepends=True)
        record: Record = {
            "event": event,
            "at": utc_text(time.time_ns()),
            "actor": actor(),
            **values,
            "prev": hashlib.sha256(lines[-1]).hexdigest() if lines else GENESIS,
        }
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        digest = hashlib.sha256(line).hexdigest()
        while line:
            line = line[os.write(fd, line) :]
        os.fsync(fd)
        return digest
    finally:
        os.close(fd)


def actor() -> dict[str, Json]:
    """Who is doing this: user, uid, host and tool."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = ""  # a container's uid often has no name
    return {"user": user, "uid": os.getuid(), "host": os.uname().nodename, "tool": f"pmf {__version__}"}


def read_custody(folder: Path) -> tuple[list[Record], list[str], str]:
    """
    The events, the sha256 of each line, and what is wrong with the chain ("" when nothing is).

    A line that a power cut tore has no event; the line after it carries its digest like any other's.
    """
    try:
        fd = open_regular(folder / CUSTODY)
    except OSError:
        return [], [], f"{CUSTODY} is missing, or not a file"
    with os.fdopen(fd, "rb") as file:
        content = file.read(MAX_CUSTODY_BYTES + 1)
    if len(content) > MAX_CUSTODY_BYTES:
        return [], [], f"{CUSTODY} is larger than any that pmf writes"
    records: list[Record] = []
    digests: list[str] = []
    prev = GENESIS
    torn = False
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
            said = record["prev"]
            torn = False
        except (ValueError, KeyError, TypeError, RecursionError):
            torn = True
        if not torn:
            if said != prev:
                return records, digests, f"{CUSTODY} line {number} does not follow the line before it"
            records.append(record)
        prev = hashlib.sha256(line).hexdigest()
        digests.append(prev)
    if torn:
        return records, digests, f"{CUSTODY} ends in a line that cannot be read"
    return records, digests, "" if records else f"{CUSTODY} is empty"
