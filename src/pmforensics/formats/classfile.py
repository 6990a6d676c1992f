"""
The fields that compiled Java classes declare: a class file, and all class files of a jar.

A class file is read up to the end of its fields; methods and attributes behind them say nothing about a layout. A jar
is read through zipfile, with its directory, every entry and the sum of them bounded. Jars inside a jar
(BOOT-INF/lib of Spring Boot, WEB-INF/lib) are opened one level deep.

Sources: The Java Virtual Machine Specification, chapter 4; the JAR File Specification ("Multi-release JAR files");
PKWARE's APPNOTE 6.3.10 for the local file header.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from pmforensics.errors import FormatError

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

MIB = 1 << 20


class NotClassFile(FormatError):
    """The bytes do not begin as a class file does."""

    code = "not-class-file"


class BrokenClassFile(FormatError):
    """A class file whose contents are impossible or cut off."""

    code = "broken-class-file"


class NotJar(FormatError):
    """No zip archive, or one whose directory is beyond every bound."""

    code = "not-jar"


class JavaType(Enum):
    """What a field holds. Every class and every array is REFERENCE: a heap dump does not tell them apart."""

    BOOLEAN = "boolean"
    BYTE = "byte"
    CHAR = "char"
    SHORT = "short"
    INT = "int"
    LONG = "long"
    FLOAT = "float"
    DOUBLE = "double"
    REFERENCE = "reference"


_DESCRIPTOR_TYPES = {
    "Z": JavaType.BOOLEAN,
    "B": JavaType.BYTE,
    "C": JavaType.CHAR,
    "S": JavaType.SHORT,
    "I": JavaType.INT,
    "J": JavaType.LONG,
    "F": JavaType.FLOAT,
    "D": JavaType.DOUBLE,
}


@dataclass(frozen=True, slots=True)
class CompiledField:
    """One declared field. descriptor: "I", "Ljava/lang/String;", "[J"."""

    name: str
    descriptor: str
    is_static: bool = False

    @property
    def type(self) -> JavaType:
        """What the field holds."""
        return _DESCRIPTOR_TYPES.get(self.descriptor, JavaType.REFERENCE)


@dataclass(frozen=True, slots=True)
class ClassLayout:
    """
    What a class file declares.

    name, super_name   with slashes: "java/util/HashMap$Node"; super_name is "" for java/lang/Object and modules
    fields             the class's own, static ones among them, in the order of the file
    major              class file version: 61 is Java 17, 69 is Java 25
    """

    name: str
    super_name: str
    fields: tuple[CompiledField, ...]
    major: int


# ----------------------------------------------------------------------------------------------- class file

_CLASS_MAGIC = b"\xca\xfe\xba\xbe"
_FIRST_MAJOR = 45  # JDK 1.0.2; a fat Mach-O file, which has the same magic, holds fewer architectures than that
_UTF8, _LONG, _DOUBLE, _CLASS = 1, 5, 6, 7
# Bytes behind the tag of each kind of constant (JVMS table 4.4-A); Utf8 says its own length.
_CONSTANT_BYTES = {
    **dict.fromkeys((7, 8, 16, 19, 20), 2),
    15: 3,
    **dict.fromkeys((3, 4, 9, 10, 11, 12, 17, 18), 4),
    **dict.fromkeys((5, 6), 8),
}
_ACC_STATIC = 0x0008
_DESCRIPTOR = re.compile(r"\[{0,255}(?:[BCDFIJSZ]|L[^;\[.]+;)")
_U2 = struct.Struct(">H")
_FIELD = struct.Struct(">HHHH")  # access flags, name, descriptor, number of attributes
_ATTRIBUTE = struct.Struct(">HI")  # name, length


def decode_modified_utf8(data: bytes) -> str:
    """
    Text of a class file or heap dump: UTF-8 with NUL as two bytes and a surrogate pair as two times three.

    What is no valid text appears as \\xNN, or as \\udNNN for half a pair, so that the result can be printed.
    """
    if data.isascii():
        return data.decode("ascii")
    text = data.replace(b"\xc0\x80", b"\0")
    try:
        units = text.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        return units.decode("utf-16-le", "surrogatepass").encode("utf-8", "backslashreplace").decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8", "backslashreplace")


def read_class_layout(data: bytes) -> ClassLayout:
    """Name, superclass and fields of the class file `data`. Raises NotClassFile, BrokenClassFile."""
    if data[:4] != _CLASS_MAGIC:
        raise NotClassFile("The bytes do not begin with the class file magic.")
    try:
        return _read_class_layout(data)
    except (struct.error, IndexError):
        raise BrokenClassFile(f"The class file of {len(data)} bytes is cut before the end of its fields.") from None


def _read_class_layout(data: bytes) -> ClassLayout:
    _, major, count = struct.unpack_from(">HHH", data, 4)
    if major < _FIRST_MAJOR:
        raise NotClassFile(f"No Java version writes class files of version {major}.")
    texts, classes, at = _constants(data, count)

    def text(index: int) -> str:
        start = texts.get(index)
        if start is None:
            raise BrokenClassFile(f"Constant {index} of the class file is not the text that it should be.")
        end = start + 2 + _U2.unpack_from(data, start)[0]
        return decode_modified_utf8(data[start + 2 : end])

    def class_name(index: int) -> str:
        if index not in classes:
            raise BrokenClassFile(f"Constant {index} of the class file is not the class that it should be.")
        return text(classes[index])

    _, this_class, super_class, interfaces = struct.unpack_from(">HHHH", data, at)
    at += 8 + 2 * interfaces
    (field_count,) = _U2.unpack_from(data, at)
    at += 2
    fields: list[CompiledField] = []
    for _ in range(field_count):
        flags, name, descriptor, attributes = _FIELD.unpack_from(data, at)
        at += 8
        for _ in range(attributes):
            at += 6 + _ATTRIBUTE.unpack_from(data, at)[1]
        kind = text(descriptor)
        if not _DESCRIPTOR.fullmatch(kind):
            raise BrokenClassFile(f"The class file gives a field the impossible type {kind[:80]!r}.")
        fields.append(CompiledField(text(name), kind, bool(flags & _ACC_STATIC)))
    if at > len(data):
        raise IndexError
    return ClassLayout(class_name(this_class), class_name(super_class) if super_class else "", tuple(fields), major)


def _constants(data: bytes, count: int) -> tuple[dict[int, int], dict[int, int], int]:
    """Where each text begins, which text names each class, and where the constants end."""
    texts: dict[int, int] = {}
    classes: dict[int, int] = {}
    at, index = 10, 1
    while index < count:
        tag = data[at]
        at += 1
        if tag == _UTF8:
            texts[index] = at
            at += 2 + (data[at] << 8 | data[at + 1])
        elif tag in _CONSTANT_BYTES:
            if tag == _CLASS:
                classes[index] = data[at] << 8 | data[at + 1]
            at += _CONSTANT_BYTES[tag]
            index += tag in (_LONG, _DOUBLE)  # these take two numbers
        else:
            raise BrokenClassFile(f"Constant {index} of the class file is of the unknown kind {tag}.")
        index += 1
    return texts, classes, at


# ------------------------------------------------------------------------------------------------------ jar

_MAX_DIRECTORY_BYTES = 32 * MIB  # 130,000 classes, the largest assemblies met, take 15
_MAX_ENTRIES = 200_000  # zipfile keeps about 600 bytes for each
_MAX_CLASS_BYTES = 16 * MIB
_MAX_NESTED_BYTES = 128 * MIB  # of a jar that is compressed inside another; a stored one is read in place
_MAX_UNPACKED_BYTES = 2048 * MIB  # of one jar, those inside included
_RATIO_FREE_BYTES = 64 * MIB  # below this, repetition is no attack
_MAX_RATIO = 100  # class files shrink to a half or a third
_COST_OF_JAR_BYTES, _COST_OF_ENTRY_BYTES = 64 * 1024, 1024  # what opening costs, in bytes unpacked in the same time
_MAX_MANIFEST_BYTES = 4 * MIB
_MAX_LOSSES = 100  # that are named one by one

_MANIFEST = "META-INF/MANIFEST.MF"
_MULTI_RELEASE = re.compile(rb"^multi-release:[ ]*true[ ]*\r?$", re.IGNORECASE | re.MULTILINE)
_VERSIONS = re.compile(r"META-INF/versions/(\d{1,4})/")
_NESTED = (".jar", ".war")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1
_DIRECTORY_ENTRY = b"PK\x01\x02"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of name and extra field


@dataclass(frozen=True, slots=True)
class JarClass:
    """
    One class of a jar.

    path      of the entry; behind "!/" within the jar inside the jar
    release   the Java release from which a JVM takes it (META-INF/versions/N of a multi-release jar); 0: every release
    """

    path: str
    release: int
    layout: ClassLayout


@dataclass(frozen=True, slots=True)
class JarLoss:
    """An entry, or with path "" a number of them, whose class is not known, and a sentence why."""

    path: str
    says: str


def iter_jar_classes(file: BinaryIO) -> Iterator[JarClass | JarLoss]:
    """
    Every class of a jar, war or jmod, and what could not be read of it.

    `file` is seekable; it is read in place and not closed. module-info has no layout and is left out. Entries that
    no JVM would load (META-INF/versions without Multi-Release in the manifest) are a JarLoss.

    Raises NotJar. Stops with a JarLoss where the jar unpacks to more than a jar does.
    """
    size = file.seek(0, 2)
    yield from _JarWalk(size).walk(_Part(file, 0, size))


class _TooMuch(Exception):
    """Reading on would cost more than a jar may; the text is the sentence."""


class _Part:
    """A stretch of a file, as a file that zipfile can read."""

    def __init__(self, file: BinaryIO | _Part, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size
        self._at = 0

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self._at)
        count = left if count < 0 else min(count, left)
        if count > _MAX_DIRECTORY_BYTES:
            raise NotJar(f"The directory of the jar has {count} bytes; pmf reads {_MAX_DIRECTORY_BYTES}.")
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        self._at += len(data)
        # zipfile asks for the whole directory at once and makes an object of each entry in it.
        if len(data) > _MAX_ENTRIES and data.count(_DIRECTORY_ENTRY) > _MAX_ENTRIES:
            raise NotJar(f"The directory of the jar has more than {_MAX_ENTRIES} entries.")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError("seek before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True


class _JarWalk:
    """The state of reading one jar with those inside: what it has cost, and how many entries were lost."""

    def __init__(self, size: int) -> None:
        self._allowed_bytes = min(_MAX_UNPACKED_BYTES, max(_RATIO_FREE_BYTES, _MAX_RATIO * size))
        self._spent_bytes = 0
        self._losses = 0

    def walk(self, part: _Part) -> Iterator[JarClass | JarLoss]:
        try:
            for found in self._entries(part, ""):
                if isinstance(found, JarLoss):
                    self._losses += 1
                    if self._losses > _MAX_LOSSES:
                        continue
                yield found
        except _TooMuch as error:
            yield JarLoss("", str(error))
        if self._losses > _MAX_LOSSES:
            yield JarLoss("", f"{self._losses - _MAX_LOSSES} more entries of the jar could not be read.")

    def _spend(self, count: int) -> None:
        self._spent_bytes += count
        if self._spent_bytes > self._allowed_bytes:
            says = f"Reading stopped where the jar had unpacked to {self._spent_bytes} bytes; no real one does that."
            raise _TooMuch(says)

    def _entries(self, part: _Part, prefix: str) -> Iterator[JarClass | JarLoss]:
        """`prefix` is the path of this jar within the outer one, with "!/", or ""."""
        with _open(part) as archive:
            infos = archive.infolist()
            # Jars inside may overlap, so that each costs little space and the time of reading its directory.
            self._spend(_COST_OF_JAR_BYTES + len(infos) * _COST_OF_ENTRY_BYTES)
            is_multi_release = self._is_multi_release(archive)
            not_loaded = 0
            for info in infos:
                path = prefix + info.filename
                if info.filename.lower().endswith(_NESTED):
                    if prefix:
                        yield JarLoss(path, f"{path} is a jar in a jar in a jar, and was not opened.")
                    else:
                        yield from self._nested(archive, part, info)
                if not info.filename.endswith(".class"):
                    continue
                version = _VERSIONS.search(info.filename)
                if version and not is_multi_release:
                    not_loaded += 1
                    continue
                try:
                    layout = read_class_layout(self._unpack(archive, info, _MAX_CLASS_BYTES))
                except FormatError as error:
                    yield JarLoss(path, f"{path}: {error.message}")
                    continue
                if layout.name != "module-info":
                    yield JarClass(path, int(version[1]) if version else 0, layout)
            if not_loaded:
                says = (
                    f"No JVM loads the {not_loaded} classes under META-INF/versions: the manifest is not Multi-Release."
                )
                yield JarLoss(prefix.removesuffix("!/"), says)

    def _nested(self, archive: ZipFile, part: _Part, info: ZipInfo) -> Iterator[JarClass | JarLoss]:
        import io

        try:
            if info.compress_type == _STORED and not info.flag_bits & _ENCRYPTED:
                inner = _stored(part, info)
            else:
                data = self._unpack(archive, info, _MAX_NESTED_BYTES)
                inner = _Part(io.BytesIO(data), 0, len(data))
            yield from self._entries(inner, f"{info.filename}!/")
        except FormatError as error:
            yield JarLoss(info.filename, f"{info.filename}: {error.message}")

    def _is_multi_release(self, archive: ZipFile) -> bool:
        try:
            manifest = self._unpack(archive, archive.getinfo(_MANIFEST), _MAX_MANIFEST_BYTES)
        except (KeyError, FormatError):
            return False
        # The attribute counts in the main section only, which the first empty line ends.
        main = re.split(rb"\r?\n\r?\n", manifest, maxsplit=1)[0]
        return _MULTI_RELEASE.search(main) is not None

    def _unpack(self, archive: ZipFile, info: ZipInfo, limit_bytes: int) -> bytes:
        """An entry's bytes, checked by its CRC-32."""
        import zlib
        from zipfile import BadZipFile

        if info.flag_bits & _ENCRYPTED:
            raise BrokenClassFile("The entry is encrypted.")
        if info.compress_type not in (_STORED, _DEFLATED):
            raise BrokenClassFile(f"The entry is packed by method {info.compress_type}, which a JVM does not read.")
        data = bytearray()
        try:
            with archive.open(info) as member:
                while len(data) <= limit_bytes and (piece := member.read(MIB)):
                    self._spend(len(piece))
                    data += piece
        except (BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise BrokenClassFile(f"The entry cannot be unpacked ({error}).") from error
        if len(data) > limit_bytes:
            raise BrokenClassFile(f"The entry unpacks to more than {limit_bytes} bytes.")
        return bytes(data)


def _open(part: _Part) -> ZipFile:
    from zipfile import BadZipFile, ZipFile

    try:
        return ZipFile(part)
    except NotJar:
        raise
    except (BadZipFile, struct.error, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise NotJar(f"This is no readable zip archive ({error}).") from error


def _stored(part: _Part, info: ZipInfo) -> _Part:
    """The bytes of an entry that is not compressed, in place."""
    part.seek(info.header_offset)
    header = part.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise NotJar("The entry lies behind the end of the jar.")
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != b"PK\x03\x04" or start + info.compress_size > part.size:
        raise NotJar("The entry does not lie where the jar's directory says.")
    return _Part(part, start, info.compress_size)
