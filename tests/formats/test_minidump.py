"""Minidumps of lldb, of Wine and of writers that are not here: images, threads and memory, and nothing invented."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.minidump import (
    BrokenMinidump,
    Cpu,
    MinidumpState,
    NotMinidump,
    Os,
    RegionKind,
    read_dumped_memory,
    read_minidump_images,
    read_minidump_state,
    read_stack_words,
)
from pmforensics.formats.pdb import PdbAgreement, read_pdb_identity
from pmforensics.formats.pe import read_pe_identity
from pmforensics.model.image import DumpImage, DumpImages, IdKind, ImageId, Unread
from tests import zoo
from tests.formats import windows_build
from tests.formats.minidump_writer import (
    AMD64,
    ANDROID,
    ARM64,
    LINUX,
    MACOS,
    WINDOWS,
    X86,
    MinidumpWriter,
    Module,
    amd64_context,
    arm64_context,
    bpel,
    nb10,
    rsds,
    x86_context,
)
from tests.formats.mutations import mutated
from tests.formats.pdb_writer import portable_pdb
from tests.formats.pe_writer import DebugEntry, PeWriter
from tests.formats.windows_build import run

GUID = bytes.fromhex("c2d73a20f9be2f104c4c44205044422e")
GUID_TEXT = "203ad7c2bef9102f4c4c44205044422e"
BUILD_ID = bytes.fromhex("aa7e4c497f48210f826bb605a4e75e6d3e1a70c5")
BASE = 0x7F0000000000
CASE = zoo.REPO / "fixtures" / "minidump" / "windows-access-violation"


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def images(data: bytes) -> DumpImages:
    return read_minidump_images(*from_bytes(data))


def state(data: bytes) -> MinidumpState:
    return read_minidump_state(*from_bytes(data))


def ids(image: DumpImage) -> dict[str, str]:
    """Rule -> identity, without the code identity."""
    return {one.rule: one.id.value for one in image.readings if one.id.kind is not IdKind.CODE}


# ---- written by lldb


CRASH = """\
#include <pthread.h>
#include <unistd.h>
static int ready[2];
static void *wait_here(void *nothing) { write(ready[1], "", 1); pause(); return nothing; }
int main(void) {
  char word;
  pipe(ready);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  pthread_t thread;
  pthread_create(&thread, &small, wait_here, 0);
  read(ready[0], &word, 1);
  *(volatile int *)0x41414141 = NUMBER;
}
"""


@dataclass(frozen=True)
class Crash:
    """A crashed program, the minidump that lldb wrote of it, and what lldb said while it was alive."""

    program: Path
    dump: Path
    said: str

    @property
    def data(self) -> bytes:
        return self.dump.read_bytes()

    def registers(self) -> list[tuple[int, int]]:
        """Program counter and stack pointer of each thread, in lldb's order."""
        pairs = re.findall(r"rip = (0x[0-9a-f]+).*?rsp = (0x[0-9a-f]+)", self.said, re.DOTALL)
        return [(int(pc, 16), int(sp, 16)) for pc, sp in pairs]


def crash(folder: Path, *flags: str, number: int = 1) -> Crash:
    folder.mkdir(exist_ok=True)
    source, program, dump = folder / "crash.c", folder / "crash", folder / "crash.dmp"
    source.write_text(CRASH)
    run("gcc", "-g", "-pthread", f"-DNUMBER={number}", *flags, "-o", program, source)
    at_crash = [
        f"process save-core --style=stack --plugin-name=minidump {dump}",
        "register read pc sp",
        "memory read --format x --size 8 --count 4 $sp",
        "thread select 2",
        "register read pc sp",
        "quit",
    ]
    said = run("lldb", "-b", "-o", "run", *(word for one in at_crash for word in ("-k", one)), program, cwd=folder)
    return Crash(program, dump, said)


LLDB = ("gcc", "lldb", "readelf")


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crash:
    return crash(tmp_path_factory.mktemp("crashed"), "-Wl,--build-id")


def readelf_build_id(path: Path) -> str | None:
    found = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-nW", path))
    return found[1] if found else None


@pytest.mark.needs(*LLDB)
def test_lldb_dump_has_the_build_ids_of_the_files(crashed: Crash) -> None:
    found = images(crashed.data)
    names = [image.name for image in found.images]
    assert str(crashed.program) in names
    assert any("libc.so" in name for name in names)
    compared = 0
    for image in found.images:
        if not image.is_vdso:
            assert ids(image) == {"codeview-elf": readelf_build_id(Path(image.name))}
            compared += 1
    assert compared >= 3
    assert [image.name for image in found.images if image.is_main] == [str(crashed.program)]
    assert [image.name.split("]")[0] for image in found.images if image.is_vdso] == ["[vdso"]
    assert (found.lost, found.conflicts) == ((), ())
    assert found.facts["main_rule"] == "at-entry"
    assert (found.facts["os"], found.facts["cpu"]) == ("linux", "amd64")
    assert found.declared_bytes == found.actual_bytes


@pytest.mark.needs(*LLDB)
def test_identity_was_read_where_the_reading_says(crashed: Crash) -> None:
    data = crashed.data
    checked = 0
    for image in images(data).images:
        for one in image.readings:
            assert data[one.offset : one.offset + 4] == b"LEpB"
            assert data[one.offset + 4 : one.offset + 24].hex() == one.id.value
            checked += 1
    assert checked >= 4


@pytest.mark.needs(*LLDB)
def test_rebuilt_program_has_another_identity_than_the_dump(crashed: Crash, tmp_path: Path) -> None:
    rebuilt = tmp_path / "crash"
    source = crashed.program.with_suffix(".c")
    run("gcc", "-g", "-pthread", "-DNUMBER=2", "-Wl,--build-id", "-o", rebuilt, source)
    (main,) = [image for image in images(crashed.data).images if image.is_main]
    assert ids(main)["codeview-elf"] != readelf_build_id(rebuilt)


@pytest.mark.needs(*LLDB, "obj2yaml")
def test_modules_are_those_that_obj2yaml_lists(crashed: Crash) -> None:
    said = run("obj2yaml", crashed.dump)
    pattern = r"Base of Image: +(0x[0-9A-F]+)\n(?:.*\n)*? +Module Name: +'?(.*?)'?\n +CodeView Record: ([0-9A-F]+)"
    listed = {(int(base, 16), name, record[8:].lower()) for base, name, record in re.findall(pattern, said)}
    assert len(listed) >= 4
    assert listed == {
        (image.base, image.name, one.id.value) for image in images(crashed.data).images for one in image.readings
    }


@pytest.mark.needs(*LLDB)
def test_registers_and_stack_are_those_of_the_live_process(crashed: Crash) -> None:
    read, size = from_bytes(crashed.data)
    found = read_minidump_state(read, size)
    live = crashed.registers()
    assert len(live) == 2
    assert [(one.registers.pc, one.registers.sp) for one in found.threads if one.registers] == live
    row = re.findall(r"^0x[0-9a-f]+: (0x[0-9a-f]+) (0x[0-9a-f]+)$", crashed.said, re.MULTILINE)
    words = tuple(int(word, 16) for pair in row for word in pair)
    assert len(words) == 4
    assert read_stack_words(found, read, live[0][1], 4) == words
    assert found.exception is not None
    assert (found.exception.code, found.exception.thread_id) == (11, found.threads[0].id)
    assert found.exception.registers is not None
    assert (found.exception.registers.pc, found.exception.registers.sp) == live[0]
    assert found.exception.registers.values["rax"] == 0x41414141
    assert (found.system.os, found.system.cpu, found.lost) == (Os.LINUX, Cpu.AMD64, ())
    assert found.pid == found.threads[0].id


@pytest.mark.needs(*LLDB)
def test_program_counter_lies_in_text_and_stack_pointer_in_the_stack(crashed: Crash) -> None:
    found = state(crashed.data)
    for thread in found.threads:
        assert thread.registers is not None
        assert thread.stack_start <= thread.registers.sp < thread.stack_end
        (code,) = [one for one in found.regions if one.start <= thread.registers.pc < one.end]
        assert (code.protection, code.kind) == ("r-x", RegionKind.FILE)
        (stack,) = [one for one in found.regions if one.start <= thread.registers.sp < one.end]
        assert (stack.protection, stack.kind) == ("rw-", RegionKind.PRIVATE)
    assert "[stack]" in [one.name for one in found.regions]


@pytest.mark.needs(*LLDB)
def test_code_in_the_dump_is_the_code_of_the_file(crashed: Crash) -> None:
    read, size = from_bytes(crashed.data)
    found = read_minidump_state(read, size)
    (main,) = [image for image in images(crashed.data).images if image.is_main]
    (text,) = [one for one in main.mapped if one.flags.startswith("r-x")]
    program = crashed.program.read_bytes()
    in_file = program[text.file_offset : text.file_offset + 512]
    assert read_dumped_memory(found, read, text.start, 512) == in_file
    assert crashed.data[text.dump_offset : text.dump_offset + 512] == in_file


@pytest.mark.needs(*LLDB)
def test_checksum_that_lldb_puts_in_place_of_a_build_id_is_weak(tmp_path: Path) -> None:
    without = crash(tmp_path, "-Wl,--build-id=none")
    assert readelf_build_id(without.program) is None
    (main,) = [image for image in images(without.data).images if image.is_main]
    (one,) = main.readings
    assert len(one.id.value) == 8
    assert "4 bytes" in one.id.weak


# ---- written by Wine, kept as a case


@pytest.fixture(scope="module")
def wine() -> bytes:
    return gzip.decompress((CASE / "normal.dmp.gz").read_bytes())


def test_case_is_what_it_was_when_it_was_made() -> None:
    case = tomllib.loads((CASE / "case.toml").read_text())
    sums = {path: hashlib.sha256((CASE / path).read_bytes()).hexdigest() for path in case["sha256"]}
    assert sums == case["sha256"]
    assert len(sums) == 2


def test_windows_dump_without_records_is_told_apart_by_stamp_and_size(wine: bytes) -> None:
    expected = tomllib.loads((CASE / "case.toml").read_text())["expected"]
    found = images(wine)
    assert len(found.images) == expected["modules"]
    (main,) = [image for image in found.images if image.is_main]
    assert main.name.endswith(expected["executable"])
    program = read_pe_identity(*from_bytes((CASE / "sick.exe").read_bytes()))
    assert [(one.id, one.rule) for one in main.readings] == [(program.code, "module-list")]
    assert main.base == program.image_base
    assert all("no CodeView record" in image.says["debug_id"] for image in found.images)
    assert (found.facts["os"], found.lost) == ("windows", ())


def test_windows_exception_and_threads(wine: bytes) -> None:
    expected = tomllib.loads((CASE / "case.toml").read_text())["expected"]
    read, size = from_bytes(wine)
    found = read_minidump_state(read, size)
    assert found.exception is not None
    assert found.exception.registers is not None
    assert found.exception.code == expected["exception_code"]
    assert list(found.exception.parameters) == expected["access"]
    assert found.exception.address == found.exception.registers.pc == expected["pc"]
    assert found.exception.registers.sp == expected["sp"]
    assert [thread.id for thread in found.threads] == expected["threads"]
    for thread in found.threads:
        assert thread.registers is not None
        assert thread.stack_start <= thread.registers.sp < thread.stack_end
        assert len(read_stack_words(found, read, thread.registers.sp, 8)) == 8
    assert (found.system.os, found.system.release, found.lost) == (Os.WINDOWS, "Service Pack 1", ())


# ---- written by yaml2obj of LLVM


@pytest.mark.needs(*windows_build.TOOLS, "yaml2obj")
@pytest.mark.parametrize("machine", ["amd64", "x86"])
def test_record_of_a_real_program_is_its_pdb(tmp_path: Path, machine: str) -> None:
    program = windows_build.build(tmp_path, machine)
    pe = read_pe_identity(*from_bytes(program.exe.read_bytes()))
    at = pe.debug_files[0].offset
    record = program.exe.read_bytes()[at : at + 24] + b"service.pdb\0"
    text = f"""\
--- !minidump
Streams:
  - Type: SystemInfo
    Processor Arch: {"AMD64" if machine == "amd64" else "X86"}
    Platform ID: Win32NT
    CPU: {{Vendor ID: GenuineIntel, Version Info: 0, Feature Info: 0}}
  - Type: ModuleList
    Modules:
      - Base of Image: 0x10000
        Size of Image: {pe.size_of_image}
        Time Date Stamp: {pe.time_date_stamp}
        Module Name: 'C:\\service\\service.exe'
        CodeView Record: {record.hex()}
"""
    (tmp_path / "dump.yaml").write_text(text)
    run("yaml2obj", tmp_path / "dump.yaml", "-o", tmp_path / "dump.dmp")
    found = images((tmp_path / "dump.dmp").read_bytes())
    (image,) = found.images
    pdb = read_pdb_identity(*from_bytes(program.pdb.read_bytes()))
    assert [one.id for one in image.readings] == [pdb.id, pe.code]
    assert (image.name, image.base, image.is_main) == ("C:\\service\\service.exe", 0x10000, True)
    assert image.says["debug_file"] == "service.pdb"
    assert image.machine == machine


def test_record_of_an_assembly_is_matched_by_the_image_and_by_the_guid_of_its_portable_pdb() -> None:
    record = rsds(GUID, 1, "a.pdb")
    image = read_pe_identity(*from_bytes(PeWriter([DebugEntry(record, stamp=7, minor_version=0x504D)]).render()))
    pdb = read_pdb_identity(*from_bytes(portable_pdb(GUID, 7)))
    (dumped,) = images(MinidumpWriter().system().modules(Module(BASE, "a.dll", record)).render()).images
    assert dumped.readings[0].id in image.ids
    assert pdb.id in image.ids
    assert pdb.agreement(dumped.readings[0].id) is PdbAgreement.GUID_ONLY


# ---- records of every writer


ROUND = GUID  # the same 16 bytes are a GUID, a UUID and the start of a build ID, by who wrote them
RECORDS = {
    "windows": (WINDOWS, rsds(GUID, 0x1D, "C:\\a.pdb"), {"codeview-rsds": f"{GUID_TEXT}-1d"}),
    "windows, age 0": (WINDOWS, rsds(GUID, 0), {"codeview-rsds": f"{GUID_TEXT}-0"}),
    "visual c++ 6": (WINDOWS, nb10(0x3C7F9A11, 0x2F, "a.pdb"), {"codeview-nb10": "3c7f9a11-2f"}),
    "macos": (MACOS, rsds(GUID, 0, "service"), {"codeview-rsds-mac": GUID_TEXT}),
    "macos, whole": (MACOS, bpel(GUID), {"codeview-elf": GUID.hex()}),
    "linux": (LINUX, bpel(BUILD_ID), {"codeview-elf": BUILD_ID.hex()}),
    "linux, 8 bytes": (LINUX, bpel(BUILD_ID[:8]), {"codeview-elf": BUILD_ID[:8].hex()}),
    "linux, 64 bytes": (LINUX, bpel(bytes(range(64))), {"codeview-elf": bytes(range(64)).hex()}),
    "linux, old": (LINUX, rsds(BUILD_ID[:16], 0, "libc.so.6"), {"codeview-rsds-elf": BUILD_ID[:16].hex()}),
    "android, old": (ANDROID, rsds(BUILD_ID[:16], 0), {"codeview-rsds-elf": BUILD_ID[:16].hex()}),
    "linux, old, 8 bytes": (LINUX, rsds(BUILD_ID[:8] + bytes(8), 0), {"codeview-rsds-elf": BUILD_ID[:8].hex()}),
    "wine on linux": (LINUX, rsds(GUID, 1, "a.pdb"), {"codeview-rsds": f"{GUID_TEXT}-1"}),
}


def one_module(platform: int | None, record: bytes, **others: int) -> bytes:
    writer = MinidumpWriter()
    if platform is not None:
        writer.system(platform)
    return writer.modules(Module(BASE, "service", record, **others)).render()


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_read_as_its_writer_meant_it(name: str) -> None:
    platform, record, expected = RECORDS[name]
    found = images(one_module(platform, record))
    assert ids(found.images[0]) == expected
    assert not found.images[0].readings[0].id.weak
    assert found.lost == ()


def test_unknown_system_gives_every_reading_of_a_record() -> None:
    found = images(one_module(None, rsds(GUID, 0)))
    expected = {"codeview-rsds": f"{GUID_TEXT}-0", "codeview-rsds-mac": GUID_TEXT, "codeview-rsds-elf": GUID.hex()}
    assert ids(found.images[0]) == expected
    assert len({one.id.kind for one in found.images[0].readings}) == 3
    assert "does not name its operating system" in found.lost[0]


@pytest.mark.parametrize(
    ("platform", "record"),
    [(WINDOWS, rsds(bytes(16), 0)), (LINUX, bpel(bytes(20))), (MACOS, rsds(bytes(16), 0)), (WINDOWS, nb10(0, 1))],
)
def test_zeros_are_no_identity(platform: int, record: bytes) -> None:
    (image,) = images(one_module(platform, record)).images
    assert "zero" in image.readings[0].id.weak


@pytest.mark.parametrize(
    ("platform", "record", "named"),
    [
        # b753...7402 is what the minidump-writer crate 0.13.0 wrote for a program without build ID: a hash of .text.
        (LINUX, bpel(bytes.fromhex("b753a48b8c83c6c52f00004885c07402")), True),
        (LINUX, rsds(BUILD_ID[:16], 0), True),
        (LINUX, bpel(BUILD_ID), False),
        (WINDOWS, rsds(GUID, 1), False),
        (MACOS, rsds(GUID, 0), False),
    ],
)
def test_sixteen_bytes_are_named_for_what_they_may_be(platform: int, record: bytes, named: bool) -> None:
    (image,) = images(one_module(platform, record)).images
    assert ("hash" in image.says.get("id_form", "")) == named


@pytest.mark.parametrize(
    ("record", "unread"),
    [(b"", Unread.NO_ID), (bpel(b""), Unread.NO_ID), (b"NB09" + bytes(20), Unread.BROKEN), (b"RSDS", Unread.BROKEN)],
)
def test_module_without_identity_says_why(record: bytes, unread: Unread) -> None:
    (image,) = images(one_module(LINUX, record)).images
    assert (image.readings, image.unread) == ((), unread)


def test_record_behind_the_end_is_truncated() -> None:
    data = one_module(LINUX, bpel(BUILD_ID), record_at=1 << 20)
    found = images(data)
    assert (found.images[0].readings, found.images[0].unread) == ((), Unread.TRUNCATED)
    assert found.declared_bytes == (1 << 20) + 24
    assert "is cut" in found.lost[0]


def test_code_identity_is_stated_on_windows_only() -> None:
    (windows,) = images(one_module(WINDOWS, b"", stamp=0x5F3B9E21, size=0x12000)).images
    assert [one.id for one in windows.readings] == [ImageId(IdKind.CODE, "5f3b9e21-12000")]
    (linux,) = images(one_module(LINUX, b"", stamp=0x5F3B9E21, size=0x12000)).images
    assert linux.readings == ()


def test_version_of_a_module_is_kept() -> None:
    data = MinidumpWriter().system().modules(Module(BASE, "a.dll", version=(0x000A0000, 0x47BA04D2))).render()
    assert images(data).images[0].says["version"] == "10.0.18362.1234"


# ---- what the modules add up to


def test_file_with_a_hole_is_one_image_though_listed_twice() -> None:
    data = (
        MinidumpWriter()
        .system(LINUX)
        .modules(
            Module(BASE, "/lib/liba.so", b"", size=0x1000),
            Module(BASE + 0x3000, "/lib/liba.so", bpel(BUILD_ID), size=0x1000),
            Module(BASE + 0x8000, "/lib/libb.so", b"", size=0x1000),
        )
        .render()
    )
    whole, other = images(data).images
    assert (whole.base, whole.says["rows"], ids(whole)) == (BASE, "2", {"codeview-elf": BUILD_ID.hex()})
    assert [one.start for one in whole.mapped] == [BASE, BASE + 0x3000]
    assert (other.name, other.unread) == ("/lib/libb.so", Unread.NO_ID)


def test_windows_modules_of_one_name_are_never_joined() -> None:
    rows = (Module(BASE, "a.dll"), Module(BASE + 0x8000, "a.dll"))
    found = images(MinidumpWriter().system().modules(*rows).render())
    assert [len(image.readings) for image in found.images] == [1, 1]


def test_libraries_inside_an_archive_are_never_joined() -> None:
    rows = (Module(BASE, "/data/base.apk", b""), Module(BASE + 0x8000, "/data/base.apk", bpel(BUILD_ID)))
    found = images(MinidumpWriter().system(ANDROID).modules(*rows).render())
    assert [len(image.readings) for image in found.images] == [0, 1]


def test_one_file_mapped_twice_stays_two_images_without_a_word() -> None:
    rows = (Module(BASE, "a.so", bpel(BUILD_ID)), Module(BASE + 0x10000, "a.so", bpel(BUILD_ID)))
    found = images(MinidumpWriter().system(LINUX).modules(*rows).render())
    assert [image.base for image in found.images] == [BASE, BASE + 0x10000]
    assert found.conflicts == ()


@pytest.mark.parametrize("second_base", [BASE, BASE + 0x10000])
def test_one_name_with_two_identities_is_a_conflict(second_base: int) -> None:
    rows = (Module(BASE, "a.so", bpel(BUILD_ID)), Module(second_base, "a.so", bpel(BUILD_ID[::-1])))
    found = images(MinidumpWriter().system(LINUX).modules(*rows).render())
    assert len(found.conflicts) == 1
    assert "'a.so' is listed at" in found.conflicts[0]
    told = {one.id.value for image in found.images for one in image.readings}
    assert told == {BUILD_ID.hex(), BUILD_ID[::-1].hex()}


def test_overlapping_modules_are_a_conflict() -> None:
    rows = (Module(BASE, "a.dll", size=0x9000), Module(BASE + 0x4000, "b.dll"), Module(BASE + 0x20000, "c.dll"))
    found = images(MinidumpWriter().system().modules(*rows).render())
    assert len(found.conflicts) == 1
    assert "overlaps 'a.dll'" in found.conflicts[0]


def test_unloaded_modules_are_noted_and_are_no_images() -> None:
    writer = MinidumpWriter().system().modules(Module(BASE, "a.exe"))
    data = writer.unloaded((BASE + 0x10000, 0x5000, 0x5E5E5E5E, "gone.dll")).render()
    assert [image.name for image in images(data).images] == ["a.exe"]
    assert images(data).facts["unloaded_modules"] == 1
    (gone,) = state(data).unloaded
    assert (gone.name, gone.base, gone.size_bytes) == ("gone.dll", BASE + 0x10000, 0x5000)
    assert gone.code == ImageId(IdKind.CODE, "5e5e5e5e-5000")


MAPS = f"""\
{BASE:x}-{BASE + 0x1000:x} r--p 00000000 fe:00 11  /srv/service
{BASE + 0x1000:x}-{BASE + 0x3000:x} r-xp 00001000 fe:00 11  /srv/service
{BASE + 0x8000:x}-{BASE + 0x9000:x} r-xp 00000000 fe:00 12  /lib/libc.so.6
{BASE + 0xA000:x}-{BASE + 0xB000:x} rw-p 00000000 00:00 0  [stack]
"""


def test_executable_that_the_writer_dropped_is_missed() -> None:
    data = (
        MinidumpWriter()
        .system(LINUX)
        .modules(Module(BASE + 0x8000, "/lib/libc.so.6", bpel(BUILD_ID)))
        .auxv((9, BASE + 0x1080), (3, BASE + 64), (5, 13))
        .maps(MAPS)
        .render()
    )
    found = images(data)
    assert not any(image.is_main for image in found.images)
    assert "does not hold the executable" in found.lost[0]
    assert (found.facts["at_entry"], found.facts["at_phnum"]) == (BASE + 0x1080, 13)


def test_entry_point_decides_which_image_is_the_executable() -> None:
    modules = (Module(BASE + 0x8000, "/lib/libc.so.6"), Module(BASE, "/srv/service", size=0x690))
    writer = MinidumpWriter().system(LINUX).modules(*modules)
    assert [image.name for image in images(writer.render()).images if image.is_main] == ["/lib/libc.so.6"]
    # The size is not one, as with lldb 14; the memory map knows better.
    writer.auxv((9, BASE + 0x1080)).maps(MAPS)
    (main,) = [image for image in images(writer.render()).images if image.is_main]
    assert main.name == "/srv/service"
    assert [(one.start, one.end, one.flags) for one in main.mapped] == [
        (BASE, BASE + 0x1000, "r--p"),
        (BASE + 0x1000, BASE + 0x3000, "r-xp"),
    ]


@pytest.mark.parametrize("name", ["linux-gate.so", "linux-vdso.so.1", "[vdso](0x00007ffff7fc8000)", "anything"])
def test_vdso_is_known_by_name_or_by_address(name: str) -> None:
    modules = (Module(BASE, "/srv/service"), Module(BASE + 0x10000, name))
    data = MinidumpWriter().system(LINUX).modules(*modules).auxv((33, BASE + 0x10000)).render()
    assert [image.name for image in images(data).images if image.is_vdso] == [name]


# ---- the image's own headers in dumped memory


@pytest.mark.parametrize("stored", ["list", "list64"])
def test_windows_module_without_record_is_read_from_dumped_memory(stored: str) -> None:
    # Wine 8 lists modules without records; its full dumps hold the images themselves.
    entries = [
        DebugEntry(rsds(GUID, 3, "a.ni.pdb")),
        DebugEntry(rsds(GUID[::-1], 1, "a.pdb"), stamp=7, minor_version=0x504D),
    ]
    image = PeWriter(entries).render_loaded()
    writer = MinidumpWriter().system().modules(Module(BASE, "a.dll", stamp=0x61234567, size=0x3000))
    (writer.memory if stored == "list" else writer.memory64)((BASE, image[:0x1000]), (BASE + 0x1000, image[0x1000:]))
    data = writer.render()
    (found,) = images(data).images
    assert [(one.id.kind, one.rule) for one in found.readings] == [
        (IdKind.PDB, "memory-header"),
        (IdKind.PORTABLE_PDB, "memory-header"),
        (IdKind.CODE, "module-list"),
        (IdKind.CODE, "memory-header"),
    ]
    assert found.readings[0].id.value == f"{GUID_TEXT}-3"
    assert data[found.readings[0].offset :].startswith(b"RSDS" + GUID)
    assert data[found.readings[3].offset :].startswith(b"MZ")
    assert found.machine == "amd64"
    assert images(data).conflicts == ()


def test_record_and_header_in_memory_that_disagree_are_a_conflict() -> None:
    image = PeWriter([DebugEntry(rsds(GUID, 3))]).render_loaded()
    module = Module(BASE, "a.dll", rsds(GUID, 2), stamp=1, size=0x3000)
    found = images(MinidumpWriter().system().modules(module).memory((BASE, image)).render())
    assert len(found.conflicts) == 2  # the PDB's age, and the time stamp
    assert "codeview-rsds says" in found.conflicts[0]


@pytest.mark.needs("gcc", "readelf")
def test_elf_module_without_record_is_read_from_dumped_memory(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int main(void) { return 0; }\n")
    run("gcc", "-pie", "-fPIE", "-Wl,--build-id", "-o", tmp_path / "a", tmp_path / "a.c")
    first_page = (tmp_path / "a").read_bytes()[:4096]
    modules = (Module(BASE, "/srv/a", b""), Module(BASE + 0x100000, "/srv/b", bpel(BUILD_ID)))
    data = MinidumpWriter().system(LINUX).modules(*modules).memory((BASE, first_page)).render()
    found = images(data)
    assert ids(found.images[0]) == {"memory-header": readelf_build_id(tmp_path / "a")}
    assert data[found.images[0].readings[0].offset :].startswith(b"\x7fELF")
    assert ids(found.images[1]) == {"codeview-elf": BUILD_ID.hex()}


def test_sixteen_bytes_and_the_whole_build_id_in_memory_do_not_disagree(tmp_path: Path) -> None:
    note = b"\4\0\0\0\x14\0\0\0\3\0\0\0GNU\0" + BUILD_ID
    head = bytearray(b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\3\0\x3e\0\1\0\0\0" + bytes(8) + b"\x40".ljust(8, b"\0"))
    head += bytes(8) + bytes(4) + b"\x40\0\x38\0\1\0\x40\0\0\0\0\0"
    head += (
        b"\4\0\0\0\4\0\0\0" + b"\x78".ljust(8, b"\0") * 3 + len(note).to_bytes(8, "little") * 2 + b"\4".ljust(8, b"\0")
    )
    module = Module(BASE, "a.so", rsds(BUILD_ID[:16], 0))
    found = images(MinidumpWriter().system(LINUX).modules(module).memory((BASE, bytes(head) + note)).render())
    assert ids(found.images[0]) == {"codeview-rsds-elf": BUILD_ID[:16].hex(), "memory-header": BUILD_ID.hex()}
    assert found.conflicts == ()


def test_broken_header_in_memory_is_lost_with_a_sentence() -> None:
    module = Module(BASE, "a.so", bpel(BUILD_ID))
    found = images(MinidumpWriter().system(LINUX).modules(module).memory((BASE, b"\x7fELF\7\7")).render())
    assert "'a.so'" in found.lost[0]
    assert ids(found.images[0]) == {"codeview-elf": BUILD_ID.hex()}


# ---- threads


CONTEXTS: dict[str, tuple[int, Callable[..., bytes], str]] = {
    "amd64": (AMD64, amd64_context, "rbx"),
    "x86": (X86, x86_context, "ebx"),
    "arm64": (ARM64, arm64_context, "x28"),
}


def with_context(processor: int, context: bytes) -> bytes:
    writer = MinidumpWriter().system(WINDOWS, processor)
    return writer.listed(3, [writer.thread(7, context, 0x1000, b"\1\2\3\4\5\6\7\x08" * 4)]).render()


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("aligned", [False, True])
def test_registers_of_every_processor(name: str, aligned: bool) -> None:
    processor, context, another = CONTEXTS[name]
    writer = MinidumpWriter(align_lists=aligned).system(WINDOWS, processor)
    rows = [
        writer.thread(7, context(0x1111, 0x2222, 0x3333, **{another: 0x41414141}), 0x2000, b"\1\0\0\0\0\0\0\0" * 128),
        writer.thread(8, context(0x4444, 0x5555, 0x6666), 0x5000, bytes(0x1000)),
    ]
    data = writer.listed(3, rows).thread_names({8: "worker"}).render()
    first, second = state(data).threads
    assert first.registers is not None
    assert second.registers is not None
    assert (first.registers.pc, first.registers.sp, first.registers.fp) == (0x1111, 0x2222, 0x3333)
    assert first.registers.values[another] == 0x41414141
    assert (second.registers.pc, second.registers.sp, second.registers.fp) == (0x4444, 0x5555, 0x6666)
    assert (first.id, first.name, first.stack_start, first.stack_end) == (7, "", 0x2000, 0x2400)
    assert (second.id, second.name) == (8, "worker")
    words = read_stack_words(state(data), from_bytes(data)[0], 0x2000, 4)
    assert words == ((1, 0, 1, 0) if name == "x86" else (1, 1, 1, 1))


def test_context_of_breakpad_on_arm64() -> None:
    found = state(with_context(0x8003, arm64_context(0x1111, 0x2222, flags=0x80000006, length=796)))
    assert found.threads[0].registers is not None
    assert (found.threads[0].registers.pc, found.threads[0].registers.sp) == (0x1111, 0x2222)


def test_context_of_lldb_ends_after_the_general_registers() -> None:
    found = state(with_context(AMD64, amd64_context(0x1111, 0x2222, flags=0x100007, length=720)))
    assert found.threads[0].registers is not None
    assert found.threads[0].registers.pc == 0x1111


@pytest.mark.parametrize(
    ("processor", "context", "says"),
    [
        (AMD64, amd64_context(1, 2, length=255), "cut"),
        (AMD64, b"", "not in the dump"),
        (AMD64, x86_context(1, 2), "not one of amd64"),
        (X86, amd64_context(1, 2), "not one of x86"),
        (AMD64, amd64_context(1, 2, flags=0x100008), "general registers"),
        (3, amd64_context(1, 2), "processor 'other'"),
    ],
)
def test_registers_that_cannot_be_trusted_are_none(processor: int, context: bytes, says: str) -> None:
    found = state(with_context(processor, context))
    assert [thread.registers for thread in found.threads] == [None]
    assert any(says in sentence for sentence in found.lost), found.lost


def test_stack_of_a_full_dump_is_found_in_the_memory_list() -> None:
    # Rva 0 would be the dump's own header.
    stack = bytes(range(200))
    writer = MinidumpWriter().system()
    row = writer.thread(7, amd64_context(1, 0x7FF010), 0x7FF000, stack, stack_elsewhere=True)
    data = writer.listed(3, [row]).memory64((0x10000, b"\xcc" * 100), (0x7FF000, stack), (0x900000, b"x")).render()
    read, size = from_bytes(data)
    found = read_minidump_state(read, size)
    assert (found.threads[0].stack_start, found.threads[0].stack_end) == (0x7FF000, 0x7FF000 + 200)
    assert read_dumped_memory(found, read, 0x7FF010, 16) == stack[16:32]
    assert len(found.memory) == 3


def test_overlapping_memory_ranges_give_each_address_one_place() -> None:
    # Wine lists thousands of small ranges inside the stacks that it lists too.
    ranges = ((0x1000, b"a" * 64), (0x1010, b"a" * 16), (0x1030, b"a" * 32), (0x1050, b"b" * 8), (0x2000, b"c"))
    data = MinidumpWriter().system().memory(*ranges).render()
    read, size = from_bytes(data)
    found = read_minidump_state(read, size)
    assert [(one.start, one.end) for one in found.memory] == [
        (0x1000, 0x1040),
        (0x1040, 0x1050),
        (0x1050, 0x1058),
        (0x2000, 0x2001),
    ]
    assert read_dumped_memory(found, read, 0x1000, 0x1000) == b"a" * 80 + b"b" * 8
    assert read_dumped_memory(found, read, 0x1058, 8) == b""
    assert read_dumped_memory(found, read, 0xFFF, 8) == b""


def test_regions_of_windows() -> None:
    regions = (
        (0x10000, 0x1000, 0x1000, 0x04, 0x20000),
        (0x20000, 0x1000, 0x1000, 0x104, 0x20000),
        (0x30000, 0x1000, 0x2000, 0, 0x20000),
        (0x40000, 0x1000, 0x10000, 1, 0),
        (0x50000, 0x1000, 0x1000, 0x20, 0x1000000),
        (0x60000, 0x1000, 0x1000, 0x80, 0x40000),
    )
    found = state(MinidumpWriter().system().memory_info(*reversed(regions)).render()).regions
    assert [(one.start, one.protection, one.kind, one.guard) for one in found] == [
        (0x10000, "rw-", RegionKind.PRIVATE, False),
        (0x20000, "rw-", RegionKind.PRIVATE, True),
        (0x30000, "---", RegionKind.PRIVATE, False),
        (0x50000, "r-x", RegionKind.IMAGE, False),
        (0x60000, "rwx", RegionKind.FILE, False),
    ]


def test_exception_keeps_its_own_registers_and_parameters() -> None:
    writer = MinidumpWriter().system()
    row = writer.thread(7, amd64_context(0x9999, 0x2000), 0x2000, bytes(64))
    writer.listed(3, [row]).exception(7, 0xC0000005, 0x1111, amd64_context(0x1111, 0x2040), 8, 0x41414141)
    found = state(writer.render())
    assert found.exception is not None
    assert found.exception.registers is not None
    assert (found.exception.code, found.exception.parameters) == (0xC0000005, (8, 0x41414141))
    assert found.exception.registers.pc == 0x1111
    assert found.threads[0].registers is not None
    assert found.threads[0].registers.pc == 0x9999


@pytest.mark.needs("lldb")
def test_written_dump_is_one_that_lldb_reads(tmp_path: Path) -> None:
    writer = MinidumpWriter().system(LINUX)
    row = writer.thread(7, amd64_context(0x1111, 0x2040, 0x2080), 0x2000, bytes(range(200)))
    module = Module(BASE, "/nowhere/a.so", bpel(BUILD_ID))
    writer.listed(3, [row]).modules(module).memory((0x2000, bytes(range(200))))
    data = writer.exception(7, 11, 0x1111, amd64_context(0x1111, 0x2040)).render()
    (tmp_path / "a.dmp").write_bytes(data)
    commands = (f"target create -c {tmp_path / 'a.dmp'}", "image list", "register read pc sp", "memory read 0x2040")
    said = run("lldb", "-b", *(word for one in commands for word in ("-o", one)))
    assert "AA7E4C49-7F48-210F-826B-B605A4E75E6D-3E1A70C5" in said
    assert re.search(r"rip = 0x0*1111\b", said)
    assert "0x00002040: 40 41 42 43" in said
    found = state(data)
    assert found.threads[0].registers is not None
    assert (found.threads[0].registers.pc, found.threads[0].registers.sp) == (0x1111, 0x2040)


# ---- hostile and cut


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begin with MDMP"),
        (b"PMDM" + bytes(40), "big-endian"),
        (b"PAGEDU64" + bytes(40), "Windows kernel"),
        (b"PAGEDUMP" + bytes(40), "Windows kernel"),
        (b"Thread 1 crashed with signal 11 at main\n", "text"),
        (b"\x7fELF" + bytes(60), "begin with MDMP"),
    ],
)
def test_what_is_no_minidump_is_told(data: bytes, says: str) -> None:
    with pytest.raises(NotMinidump, match=says):
        images(data)
    with pytest.raises(NotMinidump, match=says):
        state(data)


def header(version: int = 0xA793, streams: int = 1, directory: int = 32) -> bytes:
    words = (version, streams, directory, 0, 0, 0, 0)
    return b"MDMP" + b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header()[:20], "cut after 20"),
        (header(version=0x1234) + bytes(64), "version is 0x1234"),
        (header(streams=0) + bytes(64), "names no stream"),
        (header(directory=0) + bytes(64), "names no stream"),
        (header(directory=1 << 30) + bytes(64), "lies behind the end"),
        (header(streams=1_000_000) + bytes(64), "claims 1000000 streams"),
    ],
)
def test_impossible_header_is_told(data: bytes, says: str) -> None:
    with pytest.raises(BrokenMinidump, match=says):
        images(data)


def test_list_that_claims_more_than_there_is_keeps_what_is_there() -> None:
    data = MinidumpWriter().system().modules(Module(BASE, "a.exe", rsds(GUID, 1)), count=0xFFFFFFFF).render()
    found = images(data)
    assert [image.name for image in found.images] == ["a.exe"]
    assert "claims 4294967295 entries and has room for 1" in found.lost[0]
    endless = MinidumpWriter().system().memory64((0x1000, b"abc"), count=(1 << 64) - 1).render()
    assert len(state(endless).memory) == 1


def test_stream_listed_twice_is_a_conflict_and_the_first_counts() -> None:
    writer = MinidumpWriter().system().modules(Module(BASE, "first.exe")).modules(Module(BASE, "second.exe"))
    found = images(writer.render())
    assert [image.name for image in found.images] == ["first.exe"]
    assert "listed twice" in found.conflicts[0]


def test_dump_without_module_list_says_so() -> None:
    found = images(MinidumpWriter().system().render())
    assert found.images == ()
    assert "no module list" in found.lost[0]


def test_entries_that_share_one_long_text_cannot_fill_memory() -> None:
    writer = MinidumpWriter().system(LINUX)
    name_at = writer.text("n" * 32_000)
    row = bytearray(108)
    row[20:24] = name_at.to_bytes(4, "little")
    rows = [(BASE + 0x100000 * index).to_bytes(8, "little") + bytes(row[8:]) for index in range(16_384)]
    found = images(writer.listed(4, rows).render())
    assert sum(len(image.name) for image in found.images) <= 16 << 20
    assert any("more text in names" in sentence for sentence in found.lost)


def test_headers_that_share_one_long_table_cannot_take_forever() -> None:
    # 500 images whose program headers are one table of 20,000 entries: 560 MB of reading without a bound.
    table_at = 0x100000
    head = bytearray(b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\3\0\x3e\0\1\0\0\0" + bytes(8))
    ranges = []
    modules = []
    for index in range(500):
        own = head + (table_at - 64 * index).to_bytes(8, "little") + bytes(12) + b"\x40\0\x38\0\x20\x4e\x40\0\0\0\0\0"
        ranges.append((BASE + 64 * index, bytes(own)))
        modules.append(Module(BASE + 64 * index, f"lib{index}.so", size=64))
    data = (
        MinidumpWriter().system(LINUX).modules(*modules).memory(*ranges, (BASE + table_at, bytes(56 * 20_000))).render()
    )
    read_bytes = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        part = data[offset : offset + length]
        read_bytes += len(part)
        return part

    found = read_minidump_images(read, len(data))
    assert len(found.images) == 500
    assert read_bytes < 40 << 20
    assert any("More image headers" in sentence for sentence in found.lost)


@pytest.mark.needs(*LLDB)
def test_real_dump_cut_anywhere(crashed: Crash) -> None:
    data = crashed.data
    whole = images(data)
    known = {(image.name, one.id) for image in whole.images for one in image.readings}
    assert len(known) >= 4
    readable = 0
    # lldb 14 writes the directory last, so most cuts lose everything and say so.
    for length in [*range(0, len(data), 49_999), *range(len(data) - 400, len(data))]:
        try:
            found = images(data[:length])
        except FormatError:
            continue
        readable += 1
        assert {(image.name, one.id) for image in found.images for one in image.readings} <= known
        assert found.lost
    assert readable > 50


def test_windows_dump_cut_anywhere(wine: bytes) -> None:
    whole = {(image.name, one.id) for image in images(wine).images for one in image.readings}
    told = 0
    for length in [*range(33, 5000, 13), *range(5000, len(wine), 7919)]:
        found = images(wine[:length])
        state(wine[:length])
        # A name that is cut is another name, and never another identity.
        assert {one.id for image in found.images for one in image.readings} <= {one for _, one in whole}
        assert found.declared_bytes is not None
        told += any("is cut" in sentence for sentence in found.lost)
    assert told > 300


def survives(data: bytes) -> None:
    read_bytes = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        assert offset >= 0
        assert length >= 0
        part = data[offset : offset + length]
        read_bytes += len(part)
        return part

    with contextlib.suppress(FormatError):
        found = read_minidump_images(read, len(data))
        assert all(image.readings or image.unread is not None for image in found.images)
    with contextlib.suppress(FormatError):
        threads = read_minidump_state(read, len(data))
        for thread in threads.threads[:4]:
            if thread.registers is not None:
                read_stack_words(threads, read, thread.registers.sp, 16)
    assert read_bytes <= 120 << 20


def everything() -> bytes:
    """A small dump with every stream that is read."""
    writer = MinidumpWriter().system(WINDOWS, AMD64, "Service Pack 1")
    rows = [writer.thread(n, amd64_context(0x1111, 0x2010), 0x2000, bytes(64)) for n in (7, 8)]
    image = PeWriter([DebugEntry(rsds(GUID, 3, "a.pdb"))]).render_loaded()[:0x2100]
    return (
        writer.listed(3, rows)
        .modules(
            Module(BASE, "a.exe", rsds(GUID, 3)),
            Module(BASE + 0x10000, "b.dll", nb10(7, 1)),
            Module(1, "", bpel(b"12345678")),
        )
        .unloaded((BASE + 0x40000, 0x1000, 5, "gone.dll"))
        .exception(7, 0xC0000005, 0x1111, amd64_context(0x1111, 0x2010), 1, 2)
        .memory((BASE, image))
        .memory64((0x9000, b"abc"), (0xA000, b"def"))
        .memory_info((0x10000, 0x1000, 0x1000, 4, 0x20000))
        .thread_names({7: "main"})
        .auxv((9, BASE + 0x1000))
        .maps(MAPS)
        .stream(15, bytes([24, 0, 0, 0, 1, 0, 0, 0, 42, 0, 0, 0]).ljust(24, b"\0"))
        .render()
    )


def test_seed_of_the_fuzzer_has_every_stream() -> None:
    found = state(everything())
    assert (len(found.threads), len(found.unloaded), found.pid, found.lost) == (2, 1, 42, ())
    assert len(images(everything()).images) == 3


@settings(max_examples=800, deadline=None)
@given(mutated(everything(), head_bytes=3000))
def test_mutated_dump_ends_in_a_result_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_windows_dump_ends_in_a_result_or_a_format_error(data: st.DataObject) -> None:
    whole = gzip.decompress((CASE / "normal.dmp.gz").read_bytes())
    survives(data.draw(mutated(whole, head_bytes=6000)))


@pytest.mark.needs(*LLDB)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_lldb_dump_ends_in_a_result_or_a_format_error(crashed: Crash, data: st.DataObject) -> None:
    whole = crashed.data
    # Threads and modules stand first, the Linux streams and the directory last.
    if data.draw(st.booleans()):
        survives(data.draw(mutated(whole, head_bytes=1200)))
    else:
        survives(whole[:-9000] + data.draw(mutated(whole[-9000:], head_bytes=9000)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600).map(lambda tail: header(streams=8) + tail))
def test_any_bytes_behind_a_header_end_in_a_result_or_a_format_error(data: bytes) -> None:
    survives(data)
