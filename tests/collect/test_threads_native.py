from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pmforensics.collect import live_core, threads_native
from pmforensics.collect.core_contents import CoreLimits
from pmforensics.collect.host import LocalHost
from pmforensics.collect.threads_native import ThreadsNative
from pmforensics.errors import AccessDenied, NotSupported
from pmforensics.model.capture import Outcome, PauseBasis
from tests import zoo
from tests.collect.frozen import build, running, states, wait_for
from tests.collect.harness import Collected, collect_one

PATIENT = ThreadsNative(allow_pause_s=60.0)  # where the test is not about the limit: the machine may be slow

pytestmark = pytest.mark.needs("gcc")


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def without(monkeypatch: pytest.MonkeyPatch, *tools: str) -> None:
    """As on a machine that lacks these tools."""
    find = LocalHost.find_tool
    monkeypatch.setattr(
        LocalHost, "find_tool", lambda host, *names: find(host, *(name for name in names if name not in tools))
    )


def text(got: Collected) -> str:
    return got.artifacts["threads.txt"].decode()


def core_file(got: Collected, tmp_path: Path) -> Path:
    path = tmp_path / "stacks.core"
    path.write_bytes(got.artifacts["stacks.core"])
    return path


def functions(words: str) -> Counter[str]:
    """How many frames of each function there are, in the words of eu-stack or gdb."""
    return Counter(re.findall(r"^#\d+ +(?:0x[0-9a-f]+ )?(?:in )?([A-Za-z_][\w.]*)", words, re.MULTILINE))


def tids(words: str) -> list[int]:
    return sorted(int(tid) for tid in re.findall(r"^(?:TID |Thread .*\(LWP )(\d+)", words, re.MULTILINE))


def build_ids(core: Path) -> set[tuple[str, str]]:
    """(build id, start and length) of every image, as elfutils reads them from the core alone."""
    rows = [line.split() for line in run("eu-unstrip", "-n", "--core", core).splitlines()]
    return {(row[1].partition("@")[0], row[0]) for row in rows}


def build_id(path: Path | str) -> str:
    found = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-n", path))
    assert found, path
    return found[1]


# -- what it shows ---------------------------------------------------------------------------------------------------


@pytest.mark.needs("eu-stack", "gdb")
@pytest.mark.parametrize("tool", ["eu-stack", "gdb"])
def test_every_thread_is_shown_where_it_waits(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *({"eu-stack", "gdb"} - {tool}))
    with zoo.start("c", "threads", 20) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        judge = run("gdb", "-nx", "-batch", "-p", str(sick.pid), "-ex", "thread apply all bt")
        sick.assert_alive()
    settlement = got.settlements["threads.txt"]
    assert settlement.outcome is Outcome.COLLECTED
    assert settlement.facts["tool"] == tool
    assert tool.partition("-")[0] in str(settlement.facts["version"]).lower()
    assert tids(text(got)) == tids(judge)
    seen, expected = functions(text(got)), functions(judge)
    assert seen["sleep_in_nanosleep"] == expected["sleep_in_nanosleep"] == 10
    assert seen["wait_on_futex"] == expected["wait_on_futex"] == 10
    assert seen["stay"] == expected["stay"] == 1
    assert seen["main"] == expected["main"] == 1
    assert seen["start_thread"] == expected["start_thread"] == 21
    assert not got.gaps
    assert got.runs_again is True


@pytest.mark.needs("gdb")
def test_the_registers_are_those_that_gdb_reads(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 6) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        ask = ("-ex", "thread apply all -s info registers")
        live = run("gdb", "-nx", "-batch", "-p", str(sick.pid), *ask)
        exe = f"/proc/{sick.pid}/exe"
        dead = run("gdb", "-nx", "-batch", *ask, exe, core_file(got, tmp_path))
        beat = next(
            int(p.parent.name) for p in Path(f"/proc/{sick.pid}/task").glob("*/comm") if "heartbeat" in p.read_text()
        )
    registers = re.compile(r"^Thread .*\(LWP (\d+)\).*\n((?:\w+ +0x[0-9a-f]+ .*\n)+)", re.MULTILINE)
    # gdb 13 knows one layout of the vector registers and says so of every other one, also in the kernel's cores.
    dead = re.sub(r"^warning: Section `.reg-xstate/.*\n", "", dead, flags=re.MULTILINE)
    seen, expected = dict(registers.findall(dead)), dict(registers.findall(live))
    assert len(seen) == 8
    # The heartbeat sleeps and wakes; all others stand at one place.
    resting = expected.keys() - {str(beat)}
    assert len(resting) == 7
    general = re.compile(r"^(r\w+|e\w+|[c-gs]s|x\d+|sp|pc|lr) +(0x[0-9a-f]+)", re.MULTILINE)
    for tid in resting:
        # A restarted system call leaves another value in the result register than a fresh one.
        one, other = dict(general.findall(seen[tid])), dict(general.findall(expected[tid]))
        assert len(one) > 15
        assert {**one, "rax": ""} == {**other, "rax": ""}


@pytest.mark.needs("eu-unstrip", "gdb", "readelf")
def test_every_image_has_its_build_id_in_the_core(tmp_path: Path) -> None:
    with zoo.start("python", "lock-wait") as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        maps = Path(f"/proc/{sick.pid}/maps").read_text()
        run("gcore", "-o", tmp_path / "gcore", str(sick.pid))
    core = core_file(got, tmp_path)
    assert build_ids(core) == build_ids(tmp_path / f"gcore.{sick.pid}")
    images = set(re.findall(r"^\S+ r-xp .* (/\S+)$", maps, re.MULTILINE))
    assert len(images) > 3
    assert {build_id(image) for image in images} <= {found for found, _ in build_ids(core)}
    assert len(got.artifacts["stacks.core"]) < 8 << 20


@pytest.mark.needs("eu-stack", "readelf")
def test_the_core_is_one_that_others_read(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 5) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        maps = Path(f"/proc/{sick.pid}/maps").read_text().splitlines()
        auxv = Path(f"/proc/{sick.pid}/auxv").read_bytes()
        stat = Path(f"/proc/{sick.pid}/stat").read_text().split()
    core = core_file(got, tmp_path)
    judge = subprocess.run(["readelf", "-hlnW", core], capture_output=True, text=True, check=True)
    assert "Warning" not in judge.stderr
    elf = ELFFile(BytesIO(core.read_bytes()))
    notes = [note for segment in elf.iter_segments("PT_NOTE") for note in segment.iter_notes()]
    assert elf.header.e_type == "ET_CORE"
    kinds = Counter(note["n_type"] for note in notes)
    assert kinds["NT_PRSTATUS"] == kinds["NT_FPREGSET"] == 7
    [psinfo] = [note["n_desc"] for note in notes if note["n_type"] == "NT_PRPSINFO"]
    assert psinfo["pr_pid"] == sick.pid
    assert psinfo["pr_fname"].rstrip(b"\0") == b"zoo"
    assert (psinfo["pr_ppid"], psinfo["pr_pgrp"], psinfo["pr_sid"]) == tuple(map(int, stat[3:6]))
    assert auxv in got.artifacts["stacks.core"]
    [files] = [note["n_desc"] for note in notes if note["n_type"] == "NT_FILE"]
    mapped = [line for line in maps if line.split()[4] != "0"]
    assert len(mapped) > 8
    assert [(entry.vm_start, entry.vm_end) for entry in files["Elf_Nt_File_Entry"]] == [
        tuple(int(part, 16) for part in line.split()[0].split("-")) for line in mapped
    ]
    places = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in maps]
    loads = list(elf.iter_segments("PT_LOAD"))
    assert [load["p_vaddr"] for load in loads] == sorted(load["p_vaddr"] for load in loads)
    for start, end in places:  # every mapping is covered, without holes
        inside = [load for load in loads if start <= load["p_vaddr"] < end]
        assert sum(load["p_memsz"] for load in inside) == end - start


@pytest.mark.needs("eu-stack")
def test_three_hundred_threads(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 300) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path, limit_s=60.0)
        sick.assert_alive()
    assert len(tids(text(got))) == 302
    assert functions(text(got))["wait_on_futex"] == 150
    assert got.settlements["stacks.core"].facts["threads"] == 302


@pytest.mark.needs("eu-stack")
@pytest.mark.parametrize(
    ("program", "way", "inside"),
    [
        ("go", ("producer-gone", 1000), "runtime.futex"),
        ("java", ("lock-ring",), "JavaThread"),
        ("python", ("gil-held",), "fread"),
        ("node", ("loop",), "uv_"),
    ],
)
def test_every_runtime_shows_all_its_threads_and_goes_on(
    program: str, way: Sequence[object], inside: str, tmp_path: Path, needs: object
) -> None:
    needs(*zoo.tools(program))  # type: ignore[operator]
    with zoo.start(program, str(way[0]), *way[1:]) as sick:
        before = {int(tid) for tid in os.listdir(f"/proc/{sick.pid}/task")}
        got = collect_one(PATIENT, sick.pid, tmp_path, limit_s=60.0)
        after = {int(tid) for tid in os.listdir(f"/proc/{sick.pid}/task")}
        sick.assert_alive()
    assert before & after <= set(tids(text(got))) <= before | after
    assert inside in text(got)
    assert got.runs_again is True
    assert got.settlements["stacks.core"].pause is not None
    assert got.settlements["stacks.core"].pause.basis is PauseBasis.MEASURED


# -- images that are not where their names say -----------------------------------------------------------------------

LIBRARY = """
#include <unistd.h>
__attribute__((noinline)) static void %s(void) { for (;;) pause(); }
void *wait_in_library(void *unused) { %s(); return unused; }
"""


def build_library(path: Path, function: str) -> None:
    source = path.with_suffix(".c")
    source.write_text(LIBRARY % (function, function))
    subprocess.run([zoo.get_tool("gcc"), "-g", "-O1", "-shared", "-fPIC", "-o", path, source], check=True)


def forbid_map_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE."""
    open_proc = LocalHost.open_proc

    def opens(host: LocalHost, name: str) -> int:
        if "map_files" in name:
            raise AccessDenied(f"{name}: Operation not permitted")
        return open_proc(host, name)

    monkeypatch.setattr(LocalHost, "open_proc", opens)


@pytest.mark.needs("root", "gdb")
@pytest.mark.parametrize("map_files", [True, False])
def test_a_library_replaced_on_disk_is_never_read_for_the_one_that_is_mapped(
    map_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not map_files:
        forbid_map_files(monkeypatch)
    library, newer = tmp_path / "lib.so", tmp_path / "newer.so"
    build_library(library, "waits_in_the_old_build")
    build_library(newer, "waits_in_the_new_build")
    with running("library", tmp_path, library) as target:
        newer.rename(library)
        got = collect_one(PATIENT, target.pid, tmp_path)
        target.assert_running()
    assert ("waits_in_the_old_build" in text(got)) is map_files
    assert "waits_in_the_new_build" not in text(got)
    assert functions(text(got))["main"] == 1
    assert got.settlements["threads.txt"].facts["tool"] == "gdb"


@pytest.mark.needs("root", "gdb")
def test_an_unlinked_executable_is_named(tmp_path: Path) -> None:
    with zoo.start("c", "deleted") as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        sick.assert_alive()
    assert functions(text(got))["stay"] == 1


# What container runtimes do: a mount namespace whose root is another folder, and nothing above it.
CONTAINED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
root = sys.argv[1].encode()
def must(result):
    assert result == 0, os.strerror(ctypes.get_errno())
must(libc.unshare(0x20000))  # CLONE_NEWNS
must(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
must(libc.mount(root, root, None, 0x1000, None))  # MS_BIND
os.chdir(root)
must(libc.syscall(155 if os.uname().machine == "x86_64" else 41, b".", b"."))  # pivot_root
must(libc.umount2(b".", 2))  # MNT_DETACH
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.needs("root", "gdb", "ldd")
@pytest.mark.parametrize("map_files", [True, False])
def test_a_containers_images_are_found_in_its_own_root(
    map_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its libc is a file of its own, reached by an absolute link that from here would lead nowhere."""
    if not map_files:
        forbid_map_files(monkeypatch)
    root = tmp_path / "root"
    (root / "image" / "lib").mkdir(parents=True)
    libraries = re.findall(r"(/\S+) \(0x", run("ldd", build()))
    assert len(libraries) >= 2
    for path in map(Path, libraries):
        inside = root / str(path).lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.resolve(), root / "image" / "lib" / path.name)
        inside.symlink_to(Path("/image/lib") / path.name)
    shutil.copy(build(), root / "frozen")
    numbers = root / "numbers"
    numbers.write_bytes(bytes(4096))
    build_library(root / "own.so", "waits_in_the_container")
    command = [sys.executable, "-c", CONTAINED, root, "/frozen", "library", "/numbers", "/own.so"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as popen:
        try:
            assert popen.stdout is not None
            assert popen.stdout.readline() == b"ready\n"
            got = collect_one(PATIENT, popen.pid, tmp_path)
        finally:
            os.killpg(popen.pid, signal.SIGKILL)
    assert got.target is not None
    assert not got.target.same_mnt_ns
    names = functions(text(got))
    assert names["waits_in_the_container"] == 1
    assert names["main"] == 1
    assert names["start_thread"] == 2  # from the container's libc


# -- what stands in the way ------------------------------------------------------------------------------------------


@pytest.mark.needs("strace", "root")
def test_a_traced_target_yields_the_reason_and_kernel_stacks(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:
        log = tmp_path / "strace.log"
        with subprocess.Popen(["strace", "-f", "-o", log, "-p", str(sick.pid)], stderr=subprocess.DEVNULL) as strace:
            try:
                status = Path(f"/proc/{sick.pid}/status")
                wait_for(lambda: f"TracerPid:\t{strace.pid}\n" in status.read_text())
                got = collect_one(PATIENT, sick.pid, tmp_path)
            finally:
                strace.terminate()
        sick.assert_alive()
    gap = got.gap("access-denied")
    assert gap.outcome is Outcome.DENIED
    assert gap.reason.says == f"process {sick.pid} is already traced by process {strace.pid} (strace)"
    assert got.order == ["kernel_stacks.txt"]
    kernel = got.artifacts["kernel_stacks.txt"].decode()
    assert len(tids(kernel)) == 5
    assert "hrtimer_nanosleep" in kernel


def test_no_pause_allowed_means_no_pause(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(ThreadsNative(allow_pause_s=0.0), sick.pid, tmp_path)
        sick.assert_alive()
    gap = got.gap("would-harm")
    assert gap.outcome is Outcome.REFUSED
    assert gap.reason.next_step.startswith("--allow-pause ")
    assert "stacks.core" not in got.artifacts
    assert not [touch for touch in got.touches if touch.verb == "freeze"]


def test_the_next_step_of_a_refusal_is_enough(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 100) as sick:
        refused = collect_one(ThreadsNative(allow_pause_s=0.001), sick.pid, tmp_path).gap("would-harm")
        option, seconds = refused.reason.next_step.split()
        assert option == "--allow-pause"
        got = collect_one(ThreadsNative(allow_pause_s=float(seconds)), sick.pid, tmp_path)
    assert not [gap for gap in got.gaps if gap.reason.code == "would-harm"]


@pytest.mark.needs("root")
def test_without_a_tool_the_core_is_kept_and_the_kernel_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "eu-stack", "gdb")
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
    assert got.order == ["stacks.core", "kernel_stacks.txt"]
    gap = got.gap("tool-missing")
    assert gap.outcome is Outcome.MISSING
    assert "elfutils" in gap.reason.next_step


@pytest.mark.needs("eu-stack", "gdb")
def test_a_tool_that_shows_nothing_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "eu-stack"
    broken.write_text("#!/bin/sh\necho nothing to see\nexit 2\n")
    broken.chmod(0o755)
    find = LocalHost.find_tool
    monkeypatch.setattr(
        LocalHost, "find_tool", lambda host, *names: broken if "eu-stack" in names else find(host, *names)
    )
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
    assert got.settlements["threads.txt"].facts["tool"] == "gdb"
    assert len(tids(text(got))) == 5


@pytest.mark.needs("eu-stack")
def test_fewer_threads_than_the_core_holds_is_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "eu-stack"
    short.write_text(f'#!/bin/sh\n{zoo.get_tool("eu-stack")} "$@" | head -n 8\n')
    short.chmod(0o755)
    find = LocalHost.find_tool
    monkeypatch.setattr(
        LocalHost, "find_tool", lambda host, *names: short if "eu-stack" in names else find(host, *names)
    )
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
    settlement = got.settlements["threads.txt"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert "of 5 threads" in settlement.reason.says


@pytest.mark.needs("eu-stack")
def test_a_thread_that_does_not_stop_is_a_gap_and_still_has_its_place(tmp_path: Path) -> None:
    with running("vfork", tmp_path) as target:
        wait_for(lambda: "D" in states(target.pid).values())
        [stuck] = [tid for tid, state in states(target.pid).items() if state == "D"]
        got = collect_one(PATIENT, target.pid, tmp_path)
        target.assert_running()
    assert got.settlements["stacks.core"].facts["threads_not_stopped"] == 1
    gap = got.gap("not-stopped")
    assert gap.outcome is Outcome.PARTIAL
    assert f"{stuck} (D)" in gap.reason.says
    assert len(tids(text(got))) == 3
    part = text(got).partition(f"TID {stuck}:")[2]
    assert "vfork" in part.splitlines()[1]


@pytest.mark.needs("eu-stack")
def test_a_leader_that_is_gone_does_not_hide_the_others(tmp_path: Path) -> None:
    with running("leader-gone", tmp_path) as target:
        wait_for(lambda: states(target.pid)[target.pid] == "Z")
        got = collect_one(PATIENT, target.pid, tmp_path)
        before = target.numbers()[0]
        wait_for(lambda: target.numbers()[0] > before)
    assert functions(text(got))["beat"] == 1


@pytest.mark.needs("eu-stack")
def test_a_stopped_target_is_read_and_stays_stopped(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        wait_for(lambda: set(states(sick.pid).values()) == {"T"})
        got = collect_one(PATIENT, sick.pid, tmp_path)
        assert set(states(sick.pid).values()) == {"T"}
        os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()
    assert len(tids(text(got))) == 5
    assert got.runs_again is True


@pytest.mark.needs("eu-stack")
def test_registers_that_pmf_does_not_know_are_left_to_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotSupported("the target is a 32-bit program")

    monkeypatch.setattr(threads_native, "take_stacks", refuse)
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path)
        refused = collect_one(ThreadsNative(allow_pause_s=0.1), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == ["threads.txt"]
    assert len(tids(text(got))) == 5
    pause = got.settlements["threads.txt"].pause
    assert pause is not None
    assert pause.basis is PauseBasis.AT_MOST
    assert refused.gap("would-harm").reason.next_step.startswith("--allow-pause ")


def test_a_zombie_has_nothing_left(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as popen:
        wait_for(lambda: set(states(popen.pid).values()) == {"Z"})
        got = collect_one(PATIENT, popen.pid, tmp_path)
    gap = got.gap("not-there")
    assert "zombie" in gap.reason.says
    assert gap.outcome is Outcome.MISSING
    assert not got.order


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("eu-stack")
def test_without_the_core_the_pause_is_told_with_the_text(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(ThreadsNative(keep_core=False, allow_pause_s=60.0), sick.pid, tmp_path)
    assert got.order == ["threads.txt"]
    assert got.settlements["threads.txt"].pause is not None


def test_a_volume_without_room_costs_the_core_but_not_the_text(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:
        got = collect_one(PATIENT, sick.pid, tmp_path, floor_bytes=1 << 60)
    assert got.order == ["threads.txt"]
    assert got.gap("would-harm").wanted == "threads_native/stacks.core"


def test_arguments_are_redacted_in_the_notes(tmp_path: Path) -> None:
    command = ["sh", "-c", "read never", "sh", "--password=hunter2-in-the-clear"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as popen:
        try:
            wait_for(lambda: b"hunter2" in Path(f"/proc/{popen.pid}/cmdline").read_bytes())
            got = collect_one(PATIENT, popen.pid, tmp_path)
        finally:
            popen.kill()
    elf = ELFFile(BytesIO(got.artifacts["stacks.core"]))
    notes = [note for segment in elf.iter_segments("PT_NOTE") for note in segment.iter_notes()]
    [psinfo] = [note["n_desc"] for note in notes if note["n_type"] == "NT_PRPSINFO"]
    assert b"--password=" in psinfo["pr_psargs"]
    assert b"hunter2" not in psinfo["pr_psargs"]
    said = [touch.what for touch in got.touches] + [str(each) for each in got.settlements.values()]
    assert not [words for words in said if "hunter2" in words]


@pytest.mark.needs("eu-stack")
def test_a_deep_stack_is_kept_whole_within_the_limit_and_cut_beyond(tmp_path: Path) -> None:
    with zoo.start("c", "deep-stack", 800) as sick:
        whole = collect_one(PATIENT, sick.pid, tmp_path)
        cut = collect_one(ThreadsNative(allow_pause_s=60.0, stack_bytes=8192), sick.pid, tmp_path)
    assert functions(text(whole))["descend"] == 800
    assert 0 < functions(text(cut))["descend"] < 800
    assert functions(text(cut))["main"] == 0


def test_when_the_pause_is_up_the_rest_is_left_out_and_the_core_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = live_core._Reader.chunks

    def slow(reader: live_core._Reader, segment: live_core.Segment) -> object:
        time.sleep(0.05)  # as memory that was swapped out
        return read(reader, segment)

    monkeypatch.setattr(live_core._Reader, "chunks", slow)
    with zoo.start("c", "threads", 20) as sick:
        got = collect_one(ThreadsNative(allow_pause_s=0.3), sick.pid, tmp_path)
        sick.assert_alive()
    settlement = got.settlements["stacks.core"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "pause-limit"
    assert settlement.reason.next_step.startswith("--allow-pause ")
    elf = ELFFile(BytesIO(got.artifacts["stacks.core"]))
    held = [segment for segment in elf.iter_segments("PT_LOAD") if segment["p_filesz"]]
    assert 0 < len(held) < 20
    assert all(len(segment.data()) == segment["p_filesz"] for segment in held)


def test_a_memory_limit_shared_by_many_threads_leaves_each_its_top(tmp_path: Path) -> None:
    limits = CoreLimits(60.0, 256 << 10, 1 << 20)
    with zoo.start("c", "threads", 100) as sick:
        got = collect_one(
            ThreadsNative(allow_pause_s=60.0, limit_bytes=limits.leading_bytes), sick.pid, tmp_path, limit_s=60.0
        )
    assert functions(text(got))["wait_on_futex"] == 50
    assert len(got.artifacts["stacks.core"]) < 3 << 20
