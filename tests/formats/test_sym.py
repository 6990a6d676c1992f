"""The head of a breakpad symbol file becomes identities that can be compared."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.elf import read_elf_identity
from pmforensics.formats.pe import read_pe_identity
from pmforensics.formats.sym import BrokenSym, NotSym, SymIdentity, elf_id_prefix, read_sym_identity
from pmforensics.model.image import IdKind, ImageId
from tests.formats import windows_build
from tests.formats.mutations import mutated
from tests.formats.windows_build import run

# What the minidump crate 0.27.0 made of the build ID of a program dumped by the minidump-writer crate 0.13.0.
BUILD_ID = "aa7e4c497f48210f826bb605a4e75e6d3e1a70c5"
MODULE_ID = "494C7EAA487F0F21826BB605A4E75E6D0"


def identity(text: str | bytes) -> SymIdentity:
    data = text.encode() if isinstance(text, str) else text
    return read_sym_identity(lambda offset, length: data[offset : offset + length], len(data))


def module_id(build_id: bytes) -> str:
    """What breakpad writes for a build ID: 16 bytes of it as a GUID, and age 0."""
    first, second, third, rest = struct.unpack("<IHH8s", build_id[:16].ljust(16, b"\0"))
    return f"{first:08X}{second:04X}{third:04X}{rest.hex().upper()}0"


def test_build_id_and_module_id_are_two_spellings() -> None:
    assert module_id(bytes.fromhex(BUILD_ID)) == MODULE_ID
    assert elf_id_prefix(MODULE_ID[:32]).hex() == BUILD_ID[:32]


@pytest.mark.needs("gcc", "readelf")
@pytest.mark.parametrize("style", ["sha1", "md5", "0x0123456789abcdef"])
def test_symbols_of_a_real_program_have_its_build_id(tmp_path: Path, style: str) -> None:
    (tmp_path / "hello.c").write_text("int main(void) { return 0; }\n")
    run("gcc", f"-Wl,--build-id={style}", "-o", tmp_path / "hello", tmp_path / "hello.c")
    said = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-n", tmp_path / "hello"))
    assert said
    build_id = bytes.fromhex(said[1])
    data = (tmp_path / "hello").read_bytes()
    program = read_elf_identity(lambda offset, length: data[offset : offset + length], len(data))
    head = f"MODULE Linux x86_64 {module_id(build_id)} hello\n"
    bare = identity(head + "FILE 0 hello.c\n")
    full = identity(head + f"INFO CODE_ID {said[1].upper()}\nFILE 0 hello.c\n")
    assert program.gnu_build_id is not None
    for found in (bare, full):
        (one,) = found.ids
        assert one.kind is IdKind.GNU
        assert program.gnu_build_id.startswith(one.value)
        # 16 bytes may be a hash of .text, and may be the start of a longer one; fewer or more cannot.
        assert bool(one.weak) == (len(one.value) == 32)
    if style != "md5":
        assert full.ids[0] == ImageId(IdKind.GNU, program.gnu_build_id)


@pytest.mark.needs(*windows_build.TOOLS)
def test_symbols_of_a_windows_program_have_its_identities(tmp_path: Path) -> None:
    data = windows_build.build(tmp_path).exe.read_bytes()
    program = read_pe_identity(lambda offset, length: data[offset : offset + length], len(data))
    guid, age = program.debug_files[0].id.value.split("-")
    text = f"MODULE windows x86_64 {guid.upper()}{age} service.pdb\r\n"
    text += f"INFO CODE_ID {program.time_date_stamp:08X}{program.size_of_image:X} service.exe\r\n"
    found = identity(text)
    assert found.ids == program.ids
    assert (found.os, found.arch, found.name) == ("windows", "x86_64", "service.pdb")


def test_age_is_hexadecimal() -> None:
    assert identity(f"MODULE windows x86 {'ab' * 16}1d crash.pdb\n").ids[0].value == f"{'ab' * 16}-1d"
    assert identity(f"MODULE windows x86 {'ab' * 16}10 crash.pdb\n").ids[0].value == f"{'ab' * 16}-10"


def test_uuid_of_macos_stands_as_it_is() -> None:
    found = identity("MODULE mac arm64 3D2A1A77A4CD5D296ABC82E7A5CFE7CC0 service\n")
    assert found.ids == (ImageId(IdKind.UUID, "3d2a1a77a4cd5d296abc82e7a5cfe7cc"),)


def test_name_may_hold_blanks_and_info_lines_stand_in_any_order() -> None:
    text = (
        f"MODULE Linux arm64 {MODULE_ID} my lib.so\nINFO GENERATOR some tool\nINFO CODE_ID {BUILD_ID}\nFUNC 0 1 0 f\n"
    )
    found = identity(text)
    assert (found.name, found.module_id, found.code_id) == ("my lib.so", MODULE_ID, BUILD_ID)
    assert found.ids == (ImageId(IdKind.GNU, BUILD_ID),)


def test_code_id_of_another_build_is_a_conflict_and_the_module_line_stands() -> None:
    found = identity(f"MODULE Linux x86_64 {MODULE_ID} a.so\nINFO CODE_ID {'00112233' * 5}\n")
    assert "CODE_ID says" in found.conflicts[0]
    assert found.ids[0].value == BUILD_ID[:32]
    assert found.ids[0].weak


def test_hash_of_text_in_code_id_is_weak() -> None:
    # Seen in a dump of the minidump-writer crate 0.13.0 of a program without build ID: no mark tells it apart.
    text_hash = bytes.fromhex("b753a48b8c83c6c52f00004885c07402")
    found = identity(f"MODULE Linux x86_64 {module_id(text_hash)} a\nINFO CODE_ID {text_hash.hex()}\n")
    assert found.ids[0].value == text_hash.hex()
    assert "hash" in found.ids[0].weak


@pytest.mark.parametrize("os_name", ["Linux", "windows", "mac"])
@pytest.mark.parametrize("module", ["0" * 33, "id"])
def test_zeros_and_the_word_id_are_no_identity(os_name: str, module: str) -> None:
    (one,) = identity(f"MODULE {os_name} x86_64 {module} a\n").ids
    assert one.weak


def test_code_id_is_believed_where_the_module_line_has_no_identity() -> None:
    assert identity(f"MODULE Linux x86_64 id a\nINFO CODE_ID {BUILD_ID}\n").ids == (ImageId(IdKind.GNU, BUILD_ID),)


@pytest.mark.parametrize("data", [b"", b"MODULE", b"MODULES a b c d\n", b"\xef\xbb\xbfMODULE Linux a b c\n", b"MDMP"])
def test_what_is_no_symbol_file_is_told(data: bytes) -> None:
    with pytest.raises(NotSym):
        identity(data)


@pytest.mark.parametrize(
    "line",
    [
        "MODULE Linux x86_64 " + "ab" * 16,
        "MODULE Linux x86_64 abc name",
        f"MODULE Linux x86_64 {'g' * 33} name",
        f"MODULE Linux x86_64 {'a' * 32} name",
        f"MODULE Linux x86_64 {'a' * 41} name",
    ],
)
def test_module_line_without_an_identity_is_told(line: str) -> None:
    with pytest.raises(BrokenSym):
        identity(line + "\n")


SEED = f"MODULE Linux x86_64 {MODULE_ID} libservice.so\nINFO CODE_ID {BUILD_ID}\nFILE 0 a.c\nFUNC 10 20 0 main\n"


@settings(max_examples=500, deadline=None)
@given(st.one_of(mutated(SEED.encode()), st.binary(max_size=200).map(lambda tail: b"MODULE " + tail)))
def test_mutated_symbol_file_ends_in_an_identity_or_a_format_error(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert identity(data).ids


def test_only_the_head_of_a_large_file_is_read() -> None:
    head = SEED.encode()
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append(offset + length)
        return head[offset : offset + length].ljust(length, b"\n")

    assert read_sym_identity(read, 1 << 40).ids == (ImageId(IdKind.GNU, BUILD_ID),)
    assert max(asked) <= 1 << 20
