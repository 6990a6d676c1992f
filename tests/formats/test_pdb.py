"""The identity of PDBs agrees with llvm-pdbutil, and two ages are never confused."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.pdb import BrokenPdb, NotPdb, PdbAgreement, PdbForm, PdbIdentity, read_pdb_identity
from pmforensics.formats.pe import read_pe_identity
from pmforensics.model.image import IdKind, ImageId
from tests.formats import windows_build
from tests.formats.mutations import mutated
from tests.formats.pdb_writer import MsfWriter, dbi_stream, info_stream, pdb, portable_pdb
from tests.formats.windows_build import run

GUID = bytes.fromhex("c2d73a20f9be2f104c4c44205044422e")
GUID_TEXT = "203ad7c2bef9102f4c4c44205044422e"


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def identity(data: bytes) -> PdbIdentity:
    return read_pdb_identity(*from_bytes(data))


def pdbutil(path: Path) -> tuple[str, int, int]:
    """GUID, age of the info stream and age of the DBI stream, as llvm-pdbutil reads them."""
    said = run("llvm-pdbutil", "pdb2yaml", "-pdb-stream", "-dbi-stream", path)
    info, dbi = said.split("DbiStream:")
    guid = re.search(r"Guid: +'\{([0-9A-F-]+)\}'", info)
    ages = [re.search(r"Age: +(\d+)", part) for part in (info.split("PdbStream:")[1], dbi)]
    assert guid
    assert ages[0]
    assert ages[1]
    return guid[1].replace("-", "").lower(), int(ages[0][1]), int(ages[1][1])


# ---- real files


@pytest.mark.needs(*windows_build.TOOLS, "llvm-pdbutil")
@pytest.mark.parametrize(("machine", "number"), [("x86", 0x14C), ("amd64", 0x8664), ("arm64", 0xAA64)])
def test_identity_is_what_pdbutil_and_the_image_say(tmp_path: Path, machine: str, number: int) -> None:
    program = windows_build.build(tmp_path, machine)
    found = identity(program.pdb.read_bytes())
    guid, info_age, dbi_age = pdbutil(program.pdb)
    assert found.id == ImageId(IdKind.PDB, f"{guid}-{dbi_age:x}")
    assert (found.form, found.guid, found.info_age, found.dbi_age) == (PdbForm.MSF, guid, info_age, dbi_age)
    assert found.machine == number
    assert found.lost == ()
    (debug_file,) = read_pe_identity(*from_bytes(program.exe.read_bytes())).debug_files
    assert found.agreement(debug_file.id) is PdbAgreement.SAME


@pytest.mark.needs(*windows_build.TOOLS)
def test_pdb_of_another_build_is_different_though_it_has_the_name(tmp_path: Path) -> None:
    right = windows_build.build(tmp_path / "right", number=1)
    wrong = windows_build.build(tmp_path / "wrong", number=2)
    (debug_file,) = read_pe_identity(*from_bytes(right.exe.read_bytes())).debug_files
    assert debug_file.name == wrong.pdb.name
    assert identity(wrong.pdb.read_bytes()).agreement(debug_file.id) is PdbAgreement.DIFFERENT


@pytest.mark.needs("llvm-pdbutil")
@pytest.mark.parametrize(
    ("info_age", "dbi_age", "agreements"),
    [
        # The image knows age 1: right after the link, after source indexing, and after another incremental link.
        (1, 1, {1: PdbAgreement.SAME, 4: PdbAgreement.AGE_DIFFERS}),
        (4, 1, {1: PdbAgreement.SAME, 4: PdbAgreement.INFO_AGE_ONLY, 0x1D: PdbAgreement.AGE_DIFFERS}),
        (0x1D, 0x12, {1: PdbAgreement.AGE_DIFFERS, 0x12: PdbAgreement.SAME, 0x1D: PdbAgreement.INFO_AGE_ONLY}),
    ],
)
def test_the_age_of_the_dbi_stream_is_the_one_that_counts(
    tmp_path: Path, info_age: int, dbi_age: int, agreements: dict[int, PdbAgreement]
) -> None:
    text = f"---\nPdbStream:\n  Age: {info_age}\n  Guid: '{{0B355641-86A0-A249-896F-9988FAE52FF0}}'\n  Version: VC70\n"
    text += f"DbiStream:\n  VerHeader: V70\n  Age: {dbi_age}\n  MachineType: Amd64\n...\n"
    (tmp_path / "ages.yaml").write_text(text)
    run("llvm-pdbutil", "yaml2pdb", f"-pdb={tmp_path / 'ages.pdb'}", tmp_path / "ages.yaml")
    found = identity((tmp_path / "ages.pdb").read_bytes())
    guid = "0b35564186a0a249896f9988fae52ff0"
    assert pdbutil(tmp_path / "ages.pdb") == (guid, info_age, dbi_age)
    assert (found.info_age, found.dbi_age) == (info_age, dbi_age)
    assert found.id.value == f"{guid}-{dbi_age:x}"
    assert {age: found.agreement(ImageId(IdKind.PDB, f"{guid}-{age:x}")) for age in agreements} == agreements


@pytest.mark.needs(*windows_build.TOOLS, "gcab")
def test_packed_pdb_is_refused_with_its_sentence(tmp_path: Path) -> None:
    windows_build.build(tmp_path)
    run("gcab", "--create", "service.pd_", "service.pdb", cwd=tmp_path)
    with pytest.raises(NotPdb, match="cabinet") as refused:
        identity((tmp_path / "service.pd_").read_bytes())
    assert "cabextract" in refused.value.hint


# ---- what no tool here writes


@pytest.mark.parametrize("block_bytes", [512, 1024, 4096, 32768])
@pytest.mark.parametrize("extra_streams", [0, 1500])
def test_directory_of_any_size(block_bytes: int, extra_streams: int) -> None:
    found = identity(pdb(GUID, 7, 3, block_bytes=block_bytes, extra_streams=extra_streams))
    assert (found.id.value, found.info_age, found.dbi_age) == (f"{GUID_TEXT}-3", 7, 3)
    assert (found.machine, found.lost) == (0x8664, ())


@pytest.mark.needs(*windows_build.TOOLS, "llvm-pdbutil")
@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_streams_of_a_real_pdb_packed_anew(tmp_path: Path, block_bytes: int) -> None:
    program = windows_build.build(tmp_path)
    summary = run("llvm-pdbutil", "dump", "--summary", program.pdb)
    count = re.search(r"Number of streams: (\d+)", summary)
    assert count
    streams = []
    for index in range(int(count[1])):
        run("llvm-pdbutil", "export", f"-stream={index}", f"-out={tmp_path / 'stream'}", program.pdb)
        streams.append((tmp_path / "stream").read_bytes())
    packed = tmp_path / "packed.pdb"
    packed.write_bytes(MsfWriter([*streams, *([b"more" * 200] * 1500)], block_bytes).render())
    assert pdbutil(packed) == pdbutil(program.pdb)
    assert identity(packed.read_bytes()) == identity(program.pdb.read_bytes())


def test_without_dbi_stream_the_info_age_counts() -> None:
    found = identity(pdb(GUID, 4, None))
    assert (found.id.value, found.dbi_age, found.machine, found.lost) == (f"{GUID_TEXT}-4", None, None, ())
    short = identity(MsfWriter([b"", info_stream(GUID, 4)]).render())
    assert (short.id.value, short.dbi_age) == (f"{GUID_TEXT}-4", None)


def test_dbi_stream_without_its_header_is_lost_with_a_sentence() -> None:
    found = identity(MsfWriter([b"", info_stream(GUID, 4), b"", b"x" * 80]).render())
    assert found.id.value == f"{GUID_TEXT}-4"
    assert "info stream" in found.lost[0]


def test_info_stream_of_an_old_linker_has_a_signature_instead_of_a_guid() -> None:
    old = info_stream(GUID, 5, version=19970604, signature=0x3C7F9A11)[:12]
    found = identity(MsfWriter([b"", old, b"", dbi_stream(2, 0x14C)]).render())
    assert (found.id, found.guid) == (ImageId(IdKind.PDB20, "3c7f9a11-2"), "")
    assert found.agreement(ImageId(IdKind.PDB20, "3c7f9a11-2")) is PdbAgreement.SAME
    assert found.agreement(ImageId(IdKind.PDB20, "3c7f9a11-5")) is PdbAgreement.DIFFERENT
    assert found.agreement(ImageId(IdKind.PDB, f"{GUID_TEXT}-2")) is PdbAgreement.INCOMPARABLE


@pytest.mark.parametrize("pdb_first", [True, False])
def test_portable_pdb_is_guid_and_stamp(pdb_first: bool) -> None:
    found = identity(portable_pdb(GUID, 0xF1E2D3C4, pdb_first=pdb_first))
    assert found.id == ImageId(IdKind.PORTABLE_PDB, f"{GUID_TEXT}-f1e2d3c4")
    assert (found.form, found.info_age, found.dbi_age) == (PdbForm.PORTABLE, None, None)
    assert found.agreement(ImageId(IdKind.PORTABLE_PDB, f"{GUID_TEXT}-f1e2d3c4")) is PdbAgreement.SAME
    assert found.agreement(ImageId(IdKind.PORTABLE_PDB, f"{GUID_TEXT}-00000001")) is PdbAgreement.DIFFERENT
    # A minidump keeps the GUID and a dummy age, never the stamp.
    assert found.agreement(ImageId(IdKind.PDB, f"{GUID_TEXT}-1")) is PdbAgreement.GUID_ONLY
    assert found.agreement(ImageId(IdKind.PDB, f"{'0' * 31}1-1")) is PdbAgreement.DIFFERENT


def test_weak_and_foreign_identities_are_incomparable() -> None:
    found = identity(pdb(GUID, 1, 1))
    zero = identity(pdb(bytes(16), 1, 1))
    assert zero.id.weak
    assert zero.agreement(zero.id) is PdbAgreement.INCOMPARABLE
    for foreign in (
        ImageId(IdKind.GNU, "ab" * 20),
        ImageId(IdKind.CODE, "61234567-3000"),
        ImageId(IdKind.PDB20, "1-1"),
    ):
        assert found.agreement(foreign) is PdbAgreement.INCOMPARABLE


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Microsoft C/C++ program database 2.00\r\n\x1aJG\0\0" + bytes(100), "MSF 2.00"),
        (b"MSCF" + bytes(40), "cabinet"),
        (portable_pdb(GUID, 1, pdb_first=False, streams=2), "without a #Pdb stream"),
        (b"", "begins like neither"),
        (b"MODULE windows x86 1 x.pdb\n", "begins like neither"),
        (b"Microsoft C/C++ MSF 8.00\r\n" + bytes(100), "begins like neither"),
    ],
)
def test_what_is_no_pdb_that_pmf_reads_is_told(data: bytes, says: str) -> None:
    with pytest.raises(NotPdb, match=says):
        identity(data)


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]


WHOLE = pdb(GUID, 7, 3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (WHOLE[:40], "superblock is cut"),
        (patched(WHOLE, 32, 0), "block size is 0"),
        (patched(WHOLE, 32, 513), "block size is 513"),
        (patched(WHOLE, 44, 0xFFFFFFFF), "claims 4294967295 bytes"),
        (patched(WHOLE, 44, 0), "cut"),
        (patched(WHOLE, 52, 0x7FFFFFFF), "outside the file"),
        (MsfWriter([b"", None, b"", dbi_stream(1)]).render(), "no info stream"),
        (MsfWriter([b""]).render(), "no info stream"),
        (MsfWriter([b"", info_stream(GUID, 1)[:20]]).render(), "cut before its GUID"),
        (b"BSJB" + bytes(8) + b"\xff\xff\xff\x7f", "version claims"),
        (portable_pdb(GUID, 1)[:30], "cut before its streams"),
        (portable_pdb(GUID, 1)[:40], "without an end"),
        (portable_pdb(GUID, 1).replace(b"#Pdb\0", b"#" * 5), "without an end|#Pdb"),
        (portable_pdb(GUID, 1)[:-50], "cut before the end"),
    ],
)
def test_impossible_contents_are_told(data: bytes, says: str) -> None:
    with pytest.raises((BrokenPdb, NotPdb), match=says):
        identity(data)


def test_cut_pdb_keeps_its_identity_and_says_that_it_is_cut() -> None:
    data = WHOLE + bytes(4096)
    longer = patched(data, 40, len(data) // 512 + 8)
    found = identity(longer)
    assert found.id.value == f"{GUID_TEXT}-3"
    assert "is cut" in found.lost[0]


# ---- any bytes


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
        assert "-" in read_pdb_identity(read, len(data)).id.value
    assert read_bytes <= 64 << 10


@settings(max_examples=500, deadline=None)
@given(mutated(pdb(GUID, 7, 3, extra_streams=3), head_bytes=64))
def test_mutated_pdb_ends_in_an_identity_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=500, deadline=None)
@given(mutated(portable_pdb(GUID, 7), head_bytes=80))
def test_mutated_portable_pdb_ends_in_an_identity_or_a_format_error(data: bytes) -> None:
    survives(data)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return windows_build.build(tmp_path_factory.mktemp("linked")).pdb


@pytest.mark.needs(*windows_build.TOOLS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_real_pdb_ends_in_an_identity_or_a_format_error(linked: Path, data: st.DataObject) -> None:
    survives(data.draw(mutated(linked.read_bytes(), head_bytes=56)))


@pytest.mark.needs(*windows_build.TOOLS)
def test_real_pdb_cut_anywhere(linked: Path) -> None:
    data = linked.read_bytes()
    whole = identity(data)
    told = {}
    for length in [*range(0, 4096, 7), *range(4096, len(data), 997)]:
        with contextlib.suppress(FormatError):
            told[length] = identity(data[:length])
    assert {one.id for one in told.values()} <= {whole.id}
    assert all(one.lost for one in told.values())
