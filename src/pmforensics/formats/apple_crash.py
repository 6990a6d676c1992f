"""
Crash reports of macOS and iOS: the images that they list, each with its load address and LC_UUID.

Three forms are in use:

    .ips     two JSON objects, a header on one line and the report (macOS 12 and iOS 15 on)
    .ips     a JSON header on one line, then text (iOS before 15, and reports of other kinds)
    .crash   text only; Console shows and copies new reports as text with the JSON behind it

The JSON is walked and not loaded: only the list of images and a few small values are ever turned into objects, so a
report that is cut gives what it has, and a hostile one costs little.

A line of the text form, of which every part but the addresses may be missing or "???":

    0x100f3c000 - 0x100f3ffff +My App Helper arm64 (1.2 - 34) <UUID> /Applications/My App.app/.../My App Helper

Sources: reports as ReportCrash writes them; "Interpreting the JSON format of a crash report" (Apple).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pmforensics.errors import FormatError
from pmforensics.formats.core_memory import text_of
from pmforensics.formats.macho import uuid_id
from pmforensics.model.image import DumpImage, DumpImages, Mapped, Reading, Unread

MAX_REPORT_BYTES = 8 << 20  # most have 20 to 300 KiB; 1,000 threads of 100 frames make some 6 MiB
_MAX_IMAGES = 20_000
_MAX_TOKENS = 1 << 20  # brackets and strings of the JSON; 100,000 frames have some 700,000
_MAX_MEMBERS = 1000  # of one object that is walked; a report has some 50
_MAX_DEPTH = 128
_MAX_VALUE_BYTES = 64 << 10
_MAX_LINE_BYTES = 16 << 10
_MAX_FIELDS_BYTES = 64 << 10  # where the text's fields stand, before the first thread
_MAX_TEXT = 4096  # characters of a name, path or version

_UTF8_MARK = b"\xef\xbb\xbf"
_HEX_DIGITS = re.compile(r"[0-9a-f]{32}")
_ZEROS = "0" * 32
_ARCH = re.compile(r"arm64(?:e|_32)?|armv\d\w{0,2}|x86_64h?|i386|ppc(?:64)?")

_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb'[^\s,:\]}{\["]*')
_BRACKET_OR_QUOTE = re.compile(rb'[{}\[\]"]')

_LIST_HEADING = re.compile(rb"^[ \t]*Binary Images(?: Description)?:", re.MULTILINE)
_FIELD = re.compile(rb"^[ \t]*([A-Z][A-Za-z/ ]{1,30}):[ \t]+(\S[^\r\n]*)", re.MULTILINE)
_RANGE = re.compile(
    rb"^[ \t]*\*?(0x[0-9a-fA-F]{1,16})[ \t]*-[ \t]*(0x[0-9a-fA-F]{1,16}|\?\?\?)[ \t]+(?=\S)", re.MULTILINE
)
_RANGE_BEGUN = re.compile(rb"\s*\*?(?:0(?:x[0-9a-fA-F]{0,16}\s*+(?:-\s*+[0-9a-fA-Fx?]{0,18}\s*+)?)?)?")
_JSON_LINE = re.compile(rb"^[ \t]*\{", re.MULTILINE)
_UUID = re.compile(rb"<([0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12})>")
_PATH = re.compile(rb"\s(/\S.*)$")


class BrokenReport(FormatError):
    """No crash report, or one that lists no images."""

    code = "broken-report"


def read_apple_crash(data: bytes) -> DumpImages:
    """
    The images that a report names, in its order; `base` is the load address.

    `facts` may hold process, os_version, app_version, cpu, incident, bug_type and shared_cache_uuid; `says` of an
    image may hold version and bundle_id. A report that is cut gives what is left, and `lost` says so; one that is cut
    before its list of images still tells which executable it is about, where its header does.

    Raises BrokenReport.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise BrokenReport(f"A crash report of {len(data)} bytes: larger than any real one.")
    start = len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0
    start = _skip_space(data, start)
    report = _Report(data)
    if data[start : start + 1] == b"{":
        report.read_json(start)
    else:
        report.read_text(start)
    return report.finish()


@dataclass(slots=True)
class _Report:
    """What has been read so far."""

    data: bytes
    format: str = ""
    images: list[DumpImage] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the same images: how the report calls them besides the path
    lost: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    facts: dict[str, int | str] = field(default_factory=dict)
    main_path: str = ""
    main_names: tuple[str, ...] = ()
    main_reading: Reading | None = None  # by the header of .ips

    def add(self, name: str, path: str, base: int | None, end: int | None, uuid: str, offset: int, **more: Any) -> None:
        """One image; `uuid` is "" where there is none."""
        if uuid in ("", _ZEROS) and name in ("", "???") and path in ("", "???"):
            return  # stands for all addresses outside of any image
        best = next((text for text in (path, name) if text not in ("", "???")), f"image at {base or 0:#x}")
        mapped = (Mapped(base, end, 0),) if base is not None and end is not None and end > base else ()
        unread = more.pop("unread", Unread.NO_ID)
        rule = "used-images" if self.format == "ips" else "binary-images"
        readings = (Reading(uuid_id(uuid), offset, rule),) if uuid else ()
        self.images.append(DumpImage(best, base, readings, None if uuid else unread, mapped, **more))
        self.names.append(name)

    def lose(self, says: str) -> None:
        if says not in self.lost:
            self.lost.append(says)

    def tell(self, **facts: str) -> None:
        """Keep what the report says of itself; what is said first counts."""
        for name, value in facts.items():
            if value:
                self.facts.setdefault(name, value)

    def finish(self) -> DumpImages:
        main = self._main()
        images = [replace(image, is_main=True) if index == main else image for index, image in enumerate(self.images)]
        reading = self.main_reading
        if reading is not None and main is None and not images:
            name = self.main_path or str(self.facts.get("process", "")) or "main executable"
            images = [DumpImage(name, None, (reading,), is_main=True)]
        elif reading is not None and main is not None:
            others = [one for one in images[main].readings if one.id.value != reading.id.value]
            if others:
                self.conflicts.append(
                    f"The header says that the executable's UUID is {reading.id.value}, the list of images says "
                    f"{others[0].id.value}."
                )
        return DumpImages(
            self.format, tuple(images), len(self.data), None, tuple(self.lost), tuple(self.conflicts), self.facts
        )

    def _main(self) -> int | None:
        """Which image the report calls its process; None where it does not tell."""
        for index, image in enumerate(self.images):
            if self.main_path and image.name == self.main_path:
                return index
        if self.main_reading is not None and not self.main_reading.id.weak:
            for index, image in enumerate(self.images):
                if any(reading.id == self.main_reading.id for reading in image.readings):
                    return index
        for wanted in (self.main_path.rsplit("/", maxsplit=1)[-1], *self.main_names):
            same = [
                index
                for index, (image, name) in enumerate(zip(self.images, self.names, strict=True))
                if wanted and wanted in (name, image.name.rsplit("/", maxsplit=1)[-1])
            ]
            if len(same) == 1:
                return same[0]
        return None

    # -- JSON

    def read_json(self, start: int) -> None:
        self.format = "ips"
        walk = _Walk(self.data)
        head = dict(walk.members(start))
        process = walk.text(head, "app_name") or walk.text(head, "name")
        version, build = walk.text(head, "app_version"), walk.text(head, "build_version")
        self.tell(
            process=process,
            os_version=walk.text(head, "os_version"),
            app_version=f"{version} ({build})" if version and build else version or build,
            incident=walk.text(head, "incident_id"),
            bug_type=walk.text(head, "bug_type"),
        )
        self.main_names = (process,) if process else ()
        self._keep_slice_uuid(walk, head)
        body = head
        if not walk.trouble and "usedImages" not in head:
            start = _skip_space(self.data, walk.at)
            if self.data[start : start + 1] == b"{":
                body = dict(walk.members(start))
            elif start < len(self.data):
                self.read_text(start)
                return
        self._read_body(walk, head, body)
        if walk.trouble:
            self.lose(walk.trouble)

    def _keep_slice_uuid(self, walk: _Walk, head: dict[str, _Span]) -> None:
        uuid = _uuid_of(walk.text(head, "slice_uuid"))
        if uuid and uuid != _ZEROS:
            self.main_reading = Reading(uuid_id(uuid), head["slice_uuid"][0] + 1, "ips-header")

    def _read_body(self, walk: _Walk, head: dict[str, _Span], body: dict[str, _Span]) -> None:
        self.main_path = walk.text(body, "procPath")
        if name := walk.text(body, "procName"):
            self.main_names = (name, *self.main_names)
        system = walk.dictionary(body, "osVersion")
        self.tell(
            process=walk.text(body, "procName"),
            os_version=f"{_plain(system.get('train'))} ({_plain(system.get('build'))})" if system else "",
            cpu=walk.text(body, "cpuType"),
            incident=walk.text(body, "incident"),
            shared_cache_uuid=_uuid_of(_plain(walk.dictionary(body, "sharedCache").get("uuid"))),
        )
        place = body.get("usedImages")
        if place is None or self.data[place[0] : place[0] + 1] != b"[":
            self._lack_of_images(walk, whole=body is not head)
            return
        for index, span in enumerate(walk.elements(place[0])):
            entry = walk.value(span)
            if index >= _MAX_IMAGES:
                self.lose(f"There are more than {_MAX_IMAGES} images; the rest was not read.")
                break
            if isinstance(entry, dict):
                self._add_json(entry, span)
            else:
                self.lose("The list of images holds something that is no image.")

    def _lack_of_images(self, walk: _Walk, *, whole: bool) -> None:
        bug_type = self.facts.get("bug_type")
        if bug_type is None and self.main_reading is None and not self.main_path:
            raise BrokenReport(walk.trouble or "The JSON holds no list of images: this is no crash report.")
        if whole and not walk.trouble:
            raise BrokenReport(f"This report (bug type {bug_type}) holds no list of images, as crash reports do.")
        self.lose("The report is cut before its list of images.")

    def _add_json(self, entry: dict[str, Any], span: _Span) -> None:
        base, size = _address(entry.get("base")), _address(entry.get("size"))
        written = _plain(entry.get("uuid"))
        version, build = _plain(entry.get("CFBundleShortVersionString")), _plain(entry.get("CFBundleVersion"))
        said = {
            "version": f"{version} ({build})" if version and build else version or build,
            "bundle_id": _plain(entry.get("CFBundleIdentifier")),
        }
        uuid = _uuid_of(written)
        self.add(
            _plain(entry.get("name")),
            _plain(entry.get("path")),
            base,
            None if base is None or size is None else base + size,
            uuid,
            max(self.data.find(written.encode(), *span), 0) if uuid else 0,
            machine=_plain(entry.get("arch")),
            says={name: value for name, value in said.items() if value},
        )

    # -- text

    def read_text(self, start: int) -> None:
        self.format = "crash"
        heading = _LIST_HEADING.search(self.data, start)
        end = heading.start() if heading else len(self.data)
        fields: dict[str, str] = {}
        for match in _FIELD.finditer(self.data, start, min(end, start + _MAX_FIELDS_BYTES)):
            fields.setdefault(match[1].decode(), text_of(match[2]).strip()[:_MAX_TEXT])
        process = re.sub(r" \[\d+\]$", "", fields.get("Process", ""))
        self.main_path = fields.get("Path", "")
        self.main_names = (process, fields.get("Identifier", ""), *self.main_names)
        self.tell(
            process=process,
            os_version=fields.get("OS Version", ""),
            app_version=fields.get("Version", ""),
            cpu=fields.get("Code Type", ""),
            incident=fields.get("Incident Identifier", ""),
        )
        if heading is not None:
            self._read_lines(heading.end())
        elif "Incident Identifier" in fields or {"Process", "Code Type"} <= fields.keys():
            self.lose("The report is cut before its list of images.")
        else:
            raise BrokenReport("The text has no list of binary images: this is no crash report.")

    def _read_lines(self, start: int) -> None:
        data = self.data
        more = _LIST_HEADING.search(data, start)
        if more is not None:
            self.lose("There is another list of images, of another process or report; only the first one was read.")
        stop = more.start() if more is not None else len(data)
        if again := _JSON_LINE.search(data, start, stop):
            stop = again.start()  # the same report once more, as JSON
        end = start
        for match in _RANGE.finditer(data, start, stop):
            if len(self.images) >= _MAX_IMAGES:
                self.lose(f"There are more than {_MAX_IMAGES} images; the rest was not read.")
                return
            newline = data.find(b"\n", match.end(), stop)
            end = newline if newline >= 0 else stop
            self._add_line(data[match.start() : min(end, match.start() + _MAX_LINE_BYTES)], match, whole=newline >= 0)
        rest = data[end:stop]
        begun = not rest.endswith(b"\n") and _RANGE_BEGUN.fullmatch(rest) is not None
        # A report that was not cut may end behind its last image, and then with a whole line.
        if stop == len(data) and (begun or not (rest.strip() or data[start:end].strip())):
            self.lose("The report ends within its list of images: it may be cut.")

    def _add_line(self, line: bytes, match: re.Match[bytes], *, whole: bool) -> None:
        line_at, fields_at = match.start(), match.end() - match.start()
        base = int(match[1], 16)
        end = None if match[2] == b"???" else int(match[2], 16) + 1
        uuid, offset, unread = "", 0, Unread.NO_ID
        if found := _UUID.search(line, fields_at):
            uuid, offset = _uuid_of(found[1].decode()), line_at + found.start(1)
            middle, path = line[fields_at : found.start()], line[found.end() :]
        elif found := _PATH.search(line.rstrip(), fields_at - 1):
            middle, path = line[fields_at : found.start()], found[1]
        else:
            middle, path = line[fields_at:], b""
        if not uuid and b"<" in middle:
            middle, _, rest = middle.partition(b"<")
            if re.match(rb"[0-9a-fA-F]", rest):
                unread = Unread.BROKEN if whole else Unread.TRUNCATED
                self.lose("A line of the list of images is cut or wrapped within its UUID.")
        name, version, arch = _parse_middle(text_of(middle.strip()))
        self.add(
            name[:_MAX_TEXT],
            text_of(path.strip())[:_MAX_TEXT],
            base,
            end,
            uuid,
            offset,
            unread=unread,
            machine=arch,
            says={"version": version} if version else {},
        )


def _parse_middle(text: str) -> tuple[str, str, str]:
    """Name, version and architecture of what stands between the addresses and the UUID."""
    name = text.removeprefix("+").strip()
    version = ""
    if name.endswith(")"):
        depth = 0
        for at in range(len(name) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(name[at], 0)
            if depth == 0:
                name, version = name[:at].rstrip(), name[at + 1 : -1]
                break
    *words, last = name.split(" ")
    arch = last if words and _ARCH.fullmatch(last) else ""
    if arch:
        name = name.removesuffix(arch).rstrip()
    elif words and last == "???":  # the version, or the architecture, was not known
        name = name.removesuffix("???").rstrip()
    return name, "" if version.strip("?-* ") == "" else version[:_MAX_TEXT], arch


def _uuid_of(written: str) -> str:
    """32 lowercase hex digits; "" where it is no UUID."""
    digits = written.strip().replace("-", "").lower()
    return digits if _HEX_DIGITS.fullmatch(digits) else ""


def _plain(value: Any) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _address(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 64 else None


def _skip_space(data: bytes, at: int) -> int:
    found = _SPACE.match(data, at)
    return found.end() if found else at


_Span = tuple[int, int]
"""Half-open byte range of a value."""


class _Walk:
    """
    Walks JSON without turning it into objects.

    at        behind the value that was walked last
    trouble   a sentence, once the JSON ended early or made no sense; nothing is walked after that
    """

    __slots__ = ("_data", "_tokens", "at", "trouble")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._tokens = 0
        self.at = 0
        self.trouble = ""

    def members(self, start: int) -> Iterator[tuple[str, _Span]]:
        """Key and place of every member of the object at `start`; of an array or object that is cut, its start."""
        for key_at in self._items(start, b"}"):
            key_end = self._string_end(key_at)
            colon = _skip_space(self._data, key_end)
            if key_end and self._data[colon : colon + 1] == b":":
                value_at = _skip_space(self._data, colon + 1)
                value_end = self._value_end(value_at)
                key = text_of(self._data[key_at + 1 : key_end - 1][:_MAX_TEXT])
                if value_end or self._data[value_at : value_at + 1] in (b"[", b"{"):
                    yield key, (value_at, value_end)
            elif not self.trouble:
                self._stop(colon if key_end else key_at)

    def elements(self, start: int) -> Iterator[_Span]:
        """The place of every element of the array at `start` that is there whole."""
        for value_at in self._items(start, b"]"):
            value_end = self._value_end(value_at)
            if value_end:
                yield value_at, value_end

    def _items(self, start: int, closing: bytes) -> Iterator[int]:
        """Where each item begins; the caller walks it, so that `at` is behind it."""
        trouble, self.trouble = self.trouble, ""  # what has been walked over once may be walked into
        self.at = _skip_space(self._data, start + 1)
        count = 0
        while not self.trouble:
            following = self._data[self.at : self.at + 1]
            if following == closing:
                self.at += 1
                break
            if following == b",":
                self.at = _skip_space(self._data, self.at + 1)
            if self.at >= len(self._data):
                self._stop(self.at)
                break
            count += 1
            if closing == b"}" and count > _MAX_MEMBERS:
                raise BrokenReport(f"The report's JSON has an object of more than {_MAX_MEMBERS} members.")
            before = self.at
            yield before
            self.at = _skip_space(self._data, self.at)
            if self.at == before and not self.trouble:
                self._stop(before)
        self.trouble = self.trouble or trouble

    def _stop(self, at: int) -> int:
        """Returns 0, which is no end of any value."""
        if at >= len(self._data):
            self.trouble = self.trouble or f"The report is cut after {len(self._data)} bytes."
        else:
            self.trouble = self.trouble or f"The report's JSON makes no sense from byte {at} on."
        return 0

    def _string_end(self, at: int) -> int:
        """Behind the string at `at`; 0 where there is none or it is cut."""
        data = self._data
        if data[at : at + 1] != b'"':
            return 0
        since = at + 1
        while (quote := data.find(b'"', since)) >= 0:
            back = quote
            while back > since and data[back - 1] == 0x5C:
                back -= 1
            if (quote - back) % 2 == 0:
                return quote + 1
            since = quote + 1
        return self._stop(len(data))

    def _value_end(self, at: int) -> int:
        """Behind the value at `at`, where `at` of the walk is then, too; 0 where it is cut or makes no sense."""
        first = self._data[at : at + 1]
        if first == b'"':
            end = self._string_end(at)
        elif first in (b"{", b"["):
            end = self._nested_end(at)
        else:
            found = _SCALAR.match(self._data, at)
            end = found.end() if found else at
            if end == at or end == len(self._data):
                return self._stop(end)
        self.at = end or self.at
        return end

    def _nested_end(self, at: int) -> int:
        data, depth = self._data, 0
        while (found := _BRACKET_OR_QUOTE.search(data, at)) is not None:
            self._tokens += 1
            if self._tokens > _MAX_TOKENS:
                raise BrokenReport(f"The report's JSON has more than {_MAX_TOKENS} values.")
            at, token = found.end(), found[0]
            if token == b'"':
                at = self._string_end(at - 1)
                if not at:
                    return 0
            elif token in b"{[":
                depth += 1
                if depth > _MAX_DEPTH:
                    raise BrokenReport(f"The report's JSON is nested deeper than {_MAX_DEPTH} levels.")
            else:
                depth -= 1
                if depth == 0:
                    return at
        return self._stop(len(data))

    def value(self, span: _Span) -> Any:
        """The value at a place; None where it is no JSON, or large."""
        start, end = span
        if not 0 < end - start <= _MAX_VALUE_BYTES:
            return None
        try:
            return json.loads(self._data[start:end].decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError):
            return None

    def text(self, members: dict[str, _Span], key: str) -> str:
        """A member that is text; "" where it is not there."""
        return _plain(self.value(members[key])) if key in members else ""

    def dictionary(self, members: dict[str, _Span], key: str) -> dict[str, Any]:
        """A member that is an object; empty where it is not there."""
        value = self.value(members[key]) if key in members else None
        return value if isinstance(value, dict) else {}
