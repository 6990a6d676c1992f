"""The identity of PE images agrees with llvm-readobj, and no debug entry is overlooked."""

from __future__ import annotations

import contextlib
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.codeview import BrokenCodeView, parse_codeview
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.pdb import PdbAgreement, read_pdb_identity
from pmforensics.formats.pe import BrokenPe, NotPe, read_pe_identity
from pmforensics.model.image import IdKind, ImageId
from tests.formats import windows_build
from tests.formats.mutations import mutated
from tests.formats.pdb_writer import portable_pdb
from tests.formats.pe_writer import EMBEDDED, REPRODUCIBLE, DebugEntry, PeWriter
from tests.formats.windows_build import run

GUID = bytes.fromhex("c2d73a20f9be2f104c4c44205044422e")
GUID_TEXT = "203ad7c2bef9102f4c4c44205044422e"
OTHER_GUID = bytes(range(16))
OTHER_GUID_TEXT = "030201000504070608090a0b0c0d0e0f"
NATIVE = b"RSDS" + GUID + bytes([3, 0, 0, 0]) + b"library.ni.pdb\0"
MANAGED = b"RSDS" + OTHER_GUID + bytes([1, 0, 0, 0]) + b"/src/library.pdb\0"
PORTABLE_MARK = 0x504D


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def readobj(path: Path, *flags: str) -> str:
    return run("llvm-readobj", "--file-headers", "--coff-debug-directory", *flags, path)


def number(text: str, name: str) -> int:
    """The value of "Name: 0x1f" or "Name: 2023-11-14 (0x1f)" or "Name: 31" in llvm-readobj's words."""
    found = re.search(rf"\b{name}: (?:.*\((0x[0-9A-Fa-f]+)\)|(\w+))", text)
    assert found, name
    return int(found[1] or found[2], 0)


def pdb_ids(text: str) -> list[tuple[bytes, int, str]]:
    """GUID, age and name of every PDB that llvm-readobj lists."""
    rows = re.findall(r"PDBGUID: \(([0-9A-F ]+)\)\s+PDBAge: (\d+)\s+PDBFileName: (.*)", text)
    return [(bytes.fromhex(guid), int(age), name) for guid, age, name in rows]


def canonical(guid: bytes) -> str:
    """The digits of a GUID as tools print them: the first three fields little-endian."""
    return (guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]).hex()


# ---- real files


@pytest.mark.needs(*windows_build.TOOLS, "llvm-readobj")
@pytest.mark.parametrize(("machine", "bits"), [("x86", 32), ("amd64", 64), ("arm64", 64)])
def test_identity_is_what_readobj_says(tmp_path: Path, machine: str, bits: int) -> None:
    program = windows_build.build(tmp_path, machine)
    found = read_pe_identity(*from_bytes(program.exe.read_bytes()))
    said = readobj(program.exe)
    ((guid, age, name),) = pdb_ids(said)
    (debug_file,) = found.debug_files
    assert debug_file.id == ImageId(IdKind.PDB, f"{canonical(guid)}-{age:x}")
    assert (debug_file.name, debug_file.offset) == (name, number(said, "PointerToRawData"))
    assert found.machine == number(said, "Machine")
    assert found.bits == bits
    assert (found.time_date_stamp, found.size_of_image) == (1_700_000_000, number(said, "SizeOfImage"))
    assert found.code.value == f"{1_700_000_000:08x}-{number(said, 'SizeOfImage'):x}"
    assert found.image_base == number(said, "ImageBase")
    assert found.linker == (number(said, "MajorLinkerVersion"), number(said, "MinorLinkerVersion"))
    assert not found.is_dll
    assert found.lost == ()


@pytest.mark.needs(*windows_build.TOOLS)
def test_another_build_has_another_identity(tmp_path: Path) -> None:
    before = windows_build.build(tmp_path / "before", number=1)
    after = windows_build.build(tmp_path / "after", number=2)
    first, second = (read_pe_identity(*from_bytes(one.exe.read_bytes())) for one in (before, after))
    assert first.debug_files[0].id != second.debug_files[0].id
    # Same size, same stamp: the code identity alone would have called them equal.
    assert first.code == second.code


@pytest.mark.needs(*windows_build.TOOLS, "llvm-readobj")
def test_loaded_image_has_the_identity_of_its_file(tmp_path: Path) -> None:
    program = windows_build.build(tmp_path)
    data = program.exe.read_bytes()
    said = readobj(program.exe, "--sections")
    loaded = bytearray(number(said, "SizeOfImage"))
    loaded[: number(said, "SizeOfHeaders")] = data[: number(said, "SizeOfHeaders")]
    sections = said.split("Section {")[1:]
    assert len(sections) > 1
    for section in sections:
        rva, start, length = (number(section, name) for name in ("VirtualAddress", "PointerToRawData", "RawDataSize"))
        loaded[rva : rva + length] = data[start : start + length]
    in_file = read_pe_identity(*from_bytes(data))
    in_memory = read_pe_identity(*from_bytes(bytes(loaded)), loaded=True)
    assert in_memory.ids == in_file.ids
    assert in_memory.debug_files[0].offset == number(said, "AddressOfRawData")


@pytest.mark.needs("clang", "x86_64-w64-mingw32-ld", "llvm-readobj")
def test_build_id_of_the_gnu_linker(tmp_path: Path) -> None:
    (tmp_path / "hello.c").write_text("int entry(void) { return 0; }\n")
    run("clang", "--target=x86_64-w64-mingw32", "-c", "hello.c", cwd=tmp_path)
    run("x86_64-w64-mingw32-ld", "--build-id", "-e", "entry", "-o", "hello.exe", "hello.o", cwd=tmp_path)
    found = read_pe_identity(*from_bytes((tmp_path / "hello.exe").read_bytes()))
    ((guid, age, _),) = pdb_ids(readobj(tmp_path / "hello.exe"))
    assert [(one.id.value, one.name) for one in found.debug_files] == [(f"{canonical(guid)}-{age:x}", "")]


@pytest.mark.needs("py:clr_loader", "llvm-readobj")
@pytest.mark.parametrize("machine", ["amd64", "x86"])
def test_assembly_and_its_portable_pdb(machine: str) -> None:
    import clr_loader

    folder = Path(clr_loader.__file__).parent / "ffi" / "dlls" / machine
    assembly = read_pe_identity(*from_bytes((folder / "ClrLoader.dll").read_bytes()))
    pdb = read_pdb_identity(*from_bytes((folder / "ClrLoader.pdb").read_bytes()))
    ((guid, age, _),) = pdb_ids(readobj(folder / "ClrLoader.dll"))
    assert [one.id for one in assembly.debug_files] == [pdb.id]
    assert (pdb.guid, assembly.debug_files[0].age) == (canonical(guid), age)
    assert assembly.reproducible
    other = "x86" if machine == "amd64" else "amd64"
    wrong = read_pdb_identity(*from_bytes((folder.parent / other / "ClrLoader.pdb").read_bytes()))
    assert wrong.agreement(assembly.debug_files[0].id) is PdbAgreement.DIFFERENT


# ---- what no linker here writes


@pytest.mark.needs("llvm-readobj")
@pytest.mark.parametrize("bits", [32, 64])
def test_ready_to_run_image_names_both_of_its_pdbs(tmp_path: Path, bits: int) -> None:
    entries = [
        DebugEntry(NATIVE, stamp=0x61234567),
        DebugEntry(MANAGED, stamp=0xF1E2D3C4, minor_version=PORTABLE_MARK),
        DebugEntry(b"", kind=REPRODUCIBLE),
    ]
    data = PeWriter(entries, bits=bits, machine=0x8664 if bits == 64 else 0x14C).render()
    (tmp_path / "library.dll").write_bytes(data)
    found = read_pe_identity(*from_bytes(data))
    assert [(one.id, one.name, one.age) for one in found.debug_files] == [
        (ImageId(IdKind.PDB, f"{GUID_TEXT}-3"), "library.ni.pdb", 3),
        (ImageId(IdKind.PORTABLE_PDB, f"{OTHER_GUID_TEXT}-f1e2d3c4"), "/src/library.pdb", 1),
    ]
    # A minidump copies the records and not the stamps.
    assert [one.value for one in found.ids] == [
        f"{GUID_TEXT}-3",
        f"{OTHER_GUID_TEXT}-f1e2d3c4",
        f"{OTHER_GUID_TEXT}-1",
        "61234567-3000",
    ]
    assert found.reproducible
    assert (found.is_dll, found.checksum, found.bits) == (True, 0xABCD, bits)
    said = readobj(tmp_path / "library.dll")
    assert pdb_ids(said) == [(GUID, 3, "library.ni.pdb"), (OTHER_GUID, 1, "/src/library.pdb")]
    assert number(said, "SizeOfImage") == found.size_of_image


def test_old_signature_of_visual_c_6() -> None:
    record = b"NB10" + bytes(4) + bytes.fromhex("b164006b") + bytes([0x1D, 0, 0, 0]) + b"old.pdb\0"
    found = read_pe_identity(*from_bytes(PeWriter([DebugEntry(record)], bits=32, machine=0x14C).render()))
    assert [(one.id, one.name) for one in found.debug_files] == [(ImageId(IdKind.PDB20, "6b0064b1-1d"), "old.pdb")]


def embedded(unpacked: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return b"MPDB" + len(unpacked).to_bytes(4, "little") + packer.compress(unpacked) + packer.flush()


def test_embedded_portable_pdb_has_the_identity_that_its_record_names() -> None:
    inside = portable_pdb(OTHER_GUID, 0xF1E2D3C4) + bytes(1 << 20)
    entries = [
        DebugEntry(MANAGED, stamp=0xF1E2D3C4, minor_version=PORTABLE_MARK),
        DebugEntry(embedded(inside), EMBEDDED),
    ]
    record, within = read_pe_identity(*from_bytes(PeWriter(entries).render())).debug_files
    assert record.id == within.id
    assert (record.embedded, within.embedded) == (False, True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"MPDB" + bytes(4) + b"\xff" * 32, "cannot be unpacked"),
        (b"ZPDB" + bytes(40), "no MPDB signature"),
        (embedded(b"no metadata"), "neither an MSF"),
    ],
)
def test_broken_embedded_pdb_is_lost_and_the_rest_is_kept(data: bytes, says: str) -> None:
    found = read_pe_identity(*from_bytes(PeWriter([DebugEntry(data, EMBEDDED), DebugEntry(NATIVE)]).render()))
    assert [one.name for one in found.debug_files] == ["library.ni.pdb"]
    assert len(found.lost) == 1
    assert says in found.lost[0]


def test_zero_guid_and_zero_stamp_are_weak() -> None:
    record = b"RSDS" + bytes(16) + bytes([1, 0, 0, 0]) + b"x.pdb\0"
    found = read_pe_identity(*from_bytes(PeWriter([DebugEntry(record)], stamp=0).render()))
    assert [bool(one.weak) for one in found.ids] == [True, True]


def test_image_without_debug_directory_has_its_code_identity_only() -> None:
    for writer in (PeWriter([]), PeWriter([], directories=2), PeWriter([DebugEntry(NATIVE)], directory_bytes=0)):
        found = read_pe_identity(*from_bytes(writer.render()))
        assert [one.value for one in found.ids] == ["61234567-3000"]
        assert found.lost == ()


@pytest.mark.parametrize(
    ("writer", "says"),
    [
        (PeWriter([DebugEntry(NATIVE)], directory_rva=0x900000), "outside the file"),
        (PeWriter([DebugEntry(NATIVE, offset=0)]), "its data is not there"),
        (PeWriter([DebugEntry(NATIVE, offset=0x900000)]), "its data is not there"),
        (PeWriter([DebugEntry(NATIVE, length=20)]), "needs 24"),
        (PeWriter([DebugEntry(b"NB09" + bytes(40))]), "NB09"),
        (PeWriter([DebugEntry(b"LEpB" + bytes(range(20)))]), "build ID record"),
        (PeWriter([DebugEntry(NATIVE)], directory_bytes=28 * 100_000), "100000 entries"),
    ],
)
def test_hostile_debug_directory_is_lost_with_a_sentence(writer: PeWriter, says: str) -> None:
    found = read_pe_identity(*from_bytes(writer.render()))
    assert any(says in sentence for sentence in found.lost), found.lost
    assert found.code.value == "61234567-3000"


def test_record_longer_than_the_file_keeps_what_is_there() -> None:
    found = read_pe_identity(*from_bytes(PeWriter([DebugEntry(NATIVE, length=0xFFFFFFFF)]).render()))
    assert [one.id.value for one in found.debug_files] == [f"{GUID_TEXT}-3"]


@pytest.mark.parametrize("data", [b"", b"M", b"\x7fELF" + bytes(60), b"MZ" + bytes(100), b"MZ" + b"\xff" * 100])
def test_what_is_no_pe_image_is_told(data: bytes) -> None:
    with pytest.raises(NotPe):
        read_pe_identity(*from_bytes(data))


def test_impossible_headers_are_told() -> None:
    whole = bytearray(PeWriter([DebugEntry(NATIVE)]).render())
    for data, says in (
        (bytes(whole[:40]), "DOS header is cut"),
        (bytes(whole[:0x90]), "COFF header is cut"),
        (bytes(whole[:0xC0]), "optional header has"),
        (bytes(whole[:0x98]) + b"\x07\x01" + bytes(whole[0x9A:]), "magic is 0x107"),
    ):
        with pytest.raises(BrokenPe, match=says):
            read_pe_identity(*from_bytes(data))


# ---- any bytes


SEED = PeWriter(
    [
        DebugEntry(NATIVE),
        DebugEntry(MANAGED, stamp=7, minor_version=PORTABLE_MARK),
        DebugEntry(embedded(portable_pdb(GUID, 7)), EMBEDDED),
    ]
).render()


def survives(data: bytes, *, loaded: bool) -> None:
    longest = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal longest
        assert offset >= 0
        assert length >= 0
        longest = max(longest, length)
        return data[offset : offset + length]

    with contextlib.suppress(FormatError):
        assert read_pe_identity(read, len(data), loaded=loaded).ids[-1].kind is IdKind.CODE
    assert longest <= max(len(data), 64)


@settings(max_examples=400, deadline=None)
@given(mutated(SEED), st.booleans())
def test_mutated_image_ends_in_an_identity_or_a_format_error(data: bytes, loaded: bool) -> None:
    survives(data, loaded=loaded)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400).map(lambda tail: b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0" + tail), st.booleans())
def test_any_bytes_behind_the_signatures_end_in_an_identity_or_a_format_error(data: bytes, loaded: bool) -> None:
    survives(data, loaded=loaded)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return windows_build.build(tmp_path_factory.mktemp("linked")).exe


@pytest.mark.needs(*windows_build.TOOLS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_real_image_ends_in_an_identity_or_a_format_error(linked: Path, data: st.DataObject) -> None:
    survives(data.draw(mutated(linked.read_bytes(), head_bytes=2048)), loaded=data.draw(st.booleans()))


@pytest.mark.needs(*windows_build.TOOLS)
def test_real_image_cut_anywhere(linked: Path) -> None:
    data = linked.read_bytes()
    whole = read_pe_identity(*from_bytes(data)).debug_files[0].id
    told = set()
    for length in range(len(data)):
        try:
            told.update(one.id for one in read_pe_identity(*from_bytes(data[:length])).debug_files)
        except FormatError:
            continue
    assert told == {whole}


@settings(max_examples=300, deadline=None)
@given(st.builds(bytes.__add__, st.sampled_from([b"", b"RSDS", b"NB10", b"LEpB", b"NB11"]), st.binary(max_size=100)))
def test_any_codeview_record_is_an_identity_or_a_format_error(data: bytes) -> None:
    try:
        record = parse_codeview(data)
    except BrokenCodeView:
        return
    assert "\0" not in record.name
    assert len(record.id.value) >= 2
