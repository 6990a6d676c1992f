"""
Every way in which other tools were seen to be wrong about what belongs to what, each with its verdict here.

Real compilers and real cores where they can be had; writers of synthetic files for what no tool here produces.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pmforensics.verify.verdict import IdentityReport, Verdict
from tests import zoo
from tests.formats import macho_writer, pdb_writer
from tests.formats.core_writer import (
    AT_SYSINFO_EHDR,
    DATA_VADDR,
    IDS,
    LIB,
    LINKER,
    MAIN,
    NAMES,
    PAGE,
    PT_NOTE,
    RW,
    STACK,
    VDSO,
    Load,
    Part,
    Process,
)
from tests.formats.elf_writer import ElfWriter, Section, Segment
from tests.formats.macho_writer import ARM64, X86_64, MachWriter
from tests.formats.minidump_writer import LINUX, MACOS, MinidumpWriter, Module, bpel, nb10, rsds
from tests.formats.pe_writer import DebugEntry, PeWriter
from tests.formats.test_core import compiled, go, go_crash, kernel_core, readelf_build_id, run
from tests.verify.specimens import (
    CRASH,
    copied,
    edited,
    fixed_id,
    judge,
    main_of,
    row_for,
    rows_for,
    symbol,
    verdict_of,
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes a file into the test's folder."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


Write = Callable[[str, bytes], Path]
Needs = Callable[..., None]


def elf_file(build_id: bytes | None, *, kind: int = 3, owner: bytes = b"GNU\0", section: str = ".note") -> bytes:
    """A small shared library, or debug-only file, with one note."""
    writer = ElfWriter(elf_type=kind)
    note = writer.note(owner, 3, build_id) if build_id is not None else b""
    writer.segments = [Segment(1, b"code" * 8, flags=5)] + ([Segment(4, note)] if note else [])
    writer.sections = [Section(".text", 1, b"code" * 8)]
    if note:
        writer.sections.append(Section(section, 7, note))
    return writer.render()


def reading_rules(report: IdentityReport, name_end: str) -> set[str]:
    images = {id(row.image): row.image for row in report.rows if row.image and row.image.name.endswith(name_end)}
    (image,) = images.values()
    return {reading.rule for reading in image.readings}


# ---- where IDs hide in an ELF core


@pytest.mark.needs("gcc")
def test_core_without_header_pages_is_unverifiable_and_says_how_to_do_better(needs: Needs, tmp_path: Path) -> None:
    """coredump_filter without bit 4: only the kernel's own image has an ID, and no wrong file may be believed."""
    program = compiled(tmp_path, CRASH, "-Wl,--build-id")
    core = kernel_core(needs, program, dump_filter="0x21")
    report = judge(core, program)
    row = row_for(report, program)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "filtered-consistent")
    assert row.command == "echo 0x33 > /proc/PID/coredump_filter"
    assert any("coredump_filter" in sentence for sentence in report.lost)
    other = compiled(tmp_path, "int main(int n) { return n; }\n", "-Wl,--build-id", name="other")
    assert verdict_of(judge(core, other), other) == ("MISMATCH", "other-bytes")


@pytest.mark.needs("gcc", "patchelf")
def test_notes_that_patchelf_moved_are_read_where_they_are(needs: Needs, tmp_path: Path) -> None:
    original = compiled(tmp_path, CRASH, "-Wl,--build-id", name="original")
    patched = tmp_path / "program"
    nested = tmp_path / ("nested" * 8)
    nested.mkdir()
    (nested / "ld.so").symlink_to(run("patchelf", "--print-interpreter", original).strip())
    run("patchelf", "--set-interpreter", nested / "ld.so", "--output", patched, original)
    notes = [line.split() for line in run("readelf", "-lW", patched).splitlines() if line.split()[:1] == ["NOTE"]]
    assert all(int(words[1], 16) > 4096 for words in notes), "patchelf moved no notes: move them in another way"
    core = kernel_core(needs, patched)
    report = judge(core, patched)
    assert verdict_of(report, patched) == ("MATCH", "same-id")
    # The file as it was before has the same ID on disk, and it is not what ran.
    assert readelf_build_id(original) == readelf_build_id(patched)
    assert verdict_of(judge(core, original), original) == ("MISMATCH", "altered")


@pytest.mark.needs("gcc")
def test_first_page_without_the_notes_gives_no_id_and_none_is_taken_from_the_file(needs: Needs, tmp_path: Path) -> None:
    """The kernel dumps the page with the ELF header; these notes have a segment of their own further on."""
    flags = ("-no-pie", "-Wl,--build-id", "-Wl,--section-start=.note.gnu.build-id=0x5ff000")
    program = compiled(tmp_path, CRASH, *flags)
    core = kernel_core(needs, program)
    row = row_for(judge(core, program), program)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "page-not-dumped-consistent")
    assert row.reading is None
    assert readelf_build_id(program) not in row.says
    other = compiled(tmp_path, CRASH.replace("void", "int n"), "-g", *flags, name="other")
    assert judge(core, other).verdict in (Verdict.UNVERIFIABLE, Verdict.MISMATCH)
    whole = kernel_core(needs, program, dump_filter="0x37")
    assert verdict_of(judge(whole, program), program) == ("MATCH", "same-id")


def test_note_page_that_was_not_dumped_leaves_the_id_unknown(written: Write) -> None:
    process = Process()
    image = process.image(None)
    process.put_notes(image, process.core.gnu_note(b"\x77" * 20), at=PAGE + 0x100)
    process.images[LIB] = image
    core = written("core", process.render())
    library = written("libwork.so.1.2", image.render())
    row = row_for(judge(core, library), library)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "page-not-dumped-consistent")
    wrong = written("wrong/libwork.so.1.2", edited(library, "edited", 0x300, b"x").read_bytes())
    assert verdict_of(judge(core, wrong), wrong) == ("MISMATCH", "other-bytes")


@pytest.mark.needs("gcc")
def test_relro_copy_gives_the_id_and_not_the_base(needs: Needs, tmp_path: Path) -> None:
    """Only the dirty second mapping of the first page is in the core; the program lies elsewhere."""
    program = compiled(tmp_path, CRASH, "-Wl,--build-id", "-Wl,-z,noseparate-code", "-no-pie")
    core = kernel_core(needs, program, dump_filter="0x01")
    report = judge(core, program)
    assert verdict_of(report, program) == ("MATCH", "same-id")
    assert reading_rules(report, "/program") == {"relro-copy"}
    main = main_of(report)
    assert main.base == 0
    assert main.mapped[0].start == 0x400000


def test_without_nt_file_ids_names_and_verdicts_stay(written: Write) -> None:
    process = Process()
    process.has_nt_file = False
    core = written("core", process.render())
    library = written("libwork.so.1", process.images[LIB].render())
    report = judge(core, library)
    assert verdict_of(report, library) == ("MATCH", "same-id")
    assert any("no NT_FILE note" in sentence for sentence in report.lost)
    other = written("other/libwork.so.1", elf_file(b"\x99" * 20))
    assert verdict_of(judge(core, other), other) == ("MISMATCH", "other-id")


@pytest.mark.needs("gcc")
def test_library_is_meant_by_the_name_that_the_linker_knows_and_by_that_in_nt_file(
    needs: Needs, tmp_path: Path
) -> None:
    compiled(tmp_path, "int held = 1;\n", "-shared", "-fPIC", "-Wl,--build-id", name="libheld-1.2.so")
    (tmp_path / "libheld.so.1").symlink_to("libheld-1.2.so")
    load = '#include <dlfcn.h>\n#include <stdlib.h>\nint main(void) { if (dlopen("./libheld.so.1", 2)) abort(); }\n'
    program = compiled(tmp_path, load, "-ldl")
    core = kernel_core(needs, program)
    (tmp_path / "next").mkdir()
    for name in ("libheld.so.1", "libheld-1.2.so"):
        other = compiled(tmp_path / "next", "int held = 2;\n", "-shared", "-fPIC", "-Wl,--build-id=md5", name=name)
        row = row_for(judge(core, other), other)
        assert row.code == "other-id"
        assert row.image is not None
        assert row.image.name.endswith("/libheld-1.2.so")


def test_first_row_of_nt_file_need_not_be_the_executable(written: Write) -> None:
    process = Process()
    process.rows = sorted(process.rows, key=lambda row: row[0] != LIB)
    core = written("core", process.render())
    unnamed = written("some-program", process.images[MAIN].render())
    report = judge(core, unnamed)
    assert main_of(report).name == NAMES[MAIN]
    assert row_for(report, unnamed).image is main_of(report)


@pytest.mark.parametrize("count", [0, 3, 10**6, 2**63])
def test_lying_count_in_nt_file_costs_names_and_no_verdicts(tmp_path: Path, count: int) -> None:
    process = Process()
    honest = process.core.nt_file
    process.core.nt_file = lambda rows, **_: honest(rows, count=count)  # type: ignore[method-assign]
    (tmp_path / "core").write_bytes(process.render())
    (tmp_path / "library").write_bytes(process.images[LIB].render())
    report = judge(tmp_path / "core", tmp_path / "library")
    assert verdict_of(report, tmp_path / "library") == ("MATCH", "same-id")


def test_notes_are_read_at_bias_plus_vaddr_and_not_at_start_plus_offset(written: Write) -> None:
    """The notes stand in the data segment, which lies one page further in memory than in the file."""
    process = Process()
    image = process.image(None)
    truth, decoy = (process.core.gnu_note(bytes([byte]) * 20) for byte in (0x31, 0x32))
    image.parts.append(Part(PT_NOTE, 2 * PAGE + 0x200, DATA_VADDR + 0x200, len(truth)))
    image.contents[2 * PAGE + 0x200] = truth
    process.images[LIB] = image
    process.dynamic[LIB] = process.core.word(0, 0).ljust(0x200, b"\0") + truth
    process.more = [Load(LIB + 2 * PAGE, bytes(0x200) + decoy + bytes(PAGE - 0x200 - len(decoy)), flags=RW)]
    core = written("core", process.render())
    right, wrong = (
        written(f"{word}/libwork.so.1.2", elf_file(bytes([byte]) * 20)) for word, byte in (("a", 0x31), ("b", 0x32))
    )
    assert row_for(judge(core, wrong), wrong).code == "other-id"
    row = row_for(judge(core, right), right)
    assert row.reading is not None
    assert row.reading.id.value == "31" * 20


def test_several_note_segments_padded_to_8_bytes(written: Write) -> None:
    process = Process()
    image = process.image(None)
    property_note = process.core.note(b"GNU\0", 5, bytes(16), align=8)
    process.put_notes(image, property_note, at=0x300, align=8)
    process.put_notes(image, process.core.note(b"Xen\0\0", 3, b"\x11" * 20, align=8), at=0x380, align=8)
    process.put_notes(image, process.core.gnu_note(b"\x42" * 20, align=8), at=0x440, align=8)
    process.images[LIB] = image
    core = written("core", process.render())
    library = written("libwork.so.1.2", image.render())
    row = row_for(judge(core, library), library)
    assert (row.verdict, row.reading and row.reading.id.value) == (Verdict.MATCH, "42" * 20)


@pytest.mark.needs("gcc", "objcopy")
def test_renamed_id_section_counts_in_program_and_debug_file(needs: Needs, tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id")
    renamed, debug = tmp_path / "renamed", tmp_path / "program.debug"
    run("objcopy", "--rename-section", ".note.gnu.build-id=.note.vendor", program, renamed)
    run("objcopy", "--only-keep-debug", renamed, debug)
    core = kernel_core(needs, renamed)
    report = judge(core, renamed, debug)
    assert {row.code for row in report.asked} == {"same-id"}


def test_in_a_debug_only_file_sections_are_the_truth(written: Write) -> None:
    """Its program headers are those of the program, and point at whatever lies there now."""
    writer = ElfWriter(elf_type=3)
    stale, own = (writer.note(b"GNU\0", 3, bytes([byte]) * 20) for byte in (0x55, 0xA2))
    writer.segments = [Segment(4, stale)]
    writer.sections = [
        Section(".text", 8, b""), Section(".note.gnu.build-id", 7, own), Section(".debug_info", 1, b"x" * 8),
    ]  # fmt: skip
    debug = written("libwork.so.1.2.debug", writer.render())
    core = written("core", Process().render())
    row = row_for(judge(core, debug), debug)
    assert (row.verdict, row.reading and row.reading.id.value) == (Verdict.MATCH, IDS[LIB].hex())


@pytest.mark.needs("gcc")
def test_note_of_type_3_of_another_owner_is_no_id(needs: Needs, tmp_path: Path) -> None:
    note = (
        '__asm__(".pushsection .note.vendor, \\"a\\", @note\\n.long 4, 20, 3\\n.asciz \\"Xen\\"\\n'
        '.fill 5, 4, 0x12345678\\n.popsection\\n");\n'
    )
    program = compiled(tmp_path, note + CRASH, "-Wl,--build-id=none")
    core = kernel_core(needs, program)
    row = row_for(judge(core, program), program)
    assert (row.verdict, row.code, row.reading) == (Verdict.UNVERIFIABLE, "no-id-consistent", None)


@pytest.mark.parametrize(
    ("length", "verdict"),
    [(1, "UNVERIFIABLE"), (7, "UNVERIFIABLE"), (8, "MATCH"), (16, "MATCH"), (20, "MATCH"), (64, "MATCH")],
)
def test_ids_of_8_to_64_bytes_prove_and_shorter_ones_do_not(written: Write, length: int, verdict: str) -> None:
    process = Process()
    process.images[LIB] = process.image(bytes(range(1, length + 1)))
    core = written("core", process.render())
    same = written("libwork.so.1.2", process.images[LIB].render())
    other = written("other/libwork.so.1.2", elf_file(bytes(range(2, length + 2))))
    assert row_for(judge(core, same), same).verdict.value == verdict
    # Two different IDs are of two builds, however short they are.
    assert verdict_of(judge(core, other), other) == ("MISMATCH", "other-id")


def test_kernels_own_image_without_id_is_no_mismatch_even_when_all_must_match(written: Write) -> None:
    process = Process()
    process.images[VDSO] = process.image(None)
    core = written("core", process.render())
    files = [written(Path(NAMES[at]).name, process.images[at].render()) for at in (LIB, LINKER)]
    process.images[MAIN].contents[2 * PAGE] = process.core.word(21, 0, 0, 0)
    files.append(written("app", process.images[MAIN].render()))
    report = judge(core, *files, strict=True)
    assert report.verdict is Verdict.MATCH
    assert any(row.code == "vdso" and not row.asked for row in report.rows)
    process.auxv.pop(AT_SYSINFO_EHDR)
    del process.images[VDSO]
    process.linked.pop()
    assert judge(written("core", process.render()), *files, strict=True).verdict is Verdict.MATCH


# ---- Go


@pytest.mark.needs("go")
def test_go_id_is_compared_with_go_id_and_never_with_a_gnu_id(needs: Needs, tmp_path: Path) -> None:
    """Before Go 1.24, and with -B none, a Go program has no GNU build ID."""
    program, core = go_crash(needs, tmp_path, "-ldflags=-B=none")
    assert readelf_build_id(program) is None
    row = row_for(judge(core, program), program)
    assert (row.verdict, row.code) == (Verdict.MATCH, "same-id")
    assert row.reading is not None
    assert row.reading.id.value == go("tool", "buildid", program).strip()
    source = (tmp_path / "main.go").read_text().replace("*p = 1", "*p = 2")
    (tmp_path / "main.go").write_text(source)
    go("build", "-buildvcs=false", "-ldflags=-B=none", "-o", "next", ".", cwd=tmp_path)
    assert verdict_of(judge(core, tmp_path / "next"), tmp_path / "next") == ("MISMATCH", "other-id")
    # With a GNU ID on one side only there is nothing equal in kind but the Go ID.
    go("build", "-buildvcs=false", "-o", "with-gnu", ".", cwd=tmp_path)
    assert row_for(judge(core, tmp_path / "with-gnu"), tmp_path / "with-gnu").theirs is not None


@pytest.mark.needs("go")
def test_redacted_go_id_and_the_gnu_id_made_from_it_prove_nothing(needs: Needs, tmp_path: Path) -> None:
    program, core = go_crash(needs, tmp_path, "-ldflags=-buildid=redacted")
    row = row_for(judge(core, program), program)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "weak-id-consistent")
    assert "redacted" in row.says
    assert "leave -buildid alone" in row.next_step
    (tmp_path / "main.go").write_text('package main\n\nimport "fmt"\n\nfunc main() { fmt.Println() }\n')
    go("build", "-buildvcs=false", "-ldflags=-buildid=redacted", "-o", "other", ".", cwd=tmp_path)
    assert readelf_build_id(tmp_path / "other") == readelf_build_id(program)
    assert verdict_of(judge(core, tmp_path / "other"), tmp_path / "other") == ("MISMATCH", "other-bytes")
    # A build whose ID is none of these is another one for certain.
    go("build", "-buildvcs=false", "-o", "real", ".", cwd=tmp_path)
    assert verdict_of(judge(core, tmp_path / "real"), tmp_path / "real") == ("MISMATCH", "other-id")


# ---- many segments, other modules, other mounts


@pytest.mark.parametrize("count_in", ["section-last", "section-first"])
def test_more_segments_than_the_header_can_count(written: Write, count_in: str) -> None:
    process = Process()
    process.core.count_in = count_in
    first = STACK + 0x10_0000
    process.more = [Load(first + number * 2 * PAGE, b"", PAGE, RW) for number in range(66_000)]
    core = written("core", process.render())
    library = written("libwork.so.1.2", process.images[LIB].render())
    report = judge(core, library)
    assert report.facts["segments"] == 14 + 66_000
    assert verdict_of(report, library) == ("MATCH", "same-id")


@pytest.mark.needs("gcc")
def test_package_note_tells_the_build_of_its_own_image_only(needs: Needs, tmp_path: Path) -> None:
    def build(folder: str, version: str, *more: str) -> Path:
        (tmp_path / folder).mkdir()
        note = f'{{"type":"deb","name":"checkout","version":"{version}","os":"debian"}}'
        return compiled(tmp_path / folder, CRASH, "-Wl,--build-id", "-Xlinker", f"--package-metadata={note}", *more)

    program, other = build("then", "1.0-1"), build("now", "1.1-1")
    report = judge(kernel_core(needs, program), other)
    row = row_for(report, other)
    assert row.image is not None
    assert row.candidate is not None
    assert json.loads(row.image.says["package"])["version"] == "1.0-1"
    assert json.loads(row.candidate.says["package"])["version"] == "1.1-1"
    assert [one.image.name for one in report.rows if one.image and "package" in one.image.says] == [str(program)]


@pytest.mark.needs("gcc", "unshare", "mount", "root")
def test_path_in_the_core_of_a_container_leads_to_another_build_outside(needs: Needs, tmp_path: Path) -> None:
    from pmforensics.verify.dumps import open_dump
    from pmforensics.verify.lookup import from_local_paths

    outside = compiled(tmp_path, CRASH, "-Wl,--build-id", name="service")
    inside = compiled(tmp_path, CRASH.replace("abort()", "abort(), (void)1"), "-g", "-Wl,--build-id", name="other")
    assert readelf_build_id(inside) != readelf_build_id(outside)
    enter = compiled(
        tmp_path,
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <sys/mount.h>\n#include <unistd.h>\n"
        "int main(void) { if (unshare(CLONE_NEWNS) || mount(0, \"/\", 0, MS_REC | MS_PRIVATE, 0)"
        " || mount(\"other\", \"service\", 0, MS_BIND, 0)) return 1; execl(\"./service\", \"service\", (char *)0); }\n",
        name="enter",
    )  # fmt: skip
    core = kernel_core(needs, enter)
    with open_dump(core) as dump:
        assert dump.images.images[0].name == str(outside)
        local, _ = from_local_paths(dump, [])
    assert outside in {one.path for one in local}
    assert verdict_of(judge(core, outside), outside) == ("MISMATCH", "other-id")
    assert verdict_of(judge(core, inside), inside) == ("MATCH", "same-id")


@pytest.mark.needs("gcc")
def test_core_that_was_cut_at_a_size_limit_looks_whole_and_is_not(needs: Needs, tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id")
    core = kernel_core(needs, program)
    whole = core.stat().st_size
    with core.open("r+b") as file:
        file.truncate(whole // 2)
    report = judge(core, program)
    assert (report.actual_bytes, report.declared_bytes) == (whole // 2, whole)
    assert any("is cut" in sentence for sentence in report.lost)


# ---- equal ID is not equal file, unequal ID is not always another program


@pytest.mark.needs("gcc", "mold")
def test_one_id_for_two_programs_is_found_by_their_bytes(needs: Needs, tmp_path: Path) -> None:
    """Seen from a linker that hashed too little, and from launchers that are all one file but for some bytes."""
    program = compiled(tmp_path, CRASH, "-fuse-ld=mold", fixed_id(7))
    other = compiled(tmp_path, "int main(int n) { return n + 4; }\n", "-fuse-ld=mold", fixed_id(7), name="other")
    core = kernel_core(needs, program)
    assert verdict_of(judge(core, program), program) == ("MATCH", "same-id")
    assert verdict_of(judge(core, other), other) == ("MISMATCH", "altered")
    row = row_for(judge(core, other), other)
    assert row.says.startswith("same ID, altered file: ")


@pytest.mark.needs("gcc", "strip", "patchelf", "objcopy")
def test_strip_keeps_the_id_and_what_runs_and_patchelf_only_the_id(needs: Needs, tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id")
    core = kernel_core(needs, program, dump_filter="0x37")
    stripped = copied(program, "stripped", lambda one, other: run("strip", "-o", other, one))
    signed = copied(
        program, "signed", lambda one, other: run("objcopy", "--add-section", f".signature={one}", one, other)
    )
    patched = copied(
        program, "patched", lambda one, other: run("patchelf", "--set-rpath", "/x" * 40, "--output", other, one)
    )
    changed = edited(program, "changed", symbol(program, "T main"), b"\xcc")
    assert {readelf_build_id(one) for one in (program, stripped, signed, patched, changed)} == {
        readelf_build_id(program)
    }
    verdicts = {one.name: verdict_of(judge(core, one), one)[1] for one in (stripped, signed, patched, changed)}
    assert verdicts == {"stripped": "same-id", "signed": "same-id", "patched": "altered", "changed": "altered"}


@pytest.mark.needs("gcc", "objcopy")
def test_missing_id_on_either_side_is_never_taken_for_agreement(needs: Needs, tmp_path: Path) -> None:
    with_id = compiled(tmp_path, CRASH, "-Wl,--build-id")
    core = kernel_core(needs, with_id)
    bare = copied(with_id, "bare", lambda one, other: run("objcopy", "-R", ".note.gnu.build-id", one, other))
    assert judge(core, bare).verdict in (Verdict.UNVERIFIABLE, Verdict.MISMATCH)
    blind = kernel_core(needs, bare)
    assert judge(blind, with_id).verdict in (Verdict.UNVERIFIABLE, Verdict.MISMATCH)


def minidump(*modules: Module, platform: int = LINUX) -> bytes:
    return MinidumpWriter().system(platform).modules(*modules).render()


FULL_ID = bytes(range(0x30, 0x44))  # 20 bytes


def test_first_16_of_20_bytes_are_named_as_a_prefix_and_an_empty_id_is_none(written: Write) -> None:
    library = written("libwork.so", elf_file(FULL_ID))
    dump = written("old.dmp", minidump(Module(0x1000, "/lib/libwork.so", rsds(FULL_ID[:16], 0))))
    row = row_for(judge(dump, library), library)
    assert (row.verdict, row.code) == (Verdict.MATCH_PREFIX, "same-start-of-id")
    assert "16 bytes" in row.says
    other = written("other/libwork.so", elf_file(FULL_ID[:15] + b"\0" + FULL_ID[16:]))
    assert verdict_of(judge(dump, other), other) == ("MISMATCH", "other-id")
    for empty in (b"", bpel(b""), rsds(bytes(16), 0)):
        dump = written("empty.dmp", minidump(Module(0x1000, "/lib/libwork.so", empty)))
        for candidate in (
            library,
            written("bare/libwork.so", elf_file(None)),
            written("zero/libwork.so", elf_file(bytes(20))),
        ):
            assert judge(dump, candidate).verdict is Verdict.UNVERIFIABLE, (empty, candidate)


def sym(system: str, identity: str, name: str, code_id: str = "", arch: str = "x86_64") -> bytes:
    return f"MODULE {system} {arch} {identity} {name}\n{f'INFO CODE_ID {code_id}{chr(10)}' if code_id else ''}".encode()


def as_guid(build_id: bytes) -> str:
    """How breakpad writes the first 16 bytes of a build ID."""
    first = build_id[:16]
    return (first[3::-1] + first[5:3:-1] + first[7:5:-1] + first[8:]).hex().upper() + "0"


def test_hash_of_the_first_page_of_text_in_place_of_an_id_is_no_match(written: Write) -> None:
    """16 bytes on both sides, and nothing that says whether they are an ID or breakpad's XOR of a page."""
    symbols = written("libwork.so.sym", sym("Linux", as_guid(FULL_ID), "libwork.so"))
    dump = written("hash.dmp", minidump(Module(0x1000, "/lib/libwork.so", bpel(FULL_ID[:16]))))
    row = row_for(judge(dump, symbols), symbols)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "weak-id")
    assert "hash" in row.says
    # Writers hash differently: other bytes do not prove another file either.
    other = written("other.sym", sym("Linux", as_guid(FULL_ID[::-1]), "libwork.so"))
    assert verdict_of(judge(dump, other), other) == ("UNVERIFIABLE", "weak-id")
    # A whole build ID in the dump tells whether the 16 bytes are its start.
    whole = written("whole.dmp", minidump(Module(0x1000, "/lib/libwork.so", bpel(FULL_ID))))
    assert verdict_of(judge(whole, symbols), symbols) == ("MATCH-PREFIX", "same-start-of-id")
    assert verdict_of(judge(whole, other), other) == ("MISMATCH", "other-id")
    both = written("both.sym", sym("Linux", as_guid(FULL_ID), "libwork.so", FULL_ID.hex().upper()))
    assert verdict_of(judge(whole, both), both) == ("MATCH", "same-id")


def test_zeros_and_the_word_id_mean_no_identity(written: Write) -> None:
    process = Process()
    process.images[LIB] = process.image(bytes(20))
    core = written("core", process.render())
    zeros = written("libwork.so.1.2", process.images[LIB].render())
    assert verdict_of(judge(core, zeros), zeros) == ("UNVERIFIABLE", "weak-id-consistent")
    for identity in ("id", "0" * 33):
        symbols = written("libwork.so.1.2.sym", sym("Linux", identity, "libwork.so.1.2"))
        assert judge(core, symbols).verdict is Verdict.UNVERIFIABLE
    dump = written("zero.dmp", minidump(Module(0x400000, "C:\\x\\service.exe", rsds(bytes(16), 1)), platform=2))
    pdb = written("service.pdb", pdb_writer.pdb(bytes(16), 1, 1))
    assert verdict_of(judge(dump, pdb), pdb) == ("UNVERIFIABLE", "weak-id")


def test_store_with_the_wrong_file_under_the_right_key_is_caught(written: Write, tmp_path: Path) -> None:
    """The key is a path; only what the file itself says counts: its notes, or its MODULE line."""
    from pmforensics.verify.dumps import open_dump
    from pmforensics.verify.identity import verify_identity
    from pmforensics.verify.lookup import from_stores

    core = written("core", Process().render())
    wanted = IDS[LIB].hex()
    stored = written(f"store/.build-id/{wanted[:2]}/{wanted[2:]}", elf_file(b"\x66" * 20))
    with open_dump(core) as dump:
        found, _ = from_stores(dump, [tmp_path / "store"])
        report = verify_identity(dump, found)
    row = row_for(report, stored)
    assert (row.verdict, row.code) == (Verdict.MISMATCH, "other-id")
    assert f"in the store under {wanted}" in row.says
    assert row.image is not None
    assert row.image.name == NAMES[LIB]
    right_key = f"symbols/libwork.so.1.2/{as_guid(IDS[LIB])}/libwork.so.1.2.sym"
    symbols = written(right_key, sym("Linux", as_guid(b"\x66" * 20), "libwork.so.1.2", "66" * 20))
    assert verdict_of(judge(core, symbols), symbols) == ("MISMATCH", "other-id")


# ---- debug links


@pytest.mark.needs("gcc", "objcopy", "strip")
def test_debug_link_counts_by_its_crc_and_not_by_its_name(needs: Needs, tmp_path: Path) -> None:
    """Without build IDs a name leads to the stripped file itself, or to a stale debug file."""
    no_id = ("-g", "-Wl,--build-id=none")
    program = compiled(tmp_path, CRASH, *no_id)
    debug = tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    stripped = tmp_path / "bin" / "program"
    stripped.parent.mkdir()
    run("strip", "-o", stripped, program)
    run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
    assert verdict_of(judge(stripped, debug), debug) == ("MATCH", "same-crc")
    (tmp_path / "stale").mkdir()
    stale_program = compiled(tmp_path / "stale", "int main(void) { return 0; }\n", *no_id)
    stale = tmp_path / "stale" / "program.debug"
    run("objcopy", "--only-keep-debug", stale_program, stale)
    row = row_for(judge(stripped, stale), stale)
    assert (row.verdict, row.code) == (Verdict.MISMATCH, "other-crc")
    assert f"{zlib.crc32(stale.read_bytes()):08x}" in row.says
    itself = tmp_path / "itself" / "program.debug"
    itself.parent.mkdir()
    shutil.copy(stripped, itself)
    assert judge(stripped, itself).verdict is not Verdict.MATCH
    # In a core the debug file is as proven as the program that names it, and no further.
    core = kernel_core(needs, stripped)
    report = judge(core, stripped, debug)
    assert verdict_of(report, debug) == ("UNVERIFIABLE", "same-crc-unproven")
    assert verdict_of(report, stripped) == ("UNVERIFIABLE", "no-id-consistent")


@pytest.mark.needs("gcc", "objcopy", "strip")
def test_rewritten_debug_file_breaks_the_crc_and_not_the_id(tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id")
    debug = tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", program)
    run("objcopy", f"--add-gnu-debuglink={debug}", program)
    before = zlib.crc32(debug.read_bytes())
    run("objcopy", "--compress-debug-sections", debug)
    assert zlib.crc32(debug.read_bytes()) != before
    assert verdict_of(judge(program, debug), debug) == ("MATCH", "same-id")


def test_debug_link_that_is_cut_short_names_nothing(written: Write) -> None:
    writer = ElfWriter(elf_type=3)
    writer.segments = [Segment(1, b"code" * 8, flags=5)]
    writer.sections = [Section(".text", 1, b"code" * 8), Section(".gnu_debuglink", 1, b"work.debug\0\0\xaa\xbb")]
    program = written("work", writer.render())
    debug = written("work.debug", elf_file(None).replace(b"code", b"\0\0\0\0"))
    assert judge(program, debug).verdict is Verdict.UNVERIFIABLE


@pytest.mark.needs("gcc", "dwz", "objcopy")
def test_shared_debug_file_of_dwz_belongs_by_its_own_id(needs: Needs, tmp_path: Path) -> None:
    programs = []
    for name in ("one", "two"):
        source = '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { printf("x"); abort(); }\n'
        programs.append(compiled(tmp_path, source, "-g", "-Wl,--build-id", name=name))
    core = kernel_core(needs, programs[0])
    shared = tmp_path / "shared.dwz"
    run("dwz", "-m", shared, "-M", "/usr/lib/debug/shared.dwz", *programs)
    assert readelf_build_id(shared)
    report = judge(core, programs[0], shared)
    assert verdict_of(report, shared) == ("MATCH", "same-altlink")
    assert report.verdict is Verdict.MATCH
    assert verdict_of(judge(programs[0], programs[0], shared), shared) == ("MATCH", "same-altlink")
    place = shared.read_bytes().index(bytes.fromhex(readelf_build_id(shared) or ""))
    (tmp_path / "other").mkdir()
    wrong = tmp_path / "other" / "shared.dwz"
    edited(shared, "edited", place, b"\x99" * 4).rename(wrong)
    assert verdict_of(judge(core, programs[0], wrong), wrong) == ("MISMATCH", "other-altlink")


@pytest.mark.needs("gcc", "dwp")
def test_split_debug_files_belong_by_the_ids_of_their_units(needs: Needs, tmp_path: Path) -> None:
    # DWARF 4: the dwp of binutils 2.40 dies of DWARF 5.
    program = compiled(tmp_path, CRASH, "-gdwarf-4", "-gsplit-dwarf", "-Wl,--build-id")
    (dwo,) = tmp_path.glob("*.dwo")
    core = kernel_core(needs, program)
    report = judge(core, program, dwo)
    assert verdict_of(report, dwo) == ("MATCH", "same-dwo-id")
    assert "its lines are in 1 .dwo files" in row_for(report, program).says
    run("dwp", "-e", program, "-o", tmp_path / "program.dwp", cwd=tmp_path)
    assert verdict_of(judge(core, program, tmp_path / "program.dwp"), tmp_path / "program.dwp") == (
        "MATCH",
        "same-dwo-id",
    )
    assert verdict_of(judge(core, dwo), dwo)[0] == "UNVERIFIABLE"
    (tmp_path / "other").mkdir()
    compiled(tmp_path / "other", CRASH.replace("abort", "exit(0);abort"), "-gdwarf-4", "-gsplit-dwarf")
    (other,) = (tmp_path / "other").glob("*.dwo")
    assert verdict_of(judge(core, program, other), other) == ("UNVERIFIABLE", "no-skeleton")


# ---- Windows

GUID = bytes.fromhex("1122334455667788991011121314151f")
SERVICE = "C:\\srv\\service.exe"


def windows(record: bytes, name: str = SERVICE) -> bytes:
    return minidump(Module(0x1_4000_0000, name, record), platform=2)


def test_age_of_the_dbi_stream_counts_and_not_that_of_the_info_stream(written: Write) -> None:
    """Source indexing raises the age in the info stream; the image knows the other one."""
    pdb = written("service.pdb", pdb_writer.pdb(GUID, 4, 1))
    right = written("right.dmp", windows(rsds(GUID, 1, "service.pdb")))
    assert verdict_of(judge(right, pdb), pdb) == ("MATCH", "same-id")
    info = written("info.dmp", windows(rsds(GUID, 4, "service.pdb")))
    row = row_for(judge(info, pdb), pdb)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "info-age-only")
    assert "info age" in row.says
    without_dbi = written("service.pdb", pdb_writer.pdb(GUID, 4, None))
    assert verdict_of(judge(info, without_dbi), without_dbi) == ("MATCH", "same-id")


def test_same_guid_with_another_age_is_another_link_whether_higher_or_lower(written: Write) -> None:
    dump = written("service.dmp", windows(rsds(GUID, 0x15, "service.pdb")))
    for age in (0x12, 0x1D):
        pdb = written("service.pdb", pdb_writer.pdb(GUID, age, age))
        row = row_for(judge(dump, pdb), pdb)
        assert (row.verdict, row.code) == (Verdict.MISMATCH, "other-age")
        assert "another link of the same project" in row.says
        # Found under another name, it is still held against the image that has the GUID.
        renamed = written("kept-since.pdb", pdb.read_bytes())
        assert verdict_of(judge(dump, renamed), renamed) == ("MISMATCH", "other-age")


def test_age_in_symbol_files_is_hexadecimal(written: Write) -> None:
    dump = written("service.dmp", windows(rsds(GUID, 18, "service.pdb")))
    guid = (GUID[3::-1] + GUID[5:3:-1] + GUID[7:5:-1] + GUID[8:]).hex().upper()
    right = written("right.sym", sym("windows", f"{guid}12", "service.pdb"))
    assert verdict_of(judge(dump, right), right) == ("MATCH", "same-id")
    decimal = written("decimal.sym", sym("windows", f"{guid}18", "service.pdb"))
    assert verdict_of(judge(dump, decimal), decimal) == ("MISMATCH", "other-age")
    pdb = written("other.pdb", pdb_writer.pdb(b"\x55" * 16, 18, 18))
    row = row_for(judge(written("service.dmp", windows(rsds(GUID, 18), "C:\\srv\\other.exe")), pdb), pdb)
    assert f"{guid}12" in row.next_step


def portable_pe(*entries: DebugEntry) -> bytes:
    return PeWriter(entries=list(entries)).render()


STAMP = 0xBEEF1234


def portable_entry(guid: bytes = GUID, stamp: int = STAMP, name: str = "service.pdb") -> DebugEntry:
    return DebugEntry(rsds(guid, 1, name), stamp=stamp, minor_version=0x504D)


def test_portable_pdb_is_its_guid_and_stamp_and_the_age_is_a_dummy(written: Write) -> None:
    pdb = written("service.pdb", pdb_writer.portable_pdb(GUID, STAMP))
    image = written("service.dll", portable_pe(portable_entry()))
    assert verdict_of(judge(image, pdb), pdb) == ("MATCH", "same-id")
    other = written("other.pdb", pdb_writer.portable_pdb(GUID, STAMP + 1))
    assert judge(image, other).verdict is Verdict.MISMATCH
    # A minidump keeps the GUID and the dummy age: as far as that goes, and said so.
    dump = written("service.dmp", windows(rsds(GUID, 1, "service.pdb"), "C:\\srv\\service.dll"))
    row = row_for(judge(dump, pdb), pdb)
    assert (row.verdict, row.code) == (Verdict.MATCH_PREFIX, "same-guid")
    stranger = written("stranger/service.pdb", pdb_writer.portable_pdb(b"\x66" * 16, STAMP))
    assert verdict_of(judge(dump, stranger), stranger) == ("MISMATCH", "other-id")


def test_image_with_two_debug_records_matches_either_of_its_files(written: Write) -> None:
    """A precompiled assembly names the PDB of its native code first and its Portable PDB second."""
    native = DebugEntry(rsds(b"\x31" * 16, 1, "service.ni.pdb"))
    image = written("service.dll", portable_pe(native, portable_entry()))
    portable = written("service.pdb", pdb_writer.portable_pdb(GUID, STAMP))
    native_pdb = written("service.ni.pdb", pdb_writer.pdb(b"\x31" * 16, 1, 1))
    assert verdict_of(judge(image, portable), portable) == ("MATCH", "same-id")
    assert verdict_of(judge(image, native_pdb), native_pdb) == ("MATCH", "same-id")
    # A minidump lists the first record only: the right Portable PDB is not proven wrong by it.
    dump = written("service.dmp", windows(rsds(b"\x31" * 16, 1, "service.ni.pdb"), "C:\\srv\\service.dll"))
    assert judge(dump, image).verdict is Verdict.MATCH
    assert judge(dump, portable).verdict is Verdict.UNVERIFIABLE


def test_names_of_image_and_pdb_prove_nothing_either_way(written: Write) -> None:
    image = written("integration.dll", PeWriter(entries=[DebugEntry(rsds(GUID, 1, "portable.pdb"))]).render())
    right = written("portable.pdb", pdb_writer.pdb(GUID, 1, 1))
    namesake = written("integration.pdb", pdb_writer.pdb(b"\x47" * 16, 1, 1))
    assert judge(image, right).verdict is Verdict.MATCH
    assert judge(image, namesake).verdict is Verdict.MISMATCH


def test_packed_pdb_of_a_symbol_store_says_to_unpack_it(written: Write) -> None:
    from pmforensics.errors import FormatError

    packed = written("service.pd_", b"MSCF" + bytes(60))
    with pytest.raises(FormatError, match=r"service\.pd_: .*cabinet"):
        judge(written("service.dmp", windows(rsds(GUID, 1))), packed)


def test_signature_of_the_oldest_pdbs_is_compared_within_its_own_kind(written: Write) -> None:
    dump = written("service.dmp", windows(nb10(0x3C5A1234, 3, "service.pdb")))
    pdb = written("service.pdb", pdb_writer.pdb(GUID, 3, 3))
    assert judge(dump, pdb).verdict is Verdict.UNVERIFIABLE
    image = written("service.exe", PeWriter(entries=[DebugEntry(nb10(0x3C5A1234, 3, "service.pdb"))]).render())
    assert verdict_of(judge(dump, image), image) == ("MATCH", "same-id")


# ---- Mac

UUIDS = {ARM64: bytes(range(0xA0, 0xB0)), X86_64: bytes(range(0xC0, 0xD0))}


def mach(cpu: tuple[int, int], *, file_type: int = 2, uuid: bytes | None = None) -> bytes:
    return MachWriter(cpu=cpu, file_type=file_type).uuid(uuid or UUIDS[cpu]).render()


def crash_report(name: str, arch: str, uuid: bytes) -> bytes:
    text = uuid.hex()
    dashed = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    image = {
        "source": "P", "arch": arch, "base": 0x100F3C000, "size": 16384, "uuid": dashed,
        "path": f"/Applications/{name}.app/Contents/MacOS/{name}", "name": name,
    }  # fmt: skip
    head = json.dumps({"app_name": name, "bug_type": "309", "slice_uuid": dashed})
    body = {"procName": name, "procPath": image["path"], "usedImages": [image], "threads": []}
    return f"{head}\n{json.dumps(body)}\n".encode()


def test_fat_files_are_compared_by_the_slice_that_ran(written: Write) -> None:
    """Taking the first slice gives wrong lines."""
    both = macho_writer.fat((X86_64, mach(X86_64)), (ARM64, mach(ARM64)))
    report_file = written("Agent.ips", crash_report("Agent", "arm64", UUIDS[ARM64]))
    fat = written("Agent", both)
    report = judge(report_file, fat)
    assert [(row.verdict, row.candidate and row.candidate.slice) for row in rows_for(report, fat)] == [
        (Verdict.MATCH, "arm64")
    ]
    thin = written("thin/Agent", mach(X86_64))
    assert verdict_of(judge(report_file, thin), thin) == ("MISMATCH", "other-slice")
    other = written("other/Agent", macho_writer.fat((X86_64, mach(X86_64)), (ARM64, mach(ARM64, uuid=b"\x01" * 16))))
    row = row_for(judge(report_file, other), other)
    assert (row.verdict, row.code, row.candidate and row.candidate.slice) == (Verdict.MISMATCH, "other-id", "arm64")
    assert row.command.startswith("mdfind 'com_apple_xcode_dsym_uuids == A0A1A2A3-")


def dsym(write: Write, folder: str, data: bytes) -> Path:
    inside = write(f"{folder}/Contents/Resources/DWARF/Agent", data)
    (inside.parents[2] / "Info.plist").write_text("<plist/>")
    return inside.parents[3]


def test_dsym_folder_matches_only_with_the_slice_that_ran(written: Write) -> None:
    report_file = written("Agent.ips", crash_report("Agent", "arm64", UUIDS[ARM64]))
    right = dsym(written, "right/Agent.app.dSYM", mach(ARM64, file_type=10))
    assert judge(report_file, right).verdict is Verdict.MATCH
    intel_only = dsym(written, "intel/Agent.app.dSYM", mach(X86_64, file_type=10))
    assert judge(report_file, intel_only).verdict is Verdict.MISMATCH
    # As vendors do ship them: of another link of the same sources.
    other_link = dsym(written, "link/Agent.app.dSYM", mach(ARM64, file_type=10, uuid=b"\x02" * 16))
    assert judge(report_file, other_link).verdict is Verdict.MISMATCH
    fat = written("Agent", macho_writer.fat((X86_64, mach(X86_64)), (ARM64, mach(ARM64))))
    half = judge(fat, right)
    assert {(row.verdict, row.image and row.image.machine) for row in half.asked} == {
        (Verdict.MATCH, "arm64"), (Verdict.UNVERIFIABLE, "x86_64"),
    }  # fmt: skip
    assert half.verdict is Verdict.UNVERIFIABLE
    whole = macho_writer.fat((X86_64, mach(X86_64, file_type=10)), (ARM64, mach(ARM64, file_type=10)))
    assert judge(fat, dsym(written, "whole/Agent.app.dSYM", whole)).verdict is Verdict.MATCH


@pytest.mark.needs("clang", "lld", "dsymutil")
def test_real_dsym_matches_its_own_link_and_not_the_next(tmp_path: Path) -> None:
    def build(folder: str, value: int) -> tuple[Path, Path]:
        place = tmp_path / folder
        place.mkdir()
        (place / "agent.c").write_text(f"int entry(int number) {{ return number * {value}; }}\n")
        run("clang", "--target=arm64-apple-macos12", "-g", "-c", "agent.c", "-o", "agent.o", cwd=place)
        flags = ("-arch", "arm64", "-platform_version", "macos", "12.0", "12.0", "-dylib")
        run("lld", "-flavor", "darwin", *flags, "-o", "libagent.dylib", "agent.o", cwd=place)
        run("dsymutil", "libagent.dylib", "-o", "libagent.dSYM", cwd=place)
        return place / "libagent.dylib", place / "libagent.dSYM"

    library, symbols = build("first", 3)
    _, next_symbols = build("second", 4)
    assert judge(library, symbols).verdict is Verdict.MATCH
    assert judge(library, next_symbols).verdict is Verdict.MISMATCH


def test_java_class_is_not_a_fat_file(written: Write) -> None:
    """The two share their magic."""
    from pmforensics.errors import CandidateUnreadable

    java = written("Zoo.class", b"\xca\xfe\xba\xbe\0\0\0\x3d" + bytes(100))
    with pytest.raises(CandidateUnreadable, match=r"Zoo\.class is no executable"):
        judge(written("core", Process().render()), java)


def test_uuid_in_a_minidump_of_a_mac_is_byte_swapped(written: Write) -> None:
    uuid = UUIDS[ARM64]
    swapped = uuid[3::-1] + uuid[5:3:-1] + uuid[7:5:-1] + uuid[8:]
    dump = written(
        "agent.dmp", minidump(Module(0x1_0000_0000, "/Applications/Agent", rsds(swapped, 0)), platform=MACOS)
    )
    right = written("Agent", mach(ARM64))
    assert verdict_of(judge(dump, right), right) == ("MATCH", "same-id")
    wrong = written("wrong/Agent", mach(ARM64, uuid=swapped))
    assert judge(dump, wrong).verdict is Verdict.MISMATCH
    symbols = written("Agent.sym", sym("mac", uuid.hex().upper() + "0", "Agent", arch="arm64"))
    assert verdict_of(judge(dump, symbols), symbols) == ("MATCH", "same-id")


@pytest.mark.needs("go")
def test_go_for_mac_without_uuid_has_its_go_id(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { println(1) }\n")
    (tmp_path / "go.mod").write_text("module example.org/agent\n\ngo 1.21\n")
    from tests.formats.test_core import GO_ENV

    def build(name: str, *flags: str) -> Path:
        env = {**GO_ENV, "GOOS": "darwin", "GOARCH": "arm64"}
        run(*map(str, ("go", "build", "-buildvcs=false", *flags, "-o", name, ".")), cwd=tmp_path, **env)
        return tmp_path / name

    program = build("agent", "-ldflags=-B=none")
    row = row_for(judge(program, program), program)
    assert row.verdict is Verdict.MATCH
    assert row.reading is not None
    assert row.reading.id.value == go("tool", "buildid", program).strip()
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { println(2) }\n")
    again = build("again", "-ldflags=-B=none")
    assert verdict_of(judge(program, again), again) == ("MISMATCH", "other-id")


# ---- minidump writers


def test_executable_without_id_may_be_missing_from_the_list_and_is_not_the_first_module(written: Write) -> None:
    """Some writers drop modules without an identity: then the first module is a library."""
    writer = MinidumpWriter().system(LINUX).auxv((9, 0x401000))
    writer.modules(Module(0x7F00_0000_0000, "/lib/libwork.so", bpel(FULL_ID)))
    writer.maps(
        "00400000-00402000 r-xp 00000000 08:01 1 /srv/app\n"
        "7f0000000000-7f0000004000 r-xp 00000000 08:01 2 /lib/libwork.so\n"
    )
    dump = written("dropped.dmp", writer.render())
    program = written("some-program", elf_file(b"\x12" * 20, kind=2))
    report = judge(dump, program)
    row = row_for(report, program)
    assert row.image is None
    assert row.verdict is Verdict.UNVERIFIABLE
    assert any("does not hold the executable" in sentence for sentence in report.lost)


def test_file_with_a_hole_is_one_image_with_the_id_of_its_part(written: Write) -> None:
    parts = (
        Module(0x7F00_0000_0000, "/lib/libwork.so", b"", size=0x1000),
        Module(0x7F00_0000_3000, "/lib/libwork.so", bpel(FULL_ID), size=0x1000),
    )
    dump = written("hole.dmp", minidump(*parts))
    library = written("libwork.so", elf_file(FULL_ID))
    report = judge(dump, library, strict=True)
    assert len(report.rows) == 1
    assert report.verdict is Verdict.MATCH


def test_libraries_inside_one_archive_are_told_apart_by_id(written: Write) -> None:
    archive = "/data/app/base.apk"
    first, second = b"\x21" * 20, b"\x22" * 20
    dump = written(
        "apk.dmp", minidump(Module(0x10_0000, archive, bpel(first)), Module(0x20_0000, archive, bpel(second)))
    )
    libraries = [written(name, elf_file(one)) for name, one in (("libone.so", first), ("libtwo.so", second))]
    report = judge(dump, *libraries)
    assert [verdict_of(report, one) for one in libraries] == [("MATCH", "same-id")] * 2
    assert {row.image.base for row in report.asked if row.image} == {0x10_0000, 0x20_0000}


def test_module_that_is_listed_twice_with_two_ids_is_a_conflict_and_no_match(written: Write) -> None:
    dump = written(
        "twice.dmp",
        minidump(
            Module(0x10_0000, "/lib/libwork.so", bpel(FULL_ID)),
            Module(0x10_0000, "/lib/libwork.so", bpel(b"\x22" * 20)),
        ),
    )
    library = written("libwork.so", elf_file(FULL_ID))
    report = judge(dump, library)
    assert verdict_of(report, library) == ("UNVERIFIABLE", "ids-conflict")
    assert report.conflicts


def test_time_stamp_and_size_alone_are_no_proof_and_their_difference_is(written: Write) -> None:
    """Debug IDs of one file differ between writers, some write none; the code ID is then all there is."""
    image = PeWriter(entries=[DebugEntry(rsds(GUID, 1, "service.pdb"))])
    dump = written(
        "bare.dmp",
        minidump(Module(0x1_4000_0000, SERVICE, b"", size=image.size_of_image, stamp=image.stamp), platform=2),
    )
    program = written("service.exe", image.render())
    assert verdict_of(judge(dump, program), program) == ("UNVERIFIABLE", "only-code-id")
    other = written("other/service.exe", replace(image, stamp=image.stamp + 1).render())
    assert verdict_of(judge(dump, other), other) == ("MISMATCH", "other-id")


# ---- JVM


@pytest.mark.needs("jdk")
def test_heap_dump_states_its_jvm_and_proves_no_build_whatever_its_name_says(tmp_path: Path) -> None:
    from pmforensics.verify.heap import verify_heap_dump

    home = zoo.jdk()
    assert home is not None
    with zoo.start("java", next(iter(zoo.ways("java")))) as sick:
        dump = tmp_path / "sun_jdk6_18_x32.hprof"
        run(home / "bin" / "jcmd", str(sick.pid), "GC.heap_dump", dump)
    report = verify_heap_dump(dump, [zoo.build("java")])
    stated = {one.name: one.value for one in report.summary.jvm}
    release = (home / "release").read_text()
    assert f'JAVA_VERSION="{stated["java.version"]}"' in release
    assert report.verdict is Verdict.UNVERIFIABLE
    assert [row.code for row in report.rows] == ["consistent"]


# ---- flags and sizes of mappings


def test_kernels_flags_in_place_of_segment_flags_do_not_hide_bytes(written: Write) -> None:
    """A dumper wrote VM_READ, VM_WRITE and VM_EXEC: read-only text looked writable, and was not compared."""
    process = Process()
    text = b"\x90" * PAGE
    process.images[LIB].contents[PAGE] = text
    process.more = [Load(LIB + PAGE, text, flags=0x8000075)]
    core_bytes = process.render()
    for load in process.core.loads:
        load.flags = {4: 0x8000071, 5: 0x8000075, 6: 0x8100073}.get(load.flags, load.flags)
    core_bytes = process.core.render()
    core = written("core", core_bytes)
    library = written("libwork.so.1.2", process.images[LIB].render())
    report = judge(core, library)
    assert report.facts["segment_flags"]
    row = row_for(report, library)
    assert row.verdict is Verdict.MATCH
    assert f"{2 * PAGE:,} bytes" in row.says
    altered = edited(library, "altered", PAGE + 8, b"\xcc\xcc")
    assert verdict_of(judge(core, altered), altered)[1] == "altered"


@pytest.mark.needs("gcc")
def test_text_that_is_mapped_and_not_dumped_is_there_all_the_same(needs: Needs, tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id=none")
    core = kernel_core(needs, program)
    main = main_of(judge(core, program))
    text = next(part for part in main.mapped if part.flags == "r-x")
    assert text.dumped_bytes == 0
    row = row_for(judge(core, program), program)
    assert row.verdict is Verdict.UNVERIFIABLE
    assert "mappings" in row.says


@pytest.mark.needs("gcc")
def test_healthy_stacks_elsewhere_than_the_main_stack_leave_the_verdict_alone(needs: Needs, tmp_path: Path) -> None:
    source = """
    #include <signal.h>
    #include <stdlib.h>
    static char alternate[1 << 16];
    static void die(int number) { (void)number; abort(); }
    int main(void)
    {
        stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
        struct sigaction action = {.sa_handler = die, .sa_flags = SA_ONSTACK};
        sigaltstack(&stack, 0);
        sigaction(SIGUSR1, &action, 0);
        raise(SIGUSR1);
    }
    """
    program = compiled(tmp_path, source, "-Wl,--build-id")
    report = judge(kernel_core(needs, program), program)
    assert report.verdict is Verdict.MATCH
    assert not report.conflicts
    assert not report.lost
