"""
Images of Mach-O cores agree with lldb, and are found by every trace that leads to them.

Only macOS writes Mach-O cores, so the cores here are synthetic: their container, notes and dyld's list come from
macho_writer, what is loaded in them was built with clang and ld64.lld. lldb reads the same files and is the judge.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import BrokenMachO, NotMachO
from pmforensics.formats.macho import read_macho_slices
from pmforensics.formats.macho_core import read_macho_core_images
from pmforensics.model.image import DumpImage, DumpImages, IdKind, Unread
from tests import zoo
from tests.formats import mac_build
from tests.formats.mac_build import ARCHES, Build, uuids
from tests.formats.macho_writer import (
    ARM,
    ARM64,
    NOWHERE,
    PAGE,
    PPC,
    X86_64,
    CoreWriter,
    MachWriter,
    Memory,
    Section,
)
from tests.formats.mutations import mutated
from tests.formats.test_macho import Counted, from_bytes, go

CPUS = {"x86_64": X86_64, "arm64": ARM64}
MAIN, LIBRARY, DYLD, CACHE = 0x100000000, 0x104000000, 0x110000000, 0x180000000
UUID, OTHER_UUID, CACHE_UUID = bytes(range(1, 17)), bytes(range(2, 18)), b"\x77" * 16
NEEDS_LLVM = pytest.mark.needs(*mac_build.TOOLS)


def images_of(core: CoreWriter | bytes) -> DumpImages:
    return read_macho_core_images(*from_bytes(core.render() if isinstance(core, CoreWriter) else core))


def by_base(images: DumpImages) -> dict[int | None, DumpImage]:
    return {image.base: image for image in images.images}


def told(image: DumpImage) -> list[tuple[str, str]]:
    return [(reading.rule, reading.id.value) for reading in image.readings]


def image(uuid: bytes = UUID, *, file_type: int = 6, name: str = "/opt/liba.dylib", **layout: object) -> bytes:
    """The first page of a library in memory."""
    form = MachWriter(file_type=file_type, **layout)  # type: ignore[arg-type]
    form.segment("__TEXT", 0, PAGE, 0, PAGE)
    if file_type == 6:
        form.dylib(name)
    return form.uuid(uuid).render().ljust(PAGE, b"\0")


def dyld(cpu: tuple[int, int] = ARM64) -> list[Memory]:
    """dyld at DYLD, whose list of images is at DYLD + 0x4000; lldb finds the list by its symbol."""
    form = MachWriter(cpu=cpu, file_type=7).segment("__TEXT", 0, 0x4000, 0, 0x4000)
    place = Section("__DATA", "__all_image_info", 0x4000, 0x100, 0x4000)
    form.segment("__DATA", 0x4000, 0x4000, 0x4000, 0x4000, 3, (place,))
    form.segment("__LINKEDIT", 0x8000, 0x4000, 0x8000, 0x4000, 1).uuid(b"\x11" * 16).dylinker("/usr/lib/dyld")
    form, tables = form.symbols(0x8000, ("_dyld_all_image_infos", 0x4000, 1))
    return [Memory(DYLD, form.render().ljust(0x4000, b"\0")), Memory(DYLD + 0x8000, tables.ljust(0x4000, b"\0"), 1)]


def cache(*images: tuple[int, bytes]) -> Memory:
    """One large piece of a shared cache, with images inside."""
    data = bytearray(b"dyld_v1  arm64e\0".ljust(0x58, b"\0") + CACHE_UUID).ljust(0x20000, b"\0")
    for at, content in images:
        data[at : at + len(content)] = content
    return Memory(CACHE, bytes(data))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    folder = tmp_path_factory.mktemp("built")
    return {arch: mac_build.build(folder / arch, arch) for arch in ARCHES}


# ---- lldb


def lldb_images(core: CoreWriter, path: Path) -> set[tuple[str, int, str]]:
    """(UUID, address, path) of every image, in the words of lldb."""
    path.write_bytes(core.render())
    command = [zoo.get_tool("lldb"), "--no-lldbinit", "--batch", "-o", f'target create --core "{path}"']
    ran = subprocess.run([*command, "-o", "image list"], capture_output=True, text=True, timeout=120)
    rows = re.findall(r"^\[ *\d+\] ([0-9A-F-]{36}) (0x[0-9a-f]{16}) (\S+)", ran.stdout, re.MULTILINE)
    return {(uuid.replace("-", "").lower(), int(base, 16), name) for uuid, base, name in rows}


def our_images(core: CoreWriter) -> set[tuple[str, int, str]]:
    found = images_of(core)
    assert found.conflicts == ()
    return {(reading.id.value, one.base, one.name) for one in found.images for reading in one.readings}


def loaded(build: Build, arch: str) -> CoreWriter:
    """A core of a process that runs the program, with the library outside of the shared cache."""
    program, library = build.program.read_bytes(), build.library.read_bytes()
    memory = [Memory(MAIN, program[:0x2000]), Memory(LIBRARY, library[:0x2000])]
    return CoreWriter(cpu=CPUS[arch], memory=memory, pc=MAIN + 0x500)


def uuid_of(path: Path) -> bytes:
    (uuid,) = uuids(path).values()
    return bytes.fromhex(uuid)


@NEEDS_LLVM
@pytest.mark.needs("lldb")
@pytest.mark.parametrize("arch", ARCHES)
def test_list_in_a_note_is_what_lldb_says(built: dict[str, Build], tmp_path: Path, arch: str) -> None:
    build = built[arch]
    core = loaded(build, arch).all_image_infos(
        ("/opt/answer/ask", uuid_of(build.program), MAIN),
        ("/opt/answer/libanswer.dylib", uuid_of(build.library), LIBRARY),
    )
    assert our_images(core) == lldb_images(core, tmp_path / "core")
    assert len(our_images(core)) == 2
    assert images_of(core).lost == ()


@NEEDS_LLVM
@pytest.mark.needs("lldb")
@pytest.mark.parametrize("arch", ARCHES)
def test_notes_of_single_binaries_are_what_lldb_says(built: dict[str, Build], tmp_path: Path, arch: str) -> None:
    build = built[arch]
    core = loaded(build, arch)
    core.load_binary("/opt/answer/ask", MAIN, uuid_of(build.program))
    core.load_binary("/opt/answer/libanswer.dylib", LIBRARY, uuid_of(build.library))
    assert our_images(core) == lldb_images(core, tmp_path / "core")
    assert len(our_images(core)) == 2


@NEEDS_LLVM
@pytest.mark.needs("lldb")
@pytest.mark.parametrize("arch", ARCHES)
def test_list_of_dyld_is_what_lldb_says(built: dict[str, Build], tmp_path: Path, arch: str) -> None:
    core = loaded(built[arch], arch)
    core.memory += dyld(core.cpu)
    cached = mac_build.build(tmp_path / "cached", arch, number=1).library
    core.memory.append(cache((0x8000, cached.read_bytes()[:0x2000])))
    images = [
        (MAIN, "/opt/answer/ask"),
        (LIBRARY, "/opt/answer/libanswer.dylib"),
        (CACHE + 0x8000, "/usr/lib/libcached.dylib"),
    ]
    core.memory.append(core.dyld_list(DYLD + 0x4000, images, dyld=DYLD, cache_uuid=CACHE_UUID))
    ours = our_images(core)
    assert ours == lldb_images(core, tmp_path / "core")
    assert len(ours) == 4
    found = images_of(core)
    assert found.lost == ()
    assert found.facts["shared_cache_uuid"] == CACHE_UUID.hex()
    (main,) = (one for one in found.images if one.is_main)
    assert (main.name, main.base, found.images[0]) == ("/opt/answer/ask", MAIN, main)


# ---- traces


def test_image_is_found_by_its_header_alone() -> None:
    core = CoreWriter(memory=[Memory(LIBRARY, image()), Memory(MAIN, image(OTHER_UUID, file_type=2))])
    found = images_of(core)
    assert found.format == "macho-core"
    main, library = found.images
    assert told(main) == [("segment-sniff", OTHER_UUID.hex())]
    assert (main.base, main.is_main, main.machine) == (MAIN, True, "arm64")
    assert told(library) == [("segment-sniff", UUID.hex())]
    assert (library.name, library.base, library.is_main) == ("/opt/liba.dylib", LIBRARY, False)
    data = core.render()
    for one in found.images:
        offset = one.readings[0].offset
        assert data[offset : offset + 16].hex() == one.readings[0].id.value


def test_readings_of_notes_point_at_their_bytes() -> None:
    core = CoreWriter(memory=[Memory(0x1000, bytes(PAGE))])
    core.all_image_infos(("/a", UUID, MAIN)).load_binary("/b", LIBRARY, OTHER_UUID)
    core.main_bin_spec(3, DYLD, CACHE_UUID).main_bin_spec(3, CACHE, UUID, version=1)
    data = core.render()
    found = images_of(data)
    assert {one.base: told(one) for one in found.images} == {
        MAIN: [("all-image-infos", UUID.hex())],
        LIBRARY: [("load-binary", OTHER_UUID.hex())],
        DYLD: [("main-bin-spec", CACHE_UUID.hex())],
        CACHE: [("main-bin-spec", UUID.hex())],
    }
    for one in found.images:
        offset = one.readings[0].offset
        assert data[offset : offset + 16].hex() == one.readings[0].id.value


def test_notes_without_uuid_lead_to_the_header() -> None:
    core = CoreWriter(memory=[cache((0x4000, image()), (0x8000, image(OTHER_UUID)))])
    core.all_image_infos(("/usr/lib/liba.dylib", bytes(16), CACHE + 0x4000)).main_bin_spec(0, CACHE + 0x8000)
    found = by_base(images_of(core))
    assert told(found[CACHE + 0x4000]) == [("all-image-infos", UUID.hex())]
    assert found[CACHE + 0x4000].name == "/usr/lib/liba.dylib"
    assert found[CACHE + 0x4000].says["install_name"] == "/opt/liba.dylib"
    assert told(found[CACHE + 0x8000]) == [("main-bin-spec", OTHER_UUID.hex())]


def test_note_that_says_where_the_list_of_dyld_is() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), cache((0x8000, image(OTHER_UUID)))])
    core.memory.append(core.dyld_list(DYLD, [(MAIN, "/ask"), (CACHE + 0x8000, "/usr/lib/liba.dylib")]))
    core.main_bin_spec(4, DYLD)
    found = images_of(core)
    assert [(one.name, one.is_main) for one in found.images] == [("/ask", True), ("/usr/lib/liba.dylib", False)]
    assert told(found.images[1]) == [("dyld-image-list", OTHER_UUID.hex())]


@pytest.mark.parametrize("by", ["the cache", "the first dyld"])
def test_dyld_in_the_shared_cache_is_followed(by: str) -> None:
    """Since macOS 13 the dyld from disk starts the one in the shared cache, whose list is the one that is kept."""
    region_start, inside = 0x7FF800000000, MachWriter(file_type=7).segment("__TEXT", 0x7FF800004000, PAGE, 0x4000, PAGE)
    place = Section("__DATA_DIRTY", "__all_image_info", 0x7FF800010000, 0x170, 0)
    inside.segment("__DATA_DIRTY", 0x7FF800010000, PAGE, 0x10000, PAGE, 3, (place,))
    inside.uuid(b"\x22" * 16).dylinker("/usr/lib/dyld")
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2))])
    whole = cache((0x4000, inside.render()), (0x8000, image(OTHER_UUID)))
    listed = core.dyld_list(CACHE + 0x10000, [(MAIN, "/ask"), (CACHE + 0x8000, "/usr/lib/liba.dylib")])
    data = bytearray(whole.data)
    data[0x10000 : 0x10000 + len(listed.data)] = listed.data
    if by == "the cache":
        data[16:20] = (0x200).to_bytes(4, "little")
        data[0x78:0x80] = (region_start + 0x4000).to_bytes(8, "little")
        data[0xE0:0xE8] = region_start.to_bytes(8, "little")
    else:
        core.memory += dyld()
        core.memory.append(core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask")], dyld=CACHE + 0x4000))
    core.memory.append(Memory(CACHE, bytes(data)))
    found = images_of(core)
    assert (found.lost, found.conflicts) == ((), ())
    images = by_base(found)
    assert told(images[CACHE + 0x4000])[0][1] == "22" * 16
    assert told(images[CACHE + 0x8000]) == [("dyld-image-list", OTHER_UUID.hex())]
    assert images[MAIN].is_main


def test_identity_from_the_uuid_list_of_dyld_where_no_header_was_dumped() -> None:
    core = CoreWriter(memory=dyld())
    core.memory.append(core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask")], uuids=[(MAIN, UUID)]))
    data = core.render()
    main = images_of(data).images[0]
    assert (main.name, main.is_main, told(main)) == ("/ask", True, [("dyld-uuid-list", UUID.hex())])
    offset = main.readings[0].offset
    assert data[offset : offset + 16] == UUID


def test_binary_of_unknown_address_is_kept() -> None:
    core = CoreWriter(memory=[Memory(0x1000, bytes(PAGE))]).load_binary("/firmware", NOWHERE, UUID)
    (one,) = images_of(core).images
    assert (one.name, one.base, told(one)) == ("/firmware", None, [("load-binary", UUID.hex())])


def test_shared_cache_without_a_list_is_not_guessed_at() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), cache((0x8000, image(OTHER_UUID)))])
    found = images_of(core)
    assert [one.base for one in found.images] == [MAIN]
    assert found.facts["shared_cache_uuid"] == CACHE_UUID.hex()
    assert any("no list of images" in says for says in found.lost)
    assert any(CACHE_UUID.hex() in says and "is not known" in says for says in found.lost)


def test_header_across_two_segments_is_read_by_address() -> None:
    content = image()
    core = CoreWriter(
        memory=[Memory(MAIN, content[:100]), Memory(0x5000, bytes(PAGE), 3), Memory(MAIN + 100, content[100:])]
    )
    (one,) = images_of(core).images
    assert told(one) == [("segment-sniff", UUID.hex())]


@pytest.mark.parametrize(
    ("bits", "big_endian", "cpu"), [(64, False, ARM64), (32, False, ARM), (32, True, PPC), (64, True, PPC)]
)
def test_every_layout(bits: int, big_endian: bool, cpu: tuple[int, int]) -> None:
    layout = {"bits": bits, "big_endian": big_endian, "cpu": cpu}
    core = CoreWriter(**layout)
    place = Section("__DATA", "__all_image_info", PAGE, 0x100, 0)
    linker = MachWriter(**layout, file_type=7).segment("__TEXT", 0, PAGE, 0, PAGE, 5)
    linker.segment("__DATA", PAGE, PAGE, PAGE, PAGE, 3, (place,)).uuid(b"\x11" * 16)
    core.memory = [
        Memory(0x10000, image(file_type=2, **layout)),
        Memory(0x40000, linker.render().ljust(PAGE, b"\0")),
        Memory(0x60000, bytes(PAGE) + image(OTHER_UUID, **layout)),
    ]
    listed = [(0x10000, "/ask"), (0x61000, "/usr/lib/liba.dylib")]
    core.memory.append(core.dyld_list(0x41000, listed, dyld=0x40000, uuids=[(0x10000, UUID)], cache_uuid=CACHE_UUID))
    found = images_of(core)
    assert (found.lost, found.conflicts) == ((), ())
    assert found.facts["shared_cache_uuid"] == CACHE_UUID.hex()
    assert {one.base: told(one) for one in found.images} == {
        0x10000: [("segment-sniff", UUID.hex()), ("dyld-uuid-list", UUID.hex())],
        0x40000: [("segment-sniff", "11" * 16)],
        0x61000: [("dyld-image-list", OTHER_UUID.hex())],
    }
    core.notes = []
    core.all_image_infos(("/ask", UUID, 0x10000)).load_binary("/b", 0x10000, UUID).main_bin_spec(1, 0x10000, UUID)
    rules = [rule for rule, _ in told(by_base(images_of(core))[0x10000])]
    assert rules == ["segment-sniff", "all-image-infos", "load-binary", "main-bin-spec", "dyld-uuid-list"]


@pytest.mark.needs("go")
def test_go_program_in_a_core_is_known_by_its_build_id(tmp_path: Path) -> None:
    path = go(tmp_path / "go", "-ldflags=-B=none")
    data = path.read_bytes()
    (file_slice,) = read_macho_slices(*from_bytes(data))
    slide = 0x2000000
    core = CoreWriter()
    segments = re.findall(
        r"segname (__TEXT|__DATA)\n +vmaddr (0x\w+)\n +vmsize 0x\w+\n +fileoff (\d+)\n +filesize (\d+)",
        mac_build.run(mac_build.OTOOL, "-l", path),
    )
    assert len(segments) == 2
    for name, vmaddr, fileoff, filesize in segments:
        content = data[int(fileoff) : int(fileoff) + int(filesize)]
        core.memory.append(Memory(int(vmaddr, 16) + slide, content, 5 if name == "__TEXT" else 3))
    whole = core.render()
    (one,) = images_of(whole).images
    (reading,) = one.readings
    assert (reading.id,) == file_slice.ids()
    assert reading.id.kind is IdKind.GO
    assert whole[reading.offset :].startswith(reading.id.value.encode())
    assert {name: one.says[name] for name in ("go_version", "go_path")} == {
        name: file_slice.says[name] for name in ("go_version", "go_path")
    }


# ---- doubt


def test_traces_that_disagree_are_told() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image())]).all_image_infos(("/ask", OTHER_UUID, MAIN))
    found = images_of(core)
    (one,) = found.images
    assert [value for _, value in told(one)] == [UUID.hex(), OTHER_UUID.hex()]
    assert "different UUIDs" in found.conflicts[0]
    assert UUID.hex() in found.conflicts[0]
    assert OTHER_UUID.hex() in found.conflicts[0]


def test_file_mapped_to_be_read_is_not_called_loaded() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), Memory(LIBRARY, image(OTHER_UUID), protection=1)])
    main, library = images_of(core).images
    assert "loaded" not in main.says
    assert library.says["loaded"].startswith("no")


def test_dsym_and_object_files_in_memory_are_no_images() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=10)), Memory(LIBRARY, image(file_type=1))])
    assert images_of(core).images == ()


def test_two_executables_are_told_and_neither_is_believed() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), Memory(LIBRARY, image(OTHER_UUID, file_type=2))])
    found = images_of(core)
    assert [one.is_main for one in found.images] == [False, False]
    assert "several executables" in found.conflicts[0]


@pytest.mark.parametrize("kept", [0, 1])
def test_header_that_was_not_dumped_is_said_so(kept: int) -> None:
    """lldb fills pages that it could not read with zeros, the kernel leaves them out."""
    core = CoreWriter(memory=[Memory(LIBRARY, bytes(PAGE) * kept, size=PAGE)])
    core.all_image_infos(("/opt/liba.dylib", bytes(16), LIBRARY))
    (one,) = images_of(core).images
    assert (one.name, one.readings, one.unread) == ("/opt/liba.dylib", (), Unread.NOT_DUMPED)


def test_image_without_uuid_is_told_apart_from_one_that_is_broken() -> None:
    bare = MachWriter(file_type=6).segment("__TEXT", 0, PAGE, 0, PAGE).render().ljust(PAGE, b"\0")
    broken = MachWriter(file_type=6, count=99, command_bytes=8).render().ljust(PAGE, b"\0")
    cut = MachWriter(file_type=6).segment("__TEXT", 0, PAGE).uuid(UUID).render()[:-20]
    core = CoreWriter(memory=[Memory(0x10000, bare), Memory(0x20000, broken), Memory(0x30000, cut, size=PAGE)])
    assert {one.base: one.unread for one in images_of(core).images} == {
        0x10000: Unread.NO_ID,
        0x20000: Unread.BROKEN,
        0x30000: Unread.NOT_DUMPED,
    }


def test_mapped_parts_say_what_the_core_holds() -> None:
    form = MachWriter(file_type=6).segment("__PAGEZERO", 0, 0x100000, protection=0)
    form.segment("__TEXT", 0x100000, PAGE, 0, PAGE, 5).segment("__DATA", 0x101000, PAGE, PAGE, PAGE, 3).uuid(UUID)
    core = CoreWriter(memory=[Memory(MAIN, form.render().ljust(PAGE, b"\0"), 5)])
    core.memory += [Memory(MAIN + PAGE, b"x" * 100, 3, size=PAGE)]
    data = core.render()
    text, rest = images_of(data).images[0].mapped
    assert (text.start, text.end, text.file_offset, text.flags) == (MAIN, MAIN + PAGE, 0, "r-x")
    assert data[text.dump_offset :].startswith(b"\xcf\xfa\xed\xfe")
    assert (rest.start, rest.end, rest.file_offset, rest.flags) == (MAIN + PAGE, MAIN + 2 * PAGE, PAGE, "rw-")
    assert (rest.dumped_bytes, data[rest.dump_offset : rest.dump_offset + 100]) == (100, b"x" * 100)


def test_list_that_dyld_was_changing_is_told() -> None:
    core = CoreWriter(memory=dyld())
    core.memory.append(core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask")], array=0))
    assert any("was changing its list" in says for says in images_of(core).lost)


def test_core_cut_before_its_list_still_tells_what_is_left() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), *dyld()])
    core.memory.append(core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask")]))
    data = core.render()
    found = images_of(data[:-PAGE])
    assert found.declared_bytes is not None
    assert found.declared_bytes > found.actual_bytes == len(data) - PAGE
    assert "is cut" in found.lost[0]
    assert told(found.images[0]) == [("segment-sniff", UUID.hex())]


def test_core_cut_anywhere_tells_the_truth_or_that_it_is_cut() -> None:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)[:0x300]), Memory(LIBRARY, image(OTHER_UUID)[:0x300])])
    core.all_image_infos(("/ask", UUID, MAIN), ("/opt/liba.dylib", OTHER_UUID, LIBRARY))
    data = core.render()
    whole = images_of(data)
    assert (whole.lost, whole.declared_bytes) == ((), len(data) - PAGE + 0x300)
    seen = set()
    for length in (*range(0x800), *range(0x800, whole.declared_bytes, 13)):
        try:
            found = images_of(data[:length])
        except (NotMachO, BrokenMachO):
            assert length < 32
            continue
        assert any("cut" in says for says in found.lost)
        for one in found.images:
            assert {value for _, value in told(one)} <= {UUID.hex() if one.base == MAIN else OTHER_UUID.hex()}
            assert bool(one.readings) == (one.unread is None)
        seen.add(sum(bool(one.readings) for one in found.images))
    assert seen == {0, 1, 2}


# ---- hostile


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", NotMachO, "magic"),
        (b"\xca\xfe\xba\xbe\0\0\0\2", NotMachO, "magic"),
        (MachWriter(file_type=4).render()[:20], BrokenMachO, "cut"),
        (MachWriter(file_type=2).render(), BrokenMachO, "not a core"),
        (MachWriter(file_type=4, count=9).render(), BrokenMachO, "do not fit"),
        (MachWriter(file_type=4, command_bytes=1 << 31).render(), BrokenMachO, "the most"),
    ],
)
def test_what_is_no_core_is_said_in_a_sentence(data: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        images_of(data)


@pytest.mark.parametrize("count", [3, 0xFFFFFFFF])
def test_list_that_claims_more_images_than_there_are(count: int) -> None:
    core = CoreWriter(memory=dyld())
    listed = core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask"), (LIBRARY, "/liba")])
    listed.data = listed.data[:4] + count.to_bytes(4, "little") + listed.data[8 : 0x200 + 48]
    core.memory.append(listed)
    found = images_of(core)
    assert {one.base for one in found.images} == {MAIN, LIBRARY, DYLD}
    assert any(f"list of {count} images is cut after 2" in says for says in found.lost)


def test_note_that_claims_more_images_than_there_are() -> None:
    core = CoreWriter(memory=[]).all_image_infos(("/ask", UUID, MAIN))
    data = bytearray(core.render().rstrip(b"\0") + b"\0")
    at = int.from_bytes(data[56:64], "little")
    data[at + 4 : at + 8] = (0xFFFFFFFF).to_bytes(4, "little")
    found = images_of(bytes(data))
    assert found.images[0].base == MAIN
    assert any("is cut after" in says for says in found.lost)


@pytest.mark.parametrize("version", [0, 9])
def test_notes_and_lists_of_unknown_versions_are_told(version: int) -> None:
    core = CoreWriter(memory=dyld())
    core.memory.append(core.dyld_list(DYLD + 0x4000, [(MAIN, "/ask")], version=version * 1000))
    for owner in ("all image infos", "main bin spec", "load binary"):
        core.notes.append((owner, lambda _: version.to_bytes(4, "little") + bytes(100)))
    found = images_of(core)
    assert [one.base for one in found.images] == [DYLD]
    for what in ('"all image infos"', '"main bin spec"', '"load binary"', "dyld's list"):
        assert any(what in says and "not known" in says for says in found.lost)


@dataclass
class Sparse:
    """A large core of which only the parts that were written are kept."""

    head: bytes
    size: int
    given_bytes: int = 0

    def read(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        self.given_bytes += length
        return self.head[offset : offset + length].ljust(length, b"\0")


def test_what_is_read_does_not_depend_on_the_size_of_the_core() -> None:
    given = []
    for segment_bytes in (1 << 20, 1 << 30):
        form = MachWriter(file_type=4)
        for index in range(1000):
            form.segment("", MAIN + index * segment_bytes, segment_bytes, (index + 100) * segment_bytes, segment_bytes)
        core = Sparse(form.render(), 1100 * segment_bytes)
        found = read_macho_core_images(core.read, core.size)
        assert found.declared_bytes == core.size
        assert found.facts["segments"] == 1000
        given.append(core.given_bytes)
    assert given[0] == given[1] < 1 << 20


def test_many_segments_cost_bytes_in_proportion() -> None:
    given = []
    for count in (10_000, 20_000):
        form = MachWriter(file_type=4)
        for index in range(count):
            form.segment("", MAIN + index * PAGE, PAGE, 1 << 30, PAGE)
        core = Sparse(form.render(), 2 << 30)
        assert read_macho_core_images(core.read, core.size).facts["segments"] == count
        given.append(core.given_bytes)
    assert given[1] < 2.1 * given[0]


def test_many_segments_at_one_header_cost_no_more_than_their_bound() -> None:
    header = MachWriter(file_type=6)
    header.commands = [header.number(0x2B) + header.number(8)] * 10_000
    content = header.uuid(UUID).render()
    form = MachWriter(file_type=4)
    for index in range(30_000):
        form.segment("", MAIN + (index << 20), len(content), 1 << 26, len(content))
    data = form.render().ljust(1 << 26, b"\0") + content
    reader = Counted(data)
    found = read_macho_core_images(reader.read, len(data))
    assert len(found.images) == 20_000
    assert sum(bool(one.readings) for one in found.images) == (16 << 20) // (len(content) - 32)
    assert any("more than 20000 images" in says for says in found.lost)
    assert any("not all were read" in says for says in found.lost)
    assert reader.given_bytes < 64 << 20


def test_many_notes_that_point_at_one_list_cost_no_more_than_their_bound() -> None:
    core = CoreWriter(memory=[])
    core.all_image_infos(*[("", UUID, MAIN + index * PAGE) for index in range(5000)])
    data = core.render()
    form = MachWriter(file_type=4)
    place, entries = len(MachWriter(file_type=4, commands=[bytes(40)] * 5000).render()), data[72:]
    head = entries[:8] + (place + 24).to_bytes(8, "little") + entries[16:24]
    for _ in range(5000):
        form.note("all image infos", place, 24)
    form.tail = head + entries[24:]
    reader = Counted(form.render())
    found = read_macho_core_images(reader.read, len(reader.data))
    assert len(found.images) == 5000
    assert any("the rest was not read" in says for says in found.lost)
    assert reader.given_bytes < 8 << 20


def survives(data: bytes) -> None:
    with contextlib.suppress(NotMachO, BrokenMachO):
        found = images_of(data)
        assert found.actual_bytes == len(data)
        for one in found.images:
            assert one.name
            assert bool(one.readings) == (one.unread is None)
            assert all(0 <= reading.offset < len(data) for reading in one.readings)


def seed() -> bytes:
    core = CoreWriter(memory=[Memory(MAIN, image(file_type=2)), *dyld(), cache((0x8000, image()))])
    core.memory[1].data = core.memory[1].data[:PAGE]
    core.memory[2].data = core.memory[2].data[:PAGE]
    core.memory[3].data = core.memory[3].data[:0x9000]
    listed = [(MAIN, "/ask"), (CACHE + 0x8000, "/usr/lib/liba.dylib")]
    core.memory.append(core.dyld_list(DYLD + 0x4000, listed, uuids=[(MAIN, UUID)], dyld=DYLD, cache_uuid=CACHE_UUID))
    core.all_image_infos(("/ask", UUID, MAIN)).load_binary("/b", LIBRARY, UUID).main_bin_spec(1, MAIN, UUID)
    return core.render()


SEED = seed()


@settings(max_examples=500, deadline=None)
@given(mutated(SEED))
def test_mutated_core_ends_in_images_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 0x200), st.binary(min_size=1, max_size=8), st.integers(0, 3))
def test_mutated_list_of_dyld_ends_in_images(at: int, patch: bytes, piece: int) -> None:
    base = len(SEED) - (0x300 if piece else PAGE)
    place = SEED.rindex(b"\x11\0\0\0\2\0\0\0") + at if piece else base + at
    survives(SEED[:place] + patch + SEED[place + len(patch) :])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xce"]), st.binary(max_size=12), st.binary(max_size=200))
def test_any_bytes_behind_a_magic_end_in_images_or_a_format_error(magic: bytes, middle: bytes, tail: bytes) -> None:
    order = "little" if magic[0] == 0xCF else "big"
    survives(magic + middle.ljust(8, b"\0")[:8] + (4).to_bytes(4, order) + tail)  # type: ignore[arg-type]


@NEEDS_LLVM
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_core_of_real_images_ends_in_images_or_a_format_error(
    built: dict[str, Build], data: st.DataObject
) -> None:
    survives(data.draw(mutated(loaded(built["arm64"], "arm64").render(), head_bytes=0x1800)))
