"""
The images of a Mach-O core: which executables and libraries a macOS process had loaded, and what build each is.

No single trace leads to every image, so all are followed, and each reading says which one it was (`Reading.rule`):

    all-image-infos   LC_NOTE of that name: a list with paths and UUIDs, written by lldb and by newer systems
    main-bin-spec     LC_NOTE: the kernel, dyld or the one binary that the core is about
    load-binary       LC_NOTE: one more binary each
    dyld-image-list   dyld's own list in the process's memory says that an image is loaded there
    dyld-uuid-list    dyld's second list, with the UUIDs of what is not in its shared cache
    shared-cache      the header of the dyld shared cache says where the dyld in it is (macOS 13 on runs that one)
    segment-sniff     a dumped segment begins with a Mach-O magic

The first three and dyld's second list hold identities themselves; the others lead to a header in memory. Images of
the dyld shared cache lie inside of large segments and are found only where a list names them: without a list, `lost`
says so, because the cache holds thousands of libraries that the process never used.

Sources: mach-o/loader.h, mach-o/dyld_images.h, dyld_cache_format.h of dyld, ObjectFileMachO of lldb (the notes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pmforensics.errors import BrokenMachO, NotMachO
from pmforensics.formats.core_memory import CoreMemory, text_of
from pmforensics.formats.elf import PF_W, PF_X, PT_LOAD, ProgramHeader, ReadAt
from pmforensics.formats.macho import (
    LC_NOTE,
    MACH_MAGICS,
    MACHO_HEADER_BYTES,
    MH_BUNDLE,
    MH_CORE,
    MH_DYLIB,
    MH_DYLINKER,
    MH_EXECUTE,
    MH_FILESET,
    MH_KEXT_BUNDLE,
    MachImage,
    go_words,
    iter_commands,
    parse_mach_header,
    parse_segment,
    read_mach_go_build_info,
    read_mach_go_id,
    read_mach_image,
    uuid_id,
)
from pmforensics.model.image import DumpImage, DumpImages, IdKind, Mapped, Reading, Unread

_IMAGE_TYPES = frozenset({MH_EXECUTE, MH_DYLIB, MH_DYLINKER, MH_BUNDLE, MH_KEXT_BUNDLE, MH_FILESET})
_PF_R = 4
_NOWHERE = 0xFFFFFFFFFFFFFFFF  # what notes write for an address or offset that they do not know
_NO_UUID = bytes(16)
_CACHE_MAGIC = b"dyld_v1"
_CACHE_UUID_AT, _CACHE_DYLD_AT, _CACHE_START_AT = 0x58, 0x78, 0xE0  # in dyld_cache_header; the last ends at 0xE8
_SPEC_DYLD_LIST = 4  # type of a "main bin spec": its address is that of dyld's list
_AT_DYLD, _AT_UUIDS, _AT_CACHE_UUID = 3, 11, 19  # words of dyld_all_image_infos, counted from infoArray
_MAX_LIST_VERSION = 1000  # 19 in 2025; fields are only ever appended

_MAX_CORE_COMMAND_BYTES = 16 << 20  # room for 230,000 segments; a process has some thousands
_MAX_NOTES = 1 << 14
_MAX_NOTE_BYTES = 4096  # of one that names one binary
_MAX_IMAGES = 20_000
_MAX_PATH_BYTES = 4096
_TEXT_BUDGET_BYTES = 16 << 20  # over all paths: many entries may point at one long text
_COMMAND_BUDGET_BYTES = 16 << 20  # over all images, for the same reason; 1,000 images need some 4 MiB
_MAX_MAPPED = 1 << 18
_MAX_GO_IMAGES = 64  # up to 32 KiB is searched in each
_MAX_SENTENCES = 100
_MAX_SHARED_CACHES = 16
_MAX_DYLDS = 8


def read_macho_core_images(read: ReadAt, size: int) -> DumpImages:
    """
    The images of the Mach-O core behind `read`, which has `size` bytes.

    Takes time linear in the number of segments, and memory that does not depend on the core's size. A core that is
    cut is read as far as it goes, and `lost` says so. The executable comes first, then the others by address; those
    whose address is not known come last.

    Besides what `Slice.says` names, `says` of an image may hold: install_name where the process knew it by another
    path, and loaded ("no: ...": the file was mapped for another reason than to run it).

    Raises NotMachO, BrokenMachO (also for Mach-O files that are no cores); passes on what `read` raises.
    """
    return _Core(read, size).images()


class _Note(NamedTuple):
    owner: str
    offset: int
    size: int


class _Named(NamedTuple):
    """An image as a list names it; `base` is None and `uuid` is 16 zeros where the list does not know them."""

    rule: str
    base: int | None
    path: str
    uuid: bytes
    uuid_offset: int


@dataclass(slots=True)
class _Found:
    """An image in the making; `image` is None where its header is not in the core or makes no sense."""

    base: int
    named: list[_Named] = field(default_factory=list)
    sniffed: bool = False
    image: MachImage | None = None
    lack: Unread | None = None

    def is_a(self, file_type: int) -> bool:
        return self.image is not None and self.image.header.file_type == file_type


class _Core:
    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        self.lost: list[str] = []
        self.conflicts: list[str] = []
        self.header = parse_mach_header(self._at(0, MACHO_HEADER_BYTES))
        if self.header.file_type != MH_CORE:
            raise BrokenMachO(f"This is a Mach-O file of type {self.header.file_type}, not a core (type {MH_CORE}).")
        if self.header.command_bytes > _MAX_CORE_COMMAND_BYTES:
            raise BrokenMachO(
                f"The core claims {self.header.command_bytes} bytes of load commands; {_MAX_CORE_COMMAND_BYTES} is the "
                "most that is read."
            )
        self.declared_bytes = self.header.size_bytes + self.header.command_bytes
        self._notes: list[_Note] = []
        self._memory = CoreMemory(self._at, size, self.header.bits, self._segments())
        if self.declared_bytes > size:
            self.lost.append(
                f"The core is cut: it has {size} of the {self.declared_bytes} bytes that it declares "
                f"({100 * size // self.declared_bytes} %)."
            )
        if self._memory.overlaps:
            self.lost.append(
                f"{self._memory.overlaps} segments begin inside the one before; there, the later one was read."
            )
        self._text_left = _TEXT_BUDGET_BYTES
        self._entries_left = _MAX_IMAGES  # over all notes: many may point at one long list
        self._commands_left = _COMMAND_BUDGET_BYTES
        self._mapped_left = _MAX_MAPPED
        self._go_left = _MAX_GO_IMAGES
        self._found: dict[int, _Found] = {}
        self._homeless: list[_Named] = []
        self._caches: list[tuple[int, str]] = []
        self._list_places: dict[int, None] = {}
        self._listed = False
        self._first: int | None = None
        self._mask = (1 << self.header.bits) - 1

    def _at(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        return self._read(offset, length)[:length] if offset >= 0 and length > 0 else b""

    def _lose(self, says: str) -> None:
        if says not in self.lost and len(self.lost) < _MAX_SENTENCES:
            self.lost.append(says)

    def _conflict(self, says: str) -> None:
        if len(self.conflicts) < _MAX_SENTENCES:
            self.conflicts.append(says)

    # -- load commands

    def _segments(self) -> Iterator[ProgramHeader]:
        """The segments of memory, in file order; notes are kept aside."""

        def lose(_: Unread, says: str) -> None:
            self.lost.append(says)

        header = self.header
        for number, _, body in iter_commands(self._at, self._size, header, lose):
            if number == LC_NOTE and len(body) >= 40:
                offset, length = struct.unpack_from(header.order + "2Q", body, 24)
                self.declared_bytes = max(self.declared_bytes, offset + length)
                if len(self._notes) < _MAX_NOTES:
                    self._notes.append(_Note(text_of(body[8:24].split(b"\0", 1)[0]), offset, length))
                continue
            part = parse_segment(number, body, header.order)
            if part is None:
                continue
            if part.filesize:
                self.declared_bytes = max(self.declared_bytes, part.fileoff + part.filesize)
            flags = sum(bit for letter, bit in (("r", _PF_R), ("w", PF_W), ("x", PF_X)) if letter in part.flags)
            yield ProgramHeader(PT_LOAD, flags, part.fileoff, part.vmaddr, part.filesize, part.vmsize, 0)

    # -- traces

    def images(self) -> DumpImages:
        for note in self._notes:
            self._follow_note(note)
        self._sniff()
        cache_uuid = self._follow_dyld()
        self._tell_unlisted()
        facts: dict[str, int | str] = {"machine": self.header.arch, "segments": len(self._memory)}
        cache_uuid = cache_uuid or (self._caches[0][1] if self._caches else "")
        if cache_uuid:
            facts["shared_cache_uuid"] = cache_uuid
        main = self._main()
        ordered = sorted(self._found.values(), key=lambda found: (found is not main, found.base))
        return DumpImages(
            format="macho-core",
            images=(
                *(self._finish(found, found is main) for found in ordered if self._is_image(found)),
                *map(self._finish_homeless, self._homeless),
            ),
            actual_bytes=self._size,
            declared_bytes=self.declared_bytes,
            lost=tuple(self.lost),
            conflicts=tuple(self.conflicts),
            facts=facts,
        )

    def _image_at(self, base: int) -> _Found | None:
        if base not in self._found and len(self._found) + len(self._homeless) >= _MAX_IMAGES:
            self._lose(f"There are more than {_MAX_IMAGES} images; the rest was not read.")
            return None
        return self._found.setdefault(base, _Found(base))

    def _name(self, named: _Named) -> None:
        """Keep what a list says of an image."""
        if named.base is None:
            if named.uuid != _NO_UUID and len(self._found) + len(self._homeless) < _MAX_IMAGES:
                self._homeless.append(named)
            return
        found = self._image_at(named.base)
        if found is not None and len(found.named) < 8:
            found.named.append(named)

    def _path(self, offset: int) -> str:
        """The NUL-terminated text at a place in the file."""
        if offset == _NOWHERE or self._text_left <= 0:
            return ""
        text = self._at(offset, _MAX_PATH_BYTES).partition(b"\0")[0]
        self._text_left -= len(text) + 1
        return text_of(text)

    def _follow_note(self, note: _Note) -> None:
        if note.owner == "all image infos":
            self._follow_image_infos(note)
        elif note.owner in ("main bin spec", "load binary"):
            data = self._at(note.offset, min(note.size, _MAX_NOTE_BYTES))
            follow = self._follow_main_bin_spec if note.owner == "main bin spec" else self._follow_load_binary
            if not follow(note, data):
                self._lose(f'The note "{note.owner}" is cut, or of a version that is not known.')

    def _follow_image_infos(self, note: _Note) -> None:
        order = self.header.order
        layout = struct.Struct(order + "IIQI")
        head = self._at(note.offset, min(note.size, layout.size))
        version, count, entries_at, entry_bytes = layout.unpack(head) if len(head) == layout.size else (0, 0, 0, 0)
        if version != 1 or (count and entry_bytes < 48):
            self._lose('The note "all image infos" is cut, or of a version that is not known.')
            return
        entry = struct.Struct(order + "Q16sQ")
        there = min(count, self._entries_left)
        self._entries_left -= there
        for index in range(there):
            place = entries_at + index * entry_bytes
            data = self._at(place, entry.size)
            if len(data) < entry.size:
                self._lose(f"The list of {count} images in a note is cut after {index}.")
                return
            path_at, uuid, base = entry.unpack(data)
            place += 8  # of the UUID
            self._name(_Named("all-image-infos", None if base == _NOWHERE else base, self._path(path_at), uuid, place))
        if count > there:
            self._lose(f"There are more than {_MAX_IMAGES} images; the rest was not read.")
        self._listed = self._listed or count > 0

    def _follow_main_bin_spec(self, note: _Note, data: bytes) -> bool:
        """
        It names the kernel or a lone binary. Of a user process it names dyld or dyld's list, and so does not tell
        which image is the executable.
        """
        order = self.header.order
        version, kind = struct.unpack_from(order + "2I", data) if len(data) >= 8 else (0, 0)
        uuid_at = {1: 16, 2: 24}.get(version, 0)
        if not uuid_at or len(data) < uuid_at + 16:
            return False
        (base,) = struct.unpack_from(order + "Q", data, 8)
        if kind == _SPEC_DYLD_LIST:
            self._add_dyld_list(base)
        else:
            uuid, place = data[uuid_at : uuid_at + 16], note.offset + uuid_at
            self._name(_Named("main-bin-spec", None if base == _NOWHERE else base, "", uuid, place))
        return True

    def _follow_load_binary(self, note: _Note, data: bytes) -> bool:
        order = self.header.order
        version = struct.unpack_from(order + "I", data)[0] if len(data) >= 4 else 0
        if version != 1 or len(data) < 36:
            return False
        uuid = data[4:20]
        (base,) = struct.unpack_from(order + "Q", data, 20)
        path = text_of(data[36:].partition(b"\0")[0])
        self._name(_Named("load-binary", None if base == _NOWHERE else base, path, uuid, note.offset + 4))
        return True

    def _sniff(self) -> None:
        for segment in self._memory.iter_range(0, 1 << self.header.bits):
            head = self._at(segment.dump_offset, min(segment.dumped_bytes, len(_CACHE_MAGIC)))
            if head[:4] in MACH_MAGICS:
                found = self._image_at(segment.start)
                if found is not None:
                    found.sniffed = True
            elif head == _CACHE_MAGIC and len(self._caches) < _MAX_SHARED_CACHES:
                self._take_cache(segment.start)

    def _take_cache(self, place: int) -> None:
        """The header of a shared cache: its UUID, and the dyld in it."""
        header = self._memory.read(place, _CACHE_START_AT + 8)
        if len(header) < _CACHE_START_AT + 8:
            return
        self._caches.append((place, header[_CACHE_UUID_AT : _CACHE_UUID_AT + 16].hex()))
        (mappings_at,) = struct.unpack_from(self.header.order + "I", header, 16)
        (dyld,) = struct.unpack_from(self.header.order + "Q", header, _CACHE_DYLD_AT)
        (start,) = struct.unpack_from(self.header.order + "Q", header, _CACHE_START_AT)
        # The mappings follow the header, so they tell how much of it there is. Before macOS 13 the field was another
        # address, where no header stands.
        base = dyld - start + place
        if mappings_at >= len(header) and 0 < start <= dyld and self._memory.read(base, 4) in MACH_MAGICS:
            self._name(_Named("shared-cache", base, "", _NO_UUID, 0))

    def _read_header(self, found: _Found) -> None:
        """Fills `image`, else `lack`."""
        if found.image is not None or found.lack is not None:
            return
        memory, base = self._memory, found.base
        head = memory.read(base, MACHO_HEADER_BYTES)
        found.lack = memory.lack(base)
        if found.lack is None and not any(head):
            found.lack = Unread.NOT_DUMPED  # lldb writes zeros for pages that it could not read
        if found.lack is not None:
            return
        try:
            self._commands_left -= parse_mach_header(head).command_bytes
            if self._commands_left < 0:
                raise BrokenMachO("too many load commands")
            found.image = read_mach_image(lambda offset, length: memory.read(base + offset, length), None)
        except (NotMachO, BrokenMachO):
            found.lack = Unread.BROKEN
            if self._commands_left < 0:
                self._lose(f"The images have over {_COMMAND_BUDGET_BYTES} bytes of load commands: not all were read.")
            return
        if found.image.unread is Unread.TRUNCATED:
            header = found.image.header
            found.lack = memory.lack(base + header.size_bytes + header.command_bytes - 1) or Unread.TRUNCATED
        else:
            found.lack = found.image.unread

    # -- dyld's own lists

    def _follow_dyld(self) -> str:
        """
        Reads all headers and names the images in dyld's lists, which may name another dyld, until there is nothing new
        to follow. Returns the UUID of the shared cache, "" where the lists do not tell.
        """
        cache_uuid, followed = "", set[int]()
        while True:
            for found in self._found.values():
                self._read_header(found)
                if found.is_a(MH_DYLINKER):
                    self._find_dyld_list(found)
            places = self._list_places.keys() - followed
            if not places:
                return cache_uuid
            for place in sorted(places):
                cache_uuid = self._follow_dyld_list(place) or cache_uuid
            followed |= places

    def _find_dyld_list(self, found: _Found) -> None:
        section = found.image.section("__all_image_info") if found.image is not None else None
        slide = _slide(found)
        if section is not None and slide is not None:
            self._add_dyld_list(section.address + slide & self._mask)

    def _add_dyld_list(self, place: int) -> None:
        if len(self._list_places) < _MAX_DYLDS:
            self._list_places[place] = None

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        """As many of the `count` words at the address as the core holds."""
        word_bytes = self.header.bits // 8
        data = self._memory.read(address, count * word_bytes)
        letter = "Q" if word_bytes == 8 else "I"
        return struct.unpack_from(f"{self.header.order}{len(data) // word_bytes}{letter}", data)

    def _follow_dyld_list(self, place: int) -> str:
        """
        struct dyld_all_image_infos, in words of the address size: version and number of images (32 bits each), array,
        notifier, flags, dyld's own address (2), ..., number of UUIDs and array of them (8), ..., UUID of the shared
        cache (13). In brackets, the version of the structure that brought a field.
        """
        word_bytes = self.header.bits // 8
        numbers = self._memory.read(place, 8)
        if len(numbers) < 8:
            self._lose("dyld's list of images is not in the core.")
            return ""
        version, count = struct.unpack(self.header.order + "2I", numbers)
        words = self._words(place + 8, 24)
        array = words[0] if words else 0
        if not 1 <= version <= _MAX_LIST_VERSION:
            self._lose(f"dyld's list of images is of version {version}, which is not known.")
            return ""
        if count and not array:
            self._lose("dyld was changing its list of images when the core was written.")
        for index in range(min(count, _MAX_IMAGES) if array else 0):
            entry = self._words(array + index * 3 * word_bytes, 3)
            if len(entry) < 3:
                self._lose(f"dyld's list of {count} images is cut after {index}.")
                break
            self._listed = True
            self._name(_Named("dyld-image-list", entry[0], self._text(entry[1]), _NO_UUID, 0))
            if index == 0 and self._first is None:
                self._first = entry[0]  # the executable
        if version >= 2 and len(words) > _AT_DYLD and words[_AT_DYLD]:
            self._name(_Named("dyld-image-list", words[_AT_DYLD], "", _NO_UUID, 0))
        if version >= 8 and len(words) > _AT_UUIDS:
            self._follow_dyld_uuids(words[_AT_UUIDS - 1], words[_AT_UUIDS])
        if version < 13 or len(words) <= _AT_CACHE_UUID:
            return ""
        uuid = self._memory.read(place + 8 + _AT_CACHE_UUID * word_bytes, 16)
        return uuid.hex() if len(uuid) == 16 and any(uuid) else ""

    def _follow_dyld_uuids(self, count: int, array: int) -> None:
        word_bytes = self.header.bits // 8
        for index in range(min(count, _MAX_IMAGES) if array else 0):
            place = array + index * (word_bytes + 16)
            base, uuid = self._words(place, 1), self._memory.read(place + word_bytes, 16)
            offset = self._memory.dump_offset(place + word_bytes)
            if not base or len(uuid) < 16 or offset is None:
                self._lose(f"dyld's list of {count} UUIDs is cut after {index}.")
                return
            self._name(_Named("dyld-uuid-list", base[0], "", uuid, offset))

    def _text(self, address: int) -> str:
        """The NUL-terminated text at an address."""
        if not address or self._text_left <= 0:
            return ""
        text = self._memory.read_text(address)
        self._text_left -= len(text) + 1
        return text

    def _tell_unlisted(self) -> None:
        if self._listed:
            return
        self._lose(
            "The core holds no list of images that can be read. Those that do not begin a segment, such as the "
            "libraries in the dyld shared cache, are not known."
        )
        for address, uuid in self._caches:
            self._lose(
                f"The dyld shared cache {uuid} is in the core at {address:#x}; which of its libraries the process used "
                "is not known."
            )

    # -- the outcome

    def _is_image(self, found: _Found) -> bool:
        if found.named:
            return True
        if found.image is not None:
            return found.image.header.file_type in _IMAGE_TYPES
        return self._runs(found)

    def _runs(self, found: _Found) -> bool:
        return not self._memory.has_code or "x" in self._memory.flags(found.base)

    def _main(self) -> _Found | None:
        """The executable, where something tells which one it is."""
        if self._first is not None and self._first in self._found:
            return self._found[self._first]
        programs = [found for found in self._found.values() if found.is_a(MH_EXECUTE)]
        running = [found for found in programs if self._runs(found)]
        if len(running) > 1:
            places = ", ".join(f"{found.base:#x}" for found in running[:8])
            self._conflict(f"There are several executables ({places}), and nothing tells which of them ran.")
        return running[0] if len(running) == 1 else None

    def _finish(self, found: _Found, is_main: bool) -> DumpImage:
        """The image as others see it."""
        image = found.image
        says = dict(image.says) if image is not None else {}
        readings = list(self._readings(found))
        may_be_go = image is not None and (image.uuid is None or image.section("__go_buildinfo") is not None)
        if image is not None and may_be_go and self._go_left:
            readings += self._read_go(found, image, says)
        self._compare(found, readings)
        path = next((named.path for named in found.named if named.path), "")
        install_name = image.install_name if image is not None else ""
        if path and install_name not in ("", path):
            says["install_name"] = install_name
        if not (found.named or is_main or self._runs(found)):
            says["loaded"] = "no: mapped or read for another reason than to run it"
        return DumpImage(
            name=path or install_name or ("main executable" if is_main else f"image at {found.base:#x}"),
            base=found.base,
            readings=tuple(readings),
            unread=None if readings else found.lack or Unread.NO_ID,
            mapped=self._mapped(found),
            is_main=is_main,
            machine=(image.header if image is not None else self.header).arch,
            says=says,
        )

    def _finish_homeless(self, named: _Named) -> DumpImage:
        reading = Reading(uuid_id(named.uuid.hex()), named.uuid_offset, named.rule)
        return DumpImage(named.path or "image at an unknown address", None, (reading,), machine=self.header.arch)

    def _readings(self, found: _Found) -> Iterator[Reading]:
        """By its header, then by the lists that name a UUID."""
        image = found.image
        if image is not None and image.uuid is not None:
            offset = self._memory.dump_offset(found.base + image.uuid_offset)
            rule = "segment-sniff" if found.sniffed else found.named[0].rule
            yield Reading(uuid_id(image.uuid), offset or 0, rule)
        for named in found.named:
            if named.uuid != _NO_UUID:
                yield Reading(uuid_id(named.uuid.hex()), named.uuid_offset, named.rule)

    def _read_go(self, found: _Found, image: MachImage, says: dict[str, str]) -> Iterator[Reading]:
        """Go's own build ID; puts what Go wrote about the build into `says`."""
        slide = _slide(found)
        if slide is None:
            return
        self._go_left -= 1

        def place(offset: int) -> tuple[int, int]:
            """(address, bytes that follow in its segment) of a place in the image's file."""
            for part in image.segments:
                if part.fileoff <= offset < part.fileoff + part.filesize:
                    skip = offset - part.fileoff
                    return part.vmaddr + slide + skip & self._mask, part.filesize - skip
            return 0, 0

        def read_file(offset: int, length: int) -> bytes:
            address, there = place(offset)
            return self._memory.read(address, min(length, there))

        build_id = read_mach_go_id(read_file, image)
        info = read_mach_go_build_info(read_file, None, image)
        if info is not None:
            says |= go_words(info)
        if build_id is not None:
            offset = self._memory.dump_offset(place(build_id[1])[0])
            rule = "segment-sniff" if found.sniffed else found.named[0].rule
            yield Reading(build_id[0], offset or 0, rule)

    def _compare(self, found: _Found, readings: list[Reading]) -> None:
        by_value: dict[str, Reading] = {}
        for reading in readings:
            if reading.id.kind is IdKind.UUID:
                by_value.setdefault(reading.id.value, reading)
        if len(by_value) > 1:
            said = "; ".join(f"{one.rule} says {value} (byte {one.offset:#x})" for value, one in by_value.items())
            self._conflict(f"The image at {found.base:#x} has different UUIDs: {said}.")

    def _mapped(self, found: _Found) -> tuple[Mapped, ...]:
        """The segments of the image, and what of them the core holds."""
        slide = _slide(found)
        if found.image is None or slide is None:
            return ()
        parts: list[Mapped] = []
        for part in found.image.segments:
            if part.flags == "---" or not part.vmsize or self._mapped_left <= 0:
                continue  # __PAGEZERO: nothing is mapped there
            self._mapped_left -= 1
            start = part.vmaddr + slide & self._mask
            segment = self._memory.find(start)
            if segment is None:
                parts.append(Mapped(start, start + part.vmsize, part.fileoff, part.flags))
                continue
            skip = start - segment.start
            dumped = max(min(segment.dumped_bytes - skip, part.vmsize), 0)
            place = segment.dump_offset + skip if dumped else 0
            parts.append(Mapped(start, start + part.vmsize, part.fileoff, segment.flags, place, dumped))
        return tuple(parts)


def _slide(found: _Found) -> int | None:
    """What is added to the image's addresses; None where its header does not tell."""
    text = found.image.text if found.image is not None else None
    return None if text is None else found.base - text.vmaddr
