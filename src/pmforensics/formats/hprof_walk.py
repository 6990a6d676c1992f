"""
Walks a heap dump as a stream: classes, names and chosen objects, in memory that does not grow with the dump.

Nearly all of a dump is objects that nobody asked for. A regular expression steps over runs of them, which takes a
tenth of the time that Python would; what it cannot step over is measured one by one. So every object that is kept
was reached from the start of its heap segment, record by record, and never found by searching for bytes.

Objects are wanted by identifier. While a pass goes on, what it finds may lead to more; those that lie further back
are for the next pass.

Sources: "HPROF: A Heap/CPU Profiling Tool", binary dump format; heapDumper.cpp of OpenJDK 17 and 25.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from pmforensics.formats.classfile import MIB, decode_modified_utf8

REFERENCE, CHAR, BYTE = 2, 5, 8
VALUE_BYTES = {4: 1, 5: 2, 6: 4, 7: 8, 8: 1, 9: 2, 10: 4, 11: 8}  # of all types but references

_UTF8, _LOAD_CLASS = 0x01, 0x02
_HEAP_DUMP, _HEAP_DUMP_SEGMENT = 0x0C, 0x1C
_RECORD_TAGS = frozenset({*range(0x01, 0x08), *range(0x0A, 0x0F), 0x1C, 0x2C})
_RECORD_HEAD_BYTES = 9
_CLASS, _INSTANCE, _REFERENCES, _PRIMITIVES = 0x20, 0x21, 0x22, 0x23
# Roots of garbage collection: how many identifiers and how many other bytes follow the tag.
_GC_ROOTS = {
    0xFF: (1, 0),
    0x01: (2, 0),
    0x02: (1, 8),
    0x03: (1, 8),
    0x04: (1, 4),
    0x05: (1, 0),
    0x06: (1, 4),
    0x07: (1, 0),
    0x08: (1, 8),
}

_BUFFER_BYTES = MIB
_WINDOW_BYTES = 4 * MIB  # gone over at a time; more than a class can have, whose counts have 16 bits
_MAX_CLASSES = 250_000  # large servers load 100,000
_MAX_LAYOUT_BYTES = 32 * MIB  # of all classes, as the dump writes fields: 250,000 classes with 14 fields each
_MAX_NAME_BYTES = 65_535  # the JVM's own limit
_MAX_NAMES_BYTES = 64 * MIB
MAX_NAMES = 1_000_000
_MAX_KNOWN = 10_000  # strings with one of the texts that were asked for; HotSpot writes each text once
_MAX_KEPT_BYTES = 256 * 1024  # of one object; a table of 8,192 buckets has 64 KiB
_MAX_KEPT_IN_ALL_BYTES = 32 * MIB
_MAX_ENTRIES = 1024
_MAX_ENTRY_CLASSES = 256
_MAX_HASH_AT = 64  # bytes into an instance
_MAX_ROUNDS = 1000  # of following what was found while a pass goes on; some 10 do
_MAX_COMPILED = 100  # patterns; some 5 do. Beyond it, what is found leads on in the next pass only
_MAX_SUPERS = 256
_MAX_INSTANCE_FIELDS = 4096  # inherited ones included
_MAX_SENTENCES = 20


class _Nonsense(Exception):
    """A heap segment makes no sense from here on; the text says why."""


# ------------------------------------------------------------------------------------------------ the stream


class Stream:
    """Chunks of any size as one buffer, `data`, that moves over the file; `at` is the place in it."""

    __slots__ = ("_base", "_chunks", "at", "data")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._base = 0  # offset of data[0] in the file
        self.data = b""
        self.at = 0

    @property
    def position(self) -> int:
        """Offset in the file."""
        return self._base + self.at

    @property
    def available(self) -> int:
        """How many bytes the buffer holds from `at` on."""
        return len(self.data) - self.at

    def fill(self, count: int) -> bool:
        """Whether there are `count` bytes in the buffer from `at` on, after reading on if need be."""
        have = len(self.data) - self.at
        if have >= count:
            return True
        pieces = [self.data[self.at :]]
        while have < max(count, _BUFFER_BYTES):
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            pieces.append(chunk)
            have += len(chunk)
        self._base += self.at
        self.at = 0
        self.data = b"".join(pieces)
        return have >= count

    def skip(self, count: int) -> bool:
        """Passes over `count` bytes; whether the file has as many."""
        left = count - (len(self.data) - self.at)
        if left <= 0:
            self.at += count
            return True
        self._base += len(self.data)
        self.data, self.at = b"", 0
        while left > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            if len(chunk) > left:
                self.data, self.at = bytes(chunk), left
            else:
                self._base += len(chunk)
            left -= len(chunk)
        return True

    def drain(self) -> None:
        """Reads the rest of the file and forgets it."""
        for chunk in self._chunks:
            self._base += len(chunk)
        self._base += len(self.data)
        self.data, self.at = b"", 0


# ------------------------------------------------------------------------------------------- stepping over

_STEPS = 4096  # in one go: the engine remembers each step, in 300 bytes or so
_SHORT = 128  # instances with fewer bytes, arrays with fewer elements


def _any_of(texts: Iterable[bytes]) -> bytes:
    """A pattern for any of these byte strings of one length, b"" for none; a common beginning is looked at once."""
    by_first: dict[int, list[bytes]] = {}
    for text in texts:
        if not text:
            return b""
        by_first.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(bytes([first])) + _any_of(rests) for first, rests in sorted(by_first.items())]
    return branches[0] if len(branches) == 1 else b"(?:" + b"|".join(branches) + b")" if branches else b""


def _skip(count: int) -> bytes:
    return b".{%d}" % count if count else b""


def _unless(pattern: bytes) -> bytes:
    return b"(?!" + pattern + b")" if pattern else b""


def _by_count(rest: Callable[[int], bytes]) -> bytes:
    """Four bytes of count, and what has to follow each small one."""
    return b"\0\0\0(?:" + b"|".join(re.escape(bytes([count])) + rest(count) for count in range(_SHORT)) + b")"


@cache
def _contents(id_bytes: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Patterns for the rest of an instance, of an array of numbers, of an array of objects, and for a whole root."""

    def numbers(count: int) -> bytes:
        by_width = ((b"\x04\x08", 1), (b"\x05\x09", 2), (b"\x06\x0a", 4), (b"\x07\x0b", 8))
        return b"(?:" + b"|".join(b"[" + kinds + b"]" + _skip(count * width) for kinds, width in by_width) + b")"

    def identifiers(count: int) -> bytes:
        return _skip((count + 1) * id_bytes)  # the class of the array, then its elements

    roots = (re.escape(bytes([tag])) + _skip(ids * id_bytes + more) for tag, (ids, more) in _GC_ROOTS.items())
    return _by_count(_skip), _by_count(numbers), _by_count(identifiers), b"|".join(roots)


def _stepping_pattern(id_bytes: int, wanted: Iterable[bytes], entries: bytes) -> re.Pattern[bytes]:
    """
    Matches as many whole sub-records as are short and not wanted.

    Alternatives are told apart by their first byte and have fixed lengths, so that nothing is tried twice. No
    possessive repeat: after one, Python 3.11.0 to 3.11.4 go on from the wrong place (python/cpython#106052).
    `wanted` holds identifiers of objects; `entries`, unless b"", is a pattern for an instance that is wanted, from
    its identifier on.
    """
    instance, numbers, identifiers, roots = _contents(id_bytes)
    unwanted = _unless(_any_of(wanted))
    steps = (
        b"\x21" + unwanted + _unless(entries) + _skip(2 * id_bytes + 4) + instance,
        b"\x23" + unwanted + _skip(id_bytes + 4) + numbers,
        b"\x22" + unwanted + _skip(id_bytes + 4) + identifiers,
        roots,
    )
    return re.compile(b"(?s:" + b"|".join(steps) + b"){0,%d}" % _STEPS)


# --------------------------------------------------------------------------------------------------- the heap


@dataclass(frozen=True, slots=True)
class Instance:
    """An object that is no array: the values of its own fields, then of those of its superclasses."""

    class_id: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class References:
    """An array of objects: identifiers, one behind the other."""

    elements: bytes


@dataclass(frozen=True, slots=True)
class Primitives:
    """An array of numbers: its type, its bytes, and where they lie in the file."""

    kind: int
    data: bytes
    offset: int


HeapObject = Instance | References | Primitives


@dataclass(frozen=True, slots=True)
class ClassDump:
    """A class. Fields stand as in the file: identifier of the name, one byte of type, without a static's value."""

    super_id: bytes
    loader_id: bytes
    instance_bytes: int
    fields: bytes
    statics: bytes


@dataclass(slots=True)
class Heap:
    """
    What has been read of a dump so far; identifiers are bytes as they stand in the file.

    known      string id -> text, of the texts that were asked for
    loaded     class id -> string id of its name
    statics    (class, field) -> object, of the static fields that were asked for
    entries    instances that were kept for their class and hash
    absent     objects that a whole pass did not find
    """

    id_bytes: int
    known: dict[bytes, str] = field(default_factory=dict)
    loaded: dict[bytes, bytes] = field(default_factory=dict)
    classes: dict[bytes, ClassDump] = field(default_factory=dict)
    statics: dict[tuple[str, str], bytes] = field(default_factory=dict)
    objects: dict[bytes, HeapObject] = field(default_factory=dict)
    entries: list[bytes] = field(default_factory=list)
    absent: set[bytes] = field(default_factory=set)
    _layouts: dict[bytes, dict[str, slice]] = field(default_factory=dict)

    def known_class(self, class_id: bytes) -> str:
        """The class's name if it is one of the known texts, else ""."""
        return self.known.get(self.loaded.get(class_id, b""), "")

    def layout(self, class_id: bytes) -> dict[str, slice]:
        """Where in an instance the fields lie whose names are known."""
        layout = self._layouts.get(class_id)
        if layout is not None:
            return layout
        layout = {}
        offset = count = 0
        current = class_id
        for _ in range(_MAX_SUPERS):
            declared = self.classes.get(current)
            if declared is None:
                break  # java/lang/Object has no superclass; nor has one that is yet to come
            count += len(declared.fields)
            if count > _MAX_INSTANCE_FIELDS * (self.id_bytes + 1):
                break
            for at in range(0, len(declared.fields), self.id_bytes + 1):
                name = self.known.get(declared.fields[at : at + self.id_bytes])
                end = offset + VALUE_BYTES.get(declared.fields[at + self.id_bytes], self.id_bytes)
                if name is not None:
                    # The uppermost class wins: a program's own kind of Properties may have a field "map" too.
                    layout[name] = slice(offset, end)
                offset = end
            current = declared.super_id
        if not any(current):
            self._layouts[class_id] = layout
        return layout

    def forget_layouts(self) -> None:
        """To be called when more names are known."""
        self._layouts.clear()

    def fields(self, instance: Instance) -> dict[str, bytes]:
        """The values of the fields whose names are known."""
        return {name: instance.data[place] for name, place in self.layout(instance.class_id).items()}


# --------------------------------------------------------------------------------------------------- the walk


class HeapWalk:
    """
    Goes over one dump, as often as it is asked to.

    texts       names that the heap shall know
    statics     class -> names of the static fields whose objects the heap shall know
    follow      called when something was found; returns the objects that would lead on

    heap                  what has been read
    wanted                objects to be kept when a pass meets them; the walk adds to it what `follow` returns
    wanted_names, names   identifiers of names that later passes look for, and the names that they found
    """

    def __init__(
        self,
        id_bytes: int,
        header_bytes: int,
        *,
        texts: Collection[str],
        statics: Mapping[str, Collection[str]],
        follow: Callable[[Heap], set[bytes]],
    ) -> None:
        self.heap = Heap(id_bytes)
        self.wanted: set[bytes] = set()
        self.wanted_names: set[bytes] = set()
        self.names: dict[bytes, str] = {}
        self._id_bytes = id_bytes
        self._header_bytes = header_bytes
        self._texts = {text.encode(): text for text in texts}
        # The agent of JDK 8 and earlier writes class names with dots.
        self._texts |= {text.replace("/", ".").encode(): text for text in texts}
        self._longest_text = max(map(len, self._texts))
        self._statics = statics
        self._has_statics_of: set[bytes] = set()
        self._unread: set[bytes] = set()  # classes whose names came behind them in the first pass
        self._follow = follow
        self._entry_hash_at: dict[bytes, int] = {}  # class id -> where its instances have their hash
        self._hashes: frozenset[bytes] = frozenset()
        self._stream = Stream(())
        self._pattern = _stepping_pattern(id_bytes, (), b"")
        self._pattern_wants: frozenset[bytes] = frozenset()
        self._rounds = 0
        self._compiled = 0
        self._caught = False
        self._is_first = True
        self._heap_at = 0
        self._kept_bytes = 0
        self._layout_bytes = 0
        self._names_bytes = 0
        self._too_many = False
        self._nonsense: list[str] = []
        self._broken_segments = 0

    @property
    def lost(self) -> list[str]:
        """What the walk could not make sense of."""
        lost = list(self._nonsense)
        if self._broken_segments > len(lost):
            lost.append(f"{self._broken_segments - len(lost)} more heap segments make no sense somewhere.")
        if self._too_many:
            lost.append(
                f"Classes were left out: pmf keeps {_MAX_CLASSES}, with {_MAX_LAYOUT_BYTES // MIB} MiB of fields."
            )
        return lost

    def want_entries(self, hashes: frozenset[bytes]) -> bool:
        """Wants, for one pass, the entries of maps that have one of these hashes; False if no class has entries."""
        heap = self.heap
        step = heap.id_bytes + 1
        for class_id, declared in heap.classes.items():
            fields = declared.fields
            own = {heap.known.get(fields[at : at + heap.id_bytes]) for at in range(0, len(fields), step)}
            if {"hash", "key"} <= own and own & {"val", "value"} and len(self._entry_hash_at) < _MAX_ENTRY_CLASSES:
                place = heap.layout(class_id).get("hash", slice(_MAX_HASH_AT, 0))
                if place.start < _MAX_HASH_AT:
                    self._entry_hash_at[class_id] = place.start
        self._hashes = hashes
        return bool(self._entry_hash_at)

    def go(self, chunks: Iterable[bytes]) -> None:
        """
        One pass. The first goes to the end of the file; later ones end where nothing is wanted any more.

        What a whole pass was looking for and has not found is absent.
        """
        self._stream = stream = Stream(chunks)
        before = set(self.wanted)
        self._compile()
        only_objects = not self._is_first and not self.wanted_names
        if stream.skip(self._heap_at if only_objects and self._heap_at else self._header_bytes):
            self._records()
        self._unread = set()
        self._entry_hash_at = {}
        if self._is_first:
            stream.drain()
            self._is_first = False
            self.heap.forget_layouts()
            self._unread = {
                class_id
                for class_id in self.heap.classes.keys() - self._has_statics_of
                if self.heap.known_class(class_id) in self._statics
            }
        self.heap.absent |= before - self.heap.objects.keys()
        self.wanted = self._follow(self.heap)

    def _is_done(self) -> bool:
        return not (self._is_first or self.wanted or self.wanted_names or self._unread or self._entry_hash_at)

    def _records(self) -> None:
        stream = self._stream
        while not self._is_done() and stream.fill(_RECORD_HEAD_BYTES):
            data, at = stream.data, stream.at
            tag, length = data[at], int.from_bytes(data[at + 5 : at + 9], "big")
            if tag not in _RECORD_TAGS:
                return
            if tag in (_HEAP_DUMP, _HEAP_DUMP_SEGMENT):
                self._heap_at = self._heap_at or stream.position
                stream.at += _RECORD_HEAD_BYTES
                self._segment(stream.position + length)
                continue
            stream.at += _RECORD_HEAD_BYTES
            if tag == _UTF8:
                self._string(length)
            elif tag == _LOAD_CLASS and length == 8 + 2 * self._id_bytes and self._is_first and stream.fill(length):
                self._load_class(stream.data[stream.at : stream.at + length])
            if not stream.skip(length):
                return

    def _string(self, length: int) -> None:
        stream, width = self._stream, self._id_bytes
        if not stream.fill(min(length, width + _MAX_NAME_BYTES)):
            return
        at = stream.at
        string_id = stream.data[at : at + width]
        if self._is_first:
            if length <= width + self._longest_text:
                text = self._texts.get(stream.data[at + width : at + length])
                if text is not None and len(self.heap.known) < _MAX_KNOWN:
                    self.heap.known[string_id] = text
        elif string_id in self.wanted_names and length <= width + _MAX_NAME_BYTES:
            self._names_bytes += length
            if self._names_bytes <= _MAX_NAMES_BYTES:
                self.names[string_id] = decode_modified_utf8(stream.data[at + width : at + length])
                self.wanted_names.remove(string_id)

    def _load_class(self, record: bytes) -> None:
        width = self._id_bytes
        if len(self.heap.loaded) < _MAX_CLASSES:
            self.heap.loaded[record[4 : 4 + width]] = record[8 + width :]
        else:
            self._too_many = True

    # ---- a heap segment

    def _segment(self, end: int) -> None:
        """Goes over the sub-records of one segment, which ends at this offset."""
        stream = self._stream
        start = stream.position
        try:
            while (left := end - stream.position) > 0 and stream.fill(1):
                self._window(left)
                if stream.available and stream.position < end:
                    self._step(end)
        except _Nonsense as why:
            if self._is_first:
                self._broken_segments += 1
                if len(self._nonsense) < _MAX_SENTENCES:
                    says = f"The heap segment at byte {start} makes no sense from byte {stream.position} on: {why}."
                    self._nonsense.append(says)
        stream.skip(end - stream.position)

    def _window(self, left: int) -> None:
        """Goes over what the buffer holds whole of the segment."""
        stream = self._stream
        data, start = stream.data, stream.at
        end = min(len(data), start + min(left, _WINDOW_BYTES))
        try:
            while stream.at < end:
                step = self._pattern.match(data, stream.at, end)
                at = step.end() if step else stream.at
                stream.at = at
                size = self._size(data, at, end) if at < end else 0
                if not size or at + size > end:
                    break
                self._on_record(data, at)
                stream.at += size
        finally:
            if self._caught:
                self._go_on(data, start, stream.at)

    def _go_on(self, data: bytes, start: int, end: int) -> None:
        """Follows what was caught to more, as far as that lies in this stretch of whole sub-records."""
        places: dict[bytes, int] = {}
        while self._caught and self._rounds < _MAX_ROUNDS:
            self._caught = False
            self._rounds += 1
            self.wanted |= self._follow(self.heap)
            if self.wanted and not places:
                places = self._places(data, start, end)
            for at in sorted(places[object_id] for object_id in self.wanted if object_id in places):
                self._on_record(data, at)
        if not self.wanted <= self._pattern_wants and self._compiled < _MAX_COMPILED:
            self._compile()

    def _places(self, data: bytes, start: int, end: int) -> dict[bytes, int]:
        """Where the objects are in a stretch of whole sub-records."""
        places: dict[bytes, int] = {}
        while start < end:
            if data[start] in (_INSTANCE, _REFERENCES, _PRIMITIVES):
                places.setdefault(data[start + 1 : start + 1 + self._id_bytes], start)
            start += self._size(data, start, end)
        return places

    def _step(self, end: int) -> None:
        """Brings a sub-record that the buffer holds in part into it; goes over one that is too large for that."""
        stream = self._stream
        left = end - stream.position
        look = 64
        while not (size := self._size(stream.data, stream.at, stream.at + min(left, stream.available))):
            if stream.available >= left:
                raise _Nonsense("a record in it reaches over its end")
            if not stream.fill(min(look, left)):
                stream.skip(left)  # the file ends here
                return
            look *= 4
        if size > left:
            raise _Nonsense("a record in it reaches over its end")
        if size <= _BUFFER_BYTES or stream.data[stream.at] == _CLASS:
            if not stream.fill(size):
                stream.skip(left)
            return
        if stream.fill(_MAX_KEPT_BYTES + 64):
            self._on_record(stream.data, stream.at)
        stream.skip(size)

    def _size(self, data: bytes, at: int, end: int) -> int:
        """How many bytes the sub-record at `at` has; 0 when the bytes before `end` do not tell."""
        tag, width = data[at], self._id_bytes
        if tag in _GC_ROOTS:
            ids, more = _GC_ROOTS[tag]
            return 1 + ids * width + more
        if tag == _CLASS:
            return self._class_size(data, at, end)
        if tag not in (_INSTANCE, _REFERENCES, _PRIMITIVES):
            raise _Nonsense(f"no record has the tag {tag:#04x} that stands there")
        # Identifier, number of a stack trace; then class and length, or length and class, or length and type.
        count_at = at + 5 + width + (width if tag == _INSTANCE else 0)
        content = count_at + 4 + (width if tag == _REFERENCES else tag == _PRIMITIVES)
        if content > end:
            return 0
        count = int.from_bytes(data[count_at : count_at + 4], "big")
        if tag == _PRIMITIVES:
            count *= self._value_bytes(data[content - 1])
        elif tag == _REFERENCES:
            count *= width
        return content - at + count

    def _value_bytes(self, kind: int) -> int:
        width = self._id_bytes if kind == REFERENCE else VALUE_BYTES.get(kind)
        if width is None:
            raise _Nonsense(f"a value in it has the unknown type {kind}")
        return width

    def _class_size(self, data: bytes, at: int, end: int) -> int:
        width = self._id_bytes
        start, at = at, at + 1 + 7 * width + 8
        for index_bytes in (2, width):  # the constant pool, which no JVM fills in; static fields
            if at + 2 > end:
                return 0
            count = data[at] << 8 | data[at + 1]
            at += 2
            for _ in range(count):
                if at + index_bytes >= end:
                    return 0
                at += index_bytes + 1 + self._value_bytes(data[at + index_bytes])
        if at + 2 > end:
            return 0
        return at + 2 + (data[at] << 8 | data[at + 1]) * (width + 1) - start

    def _on_record(self, data: bytes, at: int) -> None:
        """Keeps what is wanted of a sub-record that the buffer holds whole, or in its first part if it is large."""
        tag = data[at]
        if tag == _CLASS:
            self._on_class(data, at)
            return
        width = self._id_bytes
        object_id = data[at + 1 : at + 1 + width]
        if tag not in (_INSTANCE, _REFERENCES, _PRIMITIVES) or object_id in self.heap.objects:
            return
        is_entry = tag == _INSTANCE and bool(self._entry_hash_at) and self._is_entry(data, at)
        if not is_entry and object_id not in self.wanted:
            return
        size = min(self._size(data, at, len(data)), _MAX_KEPT_BYTES)
        self._kept_bytes += size
        if self._kept_bytes > _MAX_KEPT_IN_ALL_BYTES:
            return
        if is_entry:
            self.heap.entries.append(object_id)
        record = data[at : at + size]
        if tag == _INSTANCE:
            kept: HeapObject = Instance(record[5 + width : 5 + 2 * width], record[9 + 2 * width :])
        elif tag == _REFERENCES:
            kept = References(record[9 + 2 * width :])
        else:
            offset = self._stream.position - self._stream.at + at + 10 + width
            kept = Primitives(record[9 + width], record[10 + width :], offset)
        self.heap.objects[object_id] = kept
        self.wanted.discard(object_id)
        self._caught = True

    def _is_entry(self, data: bytes, at: int) -> bool:
        width = self._id_bytes
        hash_at = self._entry_hash_at.get(data[at + 5 + width : at + 5 + 2 * width])
        if hash_at is None or len(self.heap.entries) >= _MAX_ENTRIES:
            return False
        place = at + 9 + 2 * width + hash_at
        return data[place : place + 4] in self._hashes

    def _on_class(self, data: bytes, at: int) -> None:
        width, heap = self._id_bytes, self.heap
        class_id = data[at + 1 : at + 1 + width]
        # A class whose name came too late in the first pass is read again in the second.
        wanted = self._statics.get(heap.known_class(class_id), ())
        if not (self._is_first and class_id not in heap.classes) and (not wanted or class_id in self._has_statics_of):
            return
        at += 5 + width
        super_id, loader_id = data[at : at + width], data[at + width : at + 2 * width]
        at += 6 * width
        instance_bytes = int.from_bytes(data[at : at + 4], "big")
        at += 4
        constants = data[at] << 8 | data[at + 1]
        at += 2
        for _ in range(constants):
            at += 3 + self._value_bytes(data[at + 2])
        count = data[at] << 8 | data[at + 1]
        at += 2
        statics: list[bytes] = []
        for _ in range(count):
            value_at = at + width + 1
            statics.append(data[at:value_at])
            end = value_at + self._value_bytes(data[at + width])
            name = heap.known.get(data[at : at + width])
            if name is not None and name in wanted and data[at + width] == REFERENCE:
                self._on_static(heap.known_class(class_id), name, data[value_at:end], is_boot=not any(loader_id))
            at = end
        if wanted:
            self._has_statics_of.add(class_id)
            self._unread.discard(class_id)
        count = data[at] << 8 | data[at + 1]
        fields = data[at + 2 : at + 2 + count * (width + 1)]
        if class_id in heap.classes:
            return
        for kind in fields[width :: width + 1]:
            self._value_bytes(kind)
        self._layout_bytes += len(fields) + len(statics) * (width + 1)
        if len(heap.classes) < _MAX_CLASSES and self._layout_bytes <= _MAX_LAYOUT_BYTES:
            heap.classes[class_id] = ClassDump(super_id, loader_id, instance_bytes, fields, b"".join(statics))
        else:
            self._too_many = True

    def _on_static(self, class_name: str, name: str, value: bytes, *, is_boot: bool) -> None:
        # A program may load a class of the same name; the JDK's own has the boot loader.
        if any(value) and (is_boot or (class_name, name) not in self.heap.statics):
            self.heap.statics[class_name, name] = value
            self._caught = True

    def _compile(self) -> None:
        self._compiled += 1
        by_place: dict[int, list[bytes]] = {}
        for class_id, hash_at in self._entry_hash_at.items():
            by_place.setdefault(hash_at, []).append(class_id)
        hashes = _any_of(self._hashes)
        branches = [_any_of(ids) + b".{%d}" % (4 + hash_at) + hashes for hash_at, ids in by_place.items()]
        entries = b".{%d}(?:" % (self._id_bytes + 4) + b"|".join(branches) + b")" if branches else b""
        self._pattern_wants = frozenset(self.wanted)
        self._pattern = _stepping_pattern(self._id_bytes, self.wanted, entries)
