"""
What a JVM heap dump says of the JVM that wrote it, and of the classes that it had loaded.

The header of an hprof file holds a version text, the size of an identifier and a time, and nothing else about the
JVM. The rest stands in the heap, like any other object: the system properties. They are followed from static fields
(`Found`), object by object, and never guessed from strings that lie about. All of it is what the heap states, none
of it is proof: a program can set its own system properties.

Of every class the dump gives the names and types of its fields. HotSpot writes them in declared order (JDK 25) or
exactly backwards (JDK 17). All fields of class and array types are references: String and Integer are not told
apart. Fields in angle brackets (<resolved_references>) are HotSpot's own.

Sources: as in hprof_walk; fields of System, VM, VersionProps, Properties, Hashtable, HashMap, ConcurrentHashMap,
MapN and String in OpenJDK 6 to 25.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from pmforensics.errors import FormatError
from pmforensics.formats.argv import redact_argv
from pmforensics.formats.classfile import MIB, ClassLayout, JavaType
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.hprof_walk import (
    BYTE,
    CHAR,
    MAX_NAMES,
    Heap,
    HeapObject,
    HeapWalk,
    Instance,
    Primitives,
    References,
    Stream,
)
from pmforensics.formats.jvm_settings import redact_command_line
from pmforensics.formats.structure import HprofCheck, Shape, Structure


class NotHprof(FormatError):
    """The bytes do not begin as a heap dump does."""

    code = "not-hprof"


class BrokenHprof(FormatError):
    """The header of a heap dump is impossible or cut off."""

    code = "broken-hprof"


class Found(Enum):
    """
    How a statement about the JVM was found, most telling first.

    SAVED_PROPERTIES   the copy of the system properties that the JDK's VM class keeps from the start
    SYSTEM_PROPERTIES  what System.getProperties() returned, the program's own changes included
    CONSTANT           a constant of the JDK's version class
    MAP_ENTRY          an entry of some map, since no static field led to the system properties: weak
    """

    SAVED_PROPERTIES = "the system properties as the JVM saved them at its start"
    SYSTEM_PROPERTIES = "java.lang.System.props"
    CONSTANT = "a constant of the JDK's version class"
    MAP_ENTRY = "an entry of some map in the heap"


@dataclass(frozen=True, slots=True)
class JvmStatement:
    """
    One thing that the heap states about its JVM.

    name     of a system property: java.version, java.vm.version, os.name, ...
    value    without secrets; of sun.java.command the main class or jar only
    offset   where the characters lie in the dump (unpacked)
    """

    name: str
    value: str
    found: Found
    offset: int


@dataclass(frozen=True, slots=True)
class DumpedField:
    """One field of a class, as the dump describes it."""

    name: str
    type: JavaType
    is_static: bool = False


@dataclass(frozen=True, slots=True)
class DumpedClass:
    """
    One class of the dump; classes of arrays are left out.

    name, super_name   with slashes, as in class files; super_name is "" for java/lang/Object and where unknown
    id, loader_id      object identifiers; loader 0 is the boot loader
    fields             the class's own, static ones last, in the dump's order, without HotSpot's internal ones;
                       None when the dump names the class and holds no layout of it
    instance_bytes     size of an instance, as the dump counts it
    """

    name: str
    super_name: str
    id: int
    loader_id: int
    fields: tuple[DumpedField, ...] | None
    instance_bytes: int = 0

    @property
    def is_hidden(self) -> bool:
        """Whether the JVM made it up at run time (lambdas, method handles), so that no jar holds it."""
        return _HIDDEN.search(self.name) is not None


@dataclass(frozen=True, slots=True)
class HprofSummary:
    """
    What one heap dump says.

    structure   whole, cut or unreadable, by its records
    jvm         one statement for each property that was found, by name
    classes     in the order in which the dump names them
    lost        sentences: what could not be read and why
    conflicts   sentences: where two places in the heap disagree
    """

    version: str
    id_bytes: int
    dumped_at: datetime | None
    structure: Structure
    jvm: tuple[JvmStatement, ...]
    classes: tuple[DumpedClass, ...]
    lost: tuple[str, ...]
    conflicts: tuple[str, ...]

    @property
    def says(self) -> dict[str, str]:
        """The statements about the JVM as name and value."""
        return {statement.name: statement.value for statement in self.jvm}


_MAGIC = b"JAVA PROFILE 1.0."
_MAX_VERSION_BYTES = 24
_MAX_HEADER_BYTES = _MAX_VERSION_BYTES + 1 + 12  # NUL, size of identifiers and time
_GZIP_MAGIC = b"\x1f\x8b"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ_BYTES = MIB
_MAX_PASSES_BACK = 12  # HotSpot's order takes one or two; one where all is backwards, six

_HIDDEN = re.compile(r"(?:[+/.]0x[0-9a-f]+|/[0-9]+)\Z")
_TYPES = {
    2: JavaType.REFERENCE,
    4: JavaType.BOOLEAN,
    5: JavaType.CHAR,
    6: JavaType.FLOAT,
    7: JavaType.DOUBLE,
    8: JavaType.BYTE,
    9: JavaType.SHORT,
    10: JavaType.INT,
    11: JavaType.LONG,
}


def iter_chunks(read: ReadAt, size: int) -> Iterator[bytes]:
    """The first `size` bytes behind `read`, in order, as `read_hprof` wants them."""
    at = 0
    while at < size and (chunk := read(at, min(_READ_BYTES, size - at))):
        yield chunk
        at += len(chunk)


def read_hprof(open_chunks: Callable[[], Iterable[bytes]]) -> HprofSummary:
    """
    What the heap dump says whose bytes `open_chunks` gives: unpacked, in order, from the start at each call.

    It is called three to five times for most dumps, and never more than 19 times. Memory: a few MiB, and what the
    classes and their names take. Unpacking, with a bound on it, is the caller's; an iterator that ends early is a
    dump that was cut.

    Raises NotHprof, BrokenHprof; passes on what the iterator raises.
    """
    check = HprofCheck()

    def checked() -> Iterator[bytes]:
        for chunk in open_chunks():
            check.feed(chunk)
            yield chunk

    version, id_bytes, dumped_at, header_bytes = _header(open_chunks())
    properties = _Properties()
    walk = HeapWalk(id_bytes, header_bytes, texts=_KNOWN_TEXTS, statics=_STATICS, follow=properties.follow)
    walk.go(checked())
    structure = check.finish()
    walk.wanted_names, too_many_names = _names_of(walk.heap)
    walk.go(open_chunks())
    nameless = len(walk.wanted_names)
    walk.wanted_names = set()
    _go_back(walk, open_chunks, _MAX_PASSES_BACK)
    if not properties.is_telling and walk.want_entries(_KEY_HASHES):
        walk.go(open_chunks())
        _go_back(walk, open_chunks, 3)  # entries lead to strings, and these to arrays

    lost = [structure.says] if structure.shape is not Shape.WHOLE else []
    lost += walk.lost
    classes = _classes(walk)
    if nameless or too_many_names:
        lost.append(f"Names of classes and fields that are not in the dump, or too many or too long: {nameless}.")
    jvm, conflicts, unsure = properties.statements()
    lost += unsure
    if not properties.is_telling:
        why = "the objects that hold the system properties are not in the dump"
        if not walk.heap.statics:
            why = "no static field leads to the system properties"
        lost.append(f"The heap does not state which JVM wrote it: {why}.")
    elif walk.wanted:
        lost.append(f"{len(walk.wanted)} objects of the system properties lie too far apart in the dump.")
    return HprofSummary(version, id_bytes, dumped_at, structure, jvm, classes, tuple(lost), tuple(conflicts))


def _go_back(walk: HeapWalk, open_chunks: Callable[[], Iterable[bytes]], limit: int) -> None:
    """More passes, for what lies before the place in the dump where it turned out to be wanted."""
    for _ in range(limit):
        if not walk.wanted:
            return
        walk.go(open_chunks())


def _header(chunks: Iterable[bytes]) -> tuple[str, int, datetime | None, int]:
    """Version, size of identifiers, time, and the size of the header."""
    stream = Stream(chunks)
    stream.fill(_MAX_HEADER_BYTES)
    data = stream.data[:_MAX_HEADER_BYTES]
    if not data.startswith(_MAGIC):
        if data.startswith(_GZIP_MAGIC):
            raise NotHprof("The heap dump is gzip-compressed; it can only be read unpacked.")
        if data and _MAGIC.startswith(data):
            raise BrokenHprof(f"The hprof header is cut after {len(data)} bytes.")
        raise NotHprof("The bytes do not begin with the hprof header.")
    version, nul, rest = data.partition(b"\0")
    if len(version) > _MAX_VERSION_BYTES:
        raise NotHprof("The version in the hprof header has no end.")
    if not nul or len(rest) < 12:
        raise BrokenHprof(f"The hprof header is cut after {len(data)} bytes.")
    id_bytes = int.from_bytes(rest[:4], "big")
    if id_bytes not in (4, 8):
        raise BrokenHprof(f"The hprof header gives an identifier {id_bytes} bytes, neither 4 nor 8.")
    try:
        dumped_at = _EPOCH + timedelta(milliseconds=int.from_bytes(rest[4:12], "big"))
    except OverflowError:
        dumped_at = None
    return version.decode("latin-1"), id_bytes, dumped_at, len(version) + 1 + 12


# ------------------------------------------------------------------------------------------ system properties

# Values of other properties are never read: they may be secrets.
_PROPERTIES = frozenset((
    "java.class.path", "java.class.version", "java.home", "java.runtime.name", "java.runtime.version",
    "java.specification.version", "java.vendor", "java.vendor.version", "java.version", "java.version.date",
    "java.vm.info", "java.vm.name", "java.vm.vendor", "java.vm.version", "jdk.debug", "os.arch", "os.name",
    "os.version", "sun.arch.data.model", "sun.java.command", "sun.management.compiler",
))  # fmt: skip
_TELLING = ("java.version", "java.runtime.version", "java.vm.version")  # with one of these the JVM is named

_SAVED = "savedProps"
_CONSTANTS = {
    "java_version": "java.version",
    "java_version_date": "java.version.date",
    "java_runtime_name": "java.runtime.name",
    "java_runtime_version": "java.runtime.version",
    "VENDOR": "java.vendor",
    "VENDOR_VERSION": "java.vendor.version",
}
_STATICS: dict[str, tuple[str, ...]] = {
    "java/lang/System": ("props", "systemProperties"),  # the latter in OpenJ9
    "jdk/internal/misc/VM": (_SAVED,),
    "sun/misc/VM": (_SAVED,),
    "java/lang/VersionProps": tuple(_CONSTANTS),
    "sun/misc/Version": tuple(_CONSTANTS),
}
_IMMUTABLE_MAP = "java/util/ImmutableCollections$MapN"  # keys and values side by side in one array; JDK 9 to 11
_FIELDS = ("map", "defaults", "table", "hash", "key", "value", "val", "next", "first", "coder", "offset", "count")
_STATIC_FIELDS = (name for names in _STATICS.values() for name in names)
_KNOWN_TEXTS = frozenset((_IMMUTABLE_MAP, *_FIELDS, *_STATICS, *_STATIC_FIELDS))

_MAX_VALUE_CHARS = 4096
_MAX_ENTRIES = 8192  # of all maps; system properties are some 60, a few hundred with many -D
_MAX_MAPS = 16  # a Properties has a map and defaults, which are a Properties
_MAX_WANTED = 1024  # objects looked for at the same time


def _hashes(text: str) -> Iterator[bytes]:
    """The field `hash` of a map's entry with this key, in Hashtable, HashMap and ConcurrentHashMap."""
    plain = 0
    for char in text:  # String.hashCode() is fixed by its documentation
        plain = (plain * 31 + ord(char)) & 0xFFFFFFFF
    spread = plain ^ (plain >> 16)
    for value in (plain, spread, spread & 0x7FFFFFFF):
        yield value.to_bytes(4, "big")


_KEY_HASHES = frozenset(value for name in _PROPERTIES for value in _hashes(name))


class _Properties:
    """Follows objects from static fields to texts, as far as they have been read."""

    def __init__(self) -> None:
        self._heap = Heap(8)
        self._missing: set[bytes] = set()
        self._entries_left = 0
        self._stated: dict[str, dict[Found, set[tuple[str, int]]]] = {}

    @property
    def is_telling(self) -> bool:
        """Whether the JVM is named."""
        return not self._stated.keys().isdisjoint(_TELLING)

    def follow(self, heap: Heap) -> set[bytes]:
        """Reads all that can be read now; returns the objects that would lead on."""
        self._heap = heap
        self._missing = set()
        self._stated = {}
        self._entries_left = _MAX_ENTRIES
        for (_, name), object_id in heap.statics.items():
            if name in _CONSTANTS:
                self._state(_CONSTANTS[name], Found.CONSTANT, object_id)
                continue
            found = Found.SAVED_PROPERTIES if name == _SAVED else Found.SYSTEM_PROPERTIES
            seen: set[str] = set()
            for key, value in self._pairs(object_id):
                text = self._text(key)
                if text and text[0] in _PROPERTIES and text[0] not in seen:
                    seen.add(text[0])
                    self._state(text[0], found, value)
        for key, value in self._entries(list(heap.entries), follow_next=False):
            if (text := self._text(key)) and text[0] in _PROPERTIES:
                self._state(text[0], Found.MAP_ENTRY, value)
        return self._missing

    def statements(self) -> tuple[tuple[JvmStatement, ...], list[str], list[str]]:
        """One statement for each property; sentences where places disagree; sentences on what was not decided."""
        jvm: list[JvmStatement] = []
        conflicts: list[str] = []
        lost: list[str] = []
        for name, by_found in sorted(self._stated.items()):
            shown = {
                found: {_without_secrets(name, text): offset for text, offset in sorted(texts)}
                for found, texts in by_found.items()
            }
            best = min(shown, key=list(Found).index)
            if len(shown[best]) > 1:
                lost.append(f"{len(shown[best])} maps in the heap hold a {name}, and they differ.")
                continue
            value, offset = next(iter(shown[best].items()))
            jvm.append(JvmStatement(name, value, best, offset))
            for found, values in shown.items():
                conflicts += [
                    f"{name} is {value!r} in {best.value} and {other!r} in {found.value}."
                    for other in values
                    if other != value
                ]
        return tuple(jvm), conflicts, lost

    def _state(self, name: str, found: Found, text_id: bytes) -> None:
        text = self._text(text_id)
        if text and text[0]:
            self._stated.setdefault(name, {}).setdefault(found, set()).add(text)

    def _get(self, object_id: bytes) -> HeapObject | None:
        if not any(object_id):
            return None
        found = self._heap.objects.get(object_id)
        if found is None and object_id not in self._heap.absent and len(self._missing) < _MAX_WANTED:
            self._missing.add(object_id)
        return found

    def _pairs(self, map_id: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each entry of a Properties, Hashtable, HashMap, ConcurrentHashMap or MapN."""
        holders = [map_id]
        for holder_id in holders:  # which grows
            holder = self._get(holder_id)
            if not isinstance(holder, Instance):
                continue
            fields = self._heap.fields(holder)
            # Since JDK 9 a Properties keeps its entries in a map of its own. It looks into its defaults last.
            if len(holders) < _MAX_MAPS:
                holders += [fields[name] for name in ("map", "defaults") if name in fields]
            table = self._get(fields.get("table", b""))
            if not isinstance(table, References):
                continue
            width = self._heap.id_bytes
            length = min(len(table.elements), 2 * _MAX_ENTRIES * width)
            elements = [table.elements[at : at + width] for at in range(0, length, width)]
            if self._heap.known_class(holder.class_id) == _IMMUTABLE_MAP:
                for pair in zip(elements[::2], elements[1::2], strict=False):
                    if self._may_go_on():
                        yield pair
            else:
                yield from self._entries(elements, follow_next=True)

    def _entries(self, nodes: list[bytes], *, follow_next: bool) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of those entries of a hash table whose hash is that of a property that is asked for."""
        seen: set[bytes] = set()
        for node_id in nodes:  # which grows
            if node_id in seen or not any(node_id):
                continue
            if not self._may_go_on():
                return
            seen.add(node_id)
            node = self._get(node_id)
            if not isinstance(node, Instance):
                continue
            fields = self._heap.fields(node)
            if follow_next:  # `first` is where a crowded bucket of a ConcurrentHashMap begins
                nodes += [fields[name] for name in ("next", "first") if name in fields]
            value = fields.get("val", fields.get("value"))
            if value is not None and "key" in fields and fields.get("hash") in _KEY_HASHES:
                yield fields["key"], value

    def _may_go_on(self) -> bool:
        self._entries_left -= 1
        return self._entries_left >= 0

    def _text(self, string_id: bytes) -> tuple[str, int] | None:
        """The text of a String, and where its characters lie in the dump."""
        string = self._get(string_id)
        if not isinstance(string, Instance):
            return None
        fields = self._heap.fields(string)
        array = self._get(fields.get("value", b""))
        if not isinstance(array, Primitives):
            return None
        data, offset = array.data, array.offset
        if array.kind == CHAR:
            encoding = "utf-16-be"
            if "offset" in fields and "count" in fields:  # until JDK 6 strings share one array
                start = 2 * int.from_bytes(fields["offset"], "big")
                data = data[start : start + 2 * int.from_bytes(fields["count"], "big")]
                offset += start
        elif array.kind == BYTE:
            # Two bytes of a character stand as in memory. Machines that are big-endian are not told apart.
            encoding = "utf-16-le" if fields.get("coder") == b"\1" else "latin-1"
        else:
            return None
        text = data[: 4 * _MAX_VALUE_CHARS].decode(encoding, "replace")
        return (text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]} (cut)"), offset


def _without_secrets(name: str, value: str) -> str:
    if name == "sun.java.command":
        line = redact_command_line("java_command: " + " ".join(value.split()))
        return line.partition(": ")[2].rstrip("\n")
    return redact_argv([value])[0][0]


# ---------------------------------------------------------------------------------------------------- classes


def _names_of(heap: Heap) -> tuple[set[bytes], bool]:
    """Identifiers of the names of all classes and fields, and whether they were too many."""
    names = set(heap.loaded.values())
    step = heap.id_bytes + 1
    for declared in heap.classes.values():
        for fields in (declared.fields, declared.statics):
            names.update([fields[at : at + heap.id_bytes] for at in range(0, len(fields), step)])
        if len(names) > MAX_NAMES:
            return names, True
    return names, False


def _classes(walk: HeapWalk) -> tuple[DumpedClass, ...]:
    heap, names = walk.heap, walk.names
    width = heap.id_bytes
    same: dict[DumpedField, DumpedField] = {}  # most fields are called as others are

    def fields_of(raw: bytes, *, is_static: bool) -> list[DumpedField] | None:
        fields: list[DumpedField] = []
        for at in range(0, len(raw), width + 1):
            name = names.get(raw[at : at + width])
            if name is None:
                return None
            if not (is_static and name.startswith("<")):
                declared = DumpedField(name, _TYPES[raw[at + width]], is_static)
                fields.append(same.setdefault(declared, declared))
        return fields

    def name_of(class_id: bytes) -> str:
        name = names.get(heap.loaded.get(class_id, b""), "")
        # The agent of JDK 8 and earlier writes dots; so does HotSpot, in hidden classes only.
        return name if "/" in name or _HIDDEN.search(name) else name.replace(".", "/")

    classes: list[DumpedClass] = []
    for class_id in heap.loaded:
        name = name_of(class_id)
        if not name or name.startswith("[") or name.endswith("[]"):
            continue
        identifier = int.from_bytes(class_id, "big")
        declared = heap.classes.get(class_id)
        if declared is None:
            classes.append(DumpedClass(name, "", identifier, 0, None))
            continue
        own = fields_of(declared.fields, is_static=False)
        static = fields_of(declared.statics, is_static=True)
        fields = None if own is None or static is None else (*own, *static)
        super_name = name_of(declared.super_id)
        loader_id = int.from_bytes(declared.loader_id, "big")
        classes.append(DumpedClass(name, super_name, identifier, loader_id, fields, declared.instance_bytes))
    return tuple(classes)


# ------------------------------------------------------------------------------------------------- comparison


class LayoutVerdict(Enum):
    """How a class of a dump stands to a class file of the same name."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LayoutComparison:
    """
    A class of a dump beside a class file.

    only_dumped, only_compiled   fields that one has and the other has not, as "static int x"
    retyped                      fields of both whose type differs, as "x: int in the dump, long in the class file"
    is_reordered                 same fields, neither in declared order nor exactly backwards: another source, or
                                 a JVM that orders them in its own way
    says                         one sentence
    """

    verdict: LayoutVerdict
    says: str
    only_dumped: tuple[str, ...] = ()
    only_compiled: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    is_reordered: bool = False


_Declared = tuple[bool, str, JavaType]


def compare_layout(dumped: DumpedClass, compiled: ClassLayout) -> LayoutComparison:
    """
    Whether the class in the dump has the superclass and the fields that the class file declares.

    SAME proves no equal build: methods do not count, and neither does which class or array type a reference has.
    DIFFERS proves another class file, or an agent that changed the class while it was loaded.
    """
    if dumped.name != compiled.name:
        says = f"These are two classes, {dumped.name} and {compiled.name}."
        return LayoutComparison(LayoutVerdict.UNKNOWN, says)
    if dumped.fields is None:
        says = f"The dump names {dumped.name} and does not hold its fields."
        return LayoutComparison(LayoutVerdict.UNKNOWN, says)
    here: list[_Declared] = [(field.is_static, field.name, field.type) for field in dumped.fields]
    there: list[_Declared] = [(field.is_static, field.name, field.type) for field in compiled.fields]
    only_here, only_there = Counter(here) - Counter(there), Counter(there) - Counter(here)
    retyped: list[str] = []
    for is_static, name, kind in list(only_here):
        others = [other for other in only_there if other[:2] == (is_static, name)]
        if others and sum(other[:2] == (is_static, name) for other in only_here) == len(others) == 1:
            retyped.append(f"{name}: {kind.value} in the dump, {others[0][2].value} in the class file")
            del only_here[is_static, name, kind], only_there[others[0]]
    only_dumped, only_compiled = (
        tuple(f"{'static ' * is_static}{kind.value} {name}" for is_static, name, kind in only.elements())
        for only in (only_here, only_there)
    )
    differences: list[str] = []
    if dumped.super_name and dumped.super_name != compiled.super_name:
        differences.append(f"it extends {dumped.super_name} in the dump, {compiled.super_name} in the class file")
    if only_dumped:
        differences.append(f"only in the dump: {_listed(only_dumped)}")
    if only_compiled:
        differences.append(f"only in the class file: {_listed(only_compiled)}")
    if retyped:
        differences.append(_listed(tuple(retyped)))
    if differences:
        says = f"{dumped.name} differs: {'; '.join(differences)}."
        if only_dumped and len(differences) == 1:
            says += " An agent may have added that while the class was loaded."
        return LayoutComparison(LayoutVerdict.DIFFERS, says, only_dumped, only_compiled, tuple(retyped))
    is_reordered = any(
        order not in (declared, declared[::-1])
        for order, declared in (
            ([field for field in here if field[0] is is_static], [field for field in there if field[0] is is_static])
            for is_static in (False, True)
        )
    )
    says = f"{dumped.name} has the {len(here)} fields of the class file"
    says += ", in another order." if is_reordered else "."
    return LayoutComparison(LayoutVerdict.SAME, says, is_reordered=is_reordered)


_MAX_LISTED = 20


def _listed(texts: tuple[str, ...]) -> str:
    more = f" and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return ", ".join(texts[:_MAX_LISTED]) + more
