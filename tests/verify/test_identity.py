"""Verdicts on real cores: what matches, what does not, and what nobody can say."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pmforensics.verify.verdict import Verdict
from tests.conftest import _need
from tests.formats.test_core import compiled, go_crash, kernel_core, readelf_build_id, run
from tests.verify.specimens import (
    CRASH,
    Crashed,
    Rebuilt,
    copied,
    edited,
    fixed_id,
    gdb_core,
    judge,
    main_of,
    row_for,
    rows_for,
    symbol,
    verdict_of,
)

pytestmark = pytest.mark.needs("gcc")


# ---- the right file


def test_program_that_ran_matches_and_says_by_what(crashed: Crashed) -> None:
    report = judge(crashed.core, crashed.program)
    row = row_for(report, crashed.program)
    assert (row.verdict, row.code) == (Verdict.MATCH, "same-id")
    assert report.verdict is Verdict.MATCH
    assert row.reading is not None
    assert row.reading.id.value == readelf_build_id(crashed.program)
    with crashed.core.open("rb") as core:
        core.seek(row.reading.offset)
        assert core.read(20).hex() == readelf_build_id(crashed.program)


BUILDS = {
    "pie": [],
    "no-pie": ["-no-pie"],
    "static": ["-static"],
    "static-pie": ["-static-pie"],
    "id-of-8-bytes": ["-Wl,--build-id=0x0123456789abcdef"],
    "md5-id": ["-Wl,--build-id=md5"],
    "id-of-64-bytes": ["-Wl,--build-id=0x" + "c7" * 64],
    "no-separate-code": ["-Wl,-z,noseparate-code"],
    "no-relro": ["-Wl,-z,norelro"],
}


@pytest.mark.parametrize("build", BUILDS)
def test_each_way_to_build_matches_itself_and_not_its_next_release(
    needs: Callable[..., None], tmp_path: Path, build: str
) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id", *BUILDS[build])
    core = kernel_core(needs, program)
    (tmp_path / "next").mkdir()
    flags = [flag[:-2] + "ee" if "0x" in flag else flag for flag in BUILDS[build]]
    following = compiled(tmp_path / "next", CRASH.replace("abort()", "exit(1)"), "-Wl,--build-id", *flags)
    assert verdict_of(judge(core, program), program) == ("MATCH", "same-id")
    report = judge(core, following)
    assert verdict_of(report, following) == ("MISMATCH", "other-id")
    assert readelf_build_id(program) in row_for(report, following).says
    assert readelf_build_id(following) in row_for(report, following).says


@pytest.mark.needs("g++")
def test_cxx_program_and_its_libraries_match(needs: Callable[..., None], tmp_path: Path) -> None:
    source = '#include <stdexcept>\nint main() { throw std::runtime_error("the end"); }\n'
    (tmp_path / "program.cc").write_text(source)
    run("g++", "-g", "-o", "program", "program.cc", "-Wl,--build-id", cwd=tmp_path)
    report = judge(kernel_core(needs, tmp_path / "program"), tmp_path / "program")
    assert report.verdict is Verdict.MATCH
    names = {Path(row.image.name).name for row in report.rows if row.image}
    assert any(name.startswith("libstdc++.so.6") for name in names)


@pytest.mark.needs("rustc")
def test_rust_program_matches_itself_and_not_another_build(needs: Callable[..., None], tmp_path: Path) -> None:
    for name, word in (("program", "first"), ("other", "second")):
        (tmp_path / f"{name}.rs").write_text(f'fn main() {{ println!("{word}"); std::process::abort() }}\n')
        run("rustc", "-g", "-C", "link-arg=-Wl,--build-id", f"{name}.rs", cwd=tmp_path)
    core = kernel_core(needs, tmp_path / "program")
    assert verdict_of(judge(core, tmp_path / "program"), tmp_path / "program") == ("MATCH", "same-id")
    assert verdict_of(judge(core, tmp_path / "other"), tmp_path / "other") == ("MISMATCH", "other-id")


def test_every_library_of_the_process_matches_when_all_are_asked_about(rebuilt: Rebuilt) -> None:
    listed = judge(rebuilt.core)
    libraries = [
        Path(row.image.name) for row in listed.rows if row.image and row.image.name.startswith(("/lib", "/usr"))
    ]
    assert libraries
    report = judge(rebuilt.core, rebuilt.program, rebuilt.then, *libraries, strict=True)
    assert report.verdict is Verdict.MATCH
    assert len(report.asked) == 2 + len(libraries)


# ---- stripped and split


@pytest.mark.needs("objcopy", "strip")
def test_stripped_program_and_debug_file_match_and_say_what_they_are(crashed: Crashed, tmp_path: Path) -> None:
    debug, stripped = tmp_path / "program.debug", tmp_path / "program"
    run("objcopy", "--only-keep-debug", crashed.program, debug)
    run("strip", "-o", stripped, crashed.program)
    run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
    report = judge(crashed.core, stripped, debug)
    assert report.verdict is Verdict.MATCH
    assert row_for(report, debug).says == "the debug file of the same build"
    assert "stripped: its debug file, program.debug, has the lines and names" in row_for(report, stripped).says
    # All text is in this core: strip changes no byte of what was loaded.
    assert row_for(report, stripped).says.startswith("the same build (ID, and ")


@pytest.mark.needs("eu-strip")
def test_elfutils_strip_matches_too(crashed: Crashed, tmp_path: Path) -> None:
    debug, stripped = tmp_path / "program.debug", tmp_path / "program"
    run("eu-strip", "-f", debug, "-o", stripped, crashed.program)
    assert judge(crashed.core, stripped, debug).verdict is Verdict.MATCH


@pytest.mark.needs("go", "strip", "objcopy")
def test_stripped_go_program_matches_though_its_first_page_differs(needs: Callable[..., None], tmp_path: Path) -> None:
    program, core = go_crash(needs, tmp_path)
    stripped, debug = tmp_path / "stripped", tmp_path / "program.debug"
    run("strip", "-o", stripped, program)
    run("objcopy", "--only-keep-debug", program, debug)
    assert stripped.read_bytes()[:4096] != program.read_bytes()[:4096]
    assert judge(core, program, stripped, debug).verdict is Verdict.MATCH


def test_without_section_headers_a_program_still_matches(crashed: Crashed, tmp_path: Path) -> None:
    bare = tmp_path / "program"
    whole = crashed.program.read_bytes()
    data = bytearray(whole[: int.from_bytes(whole[0x28:0x30], "little")])
    data[0x28:0x30] = bytes(8)
    data[0x3C:0x40] = bytes(4)
    bare.write_bytes(data)
    assert verdict_of(judge(crashed.core, bare), bare) == ("MATCH", "same-id")


# ---- same ID, altered file


def test_one_byte_of_code_changed_under_the_same_id_is_found(crashed: Crashed, tmp_path: Path) -> None:
    place = symbol(crashed.program, "t twice")
    altered = edited(crashed.program, "altered", place + 8, b"\x0f\x0b")
    row = row_for(judge(crashed.core, altered), altered)
    assert (row.verdict, row.code) == (Verdict.MISMATCH, "altered")
    assert row.says.startswith(f"same ID, altered file: byte {place + 8:#x} of the file")


def test_what_the_core_does_not_hold_cannot_be_found_changed(rebuilt: Rebuilt, tmp_path: Path) -> None:
    data = bytearray(rebuilt.then.read_bytes())
    place = symbol(rebuilt.then, "T refund")
    data[place + 2 : place + 4] = b"\x90\x90"
    altered = tmp_path / "libprice.so"
    altered.write_bytes(data)
    row = row_for(judge(rebuilt.core, altered), altered)
    # gdb left the library's text out; the sentence says how much was compared.
    assert row.verdict is Verdict.MATCH
    assert "bytes of it in the dump" in row.says


def test_breakpoint_in_the_process_is_no_altered_file(needs: Callable[..., None], tmp_path: Path) -> None:
    source = """
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    int watched(int number) { return number * 3; }
    int main(void)
    {
        unsigned char *at = (unsigned char *)watched;
        mprotect((void *)((uintptr_t)at & ~4095ul), 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
        *at = 0xcc; /* as a debugger or a uprobe would */
        mprotect((void *)((uintptr_t)at & ~4095ul), 4096, PROT_READ | PROT_EXEC);
        abort();
    }
    """
    program = compiled(tmp_path, source, "-Wl,--build-id")
    core = kernel_core(needs, program)
    assert verdict_of(judge(core, program), program) == ("MATCH", "same-id")
    altered = edited(program, "altered", symbol(program, "T watched") + 4, b"\x90\x90")
    assert verdict_of(judge(core, altered), altered) == ("MISMATCH", "altered")


@pytest.mark.needs("patchelf")
def test_patchelf_keeps_the_id_and_is_found(crashed: Crashed, tmp_path: Path) -> None:
    patched = tmp_path / "program"
    run(
        "patchelf",
        "--set-rpath",
        "/a/path/that/does/not/fit/into/the/old/section",
        "--output",
        patched,
        crashed.program,
    )
    assert readelf_build_id(patched) == readelf_build_id(crashed.program)
    assert verdict_of(judge(crashed.core, patched), patched) == ("MISMATCH", "altered")


# ---- no identity


@pytest.fixture(scope="module")
def without_id(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    folder = tmp_path_factory.mktemp("without-id")
    program = compiled(folder, CRASH, "-g", "-Wl,--build-id=none")
    return Crashed(program, kernel_core(_need, program))


def test_without_id_the_file_that_ran_is_consistent_and_never_a_match(without_id: Crashed) -> None:
    report = judge(without_id.core, without_id.program)
    row = row_for(report, without_id.program)
    assert (row.verdict, row.code) == (Verdict.UNVERIFIABLE, "no-id-consistent")
    assert "no proof" in row.says
    for compared in ("the entry point", "program headers", "mappings", "the dynamic section", "bytes"):
        assert compared in row.says


@pytest.mark.parametrize(
    "source",
    [CRASH.replace("void)", "int n)").replace("abort()", "if (n) abort()"), "int grown[9000] = {1};\n" + CRASH],
    ids=["other-code", "other-data"],
)
def test_without_id_a_contradiction_proves_another_file(without_id: Crashed, tmp_path: Path, source: str) -> None:
    other = compiled(tmp_path, source, "-g", "-Wl,--build-id=none")
    row = row_for(judge(without_id.core, other), other)
    assert (row.verdict, row.code) == (Verdict.MISMATCH, "other-bytes")
    assert row.says.startswith("not this file: ")


def test_without_id_the_name_does_not_help(without_id: Crashed, tmp_path: Path) -> None:
    other = compiled(tmp_path, '#include <stdio.h>\nint main(void) { return puts("hello"); }\n', "-Wl,--build-id=none")
    assert other.name == without_id.program.name
    assert judge(without_id.core, other).verdict is Verdict.MISMATCH


def test_file_without_id_never_matches_a_dump_that_has_one(crashed: Crashed, tmp_path: Path) -> None:
    bare = tmp_path / "program"
    run("objcopy", "--remove-section=.note.gnu.build-id", crashed.program, bare)
    assert readelf_build_id(bare) is None
    row = row_for(judge(crashed.core, bare), bare)
    assert row.verdict in (Verdict.UNVERIFIABLE, Verdict.MISMATCH)
    assert readelf_build_id(crashed.program) in row.says or row.code == "other-bytes"


# ---- the library rebuilt after the crash


@pytest.mark.needs("gdb")
def test_gdb_shows_a_wrong_function_without_a_word_where_pmf_says_mismatch(rebuilt: Rebuilt) -> None:
    def backtrace(*more: str) -> str:
        command = ("gdb", "--nx", "-q", "-batch", "-iex", "set debuginfod enabled off", *more)
        ran = subprocess.run([*command, "-ex", "bt", rebuilt.program, rebuilt.core], capture_output=True, text=True)
        assert "mismatch" not in ran.stderr.lower()
        assert "does not match" not in ran.stderr
        assert "newer" not in ran.stderr
        return ran.stdout

    truth = backtrace("-iex", f"set sysroot {sysroot_of(rebuilt)}")
    assert "#0  price (" in truth
    assert "price.c:5" in truth
    shown = backtrace()
    assert "#0  refund (" in shown
    assert "price.c:6" in shown
    report = judge(rebuilt.core, rebuilt.program, rebuilt.now)
    assert verdict_of(report, rebuilt.now) == ("MISMATCH", "other-id")
    assert report.verdict is Verdict.MISMATCH
    assert judge(rebuilt.core, rebuilt.program, rebuilt.then).verdict is Verdict.MATCH


def sysroot_of(rebuilt: Rebuilt) -> Path:
    """A root in which the library lies where the core says, as it was."""
    root = rebuilt.folder / "root"
    place = root / str(rebuilt.now)[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(rebuilt.then, place)
    return root


def test_in_a_folder_the_right_file_is_found_and_its_namesake_is_warned_of(rebuilt: Rebuilt) -> None:
    report = judge(rebuilt.core, rebuilt.folder / "srv", rebuilt.folder / "release-1.0")
    assert report.verdict is Verdict.MATCH
    assert verdict_of(report, rebuilt.then) == ("MATCH", "same-id")
    assert not rows_for(report, rebuilt.now)
    (warning,) = report.warnings
    assert warning.startswith(f"{rebuilt.now} is named like ")
    # Asked about by name, the same file is a mismatch, whatever else is there.
    named = judge(rebuilt.core, rebuilt.now, rebuilt.folder / "release-1.0")
    assert verdict_of(named, rebuilt.now) == ("MISMATCH", "other-id")


# ---- who is meant


def test_wrong_program_under_the_right_name_is_a_mismatch(crashed: Crashed, tmp_path: Path) -> None:
    other = compiled(tmp_path, CRASH, "-Wl,--build-id")
    assert other.name == crashed.program.name
    assert verdict_of(judge(crashed.core, other), other) == ("MISMATCH", "other-id")


def test_wrong_program_under_another_name_is_held_against_the_executable(crashed: Crashed, tmp_path: Path) -> None:
    other = compiled(tmp_path, CRASH, "-Wl,--build-id", name="something-else")
    report = judge(crashed.core, other)
    assert row_for(report, other).image is main_of(report)
    assert verdict_of(report, other) == ("MISMATCH", "other-id")


def test_right_program_under_another_name_matches(crashed: Crashed, tmp_path: Path) -> None:
    other = copied(crashed.program, "renamed-since")
    assert verdict_of(judge(crashed.core, other), other) == ("MATCH", "same-id")


def test_library_that_was_not_loaded_is_not_in_the_dump(crashed: Crashed, tmp_path: Path) -> None:
    library = compiled(tmp_path, "int nothing;\n", "-shared", "-fPIC", "-Wl,--build-id", name="libnothing.so")
    report = judge(crashed.core, crashed.program, library)
    assert verdict_of(report, library) == ("MISMATCH", "not-in-dump")
    assert report.verdict is Verdict.MISMATCH
    # Found in a folder, it was not asked about.
    assert judge(crashed.core, crashed.program, tmp_path).verdict is Verdict.MATCH


def test_unasked_images_decide_only_when_strict(crashed: Crashed) -> None:
    assert judge(crashed.core, crashed.program).verdict is Verdict.MATCH
    strict = judge(crashed.core, crashed.program, strict=True)
    assert strict.verdict is Verdict.UNVERIFIABLE
    assert {row.code for row in strict.asked} == {"same-id", "no-candidate"}
    assert not any(row.asked for row in strict.rows if row.image and row.image.is_vdso)


def test_without_candidates_nothing_is_asked_and_nothing_is_claimed(crashed: Crashed) -> None:
    report = judge(crashed.core)
    assert not report.asked
    assert report.verdict is Verdict.UNVERIFIABLE
    assert {row.code for row in report.rows} == {"no-candidate", "vdso"}


def test_same_candidate_for_several_images_and_several_candidates_for_one(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    """One library loaded twice, into two namespaces; and the executable asked about three times over."""
    library = compiled(tmp_path, "int held;\n", "-shared", "-fPIC", "-Wl,--build-id", name="libheld.so")
    source = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdlib.h>
    int main(void)
    {
        if (dlopen("./libheld.so", RTLD_NOW) && dlmopen(LM_ID_NEWLM, "./libheld.so", RTLD_NOW))
            abort();
        return 1;
    }
    """
    program = compiled(tmp_path, source, "-Wl,--build-id", "-ldl")
    core = kernel_core(needs, program)
    stripped = copied(program, "stripped", lambda one, other: run("strip", "-o", other, one))
    report = judge(core, library, program, stripped, copied(program, "again"))
    assert len(rows_for(report, library)) == 2
    assert {row.verdict for row in report.asked} == {Verdict.MATCH}
    assert len(report.asked) == 5


# ---- a binary in the dump's place


@pytest.mark.needs("objcopy")
def test_binary_against_its_own_debug_file_and_against_another(crashed: Crashed, tmp_path: Path) -> None:
    debug = tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", crashed.program, debug)
    assert verdict_of(judge(crashed.program, debug), debug) == ("MATCH", "same-id")
    assert judge(debug, crashed.program).verdict is Verdict.MATCH
    other = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id", name="other")
    assert verdict_of(judge(other, debug), debug) == ("MISMATCH", "other-id")


def test_binary_against_two_files_judges_each(crashed: Crashed, tmp_path: Path) -> None:
    other = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id", name="other")
    report = judge(crashed.program, crashed.program, other)
    assert verdict_of(report, crashed.program) == ("MATCH", "same-id")
    assert row_for(report, other).verdict is Verdict.MISMATCH


# ---- cores of every writer


def test_core_by_gdb_matches_by_bytes_too(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("gdb")
    program = compiled(tmp_path, CRASH, "-Wl,--build-id")
    core = gdb_core(program, tmp_path / "by-gdb.core")
    assert judge(core, program).verdict is Verdict.MATCH
    same_id = compiled(tmp_path, "int main(void) { return 0; }\n", fixed_id(1), name="first")
    core = gdb_core(compiled(tmp_path, CRASH, fixed_id(1), name="second"), tmp_path / "second.core")
    assert verdict_of(judge(core, same_id), same_id) == ("MISMATCH", "altered")


@pytest.mark.parametrize("share", [2, 10, 30, 60, 99])
def test_cut_core_says_where_it_ends_and_never_matches_what_it_lost(
    crashed: Crashed, tmp_path: Path, share: int
) -> None:
    whole = crashed.core.read_bytes()
    cut = tmp_path / "cut.core"
    cut.write_bytes(whole[: len(whole) * share // 100])
    report = judge(cut, crashed.program)
    assert report.declared_bytes == len(whole)
    assert report.actual_bytes == len(whole) * share // 100
    assert any("The core is cut" in sentence for sentence in report.lost)
    row = row_for(report, crashed.program)
    held = row.reading is not None
    assert row.verdict is (Verdict.MATCH if held else Verdict.UNVERIFIABLE)
    assert held or row.image is None or row.code.startswith("truncated")
