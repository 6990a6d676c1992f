"""The identity of every slice of a Mach-O file agrees with LLVM's tools, and no count or length is believed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import BrokenMachO, FormatError, NotMachO
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.macho import (
    MAX_SLICES,
    MH_CORE,
    MH_DSYM,
    MH_DYLIB,
    MH_EXECUTE,
    MH_OBJECT,
    Slice,
    is_macho,
    read_macho_slices,
)
from pmforensics.model.image import IdKind, Unread
from tests import zoo
from tests.formats import mac_build
from tests.formats.mac_build import ARCHES, Build, run, uuids
from tests.formats.macho_writer import ARM, ARM64, I386, PPC, X86_64, CoreWriter, MachWriter, Memory, fat
from tests.formats.mutations import mutated

UUID, OTHER_UUID = bytes(range(1, 17)), bytes(range(2, 18))
NEEDS_LLVM = pytest.mark.needs(*mac_build.TOOLS)
EVERY_LAYOUT = pytest.mark.parametrize(("bits", "big_endian"), [(64, False), (64, True), (32, False), (32, True)])


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def slices(data: bytes) -> list[Slice]:
    return read_macho_slices(*from_bytes(data))


def slices_of(path: Path) -> list[Slice]:
    with path.open("rb") as file:
        return read_macho_slices(
            lambda offset, length: os.pread(file.fileno(), length, offset), os.fstat(file.fileno()).st_size
        )


@dataclass
class Counted:
    """A reader that counts how many bytes it was asked for and gave."""

    data: bytes
    given_bytes: int = 0

    def read(self, offset: int, length: int) -> bytes:
        out = self.data[offset : offset + length]
        self.given_bytes += len(out)
        return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    folder = tmp_path_factory.mktemp("built")
    return {arch: mac_build.build(folder / arch, arch) for arch in ARCHES}


@pytest.fixture(scope="module")
def joined(built: dict[str, Build], tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("joined")
    return Build(
        mac_build.join(folder / "ask", *(one.program for one in built.values())),
        mac_build.join(folder / "libanswer.dylib", *(one.library for one in built.values())),
    )


# ---- real files


@NEEDS_LLVM
@pytest.mark.parametrize("arch", ARCHES)
def test_thin_file_has_the_uuid_that_dwarfdump_says(built: dict[str, Build], arch: str) -> None:
    for path, file_type in ((built[arch].program, MH_EXECUTE), (built[arch].library, MH_DYLIB)):
        (one,) = slices_of(path)
        assert {one.arch: one.uuid} == uuids(path)
        assert (one.file_type, one.offset, one.unread, one.lost) == (file_type, 0, None, ())
        assert one.declared_bytes == path.stat().st_size


@NEEDS_LLVM
def test_fat_file_has_every_slice_that_lipo_and_dwarfdump_say(joined: Build) -> None:
    for path in (joined.program, joined.library):
        found = slices_of(path)
        assert {one.arch: one.uuid for one in found} == uuids(path)
        assert [one.arch for one in found] == run(mac_build.LIPO, "-archs", path).split()
        said = run(mac_build.OTOOL, "-f", path)
        places, sizes = (map(int, re.findall(rf"^ +{word} (\d+)$", said, re.MULTILINE)) for word in ("offset", "size"))
        assert [(one.offset, one.declared_bytes) for one in found] == list(zip(places, sizes, strict=True))


@NEEDS_LLVM
def test_fat_header_with_64_bit_offsets(built: dict[str, Build], tmp_path: Path) -> None:
    pieces = ((X86_64, built["x86_64"].program.read_bytes()), (ARM64, built["arm64"].program.read_bytes()))
    path = tmp_path / "wide"
    path.write_bytes(fat(*pieces, wide=True))
    assert {one.arch: one.uuid for one in slices_of(path)} == uuids(path)
    assert len(uuids(path)) == 2


@NEEDS_LLVM
@pytest.mark.parametrize("wide", [False, True])
def test_swapped_fat_header_is_read_as_the_plain_one(built: dict[str, Build], wide: bool) -> None:
    pieces = ((X86_64, built["x86_64"].program.read_bytes()), (ARM64, built["arm64"].program.read_bytes()))
    assert slices(fat(*pieces, wide=wide, big_endian=False)) == slices(fat(*pieces, wide=wide))


@NEEDS_LLVM
def test_dsym_of_a_fat_program_matches_it_slice_by_slice(joined: Build, tmp_path: Path) -> None:
    inner = mac_build.dsym(joined.program, tmp_path / "ask.dSYM")
    found = slices_of(inner)
    assert {one.arch: one.uuid for one in found} == uuids(inner)
    assert {one.arch: one.ids() for one in found} == {one.arch: one.ids() for one in slices_of(joined.program)}
    assert all(one.file_type == MH_DSYM and one.has_dwarf and not one.lost for one in found)
    assert not any(one.has_dwarf for one in slices_of(joined.program))


@NEEDS_LLVM
def test_dsym_of_another_link_matches_in_no_slice(joined: Build, tmp_path: Path) -> None:
    other = [mac_build.build(tmp_path / arch, arch, number=1).library for arch in ARCHES]
    stale = mac_build.dsym(mac_build.join(tmp_path / "libanswer.dylib", *other), tmp_path / "stale.dSYM")
    ours = {one.uuid for one in slices_of(joined.library)}
    theirs = {one.uuid for one in slices_of(stale)}
    assert len(ours) == len(theirs) == 2
    assert not ours & theirs


@NEEDS_LLVM
def test_dsym_without_debug_information_is_told_apart(tmp_path: Path) -> None:
    program = mac_build.build(tmp_path / "bare", "arm64", debug=False).program
    inner = mac_build.dsym(program, tmp_path / "bare.dSYM")
    (one,) = slices_of(inner)
    assert one.ids() == slices_of(program)[0].ids()
    assert not one.has_dwarf
    assert ".debug_info contents:\n\n" in run(mac_build.DWARFDUMP, "--debug-info", inner) + "\n\n"


@NEEDS_LLVM
def test_object_file_has_no_uuid_but_debug_information(built: dict[str, Build]) -> None:
    path = built["arm64"].program.parent / "main.o"
    (one,) = slices_of(path)
    assert (one.uuid, one.unread, one.ids(), one.lost) == (None, Unread.NO_ID, (), ())
    assert (one.file_type, one.has_dwarf) == (MH_OBJECT, True)
    assert uuids(path) == {}


@NEEDS_LLVM
def test_versions_and_names_are_what_otool_says(built: dict[str, Build]) -> None:
    path = built["arm64"].library
    (one,) = slices_of(path)
    said = run(mac_build.OTOOL, "-l", path)
    found = {
        name: re.search(rf"^ *{words} (\S+)", said, re.MULTILINE)
        for name, words in {"minos": "minos", "sdk": "sdk", "name": "name", "version": "current version"}.items()
    }
    assert one.install_name == found["name"][1] == "/opt/answer/libanswer.dylib"
    assert one.says["dylib_version"] == found["version"][1] == "1.2.3"
    assert one.says["platform"] == f"macos {found['minos'][1]} (SDK {found['sdk'][1]})" == "macos 11.0 (SDK 11.3)"
    assert one.symbols == int(re.search(r"nsyms (\d+)", said)[1]) > 0


@NEEDS_LLVM
@pytest.mark.needs(mac_build.AR)
def test_fat_archive_is_named_as_what_it_is(built: dict[str, Build], tmp_path: Path) -> None:
    archives = []
    for arch in ARCHES:
        archives.append(tmp_path / f"{arch}.a")
        run(mac_build.AR, "rcs", archives[-1], built[arch].program.parent / "main.o")
    with pytest.raises(BrokenMachO, match="archive of object files"):
        slices_of(mac_build.join(tmp_path / "both.a", *archives))


@NEEDS_LLVM
@pytest.mark.parametrize("part", ["program", "library"])
def test_real_file_cut_anywhere_tells_the_truth_or_that_it_is_cut(
    joined: Build, built: dict[str, Build], part: str
) -> None:
    thin = getattr(built["arm64"], part).read_bytes()
    whole = slices(thin)[0].uuid
    told = set()
    for length in (*range(4096), *range(4096, len(thin), 97)):
        try:
            (one,) = slices(thin[:length])
        except FormatError:
            assert length < 32
            continue
        assert one.lost
        assert one.uuid in (None, whole)
        assert (one.uuid is None) == (one.unread is Unread.TRUNCATED)
        told.add(one.uuid)
    assert told == {None, whole}


@NEEDS_LLVM
def test_cut_slice_does_not_hide_the_whole_one(joined: Build) -> None:
    data = joined.program.read_bytes()
    whole = slices(data)
    first, second = slices(data[: whole[1].offset + 20])
    assert first == whole[0]
    assert (second.arch, second.uuid, second.unread) == (whole[1].arch, None, Unread.TRUNCATED)
    assert second.lost
    first, second = slices(data[: whole[1].offset])
    assert first == whole[0]
    assert second.lost == (f"The {second.arch} slice begins beyond the end of the file.",)


# ---- Go


def go(folder: Path, *flags: str, arch: str = "arm64", module: str = "") -> Path:
    """A Go program for macOS."""
    folder.mkdir(exist_ok=True)
    (folder / "hello.go").write_text('package main\n\nfunc main() { println("hello' + module + '") }\n')
    (folder / "go.mod").write_text("module example.com/hello\n\ngo 1.21\n")
    settings_of_go = {
        "GOOS": "darwin", "GOARCH": arch, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOPROXY": "off",
        "GOFLAGS": "-buildvcs=false", "GOCACHE": str(zoo.REPO / ".cache" / "go-build"),
    }  # fmt: skip
    command = [zoo.get_tool("go"), "build", *flags, "-o", "hello", "."]
    ran = subprocess.run(command, cwd=folder, env=os.environ | settings_of_go, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder / "hello"


@pytest.mark.needs("go", mac_build.DWARFDUMP)
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_go_program_has_uuid_and_the_build_id_that_go_says(tmp_path: Path, arch: str) -> None:
    path = go(tmp_path / "go", arch=arch)
    (one,) = slices_of(path)
    assert {one.arch: one.uuid} == uuids(path)
    assert [identity.kind for identity in one.ids()] == [IdKind.UUID, IdKind.GO]
    assert one.ids()[1].value == run(zoo.get_tool("go"), "tool", "buildid", path).strip()
    assert not any(identity.weak for identity in one.ids())
    version = run(zoo.get_tool("go"), "version", "-m", path)
    assert version.startswith(f"{path}: {one.says['go_version']}\n")
    assert f"\tpath\t{one.says['go_path']}\n" in version
    assert one.says["go_module"].startswith("example.com/hello")


@pytest.mark.needs("go", mac_build.DWARFDUMP)
def test_go_program_without_uuid_is_known_by_its_build_id(tmp_path: Path) -> None:
    path = go(tmp_path / "go", "-ldflags=-B=none")
    (one,) = slices_of(path)
    assert uuids(path) == {}
    assert (one.uuid, one.unread) == (None, Unread.NO_ID)
    (identity,) = one.ids()
    assert (identity.kind, identity.weak) == (IdKind.GO, "")
    assert identity.value == run(zoo.get_tool("go"), "tool", "buildid", path).strip()


@pytest.mark.needs("go")
def test_redacted_go_ids_are_weak_because_different_programs_share_them(tmp_path: Path) -> None:
    one, other = (
        slices_of(go(tmp_path / name, "-ldflags=-buildid=redacted", module=name))[0].ids() for name in ("one", "other")
    )
    assert (tmp_path / "one" / "hello").read_bytes() != (tmp_path / "other" / "hello").read_bytes()
    assert one == other
    assert len(one) == 2
    assert all("redacted" in identity.weak for identity in one)


@pytest.mark.parametrize("uuid", ["498919aff0013836e249403a2544fba2", "498919aff0013836a249403a2544fba2"])
def test_uuid_of_redacted_is_weak_for_every_version_of_go(uuid: str) -> None:
    (identity,) = slices(MachWriter().uuid(bytes.fromhex(uuid)).render())[0].ids()
    assert "redacted" in identity.weak


# ---- what no linker here writes


@EVERY_LAYOUT
def test_every_layout(bits: int, big_endian: bool) -> None:
    form = MachWriter(bits, big_endian, cpu=PPC if big_endian else ARM)
    form.segment("__TEXT", 0x1000, 0x1000).dylib("/opt/liba.dylib", 0x20301).uuid(UUID)
    (one,) = slices(form.render())
    assert (one.uuid, one.install_name, one.says["dylib_version"]) == (UUID.hex(), "/opt/liba.dylib", "2.3.1")
    assert one.arch == ("ppc" if big_endian else "armv7")
    assert one.lost == ()


@pytest.mark.needs(mac_build.DWARFDUMP)
@pytest.mark.parametrize(("cpu", "bits"), [(X86_64, 64), (ARM64, 64), (I386, 32), (ARM, 32)])
def test_writer_writes_what_dwarfdump_reads(tmp_path: Path, cpu: tuple[int, int], bits: int) -> None:
    path = tmp_path / "written"
    path.write_bytes(MachWriter(bits, cpu=cpu).segment("__TEXT", 0x1000, 0x1000).uuid(UUID).render())
    (one,) = slices_of(path)
    assert {one.arch: one.uuid} == uuids(path) == {one.arch: UUID.hex()}


def test_zero_uuid_is_weak() -> None:
    (identity,) = slices(MachWriter().uuid(bytes(16)).render())[0].ids()
    assert identity.value == "0" * 32
    assert "zeros" in identity.weak


def test_second_uuid_is_told_and_the_first_believed() -> None:
    (one,) = slices(MachWriter().uuid(UUID).uuid(OTHER_UUID).render())
    assert one.uuid == UUID.hex()
    assert OTHER_UUID.hex() in one.lost[0]


def test_x86_64h_and_arm64e_are_slices_of_their_own() -> None:
    haswell, authenticated = (X86_64[0], 8), (ARM64[0], 0x80000002)
    pieces = [
        (cpu, MachWriter(cpu=cpu).uuid(bytes([n]) * 16).render())
        for n, cpu in enumerate((X86_64, haswell, ARM64, authenticated), 1)
    ]
    found = slices(fat(*pieces))
    assert [(one.arch, one.uuid) for one in found] == [
        ("x86_64", "01" * 16), ("x86_64h", "02" * 16), ("arm64", "03" * 16), ("arm64e", "04" * 16),
    ]  # fmt: skip


def test_table_that_disagrees_with_a_header_is_told() -> None:
    (one,) = slices(fat((ARM64, MachWriter(cpu=X86_64).uuid(UUID).render())))
    assert (one.arch, one.uuid) == ("x86_64", UUID.hex())
    assert "calls arm64" in one.lost[0]


def test_broken_slice_does_not_hide_the_others() -> None:
    broken = MachWriter(command_bytes=4, count=9).uuid(UUID).render()
    good = MachWriter(cpu=X86_64).uuid(UUID).render()
    first, second, third = slices(fat((ARM64, broken), (X86_64, good), (PPC, b"nothing at all" * 9)))
    assert (first.unread, third.unread) == (Unread.BROKEN, Unread.BROKEN)
    assert first.lost
    assert third.lost
    assert second.uuid == UUID.hex()


def test_core_is_recognised_without_reading_its_commands() -> None:
    core = CoreWriter(memory=[Memory(page << 12, b"") for page in range(20_000)]).render()
    reader = Counted(core)
    (one,) = read_macho_slices(reader.read, len(core))
    assert one.file_type == MH_CORE
    assert reader.given_bytes < 1000


# ---- Java


@pytest.mark.parametrize("version", [45, 46, 52, 61, 69, 200])
def test_java_class_is_no_fat_file(version: int) -> None:
    head = b"\xca\xfe\xba\xbe\0\0" + version.to_bytes(2, "big")
    assert not is_macho(head)
    with pytest.raises(NotMachO, match=rf"Java class \(version {version}\)"):
        slices(head + bytes(200))


@pytest.mark.parametrize("minor", [3, 0xFFFF])
def test_java_class_with_a_minor_version_is_no_fat_file(minor: int) -> None:
    head = b"\xca\xfe\xba\xbe" + minor.to_bytes(2, "big") + b"\0\x2d"
    assert not is_macho(head)
    with pytest.raises(NotMachO, match="version 45"):
        slices(head)


@pytest.mark.needs("jdk")
def test_class_of_a_real_compiler_is_no_fat_file(tmp_path: Path) -> None:
    (tmp_path / "Hello.java").write_text("class Hello {}\n")
    home = zoo.jdk()
    assert home is not None
    run(home / "bin" / "javac", "Hello.java", cwd=tmp_path)
    data = (tmp_path / "Hello.class").read_bytes()
    assert not is_macho(data[:64])
    with pytest.raises(NotMachO, match="Java class"):
        slices(data)


def test_fat_file_of_as_many_slices_as_can_be_is_read() -> None:
    piece = MachWriter().uuid(UUID).render()
    data = fat(*[(ARM64, piece)] * MAX_SLICES)
    assert is_macho(data)
    assert len(slices(data)) == MAX_SLICES


# ---- hostile


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotMachO),
        (b"\xcf\xfa\xed", NotMachO),
        (b"\x7fELF" + bytes(60), NotMachO),
        (b"\xcf\xfa\xed\xfe" + bytes(20), BrokenMachO),
        (b"\xca\xfe\xba\xbe\0\0", BrokenMachO),
        (b"\xca\xfe\xba\xbe" + bytes(4), BrokenMachO),
        (b"\xca\xfe\xba\xbe\0\0\0\2" + bytes(39), BrokenMachO),
        (fat((ARM64, b"")), BrokenMachO),
        (MachWriter(count=1 << 31).render(), BrokenMachO),
        (MachWriter(command_bytes=1 << 31).render(), BrokenMachO),
    ],
)
def test_what_is_no_mach_o_file_is_said_in_a_sentence(data: bytes, error: type[FormatError]) -> None:
    with pytest.raises(error, match=r"[a-z]\.$"):
        slices(data)


@pytest.mark.parametrize("length", [0, 7, 0x7FFFFFFF])
def test_command_of_impossible_length_ends_the_reading(length: int) -> None:
    form = MachWriter().uuid(UUID)
    form.commands += [form.number(0x2A) + form.number(length) + bytes(8), form.commands[0]]
    (one,) = slices(form.render())
    assert one.uuid == UUID.hex()
    assert f"claims {length} bytes" in one.lost[0]
    form.commands = form.commands[1:]
    (one,) = slices(form.render())
    assert (one.uuid, one.unread) == (None, Unread.BROKEN)


def test_commands_cut_off_by_the_end_are_truncated_and_not_absent() -> None:
    form = MachWriter().segment("__TEXT", 0, 0x1000).uuid(UUID)
    (one,) = slices(form.render()[:-8])
    assert (one.uuid, one.unread) == (None, Unread.TRUNCATED)


def test_long_command_is_stepped_over() -> None:
    form = MachWriter().command(0x4, bytes(200_000)).uuid(UUID)
    (one,) = slices(form.render())
    assert (one.uuid, one.lost) == (UUID.hex(), ())


def test_many_slices_at_one_place_cost_no_more_than_their_bound() -> None:
    form = MachWriter()
    form.commands = [form.number(0x2B) + form.number(8)] * 20_000
    piece = form.uuid(UUID).render()
    data = bytearray(fat(*[(ARM64, b"")] * MAX_SLICES) + piece)
    place = len(data) - len(piece)
    for index in range(MAX_SLICES):
        entry = 8 + index * 20
        data[entry + 8 : entry + 16] = place.to_bytes(4, "big") + len(piece).to_bytes(4, "big")
    reader = Counted(bytes(data))
    found = read_macho_slices(reader.read, len(data))
    assert {one.uuid for one in found} == {UUID.hex()}
    assert reader.given_bytes <= MAX_SLICES * 2 * (len(piece) + 1000)


def survives(data: bytes) -> None:
    reader = Counted(data)
    with contextlib.suppress(NotMachO, BrokenMachO):
        found = read_macho_slices(reader.read, len(data))
        assert 1 <= len(found) <= MAX_SLICES
        for one in found:
            assert one.uuid is None or len(one.uuid) == 32
            assert (one.uuid is None) == (one.unread is not None)
            assert all(identity.value for identity in one.ids())
    json.dumps(is_macho(data[:8]))


SMALL = (
    MachWriter()
    .segment("__TEXT", 0x1000, 0x1000, 0, 0x200)
    .dylib("/opt/liba.dylib")
    .command(0x32, bytes(16))
    .command(0x2A, bytes(range(8)))
    .uuid(UUID)
    .render()
)


@settings(max_examples=500, deadline=None)
@given(mutated(SMALL))
def test_mutated_file_ends_in_slices_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=300, deadline=None)
@given(mutated(fat((ARM64, SMALL), (X86_64, SMALL), wide=True), head_bytes=100))
def test_mutated_fat_file_ends_in_slices_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xce", b"\xca\xfe\xba\xbe\0\0\0", b"\xbf\xba\xfe\xca\1"]),
    st.binary(max_size=300),
)
def test_any_bytes_behind_a_magic_end_in_slices_or_a_format_error(magic: bytes, tail: bytes) -> None:
    survives(magic + tail)


@NEEDS_LLVM
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_real_file_ends_in_slices_or_a_format_error(joined: Build, data: st.DataObject) -> None:
    survives(data.draw(mutated(joined.library.read_bytes(), head_bytes=5000)))


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return go(tmp_path_factory.mktemp("go") / "fuzzed").read_bytes()


@pytest.mark.needs("go")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_go_program_ends_in_slices_or_a_format_error(go_program: bytes, data: st.DataObject) -> None:
    survives(data.draw(mutated(go_program)))
