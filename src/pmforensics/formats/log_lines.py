"""
When a log line was written, and where in a log a time begins.

`find_timestamp` reads the stamp of one line, in the spellings that programs use. `find_first_at_or_after` asks
it at a few places of a file of any size: a log is sorted by time, nearly, so bisection over byte offsets finds the
first line of a window with some twenty reads.

A line without a stamp (a stack trace, a wrapped message) belongs to the stamped line before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum
from functools import cache

HEAD_BYTES = 512  # a stamp stands at the start of its line or not at all
JSON_HEAD_BYTES = 4096  # in JSON it may follow other fields
LINE_BYTES = 64 << 10  # a longer line is judged by its first part
PROBE_BYTES = 16 << 10
LOOK_AHEAD_BYTES = 256 << 10  # a region this long without any stamp is "unknown"
STEP_BACK_BYTES, STEP_BACK_BLOCKS = 16 << 10, 64  # at most 1 MiB is looked through for lines out of order
CLOSE_BYTES = 8 << 20  # of an unknown region just before the boundary, this much is read line by line
LAST_BYTES = 4 << 20  # from the end, searched for the last stamp
VOTES = 3  # stamped lines asked per probe: one quoted old date must not send the search past the window
FUTURE = timedelta(days=1)  # no line is written in the future, give or take a time zone
EPOCH_PAST = timedelta(days=3653)  # a bare number at the start of a line counts as a time only this far back
MAX_OFFSET = timedelta(hours=18)  # ISO 8601 offsets in the wild end at +14:00; Java allows 18


class Form(Enum):
    """How a stamp is spelled."""

    ISO = "iso-8601"
    SYSLOG = "syslog"
    CTIME = "ctime"
    CLF = "common-log-format"
    DAY_FIRST = "day-month-year"
    KLOG = "klog"
    JUL = "java-util-logging"
    EPOCH = "epoch"
    JSON = "json"
    LOGFMT = "logfmt"


@dataclass(frozen=True, slots=True)
class Stamp:
    """
    The time of one line.

    raw         as it stands in the line
    at          aware, UTC, cut to microseconds
    zone_known  False when the line names no zone and the caller's was used
    """

    raw: str
    at: datetime
    zone_known: bool
    form: Form


@dataclass(frozen=True, slots=True)
class StampedLine:
    """A line with a stamp, at bytes [start, end) of its file, newline left out."""

    start: int
    end: int
    stamp: Stamp


class FoundBy(Enum):
    """
    How the first line of a window was found.

    whole      the file begins inside the window
    bisection  on its stamps
    no-stamps  it was not: the file has none that can be read
    scan       every byte was looked at, as of a compressed file
    tail       the end was taken, for want of stamps
    """

    WHOLE = "whole"
    BISECTION = "bisection"
    NO_STAMPS = "no-stamps"
    SCAN = "scan"
    TAIL = "tail"


@dataclass(frozen=True, slots=True)
class Search:
    """
    Where a window begins.

    start               the window is [start, size); start == size when no line is late enough
    first               the line at or after start that carries the first stamp of the window
    previous            the last stamped line before the window; None when the file begins inside it
    stepped_back_bytes  how far lines out of order moved the start, against a plain bisection
    unknown_bytes       length of a region at the start in which no stamp was seen, too long to be read; it is
                        in the window, for a line of the window may hide in it
    widened_s           how much earlier than asked the window begins, for a clock that was set back
    reads, read_bytes   what it cost
    """

    start: int
    found_by: FoundBy
    first: StampedLine | None
    previous: StampedLine | None
    stepped_back_bytes: int
    unknown_bytes: int
    widened_s: float
    reads: int
    read_bytes: int


ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> bytes at that offset; shorter only at the end of the file."""


# -- one line ------------------------------------------------------------------------------------------------

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH = rb"(" + b"|".join(_MONTHS) + rb")"
_WEEKDAY = rb"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?[ ])?"
_YEAR = rb"((?:19|20|21)\d\d)"
_TIME = rb"(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,12}))?"
_OFFSET = rb"([Zz](?!\w)|[ ]?(?:UTC|GMT)\b|[ ]?[+-]\d\d:?\d\d(?![\d:])|[+-]\d\d(?![\d:]))?"

# Patterns are compiled when a line first needs them: a log is of one form, and start-up time counts.
_compiled = cache(re.compile)

_PREFIX = rb"""(?x)
    (?: \x1b\[[\d;]{0,12}m                              # colour
      | <\d{1,3}>(?:1[ ])?                              # syslog priority; RFC 5424 adds its version
      | [\[(<]?(?i:trace|debug|info|information|notice|warn|warning|error|err|fatal|critical|crit|alert|emerg
          |severe|panic|fine|finer|finest|config|[tdiwefnvc])[\])>]?[:,|-]?[ \t]+   # level
      | \[[A-Za-z][\w.:/@\#$-]{0,39}\][:]?[ \t]*        # [main]
      | \[\d{1,7}\][:]?[ \t]*                           # [pid]
      | [A-Za-z][\w.-]{0,39}[ \t]*\|[ \t]*              # "web_1  | ", as compose prints
      | \d{1,7}:[A-Z][ ]                                # "1:M ", as Redis prints
    ){0,6}
    [\[(<"']?"""
_ISO = _YEAR + rb"([-/])(\d\d)\2(\d\d)(?:[Tt_]|[ ]{1,2})" + _TIME + _OFFSET
_MONTH_FIRST = (
    _WEEKDAY
    + _MONTH
    + rb"[ ]{1,2}(\d{1,2})(?:,[ ]"
    + _YEAR
    + rb",?)?[ ](\d{1,2}):(\d\d):(\d\d)(?:[.,](\d{1,12}))?"
    + rb"(?:(?:[ ]|\xe2\x80\xaf)([AP]M)\b)?(?:[ ](UTC|GMT|[+-]\d{4})\b)?(?:[ ]"
    + _YEAR
    + rb"(?![\w:.-]))?"
)
_DAY_FIRST = _WEEKDAY + rb"(\d{1,2})([-/ ])" + _MONTH + rb"\2" + _YEAR + rb"[: T]" + _TIME + _OFFSET
_CLF = rb"\[(?=\d\d/[A-Z][a-z][a-z]/\d{4}:)"
_KLOG = rb"[IWEFD]" + _YEAR + rb"?(\d\d)(\d\d)[ ]{1,2}" + _TIME
_EPOCH = rb"(\d{10}|\d{13}|\d{16}|\d{19})(?:\.(\d{1,12}))?(?![\w.:/-])"
_LOGFMT_LINE = rb"[A-Za-z_@][\w.@-]*="
_LOGFMT_TIME = rb"(?<![^\s])(?:@timestamp|timestamp|time|ts|t|datetime|date)=(?:\"([^\"]{8,64})\"|([^\s\"]{8,64}))"
_JSON_TOKEN = rb'"((?:[^"\\]|\\.)*+)"\s*(:?)|([{}\[\]])|"'
_JSON_VALUE = rb"""(?x)
    \s* (?: \{ \s* "\$date" \s* : \s* )?
    (?: "([^"\\]{8,64})" | (\d{1,19} (?:\.\d{1,18})? (?:[eE]\+?\d{1,2})?) (?=[\s,}]) )"""
_DOCKER_END = rb'"time":"([^"\\]{19,40})"\}\s*$'  # after a message of any length
_JSON_KEYS = (
    b"@timestamp", b"timestamp", b"time", b"ts", b"@t", b"t", b"datetime", b"asctime", b"date",
)  # fmt: skip
_DIGITS_OF_UNIT = {
    10: 1,
    13: 10**3,
    16: 10**6,
    19: 10**9,
}  # digits of a time of this century -> units per second


def find_timestamp(line: bytes, *, now: datetime, zone: tzinfo) -> Stamp | None:
    """
    The time that a line says it was written at.

    The stamp stands at the start, after a short prefix (a bracket, a level, a priority), in a field of a JSON
    or logfmt line, or in the brackets of the Common Log Format. A date further on is part of the message.

    `zone` is used where the line names none; of a local time that occurs twice, the earlier reading is given.
    Where the line names no year, it is the latest one that does not lie in the future of `now`.
    """
    if line[:1] in (b"", b" ", b"\t"):
        return None  # continues the line before; stack dumps are full of these
    line = line.removeprefix(b"\xef\xbb\xbf")
    head = line[:HEAD_BYTES]
    if head[:1].isdigit() and (stamp := _at_start(head, 0, now, zone)) is not None:
        return stamp
    prefix = _compiled(_PREFIX).match(head)
    at = prefix.end() if prefix is not None else 0
    if head[at : at + 1] == b"{":
        return _of_json(line[at:], now, zone)
    stamp = _at_start(head, at, now, zone)
    if stamp is None and _compiled(_LOGFMT_LINE).match(head, at):
        match = _compiled(_LOGFMT_TIME).search(head, at)
        if match is not None:
            value = match[1] or match[2]
            stamp = _renamed(_at_start(value, 0, now, zone) or _of_number(value), value, Form.LOGFMT)
    if stamp is None and (clf := _compiled(_CLF).search(head)):
        match = _compiled(_DAY_FIRST).match(head, clf.end())
        stamp = _of_day_first(match, zone, Form.CLF) if match else None
    return stamp


def _at_start(text: bytes, at: int, now: datetime, zone: tzinfo) -> Stamp | None:
    """The stamp that begins exactly at `at`."""
    if text[at : at + 1].isdigit():
        if match := _compiled(_ISO).match(text, at):
            year, _, month, day, *clock, offset = match.groups()
            date = (int(year), int(month), int(day))
            return _stamp(match[0], date, clock, _zone_of(offset), zone, Form.ISO)
        if match := _compiled(_DAY_FIRST).match(text, at):
            return _of_day_first(match, zone, Form.DAY_FIRST)
        if match := _compiled(_EPOCH).match(text, at):
            stamp = _of_number(match[0])
            return stamp if stamp and now - EPOCH_PAST <= stamp.at <= now + FUTURE else None
    elif text[at : at + 1].isupper():
        if match := _compiled(_MONTH_FIRST).match(text, at):
            return _of_month_first(match, now, zone)
        if match := _compiled(_DAY_FIRST).match(text, at):
            return _of_day_first(match, zone, Form.DAY_FIRST)
        if match := _compiled(_KLOG).match(text, at):
            year, month, day, *clock = match.groups()
            return _dated(match[0], year, int(month), int(day), clock, None, zone, now, Form.KLOG)
    return None


def _of_month_first(match: re.Match[bytes], now: datetime, zone: tzinfo) -> Stamp | None:
    name, day, year_before, hour, minute, second, fraction, half, offset, year_after = match.groups()
    if half is not None:
        if not 1 <= int(hour) <= 12:
            return None
        hour = b"%02d" % (int(hour) % 12 + (12 if half == b"PM" else 0))
    form = Form.JUL if year_before else Form.CTIME if year_after else Form.SYSLOG
    month = _MONTHS.index(name) + 1
    clock = [hour, minute, second, fraction]
    return _dated(match[0], year_before or year_after, month, int(day), clock, _zone_of(offset), zone, now, form)


def _of_day_first(match: re.Match[bytes], zone: tzinfo, form: Form) -> Stamp | None:
    day, _, name, year, *clock, offset = match.groups()
    date = (int(year), _MONTHS.index(name) + 1, int(day))
    return _stamp(match[0], date, clock, _zone_of(offset), zone, form)


def _dated(
    raw: bytes,
    year: bytes | None,
    month: int,
    day: int,
    clock: list[bytes],
    known: tzinfo | None,
    zone: tzinfo,
    now: datetime,
    form: Form,
) -> Stamp | None:
    if year is not None:
        return _stamp(raw, (int(year), month, day), clock, known, zone, form)
    for guess in range(now.year + 1, now.year - 9, -1):  # nine years always hold a 29th of February
        stamp = _stamp(raw, (guess, month, day), clock, known, zone, form)
        if stamp is not None and stamp.at <= now + FUTURE:
            return stamp
    return None


def _stamp(
    raw: bytes,
    date: tuple[int, int, int],
    clock: list[bytes],
    known: tzinfo | None,
    zone: tzinfo,
    form: Form,
) -> Stamp | None:
    hour, minute, second, fraction = clock
    microsecond = int((fraction or b"0")[:6].ljust(6, b"0"))
    try:
        # A leap second has no datetime of its own; it is the last moment of its minute.
        local = datetime(*date, int(hour), int(minute), min(int(second), 59), microsecond, known or zone)
        at = local if known is UTC else local.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return None if int(second) > 60 else Stamp(_text(raw), at, known is not None, form)


def _zone_of(offset: bytes | None) -> tzinfo | None:
    if offset is None:
        return None
    offset = offset.strip()
    if offset[:1] not in b"+-":
        return UTC
    digits = offset[1:].replace(b":", b"").ljust(4, b"0")
    ahead = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    if ahead > MAX_OFFSET:
        return None
    return timezone(-ahead if offset[:1] == b"-" else ahead)


def _of_number(text: bytes) -> Stamp | None:
    """Seconds, milli-, micro- or nanoseconds since 1970, told apart by the number of digits: 2001 to 2286."""
    whole, _, fraction = text.partition(b".")
    if not whole.isdigit():
        return None
    if fraction and not fraction.isdigit():
        try:
            whole = b"%d" % round(float(text) * 10**6)
        except (ValueError, OverflowError):
            return None
    elif len(whole) == 10:
        whole += fraction[:6].ljust(6, b"0")
    units = _DIGITS_OF_UNIT.get(len(whole))
    if units is None:
        return None
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(whole) * 10**6 // units)
    return Stamp(_text(text), at, True, Form.EPOCH)


def _of_json(line: bytes, now: datetime, zone: tzinfo) -> Stamp | None:
    """The best-known time field of the outermost object."""
    head = line[:JSON_HEAD_BYTES]
    best, best_rank = None, len(_JSON_KEYS)
    depth = 0
    for token in _compiled(_JSON_TOKEN).finditer(head):
        bracket = token[3]
        if bracket is not None:
            depth += 1 if bracket in b"{[" else -1
            if depth <= 0:
                break
        elif token[1] is None:
            break  # a string that the head cuts off
        elif depth == 1 and token[2] and (key := token[1].lower()) in _JSON_KEYS:
            rank = _JSON_KEYS.index(key)
            value = _compiled(_JSON_VALUE).match(head, token.end())
            if value is not None and rank < best_rank:
                text = value[1] or value[2]
                stamp = _of_number(text) or (_at_start(text, 0, now, zone) if value[1] else None)
                if stamp is not None:
                    best, best_rank = _renamed(stamp, text, Form.JSON), rank
    if best is None and len(line) > JSON_HEAD_BYTES and (end := _compiled(_DOCKER_END).search(line[-96:])):
        best = _renamed(_at_start(end[1], 0, now, zone), end[1], Form.JSON)
    return best


def _renamed(stamp: Stamp | None, raw: bytes, form: Form) -> Stamp | None:
    return None if stamp is None else Stamp(_text(raw), stamp.at, stamp.zone_known, form)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


# -- a file --------------------------------------------------------------------------------------------------


def find_first_at_or_after(
    read_at: ReadAt,
    size: int,
    since: datetime,
    *,
    now: datetime,
    zone: tzinfo,
    begin: int = 0,
    continues: bool = False,
    slack_s: float = 2.0,
) -> Search:
    """
    Find the start of the first line of [begin, size) whose stamp is at or after `since`.

    Lines before the first stamp of the file are taken to belong to the window when that stamp does, unless
    `continues` says that stamped lines came before `begin`. Lines may be out of order by `slack_s`: a region
    of that length before the boundary is looked through, up to STEP_BACK_BLOCKS * STEP_BACK_BYTES. When
    stamps name no zone and `since` falls into the hour that occurs twice, the window begins up to two hours
    earlier: rather too much than too little.

    Reads grow with the logarithm of the size, squared where stamps are far apart. Whatever `read_at` raises
    passes through.
    """
    lines = _Lines(read_at, size, begin, now, zone)
    twice = _before_the_set_back(since, zone)

    def is_late(stamp: Stamp) -> bool:
        return stamp.at >= (since if stamp.zone_known else twice)

    previous: StampedLine | None = None
    first: StampedLine | None = None
    before_first: StampedLine | None = None
    # Stamped lines that start below low are early; of those from top on, `first` is the first late one.
    low, top = begin, size
    while top - low > PROBE_BYTES:
        middle = (low + top) // 2
        found, seen_to = lines.from_offset(middle, top)
        if not found and seen_to < top:
            found = lines.after_unknown(seen_to, top)
        place = _first_late(found, is_late)
        if place is not None:
            first, before_first = found[place], found[place - 1] if place else None
            top = middle
        elif found:
            previous = found[-1]
            low = previous.start + 1
        else:
            top = middle
    found = lines.between(low, top)
    place = _first_late(found, is_late)
    if place is not None:
        first, before_first = found[place], None
        found = found[:place]
    previous = before_first or (found[-1] if found else previous)

    first, previous, unknown_bytes = _close_gap(lines, first, previous, is_late)
    start = size if first is None else first.start
    stepped_back_bytes = 0
    if unknown_bytes and previous is not None:
        start = previous.end + 1
    elif previous is not None:
        slack_from = min(since, twice) - timedelta(seconds=slack_s)
        first, previous = _step_back(lines, first, previous, is_late, slack_from)
        if first is not None:
            stepped_back_bytes = start - first.start
            start = first.start
    found_by = FoundBy.BISECTION
    if previous is None and first is None:
        found_by = FoundBy.NO_STAMPS
    elif previous is None and not continues:
        start = begin
        found_by = FoundBy.WHOLE
    one = first or previous
    return Search(
        start,
        found_by,
        first,
        previous,
        stepped_back_bytes,
        unknown_bytes,
        (since - twice).total_seconds() if one is not None and not one.stamp.zone_known else 0.0,
        lines.reads,
        lines.read_bytes,
    )


def _first_late(found: list[StampedLine], is_late: Callable[[Stamp], bool]) -> int | None:
    return next((place for place, line in enumerate(found) if is_late(line.stamp)), None)


def _close_gap(
    lines: _Lines,
    first: StampedLine | None,
    previous: StampedLine | None,
    is_late: Callable[[Stamp], bool],
) -> tuple[StampedLine | None, StampedLine | None, int]:
    """
    Read the unknown region before the boundary, if there is one: strides may have passed over a stamp in it.

    `first` and `previous`, corrected, and the length of the region if it was too long to be read.
    """
    low = lines.begin if previous is None else previous.end
    top = lines.size if first is None else first.start
    if top - low <= LOOK_AHEAD_BYTES:
        return first, previous, 0
    if top - low > CLOSE_BYTES:
        return first, previous, top - low
    for at in range(low, top, LOOK_AHEAD_BYTES):
        block = lines.between(at, min(top, at + LOOK_AHEAD_BYTES))
        place = _first_late(block, is_late)
        if place is not None:
            return block[place], block[place - 1] if place else previous, 0
        previous = block[-1] if block else previous
    return first, previous, 0


def _step_back(
    lines: _Lines,
    first: StampedLine | None,
    previous: StampedLine | None,
    is_late: Callable[[Stamp], bool],
    slack_from: datetime,
) -> tuple[StampedLine | None, StampedLine | None]:
    """Late lines among the early ones just before the boundary: `first` and `previous`, corrected."""
    top = lines.size if first is None else first.start
    for _ in range(STEP_BACK_BLOCKS):
        low = max(lines.begin, top - STEP_BACK_BYTES)
        block = lines.between(low, top)
        place = _first_late(block, is_late)
        if place is not None:
            first = block[place]
            if place:
                previous = block[place - 1]
            elif low == lines.begin:
                previous = None
        elif block and first is not None and previous is not None and previous.start > first.start:
            previous = block[-1]
        if low == lines.begin or not block or block[0].stamp.at < slack_from:
            break
        top = low
    return first, previous


def find_first_stamped(
    read_at: ReadAt, size: int, *, now: datetime, zone: tzinfo, begin: int = 0
) -> StampedLine | None:
    """The first line of [begin, size) with a stamp; None when LOOK_AHEAD_BYTES hold none."""
    found, _ = _Lines(read_at, size, begin, now, zone).from_offset(begin, size)
    return found[0] if found else None


def find_last_stamped(read_at: ReadAt, size: int, *, now: datetime, zone: tzinfo, begin: int = 0) -> StampedLine | None:
    """The last line of [begin, size) with a stamp; None when the last LAST_BYTES hold none."""
    lines = _Lines(read_at, size, begin, now, zone)
    top, step_bytes = size, PROBE_BYTES
    while top > max(begin, size - LAST_BYTES):
        low = max(begin, top - step_bytes)
        if found := lines.between(low, top):
            return found[-1]
        top, step_bytes = low, LOOK_AHEAD_BYTES
    return None


def _before_the_set_back(since: datetime, zone: tzinfo) -> datetime:
    """
    `since`, or a time early enough when the clock on the wall shows `since` twice.

    Where clocks go back an hour at three, 02:30 is followed by 02:00 and by 02:30 again: no order to bisect
    on. Asked for everything that reads 01:30 or later, the file is in order.
    """
    local = since.astimezone(zone)
    earlier, later = local.replace(fold=0), local.replace(fold=1)
    went_back = (earlier.utcoffset() or timedelta()) - (later.utcoffset() or timedelta())
    return earlier.astimezone(UTC) - went_back if went_back > timedelta() else since


class _Lines:
    """Stamped lines of a file, a window at a time."""

    def __init__(self, read_at: ReadAt, size: int, begin: int, now: datetime, zone: tzinfo) -> None:
        self.size = size
        self.begin = begin
        self.reads = 0
        self.read_bytes = 0
        self._read_at = read_at
        self._now = now
        self._zone = zone

    def from_offset(self, offset: int, top: int) -> tuple[list[StampedLine], int]:
        """
        Up to VOTES stamped lines that start in [offset, top), as near as possible.

        Also how far line starts have been judged: one byte on at least, LOOK_AHEAD_BYTES when none is found.
        """
        found: list[StampedLine] = []
        seen_to = offset
        for window_bytes in (PROBE_BYTES, LOOK_AHEAD_BYTES):
            found, seen_to = self._judge(offset, min(self.size, offset + window_bytes), top, VOTES)
            if found or seen_to >= top:
                break
        return found, seen_to

    def between(self, offset: int, top: int) -> list[StampedLine]:
        """All stamped lines that start in [offset, top); for ranges that fit in memory."""
        return self._judge(offset, min(self.size, top + LINE_BYTES), top, top - offset)[0]

    def after_unknown(self, bad: int, top: int) -> list[StampedLine]:
        """
        The first stamped lines after a region without any, which reaches to `bad` at least.

        Strides double until a stamped line turns up, then the edge is bisected, as if the region were whole.
        """
        last_chance = max(bad, top - LOOK_AHEAD_BYTES)
        at, stride = bad, LOOK_AHEAD_BYTES
        found, seen_to = self.from_offset(at, top)
        while not found:
            if at >= last_chance:
                return []
            bad = seen_to
            at = min(max(seen_to, at + stride), last_chance)
            stride *= 2
            found, seen_to = self.from_offset(at, top)
        good = at
        while good - bad > LOOK_AHEAD_BYTES:
            middle = (bad + good) // 2
            nearer, seen_to = self.from_offset(middle, good)
            if nearer:
                found, good = nearer, middle
            else:
                bad = max(seen_to, middle + 1)
        if bad < good:
            nearer, _ = self.from_offset(bad, good)
            found = nearer or found
        return found

    def _judge(self, offset: int, end: int, top: int, want: int) -> tuple[list[StampedLine], int]:
        """Read [offset, end) and judge the lines that start in [offset, top)."""
        base = offset if offset == self.begin else offset - 1  # a line starts behind a newline or a hole
        block = self._read_at(base, end - base)
        self.reads += 1
        self.read_bytes += len(block)
        found: list[StampedLine] = []
        at = 0
        if base != offset and block[:1] != b"\0":
            at = block.find(b"\n") + 1
            if at == 0:
                return found, max(base + len(block), offset + 1)
        to_the_end = base + len(block) >= self.size
        while at < len(block) and base + at < top and len(found) < want:
            newline = block.find(b"\n", at)
            end = len(block) if newline < 0 else newline
            if block[at] == 0:  # a hole, left where a file was truncated under its writer
                text = block[at:end].lstrip(b"\0")
                at = end - len(text)
                if not text:
                    at += newline >= 0
                    continue
                if base + at >= top:
                    break
            if newline < 0 and not to_the_end and len(block) - at < LINE_BYTES:
                break
            stamp = find_timestamp(block[at:end], now=self._now, zone=self._zone)
            if stamp is not None and stamp.at <= self._now + FUTURE:
                found.append(StampedLine(base + at, base + end, stamp))
            at = end + 1
        return found, base + at
