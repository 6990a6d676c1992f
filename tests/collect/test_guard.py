"""The guard: whatever kills pmf, its collectors end and the target runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmforensics.bundle.recover import recover
from pmforensics.collect.guard import Guard, set_free, states_of
from pmforensics.collect.pin import pin
from tests import captures, zoo

pytestmark = pytest.mark.needs("root", "gcc")

ROGUES = (sys.executable, "-m", "tests.collect.rogues")


@contextmanager
def rogue_capture(names: str, pid: int, evidence: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`pmf capture` with these collectors, running; nothing of its session is left at the end."""
    process = captures.start_pmf(
        names, "capture", "--pid", pid, "--evidence", evidence, "--force", "--budget", "300s", command=ROGUES
    )
    try:
        yield process
    finally:
        for member in captures.session(process.pid):
            os.kill(member, signal.SIGKILL)
        process.kill()
        process.communicate()


def journaled(evidence: Path, path_end: str) -> bool:
    """Whether an artifact is already in the journal of the one bundle there."""
    return any(
        str(record.get("path", "")).endswith(path_end)
        for folder in captures.bundles(evidence)
        if (folder / "journal.jsonl").exists()
        for record in captures.journal_of(folder)
        if record["event"] == "artifact"
    )


@pytest.mark.parametrize(
    ("rogue", "marker", "state"),
    [("Attaches", "attached.txt", "t"), ("Stops", "stopped.txt", "T"), ("GdbHolds", "attached.txt", "t")],
)
def test_kill_9_of_pmf_while_the_target_is_held_leaves_it_running(
    tmp_path: Path, needs: object, rogue: str, marker: str, state: str
) -> None:
    if rogue == "GdbHolds":
        needs("gdb")  # type: ignore[operator]
    with zoo.start("python", "idle") as sick, rogue_capture(f"{rogue},Fine", sick.pid, tmp_path) as process:
        captures.wait_for("the target to be held", lambda: state in captures.states(sick.pid))
        captures.wait_for("the artifact", lambda: journaled(tmp_path, marker))
        process.kill()
        captures.assert_runs(sick.pid)
        sick.assert_alive()
        captures.assert_session_ends(process.pid)
        sealed, _ = recover(captures.only_bundle(tmp_path))
        captures.judge(sealed.folder)


def test_kill_9_of_the_whole_process_group_leaves_the_target_running(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick, rogue_capture("Stops,Fine", sick.pid, tmp_path) as process:
        captures.wait_for("the target to be held", lambda: "T" in captures.states(sick.pid))
        captures.wait_for("the artifact", lambda: journaled(tmp_path, "stopped.txt"))
        os.killpg(process.pid, signal.SIGKILL)
        captures.assert_runs(sick.pid)
        sick.assert_alive()


@pytest.mark.parametrize("rogue", ["Hangs", "IgnoresTerm", "Blocks", "StubbornTool"])
def test_kill_9_of_pmf_ends_the_collector_that_hangs_and_its_tools(tmp_path: Path, rogue: str) -> None:
    with zoo.start("python", "idle") as sick, rogue_capture(f"Fine,{rogue}", sick.pid, tmp_path) as process:
        # pmf, the guard, the collector, and for the tool its shell and two sleeps.
        expected = 6 if rogue == "StubbornTool" else 3
        captures.wait_for("all to run", lambda: len(captures.session(process.pid)) >= expected)
        process.kill()
        captures.assert_session_ends(process.pid)
        sick.assert_alive()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_to_pmf_while_the_target_is_held_sets_it_free_and_seals(tmp_path: Path, signum: signal.Signals) -> None:
    with zoo.start("python", "idle") as sick, rogue_capture("Attaches,Fine", sick.pid, tmp_path) as process:
        captures.wait_for("the artifact", lambda: journaled(tmp_path, "attached.txt"))
        process.send_signal(signum)
        assert process.wait(60) == (130 if signum is signal.SIGINT else 3)
        captures.assert_runs(sick.pid)
        sick.assert_alive()
        evidence = captures.judge(captures.only_bundle(tmp_path))
        assert evidence["capture"]["ended_by"] == signum.name
        assert evidence["collectors"][0]["runs_again"] is True
        captures.assert_session_ends(process.pid)


def test_guard_does_not_continue_a_target_that_was_stopped_before(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        captures.wait_for("the stop", lambda: captures.states(sick.pid) == {"T"})
        with rogue_capture("Attaches,Fine", sick.pid, tmp_path) as process:
            captures.wait_for("the artifact", lambda: journaled(tmp_path, "attached.txt"))
            process.kill()
            captures.assert_session_ends(process.pid)
        captures.wait_for("the tracer's end", lambda: captures.states(sick.pid) == {"T"})
        os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()


def test_guard_does_not_continue_a_target_that_somebody_else_stopped(tmp_path: Path) -> None:
    # The collector that runs cannot stop the target, so whoever did had a reason of their own.
    with zoo.start("python", "idle") as sick, rogue_capture("Fine,Hangs", sick.pid, tmp_path) as process:
        captures.wait_for("the artifact", lambda: journaled(tmp_path, "before.txt"))
        os.kill(sick.pid, signal.SIGSTOP)
        captures.wait_for("the stop", lambda: captures.states(sick.pid) == {"T"})
        process.kill()
        captures.assert_session_ends(process.pid)
        assert captures.states(sick.pid) == {"T"}
        os.kill(sick.pid, signal.SIGCONT)


def test_guard_outlives_the_signals_that_end_a_session(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick, rogue_capture("Attaches,Fine", sick.pid, tmp_path) as process:
        captures.wait_for("the artifact", lambda: journaled(tmp_path, "attached.txt"))
        # All but pmf itself and the collector, which traces.
        tracer = Path(f"/proc/{sick.pid}/status").read_text().split("TracerPid:\t")[1].split()[0]
        (guard,) = set(captures.session(process.pid)) - {process.pid, int(tracer)}
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
            os.kill(guard, signum)
        process.kill()
        captures.assert_runs(sick.pid)
        sick.assert_alive()


# ---- the pieces


def test_states_are_those_of_every_thread(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 4) as sick, pin(sick.pid) as held:
        listed = {int(path.name) for path in Path(f"/proc/{sick.pid}/task").iterdir()}
        assert states_of(held).keys() == listed
        assert len(listed) >= 5
        os.kill(sick.pid, signal.SIGSTOP)
        captures.wait_for("the stop", lambda: set(states_of(held).values()) == {"T"})
        assert set_free(held, was_stopped=True) is True
        assert set(states_of(held).values()) == {"T"}
        assert set_free(held, was_stopped=False) is True
        captures.assert_runs(sick.pid)


def test_target_that_is_gone_counts_as_free() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    with pin(process.pid) as held:
        process.kill()
        process.wait()
        assert states_of(held) == {}
        assert set_free(held, was_stopped=False) is True


def test_target_held_by_a_debugger_is_told_as_held(needs: object) -> None:
    needs("gdb")  # type: ignore[operator]
    with zoo.start("c", "threads", 2) as sick, pin(sick.pid) as held:
        debugger = subprocess.Popen(
            ["gdb", "-q", "-batch", "-p", str(sick.pid), "-ex", "shell sleep 100"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            captures.wait_for("gdb", lambda: "t" in states_of(held).values())
            assert set_free(held, was_stopped=False) is False
        finally:
            os.killpg(debugger.pid, signal.SIGKILL)
            debugger.wait()
        captures.assert_runs(sick.pid)


def test_guard_that_is_dismissed_touches_nothing_and_is_reaped() -> None:
    with zoo.start("c", "threads", 2) as sick, pin(sick.pid) as held:
        os.kill(sick.pid, signal.SIGSTOP)
        captures.wait_for("the stop", lambda: set(states_of(held).values()) == {"T"})
        guard = Guard(held)
        guard.watch(os.getpid() + 1_000_000, stops=True)
        guard.relax()
        guard.close()
        assert set(states_of(held).values()) == {"T"}
        os.kill(sick.pid, signal.SIGCONT)
