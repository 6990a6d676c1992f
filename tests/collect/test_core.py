from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from elftools.elf.elffile import ELFFile

from pmforensics.collect import core as core_module
from pmforensics.collect import live_core, target_memory
from pmforensics.collect.core import Core
from pmforensics.collect.core_image import Segment, lay_out
from pmforensics.collect.freeze import MACHINES
from pmforensics.collect.target_memory import PageTable
from pmforensics.errors import NotSupported
from pmforensics.formats.structure import CoreCheck, Shape
from pmforensics.model.capture import MIB, CoreKind, Outcome, PauseBasis
from tests import zoo
from tests.collect.frozen import states, wait_for
from tests.collect.harness import Collected, collect_one

FULL = Core(kind=CoreKind.FULL, allow_pause_s=60.0)  # where the test is not about the limit: the machine may be slow
PAGE = os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.needs("gcc")


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def core_file(got: Collected, tmp_path: Path, name: str = "core") -> Path:
    path = tmp_path / f"kept.{name}"
    path.write_bytes(got.artifacts.pop("core"))
    return path


@dataclass
class CoreOf:
    """A core as pyelftools reads it."""

    file: BinaryIO
    loads: list[Any]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of every page that is held."""
        for load in self.loads:
            for at in range(0, load["p_filesz"], PAGE):
                self.file.seek(load["p_offset"] + at)
                yield load["p_vaddr"] + at, self.file.read(min(PAGE, load["p_filesz"] - at))


@contextmanager
def opened(path: Path) -> Iterator[CoreOf]:
    with path.open("rb") as file:
        yield CoreOf(file, list(ELFFile(file).iter_segments("PT_LOAD")))


def mapping_at(maps: list[str], address: int) -> list[str]:
    """The fields of the line of /proc/PID/maps that covers an address."""
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split(maxsplit=5)
    raise AssertionError(f"no mapping at {address:#x}")


def test_it_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 1) as sick:
        for kind in (CoreKind.NONE, CoreKind.STACKS):
            assert not collect_one(Core(kind=kind), sick.pid, tmp_path).order


@pytest.mark.needs("gdb")
@pytest.mark.parametrize(("program", "way"), [("c", ("deep-stack", 500)), ("python", ("lock-wait",))])
def test_the_same_bytes_at_the_same_addresses_as_gcore(program: str, way: tuple[object, ...], tmp_path: Path) -> None:
    with zoo.start(program, str(way[0]), *way[1:]) as sick:
        os.kill(sick.pid, signal.SIGSTOP)  # so that nothing changes between the two
        wait_for(lambda: set(states(sick.pid).values()) == {"T"})
        ours = core_file(collect_one(FULL, sick.pid, tmp_path), tmp_path)
        run("gcore", "-o", tmp_path / "gcore", str(sick.pid))
        maps = Path(f"/proc/{sick.pid}/maps").read_text().splitlines()
    with opened(ours) as one, opened(tmp_path / f"gcore.{sick.pid}") as other:
        held = dict(one.pages())
        compared = 0
        for address, page in other.pages():
            if address in held:
                assert held.pop(address) == page, hex(address)
                compared += 1
            elif any(page):
                # gcore also takes pages of files that nobody has written to.
                _, perms, _, _, inode, path = mapping_at(maps, address)
                assert "w" not in perms, path
                assert inode != "0"
    assert compared > 20
    # What gcore lacks are pages of files: headers and notes of the images.
    assert all(mapping_at(maps, address)[4] != "0" for address in held)


@pytest.mark.needs("gdb", "eu-unstrip")
def test_debuggers_find_threads_libraries_and_heap(tmp_path: Path) -> None:
    with zoo.start("c", "big", 16) as sick:
        got = collect_one(FULL, sick.pid, tmp_path)
        sick.assert_alive()
        exe = Path(f"/proc/{sick.pid}/exe").resolve()
        live = run("eu-unstrip", "-n", "-p", str(sick.pid))
    assert got.settlements["core"].outcome is Outcome.COLLECTED
    assert got.runs_again is True
    core = core_file(got, tmp_path)
    said = run("gdb", "-nx", "-batch", "-ex", "info sharedlibrary", "-ex", "thread apply all bt", exe, core)
    assert "libc.so" in said
    assert re.search(r"#\d+ .* big \(", said)
    assert re.search(r"#\d+ .* beat \(", said)
    images = re.compile(r"^(0x[0-9a-f]+)\+\S+ ([0-9a-f]+)@", re.MULTILINE)  # start, build id
    assert len(images.findall(live)) == 4
    assert set(images.findall(run("eu-unstrip", "-n", "--core", core))) == set(images.findall(live))
    data = core.read_bytes()
    for number in range(0, 256, 17):
        assert b"zoo-big-block %08d" % number in data


def test_memory_that_was_never_touched_takes_no_room(tmp_path: Path) -> None:
    with zoo.start("c", "big", 16) as sick:
        got = collect_one(FULL, sick.pid, tmp_path)
        rss = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{sick.pid}/status").read_text())[0])
        sick.assert_alive()
        assert sick.ready["untouched_bytes"] == 4 << 30
    assert 16 * MIB < len(got.artifacts["core"]) < 32 * MIB
    with opened(core_file(got, tmp_path)) as core:
        assert sum(load["p_memsz"] for load in core.loads) > 4 << 30
    assert rss < 64 * 1024  # and taking the core did not make the target touch it


def test_memory_is_the_same_by_either_way_of_asking_what_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zoo.start("c", "big", 8) as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        wait_for(lambda: set(states(sick.pid).values()) == {"T"})
        new = core_file(collect_one(FULL, sick.pid, tmp_path), tmp_path, "new")
        monkeypatch.setattr(target_memory, "_PAGEMAP_SCAN", 0xC0606611)  # as before Linux 6.7
        old = core_file(collect_one(FULL, sick.pid, tmp_path), tmp_path, "old")
        with Path(f"/proc/{sick.pid}/pagemap").open("rb") as pagemap:
            table = PageTable(pagemap.fileno(), PAGE)
            assert not table.scans
            start = sick.ready["untouched_address"]
            assert not list(table.used(start + 64 * MIB, start + 512 * MIB))
    with opened(new) as one, opened(old) as other:
        assert {at: page for at, page in one.pages() if any(page)} == {
            at: page for at, page in other.pages() if any(page)
        }


def test_what_coredump_filter_leaves_out_is_left_out_but_for_the_stacks(tmp_path: Path) -> None:
    with zoo.start("c", "big", 16) as sick:
        Path(f"/proc/{sick.pid}/coredump_filter").write_text("0x0")
        got = collect_one(FULL, sick.pid, tmp_path)
    assert got.settlements["core"].facts["coredump_filter"] == "0x00000000"
    assert b"zoo-big-block 00000100" not in got.artifacts["core"]
    assert len(got.artifacts["core"]) < 2 * MIB
    core = core_file(got, tmp_path)
    with opened(core) as held:
        assert b"\x7fELF" in {page[:4] for _, page in held.pages()}


MAPPED = """
import ctypes, json, mmap, sys
size = 1 << 20
file = open(sys.argv[1], "r+b")
kinds = {
    "private of a file": mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE),
    "shared of a file": mmap.mmap(file.fileno(), size),
    "shared of nothing": mmap.mmap(-1, size),
    "private of nothing": mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "not to be dumped": mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "read only in part": mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ),
}
kinds["not to be dumped"].madvise(16)
for name, memory in kinds.items():
    if name == "read only in part":
        memory[8192]
    else:
        memory[8192:8200] = b"touched!"
fields = (("object", ctypes.c_byte * object.__basicsize__), ("data", ctypes.c_void_p))
Mapped = type("Mapped", (ctypes.Structure,), {"_fields_": fields})  # how CPython lays out an mmap object
places = {name: Mapped.from_address(id(memory)).data for name, memory in kinds.items()}
print(json.dumps(places), flush=True)
sys.stdin.read()
"""


@pytest.mark.needs("gcore")
@pytest.mark.parametrize("kernel_filter", [0x33, 0x3F, 0x1, 0x2, 0x4, 0x8])
def test_the_filter_is_read_as_the_kernel_reads_it(kernel_filter: int, tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(b"of the file." * 100_000)
    with subprocess.Popen(
        [sys.executable, "-c", MAPPED, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as popen:
        assert popen.stdout is not None
        places = json.loads(popen.stdout.readline())
        Path(f"/proc/{popen.pid}/coredump_filter").write_text(hex(kernel_filter))
        ours = core_file(collect_one(FULL, popen.pid, tmp_path), tmp_path)
        judges = judges_core(popen, tmp_path)
    with opened(ours) as one, opened(judges) as other:
        seen, expected = dict(one.pages()), dict(other.pages())
    touched = {name: at + 8192 for name, at in places.items()}
    assert {name: seen.get(at) for name, at in touched.items()} == {
        name: expected.get(at) for name, at in touched.items()
    }
    assert (touched["private of nothing"] in seen) == bool(kernel_filter & 1)
    assert (touched["shared of a file"] in seen) == bool(kernel_filter & 8)
    assert touched["not to be dumped"] not in seen


def judges_core(popen: subprocess.Popen[bytes], folder: Path) -> Path:
    """
    A core that the kernel wrote when the process crashed; gdb's where the kernel hands cores to a program.

    Both go by coredump_filter.
    """
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")) or "%" in pattern:
        run("gcore", "-o", folder / "judge", str(popen.pid))
        popen.kill()
        return folder / f"judge.{popen.pid}"
    resource.prlimit(popen.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(popen.pid, signal.SIGABRT)
    popen.wait()
    [written] = [path for path in folder.iterdir() if path.name in (pattern, f"{pattern}.{popen.pid}")]
    return written


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_pause_longer_than_allowed_is_refused_and_the_next_step_works(tmp_path: Path) -> None:
    with zoo.start("c", "big", 256) as sick:
        got = collect_one(Core(kind=CoreKind.FULL, allow_pause_s=0.01), sick.pid, tmp_path)
        gap = got.gap("would-harm")
        assert gap.outcome is Outcome.REFUSED
        assert "0.01 s are allowed" in gap.reason.says
        assert not [touch for touch in got.touches if touch.verb == "freeze"]
        option, seconds = gap.reason.next_step.split()
        assert option == "--allow-pause"
        again = collect_one(Core(kind=CoreKind.FULL, allow_pause_s=float(seconds)), sick.pid, tmp_path)
        assert "core" in again.artifacts
        sick.assert_alive()


@pytest.mark.needs("eu-stack")
def test_at_the_pause_limit_the_target_goes_on_and_the_cut_core_has_every_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_core, "COPY_BYTES_PER_S", 1e15)  # a prediction that is far too bold
    write = live_core._write

    def slow(fd: int, chunk: bytes | memoryview) -> int:
        time.sleep(0.005)
        return write(fd, chunk)

    monkeypatch.setattr(live_core, "_write", slow)
    with zoo.start("c", "big", 256) as sick:
        got = collect_one(Core(kind=CoreKind.FULL, allow_pause_s=0.5), sick.pid, tmp_path)
        sick.assert_alive()
    settlement = got.settlements["core"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "pause-limit"
    assert settlement.reason.next_step.startswith("--allow-pause ")
    actual, expected = settlement.facts["actual_bytes"], settlement.facts["expected_bytes"]
    assert isinstance(expected, int)
    assert actual == len(got.artifacts["core"]) < expected
    assert expected > 256 * MIB
    assert settlement.pause is not None
    assert settlement.pause.seconds >= 0.5
    check = CoreCheck()
    check.feed(got.artifacts["core"])
    assert check.finish().shape is Shape.CUT
    said = run("eu-stack", f"--core={core_file(got, tmp_path)}", "-e", zoo.build("c"))
    assert " stay" in said
    assert " beat" in said


def test_a_volume_without_room_is_refused(tmp_path: Path) -> None:
    with zoo.start("c", "big", 16) as sick:
        got = collect_one(FULL, sick.pid, tmp_path, floor_bytes=1 << 60)
        sick.assert_alive()
    assert got.gap("would-harm").outcome is Outcome.REFUSED
    assert "--evidence" in got.gap("would-harm").reason.next_step
    assert not [touch for touch in got.touches if touch.verb == "freeze"]


@pytest.mark.needs("root", "mount", "unshare")
def test_a_volume_that_fills_up_keeps_what_fits_and_frees_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", small], check=True)
    try:
        monkeypatch.setattr(core_module, "predict_full", lambda *_: 0)
        with zoo.start("c", "big", 64) as sick:
            got = collect_one(FULL, sick.pid, small, floor_bytes=0)
            sick.assert_alive()
    finally:
        subprocess.run(["umount", small], check=True)
    settlement = got.settlements["core"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "volume-full"
    assert 16 * MIB < len(got.artifacts["core"]) <= 24 * MIB


def test_the_budget_leaves_time_to_hash_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_core, "HASH_BYTES_PER_S", 1e6)
    with zoo.start("c", "big", 64) as sick:
        got = collect_one(FULL, sick.pid, tmp_path, limit_s=10.0)
        sick.assert_alive()
    settlement = got.settlements["core"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "deadline-passed"
    assert 0 < len(got.artifacts["core"]) < 32 * MIB


def test_a_target_that_is_killed_while_it_is_copied_leaves_a_partial_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = live_core._write

    with zoo.start("c", "big", 64) as sick:

        def kill(fd: int, chunk: bytes | memoryview) -> int:
            if os.fstat(fd).st_size > 16 * MIB and "Z" not in states(sick.pid).values():
                os.kill(sick.pid, signal.SIGKILL)
                wait_for(lambda: "Z" in states(sick.pid).values())
            return write(fd, chunk)

        monkeypatch.setattr(live_core, "_write", kill)
        got = collect_one(FULL, sick.pid, tmp_path)
        assert sick.popen.wait() == -signal.SIGKILL
    settlement = got.settlements["core"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "target-gone"
    assert b"zoo-big-block 00000010" in got.artifacts["core"]


@pytest.mark.needs("gdb")
def test_registers_that_pmf_does_not_know_are_left_to_gcore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotSupported("the target is a 32-bit program")

    monkeypatch.setattr(core_module, "predict_full", refuse)
    with zoo.start("c", "threads", 2) as sick:
        got = collect_one(FULL, sick.pid, tmp_path)
        sick.assert_alive()
    settlement = got.settlements["core"]
    assert settlement.outcome is Outcome.COLLECTED
    assert settlement.facts["tool"] == "gcore"
    assert settlement.facts["structure"] == "whole"
    assert settlement.pause is not None
    assert settlement.pause.basis is PauseBasis.AT_MOST


# -- the file itself -------------------------------------------------------------------------------------------------


@pytest.mark.needs("readelf")
@pytest.mark.parametrize("count", [65_533, 65_534, 70_000])
def test_more_segments_than_the_header_can_count(count: int, tmp_path: Path) -> None:
    segments = [
        Segment(at * PAGE, (at + 1) * PAGE, "rw-p", held=at % 1000 == 0, rank=-at) for at in range(1, count + 1)
    ]
    image = lay_out(MACHINES["x86_64"], segments, b"", PAGE)
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.write(image.head)
        for segment in image.contents:
            file.write(segment.start.to_bytes(8, "little").ljust(segment.bytes, b"."))
    assert path.stat().st_size == image.file_bytes
    assert f"There are {count + 1} program headers" in run("readelf", "-lW", path)
    check = CoreCheck()
    check.feed(path.read_bytes())
    verdict = check.finish()
    assert verdict.shape is Shape.WHOLE, verdict.says
    assert verdict.facts["segments"] == count
    with opened(path) as core:
        assert len(core.loads) == count
        held = [load for load in core.loads if load["p_filesz"]]
        assert len(held) == count // 1000
        for load in held:
            core.file.seek(load["p_offset"])
            assert int.from_bytes(core.file.read(8), "little") == load["p_vaddr"]
