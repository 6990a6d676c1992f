"""The window as journald kept it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from pmforensics.collect.base import Host, facts_of
from pmforensics.collect.gaps import gap_of
from pmforensics.errors import CollectError, DeadlinePassed
from pmforensics.model.capture import Artifact, Gap, Outcome, Reason, Settlement
from pmforensics.model.process import Target

TIMEOUT_S = 8.0
FOLDERS = ("/run/log/journal", "/var/log/journal")

# An allow-list: _CMDLINE may hold secrets, and so may fields that only the application knows the meaning of.
FIELDS = (
    "MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "LOGGER", "THREAD_NAME",
    "TID", "SYSLOG_FACILITY", "SYSLOG_IDENTIFIER", "SYSLOG_PID", "SYSLOG_TIMESTAMP", "_TRANSPORT", "_STREAM_ID",
    "_LINE_BREAK", "_PID", "_UID", "_GID", "_COMM", "_EXE", "_HOSTNAME", "_MACHINE_ID", "_SYSTEMD_UNIT",
    "_SYSTEMD_USER_UNIT", "_SYSTEMD_INVOCATION_ID", "_SOURCE_REALTIME_TIMESTAMP", "UNIT", "USER_UNIT",
    "INVOCATION_ID", "JOB_ID", "JOB_TYPE", "JOB_RESULT", "EXIT_CODE", "EXIT_STATUS", "COREDUMP_UNIT", "COREDUMP_PID",
    "COREDUMP_SIGNAL", "COREDUMP_SIGNAL_NAME", "COREDUMP_FILENAME", "CONTAINER_ID_FULL", "CONTAINER_NAME",
)  # fmt: skip

_REALTIME = re.compile(rb"(?:^|\n)__REALTIME_TIMESTAMP=(\d{1,17})\n")


def journal_slice(
    target: Target,
    host: Host,
    *,
    since: datetime,
    limit_bytes: int,
    folder: Path | None,
    question: str,
    took: Callable[[int], None],
) -> Iterator[Artifact | Gap]:
    """
    The entries of the target's unit, or of the process when it belongs to none, in the journal export format.

    One artifact, journal.export; nothing when there is no journal, or none of its entries could be expected.
    `folder` is read instead of the machine's own journal. `took` is told of every byte. Fields are FIELDS and
    those that journald adds to every entry.
    """
    if folder is None and not any(map(os.path.isdir, FOLDERS)):
        return
    wanted = f"the journal of {target.unit or f'process {target.pid}'}"
    tool = host.find_tool("journalctl")
    if tool is None:
        if target.unit is not None:
            reason = Reason("tool-missing", "journalctl is not installed where pmf runs")
            yield Gap(wanted, Outcome.MISSING, reason, question)
        return
    matches = _matches(target)
    chunks = host.stream(
        [
            *(tool, "--no-pager", "--quiet", "--output=export", f"--output-fields={','.join(FIELDS)}"),
            f"--since=@{int(since.timestamp())}",
            *((f"--directory={folder}",) if folder is not None else ()),
            *matches,
        ],
        timeout_s=TIMEOUT_S,
    )
    try:
        first = next(chunks, b"")
    except DeadlinePassed:
        raise
    except CollectError as error:
        yield gap_of(error, wanted, question)
        return
    if not first and target.unit is None:
        return
    entries = _Entries(since, limit_bytes, took)
    yield Artifact(
        "journal.export",
        entries.watched(chain((first,) if first else (), chunks)),
        f"journalctl {' '.join(matches)}",
        "application/vnd.fdo.journal",
        settle=entries.settle,
    )


def _matches(target: Target) -> tuple[str, ...]:
    """What journalctl --unit and --user-unit would match together; "+" means or."""
    unit = target.unit
    if unit is None:
        return (f"_PID={target.pid}",)
    return (
        *(f"_SYSTEMD_UNIT={unit}", "+", f"UNIT={unit}", "_PID=1", "+", f"COREDUMP_UNIT={unit}", "_UID=0"),
        *("+", f"_SYSTEMD_USER_UNIT={unit}", "+", f"USER_UNIT={unit}", "_COMM=systemd"),
    )


class _Entries:
    """Watches entries go by, and stops at a limit."""

    def __init__(self, since: datetime, limit_bytes: int, took: Callable[[int], None]) -> None:
        self._since = since
        self._limit_bytes = limit_bytes
        self._took = took
        self._count = 0
        self._first_us: int | None = None
        self._last_us: int | None = None
        self._cut = False

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        left_bytes = self._limit_bytes
        carry = b""
        for chunk in chunks:
            self._cut = len(chunk) > left_bytes
            kept = chunk[:left_bytes]
            left_bytes -= len(kept)
            text = carry + kept
            end = 0
            for match in _REALTIME.finditer(text):
                self._count += 1
                self._last_us = int(match[1])
                self._first_us = self._last_us if self._first_us is None else self._first_us
                end = match.end() - 1
            carry = text[max(end, len(text) - 64) :]
            if kept:
                self._took(len(kept))
                yield kept
            if self._cut:
                return

    def settle(self) -> Settlement:
        facts = facts_of(
            since_at=_iso(self._since),
            entries=self._count,
            fields=list(FIELDS),
            first_at=_of_epoch(self._first_us),
            last_at=_of_epoch(self._last_us),
        )
        if self._cut:
            reason = Reason(
                "over-limit",
                f"the window holds more than {self._limit_bytes:,} bytes; the newest entries are missing",
                "Shorten --since.",
            )
            return Settlement(Outcome.PARTIAL, reason, facts)
        return Settlement(Outcome.COLLECTED if self._count else Outcome.EMPTY, None, facts)


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _of_epoch(epoch_us: int | None) -> str | None:
    return None if epoch_us is None else _iso(datetime.fromtimestamp(epoch_us / 10**6, UTC))
