"""What files are recognised as, what is said of each, and what is refused with a sentence."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pmforensics.errors import CandidateUnreadable, FormatError
from pmforensics.model.image import IdKind
from pmforensics.verify import candidates as candidates_module
from pmforensics.verify.candidates import Candidate, CandidateKind, open_regular, read_candidate, read_candidates
from tests import zoo
from tests.formats import macho_writer, pdb_writer
from tests.formats.core_writer import Process
from tests.formats.elf_writer import ElfWriter, Section, Segment
from tests.formats.macho_writer import ARM64, X86_64, MachWriter
from tests.formats.minidump_writer import rsds
from tests.formats.pe_writer import DebugEntry, PeWriter
from tests.formats.test_core import compiled, go, kernel_core, readelf_build_id, run
from tests.verify.specimens import CRASH


def only(path: Path) -> Candidate:
    (candidate,) = read_candidate(path)
    return candidate


# ---- ELF


@pytest.mark.needs("gcc", "readelf", "objcopy", "strip")
def test_program_library_debug_file_and_stripped_file_are_told_apart(tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-g", "-Wl,--build-id")
    library = compiled(tmp_path, "int held;\n", "-shared", "-fPIC", "-Wl,--build-id", name="libheld.so.1")
    debug, stripped, bare = tmp_path / "program.debug", tmp_path / "stripped", tmp_path / "bare"
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", "-o", stripped, program)
    run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
    run("objcopy", "--strip-debug", program, bare)
    found = {path.name: only(path) for path in (program, library, debug, stripped, bare)}
    assert {name: (one.kind, one.is_main) for name, one in found.items()} == {
        "program": (CandidateKind.PROGRAM, True),
        "libheld.so.1": (CandidateKind.PROGRAM, False),
        "program.debug": (CandidateKind.DEBUG_FILE, False),
        "stripped": (CandidateKind.PROGRAM, True),
        "bare": (CandidateKind.PROGRAM, True),
    }
    assert found["program.debug"].name == "program"
    for path in (program, debug, stripped, bare):
        assert [(one.kind, one.value) for one in found[path.name].ids] == [(IdKind.GNU, readelf_build_id(program))]
    assert found["program"].lacks == ""
    assert found["stripped"].lacks == "stripped: its debug file, program.debug, has the lines and names"
    assert found["bare"].lacks == "without debug information: names, no lines"


@pytest.mark.needs("go")
def test_go_program_says_which_build_it_is_as_go_does(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main\n\nfunc main() {}\n")
    (tmp_path / "go.mod").write_text("module example.org/checkout\n\ngo 1.21\n")
    go("build", "-buildvcs=false", "-o", "checkout", ".", cwd=tmp_path)
    found = only(tmp_path / "checkout")
    told = go("version", "-m", tmp_path / "checkout")
    assert f": {found.says['go_version']}\n" in told
    assert re.search(r"^\tmod\texample\.org/checkout\t(\S*)", told, re.MULTILINE)
    assert found.says["go_module"].split()[0] == "example.org/checkout"
    assert {one.kind for one in found.ids} == {IdKind.GNU, IdKind.GO}


def test_id_of_a_debug_file_comes_from_its_sections(tmp_path: Path) -> None:
    """Its program headers are the program's, and point at whatever lies there in this file."""
    writer = ElfWriter(elf_type=3)
    in_segment, in_section = (writer.note(b"GNU\0", 3, bytes([byte]) * 20) for byte in (0x51, 0x52))
    note = Section(".note.gnu.build-id", 7, in_section)
    writer.segments = [Segment(4, in_segment)]
    writer.sections = [Section(".text", 8, b""), note, Section(".debug_info", 1, b"x" * 8)]
    (tmp_path / "x.debug").write_bytes(writer.render())
    assert [one.value for one in only(tmp_path / "x.debug").ids] == ["52" * 20]


# ---- the others


def test_every_kind_of_file_is_recognised_by_its_contents(tmp_path: Path) -> None:
    guid = bytes(range(16))
    files: dict[str, tuple[bytes, CandidateKind, str]] = {
        "a": (MachWriter(cpu=ARM64).uuid(guid).render(), CandidateKind.MACHO, "a"),
        "b": (MachWriter(cpu=ARM64, file_type=10).uuid(guid).render(), CandidateKind.DSYM, "b"),
        "c.exe": (PeWriter(entries=[DebugEntry(rsds(guid, 1, "c.pdb"))]).render(), CandidateKind.PE, "c.exe"),
        "d.pdb": (pdb_writer.pdb(guid, 1, 1), CandidateKind.PDB, "d"),
        "e.pdb": (pdb_writer.portable_pdb(guid, 1), CandidateKind.PDB, "e"),
        "f": (b"MODULE Linux x86_64 000000000000000000000000000000010 libf.so\n", CandidateKind.SYM, "libf.so"),
    }
    for name, (data, kind, meant) in files.items():
        (tmp_path / name).write_bytes(data)
        found = only(tmp_path / name)
        assert (found.kind, found.name) == (kind, meant), name
    with zipfile.ZipFile(tmp_path / "g.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "")
    assert only(tmp_path / "g.jar").kind is CandidateKind.JAR


def test_fat_file_is_one_candidate_for_each_architecture(tmp_path: Path) -> None:
    slices = [
        (cpu, MachWriter(cpu=cpu).uuid(bytes([number]) * 16).render()) for number, cpu in enumerate((X86_64, ARM64), 1)
    ]
    (tmp_path / "fat").write_bytes(macho_writer.fat(*slices))
    found = read_candidate(tmp_path / "fat")
    assert [(one.slice, one.ids[0].value) for one in found] == [("x86_64", "01" * 16), ("arm64", "02" * 16)]
    assert [str(one) for one in found] == [f"{tmp_path}/fat (x86_64)", f"{tmp_path}/fat (arm64)"]


def test_dsym_folder_counts_as_named_itself_and_its_property_list_does_not_disturb(tmp_path: Path) -> None:
    dwarf = tmp_path / "Agent.dSYM" / "Contents" / "Resources" / "DWARF"
    dwarf.mkdir(parents=True)
    (dwarf / "Agent").write_bytes(MachWriter(cpu=ARM64, file_type=10).uuid(b"\x01" * 16).render())
    (tmp_path / "Agent.dSYM" / "Contents" / "Info.plist").write_text("<plist/>")
    for path, explicit in ((tmp_path / "Agent.dSYM", True), (tmp_path, False)):
        (found,), trouble = read_candidates([path])
        assert (found.kind, found.explicit, trouble) == (CandidateKind.DSYM, explicit, [])
        assert found.lacks == "no debug information in it"


# ---- folders


def test_folder_gives_each_file_once_and_follows_links_to_files_outside(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for place in (folder / "deep", outside):
        place.mkdir(parents=True)
    library = Process().images[0xF7C0_0000].render()
    (folder / "deep" / "libwork.so.1.2").write_bytes(library)
    (folder / "libwork.so.1").symlink_to("deep/libwork.so.1.2")
    (outside / "libother.so").write_bytes(library)
    (folder / "libother.so").symlink_to(outside / "libother.so")
    (folder / "loop").symlink_to(folder)
    (folder / "notes.txt").write_text("no binary")
    (folder / "core").write_bytes(Process().render())
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to(folder / "nowhere")
    found, trouble = read_candidates([folder])
    assert sorted(one.name for one in found) == ["libother.so", "libwork.so.1.2"]
    assert not any(one.explicit for one in found)
    assert trouble == []


def test_broken_files_in_a_folder_are_told_and_bounded(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}").write_bytes(b"\x7fELF\x09")
    found, trouble = read_candidates([tmp_path])
    assert found == []
    assert len(trouble) == 11
    assert trouble[0].startswith(f"{tmp_path}/00: ")
    assert trouble[-1] == "15 more files in folders could not be read"


def test_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    with pytest.raises(CandidateUnreadable, match="more than 3 files"):
        read_candidates([tmp_path])


# ---- what is refused


@pytest.mark.needs("gcc")
def test_core_in_a_candidates_place_is_told_to_come_first(needs: Callable[..., None], tmp_path: Path) -> None:
    core = kernel_core(needs, compiled(tmp_path, CRASH))
    with pytest.raises(CandidateUnreadable, match="is a core, not a binary") as caught:
        read_candidates([core])
    assert caught.value.hint == "The dump comes first: pmf verify CORE BINARY"


def test_pipes_devices_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "is a pipe or a device"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path / "nothing", "cannot be opened"),
        (tmp_path / ("n" * 300), "cannot be opened"),
        (Path("with\0zero"), "cannot be opened"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(CandidateUnreadable, match=says):
            open_regular(path)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"just text\n", b"\xca\xfe\xba\xbe\0\0\0\x37", b"!<arch>\n", b"PK\x03\x04"]
)
def test_anything_else_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "thing").write_bytes(data)
    with pytest.raises(CandidateUnreadable, match=r"/thing is "):
        read_candidate(tmp_path / "thing")


@pytest.mark.parametrize(
    "data", [b"\x7fELF", b"\x7fELF\x02\x01" + bytes(20), b"MZ" + bytes(70), b"BSJB", b"MODULE x\n"]
)
def test_broken_files_are_named_in_the_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "thing").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_candidate(tmp_path / "thing")
    assert caught.value.message.startswith(f"{tmp_path}/thing: ")
    assert str(caught.value) == caught.value.message


def test_file_that_is_not_ours_to_read_says_so(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x7fELF")
    secret.chmod(0)
    if os.geteuid() == 0:
        assert zoo.missing("root") == []  # root reads everything: nothing to refuse
        return
    with pytest.raises(CandidateUnreadable, match="Permission denied"):
        read_candidate(secret)
