"""Links to debug files and what a file holds agree with readelf, gdb, eu-readelf and LLVM, for every toolchain here."""

from __future__ import annotations

import contextlib
import re
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import BrokenElf, FormatError, NotElf
from pmforensics.formats.debuglink import (
    CHUNK_BYTES,
    AltLink,
    DebugKind,
    DebugLinks,
    Split,
    crc32_of,
    iter_chunks,
    read_debug_kind,
    read_debug_links,
)
from pmforensics.formats.elf import DebugLink, ReadAt, read_elf_identity
from tests.formats.elf_writer import ElfWriter, Section, Segment
from tests.formats.mutations import mutated

PROGBITS, NOBITS, NOTE, SYMTAB, DYNSYM, RELA = 1, 8, 7, 2, 11, 4
ONE = """\
struct order { int id; long cents; struct order *next; };
static int sum(struct order *first) { int all = 0; for (; first; first = first->next) all += first->cents; return all; }
int other(struct order *);
int main(int argc, char **argv) { struct order one = {argc, 250, 0}; return argv == 0 ? 0 : sum(&one) + other(&one); }
"""
TWO = """\
struct order { int id; long cents; struct order *next; };
int other(struct order *given) { return given->id * 2; }
"""


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def kind_of(path: Path) -> DebugKind:
    return read_debug_kind(*from_bytes(path.read_bytes()))


def links_of(path: Path) -> DebugLinks:
    return read_debug_links(*from_bytes(path.read_bytes()))


def build_id(path: Path) -> str | None:
    return read_elf_identity(*from_bytes(path.read_bytes())).gnu_build_id


def run(*command: str | Path, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="backslashreplace", timeout=300)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "one.c").write_text(ONE)
    (folder / "two.c").write_text(TWO)
    return folder


Compile = Callable[..., Path]


@pytest.fixture
def compiled(sources: Path, tmp_path: Path) -> Compile:
    """compiled("name", "-gz", ...): a program of both sources."""

    def build(name: str, *flags: str, compiler: str = "gcc") -> Path:
        for source in ("one.c", "two.c"):
            (tmp_path / source).write_text((sources / source).read_text())
        run(compiler, "-g", "-Wl,--build-id", *flags, "one.c", "two.c", "-o", name, cwd=tmp_path)
        return tmp_path / name

    return build


# ---- links


@pytest.mark.needs("gcc", "objcopy", "eu-strip", "readelf")
@pytest.mark.parametrize("maker", ["objcopy", "eu-strip"])
def test_debug_link_is_what_readelf_says_and_its_crc_that_of_the_file(
    compiled: Compile, tmp_path: Path, maker: str
) -> None:
    program, debug = compiled("program"), tmp_path / "program.debug"
    if maker == "objcopy":
        run("objcopy", "--only-keep-debug", program, debug)
        run("objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", program)
    else:
        run("eu-strip", "-f", "program.debug", "program", cwd=tmp_path)
    found = links_of(program)
    said = run("readelf", "--debug-dump=links", program)
    name = re.search(r"Separate debug info file: (\S+)", said)
    crc = re.search(r"CRC value: (0x[0-9a-f]+)", said)
    assert name is not None
    assert crc is not None
    assert found == DebugLinks(DebugLink(name[1], int(crc[1], 16)), None)
    assert crc32_of(iter_chunks(*from_bytes(debug.read_bytes()))) == int(crc[1], 16)
    assert links_of(debug) == DebugLinks(None, None)


@pytest.mark.needs("gcc", "objcopy", "gdb")
@pytest.mark.parametrize("touched", [False, True])
def test_gdb_takes_a_debug_file_by_the_same_crc(compiled: Compile, tmp_path: Path, touched: bool) -> None:
    """Without a build ID, the CRC is all there is; rewriting the debug file breaks it."""
    program, debug = compiled("program", "-Wl,--build-id=none"), tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    run("objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", program)
    if touched:
        run("objcopy", "--add-section=.note=/dev/null", debug)
    link = links_of(program).debuglink
    assert link is not None
    ours = link.crc32 == crc32_of(iter_chunks(*from_bytes(debug.read_bytes())))
    ran = subprocess.run(
        ["gdb", "--batch", "-nx", "-ex", "info line sum", str(program)], capture_output=True, text=True
    )
    gdbs = "one.c" in ran.stdout
    assert ours == gdbs == (not touched)


@pytest.mark.needs("gcc", "dwz", "readelf")
def test_alternate_link_leads_by_build_id(compiled: Compile, tmp_path: Path) -> None:
    first, second = compiled("first", "-O1"), compiled("second", "-O2")
    run("dwz", "-m", "common.debug", "first", "second", cwd=tmp_path)
    said = run("readelf", "--debug-dump=links", first)
    expected = re.search(r"Build-ID \(0x[0-9a-f]+ bytes\):\s+((?:[0-9a-f]{2}\s+)+)", said)
    assert expected is not None
    written = "".join(expected[1].split())
    for program in (first, second):
        assert links_of(program).altlink == AltLink("common.debug", written)
    assert build_id(tmp_path / "common.debug") == written
    common = kind_of(tmp_path / "common.debug")
    assert (common.debug_only, common.dwarf, common.code, common.lost) == (True, True, False, ())


@pytest.mark.parametrize("chunk_bytes", [1, 7, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_crc_does_not_depend_on_the_chunks(chunk_bytes: int) -> None:
    data = bytes(range(256)) * 5000 if chunk_bytes > 7 else bytes(range(256)) * 20
    assert crc32_of(data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)) == zlib.crc32(data)
    assert b"".join(iter_chunks(*from_bytes(data))) == data


def test_crc_of_a_file_that_shrinks_while_it_is_read_ends() -> None:
    assert list(iter_chunks(lambda offset, length: b"abc"[offset : offset + length], 1 << 40)) == [b"abc"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".gnu_debuglink", b""),
        (".gnu_debuglink", b"program.debug"),
        (".gnu_debuglink", b"program.debug\0\0\0\1\2\3"),
        (".gnu_debuglink", b"\0\0\0\0\1\2\3\4"),
        (".gnu_debuglink", b"x" * 5000 + bytes(8)),
        (".gnu_debugaltlink", b"common.debug"),
        (".gnu_debugaltlink", b"common.debug\0"),
        (".gnu_debugaltlink", b"\0" + bytes(20)),
        (".gnu_debugaltlink", b"common.debug\0" + bytes(65)),
    ],
)
def test_link_that_is_cut_is_told(name: str, content: bytes) -> None:
    found = read_debug_links(*from_bytes(ElfWriter(sections=[Section(name, PROGBITS, content)]).render()))
    assert (found.debuglink, found.altlink) == (None, None)
    assert name in found.lost[0]


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("bits", [32, 64])
def test_links_of_every_layout(bits: int, big_endian: bool) -> None:
    writer = ElfWriter(bits=bits, big_endian=big_endian)
    crc = writer.number(0x12345678, 4)
    writer.sections = [
        Section(".gnu_debuglink", PROGBITS, b"x.debug\0" + crc),
        Section(".gnu_debugaltlink", PROGBITS, b"../y.debug\0" + bytes(range(20))),
    ]
    found = read_debug_links(*from_bytes(writer.render()))
    assert found == DebugLinks(DebugLink("x.debug", 0x12345678), AltLink("../y.debug", bytes(range(20)).hex()))


# ---- kinds


def section_names(path: Path) -> dict[str, str]:
    """Type of every section by name, in the words of readelf."""
    rows = re.findall(r"^ +\[ *\d+\] (\S+) +(\S+) +[0-9a-f]{16}", run("readelf", "-SW", path), re.MULTILINE)
    assert rows
    return dict(rows)


@pytest.mark.needs("gcc", "objcopy", "readelf", "eu-strip")
def test_program_debug_file_and_what_is_between_are_told_apart(compiled: Compile, tmp_path: Path) -> None:
    whole = compiled("whole")
    for name, *flags in (
        ("debug", "--only-keep-debug"),
        ("stripped", "--strip-all"),
        ("no-debug", "--strip-debug"),
    ):
        run("objcopy", *flags, whole, tmp_path / name)
    run("cp", whole, tmp_path / "eu")
    run("eu-strip", "-f", "eu-debug", "eu", cwd=tmp_path)
    kinds = {name: kind_of(tmp_path / name) for name in ("whole", "debug", "stripped", "no-debug", "eu", "eu-debug")}
    assert all(kind.lost == () for kind in kinds.values())
    assert {name for name, kind in kinds.items() if kind.debug_only} == {"debug", "eu-debug"}
    assert {name for name, kind in kinds.items() if kind.code} == {"whole", "stripped", "no-debug", "eu"}
    assert {name for name, kind in kinds.items() if kind.stripped} == {"stripped", "eu"}
    for name, kind in kinds.items():
        types = section_names(tmp_path / name)
        assert kind.dwarf == (types.get(".debug_info") == "PROGBITS")
        assert kind.symtab == (".symtab" in types)
        assert kind.dynsym == (types.get(".dynsym") == "DYNSYM")
        assert kind.code == (types[".text"] == "PROGBITS")
        assert kind.debug_only == (types[".text"] == "NOBITS")


@pytest.mark.needs("gcc", "objcopy", "readelf")
def test_program_headers_of_a_debug_file_are_not_believed(compiled: Compile, tmp_path: Path) -> None:
    program, debug = compiled("program"), tmp_path / "debug"
    run("objcopy", "--only-keep-debug", program, debug)
    assert re.search(r"LOAD .* R E ", run("readelf", "-lW", debug))
    assert not kind_of(debug).code


@pytest.mark.needs("gcc", "objcopy")
@pytest.mark.parametrize(
    ("flags", "packing"),
    [(("-gz=zlib",), ""), (("-gz=zlib-gnu",), ""), ((), "zlib"), ((), "zlib-gnu"), ((), "zstd")],
)
def test_packed_debug_information(compiled: Compile, flags: tuple[str, ...], packing: str) -> None:
    program = compiled("program", *flags)
    if packing:
        run("objcopy", f"--compress-debug-sections={packing}", program)
    kind = kind_of(program)
    assert (kind.dwarf, kind.compressed, kind.stripped, kind.lost) == (True, True, False, ())
    run("objcopy", "--decompress-debug-sections", program)
    assert not kind_of(program).compressed


@pytest.mark.needs("gcc", "objcopy", "xz")
def test_mini_debug_information_is_no_symbol_table(compiled: Compile, tmp_path: Path) -> None:
    program = compiled("program")
    run("objcopy", "--strip-debug", program, tmp_path / "mini")
    run("xz", "mini", cwd=tmp_path)
    run("objcopy", "--strip-all", "--add-section=.gnu_debugdata=mini.xz", "program", cwd=tmp_path)
    kind = kind_of(program)
    assert (kind.mini, kind.symtab, kind.dwarf, kind.stripped, kind.code) == (True, False, False, True, True)


@pytest.mark.needs("gcc", "eu-strip")
def test_program_without_section_headers_is_known_by_its_segments(compiled: Compile, tmp_path: Path) -> None:
    program = compiled("program")
    run("eu-strip", "--strip-sections", "program", cwd=tmp_path)
    kind = kind_of(program)
    assert (kind.code, kind.debug_only, kind.stripped, kind.lost) == (True, False, True, ())


@pytest.mark.needs("readelf")
def test_system_libraries_are_what_readelf_says() -> None:
    folder = Path("/usr/lib/x86_64-linux-gnu")
    files = sorted(path for path in folder.glob("*.so.*") if path.is_file() and path.stat().st_size < 8 << 20)[:60]
    elves = [path for path in files if path.open("rb").read(4) == b"\x7fELF"]
    if len(elves) < 20:
        pytest.skip("needs: libraries of the system")
    for path in elves:
        types = section_names(path)
        kind = kind_of(path)
        assert kind.code == (types.get(".text") == "PROGBITS")
        assert not kind.debug_only
        assert kind.symtab == (".symtab" in types)
        assert kind.dwarf == (types.get(".debug_info") == "PROGBITS")
        assert (links_of(path).debuglink is not None) == (".gnu_debuglink" in types)


# ---- split DWARF


def dwo_ids(path: Path) -> set[str]:
    """In the words of llvm-dwarfdump."""
    said = run("llvm-dwarfdump", "--debug-info", path)
    return set(re.findall(r"(?:DWO_id = 0x|DW_AT_GNU_dwo_id\s+\(0x)([0-9a-f]{16})", said))


@pytest.mark.needs("gcc", "llvm-dwarfdump")
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("packing", [(), ("-gz=zlib",)])
def test_split_units_are_what_dwarfdump_says(
    compiled: Compile, tmp_path: Path, version: int, packing: tuple[str, ...]
) -> None:
    program = compiled("program", "-gsplit-dwarf", f"-gdwarf-{version}", *packing)
    kind = kind_of(program)
    assert (kind.split, kind.lost) == (Split.SKELETON, ())
    assert set(kind.dwo_ids) == dwo_ids(program)
    assert len(kind.dwo_ids) == 2
    pieces = sorted(tmp_path.glob("*.dwo"))
    assert len(pieces) == 2
    for piece in pieces:
        kind_of_piece = kind_of(piece)
        assert (kind_of_piece.split, kind_of_piece.debug_only, kind_of_piece.dwarf) == (Split.DWO, True, True)
        assert set(kind_of_piece.dwo_ids) == dwo_ids(piece)
        assert build_id(piece) is None
    assert {one for piece in pieces for one in kind_of(piece).dwo_ids} == set(kind.dwo_ids)


@pytest.mark.needs("gcc", "clang", "llvm-dwarfdump", "llvm-dwp", "dwp")
# Not llvm-dwp 14 on what gcc 12 writes for DWARF 5: it never ends.
@pytest.mark.parametrize(
    ("compiler", "version", "packer"), [("gcc", 4, "dwp"), ("clang", 4, "llvm-dwp"), ("clang", 5, "llvm-dwp")]
)
def test_packaged_split_units_are_those_of_the_program(
    compiled: Compile, tmp_path: Path, compiler: str, version: int, packer: str
) -> None:
    program = compiled("program", "-gsplit-dwarf", f"-gdwarf-{version}", compiler=compiler)
    run(packer, "-e", "program", "-o", "program.dwp", cwd=tmp_path)
    package = kind_of(tmp_path / "program.dwp")
    assert (package.split, package.debug_only, package.lost) == (Split.DWP, True, ())
    said = run("llvm-dwarfdump", "--debug-cu-index", tmp_path / "program.dwp")
    assert set(package.dwo_ids) == set(re.findall(r"^ +\d+ 0x([0-9a-f]{16})", said, re.MULTILINE))
    assert package.dwo_ids == kind_of(program).dwo_ids


@pytest.mark.needs("clang", "llvm-dwarfdump")
@pytest.mark.parametrize("version", [4, 5])
def test_split_units_of_clang(compiled: Compile, version: int) -> None:
    program = compiled("program", "-gsplit-dwarf", f"-gdwarf-{version}", compiler="clang")
    kind = kind_of(program)
    assert (kind.split, set(kind.dwo_ids), len(kind.dwo_ids)) == (Split.SKELETON, dwo_ids(program), 2)


@pytest.mark.needs("clang", "gcc", "llvm-dwarfdump")
@pytest.mark.parametrize("compiler", ["clang", "gcc"])
@pytest.mark.parametrize("version", [4, 5])
def test_program_that_is_not_split_has_no_split_units(compiled: Compile, compiler: str, version: int) -> None:
    program = compiled("program", f"-gdwarf-{version}", compiler=compiler)
    kind = kind_of(program)
    assert (kind.split, kind.dwo_ids, kind.dwarf, dwo_ids(program)) == (Split.NONE, (), True, set())


# ---- what no toolchain here writes


def unit_5(writer: ElfWriter, unit_type: int, identity: int, *, wide: bool = False) -> bytes:
    width = 8 if wide else 4
    content = writer.number(5, 2) + bytes([unit_type, 8]) + writer.number(0, width) + writer.number(identity, 8)
    head = b"\xff\xff\xff\xff" if wide else b""
    return head + writer.number(len(content), width) + content


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_units_of_both_widths_and_byte_orders(big_endian: bool, wide: bool) -> None:
    writer = ElfWriter(big_endian=big_endian)
    units = unit_5(writer, 4, 0xA1, wide=wide) + unit_5(writer, 1, 0xB2, wide=wide) + unit_5(writer, 4, 0xC3)
    writer.sections = [Section(".debug_info", PROGBITS, units), Section(".debug_addr", PROGBITS, b"x")]
    kind = read_debug_kind(*from_bytes(writer.render()))
    assert (kind.split, kind.lost) == (Split.SKELETON, ())
    assert kind.dwo_ids == ("00000000000000a1", "00000000000000c3")


@pytest.mark.parametrize(
    "content", [b"\1\2\3", b"\xf0\xff\xff\xff" + bytes(40), bytes(40), b"\x10\0\0\0\x63\0" + bytes(40)]
)
def test_units_that_make_no_sense_are_told(content: bytes) -> None:
    sections = [Section(".debug_info", PROGBITS, content), Section(".debug_addr", PROGBITS, b"x")]
    kind = read_debug_kind(*from_bytes(ElfWriter(sections=sections).render()))
    assert kind.dwo_ids == ()
    assert "make no sense" in kind.lost[0]


def test_units_before_the_cut_are_kept() -> None:
    writer = ElfWriter()
    units = unit_5(writer, 4, 0xA1) + unit_5(writer, 4, 0xB2)[:9]
    writer.sections = [Section(".debug_info", PROGBITS, units), Section(".debug_addr", PROGBITS, b"x")]
    kind = read_debug_kind(*from_bytes(writer.render()))
    assert kind.dwo_ids == ("00000000000000a1",)
    assert kind.lost


@pytest.mark.parametrize("name", [".debug_info", ".zdebug_info"])
def test_packed_units_that_cannot_be_unpacked_are_told(name: str) -> None:
    content = b"ZLIB" + (100).to_bytes(8, "big") + b"no deflate stream"
    sections = [Section(name, PROGBITS, content), Section(".debug_addr", PROGBITS, b"x")]
    kind = read_debug_kind(*from_bytes(ElfWriter(sections=sections).render()))
    assert kind.dwarf
    assert kind.lost


def test_packed_section_that_unpacks_without_end_is_bounded() -> None:
    """300 MB of one unit after the other, packed to less than 1 MB."""
    writer = ElfWriter()
    packer = zlib.compressobj(1)
    unit = unit_5(writer, 1, 7) * 4096
    packed = b"".join(packer.compress(unit) for _ in range(3000)) + packer.flush()
    assert len(packed) < 4 << 20
    content = b"ZLIB" + (1 << 40).to_bytes(8, "big") + packed
    writer.sections = [Section(".zdebug_info", PROGBITS, content), Section(".debug_addr", PROGBITS, b"x")]
    kind = read_debug_kind(*from_bytes(writer.render()))
    assert kind.compressed
    assert any("more than" in says for says in kind.lost)


def test_index_that_claims_more_slots_than_there_are_is_told() -> None:
    writer = ElfWriter()
    head = b"".join(writer.number(value, 4) for value in (2, 1, 5, 0xFFFFFFFF))
    writer.sections = [Section(".debug_cu_index", PROGBITS, head + writer.number(0xABCD, 8))]
    kind = read_debug_kind(*from_bytes(writer.render()))
    assert kind.dwo_ids == ("000000000000abcd",)
    assert any("only the first" in says for says in kind.lost)
    assert any("is cut" in says for says in kind.lost)


def test_empty_debug_file_is_a_debug_file_without_anything() -> None:
    sections = [Section(".text", NOBITS, b""), Section(".note.gnu.build-id", NOTE, bytes(16))]
    kind = read_debug_kind(*from_bytes(ElfWriter(sections=sections).render()))
    assert (kind.debug_only, kind.dwarf, kind.symtab, kind.stripped) == (True, False, False, False)


# ---- cut and hostile


@pytest.mark.needs("gcc", "objcopy")
@pytest.mark.parametrize("part", ["program", "debug"])
def test_file_cut_anywhere_is_told(compiled: Compile, tmp_path: Path, part: str) -> None:
    program = compiled("program")
    run("objcopy", "--only-keep-debug", "program", "debug", cwd=tmp_path)
    data = (tmp_path / part).read_bytes()
    assert kind_of(tmp_path / part).lost == ()
    assert program.exists()
    for length in (*range(400), *range(400, len(data), 61), *range(len(data) - 200, len(data))):
        try:
            kind = read_debug_kind(*from_bytes(data[:length]))
        except (NotElf, BrokenElf):
            assert length < 64
            continue
        assert any("not whole" in says for says in kind.lost)
        assert not (part == "debug" and length > 1000 and kind.code and kind.debug_only)


@pytest.mark.parametrize("data", [b"", b"\x7fEL", b"MZ" + bytes(80)])
def test_what_is_no_elf_file_is_said(data: bytes) -> None:
    for reader in (read_debug_kind, read_debug_links):
        with pytest.raises(NotElf):
            reader(*from_bytes(data))


def survives(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        kind = read_debug_kind(*from_bytes(data))
        assert not (kind.code and kind.debug_only)
        assert all(len(one) == 16 for one in kind.dwo_ids)
        assert len(kind.lost) <= 32
    with contextlib.suppress(FormatError):
        links = read_debug_links(*from_bytes(data))
        assert links.debuglink is None or links.debuglink.name


def small() -> bytes:
    writer = ElfWriter(segments=[Segment(1, b"code" * 8, flags=5)])
    packed = b"ZLIB" + (90).to_bytes(8, "big") + zlib.compress(unit_5(writer, 4, 0xA1) * 3)
    abbrev = bytes([1, 0x11, 0, 0xB1, 0x42, 0x07, 0x03, 0x08, 0x55, 0x17, 0, 0, 0])
    writer.sections = [
        Section(".debug_info", PROGBITS, unit_5(writer, 4, 0xA1) * 3),
        Section(".zdebug_info.dwo", PROGBITS, packed),
        Section(".debug_abbrev", PROGBITS, abbrev),
        Section(".debug_addr", PROGBITS, b"x"),
        Section(".gnu_debuglink", PROGBITS, b"x.debug\0" + bytes(4)),
        Section(".gnu_debugaltlink", PROGBITS, b"y.debug\0" + bytes(20)),
        Section(".symtab", SYMTAB, bytes(48)),
    ]
    return writer.render()


@settings(max_examples=500, deadline=None)
@given(mutated(small()))
def test_mutated_file_ends_in_a_kind_or_a_format_error(data: bytes) -> None:
    survives(data)


@pytest.fixture(scope="module")
def split_program(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("split")
    flags = ("-g", "-gdwarf-4", "-gsplit-dwarf", str(sources / "one.c"), str(sources / "two.c"))
    run("gcc", *flags, "-o", "program", cwd=folder)
    run("gcc", *flags, "-gz=zlib", "-o", "packed", cwd=folder)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.needs("gcc")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_split_files_end_in_a_kind_or_a_format_error(split_program: list[bytes], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(split_program))
    survives(data.draw(mutated(whole, head_bytes=256)))
    kept = read_elf_sections(whole)
    place, size = data.draw(st.sampled_from(kept))
    at = place + data.draw(st.integers(0, max(size - 1, 0)))
    survives(whole[:at] + data.draw(st.binary(min_size=1, max_size=6)) + whole[at + 6 :])


def read_elf_sections(data: bytes) -> list[tuple[int, int]]:
    """Place and size of the sections that split units are read from; found by their names alone."""
    shoff, shentsize, shnum, shstrndx = (
        int.from_bytes(data[at : at + width], "little") for at, width in ((40, 8), (58, 2), (60, 2), (62, 2))
    )
    rows = [data[shoff + index * shentsize :][:shentsize] for index in range(shnum)]
    names_at = int.from_bytes(rows[shstrndx][24:32], "little")
    found = []
    for row in rows:
        name_at = names_at + int.from_bytes(row[:4], "little")
        if data[name_at:].startswith((b".debug_info", b".debug_abbrev", b".zdebug_info")):
            found.append((int.from_bytes(row[24:32], "little"), int.from_bytes(row[32:40], "little")))
    assert found
    return found
