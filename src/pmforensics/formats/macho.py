"""
What build a Mach-O file is: the LC_UUID of every architecture in it, Go's own build ID, and what debug information
it holds.

This is an own bounded reader and not macholib, because that one turns every load command of every architecture into
objects and believes their counts. This one looks at the few commands that matter and checks every count and length
against the file before anything is read for it.

A "fat" file holds one slice per architecture, and each slice has an identity of its own: comparing the first one
only gives wrong lines. The fat magic is the magic of Java classes too; the next word tells them apart.

Sources: mach-o/loader.h, mach-o/fat.h, mach/machine.h, cmd/link and cmd/internal/buildid of Go.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from pmforensics.errors import BrokenMachO, NotMachO
from pmforensics.formats import codeview
from pmforensics.formats.core import go_id
from pmforensics.formats.core_memory import text_of
from pmforensics.formats.elf import PT_LOAD, GoBuildInfo, ProgramHeader, ReadAt, read_go_blob
from pmforensics.model.image import ImageId, Unread

MH_OBJECT, MH_EXECUTE, MH_CORE, MH_DYLIB, MH_DYLINKER, MH_BUNDLE = 1, 2, 4, 6, 7, 8
MH_DSYM, MH_KEXT_BUNDLE, MH_FILESET = 10, 11, 12

MACHO_HEADER_BYTES = 32  # the 64-bit header; the 32-bit one has 28
MAX_SLICES = 44  # the lowest version of a Java class file is 45, and it stands where the number of slices does

LC_SEGMENT, LC_SEGMENT_64, LC_NOTE = 0x1, 0x19, 0x31
_LC_SYMTAB, _LC_ID_DYLIB, _LC_ID_DYLINKER, _LC_UUID = 0x2, 0xD, 0xF, 0x1B
_LC_SOURCE_VERSION, _LC_BUILD_VERSION = 0x2A, 0x32
_LC_VERSION_MIN = {0x24: "macos", 0x25: "ios", 0x2F: "tvos", 0x30: "watchos"}
_LC_REQ_DYLD = 0x80000000  # a flag of the command's number: the loader must understand it

# Of one image or core: byte order as `struct` writes it, bits.
MACH_MAGICS = {
    b"\xce\xfa\xed\xfe": ("<", 32),
    b"\xcf\xfa\xed\xfe": ("<", 64),
    b"\xfe\xed\xfa\xce": (">", 32),
    b"\xfe\xed\xfa\xcf": (">", 64),
}
# As written by every tool, and swapped, which mach-o/fat.h has names for and nobody is known to write.
_FAT_MAGICS = {
    b"\xca\xfe\xba\xbe": (">", 32),
    b"\xca\xfe\xba\xbf": (">", 64),
    b"\xbe\xba\xfe\xca": ("<", 32),
    b"\xbf\xba\xfe\xca": ("<", 64),
}
_ARCHIVE_MAGIC = b"!<arch>\n"

_CPU_64, _CPU_64_32 = 0x01000000, 0x02000000
_ARCHES = {
    (7, None): "i386",
    (7 | _CPU_64, None): "x86_64",
    (7 | _CPU_64, 8): "x86_64h",
    (12, None): "arm",
    (12, 6): "armv6",
    (12, 9): "armv7",
    (12, 11): "armv7s",
    (12, 12): "armv7k",
    (12 | _CPU_64, None): "arm64",
    (12 | _CPU_64, 2): "arm64e",
    (12 | _CPU_64_32, None): "arm64_32",
    (18, None): "ppc",
    (18 | _CPU_64, None): "ppc64",
}
_PLATFORMS = {
    1: "macos", 2: "ios", 3: "tvos", 4: "watchos", 5: "bridgeos", 6: "maccatalyst", 7: "ios-simulator",
    8: "tvos-simulator", 9: "watchos-simulator", 10: "driverkit", 11: "visionos", 12: "visionos-simulator",
}  # fmt: skip

# What Go's linker makes the LC_UUID from when its own build ID is "redacted", as Bazel asks for: 1.24 to 1.26, and
# since 1.27, which sets the variant bits of a UUID as they should be.
_UUIDS_OF_REDACTED = {"498919aff0013836e249403a2544fba2", "498919aff0013836a249403a2544fba2"}
_GO_ID_START, _GO_ID_END = b'\xff Go build ID: "', b'"\n \xff'
_GO_ID_SEARCH_BYTES = 32 << 10  # what Go's own reader looks through; it stands at the start of __text
_MAX_GO_LOADS = 64

MAX_IMAGE_COMMAND_BYTES = 256 << 10  # of one image; most have 4, the largest (kernel collections) some 60 KiB
_MAX_COMMAND_BODY_BYTES = 64 << 10
_COMMAND_WINDOW_BYTES = 256 << 10
_MAX_NAME_BYTES = 4096
_MAX_SECTIONS = 64  # of those looked for
_SECTIONS = frozenset({"__text", "__debug_info", "__zdebug_info", "__go_buildinfo", "__all_image_info"})


# ------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True, slots=True)
class MachHeader:
    """The header of one image or core. `order` is the byte order as `struct` writes it, `bits` 32 or 64."""

    order: str
    bits: int
    cpu: int
    subtype: int
    file_type: int
    commands: int
    command_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the header: where the load commands begin."""
        return 32 if self.bits == 64 else 28

    @property
    def arch(self) -> str:
        """The architecture as lipo names it."""
        return arch_name(self.cpu, self.subtype)


@dataclass(frozen=True, slots=True)
class MachSegment:
    """One LC_SEGMENT: addresses before any slide; `flags` as in "r-x"."""

    name: str
    vmaddr: int
    vmsize: int
    fileoff: int
    filesize: int
    flags: str


@dataclass(frozen=True, slots=True)
class MachSection:
    """One section; `offset` counts from the image's header."""

    segment: str
    name: str
    address: int
    size: int
    offset: int


@dataclass(slots=True)
class MachImage:
    """
    What the header and the load commands of one image say.

    uuid           32 lowercase hex digits
    uuid_offset    where its 16 bytes stand, from the header on
    install_name   LC_ID_DYLIB, LC_ID_DYLINKER
    segments       in file order
    sections       those of a few names
    symbols        number of entries in the symbol table
    file_bytes     where the last segment and the symbol table end in the file
    unread         why there is no UUID
    lost           sentences: what could not be read, and why
    says           platform, source_version, dylib_version where stated
    """

    header: MachHeader
    uuid: str | None = None
    uuid_offset: int = 0
    install_name: str = ""
    segments: list[MachSegment] = field(default_factory=list)
    sections: list[MachSection] = field(default_factory=list)
    symbols: int = 0
    file_bytes: int = 0
    unread: Unread | None = None
    lost: list[str] = field(default_factory=list)
    says: dict[str, str] = field(default_factory=dict)

    def section(self, *names: str) -> MachSection | None:
        """The first of these sections that is not empty."""
        return next((section for section in self.sections if section.name in names and section.size), None)

    @property
    def text(self) -> MachSegment | None:
        """The segment that begins with the header: where it is mapped tells the slide of all."""
        # Not by file offset 0: in the dyld shared cache, offsets count from the start of the cache.
        return next((part for part in self.segments if part.name == "__TEXT"), None)


def uuid_id(uuid: str) -> ImageId:
    """An LC_UUID, 32 hex digits, as an identity, labelled where it proves nothing by itself."""
    plain = codeview.uuid_id(bytes.fromhex(uuid))
    if plain.value in _UUIDS_OF_REDACTED:
        return ImageId(plain.kind, plain.value, 'made from the Go build ID "redacted", which many programs share')
    return plain


def arch_name(cpu: int, subtype: int) -> str:
    """The architecture as lipo names it; the upper 8 bits of the subtype are capabilities and do not count."""
    return _ARCHES.get((cpu, subtype & 0xFFFFFF)) or _ARCHES.get((cpu, None)) or f"cpu-{cpu:#x}"


def parse_mach_header(data: bytes) -> MachHeader:
    """
    The header at the start of `data` (give MACHO_HEADER_BYTES where there are that many).

    Raises NotMachO without the magic, BrokenMachO when the rest is cut or impossible.
    """
    if data[:4] not in MACH_MAGICS:
        raise NotMachO("The bytes do not begin with a Mach-O magic.")
    order, bits = MACH_MAGICS[data[:4]]
    if len(data) < (32 if bits == 64 else 28):
        raise BrokenMachO(f"The Mach-O header is cut after {len(data)} bytes.")
    header = MachHeader(order, bits, *struct.unpack_from(order + "5I", data, 4))
    if header.commands * 8 > header.command_bytes:
        raise BrokenMachO(f"{header.commands} load commands do not fit into {header.command_bytes} bytes.")
    return header


def iter_commands(
    read: ReadAt, size: int | None, header: MachHeader, lose: Callable[[Unread, str], None]
) -> Iterator[tuple[int, int, bytes]]:
    """
    (number, offset from the header, bytes) of every load command; of a long one, the first 64 KiB.

    Offset 0 of `read` is the header, `size` is how many bytes there are from it on (None: not known). Where the
    commands are cut or make no sense, `lose` is told why and it ends.
    """
    declared_end = header.size_bytes + header.command_bytes
    end = declared_end if size is None else min(declared_end, size)
    window, window_at = b"", header.size_bytes
    at = header.size_bytes
    for done in range(header.commands):
        skip = at - window_at
        if skip > len(window) or (skip + _MAX_COMMAND_BODY_BYTES > len(window) and window_at + len(window) < end):
            window, window_at, skip = read(at, min(_COMMAND_WINDOW_BYTES, max(end - at, 0))), at, 0
        there = len(window) - skip
        number, length = struct.unpack_from(header.order + "2I", window, skip) if there >= 8 else (0, 8)
        if length < 8 or at + length > declared_end:
            lose(
                Unread.BROKEN,
                f"Load command {done + 1} of {header.commands} claims {length} bytes where {declared_end - at} are "
                "left.",
            )
            return
        if there < min(length, _MAX_COMMAND_BODY_BYTES) or at + length > end:
            lose(Unread.TRUNCATED, f"The load commands are cut after {done} of {header.commands}.")
            return
        yield number & ~_LC_REQ_DYLD, at, window[skip : skip + min(length, _MAX_COMMAND_BODY_BYTES)]
        at += length


def parse_segment(number: int, body: bytes, order: str) -> MachSegment | None:
    """The segment that an LC_SEGMENT or LC_SEGMENT_64 command describes; None for other commands and cut ones."""
    if number == LC_SEGMENT_64 and len(body) >= 72:
        place = struct.unpack_from(order + "4Q2I", body, 24)
    elif number == LC_SEGMENT and len(body) >= 56:
        place = struct.unpack_from(order + "4I2I", body, 24)
    else:
        return None
    vmaddr, vmsize, fileoff, filesize, _, protection = place
    flags = "".join(letter if protection & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
    return MachSegment(_fixed_text(body[8:24]), vmaddr, vmsize, fileoff, filesize, flags)


def read_mach_image(read: ReadAt, size: int | None) -> MachImage:
    """
    What the header at offset 0 of `read` and its load commands say, be it in a file or in memory.

    `size` is how many bytes there are from the header on, None where that is not known. Commands that are cut or
    broken end the reading and are told in `lost`.

    Raises NotMachO, BrokenMachO (the header itself); passes on what `read` raises.
    """
    header = parse_mach_header(read(0, MACHO_HEADER_BYTES if size is None else min(MACHO_HEADER_BYTES, size)))
    if header.command_bytes > MAX_IMAGE_COMMAND_BYTES:
        raise BrokenMachO(f"The header claims {header.command_bytes} bytes of load commands: more than any image has.")
    image = MachImage(header)

    def lose(unread: Unread, says: str) -> None:
        image.unread = unread
        image.lost.append(says)

    for number, at, body in iter_commands(read, size, header, lose):
        _take_command(image, number, at, body)
    if image.uuid is not None:
        image.unread = None
    elif image.unread is None:
        image.unread = Unread.NO_ID
    return image


def _take_command(image: MachImage, number: int, at: int, body: bytes) -> None:
    order = image.header.order
    if number in (LC_SEGMENT, LC_SEGMENT_64):
        segment = parse_segment(number, body, order)
        if segment is not None:
            image.segments.append(segment)
            if segment.filesize:
                image.file_bytes = max(image.file_bytes, segment.fileoff + segment.filesize)
            image.sections += _sections(number, body, order)[: _MAX_SECTIONS - len(image.sections)]
    elif number == _LC_UUID and len(body) >= 24:
        uuid = body[8:24].hex()
        if image.uuid is None:
            image.uuid, image.uuid_offset = uuid, at + 8
        elif image.uuid != uuid:
            image.lost.append(f"There is a second LC_UUID, {uuid}; the first one was believed.")
    elif number == _LC_SYMTAB and len(body) >= 24:
        symbols_at, image.symbols, strings_at, string_bytes = struct.unpack_from(order + "4I", body, 8)
        entry_bytes = 16 if image.header.bits == 64 else 12
        if image.symbols:
            end = max(symbols_at + image.symbols * entry_bytes, strings_at + string_bytes)
            image.file_bytes = max(image.file_bytes, end)
    elif number in (_LC_ID_DYLIB, _LC_ID_DYLINKER) and len(body) >= 12:
        (name_at,) = struct.unpack_from(order + "I", body, 8)
        image.install_name = text_of(body[name_at : name_at + _MAX_NAME_BYTES].split(b"\0", 1)[0])
        if number == _LC_ID_DYLIB and len(body) >= 20:
            (version,) = struct.unpack_from(order + "I", body, 16)
            image.says["dylib_version"] = f"{version >> 16}.{version >> 8 & 255}.{version & 255}"
    elif number == _LC_BUILD_VERSION and len(body) >= 20:
        platform, least, sdk = struct.unpack_from(order + "3I", body, 8)
        name = _PLATFORMS.get(platform, f"platform {platform}")
        image.says.setdefault("platform", f"{name} {_system_version(least)} (SDK {_system_version(sdk)})")
    elif number in _LC_VERSION_MIN and len(body) >= 16:
        least, sdk = struct.unpack_from(order + "2I", body, 8)
        name = _LC_VERSION_MIN[number]
        image.says.setdefault("platform", f"{name} {_system_version(least)} (SDK {_system_version(sdk)})")
    elif number == _LC_SOURCE_VERSION and len(body) >= 16:
        (packed,) = struct.unpack_from(order + "Q", body, 8)
        parts = [packed >> 40, packed >> 30 & 1023, packed >> 20 & 1023, packed >> 10 & 1023, packed & 1023]
        if any(parts):
            image.says["source_version"] = ".".join(map(str, parts))


def _system_version(packed: int) -> str:
    patch = f".{packed & 255}" if packed & 255 else ""
    return f"{packed >> 16}.{packed >> 8 & 255}{patch}"


def _sections(number: int, body: bytes, order: str) -> list[MachSection]:
    """Those of the names that matter."""
    first, layout = (72, "16s16s2Q8I") if number == LC_SEGMENT_64 else (56, "16s16s2I7I")
    entry = struct.Struct(order + layout)
    (count,) = struct.unpack_from(order + "I", body, first - 8)
    found = []
    for at in range(first, min(first + count * entry.size, len(body) - entry.size + 1), entry.size):
        name, segment, address, size, offset, *_ = entry.unpack_from(body, at)
        if (text := _fixed_text(name)) in _SECTIONS:
            found.append(MachSection(_fixed_text(segment), text, address, size, offset))
    return found


def _fixed_text(name: bytes) -> str:
    return text_of(name.split(b"\0", 1)[0])


# -------------------------------------------------------------------------------------------------- Go


def read_mach_go_id(read: ReadAt, image: MachImage) -> tuple[ImageId, int] | None:
    """
    Go's own build ID, and the offset where it stands, which is at the start of the program text.

    `read` takes offsets in the image's file, counted from its header. Before Go 1.24 it is the only identity of a Go
    program on macOS: its linker wrote no LC_UUID.
    """
    text = image.section("__text")
    if text is None:
        return None
    data = read(text.offset, min(text.size, _GO_ID_SEARCH_BYTES))[:_GO_ID_SEARCH_BYTES]
    start = data.find(_GO_ID_START)
    end = data.find(_GO_ID_END, start)
    content = data[start + len(_GO_ID_START) : end]
    # It is a Go string literal; a build ID has nothing in it that would be escaped.
    if start < 0 or end < 0 or not content or b"\\" in content:
        return None
    return go_id(content), text.offset + start + len(_GO_ID_START)


def read_mach_go_build_info(read: ReadAt, size: int | None, image: MachImage) -> GoBuildInfo | None:
    """What Go's linker wrote about the build; `read` as for `read_mach_go_id`, `size` as for `read_mach_image`."""
    blob = image.section("__go_buildinfo")
    if blob is None:
        return None
    loads = [
        ProgramHeader(PT_LOAD, 0, part.fileoff, part.vmaddr, part.filesize, part.vmsize, 0)
        for part in image.segments[:_MAX_GO_LOADS]
    ]
    return read_go_blob(read, size, loads, blob.offset)


def go_words(info: GoBuildInfo) -> dict[str, str]:
    """Build information in the words of `DumpImage.says`."""
    main = f"{info.main.path} {info.main.version}".strip() if info.main is not None else ""
    said = {"go_version": info.go_version, "go_path": info.path, "go_module": main} | {
        f"vcs_{name}": info.settings.get(f"vcs.{name}", "") for name in ("revision", "time", "modified")
    }
    return {name: value for name, value in said.items() if value}


# ----------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class Slice:
    """
    One architecture of a Mach-O file.

    arch           as lipo names it
    file_type      MH_EXECUTE, MH_DYLIB, MH_DSYM ...; 0 where the header could not be read
    uuid           32 lowercase hex digits; None when the linker wrote none (Go before 1.24, -no_uuid) or it is lost
    offset         where the slice begins in the file, and how many bytes it has by its own account
    declared_bytes (0 for a core)
    go_id          Go's own build ID
    install_name   the path that a library was linked to be found at
    has_dwarf      it holds debug information; a dSYM of the right UUID without any helps nobody
    symbols        number of entries in the symbol table
    unread         why there is no UUID
    lost           sentences: what is cut or broken
    says           platform, source_version, dylib_version, and go_... and vcs_... for Go, where stated
    """

    arch: str
    file_type: int
    uuid: str | None
    offset: int
    declared_bytes: int = 0
    go_id: ImageId | None = None
    install_name: str = ""
    has_dwarf: bool = False
    symbols: int = 0
    unread: Unread | None = None
    lost: tuple[str, ...] = ()
    says: dict[str, str] = field(default_factory=dict)

    def ids(self) -> tuple[ImageId, ...]:
        """Its identities, the most telling first."""
        uuid = () if self.uuid is None else (uuid_id(self.uuid),)
        return uuid if self.go_id is None else (*uuid, self.go_id)


def is_macho(head: bytes) -> bool:
    """Whether the first 8 bytes are those of a Mach-O file, thin or fat, and not of a Java class."""
    return head[:4] in MACH_MAGICS or 0 < _slice_count(head) <= MAX_SLICES


def _slice_count(head: bytes) -> int:
    """What a fat file's header says; 0 where this is none."""
    if head[:4] not in _FAT_MAGICS or len(head) < 8:
        return 0
    order, _ = _FAT_MAGICS[head[:4]]
    return int.from_bytes(head[4:8], "big" if order == ">" else "little")


def read_macho_slices(read: ReadAt, size: int) -> list[Slice]:
    """
    Every architecture of a thin or fat Mach-O file; a slice that cannot be read does not hide the others. Of a core,
    only what it is.

    Raises NotMachO, also for Java classes, and BrokenMachO where no slice can be read; passes on what `read` raises.
    """
    head = _read_within(read, size, 0, 8)
    if head[:4] in MACH_MAGICS:
        return [_read_slice(read, size, 0, size)]
    if head[:4] not in _FAT_MAGICS:
        raise NotMachO("The bytes do not begin with a Mach-O magic.")
    if len(head) < 8:
        raise BrokenMachO(f"The header of a fat Mach-O file is cut after {len(head)} bytes.")
    count = _slice_count(head)
    if count > MAX_SLICES:
        raise NotMachO(f"A Java class (version {count & 0xFFFF}), which shares its magic with fat Mach-O files.")
    slices = [_read_entry(read, size, entry) for entry in _fat_entries(read, size, head, count)]
    if not any(one.file_type for one in slices):
        raise BrokenMachO(slices[0].lost[0] if slices else "The fat Mach-O file lists no architectures.")
    return slices


@dataclass(frozen=True, slots=True)
class _FatEntry:
    arch: str
    offset: int
    length: int


def _fat_entries(read: ReadAt, size: int, head: bytes, count: int) -> Iterator[_FatEntry]:
    order, bits = _FAT_MAGICS[head[:4]]
    layout = struct.Struct(order + ("IIQQII" if bits == 64 else "5I"))
    table = _read_within(read, size, 8, count * layout.size)
    if len(table) < count * layout.size:
        raise BrokenMachO(f"The table of {count} architectures is cut after {len(table)} bytes.")
    for cpu, subtype, offset, length, *_ in layout.iter_unpack(table):
        yield _FatEntry(arch_name(cpu, subtype), offset, length)


def _read_entry(read: ReadAt, size: int, entry: _FatEntry) -> Slice:
    """The slice that the table of a fat file points to."""

    def unreadable(unread: Unread, says: str) -> Slice:
        return Slice(entry.arch, 0, None, entry.offset, entry.length, unread=unread, lost=(says,))

    if entry.offset >= size:
        return unreadable(Unread.TRUNCATED, f"The {entry.arch} slice begins beyond the end of the file.")
    if _read_within(read, size, entry.offset, 8) == _ARCHIVE_MAGIC:
        return unreadable(Unread.NO_ID, f"The {entry.arch} slice is an archive of object files, not an image.")
    try:
        found = _read_slice(read, size, entry.offset, entry.length)
    except (NotMachO, BrokenMachO) as error:
        cut = entry.offset + min(entry.length, MACHO_HEADER_BYTES) > size
        return unreadable(Unread.TRUNCATED if cut else Unread.BROKEN, f"The {entry.arch} slice: {error.message}")
    if found.arch != entry.arch:
        says = f"The file's table calls {entry.arch} what by its own header is {found.arch}."
        return replace(found, lost=(*found.lost, says))
    return found


def _read_slice(read: ReadAt, size: int, offset: int, length: int) -> Slice:
    there = min(length, size - offset)

    def read_here(at: int, wanted: int) -> bytes:
        return _read_within(read, size, offset + at, min(wanted, there - at))

    header = parse_mach_header(read_here(0, MACHO_HEADER_BYTES))
    if header.file_type == MH_CORE:
        return Slice(header.arch, MH_CORE, None, offset, unread=Unread.NO_ID)
    image = read_mach_image(read_here, there)
    declared = max(image.file_bytes, length if offset else 0)
    lost = list(image.lost)
    if declared > there:
        lost.append(f"The {image.header.arch} slice is cut: it declares {declared} bytes and has {there}.")
    go_build_id = read_mach_go_id(read_here, image)
    info = read_mach_go_build_info(read_here, there, image)
    return Slice(
        arch=image.header.arch,
        file_type=image.header.file_type,
        uuid=image.uuid,
        offset=offset,
        declared_bytes=declared,
        go_id=go_build_id[0] if go_build_id is not None else None,
        install_name=image.install_name,
        has_dwarf=image.section("__debug_info", "__zdebug_info") is not None,
        symbols=image.symbols,
        unread=image.unread,
        lost=tuple(lost),
        says=image.says | (go_words(info) if info is not None else {}),
    )


def _read_within(read: ReadAt, size: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes; b"" for a place that the file does not have."""
    length = min(length, size - offset)
    return read(offset, length)[:length] if offset >= 0 and length > 0 else b""
