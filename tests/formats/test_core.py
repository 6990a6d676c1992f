"""The images of cores agree with eu-unstrip, readelf, pyelftools and the go command, and survive what nobody wrote."""

from __future__ import annotations

import os
import re
import resource
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.collect.threads_native import ThreadsNative
from pmforensics.errors import BrokenElf, FormatError, NotElf
from pmforensics.formats.core import ElfCore, gnu_id, go_id, read_core, read_core_images
from pmforensics.formats.core_memory import CoreFile, CoreMemory
from pmforensics.formats.elf import ReadAt
from pmforensics.model.image import DumpImage, DumpImages, IdKind, Unread
from tests import zoo
from tests.collect.harness import collect_one
from tests.formats.core_writer import (
    AT_BASE,
    AT_ENTRY,
    AT_EXECFN,
    AT_PHDR,
    AT_PHENT,
    AT_PHNUM,
    AT_SYSINFO_EHDR,
    DATA_VADDR,
    DYNAMIC_AT,
    HEAP,
    IDS,
    LIB,
    LINKER,
    MAIN,
    NAMES,
    NOTES_AT,
    NT_FILE,
    PAGE,
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    PT_PHDR,
    RW,
    RX,
    STACK,
    VDSO,
    CoreWriter,
    ImageWriter,
    Load,
    Part,
    Process,
    R,
)
from tests.formats.mutations import mutated

EVERY_LAYOUT = pytest.mark.parametrize(
    ("bits", "big_endian"),
    [(64, False), (64, True), (32, False), (32, True)],
    ids=["64-little", "64-big", "32-little", "32-big"],
)
NO_NT_FILE = "The core has no NT_FILE note"


# ---- reading


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


@contextmanager
def from_file(path: Path) -> Iterator[tuple[ReadAt, int]]:
    with path.open("rb") as file:
        yield (lambda offset, length: os.pread(file.fileno(), length, offset)), path.stat().st_size


def core_of(source: Path | bytes | Process) -> ElfCore:
    if isinstance(source, Path):
        with from_file(source) as reader:
            return read_core(*reader)
    return read_core(*from_bytes(source.render() if isinstance(source, Process) else source))


def image_at(core: ElfCore, address: int) -> DumpImage:
    found = [image for image in core.images.images if image.mapped and image.mapped[0].start == address]
    assert len(found) == 1, f"{len(found)} images at {address:#x}"
    return found[0]


def image_named(core: ElfCore, end: str) -> DumpImage:
    found = [image for image in core.images.images if image.name.endswith(end)]
    assert len(found) == 1, [image.name for image in core.images.images]
    return found[0]


def main_of(core: ElfCore) -> DumpImage:
    found = [image for image in core.images.images if image.is_main]
    assert len(found) == 1, [image.name for image in core.images.images]
    assert core.images.images[0] is found[0]
    return found[0]


def values(image: DumpImage, kind: IdKind = IdKind.GNU) -> set[str]:
    return {reading.id.value for reading in image.readings if reading.id.kind is kind}


def rules(image: DumpImage) -> set[str]:
    return {reading.rule for reading in image.readings}


def said(sentences: tuple[str, ...], part: str) -> str:
    found = [sentence for sentence in sentences if part in sentence]
    assert len(found) == 1, sentences
    return found[0]


# ---- making real cores


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


def kernel_core(needs: Callable[..., None], program: Path, *args: str, dump_filter: str = "0x33", **env: str) -> Path:
    """Runs a program that dies, in its folder, and returns the core that the kernel wrote."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if not re.fullmatch(r"core[%.\w]*", pattern) or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        needs(f"core_pattern=core, which here is {pattern}")
    before = set(program.parent.glob("core*"))
    line = f'echo {dump_filter} > /proc/self/coredump_filter; ulimit -c unlimited; exec "$0" "$@"'
    subprocess.run(
        ["sh", "-c", line, f"./{program.name}", *args],
        cwd=program.parent,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (written,) = set(program.parent.glob("core*")) - before
    return written.rename(program.parent / f"dump-of-{program.name}-{len(before)}")


ABORT = "#include <stdlib.h>\nint main(void) { abort(); }\n"


def compiled(folder: Path, source: str, *flags: str, name: str = "program") -> Path:
    (folder / f"{name}.c").write_text(source)
    run("gcc", "-o", name, f"{name}.c", *flags, cwd=folder)
    return folder / name


def readelf_build_id(path: Path) -> str | None:
    found = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-nW", path))
    return found[1] if found else None


def eu_unstrip(core: Path) -> set[tuple[int, str, int]]:
    """(start of the module, build ID, address of the ID's bytes); reads the core alone, not the files that it names."""
    listed = run("eu-unstrip", "-n", f"--core={core}", DEBUGINFOD_URLS="")
    rows = re.findall(r"^0x([0-9a-f]+)\+0x[0-9a-f]+ ([0-9a-f]+)@0x([0-9a-f]+) ", listed, re.MULTILINE)
    return {(int(start, 16), build_id, int(at, 16)) for start, build_id, at in rows}


def assert_eu_unstrip_agrees(path: Path, core: ElfCore) -> None:
    judged = eu_unstrip(path)
    assert judged
    ours = {
        (image.mapped[0].start, reading.id.value, reading.offset)
        for image in core.images.images
        for reading in image.readings
        if reading.id.kind is IdKind.GNU and reading.rule != "relro-copy"
    }
    assert ours == {(start, value, core.memory.dump_offset(at)) for start, value, at in judged}


def assert_ids_are_where_they_are_said_to_be(path: Path, images: DumpImages) -> None:
    seen = 0
    with path.open("rb") as file:
        for image in images.images:
            for reading in image.readings:
                content = reading.id.value.encode() if reading.id.kind is IdKind.GO else bytes.fromhex(reading.id.value)
                assert os.pread(file.fileno(), len(content), reading.offset) == content
                seen += 1
    assert seen


pytestmark = pytest.mark.needs("gcc")


# ---- real cores

BUILDS = {
    "pie": [],
    "no-pie": ["-no-pie"],
    "static": ["-static"],
    "static-pie": ["-static-pie"],
    "id-of-8-bytes": ["-Wl,--build-id=0x0123456789abcdef"],
    "id-of-64-bytes": ["-Wl,--build-id=0x" + "c7" * 64],
    "md5-id": ["-Wl,--build-id=md5"],
    "no-id": ["-Wl,--build-id=none"],
    "no-separate-code": ["-Wl,-z,noseparate-code"],
    "stripped": ["-s"],
}


@pytest.mark.needs("readelf", "eu-unstrip")
@pytest.mark.parametrize("build", BUILDS)
def test_kernel_core_of_each_way_to_build(needs: Callable[..., None], tmp_path: Path, build: str) -> None:
    program = compiled(tmp_path, ABORT, "-Wl,--build-id", *BUILDS[build])
    path = kernel_core(needs, program)
    core = core_of(path)
    main = main_of(core)
    build_id = readelf_build_id(program)
    assert main.name == str(program)
    assert values(main) == ({build_id} if build_id else set())
    assert main.unread is (None if build_id else Unread.NO_ID)
    fixed = "Type:                              EXEC" in run("readelf", "-hW", program)
    assert main.base == (0 if fixed else main.mapped[0].start)
    assert rules(main) >= ({"nt-file", "segment-sniff", "at-phdr"} if build_id else set())
    assert not core.images.conflicts
    assert not core.images.lost
    assert core.images.declared_bytes == core.images.actual_bytes == path.stat().st_size
    assert core.images.facts["filter"] == "header pages"
    assert [image.name for image in core.images.images if image.is_vdso] == ["linux-vdso.so.1"]
    assert not any(reading.id.weak for image in core.images.images for reading in image.readings)
    # Without separate code, the data segment begins in the page that holds the ELF header.
    assert ("relro-copy" in rules(main)) == (build == "no-separate-code")
    assert_ids_are_where_they_are_said_to_be(path, core.images)
    assert_eu_unstrip_agrees(path, core)


@pytest.mark.needs("readelf")
def test_short_and_empty_ids_are_weak(needs: Callable[..., None], tmp_path: Path) -> None:
    for flag, weak in (("0x0102030405", "only 5 bytes"), ("0x" + "00" * 20, "all zeros")):
        core = core_of(kernel_core(needs, compiled(tmp_path, ABORT, f"-Wl,--build-id={flag}")))
        (found,) = {reading.id for reading in main_of(core).readings}
        assert (found.value, found.weak) == (flag.removeprefix("0x"), weak)


LOADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    if (!dlopen("./libone.so.1", RTLD_NOW) || !dlmopen(LM_ID_NEWLM, "./libtwo.so", RTLD_NOW))
        return 1;
    if (argc > 1)
        unlink(argv[1]);
    abort();
}
"""


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """A program that loads one library through a symbolic link, and one into a namespace of its own."""
    for name in ("one", "two"):
        source = f'#include <stdlib.h>\nchar *{name}(void) {{ return getenv("{name}"); }}\n'
        compiled(tmp_path, source, "-shared", "-fPIC", "-Wl,--build-id", name=f"lib{name}.so")
    (tmp_path / "libone.so.1").symlink_to("libone.so")
    return compiled(tmp_path, LOADS, "-Wl,--build-id", "-ldl")


@pytest.mark.needs("readelf", "eu-unstrip")
def test_libraries_loaded_at_run_time_are_in_the_linkers_list_too(needs: Callable[..., None], loads: Path) -> None:
    path = kernel_core(needs, loads)
    core = core_of(path)
    for name in ("libone.so", "libtwo.so"):
        image = image_named(core, f"/{name}")
        assert values(image) == {readelf_build_id(loads.parent / name)}
        assert rules(image) == {"nt-file", "segment-sniff", "link-map"}
    assert image_named(core, "/libone.so").says["linker_name"] == "./libone.so.1"
    assert len([image for image in core.images.images if image.name.endswith("/libc.so.6")]) == 2
    assert not core.images.conflicts


@pytest.mark.needs("readelf")
@pytest.mark.parametrize("deleted", ["program", "libtwo.so"])
def test_deleted_file_keeps_its_name_and_id(needs: Callable[..., None], loads: Path, deleted: str) -> None:
    build_id = readelf_build_id(loads.parent / deleted)
    image = image_named(core_of(kernel_core(needs, loads, deleted)), f"/{deleted}")
    assert values(image) == {build_id}
    assert "removed" in image.says["deleted"]


@pytest.mark.needs("readelf")
def test_renamed_file_keeps_its_id(needs: Callable[..., None], tmp_path: Path) -> None:
    rename = '#include <stdio.h>\n#include <stdlib.h>\nint main(int n, char **v) { rename(v[0], "other"); abort(); }\n'
    program = compiled(tmp_path, rename, "-Wl,--build-id")
    build_id = readelf_build_id(program)
    main = main_of(core_of(kernel_core(needs, program)))
    assert (Path(main.name).name, values(main)) == ("other", {build_id})


FILTERS = {
    "0x33": "header pages",
    "0x31": "header pages",
    "0x11": "header pages",
    "0x21": "no header pages",
    "0x01": "no header pages",
    "0x00": "no header pages",
    "0x7f": "contents of files",
}


@pytest.mark.parametrize("dump_filter", FILTERS)
def test_what_the_filter_left_out_is_said(needs: Callable[..., None], loads: Path, dump_filter: str) -> None:
    core = core_of(kernel_core(needs, loads, dump_filter=dump_filter))
    assert core.images.facts["filter"] == FILTERS[dump_filter]
    files = [image for image in core.images.images if not image.is_vdso]
    assert {Path(image.name).name for image in files} == {
        "program", "libone.so", "libtwo.so", "libc.so.6", "ld-linux-x86-64.so.2",
    }  # fmt: skip
    assert main_of(core).name == str(loads)
    if FILTERS[dump_filter] == "no header pages":
        assert {image.unread for image in files} == {Unread.FILTERED}
        assert "coredump_filter" in said(core.images.lost, "No header page")
        assert not any(image.readings for image in files)
        (linker,) = (image for image in files if image.base == core.images.facts["at_base"])
        assert linker.name.endswith("/ld-linux-x86-64.so.2")
    else:
        assert all(image.readings for image in files)
        assert not core.images.lost
    (vdso,) = (image for image in core.images.images if image.is_vdso)
    assert vdso.readings


@pytest.mark.needs("gcore", "eu-unstrip")
def test_core_by_gdb_has_the_ids_of_the_kernels_core(needs: Callable[..., None], tmp_path: Path) -> None:
    waits = "#include <stdlib.h>\n#include <unistd.h>\nint main(int n) { while (n > 1) pause(); abort(); }\n"
    program = compiled(tmp_path, waits, "-Wl,--build-id")
    by_kernel = core_of(kernel_core(needs, program))
    with subprocess.Popen([program, "wait"]) as child:
        try:
            run("gcore", "-o", tmp_path / "gdb", str(child.pid))
        finally:
            child.kill()
    path = tmp_path / f"gdb.{child.pid}"
    core = core_of(path)
    names = {image.name: values(image) for image in by_kernel.images.images}
    assert {image.name: values(image) for image in core.images.images} == names
    assert not core.images.lost
    assert not core.images.conflicts
    assert not any("loaded" in image.says for image in core.images.images)
    assert_eu_unstrip_agrees(path, core)


def test_core_of_stacks_by_pmf_has_the_ids_of_all_images(tmp_path: Path) -> None:
    with zoo.start("c", "threads") as sick:
        got = collect_one(ThreadsNative(allow_pause_s=60.0), sick.pid, tmp_path)
        mapped = Path(f"/proc/{sick.pid}/maps").read_text()
    core = core_of(got.artifacts["stacks.core"])
    libraries = set(re.findall(r" r-xp .* (/\S+)$", mapped, re.MULTILINE))
    assert libraries
    assert {image.name for image in core.images.images if not image.is_vdso} == libraries
    for image in core.images.images:
        if not image.is_vdso:
            assert values(image) == {readelf_build_id(Path(image.name))}
    assert rules(main_of(core)) >= {"nt-file", "at-phdr", "link-map"}
    assert not core.images.conflicts


@pytest.mark.needs("eu-unstrip")
def test_threads_and_thread_notes_do_not_hide_the_images(needs: Callable[..., None], tmp_path: Path) -> None:
    source = """
    #include <pthread.h>
    #include <stdlib.h>
    #include <unistd.h>
    static pthread_barrier_t all;
    static void *wait_there(void *unused) { pthread_barrier_wait(&all); for (;;) pause(); return unused; }
    int main(void)
    {
        pthread_t thread;
        pthread_barrier_init(&all, 0, 41);
        for (int i = 0; i < 40; i++)
            if (pthread_create(&thread, 0, wait_there, 0))
                return 1;
        pthread_barrier_wait(&all);
        abort();
    }
    """
    path = kernel_core(needs, compiled(tmp_path, source, "-pthread", "-Wl,--build-id"))
    core = core_of(path)
    assert core.images.facts["threads"] == 41
    with path.open("rb") as file:
        elf = ELFFile(file)
        notes = [note for part in elf.iter_segments("PT_NOTE") for note in part.iter_notes()]
        loads = [part.header for part in elf.iter_segments("PT_LOAD")]
    assert sum(note["n_type"] == "NT_PRSTATUS" for note in notes) == 41
    (files,) = (note["n_desc"] for note in notes if note["n_type"] == "NT_FILE")
    with from_file(path) as reader:
        rows = CoreFile(*reader).rows
    assert [tuple(row) for row in rows] == [
        (row.vm_start, row.vm_end, row.page_offset * files.page_size, name.decode())
        for row, name in zip(files["Elf_Nt_File_Entry"], files["filename"], strict=True)
    ]
    assert core.images.facts["segments"] == len(loads)
    for load in loads:
        segment = core.memory.find(load.p_vaddr)
        assert segment is not None
        assert (segment.start, segment.end) == (load.p_vaddr, load.p_vaddr + load.p_memsz)
        assert (segment.dump_offset, segment.dumped_bytes) == (load.p_offset, load.p_filesz)
        assert segment.flags == "".join(
            letter if load.p_flags & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True)
        )
    assert_eu_unstrip_agrees(path, core)


def test_headers_in_the_core_are_those_of_the_file(needs: Callable[..., None], tmp_path: Path) -> None:
    program = compiled(tmp_path, ABORT)
    core = core_of(kernel_core(needs, program).read_bytes())
    headers = core.headers[0]
    assert headers is not None
    assert headers.header is not None
    with program.open("rb") as file:
        elf = ELFFile(file)
        assert (headers.entry, headers.header.phnum) == (elf.header.e_entry, elf.header.e_phnum)
        assert [(part.offset, part.vaddr, part.filesz, part.align) for part in headers.program_headers] == [
            (part.header.p_offset, part.header.p_vaddr, part.header.p_filesz, part.header.p_align)
            for part in elf.iter_segments()
        ]
    main = main_of(core)
    assert core.memory.read(main.mapped[0].start, 4096) == program.read_bytes()[:4096]
    assert core.images.facts["at_entry"] == (main.base or 0) + headers.entry
    assert core.images.facts["at_phnum"] == headers.header.phnum


# ---- Go

GO_ENV = {
    "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOENV": "off", "CGO_ENABLED": "0",
    "GOCACHE": str(zoo.REPO / ".cache" / "go-build"), "GOPATH": str(zoo.REPO / ".cache" / "go"),
}  # fmt: skip


def go(*arguments: str | Path, cwd: Path | None = None) -> str:
    return run(zoo.get_tool("go"), *arguments, cwd=cwd, **GO_ENV)


def go_crash(needs: Callable[..., None], folder: Path, *flags: str) -> tuple[Path, Path]:
    (folder / "main.go").write_text("package main\nfunc main() { var p *int; *p = 1 }\n")
    (folder / "go.mod").write_text("module example.org/crash\ngo 1.21\n")
    go("build", "-buildvcs=false", *flags, "-o", "program", ".", cwd=folder)
    return folder / "program", kernel_core(needs, folder / "program", GOTRACEBACK="crash")


@pytest.mark.needs("go", "readelf")
@pytest.mark.parametrize(
    "flags", [(), ("-ldflags=-B=none",), ("-ldflags=-B=gobuildid",), ("-buildmode=pie",)], ids=repr
)
def test_go_core_has_the_go_id_and_the_gnu_id_where_there_is_one(
    needs: Callable[..., None], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    program, path = go_crash(needs, tmp_path, *flags)
    core = core_of(path)
    main = main_of(core)
    assert values(main, IdKind.GO) == {go("tool", "buildid", program).strip()}
    build_id = readelf_build_id(program)
    assert values(main) == ({build_id} if build_id else set())
    assert not any(reading.id.weak for reading in main.readings)
    assert main.unread is None
    if flags != ("-buildmode=pie",):
        assert main.says["go_version"] == go("env", "GOVERSION").strip()
        assert main.says["go_module"].startswith("example.org/crash")
    # Go links position-independent programs for 0x400000 too, so that the bias is not the start.
    first_load = int(re.findall(r"^  LOAD +0x0+ 0x([0-9a-f]+) ", run("readelf", "-lW", program), re.MULTILINE)[0], 16)
    assert main.base == main.mapped[0].start - first_load
    assert_ids_are_where_they_are_said_to_be(path, core.images)


@pytest.mark.needs("go", "readelf")
def test_redacted_go_id_is_weak_and_so_is_the_gnu_id_made_from_it(needs: Callable[..., None], tmp_path: Path) -> None:
    program, path = go_crash(needs, tmp_path, "-ldflags=-buildid=redacted -B=gobuildid")
    main = main_of(core_of(path))
    assert values(main, IdKind.GO) == {"redacted"}
    assert values(main) == {readelf_build_id(program)}
    assert all("redacted" in reading.id.weak for reading in main.readings)


# ---- cores that are cut


@cache
def small_core_bytes() -> bytes:
    return Process().render()


@pytest.fixture(scope="module")
def real_core(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a static program, because it is the smallest."""
    folder = tmp_path_factory.mktemp("real")

    def refuse(*what: str) -> None:
        pytest.skip(f"needs: {', '.join(what)}")

    return kernel_core(refuse, compiled(folder, ABORT, "-static", "-Wl,--build-id")).read_bytes()


def assert_cut_is_told(whole: bytes, cut: int) -> None:
    full = read_core(*from_bytes(whole))
    try:
        core = read_core(*from_bytes(whole[:cut]))
    except FormatError:
        assert cut < 64
        return
    assert core.images.actual_bytes == cut
    assert core.images.declared_bytes is not None
    assert core.images.declared_bytes > cut
    assert any("cut" in sentence for sentence in core.images.lost)
    by_place = {image.mapped[0].start: image for image in core.images.images if image.mapped}
    notes_are_whole = not any("NT_FILE" in sentence or "auxiliary" in sentence for sentence in core.images.lost)
    for image in full.images.images:
        place = image.mapped[0].start
        last = max(reading.offset + len(reading.id.value) // 2 for reading in image.readings)
        here = by_place.get(place)
        if here is not None:
            assert values(here) in (values(image), set())
            assert here.unread in (None, Unread.TRUNCATED)
            assert (here.unread is None) == bool(here.readings)
        if last <= cut and notes_are_whole:
            assert here is not None
            assert values(here) == values(image)
        elif notes_are_whole and not image.is_vdso:
            assert here is not None
            assert here.unread is Unread.TRUNCATED
    assert {value for image in core.images.images for value in values(image)} <= {
        value for image in full.images.images for value in values(image)
    }


@settings(deadline=None)
@given(data=st.data())
def test_core_cut_anywhere_says_so_and_keeps_what_is_there(real_core: bytes, data: st.DataObject) -> None:
    place = st.one_of(st.integers(0, 0x6000), st.integers(0, len(real_core) - 1))
    assert_cut_is_told(real_core, data.draw(place))


@pytest.mark.parametrize("cut", [0, 1, 4, 16, 63, 64, 65, 120, 121, *range(0x300, 0xB000, 0xFB)])
def test_small_core_cut_at_many_places(cut: int) -> None:
    assert_cut_is_told(small_core_bytes(), cut)


def test_empty_and_foreign_bytes_are_refused_with_a_sentence(tmp_path: Path) -> None:
    for data in (b"", b"MDMP" + bytes(100), b"#!/bin/sh\n"):
        with pytest.raises(NotElf):
            core_of(data)
    program = compiled(tmp_path, ABORT)
    with pytest.raises(BrokenElf, match="not a core"):
        core_of(program)
    writer = CoreWriter()
    with pytest.raises(BrokenElf, match="no segments"):
        core_of(writer.render())
    wrong_size = bytearray(small_core_bytes())
    wrong_size[54:56] = b"\x20\x00"
    with pytest.raises(BrokenElf, match="32 bytes instead of 56"):
        core_of(bytes(wrong_size))


# ---- every class and byte order


@pytest.mark.needs("eu-unstrip", "readelf")
@EVERY_LAYOUT
def test_all_rules_agree_in_every_class_and_byte_order(tmp_path: Path, bits: int, big_endian: bool) -> None:
    path = tmp_path / "core"
    path.write_bytes(Process(bits, big_endian).render())
    core = core_of(path)
    assert {image.name: rules(image) for image in core.images.images} == {
        "/srv/app": {"nt-file", "segment-sniff", "at-phdr", "link-map"},
        "/usr/lib/libwork.so.1.2": {"nt-file", "segment-sniff", "link-map"},
        "/usr/lib/ld.so": {"nt-file", "segment-sniff", "at-base", "link-map"},
        "linux-vdso.so.1": {"segment-sniff", "vdso", "link-map"},
    }
    for at, build_id in IDS.items():
        image = image_at(core, at)
        assert values(image) == {build_id.hex()}
        assert image.base == at
        assert [(part.start, part.file_offset) for part in image.mapped] == [
            (at, 0), (at + PAGE, PAGE), (at + DATA_VADDR, DYNAMIC_AT),
        ]  # fmt: skip
        assert [part.flags for part in image.mapped] == ["r--", "r-x", "rw-"]
        assert [part.dumped_bytes for part in image.mapped] == [PAGE, 0, PAGE]
    assert main_of(core).name == NAMES[MAIN]
    assert image_at(core, VDSO).is_vdso
    assert image_at(core, LIB).says["linker_name"] == "/lib/libwork.so.1"
    assert (core.images.lost, core.images.conflicts) == ((), ())
    facts = core.images.facts
    assert (facts["elf_class"], facts["threads"], facts["command"], facts["at_execfn"]) == (bits, 2, "app", "./app")
    assert (facts["at_phdr"], facts["at_base"], facts["at_entry"]) == (
        MAIN + CoreWriter(bits).header_bytes, LINKER, MAIN + PAGE,
    )  # fmt: skip
    assert_eu_unstrip_agrees(path, core)
    listed = run("readelf", "-lW", path)
    assert "warning" not in listed.lower()
    assert len(re.findall(r"^  LOAD ", listed, re.MULTILINE)) == facts["segments"]


@EVERY_LAYOUT
def test_without_nt_file_names_and_mappings_come_from_elsewhere(bits: int, big_endian: bool) -> None:
    process = Process(bits, big_endian)
    process.has_nt_file = False
    core = core_of(process)
    assert {image.name: rules(image) for image in core.images.images} == {
        "./app": {"segment-sniff", "at-phdr", "link-map"},
        "/lib/libwork.so.1": {"segment-sniff", "link-map"},
        "/lib/ld.so": {"segment-sniff", "at-base", "link-map"},
        "linux-vdso.so.1": {"segment-sniff", "vdso", "link-map"},
    }
    assert said(core.images.lost, NO_NT_FILE)
    assert not core.images.conflicts
    for at in IDS:
        assert [(part.start, part.end, part.file_offset) for part in image_at(core, at).mapped] == [
            (at, at + PAGE, 0), (at + PAGE, at + 2 * PAGE, PAGE), (at + DATA_VADDR, at + DATA_VADDR + PAGE, DYNAMIC_AT),
        ]  # fmt: skip


def test_library_has_its_soname_where_nothing_else_names_it() -> None:
    process = Process()
    process.has_nt_file = False
    process.auxv = {}
    names_at = 0x900
    process.images[LIB].contents[names_at] = b"\0libwork.so.1\0"
    for strings in (names_at, LIB + names_at):  # as in the file, and as the dynamic linker overwrites it
        process.dynamic[LIB] = process.core.word(5, strings, 14, 1, 0, 0)
        process.dynamic[MAIN] = process.core.word(0, 0)
        assert image_at(core_of(process), LIB).name == "libwork.so.1"


def test_without_auxiliary_vector_the_executable_is_known_by_its_interpreter() -> None:
    process = Process()
    process.auxv = {}
    core = core_of(process)
    assert main_of(core).name == NAMES[MAIN]
    assert rules(main_of(core)) == {"nt-file", "segment-sniff", "link-map"}
    assert said(core.images.lost, "no auxiliary vector")
    assert image_at(core, VDSO).is_vdso


def test_first_row_of_nt_file_need_not_be_the_executable() -> None:
    process = Process()
    process.rows = process.rows_of(0x5000_0000, "/usr/share/locale-archive")[:1] + process.rows[::-1]
    core = core_of(process)
    assert main_of(core).name == NAMES[MAIN]
    assert len(core.images.images) == 4


# ---- many segments


def many_segments(count: int, count_in: str = "header") -> Process:
    process = Process()
    process.core.count_in = count_in
    process.more = [Load(0x10_0000_0000 + 2 * PAGE * index, b"data" * 4, PAGE, RW) for index in range(count)]
    return process


@pytest.mark.needs("readelf")
@pytest.mark.parametrize("count_in", ["section-last", "section-first"])
def test_more_segments_than_the_header_can_count(tmp_path: Path, count_in: str) -> None:
    process = many_segments(72_000, count_in)
    process.has_nt_file = False
    path = tmp_path / "core"
    path.write_bytes(process.render())
    core = core_of(path)
    assert core.images.facts["segments"] == 72_014
    assert "65535 (72015)" in run("readelf", "-hW", path)
    assert {image.name: values(image) for image in core.images.images} == {
        "./app": {IDS[MAIN].hex()},
        "/lib/libwork.so.1": {IDS[LIB].hex()},
        "/lib/ld.so": {IDS[LINKER].hex()},
        "linux-vdso.so.1": {IDS[VDSO].hex()},
    }
    assert core.images.declared_bytes == core.images.actual_bytes
    assert core.memory.is_mapped(0x10_0000_0000 + 2 * PAGE * 71_999)


def test_count_of_segments_that_is_cut_off_is_inferred() -> None:
    whole = many_segments(66_000, "section-last").render()
    core = core_of(whole[:-1])
    assert core.images.facts["segments"] == 66_014
    assert "inferred" in said(core.images.lost, "The number of segments")
    assert "is cut" in said(core.images.lost, "bytes that its headers declare")
    assert all(image.readings for image in core.images.images)


class CountingReader:
    """Counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls = 0
        self.bytes_read = 0

    def __call__(self, offset: int, length: int) -> bytes:
        part = self.data[offset : offset + length]
        self.calls += 1
        self.bytes_read += len(part)
        return part


def test_reads_grow_with_the_segments_and_not_faster() -> None:
    calls, read_bytes = [], []
    for count in (5_000, 20_000):
        data = many_segments(count).render()
        reader = CountingReader(data)
        read_core_images(reader, len(data))
        calls.append(reader.calls)
        read_bytes.append(reader.bytes_read)
    assert 3 < calls[1] / calls[0] < 4.5
    assert calls[1] < 1.1 * 20_000
    assert read_bytes[1] < 20_000 * (56 + 4) + 200_000


def test_progress_is_told_and_reaches_the_end() -> None:
    data = many_segments(10_000).render()
    seen: list[tuple[int, int]] = []
    read_core_images(*from_bytes(data), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 10_014)
    assert seen[-1] == (10_014, 10_014)
    assert seen == sorted(seen)


HOLE = """
#include <stdlib.h>
#include <sys/mman.h>
int main(int argc, char **argv)
{
    long size = atol(argv[1]);
    char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (long at = 0; at < size; at += size / 64)
        memory[at] = 1;
    abort();
}
"""


def test_memory_does_not_grow_with_the_core(needs: Callable[..., None], tmp_path: Path) -> None:
    program = compiled(tmp_path, HOLE, "-Wl,--build-id")
    peaks = []
    for size in (1 << 20, 4 << 30):
        path = kernel_core(needs, program, str(size))
        assert path.stat().st_size > size
        tracemalloc.start()
        core = core_of(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert all(image.readings for image in core.images.images)
        path.unlink()
    assert max(peaks) < 4 << 20
    assert peaks[1] < peaks[0] + (1 << 18)


# ---- where notes are


def test_notes_in_a_later_page_are_read_through_that_page() -> None:
    process = Process()
    image = process.image(None)
    # As patchelf does it: notes in a page behind the others, and the program headers with them.
    image.parts += [
        Part(PT_LOAD, 3 * PAGE, 0x10 * PAGE, PAGE, flags=RW),
        Part(PT_NOTE, 3 * PAGE + 0x600, 0x10 * PAGE + 0x600, 36),
    ]
    image.phoff = 3 * PAGE
    image.contents[3 * PAGE + 0x600] = process.core.gnu_note(b"\xbe" * 20)
    file = image.render(4 * PAGE)
    process.images[LIB] = image
    process.more = [Load(LIB, file[:PAGE]), Load(LIB + 0x10 * PAGE, file[3 * PAGE :], flags=RW)]
    process.rows.append((LIB + 0x10 * PAGE, LIB + 0x11 * PAGE, 3 * PAGE, NAMES[LIB]))
    process.images[LIB] = type("Rendered", (), {"render": staticmethod(lambda: file[: 3 * PAGE])})()
    core = core_of(process)
    lib = image_at(core, LIB)
    assert values(lib) == {"be" * 20}
    assert lib.base == LIB
    assert {reading.offset for reading in lib.readings} == {core.memory.dump_offset(LIB + 0x10 * PAGE + 0x610)}
    process.not_dumped = {LIB + 0x10 * PAGE}
    lib = image_at(core_of(process), LIB)
    assert (values(lib), lib.unread) == (set(), Unread.NOT_DUMPED)


def test_notes_that_lie_in_another_file_are_not_credited() -> None:
    process = Process()
    process.images[LIB].parts = process.images[LIB].parts[:4]
    # The linker's notes, seen from the library.
    process.images[LIB].parts.append(Part(PT_NOTE, NOTES_AT, LINKER - LIB + NOTES_AT, 36))
    process.images[LIB].contents.clear()
    for has_nt_file in (True, False):
        process.has_nt_file = has_nt_file
        core = core_of(process)
        assert not image_at(core, LIB).readings
        assert values(image_at(core, LINKER)) == {IDS[LINKER].hex()}
        assert any("/usr/lib/ld.so" in sentence for sentence in core.images.conflicts) == has_nt_file


@EVERY_LAYOUT
@pytest.mark.needs("readelf")
def test_notes_aligned_to_8_bytes(tmp_path: Path, bits: int, big_endian: bool) -> None:
    process = Process(bits, big_endian)
    process.images[LIB] = process.image(None)
    # An owner of 5 bytes and a content of 4 make the padding differ between 4 and 8.
    notes = process.core.note(b"Some\0", 3, b"1234", 8) + process.core.gnu_note(b"\xc1" * 20, 8)
    process.put_notes(process.images[LIB], notes, align=8)
    file = tmp_path / "lib"
    file.write_bytes(process.images[LIB].render())
    assert readelf_build_id(file) == "c1" * 20
    assert values(image_at(core_of(process), LIB)) == {"c1" * 20}


def test_all_note_segments_are_read_and_only_gnus_type_3_counts() -> None:
    process = Process()
    lib = process.images[LIB] = process.image(None)
    write = process.core.note
    process.put_notes(lib, write(b"Xen\0", 3, b"x" * 20) + write(b"GNU\0", 1, bytes(16)), at=0x400)
    process.put_notes(lib, write(b"GNU\0\0\0\0\0", 3, b"y" * 20) + write(b"GNU", 3, b"z" * 20), at=0x500)
    process.put_notes(lib, write(b"stapsdt\0", 3, b"s" * 40) + process.core.gnu_note(b"\xd1" * 16), at=0x600)
    assert values(image_at(core_of(process), LIB)) == {"d1" * 16}


@pytest.mark.parametrize(("length", "taken"), [(0, False), (1, True), (8, True), (64, True), (65, False)])
def test_ids_of_1_to_64_bytes_are_taken(length: int, taken: bool) -> None:
    process = Process()
    process.images[LIB] = process.image(b"\x77" * length)
    core = core_of(process)
    assert values(image_at(core, LIB)) == ({"77" * length} if taken else set())
    if not taken:
        assert image_at(core, LIB).unread is Unread.NO_ID
        assert said(core.images.lost, f"has {length} bytes")


def test_package_note_belongs_to_the_image_that_holds_it() -> None:
    process = Process()
    text = b'{"type":"deb","name":"work","version":"1.2-3"}'
    process.put_notes(process.images[LIB], process.core.note(b"FDO\0", 0xCAFE1A7E, text + b"\0"), at=0x600)
    core = core_of(process)
    assert image_at(core, LIB).says["package"] == text.decode()
    assert all("package" not in image.says for image in core.images.images if image.mapped[0].start != LIB)


def test_image_without_note_has_no_id() -> None:
    process = Process()
    process.images[LIB] = process.image(None)
    process.images[VDSO] = process.image(None)  # as on riscv64
    core = core_of(process)
    assert image_at(core, LIB).unread is Unread.NO_ID
    assert (image_at(core, VDSO).unread, image_at(core, VDSO).is_vdso) == (Unread.NO_ID, True)


def test_go_note_without_gnu_note_is_enough() -> None:
    process = Process()
    process.images[MAIN].parts.pop()
    process.images[MAIN].parts = [part for part in process.images[MAIN].parts if part.kind != PT_NOTE]
    process.images[MAIN].contents.clear()
    process.put_notes(process.images[MAIN], process.core.note(b"Go\0\0", 4, b"abc/def/ghi/jkl"))
    process.auxv[AT_PHNUM] = len(process.images[MAIN].parts)
    main = main_of(core_of(process))
    assert (values(main, IdKind.GO), values(main)) == ({"abc/def/ghi/jkl"}, set())
    assert main.unread is None


def test_weak_ids_are_labelled() -> None:
    assert gnu_id(bytes(20)).weak == "all zeros"
    assert gnu_id(b"\1" * 7).weak == "only 7 bytes"
    assert gnu_id(b"\1" * 8).weak == ""
    assert go_id(b"redacted").weak
    assert go_id(b"redacted/x").weak == ""


# ---- copies of headers


def process_with_copy(elf_type: int, *, header_dumped: bool, has_nt_file: bool, base: int = MAIN) -> Process:
    """
    The executable's data begins in its first page, so that this page is mapped a second time, and is changed there.

    In memory: the first page at `base`, the copy two pages on.
    """
    process = Process()
    process.has_nt_file = has_nt_file
    link = base if elf_type == 2 else 0
    main = ImageWriter(elf_type=elf_type, entry=link + 0x100)
    main.parts = [
        Part(PT_PHDR, 64, link + 64, 0x100),
        Part(PT_LOAD, 0, link, 0xE00, flags=RX),
        Part(PT_LOAD, 0xE00, link + 2 * PAGE + 0xE00, 0x200, 0x300, flags=RW),
        Part(PT_DYNAMIC, 0xE00, link + 2 * PAGE + 0xE00, 0x80, flags=RW),
        Part(PT_NOTE, NOTES_AT, link + NOTES_AT, 36),
        Part(PT_INTERP, 0x800, link + 0x800, 16),
    ]
    main.contents = {NOTES_AT: process.core.gnu_note(IDS[MAIN]), 0xE00: process.core.word(21, HEAP, 0, 0)}
    file = main.render(PAGE)
    for places in (process.images, process.dynamic):
        del places[MAIN]
    process.more = [Load(base, file, flags=RX), Load(base + 2 * PAGE, file, flags=RW)]
    process.not_dumped = set() if header_dumped else {base}
    process.rows = [row for row in process.rows if row[3] != NAMES[MAIN]]
    process.rows += [(base, base + PAGE, 0, NAMES[MAIN]), (base + 2 * PAGE, base + 3 * PAGE, 0, NAMES[MAIN])]
    process.linked[0] = [base - link, "", base + 2 * PAGE + 0xE00]
    process.auxv |= {AT_PHDR: base + 64, AT_PHNUM: len(main.parts), AT_ENTRY: base + 0x100}
    return process


@pytest.mark.parametrize("has_nt_file", [True, False], ids=["nt-file", "no-nt-file"])
@pytest.mark.parametrize("elf_type", [2, 3], ids=["fixed", "pie"])
def test_copy_of_a_header_tells_the_id_and_not_the_place(elf_type: int, has_nt_file: bool) -> None:
    core = core_of(process_with_copy(elf_type, header_dumped=False, has_nt_file=has_nt_file))
    main = main_of(core)
    assert main.base == (0 if elf_type == 2 else MAIN)
    assert main.mapped[0].start == MAIN
    assert values(main) == {IDS[MAIN].hex()}
    assert rules(main) == {"relro-copy"}
    assert {reading.offset for reading in main.readings} == {core.memory.dump_offset(MAIN + 2 * PAGE + NOTES_AT + 16)}
    assert len([image for image in core.images.images if image.name in (NAMES[MAIN], "./app")]) == 1
    assert image_at(core, LIB).readings, "the dynamic linker's list was not found"
    assert not core.images.conflicts


@pytest.mark.parametrize("has_nt_file", [True, False], ids=["nt-file", "no-nt-file"])
@pytest.mark.parametrize("elf_type", [2, 3], ids=["fixed", "pie"])
def test_copy_and_original_are_one_image(elf_type: int, has_nt_file: bool) -> None:
    core = core_of(process_with_copy(elf_type, header_dumped=True, has_nt_file=has_nt_file))
    main = main_of(core)
    assert main.base == (0 if elf_type == 2 else MAIN)
    assert len(core.images.images) == 4
    assert rules(main) >= {"segment-sniff", "at-phdr", "link-map", "relro-copy"}
    assert len({reading.offset for reading in main.readings}) == 2
    assert not core.images.conflicts


def test_copy_with_another_id_is_a_conflict_with_both_values() -> None:
    process = process_with_copy(3, header_dumped=True, has_nt_file=True)
    file = bytearray(process.more[1].data)
    file[NOTES_AT + 16 : NOTES_AT + 36] = b"\xee" * 20
    process.more[1].data = bytes(file)
    core = core_of(process)
    conflict = said(core.images.conflicts, "different gnu build IDs")
    assert IDS[MAIN].hex() in conflict
    assert "ee" * 20 in conflict


def test_library_copy_without_the_linkers_list_is_placed_by_its_segments() -> None:
    """Nothing but where segments begin tells which of the two mappings is the first."""
    process = process_with_copy(3, header_dumped=False, has_nt_file=False, base=0x7F00_0000)
    process.auxv = {}
    process.linked = []
    core = core_of(process)
    (image,) = (image for image in core.images.images if values(image) == {IDS[MAIN].hex()})
    assert image.base == 0x7F00_0000


def test_library_within_an_archive_is_named_after_it() -> None:
    process = Process()
    process.rows = [
        (start, end, offset + 7 * PAGE, "/data/app/base.apk") if name == NAMES[LIB] else (start, end, offset, name)
        for start, end, offset, name in process.rows
    ]
    core = core_of(process)
    lib = image_at(core, LIB)
    assert (lib.name, lib.says["offset_in_file"]) == ("/data/app/base.apk", "0x7000")
    assert values(lib) == {IDS[LIB].hex()}
    assert [part.file_offset for part in lib.mapped] == [0, PAGE, DYNAMIC_AT]
    assert len(core.images.images) == 4
    assert not core.images.conflicts


# ---- what is no image


def test_file_that_is_no_elf_is_no_image() -> None:
    process = Process()
    for at, data, flags in (
        (0x7000_0000, b"PK\3\4".ljust(PAGE, b"\0"), R),
        (0x7001_0000, b"", R),
        (0x7002_0000, b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\1\0\x3e\0\1\0\0\0".ljust(PAGE - 16, b"\0"), R),
    ):
        process.more.append(Load(at, data, PAGE, flags))
        process.rows.append((at, at + PAGE, 0, f"/data/{at:x}"))
    assert len(core_of(process).images.images) == 4


def test_generated_code_in_named_memory_is_no_image() -> None:
    process = Process()
    process.more.append(Load(0x7000_0000, b"", 4 * PAGE, RX))
    process.rows.append((0x7000_0000, 0x7000_4000, 0, "/memfd:doublemapper (deleted)"))
    assert len(core_of(process).images.images) == 4


def test_program_run_from_named_memory_is_an_image() -> None:
    process = Process()
    process.rows = [(*row[:3], row[3].replace("/srv/app", "/memfd:app (deleted)")) for row in process.rows]
    assert (main_of(core_of(process)).name, values(main_of(core_of(process)))) == ("/memfd:app", {IDS[MAIN].hex()})
    process.not_dumped = {MAIN}
    assert main_of(core_of(process)).unread is Unread.NOT_DUMPED


def test_image_that_was_only_read_is_listed_and_marked() -> None:
    process = Process()
    file = process.images[LIB].render()
    process.more.append(Load(0x7000_0000, file))
    process.more.append(Load(0x7800_0000, file, flags=RW))
    process.rows.append((0x7000_0000, 0x7000_3000, 0, NAMES[LIB]))
    core = core_of(process)
    for at in (0x7000_0000, 0x7800_0000):
        image = image_at(core, at)
        assert values(image) == {IDS[LIB].hex()}
        assert image.says["loaded"].startswith("no")
    assert "loaded" not in image_at(core, LIB).says
    assert not core.images.conflicts


def test_executable_of_fixed_address_that_was_only_read_has_no_bias() -> None:
    process = Process()
    fixed = process.image(b"\x99" * 20, elf_type=2)
    fixed.parts = [
        Part(part.kind, part.offset, part.vaddr + 0x400000, part.filesz, part.memsz, part.flags) for part in fixed.parts
    ]
    process.more.append(Load(0x7000_0000, fixed.render()))
    core = core_of(process)
    (image,) = (image for image in core.images.images if values(image) == {"99" * 20})
    assert image.base is None
    assert image.says["loaded"].startswith("no")


# ---- why there is no identity


def test_page_that_was_not_dumped_is_told_from_a_filter() -> None:
    process = Process()
    process.not_dumped = {LIB}
    core = core_of(process)
    assert image_at(core, LIB).unread is Unread.NOT_DUMPED
    assert image_at(core, LIB).base == LIB  # by the dynamic linker's list
    assert core.images.facts["filter"] == "header pages"
    process.not_dumped = {LIB, MAIN, LINKER}
    core = core_of(process)
    assert {image.unread for image in core.images.images if not image.is_vdso} == {Unread.FILTERED}
    assert core.images.facts["filter"] == "no header pages"


def test_filtered_core_without_nt_file_still_names_what_must_be_there() -> None:
    process = Process()
    process.has_nt_file = False
    process.not_dumped = {LIB, MAIN, LINKER}
    core = core_of(process)
    assert {(image.name, image.unread, image.is_main) for image in core.images.images if not image.is_vdso} == {
        ("./app", Unread.FILTERED, True),
        ("", Unread.FILTERED, False),
    }
    assert said(core.images.lost, "AT_PHDR says")


def test_segments_that_are_left_out_do_not_hide_files() -> None:
    """As gdb and createdump write it: no segment at all for what is not dumped."""
    process = Process()
    data = process.render()
    kept = [load for load in process.core.loads if load.data and load.vaddr != LIB]
    process.core.loads = kept
    data = process.core.render()
    core = core_of(data)
    assert not core.memory.is_mapped(MAIN + PAGE)
    lib = image_named(core, "/libwork.so.1.2")
    assert lib.unread is Unread.NOT_DUMPED
    assert len(core.images.images) == 4
    assert not any("loaded" in image.says for image in core.images.images)


def test_header_that_makes_no_sense_is_broken() -> None:
    for damage in (
        lambda page: page.__setitem__(slice(4, 5), b"\7"),
        lambda page: page.__setitem__(slice(54, 56), b"\1\0"),
        lambda page: page.__setitem__(slice(56, 58), b"\0\0"),
        lambda page: page.__setitem__(slice(64, 64 + 56 * 5), b"\xff" * 56 * 5),
    ):
        process = Process()
        page = bytearray(process.images[LIB].render()[:PAGE])
        damage(page)
        process.more = [Load(LIB, bytes(page))]
        core = core_of(process)
        lib = image_named(core, "/libwork.so.1.2")
        assert (lib.readings, lib.unread) == ((), Unread.BROKEN)


def test_page_of_zeros_counts_as_not_dumped() -> None:
    process = Process()
    process.more = [Load(LIB, bytes(PAGE))]
    assert image_named(core_of(process), "/libwork.so.1.2").unread is Unread.NOT_DUMPED


# ---- where rules disagree


def test_linkers_list_with_another_bias_is_a_conflict_with_both_values() -> None:
    process = Process()
    process.linked[1][0] = LIB + 0x5000
    core = core_of(process)
    conflict = said(core.images.conflicts, "load bias of /lib/libwork.so.1")
    assert f"{LIB:#x}" in conflict
    assert f"{LIB + 0x5000:#x}" in conflict
    lib = image_at(core, LIB)
    assert lib.base == LIB
    assert rules(lib) == {"nt-file", "segment-sniff"}


def test_linkers_list_with_another_dynamic_section_is_a_conflict() -> None:
    process = Process()
    process.linked[1][2] = HEAP
    conflict = said(core_of(process).images.conflicts, "dynamic section of /lib/libwork.so.1")
    assert f"{HEAP:#x}" in conflict
    assert f"{LIB + DATA_VADDR:#x}" in conflict


def test_linkers_list_adds_what_nothing_else_shows() -> None:
    process = Process()
    process.linked.append([0x7000_0000, "/opt/hidden.so", 0x7000_3000])
    process.more = [Load(0x7000_0000, b"", 4 * PAGE, RX)]
    core = core_of(process)
    hidden = image_named(core, "/opt/hidden.so")
    assert (hidden.base, hidden.unread, hidden.readings) == (0x7000_0000, Unread.NOT_DUMPED, ())


def test_auxiliary_vector_against_the_header_is_a_conflict_with_both_values() -> None:
    process = Process()
    process.auxv |= {AT_ENTRY: MAIN + 0x1234, AT_PHNUM: 6}
    core = core_of(process)
    conflict = said(core.images.conflicts, "AT_ENTRY")
    assert f"{MAIN + 0x1234:#x}" in conflict
    assert f"{MAIN + PAGE:#x}" in conflict
    assert said(core.images.conflicts, "AT_PHNUM is 0x6")
    assert main_of(core).name == NAMES[MAIN]


def test_program_headers_at_at_phdr_that_name_another_bias_are_a_conflict() -> None:
    process = Process()
    process.auxv[AT_PHDR] = HEAP + 0xC00
    table = bytearray(process.images[MAIN].render()[64 : 64 + 7 * 56])
    heap = bytearray(process._heap())
    heap[0xC00 : 0xC00 + len(table)] = table
    process.more = [Load(HEAP, bytes(heap), flags=RW)]
    core = core_of(process)
    conflict = said(core.images.conflicts, "AT_PHDR")
    assert f"{HEAP + 0xC00:#x}" in conflict
    assert f"{MAIN + 64:#x}" in conflict
    assert main_of(core).name == NAMES[MAIN]
    assert values(image_at(core, MAIN)) == {IDS[MAIN].hex()}


def test_two_ids_in_one_image_are_a_conflict() -> None:
    process = Process()
    process.put_notes(process.images[LIB], process.core.gnu_note(b"\xab" * 20), at=0x600)
    core = core_of(process)
    assert values(image_at(core, LIB)) == {IDS[LIB].hex(), "ab" * 20}
    assert "ab" * 20 in said(core.images.conflicts, "different gnu build IDs")


# ---- claims that cannot be


@pytest.mark.parametrize("count", [0, 1, 8, 10, 11, 1000, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_nt_file_with_a_lying_count_costs_names_and_no_ids(count: int) -> None:
    process = Process()
    rows = process.rows
    data = process.render()
    note = process.core.nt_file(rows)
    lying = process.core.nt_file(rows, count=count)
    assert data.count(note) == 1
    core = core_of(data.replace(note, lying))
    assert {value for image in core.images.images for value in values(image)} == {value.hex() for value in IDS.values()}
    assert said(core.images.lost, "NT_FILE")


def test_nt_file_by_gdb_counts_bytes_instead_of_pages() -> None:
    process = Process()
    by_page = process.core.nt_file(process.rows)
    by_byte = process.core.nt_file(process.rows, unit=1)
    core = core_of(process.render().replace(by_page, by_byte))
    assert [part.file_offset for part in image_at(core, LIB).mapped] == [0, PAGE, DYNAMIC_AT]
    assert not core.images.lost


def test_note_of_another_owner_is_not_nt_file() -> None:
    process = Process()
    data = process.render()
    note = process.core.nt_file(process.rows)
    foreign = process.core.note(b"LIE\0\0", NT_FILE, note[20:])
    assert len(foreign) == len(note)
    assert said(core_of(data.replace(note, foreign)).images.lost, NO_NT_FILE)


@pytest.mark.parametrize("at_index", [1, 2, 3])
def test_linkers_list_that_loops_ends(at_index: int) -> None:
    process = Process()
    heap = bytearray(process._heap())
    entry = 0x100 * (at_index + 1)
    heap[entry + 24 : entry + 32] = struct.pack("<Q", HEAP + 0x100)
    process.more = [Load(HEAP, bytes(heap), flags=RW)]
    core = core_of(process)
    assert said(core.images.lost, "does not end")
    assert len(core.images.images) == 4


def test_linkers_list_that_leads_out_of_the_core_breaks_off() -> None:
    process = Process()
    heap = bytearray(process._heap())
    heap[0x200 + 24 : 0x200 + 32] = struct.pack("<Q", 0xDEAD_BEEF_0000)
    process.more = [Load(HEAP, bytes(heap), flags=RW)]
    core = core_of(process)
    assert "0xdeadbeef0000" in said(core.images.lost, "breaks off")
    assert "link-map" in rules(image_at(core, LIB))
    assert "link-map" not in rules(image_at(core, LINKER))


@pytest.mark.parametrize("key", [AT_PHDR, AT_PHNUM, AT_PHENT, AT_BASE, AT_ENTRY, AT_EXECFN, AT_SYSINFO_EHDR])
@pytest.mark.parametrize("value", [1, 0xFFFF, HEAP + 3, (1 << 64) - 1])
def test_lying_auxiliary_vector_costs_no_ids(key: int, value: int) -> None:
    process = Process()
    process.auxv[key] = value
    core = core_of(process)
    found = {value for image in core.images.images for value in values(image)}
    assert found == {value.hex() for value in IDS.values()}


# ---- memory by address


def test_mapped_is_what_memsz_says_and_dumped_what_filesz_says() -> None:
    process = Process()
    process.more = [Load(0x7000_0000, b"a" * 100, 3 * PAGE, RX), Load(0x7000_3000, b"b" * PAGE)]
    memory = core_of(process).memory
    assert memory.is_mapped(0x7000_0000)
    assert memory.is_mapped(0x7000_2FFF)
    assert not memory.is_mapped(0x6FFF_FFFF)
    assert not memory.is_mapped(0x7000_4000)
    assert memory.read(0x7000_0032, 1000) == b"a" * 50
    assert memory.read(0x7000_1000, 10) == b""
    assert memory.flags(0x7000_1000) == "r-x"
    assert memory.lack(0x7000_0063) is None
    assert memory.lack(0x7000_0064) is Unread.NOT_DUMPED
    assert memory.dump_offset(0x7000_0064) is None
    assert memory.dump_offset(0x7000_0063) == process.core.offsets[0x7000_0000] + 0x63


def test_reading_goes_on_from_segment_to_segment() -> None:
    process = Process()
    process.more = [Load(0x7000_0000, b"a" * PAGE), Load(0x7000_1000, b"b" * PAGE), Load(0x7000_3000, b"c" * PAGE)]
    memory = core_of(process).memory
    assert memory.read(0x7000_0FFE, 4) == b"aabb"
    assert memory.read(0x7000_1FFE, 4) == b"bb"
    assert memory.read(0x7000_0000, 1 << 40) == b"a" * PAGE + b"b" * PAGE


def test_last_page_of_the_address_space_is_mapped() -> None:
    process = Process()
    process.more = [Load(0xFFFF_FFFF_FFFF_F000, b"z" * PAGE), Load(0xFFFF_FFFF_FF60_0000, b"", PAGE, RX)]
    memory = core_of(process).memory
    assert memory.is_mapped((1 << 64) - 1)
    assert memory.read((1 << 64) - 2, 100) == b"zz"
    assert memory.flags(0xFFFF_FFFF_FF60_0FFF) == "r-x"


def test_segments_in_any_order_are_found() -> None:
    process = Process()
    process.render()
    process.core.loads.reverse()
    core = core_of(process.core.render())
    assert {value for image in core.images.images for value in values(image)} == {value.hex() for value in IDS.values()}
    assert core.memory.overlaps == 0


def test_overlapping_segments_are_said() -> None:
    process = Process()
    process.more = [Load(0x7000_0000, b"a" * PAGE, 4 * PAGE), Load(0x7000_2000, b"b" * PAGE)]
    core = core_of(process)
    assert core.memory.overlaps == 1
    assert said(core.images.lost, "1 segments begin inside")
    assert core.memory.read(0x7000_2000, 1) == b"b"


def test_kernel_flags_in_place_of_segment_flags_are_understood() -> None:
    process = Process()
    process.render()
    to_vm = {R: 0x71, RX: 0x75, RW: 0x73}  # VM_READ 1, VM_WRITE 2, VM_EXEC 4, and what may become of them
    for load in process.core.loads:
        load.flags = to_vm[load.flags]
    core = core_of(process.core.render())
    assert [part.flags for part in image_at(core, LIB).mapped] == ["r--", "r-x", "rw-"]
    assert core.memory.vm_flags
    assert "VM_READ" in str(core.images.facts["segment_flags"])


def test_core_as_createdump_writes_it() -> None:
    """Merged neighbouring pages, only what is dumped, the count in front: headers need not begin a segment."""
    process = Process()
    process.core.count_in = "section-first"
    process.render()
    kept = [load for load in process.core.loads if load.data]
    merged = next(load for load in kept if load.vaddr == LIB)
    merged.vaddr -= PAGE
    merged.data = b"x" * PAGE + merged.data
    process.core.loads = kept
    core = core_of(process.core.render())
    lib = image_named(core, "/libwork.so.1.2")
    assert (values(lib), lib.base) == ({IDS[LIB].hex()}, LIB)
    assert rules(lib) == {"nt-file", "link-map"}
    assert len(core.images.images) == 4
    assert all(image.readings for image in core.images.images)


def test_memory_alone_can_be_had(tmp_path: Path) -> None:
    data = small_core_bytes()
    memory = CoreFile(*from_bytes(data)).memory
    assert isinstance(memory, CoreMemory)
    assert len(memory) == 14
    assert [segment.start for segment in memory.iter_range(LIB, LINKER)] == [LIB, LIB + PAGE, LIB + DATA_VADDR]
    assert memory.read_text(STACK) == "./app"
    assert memory.read_text(1) == ""


# ---- hostile bytes


def assert_result_or_format_error(data: bytes) -> None:
    reader = CountingReader(data)
    core = None
    with suppress(FormatError):
        core = read_core(reader, len(data))
    # A whole core of this kind takes about 150 reads.
    assert reader.calls < 20_000
    assert reader.bytes_read < 64 * len(data) + (1 << 20)
    if core is None:
        return
    assert len(core.headers) == len(core.images.images)
    for image in core.images.images:
        assert (image.unread is None) == bool(image.readings)
        for reading in image.readings:
            assert 0 <= reading.offset < len(data)
            assert reading.id.kind in (IdKind.GNU, IdKind.GO)
        for part in image.mapped:
            assert part.start < part.end
    str(core)


@settings(deadline=None, max_examples=400)
@given(data=mutated(Process().render(), head_bytes=0x2000))
def test_no_damage_to_a_small_core_breaks_the_reader(data: bytes) -> None:
    assert_result_or_format_error(data)


@settings(deadline=None, max_examples=200)
@given(data=mutated(Process(32, True).render(), head_bytes=0x2000))
def test_no_damage_to_a_big_endian_core_breaks_the_reader(data: bytes) -> None:
    assert_result_or_format_error(data)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_damage_to_a_real_core_breaks_the_reader(real_core: bytes, data: st.DataObject) -> None:
    assert_result_or_format_error(data.draw(mutated(real_core, head_bytes=0x3000)))


EXTREMES = (
    0,
    1,
    2,
    0xFFF,
    0xFFFF,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    1 << 40,
    1 << 63,
    (1 << 64) - 1,
    MAIN,
    LIB,
    HEAP,
    HEAP + 0x100,
)


@settings(deadline=None, max_examples=400)
@given(
    patches=st.lists(
        st.tuples(
            st.integers(0, len(Process().render()) // 4 - 1), st.sampled_from(EXTREMES), st.sampled_from((2, 4, 8))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_spliced_number_breaks_the_reader(patches: list[tuple[int, int, int]]) -> None:
    data = bytearray(small_core_bytes())
    for place, value, width in patches:
        data[place * 4 : place * 4 + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")[
            : len(data) - place * 4
        ]
    assert_result_or_format_error(bytes(data))


@given(data=st.binary(max_size=300))
def test_no_bytes_behind_an_elf_header_break_the_reader(data: bytes) -> None:
    assert_result_or_format_error(small_core_bytes()[:64] + data)


def test_ten_thousand_headers_are_read_and_more_are_refused() -> None:
    process = Process()
    page = process.image(b"\x55" * 20).render()[:PAGE]
    process.has_nt_file = False
    process.more = [Load(0x10_0000_0000 + 16 * PAGE * index, page) for index in range(10_050)]
    data = process.render()
    reader = CountingReader(data)
    core = read_core(reader, len(data))
    assert len(core.images.images) == 10_000
    assert said(core.images.lost, "more than 10000 ELF headers")
    assert reader.calls < 20 * 10_000
