"""The journal: whole lines, on the disk before the next artifact begins, readable after anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pmforensics.bundle.journal import Journal, read_journal, utc_text
from pmforensics.errors import BundleBroken, BundleBusy, NotABundle
from tests import captures


@pytest.mark.needs("strace")
def test_line_is_written_and_synced_before_write_returns(tmp_path: Path) -> None:
    # strace is the witness: one write, then one fdatasync, for each record that asks for it.
    code = f"""
from pathlib import Path
from pmforensics.bundle.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), create=True)
journal.write("synced-one")
journal.write("quick-one", sync=False)
"""
    trace = tmp_path / "trace"
    ran = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=write,fdatasync", captures.sys.executable, "-c", code], check=False
    )
    assert ran.returncode == 0
    calls = re.findall(r"(write|fdatasync)\((\d+)(.*)", trace.read_text())
    fd = next(number for name, number, rest in calls if "synced-one" in rest)
    assert [name for name, number, _ in calls if number == fd] == ["write", "fdatasync", "write"]


def test_torn_last_line_is_counted_and_the_next_record_stands_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    journal.write("one")
    os.write(journal.fd, b'{"event": "tw')
    assert journal.end_torn_line() == 1
    assert journal.end_torn_line() == 0
    journal.write("three")
    records, unread = read_journal(tmp_path)
    assert ([record["event"] for record in records], unread) == (["one", "three"], 1)


def test_bytes_that_are_no_utf8_survive_as_json_escapes(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    path = os.fsdecode(b"/srv/\xff\n")
    journal.write("fact", name="exe", value=path)
    assert read_journal(tmp_path)[0][0]["value"] == path
    assert b"\n" not in (tmp_path / "journal.jsonl").read_bytes()[:-1]
    (tmp_path / "journal.jsonl").read_text(encoding="utf-8")


def test_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    first = Journal(tmp_path, create=True)
    with pytest.raises(BundleBusy):
        Journal(tmp_path, create=False)
    first.close()
    first.close()
    Journal(tmp_path, create=False).close()


def test_journal_knows_when_its_name_leads_elsewhere(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    assert journal.is_in_place()
    (tmp_path / "journal.jsonl").rename(tmp_path / "moved")
    assert not journal.is_in_place()
    (tmp_path / "journal.jsonl").write_text("another")
    assert not journal.is_in_place()


def test_every_record_has_both_clocks(tmp_path: Path) -> None:
    before = time.monotonic_ns()
    Journal(tmp_path, create=True).write("one")
    (record,) = read_journal(tmp_path)[0]
    assert before <= record["mono_ns"] <= time.monotonic_ns()
    age = datetime.now(UTC) - datetime.fromisoformat(record["at"])
    assert 0 <= age.total_seconds() < 600


def test_utc_text_is_rfc3339_with_microseconds() -> None:
    assert utc_text(1_795_180_500_123_456_789) == "2026-11-20T13:15:00.123456Z"
    assert utc_text(0) == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "socket"])
def test_journal_that_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    import socket

    path = tmp_path / "journal.jsonl"
    listener = socket.socket(socket.AF_UNIX)
    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("/etc/passwd"),
        "socket": lambda: listener.bind(os.path.relpath(path)),
    }[kind]()
    listener.close()
    with pytest.raises((BundleBroken, NotABundle)):
        read_journal(tmp_path)


def test_empty_journal_is_broken_not_fine(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(BundleBroken, match="no readable record"):
        read_journal(tmp_path)


def test_journal_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "journal.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take hours
    with pytest.raises(BundleBroken, match="larger"):
        read_journal(tmp_path)


def test_lines_that_pmf_never_writes_are_counted_not_raised(tmp_path: Path) -> None:
    lines = ["[1]", "7", "null", '{"event": 1}', "{}", "[" * 100_000, "1" * 10_000, "\0\0\0", '{"event": "ok"}']
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    records, unread = read_journal(tmp_path)
    assert [record["event"] for record in records] == ["ok"]
    assert unread == len(lines) - 1
    assert json.dumps(records)
