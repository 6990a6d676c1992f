"""Stamps of lines, and the start of a window in a file: against linear scans that know every line's time."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmforensics.formats import log_lines
from pmforensics.formats.log_lines import (
    Form,
    FoundBy,
    find_first_at_or_after,
    find_first_stamped,
    find_last_stamped,
    find_timestamp,
)

NOW = datetime(2026, 11, 20, 14, 0, tzinfo=UTC)
AT = datetime(2026, 11, 20, 13, 15, 0, tzinfo=UTC)
EAST = timezone(timedelta(hours=1))  # not UTC, so that a stamp whose zone is overlooked is an hour off
BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)


# -- stamps ------------------------------------------------------------------------------------------------------

ZONED = {
    "iso-z": (b"2026-11-20T13:15:00Z hello", Form.ISO, AT),
    "iso-blank": (b"2026-11-20 13:15:00Z hello", Form.ISO, AT),
    "iso-colon-offset": (b"2026-11-20T14:15:00+01:00 hello", Form.ISO, AT),
    "iso-short-offset": (b"2026-11-20T05:15:00-0800 hello", Form.ISO, AT),
    "iso-hour-offset": (b"2026-11-20 13:15:00+00 hello", Form.ISO, AT),
    "iso-half-hour-offset": (b"2026-11-20T18:45:00+05:30 hello", Form.ISO, AT),
    "iso-millis": (b"2026-11-20T13:15:00.123Z x", Form.ISO, AT + timedelta(milliseconds=123)),
    "iso-comma": (b"2026-11-20T13:15:00,123Z x", Form.ISO, AT + timedelta(milliseconds=123)),
    "iso-nanos": (b"2026-11-20T13:15:00.123456789Z x", Form.ISO, AT + timedelta(microseconds=123456)),
    "iso-twelve-digits": (b"2026-11-20T13:15:00.123456789012Z x", Form.ISO, AT + timedelta(microseconds=123456)),
    "postgres": (b"2026-11-20 13:15:00.123 UTC [7] LOG:  x", Form.ISO, AT + timedelta(milliseconds=123)),
    "gunicorn": (b"[2026-11-20 13:15:00 +0000] [1] [INFO] Booting", Form.ISO, AT),
    "jvm-gc": (b"[2026-11-20T13:15:00.000+0000][info][gc] Pause", Form.ISO, AT),
    "level-first": (b"WARN  2026-11-20T13:15:00Z x", Form.ISO, AT),
    "bracketed-level-first": (b"[ERROR] [main] 2026-11-20T13:15:00Z x", Form.ISO, AT),
    "cri": (b'2026-11-20T13:15:00.000000001Z stdout F {"time":"1999-01-01T00:00:00Z"}', Form.ISO, AT),
    "rfc5424": (b"<34>1 2026-11-20T13:15:00.000Z host app 7 - - x", Form.ISO, AT),
    "compose": (b"web_1  | 2026-11-20T13:15:00Z x", Form.ISO, AT),
    "colour": (b"\x1b[32m2026-11-20T13:15:00Z\x1b[0m x", Form.ISO, AT),
    "byte-order-mark": (b"\xef\xbb\xbf2026-11-20T13:15:00Z x", Form.ISO, AT),
    "leap-second": (b"2016-12-31T23:59:60Z x", Form.ISO, datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "json-time": (b'{"level":"info","time":"2026-11-20T13:15:00Z","msg":"x"}', Form.JSON, AT),
    "json-spaced": (b'{ "timestamp" : "2026-11-20 13:15:00.000+00:00", "m": 1 }', Form.JSON, AT),
    "json-at": (b'{"@timestamp":"2026-11-20T13:15:00.000Z","message":"x"}', Form.JSON, AT),
    "json-capital": (b'{"Timestamp":"2026-11-20T13:15:00Z"}', Form.JSON, AT),
    "json-seconds": (b'{"level":"info","ts":1795180500,"msg":"x"}', Form.JSON, AT),
    "json-seconds-float": (b'{"ts":1795180500.25,"msg":"x"}', Form.JSON, AT + timedelta(milliseconds=250)),
    "json-seconds-exponent": (b'{"ts":1.7951805e+09,"msg":"x"}', Form.JSON, AT),
    "json-millis": (b'{"time":1795180500000,"msg":"x"}', Form.JSON, AT),
    "json-micros": (b'{"ts":1795180500000000}', Form.JSON, AT),
    "json-nanos": (b'{"ts":"1795180500000000000","msg":"x"}', Form.JSON, AT),
    "json-mongodb": (b'{"t":{"$date":"2026-11-20T14:15:00.000+01:00"},"s":"I"}', Form.JSON, AT),
    "json-inner-object": (b'{"user":{"time":"1980-01-01T00:00:00Z"},"time":"2026-11-20T13:15:00Z"}', Form.JSON, AT),
    "json-quoted-json": (b'{"msg":"{\\"time\\":\\"1980-01-01T00:00:00Z\\"}","ts":1795180500}', Form.JSON, AT),
    "json-best-key": (b'{"date":"2020-01-01T00:00:00Z","time":"2026-11-20T13:15:00Z"}', Form.JSON, AT),
    "docker": (b'{"log":"x\\n","stream":"stdout","time":"2026-11-20T13:15:00.000000009Z"}', Form.JSON, AT),
    "docker-long": (
        b'{"log":"' + b'\\"time\\":\\"1980-01-01T00:00:00Z\\"' * 500 + b'","time":"2026-11-20T13:15:00Z"}',
        Form.JSON,
        AT,
    ),
    "logfmt-time": (b'time="2026-11-20T13:15:00Z" level=info msg=x', Form.LOGFMT, AT),
    "logfmt-ts": (b"level=info ts=2026-11-20T13:15:00.000Z msg=x", Form.LOGFMT, AT),
    "logfmt-epoch": (b"level=info ts=1795180500.5 msg=x", Form.LOGFMT, AT + timedelta(milliseconds=500)),
    "clf": (b'10.0.0.1 - bob [20/Nov/2026:13:15:00 +0000] "GET / HTTP/1.1" 200 2', Form.CLF, AT),
    "clf-offset": (b'::1 - - [20/Nov/2026:05:15:00 -0800] "GET / HTTP/1.1" 200 2', Form.CLF, AT),
    "epoch": (b"1795180500 x", Form.EPOCH, AT),
    "squid": (b"1795180500.250     31 10.0.0.1 TCP_MISS/200", Form.EPOCH, AT + timedelta(milliseconds=250)),
    "epoch-millis": (b"1795180500000 x", Form.EPOCH, AT),
    "date-command": (b"Fri Nov 20 13:15:00 UTC 2026 x", Form.CTIME, AT),
    "rfc1123": (b"Fri, 20 Nov 2026 13:15:00 GMT x", Form.DAY_FIRST, AT),
}  # fmt: skip

WALL = datetime(2026, 11, 20, 12, 15, tzinfo=UTC)  # 13:15 in EAST
ZONELESS = {
    "iso": (b"2026-11-20 13:15:00 x", Form.ISO, WALL),
    "python": (b"2026-11-20 13:15:00,123 - root - INFO - x", Form.ISO, WALL + timedelta(milliseconds=123)),
    "log4j-minus": (b"2026-11-20 13:15:00.000 -12 things", Form.ISO, WALL),
    "go": (b"2026/11/20 13:15:00 x", Form.ISO, WALL),
    "go-micros": (b"2026/11/20 13:15:00.123456 main.go:7: x", Form.ISO, WALL + timedelta(microseconds=123456)),
    "nginx-error": (b"2026/11/20 13:15:00 [error] 7#7: x", Form.ISO, WALL),
    "ruby": (b"I, [2026-11-20T13:15:00.000000 #7]  INFO -- : x", Form.ISO, WALL),
    "abbreviated-zone": (b"2026-11-20 13:15:00.000 CET [7] LOG:  x", Form.ISO, WALL),
    "impossible-offset": (b"2026-11-20T13:15:00+99:00 x", Form.ISO, WALL),
    "syslog": (b"Nov 20 13:15:00 host app[7]: x", Form.SYSLOG, WALL),
    "syslog-priority": (b"<34>Nov 20 13:15:00 host app: x", Form.SYSLOG, WALL),
    "syslog-one-digit": (b"Nov  2 13:15:00 host app: x", Form.SYSLOG, WALL - timedelta(days=18)),
    "syslog-host-is-no-year": (b"Nov 20 13:15:00 2001:db8::1 app: x", Form.SYSLOG, WALL),
    "ctime": (b"Fri Nov 20 13:15:00 2026 x", Form.CTIME, WALL),
    "apache-error": (b"[Fri Nov 20 13:15:00.000000 2026] [core:error] x", Form.CTIME, WALL),
    "klog": (b"I1120 13:15:00.123456       7 main.go:9] x", Form.KLOG, WALL + timedelta(microseconds=123456)),
    "glog": (b"E20261120 13:15:00.000000 7 main.cc:9] x", Form.KLOG, WALL),
    "jul-afternoon": (b"Nov 20, 2026 1:15:00 PM org.Foo bar", Form.JUL, WALL),
    "jul-midnight": (b"Nov 20, 2026 12:15:00 AM org.Foo bar", Form.JUL, WALL - timedelta(hours=13)),
    "jul-noon": (b"Nov 20, 2026 12:15:00 PM org.Foo bar", Form.JUL, WALL - timedelta(hours=1)),
    "jul-narrow-blank": ("Nov 20, 2026, 1:15:00\u202fPM org.Foo bar".encode(), Form.JUL, WALL),
    "tomcat": (b"20-Nov-2026 13:15:00.000 INFO [main] x", Form.DAY_FIRST, WALL),
    "redis": (b"1:M 20 Nov 2026 13:15:00.000 * Ready", Form.DAY_FIRST, WALL),
    "json-zoneless": (b'{"asctime":"2026-11-20 13:15:00,000","message":"x"}', Form.JSON, WALL),
}  # fmt: skip

NOTHING = {
    "empty": b"",
    "text": b"hello",
    "java-frame": b"\tat com.acme.Pool.take(Pool.java:42)",
    "python-frame": b'  File "/srv/app.py", line 7, in take',
    "indented-date": b"    2026-11-20 13:15:00 is when the lease began",
    "date-in-message": b"Caused by: lease of 2026-11-20 13:15:00 expired",
    "date-only": b"2026-11-20 was a Friday",
    "no-seconds": b"2026-11-20 13:15 x",
    "no-such-day": b"2026-02-30 13:15:00 x",
    "no-such-hour": b"2026-11-20 25:15:00 x",
    "second-61": b"2026-11-20 13:15:61 x",
    "afternoon-13": b"Nov 20, 2026 13:15:00 PM org.Foo bar",
    "ip-address": b"10.0.0.1 x",
    "short-number": b"17951805 x",
    "number-of-2009": b"1234567890 items",
    "number-is-a-word": b"1795180500abc x",
    "json-no-time": b'{"level":"info","msg":"2026-11-20T13:15:00Z"}',
    "json-time-is-object": b'{"time":{"hours":3}}',
    "json-cut-string": b'{"msg":"' + b"x" * 9000,
    "json-date-only": b'{"date":"2026-11-20"}',
    "logfmt-no-time": b"level=info uptime=3",
    "logfmt-longer-key": b"level=info lasttime=2026-11-20T13:15:00Z",
    "jvm-uptime": b"[0.123s][info][gc] Pause",
    "dmesg": b"[12345.678901] usb 1-1: x",
}


@pytest.mark.parametrize("name", ZONED)
def test_stamp_with_a_zone_is_read_as_that_instant(name: str) -> None:
    line, form, at = ZONED[name]
    stamp = find_timestamp(line, now=NOW, zone=EAST)
    assert stamp is not None
    assert (stamp.at, stamp.form, stamp.zone_known) == (at, form, True)
    assert stamp.raw.encode() in line


@pytest.mark.parametrize("name", ZONELESS)
def test_stamp_without_a_zone_is_read_in_the_given_one(name: str) -> None:
    line, form, at = ZONELESS[name]
    stamp = find_timestamp(line, now=NOW, zone=EAST)
    assert stamp is not None
    assert (stamp.at, stamp.form, stamp.zone_known) == (at, form, False)
    assert stamp.raw.encode() in line


@pytest.mark.parametrize("name", NOTHING)
def test_line_without_a_stamp_has_none(name: str) -> None:
    assert find_timestamp(NOTHING[name], now=NOW, zone=UTC) is None


@pytest.mark.parametrize(
    ("now", "line", "year"),
    [
        ("2027-01-01T00:10", b"Dec 31 23:59:59 host x", 2026),
        ("2026-12-31T23:50", b"Dec 31 23:49:00 host x", 2026),
        ("2026-12-31T23:50", b"Jan  1 00:20:00 host x", 2027),  # a zone to the east is ahead of us
        ("2026-11-20T14:00", b"Jan 20 13:15:00 host x", 2026),
        ("2026-11-20T14:00", b"Nov 22 13:15:00 host x", 2025),
        ("2027-03-01T00:00", b"Feb 29 00:00:00 host x", 2024),
        ("2027-01-01T00:10", b"I1231 23:59:59.123 7 main.go:1] x", 2026),
    ],
)
def test_year_that_is_not_said_is_the_last_one_that_can_be(now: str, line: bytes, year: int) -> None:
    stamp = find_timestamp(line, now=datetime.fromisoformat(now + "+00:00"), zone=UTC)
    assert stamp is not None
    assert stamp.at.year == year


def test_local_time_that_occurs_twice_is_read_as_the_earlier() -> None:
    stamp = find_timestamp(b"2026-10-25 02:30:00 x", now=NOW, zone=BERLIN)
    assert stamp is not None
    assert stamp.at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


def test_stamp_of_the_date_command_agrees_with_its_epoch() -> None:
    """GNU date is the judge, over zones and the seasons of 2026."""
    for month in range(1, 11):
        for zone in ("UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Chatham"):
            said = subprocess.run(
                ["date", f"--date=2026-{month:02d}-17 07:08:09 UTC", "+%s|%Y-%m-%d %H:%M:%S|%b %e %H:%M:%S|%FT%T%z"],
                env={**os.environ, "TZ": zone, "LC_ALL": "C"},
                capture_output=True,
                check=True,
            )
            epoch, iso, syslog, zoned = said.stdout.strip().split(b"|")
            for text in (iso, syslog, zoned):
                stamp = find_timestamp(text + b" x", now=NOW, zone=ZoneInfo(zone))
                assert stamp is not None
                assert stamp.at.timestamp() == int(epoch)


@given(st.binary(max_size=600))
@example(b'{"' * 3000)
@example(b'{"a":' + b'"\\"' * 2000)
@example(b"2026-11-20T13:15:00" + b"9" * 5000)
@example(b"0001-01-01 00:00:00 x")
@example(b'{"ts":1e99}')
@example(b'{"ts":9999999999999999999}')
@example("Nov 20 ٣:15:00".encode())
def test_no_line_breaks_the_reader(line: bytes) -> None:
    find_timestamp(line, now=NOW, zone=BERLIN)


@given(
    at=st.datetimes(datetime(1990, 1, 1), datetime(2026, 11, 20)),
    spelling=st.sampled_from(["%Y-%m-%dT%H:%M:%S.%fZ", "%Y/%m/%d %H:%M:%S.%f +0000", "[%d/%b/%Y:%H:%M:%S +0000]"]),
)
def test_what_strftime_writes_is_read_back(at: datetime, spelling: str) -> None:
    written = at.strftime(spelling).encode()
    stamp = find_timestamp(written + b" rest", now=NOW, zone=EAST)
    assert stamp is not None
    expected = at.replace(tzinfo=UTC)
    assert stamp.at == (expected if b"." in written else expected.replace(microsecond=0))


# -- windows -----------------------------------------------------------------------------------------------------


@dataclass
class File:
    """Bytes as a file would give them, and how often they were asked for."""

    data: bytes
    reads: int = 0
    read_bytes: int = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        self.reads += 1
        got = self.data[offset : offset + length]
        self.read_bytes += len(got)
        return got


@contextmanager
def small_windows() -> Iterator[None]:
    """Every limit of the search a thousand times smaller, so that small files take the long ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lines, "PROBE_BYTES", 48)
        patch.setattr(log_lines, "LINE_BYTES", 96)
        patch.setattr(log_lines, "LOOK_AHEAD_BYTES", 256)
        patch.setattr(log_lines, "STEP_BACK_BYTES", 128)
        yield


def stamped(at: datetime, text: bytes = b"something happened") -> bytes:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode() + text + b"\n"


def linear_start(lines: list[tuple[datetime | None, bytes]], since: datetime) -> int:
    """From the first line at or after `since`; the head of the file belongs to its first stamped line."""
    offset = 0
    earlier = False
    for at, line in lines:
        if at is not None:
            if at >= since:
                return offset if earlier else 0
            earlier = True
        offset += len(line)
    return offset


CONTINUED = st.one_of(
    st.binary(max_size=60).map(lambda junk: b"\tat " + junk.replace(b"\n", b" ").replace(b"\0", b" ")),
    st.integers(0, 3000).map(lambda length: b" " + b"x" * length),
    st.just(b""),
)


@st.composite
def sorted_logs(draw: st.DrawFn) -> tuple[list[tuple[datetime | None, bytes]], datetime]:
    lines: list[tuple[datetime | None, bytes]] = []
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    lines += [(None, line + b"\n") for line in draw(st.lists(CONTINUED, max_size=3))]
    for gap_s in draw(st.lists(st.sampled_from([0, 0, 0.001, 1, 7, 600]), max_size=40)):
        at += timedelta(seconds=gap_s)
        lines.append((at, stamped(at, b"y" * draw(st.sampled_from([0, 5, 80, 700])))))
        lines += [(None, line + b"\n") for line in draw(st.lists(CONTINUED, max_size=2))]
    if lines and draw(st.booleans()):
        last_at, last = lines[-1]
        lines[-1] = (last_at, last.removesuffix(b"\n"))
    times = [time for time, _ in lines if time is not None]
    since = draw(st.sampled_from(times) if times else st.just(at)) + timedelta(
        seconds=draw(st.sampled_from([-1, 0, 0, 0.0005, 1]))
    )
    return lines, since


@given(sorted_logs(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_window_of_a_sorted_file_is_what_a_linear_scan_finds(
    case: tuple[list[tuple[datetime | None, bytes]], datetime], small: bool
) -> None:
    lines, since = case
    data = b"".join(line for _, line in lines)
    file = File(data)
    if small:
        with small_windows():
            search = find_first_at_or_after(file, len(data), since, now=NOW, zone=UTC)
    else:
        search = find_first_at_or_after(file, len(data), since, now=NOW, zone=UTC)
    assert search.start == linear_start(lines, since)
    assert (search.reads, search.read_bytes) == (file.reads, file.read_bytes)
    earlier = [at for at, _ in lines if at is not None and at < since]
    assert (search.previous.stamp.at if search.previous else None) == (earlier[-1] if earlier else None)
    if not any(at for at, _ in lines):
        assert search.found_by is FoundBy.NO_STAMPS
    elif not earlier:
        assert search.found_by is FoundBy.WHOLE
    else:
        assert search.found_by is FoundBy.BISECTION


@given(
    st.lists(st.floats(0, 3), min_size=2, max_size=60),
    st.randoms(use_true_random=False),
    st.integers(0, 200),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_lines_a_little_out_of_order_are_not_lost(
    gaps_s: list[float], shuffle: random.Random, since_after_s: int, small: bool
) -> None:
    """Each line is written up to 2 s after its stamp, as threads do that wait for the lock of the log."""
    start = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    times = [start + timedelta(seconds=sum(gaps_s[:n])) for n in range(len(gaps_s))]
    written = sorted(times, key=lambda at: at + timedelta(seconds=shuffle.random() * 2))
    lines: list[tuple[datetime | None, bytes]] = [(at, stamped(at)) for at in written]
    since = start + timedelta(seconds=since_after_s)
    data = b"".join(line for _, line in lines)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(log_lines, "PROBE_BYTES", 48)
            patch.setattr(log_lines, "LINE_BYTES", 96)
            patch.setattr(log_lines, "STEP_BACK_BYTES", 512)
        search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert search.start == linear_start(lines, since)


def test_step_back_is_told() -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    since = at + timedelta(seconds=100)
    lines = [stamped(at + timedelta(milliseconds=10 * n), b"z" * 100) for n in range(20_000)]
    early = stamped(since + timedelta(seconds=1), b"from a thread that was quick")
    lines.insert(9_850, early)
    data = b"".join(lines)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert data[search.start :].startswith(early)
    assert search.stepped_back_bytes == len(early) + 150 * len(lines[0])


def test_old_date_quoted_at_the_start_of_a_line_does_not_move_the_window() -> None:
    """A table printed into the log, one row after every line of it."""
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    since = at + timedelta(seconds=400)
    parts = []
    for n in range(3000):
        parts.append(stamped(at + timedelta(seconds=n)))
        if n % 2:
            parts.append(b"2019-01-01 00:00:00 | lease | 7\n")
    data = b"".join(parts)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert search.start == data.index(stamped(since))


def test_date_of_the_future_is_no_stamp() -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    since = at + timedelta(seconds=2500)
    parts = []
    for n in range(3000):
        parts += [stamped(at + timedelta(seconds=n)), b"2031-01-01 00:00:00 certificate expires\n"]
    data = b"".join(parts)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert search.start == data.index(stamped(since))


@pytest.mark.parametrize("dump_bytes", [1 << 20, 3 << 20])
@pytest.mark.parametrize("minute", [2, 3, 20, 21, 22, 39, 40])
def test_long_dump_without_stamps_belongs_to_the_line_before(dump_bytes: int, minute: int) -> None:
    """A stack dump of many MiB in the middle of a log that is otherwise a few KiB."""
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    frame = b"\tat com.acme.Pool.take(Pool.java:42)\n"
    lines: list[tuple[datetime | None, bytes]] = []
    for n in range(60):
        lines.append((at + timedelta(minutes=n), stamped(at + timedelta(minutes=n))))
        if n in (2, 20, 21):
            lines.append((None, frame * (dump_bytes // len(frame))))
    data = b"".join(line for _, line in lines)
    since = at + timedelta(minutes=minute)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert search.start == linear_start(lines, since)


@pytest.mark.parametrize("minute", [2, 3, 20, 21, 22, 39, 40])
def test_region_too_long_to_be_read_is_in_the_window(minute: int) -> None:
    """Two dumps of 30 MiB, and eighteen lines between them that no stride can be expected to meet."""
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    dump = b"\tat com.acme.Pool.take(Pool.java:42)\n" * 850_000
    lines: list[tuple[datetime | None, bytes]] = []
    for n in range(60):
        lines.append((at + timedelta(minutes=n), stamped(at + timedelta(minutes=n))))
        if n in (2, 20):
            lines.append((None, dump))
    data = b"".join(line for _, line in lines)
    file = File(data)
    since = at + timedelta(minutes=minute)
    search = find_first_at_or_after(file, len(data), since, now=NOW, zone=UTC)
    right = linear_start(lines, since)
    assert search.start <= right
    assert right - search.start <= search.unknown_bytes
    assert data[search.start - 1 : search.start] in (b"\n", b"")
    assert file.read_bytes < len(data)


@pytest.mark.parametrize("minute", [0, 3, 30, 57, 59])
def test_stamps_a_mebibyte_apart_are_all_considered(minute: int) -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    lines: list[tuple[datetime | None, bytes]] = []
    for n in range(60):
        lines.append((at + timedelta(minutes=n), stamped(at + timedelta(minutes=n), b"{" * (1 << 20))))
    data = b"".join(line for _, line in lines)
    since = at + timedelta(minutes=minute)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    assert search.start == linear_start(lines, since)


@pytest.mark.parametrize("hole_at", [0, 30_000])
@pytest.mark.parametrize("hole_bytes", [100, 70_000, 3 << 20])
@pytest.mark.parametrize("second", [0, 100, 450, 700, 1499])
def test_hole_full_of_nul_bytes_does_not_hide_the_lines_around_it(hole_at: int, hole_bytes: int, second: int) -> None:
    """What a truncated log looks like when its writer goes on at the old offset."""
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    lines = [stamped(at + timedelta(seconds=n)) for n in range(1500)]
    before = hole_at // len(lines[0])
    data = b"".join(lines[:before]) + bytes(hole_bytes) + b"".join(lines[before:])
    since = at + timedelta(seconds=second)
    search = find_first_at_or_after(File(data), len(data), since, now=NOW, zone=UTC)
    if second == 0:
        assert search.start == 0
    else:
        assert search.start == data.index(stamped(since))


def test_file_of_junk_has_no_window() -> None:
    data = random.Random(1).randbytes(3 << 20)
    file = File(data)
    search = find_first_at_or_after(file, len(data), AT, now=NOW, zone=UTC)
    assert search.found_by is FoundBy.NO_STAMPS
    assert search.first is None
    assert search.start == len(data)


def test_empty_file_has_no_window() -> None:
    search = find_first_at_or_after(File(b""), 0, AT, now=NOW, zone=UTC)
    assert (search.start, search.found_by) == (0, FoundBy.NO_STAMPS)


def test_begin_is_a_border_and_continuation_is_believed() -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    head = b"\tthe rest of an earlier trace\n"
    data = head + stamped(at)
    whole = find_first_at_or_after(File(data), len(data), at, now=NOW, zone=UTC)
    assert (whole.start, whole.found_by) == (0, FoundBy.WHOLE)
    goes_on = find_first_at_or_after(File(data), len(data), at, now=NOW, zone=UTC, continues=True)
    assert (goes_on.start, goes_on.found_by) == (len(head), FoundBy.BISECTION)
    padded = bytes(4096) + data
    behind = find_first_at_or_after(File(padded), len(padded), at, now=NOW, zone=UTC, begin=4096)
    assert behind.start == 4096


def test_reads_grow_with_the_logarithm_of_the_size() -> None:
    """A file of 64 TiB that exists only as arithmetic: line n starts at 64 n and is its stamps rise."""
    line_bytes = 64
    start = datetime(2000, 1, 1, tzinfo=UTC)
    reads = {}
    for power in (20, 30, 46):
        size = 1 << power
        count = size // line_bytes
        step_us = 800_000_000 * 1_000_000 // count  # the lines are spread over 25 years

        def read_at(offset: int, length: int, step_us: int = step_us, size: int = size) -> bytes:
            nonlocal asked_bytes
            end = min(offset + length, size)
            asked_bytes += end - offset
            first = offset // line_bytes
            block = b"".join(
                stamped(start + timedelta(microseconds=n * step_us)).strip().ljust(line_bytes - 1) + b"\n"
                for n in range(first, -(-end // line_bytes))
            )
            return block[offset - first * line_bytes :][: end - offset]

        asked_bytes = 0
        since = start + timedelta(microseconds=(count // 3) * step_us)
        search = find_first_at_or_after(read_at, size, since, now=NOW, zone=UTC)
        assert search.start == (count // 3) * line_bytes
        assert search.read_bytes == asked_bytes
        reads[power] = search.reads
    assert reads[46] <= reads[20] + (46 - 20) + log_lines.STEP_BACK_BLOCKS
    assert reads[46] <= 46


@pytest.mark.parametrize("minutes_before", [1, 15, 29, 45, 61, 90, 119, 121, 300])
@pytest.mark.parametrize("now_after_min", [1, 20, 45, 75])
def test_window_over_the_hour_that_occurs_twice_loses_no_line(minutes_before: int, now_after_min: int) -> None:
    """Berlin, 25 October 2026: 03:00 becomes 02:00 at 01:00 UTC; the log knows only the wall clock."""
    set_back = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
    now = set_back + timedelta(minutes=now_after_min)
    since = now - timedelta(minutes=minutes_before)
    moments = [now - timedelta(seconds=2 * n) for n in range(12_000, -1, -1)]
    lines = [moment.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S x\n").encode() for moment in moments]
    data = b"".join(lines)
    search = find_first_at_or_after(File(data), len(data), since, now=now, zone=BERLIN)
    right = sum(len(line) for line, moment in zip(lines, moments, strict=True) if moment < since)
    assert search.start <= right
    hours = 2 if set_back <= since < set_back + HOUR else 1 if set_back - HOUR <= since < set_back else 0
    assert search.widened_s == 3600 * hours
    two_hours = 3600 * len(lines[0])
    assert right - search.start <= two_hours + len(lines[0])
    if hours == 0:
        assert search.start == right


def test_window_over_the_hour_that_is_left_out_is_exact() -> None:
    """Berlin, 28 March 2027: 02:00 becomes 03:00 at 01:00 UTC."""
    now = datetime(2027, 3, 28, 1, 10, tzinfo=UTC)
    moments = [now - timedelta(seconds=n) for n in range(7000, -1, -1)]
    lines = [moment.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S x\n").encode() for moment in moments]
    data = b"".join(lines)
    for minutes in (5, 10, 15, 60):
        since = now - timedelta(minutes=minutes)
        search = find_first_at_or_after(File(data), len(data), since, now=now, zone=BERLIN)
        assert search.start == sum(len(line) for line, at in zip(lines, moments, strict=True) if at < since)


def test_window_over_the_turn_of_the_year_is_exact() -> None:
    now = datetime(2027, 1, 1, 0, 5, tzinfo=UTC)
    moments = [now - timedelta(seconds=n) for n in range(50_000, -1, -1)]
    lines = [moment.strftime("%b %e %H:%M:%S host app: x\n").encode() for moment in moments]
    data = b"".join(lines)
    since = now - timedelta(minutes=15)
    search = find_first_at_or_after(File(data), len(data), since, now=now, zone=UTC)
    assert search.start == sum(len(line) for line, at in zip(lines, moments, strict=True) if at < since)


def test_what_the_reader_raises_passes_through() -> None:
    class Gone(Exception):
        pass

    def read_at(_offset: int, _length: int) -> bytes:
        raise Gone

    with pytest.raises(Gone):
        find_first_at_or_after(read_at, 1 << 30, AT, now=NOW, zone=UTC)


def test_reader_that_gives_nothing_ends_the_search() -> None:
    search = find_first_at_or_after(lambda _offset, _length: b"", 1 << 40, AT, now=NOW, zone=UTC)
    assert search.found_by is FoundBy.NO_STAMPS


def test_first_and_last_stamped_lines_are_found_behind_what_has_none() -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    later = at + timedelta(hours=1)
    trace = b"\tat com.acme.Pool.take(Pool.java:42)\n" * 20_000
    data = b"banner\n" + stamped(at) + stamped(later) + trace
    first = find_first_stamped(File(data), len(data), now=NOW, zone=UTC)
    last = find_last_stamped(File(data), len(data), now=NOW, zone=UTC)
    assert first is not None
    assert last is not None
    assert (first.start, first.stamp.at) == (7, at)
    assert data[last.start : last.end] + b"\n" == stamped(later)
    assert find_last_stamped(File(trace), len(trace), now=NOW, zone=UTC) is None


def test_window_of_a_real_file_is_what_awk_finds(tmp_path: Path) -> None:
    """awk compares whole lines as text, which for one spelling in one zone is the order of time."""
    rng = random.Random(7)
    at = datetime(2026, 11, 20, 1, 0, tzinfo=UTC)
    path = tmp_path / "app.log"
    with path.open("wb") as out:
        for _ in range(60_000):
            at += timedelta(milliseconds=rng.expovariate(1 / 500))
            out.write(stamped(at, rng.randbytes(rng.randrange(60)).hex().encode()))
    since = at - timedelta(minutes=15)
    size = path.stat().st_size
    with path.open("rb") as file:
        search = find_first_at_or_after(
            lambda offset, length: os.pread(file.fileno(), length, offset), size, since, now=NOW, zone=UTC
        )
    awk = subprocess.run(
        ["awk", f'$0 >= "{since:%Y-%m-%dT%H:%M:%S.%f}"', path],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        check=True,
    )
    assert path.read_bytes()[search.start :] == awk.stdout
    assert search.read_bytes < size / 4


@pytest.mark.parametrize(
    ("filler", "stamp"),
    [
        (b'10.0.0.1 - - "', b"[20/Nov/2026:13:15:00 +0000]"),
        (b"level=info msg=", b" ts=2026-11-20T13:15:00Z"),
        (b'{"msg":"', b'","time":"2026-11-20T13:15:00Z","n":1}'),
    ],
)
def test_only_the_head_of_a_line_is_looked_at(filler: bytes, stamp: bytes) -> None:
    assert find_timestamp(filler + b"x" * 300 + stamp, now=NOW, zone=UTC) is not None
    assert find_timestamp(filler + b"x" * 300_000 + stamp, now=NOW, zone=UTC) is None
