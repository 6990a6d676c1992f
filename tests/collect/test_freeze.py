from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pmforensics.collect import freeze as freezing
from pmforensics.collect.freeze import Freeze, freeze, machine_of
from pmforensics.collect.host import LocalHost
from pmforensics.collect.pin import pin
from pmforensics.errors import NotSupported, PmfError
from pmforensics.model.process import Target
from tests import zoo
from tests.collect.frozen import PATIENCE_S, running, states, wait_for

NOBODY = 65534

pytestmark = pytest.mark.needs("gcc")


@contextmanager
def door(pid: int, tmp_path: Path, touches: list[tuple[str, str]] | None = None) -> Iterator[tuple[Target, LocalHost]]:
    with pin(pid) as held:
        target = Target(pid, held.start_ticks, held.state, held.comm, uid=Path(f"/proc/{pid}").stat().st_uid)
        host = LocalHost(
            held,
            target,
            deadline=time.monotonic() + PATIENCE_S,
            spool=tmp_path,
            floor_bytes=0,
            log=lambda verb, what, _seconds, result: (
                touches.append((verb, f"{what}: {result}")) if touches is not None else None
            ),
        )
        yield target, host


def forked(job: Callable[[], Any]) -> tuple[int, int]:
    """Run `job` in a process of its own, as a collector runs; its pid and a pipe with its result as JSON."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            result = job()
        except PmfError as error:
            result = {"error": error.code, "says": error.message, "hint": error.hint}
        except BaseException:
            result = {"bug": traceback.format_exc()}
        os.write(write_fd, json.dumps(result).encode())
        os._exit(0)
    os.close(write_fd)
    return pid, read_fd


def result_of(child: tuple[int, int]) -> Any:
    pid, fd = child
    with os.fdopen(fd, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    result = json.loads(text) if text else {}
    assert "bug" not in (result if isinstance(result, dict) else {}), result["bug"]
    return result


def apart(job: Callable[[], Any]) -> Any:
    return result_of(forked(job))


def held(pid: int, tmp_path: Path, then: Callable[[Freeze], Any], hold_at_most_s: float = PATIENCE_S) -> Any:
    """Freeze in this process and return what `then` makes of it."""
    with (
        door(pid, tmp_path) as (target, host),
        freeze(target, host, stop_within_s=PATIENCE_S, hold_at_most_s=hold_at_most_s) as frozen,
    ):
        return then(frozen)


@pytest.mark.parametrize("threads", [1, 20, 300])
def test_every_thread_stands_still_and_runs_again(threads: int, tmp_path: Path) -> None:
    with zoo.start("c", "threads", threads) as sick:

        def look(frozen: Freeze) -> dict[str, Any]:
            return {"states": states(sick.pid), "threads": [thread.tid for thread in frozen.threads]}

        seen = apart(lambda: held(sick.pid, tmp_path, look))
        assert len(seen["threads"]) == threads + 2  # the main thread and the heartbeat
        assert set(map(str, seen["threads"])) == set(seen["states"])
        assert set(seen["states"].values()) == {"t"}
        assert seen["threads"][0] == sick.pid
        sick.assert_alive()


def test_the_pause_is_measured_from_the_first_stop_to_the_last_release(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 2) as sick:
        wait_for(lambda: sick.beats() > 2)

        def hold() -> float:
            with (
                door(sick.pid, tmp_path) as (target, host),
                freeze(target, host, stop_within_s=PATIENCE_S, hold_at_most_s=PATIENCE_S) as frozen,
            ):
                time.sleep(0.3)
                frozen.release()
                time.sleep(0.5)
                return frozen.pause.seconds

        since_ns = time.monotonic_ns()
        pause_s = apart(hold)
        sick.assert_alive()
        # The heartbeat is the other clock: it cannot have stood still for longer than we say, but for its own period
        # and the time that the machine takes to wake it.
        assert 0.3 <= pause_s < 0.8
        assert sick.longest_pause_ns(since_ns) >= 0.3e9


def test_a_killed_collector_leaves_the_target_running(tmp_path: Path) -> None:
    random = Random(20261120)
    with zoo.start("c", "threads", 20) as sick:
        hits = 0
        for _ in range(60):
            pid, fd = forked(lambda: held(sick.pid, tmp_path, lambda frozen: time.sleep(PATIENCE_S)))
            if random.random() < 0.5:  # from its very beginning, or from the first stop on
                wait_for(lambda: "t" in states(sick.pid).values())
            time.sleep(random.uniform(0, 0.006))
            hits += "t" in states(sick.pid).values()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(fd)
            wait_for(lambda: not set(states(sick.pid).values()) & set("Tt"))
        sick.assert_alive()
        assert hits > 20  # the kills did hit the target while it was held


def test_a_collector_that_hangs_is_ended_by_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "LATE_S", 0.1)
    with zoo.start("c", "threads", 2) as sick:

        def hang(frozen: Freeze) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            subprocess.run(["sleep", "infinity"], check=False)

        pid, fd = forked(lambda: held(sick.pid, tmp_path, hang, hold_at_most_s=0.1))
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGALRM
        sick.assert_alive()


def test_no_signal_is_lost_to_freezing_and_to_being_killed_while_freezing(tmp_path: Path) -> None:
    random = Random(1)
    with running("signals", tmp_path) as target:
        sent = 0
        delivering = 0
        for _ in range(60):
            # Half of the freezers end in order, half are killed at a random instant.
            seconds = random.uniform(0, 0.004)
            read_fd, write_fd = os.pipe()

            def count(frozen: Freeze, seconds: float = seconds, fd: int = write_fd) -> None:
                os.write(fd, bytes([sum(thread.signal == signal.SIGRTMIN for thread in frozen.threads)]))
                time.sleep(seconds)

            child, fd = forked(lambda count=count: held(target.pid, tmp_path, count))
            os.close(write_fd)
            give_up = time.monotonic() + random.uniform(0.001, 0.02)
            while time.monotonic() < give_up:
                send_queued_signal(target.pid)
                sent += 1
            if random.random() < 0.5:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(fd)
            delivering += sum(os.read(read_fd, 1))
            os.close(read_fd)
        wait_for(lambda: target.numbers()[1] >= sent)
        assert target.numbers()[1] == sent
        assert sent > 100
        assert delivering > 0  # some did stop with a signal in hand
        target.assert_running()


def send_queued_signal(pid: int) -> None:
    """One real-time signal: these are queued, never merged."""
    os.kill(pid, signal.SIGRTMIN)
    time.sleep(0.0002)


def test_a_signal_about_to_be_delivered_is_recorded(tmp_path: Path) -> None:
    with running("signals", tmp_path) as target:

        def job() -> list[Any]:
            with door(target.pid, tmp_path) as (subject, host):
                frozen = Freeze(subject, machine_of(subject))
                frozen.seize([int(name) for name in host.list_proc("task")])
                # Between the two steps of a freeze the signal stops its thread, which then waits for us with it.
                os.kill(target.pid, signal.SIGRTMIN)
                wait_for(lambda: "t" in states(target.pid).values())
                frozen.stop(PATIENCE_S)
                found = [(thread.signal, len(thread.siginfo), sum(thread.siginfo[:4])) for thread in frozen.threads]
                frozen.release()
                return found

        found = apart(job)
        assert sorted(found, key=lambda each: each[0])[-1] == [signal.SIGRTMIN, 128, signal.SIGRTMIN]
        wait_for(lambda: target.numbers()[1] == 1)
        target.assert_running()


def test_a_stopped_target_stays_stopped(tmp_path: Path) -> None:
    with running("signals", tmp_path) as target:
        os.kill(target.pid, signal.SIGSTOP)
        wait_for(lambda: set(states(target.pid).values()) == {"T"})
        threads = apart(lambda: held(target.pid, tmp_path, lambda frozen: [thread.pc for thread in frozen.threads]))
        assert len(threads) == 2
        assert all(threads)
        wait_for(lambda: set(states(target.pid).values()) == {"T"})
        before = target.numbers()[0]
        time.sleep(0.05)
        assert target.numbers()[0] == before
        os.kill(target.pid, signal.SIGCONT)
        target.assert_running()


def test_a_process_that_is_traced_already_is_refused_with_the_tracer_named(tmp_path: Path) -> None:
    with running("signals", tmp_path) as target:
        tracer, fd = forked(lambda: held(target.pid, tmp_path, lambda frozen: time.sleep(PATIENCE_S)))
        try:
            wait_for(lambda: set(states(target.pid).values()) == {"t"})
            refused = apart(lambda: held(target.pid, tmp_path, lambda frozen: None))
        finally:
            os.kill(tracer, signal.SIGKILL)
            os.waitpid(tracer, 0)
            os.close(fd)
        comm = Path("/proc/self/comm").read_text().strip()
        assert refused["error"] == "access-denied"
        assert refused["says"] == f"process {target.pid} is already traced by process {tracer} ({comm})"
        assert str(tracer) in refused["hint"]
        target.assert_running()


@pytest.mark.needs("root")
def test_another_users_process_is_refused_with_both_uids(tmp_path: Path) -> None:
    with running("signals", tmp_path) as target:

        def as_nobody() -> Any:
            import ctypes  # noqa: F401 - nobody may be unable to read the interpreter's own library

            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            return held(target.pid, tmp_path, lambda frozen: None)

        refused = apart(as_nobody)
        assert refused["error"] == "access-denied"
        assert refused["says"] == f"process {target.pid} runs as uid 0, pmf as uid {NOBODY}, without CAP_SYS_PTRACE"
        target.assert_running()


def test_threads_that_are_born_during_the_freeze_are_held_too(tmp_path: Path) -> None:
    with running("storm", tmp_path) as target:

        def look(frozen: Freeze) -> dict[str, Any]:
            before = target.numbers()
            seen = states(target.pid)
            time.sleep(0.02)
            return {"still": target.numbers() == before, "states": seen, "held": [t.tid for t in frozen.threads]}

        for _ in range(20):
            seen = apart(lambda: held(target.pid, tmp_path, look))
            assert seen["still"]
            assert set(seen["states"].values()) == {"t"}
            assert {int(tid) for tid in seen["states"]} == set(seen["held"])
        bred = target.numbers()[2]
        wait_for(lambda: target.numbers()[2] > bred)
        target.assert_running()


def vforked_child(pid: int) -> int:
    for task in Path(f"/proc/{pid}/task").iterdir():
        if children := (task / "children").read_text().split():
            return int(children[0])
    raise AssertionError("no vforked child")


def test_a_thread_that_cannot_stop_is_left_out_and_named(tmp_path: Path) -> None:
    with running("vfork", tmp_path) as target:
        wait_for(lambda: "D" in states(target.pid).values())
        [stuck] = [tid for tid, state in states(target.pid).items() if state == "D"]

        def look(frozen: Freeze) -> dict[str, Any]:
            thread = next(thread for thread in frozen.threads if thread.tid == stuck)
            return {
                "left_out": frozen.left_out,
                "stopped": [thread.tid for thread in frozen.threads if thread.stopped],
                "place": [hex(thread.sp), hex(thread.pc)],
            }

        words = Path(f"/proc/{target.pid}/task/{stuck}/syscall").read_text().split()
        seen = apart(lambda: held(target.pid, tmp_path, look))
        assert seen["left_out"] == {str(stuck): "D"}
        assert stuck not in seen["stopped"]
        assert len(seen["stopped"]) == 2
        assert seen["place"] == words[-2:]
        target.assert_running()
        os.kill(vforked_child(target.pid), signal.SIGKILL)
        wait_for(lambda: target.numbers()[2] > 0)  # the thread goes on


def test_a_thread_that_stops_late_is_let_go_while_the_collector_lives_on(tmp_path: Path) -> None:
    with running("vfork", tmp_path) as target:
        wait_for(lambda: "D" in states(target.pid).values())
        child = vforked_child(target.pid)

        def job() -> bool:
            held(target.pid, tmp_path, lambda frozen: None)
            os.kill(child, signal.SIGKILL)
            # Now the thread wakes, and stops, as it was told to while it slept.
            wait_for(lambda: target.numbers()[2] > 0)
            return True

        assert apart(job) is True
        target.assert_running()


def test_a_leader_that_has_exited_before_its_threads_is_passed_over(tmp_path: Path) -> None:
    with running("leader-gone", tmp_path) as target:
        wait_for(lambda: states(target.pid)[target.pid] == "Z")
        tids = apart(lambda: held(target.pid, tmp_path, lambda frozen: [thread.tid for thread in frozen.threads]))
        assert tids == [tid for tid, state in states(target.pid).items() if state != "Z"]
        wait_for(lambda: "t" not in states(target.pid).values())
        before = target.numbers()[0]
        wait_for(lambda: target.numbers()[0] > before)


def test_a_target_that_is_killed_while_it_is_held_ends(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 5) as sick:

        def kill(frozen: Freeze) -> bool:
            os.kill(sick.pid, signal.SIGKILL)
            wait_for(lambda: "Z" in states(sick.pid).values())
            return True

        assert apart(lambda: held(sick.pid, tmp_path, kill)) is True
        assert sick.popen.wait(PATIENCE_S) == -signal.SIGKILL


def test_the_touch_says_how_many_threads_were_held(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 3) as sick:

        def job() -> list[Any]:
            touches: list[tuple[str, str]] = []
            with (
                door(sick.pid, tmp_path, touches) as (target, host),
                freeze(target, host, stop_within_s=PATIENCE_S, hold_at_most_s=PATIENCE_S),
            ):
                assert [verb for verb, _ in touches] == ["list"]  # nothing is reported while the target is held
            assert os.getpriority(os.PRIO_PROCESS, 0) == nice
            return touches

        nice = os.getpriority(os.PRIO_PROCESS, 0)
        assert apart(job)[-1] == ["freeze", f"5 threads of {sick.pid}: released"]


def test_a_32_bit_program_is_not_supported() -> None:
    target = Target(1, 0)
    assert machine_of(replace(target, elf_class=64)).registers_bytes > 0
    with pytest.raises(NotSupported, match="32-bit"):
        machine_of(replace(target, elf_class=32, machine=3))


def test_no_ctypes_until_something_is_frozen() -> None:
    code = "import sys, pmforensics.collect.freeze; print('ctypes' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
