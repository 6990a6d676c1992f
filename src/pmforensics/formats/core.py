"""
The images of an ELF core: which executables and libraries a process had loaded, and what build each of them is.

This is an own bounded reader and not pyelftools, because that one needs longer to list a core of 72,000 segments than
this one needs for all of its work, and gives up at the first cut table or note instead of keeping what is there.

An identity comes from the bytes of the core and from nowhere else. No single trace leads to every image, so all of
them are followed, and each says which one it was (`Reading.rule`):

    nt-file         NT_FILE maps offset 0 of a file there, and an ELF header stands there
    segment-sniff   a dumped segment begins with the ELF magic
    at-phdr         AT_PHDR points to the executable's program headers
    at-base         AT_BASE is where the dynamic linker itself is
    link-map        the dynamic linker's list (r_debug, link_map) says that something is loaded there
    vdso            AT_SYSINFO_EHDR is where the kernel's own image is
    relro-copy      only a second mapping of the file's first page, made for writing to it, holds the header or the ID
    beyond-pt-note  a GNU build ID directly behind the Go note, where PT_NOTE does not reach

Where an image lies follows from its program headers and AT_PHDR, never from where a magic was found. Notes are read
at load bias + p_vaddr, through whichever segment of the core holds that address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pmforensics.errors import FormatError
from pmforensics.formats.core_memory import (
    AT_BASE,
    AT_ENTRY,
    AT_EXECFN,
    AT_PHDR,
    AT_PHNUM,
    AT_SYSINFO_EHDR,
    ELF_MAGIC,
    CoreFile,
    CoreMemory,
    CoreSegment,
    FileRow,
    Note,
    Progress,
    iter_notes,
    round_up,
    text_of,
)
from pmforensics.formats.core_traces import (
    DT_SONAME,
    DT_STRTAB,
    ET_EXEC,
    PT_DYNAMIC,
    Linked,
    Site,
    Table,
    Traces,
)
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    ProgramHeader,
    ReadAt,
    read_go_build_info,
)
from pmforensics.model.image import DumpImage, DumpImages, IdKind, ImageId, Mapped, Reading, Unread

_GNU, _GO, _FDO = b"GNU\0", b"Go\0\0", b"FDO\0"
_MAX_CONTENT_BYTES = {
    (_GNU, 3): 64,  # build ID: 20 bytes of SHA-1, 16 of MD5 or a UUID, any other length by hand
    (_GO, 4): 4096,  # real ones have 83
    (_FDO, 0xCAFE1A7E): 4096,  # package metadata, JSON
}
# What Go's linker (1.24 and later) makes the GNU build ID from when "redacted" is its own, as Bazel asks for.
_GNU_ID_OF_REDACTED = "498919aff001d8366249403a2544fba2d833084f"
_WEAK_BELOW_BYTES = 8

_VDSO_NAMES = ("linux-vdso", "linux-gate")
# Memory that only looks like a file: what is executable in it was generated and not loaded.
_NAMED_MEMORY = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")
_DELETED = " (deleted)"

_NOTE_WINDOW_BYTES = 1024  # notes of an image have a few hundred bytes
_MAX_NOTE_SEGMENTS = 64  # of one image
_MAX_NOTES = 1024  # of one segment
_MAX_ALL_NOTES = 1 << 16
_MAX_MAPPED = 1 << 17
_MAX_GO_IMAGES = 64  # up to 1 MiB is searched in each
_MAX_CONFLICTS = 100

_MACHINES = {
    2: "sparc", 3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 42: "sh", 43: "sparc64",
    62: "x86_64", 183: "aarch64", 243: "riscv", 258: "loongarch",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DumpedHeaders:
    """
    What a core holds of an image's headers.

    address           of the ELF header in memory (of its copy, where only that is there), or of the program headers
                      where `header` is None
    entry             e_entry, not relocated
    program_headers   as dumped; empty where they are not in the core
    """

    address: int
    header: ElfHeader | None
    entry: int | None
    program_headers: tuple[ProgramHeader, ...]


@dataclass(frozen=True, slots=True)
class ElfCore:
    """A core that was read: its images, the headers of each in the same order, and its memory."""

    images: DumpImages
    headers: tuple[DumpedHeaders | None, ...]
    memory: CoreMemory


def read_core(read: ReadAt, size: int, *, progress: Progress | None = None) -> ElfCore:
    """
    The images and the memory of the ELF core behind `read`, which has `size` bytes.

    Takes time linear in the number of segments and memory that does not depend on the core's size. A core that is cut
    is read as far as it goes, and `lost` says so. The executable comes first, then the others by address. Addresses
    and load biases are modulo the core's address size.

    Besides what `DumpImages` names, `says` of an image may hold: package, go_version, go_path, go_module,
    vcs_revision, vcs_time, vcs_modified, linker_name (how the dynamic linker calls what NT_FILE calls otherwise),
    deleted, offset_in_file (the image lies in an archive, whose name it has), and loaded ("no: ...": the file was
    mapped for another reason than to run it).

    Raises NotElf, BrokenElf (also for ELF files that are no cores); passes on what `read` raises.
    """
    core = CoreFile(read, size)
    traces = Traces(core, progress)
    assembly = _Assembly(traces)
    images = [assembly.finish(image) for image in assembly.images]
    facts: dict[str, int | str] = {
        "elf_class": core.header.elf_class,
        "machine": _machine(core.header.machine),
        "segments": len(core.memory),
        "threads": core.threads,
        "nt_file_rows": len(core.rows),
        "page_bytes": core.page_bytes,
        **assembly.facts(images),
    }
    return ElfCore(
        DumpImages(
            format="elf-core",
            images=tuple(images),
            actual_bytes=size,
            declared_bytes=core.declared_bytes,
            lost=(*core.lost, *traces.lost),
            conflicts=tuple(assembly.conflicts),
            facts=facts,
        ),
        tuple(map(assembly.headers, assembly.images)),
        core.memory,
    )


def read_core_images(read: ReadAt, size: int, *, progress: Progress | None = None) -> DumpImages:
    """The images alone; as `read_core`."""
    return read_core(read, size, progress=progress).images


def gnu_id(content: bytes) -> ImageId:
    """A GNU build ID from what its note holds, labelled where it proves nothing by itself."""
    value = content.hex()
    weak = ""
    if not any(content):
        weak = "all zeros"
    elif len(content) < _WEAK_BELOW_BYTES:
        weak = f"only {len(content)} bytes"
    elif value == _GNU_ID_OF_REDACTED:
        weak = 'made from the Go build ID "redacted", which many programs share'
    return ImageId(IdKind.GNU, value, weak)


def go_id(content: bytes) -> ImageId:
    """A Go build ID from what its note holds, labelled where it proves nothing by itself."""
    value = content.decode("ascii", "backslashreplace")
    weak = ""
    if not any(content):
        weak = "all zeros"
    elif value == "redacted":
        weak = '"redacted", which many programs share'
    return ImageId(IdKind.GO, value, weak)


def _machine(number: int) -> str:
    return _MACHINES.get(number, f"e_machine {number}")


@dataclass(slots=True)
class _Image:
    """
    An image in the making.

    home          where its ELF header belongs, which is where the file's first page is mapped
    end           where its last segment ends
    sites         the headers that belong to it, wherever they stand
    file_offset   where in the file it begins: not at 0 when it lies in an archive (APK)
    main          its program headers as AT_PHDR leads to them
    expected      something else than a header says that a file is loaded here
    lack          why there is no identity
    """

    home: int
    end: int
    bias: int | None = None
    sites: list[Site] = field(default_factory=list)
    rows: list[FileRow] = field(default_factory=list)
    file_offset: int = 0
    main: Table | None = None
    linked: Linked | None = None
    soname: str = ""
    expected: bool = False
    is_main: bool = False
    is_vdso: bool = False
    readings: list[Reading] = field(default_factory=list)
    lack: Unread | None = None
    says: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Site | None:
        """The header that counts: the one at home, else a copy."""
        return next((site for site in self.sites if site.at == self.home), self.sites[0] if self.sites else None)

    @property
    def table(self) -> Table | None:
        """The program headers that count."""
        site = self.site
        if site is not None and site.segments:
            return Table(site.segments, self.bias, site.header.order, site.header.elf_class)
        return self.main

    @property
    def dynamic_at(self) -> int | None:
        """Where the dynamic section is, before wrapping at the address size."""
        table = self.table
        if table is None or table.bias is None:
            return None
        return next((table.bias + part.vaddr for part in table.of_type(PT_DYNAMIC)), None)


class _Assembly:
    """Puts the images together from the traces, and says where the traces disagree."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._core = traces.core
        self._memory = traces.core.memory
        self._auxv = traces.core.auxv
        self._mask = traces.mask
        self._notes_left = _MAX_ALL_NOTES
        self._mapped_left = _MAX_MAPPED
        self._go_left = _MAX_GO_IMAGES
        self._filtered = False
        self.conflicts: list[str] = []
        self.images = self._images_with_header()
        self._index_homes()
        for image in self.images:
            self._claim_rows(image)
        self._add_main()
        self._add_unread_files()
        self._add_linked()
        self._add_named_by_auxv()
        self._index_homes()
        self._tell_vdso()
        self._tell_main()
        for image in self.images:
            self._identify(image)
        self._tell_filter()
        self.images.sort(key=lambda image: not image.is_main)

    def _conflict(self, says: str) -> None:
        if len(self.conflicts) < _MAX_CONFLICTS:
            self.conflicts.append(says)
        elif len(self.conflicts) == _MAX_CONFLICTS:
            self.conflicts.append(f"There are more than {_MAX_CONFLICTS} contradictions; the rest is not listed.")

    # -- which images there are

    def _images_with_header(self) -> list[_Image]:
        """One image for all headers that belong at the same place."""
        images: dict[int, _Image] = {}
        for site in self._traces.sites.values():
            bias = self._traces.choose_bias(site)
            home = self._traces.home(site.segments, bias) if bias is not None else None
            if bias is None or home is None:
                images[site.at] = _Image(site.at, site.at + self._core.page_bytes, sites=[site])
                continue
            end = self._end(site.segments, bias)
            image = images.setdefault(home, _Image(home, end, bias))
            image.sites.append(site)
            image.end = max(image.end, end)
        return list(images.values())

    def _end(self, segments: Iterable[ProgramHeader], bias: int) -> int:
        last = max((part.vaddr + part.memsz for part in segments if part.segment_type == PT_LOAD), default=0)
        return min(round_up(bias + last & self._mask, self._core.page_bytes, 0), self._mask + 1)

    def _index_homes(self) -> None:
        self.images.sort(key=lambda image: image.home)
        self._homes = [image.home for image in self.images]

    def _next_home(self, home: int) -> int:
        """Where the next image begins: no image reaches into it."""
        index = bisect_right(self._homes, home)
        return self._homes[index] if index < len(self._homes) else self._mask + 1

    def _claim_rows(self, image: _Image) -> None:
        """The rows of the image's file that lie where its program headers put them."""
        named = self._core.row_at(image.home)
        if named is not None and named.start == image.home:
            image.file_offset = named.file_offset
        else:
            copies = [self._core.row_at(site.at) for site in image.sites]
            named = next((row for row in copies if row is not None and row.file_offset == 0), None)
        if named is None:
            return
        end = image.end if image.table is not None else self._mask
        within = self._core.rows_from(image.home, min(end, self._next_home(image.home)))
        rows = [row for row in within if row.name == named.name] or [named]
        # Without program headers nothing but the next mapping of the first page tells where the image ends.
        image.rows = rows if image.table is not None else next(self._split(rows))
        image.end = max(image.end, *(row.end for row in image.rows))
        image.expected = True

    def _add_main(self) -> None:
        """Joins what AT_PHDR led to with the image that is there, or adds it as one of its own."""
        main = self._traces.main
        home = self._traces.home(main.segments, main.bias) if main is not None and main.bias is not None else None
        if main is None or main.bias is None or home is None:
            return
        if not self._memory.is_mapped(home) and self._core.row_at(home) is None:
            self._conflict(
                f"AT_PHDR and the program headers there say that the executable begins at {home:#x}, where nothing is."
            )
            return
        image = next((image for image in self.images if image.home == home), None)
        if image is None:
            at = self._auxv[AT_PHDR]
            for other in self.images:
                if other.bias is not None and other.home <= at < other.end:
                    self._conflict(
                        f"AT_PHDR says that the executable's load bias is {main.bias:#x}; the ELF header at "
                        f"{other.home:#x}, within which it points, says {other.bias:#x}."
                    )
            image = _Image(home, self._end(main.segments, main.bias), main.bias)
            self.images.append(image)
            self._index_homes()
            self._claim_rows(image)
        image.main = main
        image.is_main = True
        image.expected = True

    def _add_unread_files(self) -> None:
        """Files that NT_FILE maps executable and whose headers are not in the core or make no sense."""
        claimed = {row for image in self.images for row in image.rows}
        left: dict[str, list[FileRow]] = {}
        for row in self._core.rows:
            if row not in claimed:
                left.setdefault(row.name, []).append(row)
        for rows in left.values():
            for group in self._split(rows):
                first, end = group[0], max(row.end for row in group)
                if first.file_offset == 0 and self._is_no_image(first.start):
                    continue
                is_code = self._may_be_code(group) and not first.name.startswith(_NAMED_MEMORY)
                if is_code or self._holds(first.start, end, AT_PHDR, AT_ENTRY):
                    bias = first.start if first.start == self._auxv.get(AT_BASE) else None
                    self.images.append(_Image(first.start, end, bias, rows=group, expected=True))

    def _split(self, rows: Sequence[FileRow]) -> Iterator[list[FileRow]]:
        """One group for each time that the file is mapped."""
        group: list[FileRow] = []
        for row in rows:
            # A second mapping of the first page that is writable is that of relocation, and belongs to the first.
            if group and row.file_offset == 0 and "w" not in self._memory.flags(row.start):
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _is_no_image(self, at: int) -> bool:
        """Whether the bytes there show that this is something else than an executable or a library."""
        head = self._memory.read(at, len(ELF_MAGIC))
        if head and ELF_MAGIC.startswith(head):
            return at not in self._traces.broken and self._memory.lack(at + ELF_HEADER_BYTES - 1) is None
        return any(head)  # zeros stand for a page that the kernel could not read

    def _may_be_code(self, rows: Sequence[FileRow]) -> bool:
        flags = [self._memory.flags(row.start) for row in rows]
        # gdb and createdump leave out segments of which they dump nothing. Data files are mapped in one piece.
        return any("x" in flag for flag in flags) or ("" in flags and len(rows) > 1)

    def _holds(self, start: int, end: int, *kinds: int) -> bool:
        """Whether one of these values of the auxiliary vector points into the range."""
        return any(start <= self._auxv.get(kind, -1) < end for kind in kinds)

    def _add_linked(self) -> None:
        """Joins the dynamic linker's list with the images; adds what nothing else led to."""
        by_dynamic = {image.dynamic_at & self._mask: image for image in self.images if image.dynamic_at is not None}
        by_bias = {image.bias: image for image in self.images if image.bias}
        by_row = {row: image for image in self.images for row in image.rows}
        for entry in self._traces.linked:
            row = self._core.row_at(entry.dynamic)
            image = by_dynamic.get(entry.dynamic) or (by_row.get(row) if row else None) or by_bias.get(entry.bias)
            if image is None:
                segment = self._memory.find(entry.dynamic)
                image = _Image(entry.bias, max(segment.end if segment else 0, entry.bias + 1), entry.bias)
                self.images.append(image)
            image.expected = True
            image.linked = image.linked or entry
            if image.table is None:
                image.bias = entry.bias
            else:
                self._compare_linked(image, entry)

    def _compare_linked(self, image: _Image, entry: Linked) -> None:
        name = entry.name or "the executable"
        if image.bias is None:
            return
        if image.bias != entry.bias:
            self._conflict(
                f"The dynamic linker's list says that the load bias of {name} is {entry.bias:#x}; "
                f"the program headers at {image.home:#x} say {image.bias:#x}."
            )
            return
        dynamic_at = image.dynamic_at
        if dynamic_at is not None and dynamic_at & self._mask != entry.dynamic:
            self._conflict(
                f"The dynamic linker's list says that the dynamic section of {name} is at {entry.dynamic:#x}; "
                f"its program headers say {dynamic_at & self._mask:#x}."
            )
            return
        if image.site is not None and "link-map" not in image.site.rules:
            image.site.rules.append("link-map")

    def _add_named_by_auxv(self) -> None:
        """What must be there and left no other trace: the executable, the dynamic linker, the kernel's image."""
        for kind in (AT_PHDR, AT_BASE, AT_SYSINFO_EHDR):
            at = self._auxv.get(kind, 0)
            if not self._memory.is_mapped(at) or any(image.home <= at < image.end for image in self.images):
                continue
            if kind == AT_PHDR and any(
                image.is_main or self._holds(image.home, image.end, AT_ENTRY) for image in self.images
            ):
                continue
            home = self._traces.page_of(at)
            bias = at if kind == AT_BASE else None
            self.images.append(_Image(home, home + self._core.page_bytes, bias, expected=True))

    def _tell_vdso(self) -> None:
        at = self._auxv.get(AT_SYSINFO_EHDR, 0)
        for image in self.images:
            if image.rows:
                continue
            if not image.linked:
                image.soname = self._soname(image)
            name = image.linked.name if image.linked else image.soname
            image.is_vdso = bool(at and image.home == at) or name.startswith(_VDSO_NAMES)

    def _soname(self, image: _Image) -> str:
        tags = self._traces.dynamic(image.table) if image.table is not None else {}
        if image.bias is None or DT_STRTAB not in tags or DT_SONAME not in tags:
            return ""
        # On most machines the dynamic linker writes the address over the value from the file.
        strings = tags[DT_STRTAB]
        if not image.home <= strings < image.end:
            strings += image.bias
        return self._memory.read_text(strings + tags[DT_SONAME] & self._mask)

    def _tell_main(self) -> None:
        """Which image is the executable: by AT_PHDR and AT_ENTRY, else by what only executables have."""
        if not any(image.is_main for image in self.images):
            others = [image for image in self.images if not image.is_vdso]
            found = [image for image in others if self._holds(image.home, image.end, AT_PHDR)]
            found = found or [image for image in others if self._holds(image.home, image.end, AT_ENTRY)]
            found = found or [image for image in others if image.linked and not image.linked.name]
            found = found or [image for image in others if self._looks_like_main(image)]
            if len(found) == 1:
                found[0].is_main = True
        for image in self.images:
            if image.is_main:
                self._compare_main(image)

    def _looks_like_main(self, image: _Image) -> bool:
        if image.site is None or image.table is None or image.bias is None:
            return False
        return image.site.header.elf_type == ET_EXEC or bool(image.table.of_type(PT_INTERP))

    def _compare_main(self, image: _Image) -> None:
        site = image.site
        if site is None or image.bias is None:
            return
        header_says = {
            "AT_ENTRY": (AT_ENTRY, image.bias + site.entry & self._mask),
            "AT_PHDR": (AT_PHDR, self._traces.phdr_address(site, image.bias)),
            "AT_PHNUM": (AT_PHNUM, site.header.phnum),
        }
        for name, (kind, value) in header_says.items():
            if value is not None and self._auxv.get(kind, value) != value:
                self._conflict(
                    f"{name} is {self._auxv[kind]:#x}; by the executable's ELF header at {site.at:#x} it is {value:#x}."
                )

    # -- what build they are

    def _identify(self, image: _Image) -> None:
        """Fills readings, says and lack."""
        site = image.site
        if site is not None and site.segments:
            table = Table(site.segments, image.bias, site.header.order, site.header.elf_class)
            rules = site.rules if site.at == image.home else ["relro-copy"]
            self._scan(image, table, lambda part: self._note_place(image, part), rules)
        if image.main is not None:
            self._scan(image, image.main, lambda part: self._note_place(image, part), ["at-phdr"])
        if image.readings:
            lack = None
        elif image.home in self._traces.broken:
            lack = Unread.BROKEN
        elif image.table is not None:
            lack = image.lack or Unread.NO_ID
        elif site is not None:
            lack = site.lack
        else:
            # The header may be cut in the middle.
            lacks = [self._memory.lack(at) for at in (image.home, image.home + ELF_HEADER_BYTES - 1)]
            lack = lacks[0] or lacks[1] or Unread.NOT_DUMPED
        for copy in image.sites:
            if copy.at != image.home:
                self._scan_copy(image, copy)
        image.lack = None if image.readings else lack
        self._compare_readings(image)
        if any(reading.id.kind is IdKind.GO for reading in image.readings):
            self._read_go(image)

    def _scan(
        self, image: _Image, table: Table, place: Callable[[ProgramHeader], int | None], rules: Sequence[str]
    ) -> None:
        """Take what the notes say; `place` tells where a note segment is in memory."""
        for part in [part for part in table.of_type(PT_NOTE) if part.filesz][:_MAX_NOTE_SEGMENTS]:
            start = place(part)
            if start is None:
                image.lack = image.lack or Unread.NOT_DUMPED
                continue
            end = start + part.filesz
            at, owner = start, b""
            for note in self._iter_notes(table.order, start, end, part.align):
                at, owner = note.at + note.content_bytes, note.owner
                self._take(image, note, rules)
            if owner == _GO and end - at < 4:
                self._look_beyond(image, table, round_up(at, 4, start))
            elif end - at >= 12:
                image.lack = image.lack or self._memory.lack(at + 11)

    def _iter_notes(self, order: str, start: int, end: int, align: int) -> Iterator[Note]:
        limit = min(_MAX_NOTES, self._notes_left)
        for note in iter_notes(
            self._memory.read, order, start, end, align, limit=limit, window_bytes=_NOTE_WINDOW_BYTES
        ):
            self._notes_left -= 1
            yield note
        if not self._notes_left:
            self._traces.lose(f"The images have more than {_MAX_ALL_NOTES} notes; the rest was not read.")

    def _take(self, image: _Image, note: Note, rules: Sequence[str]) -> None:
        """Keep what the note says, if it is there whole and its owner is the one to say it."""
        limit = _MAX_CONTENT_BYTES.get((note.owner, note.kind))
        if limit is None:
            return
        if not 1 <= note.content_bytes <= limit:
            self._traces.lose(
                f"The note at {note.at:#x} has {note.content_bytes} bytes, not 1 to {limit}: it was not taken."
            )
            return
        content = self._memory.read(note.at, note.content_bytes)
        offset = self._memory.dump_offset(note.at)
        if len(content) < note.content_bytes or offset is None:
            image.lack = image.lack or self._memory.lack(note.at + len(content))
        elif note.owner == _FDO:
            image.says.setdefault("package", text_of(content.rstrip(b"\0")))
        else:
            found = gnu_id(content) if note.owner == _GNU else go_id(content)
            readings = (Reading(found, offset, rule) for rule in rules)
            image.readings += (reading for reading in readings if reading not in image.readings)

    def _look_beyond(self, image: _Image, table: Table, at: int) -> None:
        """
        The note behind the Go note, if it is a GNU build ID.

        Go's own linker (seen with 1.26) ends PT_NOTE with its own note and puts the GNU build ID directly behind it.
        """
        for part in table.of_type(PT_LOAD):
            start = (table.bias or 0) + part.vaddr & self._mask
            if start <= at < start + part.filesz:
                for note in self._iter_notes(table.order, at, min(at + 128, start + part.filesz), 4):
                    if note.owner == _GNU and note.kind == 3 and 1 <= note.content_bytes <= 64:
                        self._take(image, note, ["beyond-pt-note"])
                    return

    def _note_place(self, image: _Image, part: ProgramHeader) -> int | None:
        """Where a note segment is in memory; None where something else is in its place."""
        at = (image.home + part.offset if image.bias is None else image.bias + part.vaddr) & self._mask
        if not image.rows:
            return at if at < image.home or at < self._next_home(image.home) else None
        wanted = image.file_offset + part.offset
        row = self._core.row_at(at)
        if row is not None and row.name == image.rows[0].name and row.file_offset + at - row.start == wanted:
            return at
        if row is not None and image.bias is not None:
            self._conflict(
                f"By its program headers the notes of {image.rows[0].name}, at {wanted:#x} in the file, are at "
                f"{at:#x}; by NT_FILE that is {row.file_offset + at - row.start:#x} in {row.name}."
            )
        for row in image.rows:
            if 0 <= wanted - row.file_offset < row.end - row.start:
                return row.start + wanted - row.file_offset
        return None

    def _scan_copy(self, image: _Image, copy: Site) -> None:
        """The notes within a copy of the first page."""

        def place(part: ProgramHeader) -> int | None:
            return copy.at + part.offset if part.offset + part.filesz <= self._core.page_bytes else None

        table = Table(copy.segments, None, copy.header.order, copy.header.elf_class)
        self._scan(image, table, place, ["relro-copy"])

    def _compare_readings(self, image: _Image) -> None:
        for kind in (IdKind.GNU, IdKind.GO):
            by_value: dict[str, Reading] = {}
            for reading in image.readings:
                if reading.id.kind is kind:
                    by_value.setdefault(reading.id.value, reading)
            if len(by_value) > 1:
                said = "; ".join(
                    f"{reading.rule} says {value} (byte {reading.offset:#x})"
                    for value, reading in list(by_value.items())[:8]
                )
                self._conflict(f"The image at {image.home:#x} has different {kind.value} build IDs: {said}.")

    def _read_go(self, image: _Image) -> None:
        """What Go wrote about the build, where its data segment is in the core."""
        table = image.table
        if table is None or table.bias is None or not self._go_left:
            return
        self._go_left -= 1
        loads, bias = table.of_type(PT_LOAD), table.bias

        def read_file(offset: int, length: int) -> bytes:
            for part in loads:
                if part.offset <= offset < part.offset + part.filesz:
                    skip = offset - part.offset
                    return self._memory.read(bias + part.vaddr + skip & self._mask, min(length, part.filesz - skip))
            return b""

        try:
            info = read_go_build_info(read_file, None)
        except FormatError:
            return
        if info is None:
            return
        main = f"{info.main.path} {info.main.version}".strip() if info.main is not None else ""
        said = {"go_version": info.go_version, "go_path": info.path, "go_module": main} | {
            f"vcs_{name}": info.settings.get(f"vcs.{name}", "") for name in ("revision", "time", "modified")
        }
        image.says |= {name: value for name, value in said.items() if value}

    # -- the outcome

    def _tell_filter(self) -> None:
        """Whether this is the pattern of a coredump_filter that leaves out the pages with the headers of files."""
        files = [image for image in self.images if image.expected and not image.is_vdso]
        if files and all(self._memory.lack(image.home) is Unread.NOT_DUMPED for image in files):
            self._filtered = True
            self._traces.lose(
                "No header page of a file is in the core: it was written without bit 4 (0x10) of coredump_filter, "
                "which leaves out the build IDs."
            )
            for image in files:
                if image.lack is Unread.NOT_DUMPED:
                    image.lack = Unread.FILTERED

    def finish(self, image: _Image) -> DumpImage:
        """The image as others see it."""
        linker_name = image.linked.name if image.linked else ""
        name = image.rows[0].name if image.rows else linker_name or image.soname
        if name.endswith(_DELETED):
            name = name.removesuffix(_DELETED)
            image.says["deleted"] = "the file was removed or replaced before the core was written"
        if image.file_offset:
            image.says["offset_in_file"] = f"{image.file_offset:#x}"
        if not name and image.is_main:
            name = self._memory.read_text(self._auxv.get(AT_EXECFN, 0)) or self._core.command
        if not name and image.is_vdso:
            name = "[vdso]"
        if linker_name not in ("", name):
            image.says["linker_name"] = linker_name
        mapped = self._mapped(image)
        flags = [part.flags for part in mapped]
        may_run = not self._memory.has_code or "" in flags or any("x" in flag for flag in flags)
        runs = image.bias is not None and may_run
        if image.sites and not (runs or image.is_main or image.is_vdso or image.linked):
            image.says["loaded"] = "no: mapped or read for another reason than to run it"
        return DumpImage(
            name=name,
            base=image.bias,
            readings=tuple(image.readings),
            unread=image.lack,
            mapped=mapped,
            is_main=image.is_main,
            is_vdso=image.is_vdso,
            machine=_machine(image.site.header.machine if image.site is not None else self._core.header.machine),
            says=image.says,
        )

    def _mapped(self, image: _Image) -> tuple[Mapped, ...]:
        """By NT_FILE where it knows the image, else the core's segments under the image's own."""
        found: list[Mapped] = []
        for start, end, file_offset, segment in self._ranges(image):
            if len(found) >= self._mapped_left:
                break
            found.append(_mapped_part(start, end, file_offset, segment))
        self._mapped_left -= len(found)
        return tuple(found)

    def _ranges(self, image: _Image) -> Iterator[tuple[int, int, int, CoreSegment | None]]:
        """(start, end, offset in the file) of what is mapped of the image, and the segment that holds the start."""
        if image.rows or image.table is None or image.bias is None:
            for row in image.rows:
                yield row.start, row.end, row.file_offset - image.file_offset, self._memory.find(row.start)
            return
        page = self._core.page_bytes
        bound = self._next_home(image.home)
        for part in image.table.of_type(PT_LOAD):
            start = image.bias + self._traces.page_of(part.vaddr) & self._mask
            end = start + round_up(part.vaddr % page + part.filesz, page, 0)
            if start >= image.home:
                end = min(end, bound)
            for segment in self._memory.iter_range(start, end):
                begin = max(segment.start, start)
                yield begin, min(segment.end, end), self._traces.page_of(part.offset) + begin - start, segment

    def headers(self, image: _Image) -> DumpedHeaders | None:
        """What the core holds of the image's headers."""
        site = image.site
        if site is not None:
            return DumpedHeaders(site.at, site.header, site.entry, site.segments)
        if image.main is not None:
            return DumpedHeaders(self._auxv[AT_PHDR], None, None, image.main.segments)
        return None

    def facts(self, images: Sequence[DumpImage]) -> dict[str, int | str]:
        """What verification uses besides the images."""
        kinds = {
            "at_phdr": AT_PHDR,
            "at_phnum": AT_PHNUM,
            "at_entry": AT_ENTRY,
            "at_base": AT_BASE,
            "at_sysinfo_ehdr": AT_SYSINFO_EHDR,
        }
        facts: dict[str, int | str] = {name: self._auxv[kind] for name, kind in kinds.items() if kind in self._auxv}
        texts = {
            "at_execfn": self._memory.read_text(self._auxv.get(AT_EXECFN, 0)),
            "command": self._core.command,
            "filter": self._filter(images),
        }
        facts |= {name: text for name, text in texts.items() if text}
        if self._memory.vm_flags:
            facts["segment_flags"] = "VM_READ, VM_WRITE, VM_EXEC instead of PF_R, PF_W, PF_X"
        return facts

    def _filter(self, images: Sequence[DumpImage]) -> str:
        """What of files the core holds, by the look of it."""
        files = [part for image in images if not image.is_vdso for part in image.mapped]
        if self._filtered or not files:
            return "no header pages" if self._filtered else ""
        text_is_there = any(part.dumped_bytes > self._core.page_bytes and "x" in part.flags for part in files)
        return "contents of files" if text_is_there else "header pages"


def _mapped_part(start: int, end: int, file_offset: int, segment: CoreSegment | None) -> Mapped:
    if segment is None:
        return Mapped(start, end, file_offset)
    skip = start - segment.start
    dumped_bytes = max(0, min(segment.dumped_bytes - skip, end - start))
    return Mapped(
        start, end, file_offset, segment.flags, segment.dump_offset + skip if dumped_bytes else 0, dumped_bytes
    )
