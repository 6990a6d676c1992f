"""Which memory of a process goes into its core: the stacks and what leads to them, or all that its filter asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pmforensics.collect.core_image import Segment
from pmforensics.collect.freeze import FrozenThread
from pmforensics.collect.target_memory import (
    Layout,
    LoadedObject,
    Memory,
    PageTable,
    Range,
    Usage,
    find_images,
    iter_image_ranges,
    iter_loaded_objects,
)
from pmforensics.formats.proc import Mapping as Mapped
from pmforensics.model.capture import GIB, KIB, MIB

HOLE_BYTES = MIB  # shorter untouched stretches are written as zeros: a segment for each would swamp the readers
SCAN_BYTES = 64 * GIB  # of partly used mappings, where the kernel has no PAGEMAP_SCAN: about a second
DATA_BYTES = MIB  # largest writable section of an image that a core of stacks holds
ALL_DATA_BYTES = 8 * MIB
TLS_BEFORE_BYTES, TLS_AFTER_BYTES = 2 * KIB, 2304  # glibc: variables before the thread pointer, struct pthread at it
EARLY_BYTES = MIB  # a piece with a stack in it that is no longer than this is copied first as it is

# Bits of coredump_filter, and what the kernel gives to a process that nobody told otherwise, core(5).
DEFAULT_FILTER = 0x33
ANONYMOUS_PRIVATE, ANONYMOUS_SHARED, MAPPED_PRIVATE, MAPPED_SHARED = 1 << 0, 1 << 1, 1 << 2, 1 << 3
HUGETLB_PRIVATE, HUGETLB_SHARED = 1 << 5, 1 << 6

RANK_STACKS, RANK_WAYS, RANK_REST = 0, 1, 2
_UNREADABLE = ("[vvar]", "[vvar_vclock]", "[vsyscall]")


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """
    What a core may cost.

    allow_pause_s   longest standstill of the target
    stack_bytes     of each stack, from its pointer up
    leading_bytes   of all stacks together with what leads to them (ELF headers, loaded objects, small data)
    """

    allow_pause_s: float
    stack_bytes: int
    leading_bytes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """
    The process that a core is planned of.

    threads   may be empty: a plan for the size alone
    """

    layout: Layout
    threads: Sequence[FrozenThread]
    auxv: Mapping[int, int]
    memory: Memory
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """
    The plan of a core.

    segments       by address, without overlaps
    objects        what the dynamic linker says it loaded
    lost_stacks    threads whose stack pointer points into no mapping
    dropped_bytes  wanted, and left out because of a limit
    """

    segments: tuple[Segment, ...]
    objects: tuple[LoadedObject, ...]
    lost_stacks: tuple[int, ...]
    dropped_bytes: int

    @property
    def held(self) -> list[Segment]:
        """The segments whose bytes go into the core."""
        return [segment for segment in self.segments if segment.held]

    @property
    def held_bytes(self) -> int:
        """Size of the contents."""
        return sum(segment.bytes for segment in self.held)


class _Pages:
    """A set of pages with a limit; what lies in no mapping is ignored."""

    def __init__(self, layout: Layout, limit_bytes: int, page_bytes: int) -> None:
        self._layout = layout
        self._page_bytes = page_bytes
        self._limit = limit_bytes // page_bytes
        self._pages: dict[int, int] = {}  # page number -> rank
        self.dropped_bytes = 0

    def add(self, wanted: Range, rank: int) -> None:
        """Add the pages of a range, as far as they are mapped and can be read."""
        at, end = wanted
        end = min(end, 1 << 64)
        while at < end and (mapping := self._layout.find(at)) is not None:
            stop = min(end, mapping.end)
            if mapping.path not in _UNREADABLE:
                for page in range(at // self._page_bytes, -(-stop // self._page_bytes)):
                    if page in self._pages:
                        continue
                    if len(self._pages) < self._limit:
                        self._pages[page] = rank
                    else:
                        self.dropped_bytes += self._page_bytes
            at = stop

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, rank) of neighbouring pages of one mapping, by address; the rank is that of the first page."""
        run: list[int] | None = None
        for page in sorted(self._pages):
            address = page * self._page_bytes
            if run is not None and run[1] == address and self._layout.find(address) is self._layout.find(run[0]):
                run[1] += self._page_bytes
                continue
            if run is not None:
                yield run[0], run[1], run[2]
            run = [address, address + self._page_bytes, self._pages[page]]
        if run is not None:
            yield run[0], run[1], run[2]


def plan_stacks(subject: Subject, limits: CoreLimits) -> Contents:
    """
    Every stack from its pointer up, and the pages by which a debugger finds its way.

    These are, in this order until the limit: stacks; ELF headers and build IDs of the images, the vDSO, the chain of
    loaded objects; thread-local storage; small writable data of the images, without which a debugger would show
    their initial values from the file as if they were the present ones.
    """
    pages, objects, lost = _leading_pages(subject, limits)
    layout = subject.layout
    for thread in subject.threads:
        if anchor := thread.thread_pointer:
            pages.add((max(anchor - TLS_BEFORE_BYTES, 0), anchor + TLS_AFTER_BYTES), RANK_WAYS)
    budget = ALL_DATA_BYTES
    for mapping in sorted(_image_data(layout.mappings), key=lambda mapping: mapping.end - mapping.start):
        size = mapping.end - mapping.start
        if size <= min(DATA_BYTES, budget):
            budget -= size
            pages.add((mapping.start, mapping.end), RANK_WAYS)
    held = _by_mapping(layout, pages.runs())
    segments = tuple(
        segment for mapping in layout.mappings for segment in _pieces(mapping, held.get(mapping.start, []))
    )
    return Contents(segments, objects, lost, pages.dropped_bytes)


def plan_full(
    subject: Subject, limits: CoreLimits, usage: Mapping[int, Usage], coredump_filter: int | None, table: PageTable
) -> Contents:
    """
    What the target's coredump_filter asks for, as the kernel reads it, plus what `plan_stacks` holds of stacks and
    ways. Mappings that were never touched, and untouched stretches of HOLE_BYTES, are recorded as empty.
    """
    pages, objects, lost = _leading_pages(subject, limits)
    layout = subject.layout
    asked = DEFAULT_FILTER if coredump_filter is None else coredump_filter
    leading = _by_mapping(layout, pages.runs())
    segments: list[Segment] = []
    dropped = pages.dropped_bytes
    scan_bytes = SCAN_BYTES
    for mapping in layout.mappings:
        used = usage.get(mapping.start, Usage())
        first = leading.get(mapping.start, [])
        if not _asked_for(mapping, used, asked):
            segments += _pieces(mapping, first)
            continue
        size = mapping.end - mapping.start
        held: list[Range] = [(mapping.start, mapping.end)]
        # In a swapped shared mapping the page tables do not tell what is there, so all of it is read.
        if used.rss_bytes + used.swap_bytes < size and not ("sh" in used.flags and used.swap_bytes):
            if size > scan_bytes and not table.scans:
                dropped += used.rss_bytes + used.swap_bytes
                segments += _pieces(mapping, first)
                continue
            scan_bytes -= size
            held = table.pieces(mapping.start, mapping.end, HOLE_BYTES)
        segments += _pieces(mapping, _ranked(held, first))
    return Contents(tuple(_in_readable_order(segments)), objects, lost, dropped)


def _leading_pages(subject: Subject, limits: CoreLimits) -> tuple[_Pages, tuple[LoadedObject, ...], tuple[int, ...]]:
    layout, threads, memory = subject.layout, subject.threads, subject.memory
    pages = _Pages(layout, limits.leading_bytes, subject.page_bytes)
    # With very many threads each gets less, so that none gets nothing.
    fair_bytes = limits.leading_bytes * 3 // 4 // max(len(threads), 1)
    share_bytes = max(subject.page_bytes, min(limits.stack_bytes, fair_bytes))
    lost: list[int] = []
    for thread in threads:
        start = thread.sp - thread.machine.red_zone_bytes
        mapping = layout.find(thread.sp)
        if mapping is None:
            lost.append(thread.tid)
            continue
        pages.add((max(start, mapping.start), min(thread.sp + share_bytes, mapping.end)), RANK_STACKS)
    objects: list[LoadedObject] = []
    for found in iter_loaded_objects(subject.auxv, memory):
        if isinstance(found, LoadedObject):
            objects.append(found)
            pages.add(found.entry, RANK_WAYS)
            pages.add((found.name_at, found.name_at + len(found.name) + 1), RANK_WAYS)
        else:
            pages.add(found, RANK_WAYS)
    for mapping in layout.mappings:
        if mapping.path == "[vdso]":
            pages.add((mapping.start, mapping.end), RANK_WAYS)
    for image in find_images(layout.mappings):
        for part in iter_image_ranges(image, memory):
            pages.add(part, RANK_WAYS)
    return pages, tuple(objects), tuple(lost)


def _image_data(mappings: Sequence[Mapped]) -> Iterator[Mapped]:
    """Writable sections of images: private, of a file that is also mapped executable, or the rest of its .bss."""
    code = {(mapping.dev, mapping.inode) for mapping in mappings if mapping.inode and "x" in mapping.perms}
    before: Mapped | None = None
    for mapping in mappings:
        is_data = mapping.inode != 0 and (mapping.dev, mapping.inode) in code and mapping.perms.startswith("rw-p")
        is_bss = (
            not mapping.path
            and mapping.perms == "rw-p"
            and before is not None
            and before.end == mapping.start
            and before.inode != 0
            and (before.dev, before.inode) in code
            and "w" in before.perms
        )
        if is_data or is_bss:
            yield mapping
        before = mapping


def _asked_for(mapping: Mapped, used: Usage, asked: int) -> bool:
    """Whether the kernel would dump the whole mapping, judged by what /proc shows of it."""
    if mapping.path == "[vdso]":
        return True
    if mapping.path in _UNREADABLE or used.rss_bytes + used.swap_bytes == 0 or used.flags & {"dd", "io"}:
        return False
    shared = "sh" in used.flags
    if "ht" in used.flags:
        return bool(asked & (HUGETLB_SHARED if shared else HUGETLB_PRIVATE))
    if shared:
        # Shared memory that no name leads to any more counts as anonymous.
        return bool(asked & (ANONYMOUS_SHARED if mapping.deleted else MAPPED_SHARED))
    if used.anonymous_bytes + used.swap_bytes and asked & ANONYMOUS_PRIVATE:
        return True
    return bool(mapping.inode and asked & MAPPED_PRIVATE)


def _by_mapping(layout: Layout, runs: Iterable[tuple[int, int, int]]) -> dict[int, list[tuple[int, int, int]]]:
    found: dict[int, list[tuple[int, int, int]]] = {}
    for run in runs:
        mapping = layout.find(run[0])
        if mapping is not None:
            found.setdefault(mapping.start, []).append(run)
    return found


def _without(whole: Range, holes: Iterable[Range]) -> list[Range]:
    parts: list[Range] = []
    at = whole[0]
    for start, end in holes:
        if at < start:
            parts.append((at, start))
        at = end
    if at < whole[1]:
        parts.append((at, whole[1]))
    return parts


def _ranked(held: Sequence[Range], first: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same ranges with ranks: smaller ones earlier, and pieces with a stack in them first."""
    ranked: list[tuple[int, int, int]] = []
    stacks = [(start, end) for start, end, rank in first if rank == RANK_STACKS]
    for start, end in held:
        inside = [(max(at, start), min(stop, end)) for at, stop in stacks if at < end and stop > start]
        rank = RANK_REST + (end - start)
        if inside and end - start <= EARLY_BYTES:
            ranked.append((start, end, RANK_STACKS))
            continue
        ranked += ((*part, rank) for part in _without((start, end), inside))
        ranked += ((*part, RANK_STACKS) for part in inside)
    ranked += (run for run in first if not any(start < run[1] and run[0] < end for start, end in held))
    return sorted(ranked)


def _in_readable_order(segments: Iterable[Segment]) -> Iterator[Segment]:
    """No segment but a stack precedes, in the file, the one that it directly follows in memory; see `lay_out`."""
    before: Segment | None = None
    for segment in segments:
        follows = before is not None and before.held and before.end == segment.start
        if before is not None and follows and segment.held and segment.rank != RANK_STACKS:
            segment = replace(segment, rank=max(segment.rank, before.rank))
        before = segment
        yield segment


def _pieces(mapping: Mapped, held: Sequence[tuple[int, int, int]]) -> Iterator[Segment]:
    """The whole mapping as segments: those held, and what lies between them."""
    at = mapping.start
    zeros = mapping.inode == 0 and mapping.perms.endswith("p") and not mapping.path.startswith("[v")
    for start, end, rank in held:
        if at < start:
            yield Segment(at, start, mapping.perms, held=False)
        yield Segment(start, end, mapping.perms, held=True, rank=rank, untouched_is_zero=zeros)
        at = end
    if at < mapping.end:
        yield Segment(at, mapping.end, mapping.perms, held=False)
