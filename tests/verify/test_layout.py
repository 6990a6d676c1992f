"""The candidate as a guide: contradictions prove another file, agreement proves nothing."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pmforensics.formats.core import read_core
from pmforensics.verify.candidates import open_regular
from pmforensics.verify.layout import MAX_PIECES, PIECE_BYTES, Comparison, compare_layout
from tests.formats.core_writer import DATA_VADDR, DYNAMIC_AT, LIB, MAIN, PAGE, RX, Load, Process
from tests.formats.test_core import compiled, kernel_core, run
from tests.verify.specimens import CRASH, edited


def file_of(process: Process, at: int, path: Path) -> Path:
    """The image as a file: in the executable, the linker has not yet entered where its list is (DT_DEBUG)."""
    if at == MAIN:
        process.images[MAIN].contents[DYNAMIC_AT] = process.core.word(21, 0, 0, 0)
    path.write_bytes(process.images[at].render())
    return path


def compare(core_path: Path, program: Path, end: str = "") -> Comparison:
    """Of the executable, or of the image whose name ends so."""
    with core_path.open("rb") as file:
        core = read_core(lambda at, length: os.pread(file.fileno(), length, at), core_path.stat().st_size)
        numbered = list(enumerate(core.images.images))
        number, image = next((n, one) for n, one in numbered if (one.name.endswith(end) if end else one.is_main))
        candidate = open_regular(program)
        try:
            return compare_layout(core, image, core.headers[number], candidate)
        finally:
            candidate.close()


# ---- real programs


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("dump_filter", ["0x33", "0x21", "0x01", "0x7f"])
@pytest.mark.parametrize("flags", [[], ["-no-pie"], ["-static"], ["-static-pie"]], ids=repr)
def test_program_never_contradicts_its_own_core(
    needs: Callable[..., None], tmp_path: Path, flags: list[str], dump_filter: str
) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id=none", *flags)
    found = compare(kernel_core(needs, program, dump_filter=dump_filter), program)
    assert not found.contradictions
    assert found.agreements


@pytest.mark.needs("gcc", "patchelf")
def test_without_any_page_of_a_program_the_notes_of_the_core_still_contradict(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id")
    core = kernel_core(needs, program, dump_filter="0x00")
    assert compare(core, program).agreements
    patched = tmp_path / "patched"
    run("patchelf", "--set-rpath", "/much/longer/than/what/was/there/before/it", "--output", patched, program)
    assert any("AT_PHNUM" in sentence for sentence in compare(core, patched).contradictions)
    static = compiled(tmp_path, CRASH, "-static", name="static")
    assert any("AT_ENTRY" in sentence for sentence in compare(core, static).contradictions)


@pytest.mark.needs("gcc")
def test_dynamic_section_alone_contradicts_where_no_header_page_was_dumped(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    library = "int held(void) {{ return {number}; }}\n{more}"
    compiled(tmp_path, library.format(number=1, more=""), "-shared", "-fPIC", name="libheld.so")
    source = "#include <stdlib.h>\nint held(void);\nint main(void) { if (held()) abort(); return 0; }\n"
    program = compiled(tmp_path, source, "-L.", "-l:libheld.so", "-Wl,-rpath,$ORIGIN")
    core = kernel_core(needs, program, dump_filter="0x21")
    assert "the dynamic section" in compare(core, tmp_path / "libheld.so", "/libheld.so").agreements
    more = "int exported_too(void) { return 2; }\n"
    (tmp_path / "next").mkdir()
    other = compiled(tmp_path / "next", library.format(number=1, more=more), "-shared", "-fPIC", name="libheld.so")
    assert compare(core, other, "/libheld.so").contradictions


@pytest.mark.needs("gcc")
def test_text_that_the_linker_relocated_is_not_held_against_the_file(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    source = CRASH + '__asm__(".text\\n.globl table\\ntable: .quad main\\n");\n'
    program = compiled(tmp_path, source, "-pie", "-Wl,-z,notext")
    assert "TEXTREL" in run("readelf", "-dW", program)
    found = compare(kernel_core(needs, program, dump_filter="0x37"), program)
    assert not found.contradictions


@pytest.mark.needs("gcc")
def test_huge_text_moved_into_other_memory_is_no_contradiction(needs: Callable[..., None], tmp_path: Path) -> None:
    """As programs do that put their text into huge pages."""
    source = """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    __attribute__((section(".text.moved"), aligned(4096))) int moved(int number) { return number + 1; }
    __attribute__((section(".text.moved"), aligned(4096))) int last(int number) { return number + 2; }
    int main(void)
    {
        char held[4096];
        memcpy(held, (void *)moved, 4096);
        mmap((void *)moved, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy((void *)moved, held, 4096);
        abort();
    }
    """
    program = compiled(tmp_path, source)
    core = kernel_core(needs, program)
    found = compare(core, program)
    assert not found.contradictions
    assert any("mappings" in agreement for agreement in found.agreements)


def test_cut_or_foreign_file_is_a_contradiction_and_no_crash(tmp_path: Path) -> None:
    process = Process()
    (tmp_path / "core").write_bytes(process.render())
    whole = process.images[MAIN].render()
    for size in (64, 100, 200, 0x401, PAGE, 2 * PAGE):
        (tmp_path / "cut").write_bytes(whole[:size])
        found = compare(tmp_path / "core", tmp_path / "cut")
        assert found.contradictions or size >= PAGE
    narrow = Process(32)
    (tmp_path / "narrow").write_bytes(narrow.images[MAIN].render())
    assert compare(tmp_path / "core", tmp_path / "narrow").contradictions == ("the file is of 32 bits, the core of 64",)
    big = Process(64, big_endian=True)
    (tmp_path / "big").write_bytes(big.images[MAIN].render())
    assert "the file is for another machine" in compare(tmp_path / "core", tmp_path / "big").contradictions


# ---- synthetic cores


@pytest.mark.parametrize(("bits", "big_endian"), [(64, False), (64, True), (32, False), (32, True)])
def test_every_class_and_byte_order_agrees_with_its_file(tmp_path: Path, bits: int, big_endian: bool) -> None:
    process = Process(bits, big_endian)
    (tmp_path / "core").write_bytes(process.render())
    for at, end in ((MAIN, "/app"), (LIB, ".so.1.2")):
        found = compare(tmp_path / "core", file_of(process, at, tmp_path / "file"), end)
        assert not found.contradictions, end
        assert found.compared_bytes == PAGE


def test_each_kind_of_difference_has_its_sentence(tmp_path: Path) -> None:
    process = Process()
    (tmp_path / "core").write_bytes(process.render())
    file_of(process, MAIN, tmp_path / "file")

    def contradictions(at: int, new: bytes) -> str:
        return "; ".join(compare(tmp_path / "core", edited(tmp_path / "file", "other", at, new)).contradictions)

    assert "entry point is 0x1234 in the file and 0x1000 in the core" in contradictions(
        24, (0x1234).to_bytes(8, "little")
    )
    assert "for another machine" in contradictions(18, b"\xb7")
    assert "the type in the ELF header" in contradictions(16, b"\x02")
    assert "byte 0x700 of the file is another than the core holds at 0x56500700" in contradictions(0x700, b"x")
    assert "its program headers are not those in the core" in contradictions(64 + 56 + 40, b"\x01\x11")
    assert contradictions(0x28, b"\x08") == ""  # where section headers are


def test_mappings_at_other_places_of_the_file_contradict(tmp_path: Path) -> None:
    process = Process()
    process.not_dumped |= {LIB}
    process.rows = [
        (start, end, offset + (PAGE if start == LIB + DATA_VADDR else 0), name)
        for start, end, offset, name in process.rows
    ]
    (tmp_path / "core").write_bytes(process.render())
    (tmp_path / "file").write_bytes(process.images[LIB].render())
    found = compare(tmp_path / "core", tmp_path / "file", ".so.1.2")
    assert any(f"byte {DYNAMIC_AT + PAGE:#x} of the file was mapped at" in one for one in found.contradictions)


def test_longer_text_than_the_file_has_contradicts(tmp_path: Path) -> None:
    process = Process()
    process.not_dumped |= {LIB}
    process.rows = [
        (start, end + (PAGE if start == LIB + PAGE else 0), offset, name) for start, end, offset, name in process.rows
    ]
    process.more = [Load(LIB + PAGE, b"", 2 * PAGE, RX)]
    (tmp_path / "core").write_bytes(process.render())
    (tmp_path / "file").write_bytes(process.images[LIB].render())
    found = compare(tmp_path / "core", tmp_path / "file", ".so.1.2")
    assert any("4,096 bytes before the one that was mapped" in one for one in found.contradictions)


@pytest.mark.needs("gcc")
def test_what_is_compared_is_bounded_in_bytes_and_memory(needs: Callable[..., None], tmp_path: Path) -> None:
    large = '__asm__(".section .rodata\\n.globl large\\nlarge: .fill 3000000, 4, 0x01020304\\n.text\\n");\n'
    program = compiled(tmp_path, large + CRASH)
    core = kernel_core(needs, program, dump_filter="0x37")
    tracemalloc.start()
    found = compare(core, program)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not found.contradictions
    assert PIECE_BYTES * (MAX_PIECES - 3) < found.compared_bytes <= PIECE_BYTES * MAX_PIECES
    assert peak_bytes < 8 * PIECE_BYTES
