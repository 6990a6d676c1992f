"""Holding on to one process: never a successor's facts, and a plain word for what is no process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmforensics.collect.pin import pin, split_stat
from pmforensics.errors import NoSuchProcess, NotAProcess
from tests import captures, zoo


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_pin_knows_what_the_kernel_says(sleeper: subprocess.Popen[bytes]) -> None:
    captures.wait_for("the exec", lambda: Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n")
    captures.wait_for("the sleep", lambda: Path(f"/proc/{sleeper.pid}/wchan").read_text().endswith("nanosleep"))
    with pin(sleeper.pid) as held:
        assert (held.pid, held.comm, held.state) == (sleeper.pid, "sleep", "S")
        fields = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()
        assert held.start_ticks == int(fields[19])
        assert held.is_alive()


def test_pin_of_a_process_that_exits_reads_nothing_of_it_or_of_anyone(sleeper: subprocess.Popen[bytes]) -> None:
    with pin(sleeper.pid) as held:
        sleeper.kill()
        sleeper.wait()
        assert not held.is_alive()
        for name in ("stat", "status", "comm", "cmdline", "maps"):
            with pytest.raises((ProcessLookupError, FileNotFoundError)):
                held.read(name)


def test_zombie_can_be_pinned_and_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    captures.wait_for("the zombie", lambda: captures.states(sleeper.pid) == {"Z"})
    with pin(sleeper.pid) as held:
        assert held.state == "Z"
        assert not held.is_alive()
        assert b"State:\tZ" in held.read("status")


def test_state_is_that_at_the_moment_of_pinning(sleeper: subprocess.Popen[bytes]) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    captures.wait_for("the stop", lambda: captures.states(sleeper.pid) == {"T"})
    with pin(sleeper.pid) as held:
        os.kill(sleeper.pid, signal.SIGCONT)
        assert held.state == "T"


def test_thread_id_names_its_process(needs: object) -> None:
    needs(*zoo.tools("c"))  # type: ignore[operator]
    with zoo.start("c", "threads", 1) as sick:
        tids = {int(path.name) for path in Path(f"/proc/{sick.pid}/task").iterdir()} - {sick.pid}
        for tid in tids:
            with pytest.raises(NotAProcess, match=f"thread of process {sick.pid}") as caught:
                pin(tid)
            assert str(sick.pid) in caught.value.hint
        assert tids


def test_own_process_and_own_threads_are_no_targets() -> None:
    with pytest.raises(NotAProcess, match="itself"):
        pin(os.getpid())
    found: list[int] = []
    go = threading.Event()
    thread = threading.Thread(target=lambda: (found.append(threading.get_native_id()), go.wait()))
    thread.start()
    try:
        captures.wait_for("the thread", lambda: found)
        with pytest.raises(NotAProcess):
            pin(found[0])
    finally:
        go.set()
        thread.join()


@pytest.mark.parametrize("pid", [0, -1, 4_194_305, 2**31, 10**40])
def test_number_of_no_process_is_said(pid: int) -> None:
    with pytest.raises(NoSuchProcess) as caught:
        pin(pid)
    assert str(pid) in caught.value.message
    assert caught.value.hint


def test_pinning_leaks_no_descriptor(sleeper: subprocess.Popen[bytes]) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(50):
        pin(sleeper.pid).close()
        with pytest.raises(NoSuchProcess):
            pin(4_194_305)
    assert count() == before


def test_read_stops_at_its_limit(sleeper: subprocess.Popen[bytes]) -> None:
    with pin(sleeper.pid) as held:
        assert len(held.read("maps", 100)) == 100


@pytest.mark.parametrize("comm", ["a b", ") R 1 (", "(((", ")))", "x\ny", "\x1b[31m", "R 1 2 3 4 5 6"])
def test_comm_with_anything_in_it_does_not_shift_the_fields(comm: str) -> None:
    code = "import sys, time; open('/proc/self/comm', 'w').write(sys.argv[1]); time.sleep(1000)"
    with subprocess.Popen([captures.sys.executable, "-c", code, comm]) as named:
        try:
            path = Path(f"/proc/{named.pid}/comm")
            captures.wait_for("the name", lambda: path.read_text() == comm[:15] + "\n")
            captures.wait_for("the sleep", lambda: path.with_name("wchan").read_text().endswith("nanosleep"))
            with pin(named.pid) as held:
                assert (held.comm, held.state) == (comm[:15], "S")
                assert held.start_ticks > 0
        finally:
            named.kill()


@given(st.binary(max_size=40), st.integers(0, 10**18))
def test_split_stat_finds_the_fields_behind_any_comm(comm: bytes, start: int) -> None:
    fields = [b"S", *(b"%d" % number for number in range(18)), b"%d" % start]
    split = split_stat(b"4711 (" + comm + b") " + b" ".join(fields) + b"\n")
    assert split[1] == fields
    assert split[0] == comm.decode("utf-8", "replace")
