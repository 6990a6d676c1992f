"""The custody log: what can be changed in it without being noticed, and what cannot."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
from pathlib import Path

import pytest

from pmforensics.bundle.custody import GENESIS, read_custody, write_custody


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder whose log has five events."""
    for number in range(5):
        write_custody(tmp_path, f"event-{number}", number=number)
    return tmp_path


def lines_of(folder: Path) -> list[bytes]:
    """The lines with their ends."""
    return (folder / "custody.jsonl").read_bytes().splitlines(keepends=True)


def put(folder: Path, lines: list[bytes]) -> str:
    """Writes the log anew; what reading it finds wrong."""
    (folder / "custody.jsonl").write_bytes(b"".join(lines))
    return read_custody(folder)[2]


def test_untouched_log_has_nothing_wrong_and_each_line_names_the_one_before(log: Path) -> None:
    records, digests, wrong = read_custody(log)
    assert wrong == ""
    assert [record["event"] for record in records] == [f"event-{number}" for number in range(5)]
    before = GENESIS
    for line, digest in zip(lines_of(log), digests, strict=True):
        assert json.loads(line)["prev"] == before
        before = hashlib.sha256(line).hexdigest()
        assert digest == before


def test_write_returns_the_digest_of_its_line(tmp_path: Path) -> None:
    digest = write_custody(tmp_path, "opened")
    assert digest == hashlib.sha256((tmp_path / "custody.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize("number", range(4))
def test_edited_line_breaks_the_chain(log: Path, number: int) -> None:
    lines = lines_of(log)
    lines[number] = lines[number].replace(b"event-", b"EVENT-")
    assert f"line {number + 2}" in put(log, lines)


@pytest.mark.parametrize("number", range(4))
def test_dropped_line_breaks_the_chain(log: Path, number: int) -> None:
    lines = lines_of(log)
    del lines[number]
    assert f"line {number + 1}" in put(log, lines)


def test_swapped_and_repeated_lines_break_the_chain(log: Path) -> None:
    one, two, three, *rest = lines_of(log)
    assert put(log, [one, three, two, *rest])
    assert put(log, [one, two, two, three, *rest])


def test_cut_tail_is_not_seen_by_the_chain_alone(log: Path) -> None:
    # The seal names the head that it saw, and is itself recorded: check_integrity finds what this cannot.
    assert put(log, lines_of(log)[:3]) == ""


def test_torn_line_stays_and_the_next_one_chains_over_it(log: Path) -> None:
    lines = lines_of(log)
    assert "cannot be read" in put(log, [*lines[:4], lines[4][:20]])
    write_custody(log, "recovering")
    records, digests, wrong = read_custody(log)
    assert wrong == ""
    assert [record["event"] for record in records][-2:] == ["event-3", "recovering"]
    assert len(digests) == 6


def test_torn_line_cannot_be_slipped_in_or_edited(log: Path) -> None:
    lines = lines_of(log)
    assert put(log, [*lines[:2], b"garbage\n", *lines[2:]])
    assert put(log, [*lines[:2], b"garbage\n", *lines[3:]])


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"7\n", b"{}\n", b'{"prev": 1}\n', b"[" * 100_000, b"\xff\n"])
def test_log_that_pmf_never_wrote_is_wrong_and_no_crash(tmp_path: Path, content: bytes) -> None:
    assert put(tmp_path, [content])


def test_missing_huge_and_irregular_logs_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "custody.jsonl"
    assert "missing" in read_custody(tmp_path)[2]
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "larger" in read_custody(tmp_path)[2]
    path.unlink()
    os.mkfifo(path)
    assert "not a file" in read_custody(tmp_path)[2]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "missing" in read_custody(tmp_path)[2]


def test_actor_is_who_runs_not_who_the_environment_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody\udcff")
    write_custody(tmp_path, "opened")
    actor = read_custody(tmp_path)[0][0]["actor"]
    assert actor["user"] == pwd.getpwuid(os.getuid()).pw_name
    assert actor["uid"] == os.getuid()
