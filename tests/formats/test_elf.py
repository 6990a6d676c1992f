"""Readers of ELF identity agree with readelf and the go command, and survive what no linker wrote."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.errors import BrokenElf, FormatError, NotElf
from pmforensics.formats.elf import GoBuildInfo, GoModule, ReadAt, read_elf_identity, read_go_build_info
from pmforensics.formats.proc import parse_maps
from tests import zoo
from tests.formats.elf_writer import ElfWriter, Section, Segment

PT_LOAD, PT_NOTE = 1, 4
SHT_PROGBITS, SHT_NOTE = 1, 7
BUILD_ID = bytes(range(20))
EVERY_LAYOUT = pytest.mark.parametrize(("bits", "big_endian"), [(64, False), (64, True), (32, False), (32, True)])


def from_bytes(data: bytes) -> tuple[ReadAt, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


@contextlib.contextmanager
def from_file(path: Path) -> Iterator[tuple[ReadAt, int]]:
    with path.open("rb") as file:
        yield (lambda offset, length: os.pread(file.fileno(), length, offset)), path.stat().st_size


def from_memory(fd: int, base: int) -> ReadAt:
    return lambda offset, length: os.pread(fd, length, base + offset)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


def readelf_build_id(path: Path) -> str | None:
    found = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-nW", path))
    return found[1] if found else None


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("hello") / "hello.c"
    source.write_text("int main(void) { return 0; }\n")
    return source


def compiled(hello: Path, output: Path, *flags: str) -> Path:
    run("gcc", "-g", *flags, "-o", output, hello)
    return output


# ---- real files


@pytest.mark.needs("gcc", "readelf")
@pytest.mark.parametrize(
    ("flag", "id_bytes"),
    [("sha1", 20), ("md5", 16), ("uuid", 16), ("none", None), ("0x0123456789abcdef", 8), ("0x" + "ab" * 64, 64)],
)
def test_build_id_is_what_readelf_says(hello: Path, tmp_path: Path, flag: str, id_bytes: int | None) -> None:
    program = compiled(hello, tmp_path / "hello", f"-Wl,--build-id={flag}")
    with from_file(program) as source:
        identity = read_elf_identity(*source)
    assert identity.gnu_build_id == readelf_build_id(program)
    assert (len(bytes.fromhex(identity.gnu_build_id)) if identity.gnu_build_id else None) == id_bytes


@pytest.mark.needs("gcc", "readelf")
def test_interpreter_and_type_are_what_readelf_says(hello: Path, tmp_path: Path) -> None:
    for flags in (["-no-pie"], ["-pie"], ["-static"]):
        program = compiled(hello, tmp_path / "hello", *flags)
        with from_file(program) as source:
            identity = read_elf_identity(*source)
        interp = re.search(r"Requesting program interpreter: (\S+)\]", run("readelf", "-lW", program))
        assert identity.interp == (interp[1] if interp else None)
        assert identity.elf_type == (3 if flags == ["-pie"] else 2)


PACKAGE_NOTE = '{"type":"deb","name":"hello","version":"1.0-1","architecture":"amd64"}'


@pytest.mark.needs("gcc")
def test_package_note_of_the_linker(hello: Path, tmp_path: Path) -> None:
    # "-Wl," would cut the JSON at its commas.
    flags = ("-Xlinker", f"--package-metadata={PACKAGE_NOTE}")
    with from_file(compiled(hello, tmp_path / "hello", *flags)) as source:
        assert read_elf_identity(*source).package_note == PACKAGE_NOTE


@pytest.mark.needs("gcc", "objcopy")
def test_package_note_that_only_a_section_holds(hello: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_bytes(ElfWriter().note(b"FDO\0", 0xCAFE1A7E, PACKAGE_NOTE.encode() + b"\0"))
    program = compiled(hello, tmp_path / "hello")
    run("objcopy", f"--add-section=.note.package={note}", program)
    with from_file(program) as source:
        assert read_elf_identity(*source).package_note == PACKAGE_NOTE


@pytest.mark.needs("gcc", "objcopy", "readelf")
def test_debug_link_and_the_debug_file_itself(hello: Path, tmp_path: Path) -> None:
    program = compiled(hello, tmp_path / "hello", "-Wl,--build-id")
    debug = tmp_path / "hello.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    run("objcopy", "--strip-debug", f"--add-gnu-debuglink={debug}", program)
    with from_file(program) as source:
        link = read_elf_identity(*source).debuglink
    assert link is not None
    assert (link.name, link.crc32) == ("hello.debug", zlib.crc32(debug.read_bytes()))
    with from_file(debug) as source:
        assert read_elf_identity(*source).gnu_build_id == readelf_build_id(program)


@pytest.mark.needs("readelf")
def test_every_system_file_has_the_id_that_readelf_says() -> None:
    folders = [Path("/usr/bin"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu")]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    elves = [path for path in files if path.is_file() and path.open("rb").read(4) == b"\x7fELF"][:300]
    assert len(elves) > 50
    said: dict[str, str | None] = {}
    name = ""
    for line in run("readelf", "-nW", *elves).splitlines():
        if line.startswith("File: "):
            name = line.removeprefix("File: ")
            said[name] = None
        elif found := re.search(r"Build ID: ([0-9a-f]+)", line):
            said[name] = found[1]
    for path in elves:
        with from_file(path) as source:
            assert read_elf_identity(*source).gnu_build_id == said[str(path)], path


@pytest.mark.needs("readelf")
def test_image_in_memory_has_the_id_of_its_file() -> None:
    starts = {m.path: m.start for m in reversed(parse_maps(Path("/proc/self/maps").read_text()).mappings)}
    images = [path for path in starts if re.search(r"/libc[.-]|/ld-|python3", path) and Path(path).is_file()]
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    checked = 0
    try:
        for path in images:
            if Path(path).read_bytes()[:4] != b"\x7fELF":
                continue
            found = read_elf_identity(from_memory(memory, starts[path]), None, loaded=True)
            assert found.gnu_build_id == readelf_build_id(Path(path))
            checked += 1
    finally:
        os.close(memory)
    assert checked


def test_file_cut_anywhere_gives_an_identity_or_a_format_error() -> None:
    data = Path("/bin/true").read_bytes()
    whole = read_elf_identity(*from_bytes(data))
    told = set()
    refused = set()
    for length in [*range(2048), *range(2048, len(data), 997)]:
        try:
            told.add(read_elf_identity(*from_bytes(data[:length])).gnu_build_id)
        except FormatError as error:
            refused.add(type(error))
    assert told == {None, whole.gnu_build_id}
    assert refused == {NotElf, BrokenElf}


# ---- Go


GO_ENV = {
    "GOTOOLCHAIN": "local",
    "GOPROXY": "off",
    "GOENV": "off",
    "GOFLAGS": "-mod=mod",
    "GOWORK": "off",
    "CGO_ENABLED": "0",
    "GOCACHE": str(zoo.REPO / ".cache" / "go-build"),
    "GOPATH": str(zoo.REPO / ".cache" / "go"),
}


def go(*arguments: str | Path, cwd: Path | None = None, **env: str) -> str:
    return run(zoo.get_tool("go"), *arguments, cwd=cwd, env={**GO_ENV, **env})


@pytest.fixture(scope="module")
def go_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module in a git repository, with one plain and one replaced dependency."""
    root = tmp_path_factory.mktemp("module")
    (root / "main.go").write_text(
        'package main\nimport ("example.org/dep"; "example.org/other")\nvar token string\n'
        "func main() { println(token, dep.X, other.X) }\n"
    )
    (root / "go.mod").write_text(
        "module example.org/hello\ngo 1.21\nrequire (\n\texample.org/dep v1.2.3\n\texample.org/other v0.0.0\n)\n"
        "replace example.org/dep => ./dep\nreplace example.org/other v0.0.0 => ./other\n"
    )
    for name in ("dep", "other"):
        (root / name).mkdir()
        (root / name / "x.go").write_text(f"package {name}\nconst X = 1\n")
        (root / name / "go.mod").write_text(f"module example.org/{name}\ngo 1.21\n")
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    run("git", "init", "-q", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", *identity, "commit", "-qm", "first", cwd=root)
    return root


def assert_go_agrees(path: Path, info: GoBuildInfo | None) -> dict[str, str]:
    """Asserts that `go version -m` says the same; returns its settings."""
    judge = json.loads(go("version", "-m", "-json", path))
    assert info is not None

    def module(said: dict[str, Any] | None) -> GoModule | None:
        if not said:
            return None
        replace = module(said.get("Replace"))
        return GoModule(said["Path"], said.get("Version", ""), said.get("Sum", ""), replace)

    assert info.go_version == judge["GoVersion"]
    assert info.path == judge.get("Path", "")
    assert info.main == module(judge.get("Main"))
    assert list(info.deps) == [module(dep) for dep in judge.get("Deps") or []]
    said = {setting["Key"]: setting.get("Value", "") for setting in judge.get("Settings") or []}
    withheld = {key for key, value in info.settings.items() if value == "(withheld)"}
    assert {k: v for k, v in info.settings.items() if k not in withheld} == {
        k: v for k, v in said.items() if k not in withheld
    }
    assert withheld <= {"-ldflags"}
    return said


@pytest.mark.needs("go", "git", "readelf")
def test_go_program_is_read_as_go_reads_it(go_module: Path, tmp_path: Path) -> None:
    program = tmp_path / "hello"
    secret = "hunter2"
    go("build", "-buildvcs=true", "-tags=a,b", f"-ldflags=-X 'main.token={secret} \"x\"'", "-o", program, cwd=go_module)
    with from_file(program) as source:
        info = read_go_build_info(*source)
        identity = read_elf_identity(*source)
    said = assert_go_agrees(program, info)
    assert info is not None
    assert secret in said["-ldflags"]
    assert secret not in repr(info)
    assert info.settings["-ldflags"] == "(withheld)"
    assert info.settings["vcs.revision"] == run("git", "rev-parse", "HEAD", cwd=go_module).strip()
    assert info.settings["vcs.modified"] == "false"
    assert {dep.path for dep in info.deps if dep.replace} == {"example.org/dep", "example.org/other"}
    assert identity.go_build_id == go("tool", "buildid", program).strip()
    assert identity.gnu_build_id == readelf_build_id(program)


@pytest.mark.needs("go")
def test_go_settings_with_quotes_and_escapes_are_read_as_go_reads_them(tmp_path: Path) -> None:
    lines = [
        "path\tcommand-line-arguments",
        'build\t"odd key=\\t"="tab \\t quote \\" backslash \\\\ e \\u00e9 \\x41 end"',
        'build\tplain="quoted value"',
        "build\tDefaultGODEBUG=a=1,b=2",
        "build\t-trimpath=true",
        "build\tempty=",
    ]
    modules = b"<sixteen bytes!>" + "\n".join(lines).encode() + b"\n" + b">sixteen bytes!<"
    assert 128 <= len(modules) < 16384  # a length of two bytes
    blob = b"\xff Go buildinf:\x08\x02" + bytes(16) + bytes([6]) + b"go1.20"
    blob += bytes([len(modules) & 0x7F | 0x80, len(modules) >> 7]) + modules
    writer = ElfWriter(segments=[Segment(PT_LOAD, bytes(64)), Segment(PT_LOAD, blob, flags=6, vaddr=0x500000)])
    writer.sections = [Section(".go.buildinfo", SHT_PROGBITS, blob, addr=0x500000)]
    program = tmp_path / "program"
    program.write_bytes(writer.render())
    program.chmod(0o755)
    info = read_go_build_info(*from_bytes(program.read_bytes()))
    said = assert_go_agrees(program, info)
    assert said["odd key=\t"] == 'tab \t quote " backslash \\ e \u00e9 A end'


@pytest.mark.needs("go", "readelf")
@pytest.mark.parametrize(
    ("arch", "bits", "little_endian"), [("mips", 32, False), ("s390x", 64, False), ("386", 32, True)]
)
def test_go_program_of_another_machine(
    go_module: Path, tmp_path: Path, arch: str, bits: int, little_endian: bool
) -> None:
    program = tmp_path / "hello"
    go("build", "-buildvcs=false", "-ldflags=-B gobuildid", "-o", program, cwd=go_module, GOARCH=arch)
    with from_file(program) as source:
        identity = read_elf_identity(*source)
        assert_go_agrees(program, read_go_build_info(*source))
    assert (identity.elf_class, identity.little_endian) == (bits, little_endian)
    assert identity.gnu_build_id == readelf_build_id(program)
    assert identity.gnu_build_id is not None
    assert identity.go_build_id == go("tool", "buildid", program).strip()


@pytest.mark.needs("go")
def test_go_program_without_sections_is_found_in_its_data_segment(go_module: Path, tmp_path: Path) -> None:
    program = tmp_path / "hello"
    go("build", "-buildvcs=false", "-ldflags=-s -w", "-o", program, cwd=go_module)
    data = bytearray(program.read_bytes())
    info = read_go_build_info(*from_bytes(bytes(data)))
    assert_go_agrees(program, info)
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    assert read_go_build_info(*from_bytes(bytes(data))) == info
    assert read_elf_identity(*from_bytes(bytes(data))).go_build_id == go("tool", "buildid", program).strip()


def go_before_1_18(bits: int, big_endian: bool, with_section: bool = False) -> bytes:
    """The layout with pointers: blob -> string header -> text, all in one data segment at 0x500000."""
    writer = ElfWriter(bits=bits, big_endian=big_endian)
    base, width = 0x500000, bits // 8
    version = b"go1.17.13"
    lines = [
        "path\texample.org/cmd/old",
        "mod\texample.org/old\t(devel)\t",
        "dep\texample.org/dep\tv1.0.0\th1:sum=",
        "=>\texample.org/fork\tv1.0.1\th1:other=",
    ]
    modules = b"<sixteen bytes!>" + "\n".join(lines).encode() + b"\n" + b">sixteen bytes!<"
    headers_at = 96
    text_at = headers_at + 4 * width
    blob = b"\xff Go buildinf:" + bytes([width, int(big_endian)])
    blob += writer.address(base + headers_at) + writer.address(base + headers_at + 2 * width)
    data = bytes(48) + blob
    data += bytes(headers_at - len(data))
    data += writer.address(base + text_at) + writer.address(len(version))
    data += writer.address(base + text_at + len(version)) + writer.address(len(modules))
    data += version + modules
    writer.segments = [Segment(PT_LOAD, bytes(64), flags=5), Segment(PT_LOAD, data, flags=6, vaddr=base, align=1)]
    if with_section:
        writer.sections = [Section(".go.buildinfo", SHT_PROGBITS, data[48:headers_at], addr=base + 48)]
    return writer.render()


@pytest.mark.needs("go")
@EVERY_LAYOUT
def test_go_layout_with_pointers_is_read_as_go_reads_it(tmp_path: Path, bits: int, big_endian: bool) -> None:
    program = tmp_path / "old"
    program.write_bytes(go_before_1_18(bits, big_endian, with_section=True))
    program.chmod(0o755)
    info = read_go_build_info(*from_bytes(program.read_bytes()))
    assert_go_agrees(program, info)
    assert read_go_build_info(*from_bytes(go_before_1_18(bits, big_endian))) == info
    assert info is not None
    assert info.deps[0].replace == GoModule("example.org/fork", "v1.0.1", "h1:other=")


def test_go_magic_must_be_aligned() -> None:
    data = go_before_1_18(64, False)
    moved = data.replace(bytes(8) + b"\xff Go buildinf:", b"\xff Go buildinf:" + bytes(8))
    assert moved != data
    assert read_go_build_info(*from_bytes(moved)) is None


@pytest.mark.needs("gcc")
def test_c_program_has_no_go_build_info(hello: Path, tmp_path: Path) -> None:
    with from_file(compiled(hello, tmp_path / "hello")) as source:
        assert read_go_build_info(*source) is None
        assert read_elf_identity(*source).go_build_id is None


# ---- written files


@pytest.mark.needs("readelf")
@EVERY_LAYOUT
@pytest.mark.parametrize("align", [4, 8])
def test_notes_of_every_layout(tmp_path: Path, bits: int, big_endian: bool, align: int) -> None:
    writer = ElfWriter(bits=bits, big_endian=big_endian)
    notes = writer.note(b"GNU\0", 5, bytes(12), align) + writer.note(b"GNU\0", 3, BUILD_ID, align)
    notes += writer.note(b"Go\0\0", 4, b"a/b/c/d", align)
    writer.segments = [Segment(PT_LOAD, bytes(64)), Segment(PT_NOTE, notes, align=align)]
    path = tmp_path / "file"
    path.write_bytes(writer.render())
    identity = read_elf_identity(*from_bytes(path.read_bytes()))
    assert identity.gnu_build_id == BUILD_ID.hex() == readelf_build_id(path)
    assert identity.go_build_id == "a/b/c/d"
    assert (identity.elf_class, identity.little_endian) == (bits, not big_endian)


@EVERY_LAYOUT
def test_notes_that_only_sections_hold(bits: int, big_endian: bool) -> None:
    writer = ElfWriter(bits=bits, big_endian=big_endian)
    writer.sections = [Section(".renamed", SHT_NOTE, writer.note(b"GNU\0", 3, BUILD_ID))]
    assert read_elf_identity(*from_bytes(writer.render())).gnu_build_id == BUILD_ID.hex()


def identity_of_note(owner: bytes, kind: int, content: bytes) -> str | None:
    writer = ElfWriter()
    writer.segments = [Segment(PT_NOTE, writer.note(owner, kind, content))]
    return read_elf_identity(*from_bytes(writer.render())).gnu_build_id


@pytest.mark.parametrize("owner", [b"Xen\0", b"GNU", b"GNU\0\0", b"Go\0\0", b""])
def test_type_3_of_another_owner_is_no_build_id(owner: bytes) -> None:
    assert identity_of_note(owner, 3, BUILD_ID) is None


@pytest.mark.parametrize(("length", "counts"), [(0, False), (1, True), (64, True), (65, False)])
def test_build_id_has_1_to_64_bytes(length: int, counts: bool) -> None:
    assert identity_of_note(b"GNU\0", 3, bytes(length)) == (bytes(length).hex() if counts else None)


@pytest.mark.needs("readelf")
@EVERY_LAYOUT
def test_count_of_segments_beyond_65534(tmp_path: Path, bits: int, big_endian: bool) -> None:
    writer = ElfWriter(bits=bits, big_endian=big_endian, extended_count=True)
    empty = Segment(PT_LOAD, b"")
    writer.segments = [empty] * 66_000 + [Segment(PT_NOTE, writer.note(b"GNU\0", 3, BUILD_ID))]
    data = writer.render()
    assert read_elf_identity(*from_bytes(data)).gnu_build_id == BUILD_ID.hex()
    path = tmp_path / "file"
    path.write_bytes(data)
    assert readelf_build_id(path) == BUILD_ID.hex()


def test_loaded_notes_are_read_at_their_address_not_at_their_offset() -> None:
    # A note that patchelf moved: in the file behind everything, in memory on a page far away.
    writer = ElfWriter()
    note = writer.note(b"GNU\0", 3, BUILD_ID)
    head = Segment(PT_LOAD, bytes(64), vaddr=0x400000)
    writer.segments = [head, Segment(PT_NOTE, note, vaddr=0x407000), Segment(PT_LOAD, note, vaddr=0x407000)]
    writer.render()
    head.vaddr = 0x400000 + head.offset  # as linkers do: address and offset of the first segment agree
    data = writer.render()
    offset = writer.segments[1].offset
    memory = bytearray(data[:offset] + bytes(0x8000))
    memory[0x7000 : 0x7000 + len(note)] = note
    memory[offset : offset + len(note)] = bytes(len(note))
    assert read_elf_identity(*from_bytes(bytes(memory)), loaded=True).gnu_build_id == BUILD_ID.hex()
    assert read_elf_identity(*from_bytes(data)).gnu_build_id == BUILD_ID.hex()


# ---- hostile files


@pytest.mark.parametrize("data", [b"", b"\x7fEL", b"#!/bin/sh\n", b"MZ" + bytes(100)])
def test_without_the_magic_it_is_not_elf(data: bytes) -> None:
    for reader in (read_elf_identity, read_go_build_info):
        with pytest.raises(NotElf):
            reader(*from_bytes(data))


def patched(data: bytes, at: int, value: int, width: int) -> bytes:
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


@pytest.mark.parametrize(
    ("at", "value", "width"),
    [(4, 3, 1), (5, 0, 1), (0x20, 1 << 40, 8), (0x36, 55, 2), (0x38, 0xFFFE, 2), (0x38, 0xFFFF, 2)],
    ids=["class", "encoding", "table far away", "entry size", "table cut", "extended count without sections"],
)
def test_impossible_header_is_broken(at: int, value: int, width: int) -> None:
    data = patched(ElfWriter(segments=[Segment(PT_LOAD, bytes(64))]).render(), at, value, width)
    with pytest.raises(BrokenElf) as caught:
        read_elf_identity(*from_bytes(data))
    assert str(caught.value).endswith(".")


def counted(data: bytes, size: int | None) -> tuple[ReadAt, Callable[[], int]]:
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        assert offset >= 0
        assert offset + length < 1 << 63
        asked += length
        return data[offset : offset + length]

    return read, lambda: asked


def test_declared_sizes_do_not_decide_how_much_is_read() -> None:
    writer = ElfWriter(extended_count=True)
    huge = Segment(PT_NOTE, b"", filesz=(1 << 64) - 1)
    writer.segments = [huge] * 2000
    writer.sections = [Section(".gnu_debuglink", SHT_PROGBITS, b"x" * 64)]
    data = writer.render()
    for size in (len(data), None):
        read, asked = counted(data, size)
        read_elf_identity(read, size)
        assert asked() < 600 << 20  # 64 note segments of at most 4 MiB and the tables
    claims = patched(data, data.rindex(b"\xd0\x07\0\0"), 0xFFFFFFFF, 4)  # sh_info of section 0 was 2000
    read, asked = counted(claims, None)
    with pytest.raises(BrokenElf):
        read_elf_identity(read, None)
    assert asked() < 1 << 20


SMALL = ElfWriter()
SMALL.segments = [
    Segment(PT_LOAD, bytes(64)),
    Segment(PT_NOTE, SMALL.note(b"GNU\0", 3, BUILD_ID)),
    Segment(PT_LOAD, b"\xff Go buildinf:\x08\x02" + bytes(16) + b"\x06go1.20\x00", flags=6, vaddr=0x600000),
]
SMALL.sections = [Section(".gnu_debuglink", SHT_PROGBITS, b"x.debug\0" + bytes(4))]
SMALL_BYTES = SMALL.render()


def test_the_small_file_is_good_before_it_is_mutated() -> None:
    identity = read_elf_identity(*from_bytes(SMALL_BYTES))
    info = read_go_build_info(*from_bytes(SMALL_BYTES))
    assert identity.gnu_build_id == BUILD_ID.hex()
    assert identity.debuglink is not None
    assert info is not None
    assert info.go_version == "go1.20"


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL_BYTES) - 1), st.binary(min_size=1, max_size=8)), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_mutated_files_give_an_identity_or_a_format_error(
    changes: list[tuple[int, bytes]], sized: bool, loaded: bool
) -> None:
    data = bytearray(SMALL_BYTES)
    for at, change in changes:
        data[at : at + len(change)] = change
    read, _ = from_bytes(bytes(data))
    size = len(data) if sized else None
    with contextlib.suppress(FormatError):
        read_elf_identity(read, size, loaded=loaded)
    with contextlib.suppress(FormatError):
        read_go_build_info(read, size)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_behind_a_header_give_an_identity_or_a_format_error(tail: bytes) -> None:
    for head in (b"", b"\x7fELF\x02\x01\x01" + bytes(9), b"\x7fELF\x01\x02\x01" + bytes(9)):
        for reader in (read_elf_identity, read_go_build_info):
            with contextlib.suppress(FormatError):
                reader(*from_bytes(head + tail))
