"""A collector in a process of its own, and the pipe it speaks through."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmforensics.collect import wire
from pmforensics.collect.base import Host
from pmforensics.collect.pin import Pin, pin
from pmforensics.collect.run import supervise
from pmforensics.collect.wire import Sender
from pmforensics.collect.worker import Stop, Worker, start
from pmforensics.errors import DeadlinePassed
from pmforensics.model.capture import (
    MIB,
    Artifact,
    Gap,
    Outcome,
    Pause,
    PauseBasis,
    Reason,
    Settlement,
    Touch,
)
from pmforensics.model.process import Target
from tests import captures


@pytest.fixture
def held() -> Iterator[Pin]:
    """A pinned process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        with pin(process.pid) as pinned:
            yield pinned
        process.kill()


def run(
    job: Callable[[Host, Sender], None], held: Pin, spool: Path, *, limit_s: float = 10.0, stop: Stop | None = None
) -> Worker:
    """A worker that does this job."""
    target = Target(held.pid, held.start_ticks)
    return start(job, held, target, limit_s=limit_s, spool=spool, floor_bytes=0, stop=stop or Stop())


def children() -> set[str]:
    """The processes that this one has not reaped."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# ---- the process


def test_worker_holds_nothing_of_the_capture_but_its_pipe_and_the_target(held: Pin, tmp_path: Path) -> None:
    secret_read, secret_write = os.pipe()
    os.set_inheritable(secret_write, True)
    seen: list[str] = []

    def job(host: Host, send: Sender) -> None:
        for name in sorted(os.listdir("/proc/self/fd"), key=int):
            try:
                send.control(kind="touch", verb="fd", what=os.readlink(f"/proc/self/fd/{name}"), seconds=0, result=name)
            except OSError:
                continue

    worker = run(job, held, tmp_path)
    try:
        for item in supervise("x", worker, tmp_path):
            assert isinstance(item, Touch)
            seen.append(item.what)
    finally:
        worker.end()
        os.close(secret_read)
        os.close(secret_write)
    assert seen[:3] == ["/dev/null"] * 3
    rest = seen[3:]
    assert len([name for name in rest if name.startswith("pipe:")]) == 1
    assert {name for name in rest if not name.startswith("pipe:")} <= {
        "anon_inode:[pidfd]", f"/proc/{held.pid}", f"/proc/{held.pid}/fd", "pidfd:",
    } | {name for name in rest if name.startswith(("pidfd", "anon_inode"))}  # fmt: skip


def test_worker_is_in_a_group_of_its_own_and_ignores_the_terminal(held: Pin, tmp_path: Path) -> None:
    def job(host: Host, send: Sender) -> None:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        send.control(kind="fact", name="group", value=[os.getpid(), os.getpgid(0), ignored])

    worker = run(job, held, tmp_path)
    (fact,) = list(supervise("x", worker, tmp_path))
    worker.end()
    assert fact.value == [worker.pid, worker.pid, True]  # type: ignore[union-attr]
    assert os.getpgid(0) != worker.pid


def test_worker_dies_when_the_capture_is_gone(held: Pin, tmp_path: Path) -> None:
    # A capture in a process of its own, which is killed while its worker writes.
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:

            def job(host: Host, send: Sender) -> None:
                while True:
                    send.control(kind="touch", verb="x", what="x", seconds=0, result="ok")
                    time.sleep(0.005)

            worker = run(job, held, tmp_path, limit_s=600)
            os.write(write_fd, b"%d\n" % worker.pid)
            while True:
                worker.receive(1000)
        finally:
            os._exit(1)
    worker_pid = int(os.read(read_fd, 100))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    captures.wait_for("the worker's end", lambda: not captures.states(worker_pid) - {"Z", "X"})
    os.close(read_fd)
    os.close(write_fd)


def test_end_reaps_and_can_be_called_again(held: Pin, tmp_path: Path) -> None:
    before = children()
    worker = run(lambda host, send: time.sleep(1000), held, tmp_path)
    assert children() == before | {str(worker.pid)}
    worker.end()
    worker.end()
    assert worker.reaped
    assert children() == before
    assert worker.receive(100) == b""
    assert list(supervise("x", worker, tmp_path))


def test_workers_leak_no_descriptor(held: Pin, tmp_path: Path) -> None:
    before, processes = len(os.listdir("/proc/self/fd")), children()
    stop = Stop()
    for _ in range(20):
        worker = run(lambda host, send: None, held, tmp_path, stop=stop)
        list(supervise("x", worker, tmp_path))
        worker.end()
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the Stop's own pipe
    assert children() == processes


def test_deadline_is_seen_by_the_collector_a_little_before_it_is_enforced(held: Pin, tmp_path: Path) -> None:
    def job(host: Host, send: Sender) -> None:
        while host.remaining_s() > 0:
            time.sleep(0.01)
        send.control(kind="touch", verb="in", what="time", seconds=0, result="ok")

    worker = run(job, held, tmp_path, limit_s=2.0)
    items = list(supervise("x", worker, tmp_path))
    worker.end()
    assert [item.what for item in items if isinstance(item, Touch)] == ["time"]
    assert worker.cut is None


def test_term_lets_a_collector_end_in_order_before_it_is_killed(held: Pin, tmp_path: Path) -> None:
    def job(host: Host, send: Sender) -> None:
        try:
            time.sleep(1000)
        except DeadlinePassed:
            send.control(kind="touch", verb="last", what="words", seconds=0, result="ok")

    worker = run(job, held, tmp_path, limit_s=0.3)
    items = list(supervise("x", worker, tmp_path))
    worker.end()
    assert [item.what for item in items if isinstance(item, Touch)] == ["words"]
    assert (worker.cut, worker.done) == ("deadline", True)


def test_term_in_the_middle_of_a_frame_leaves_no_torn_frame(held: Pin, tmp_path: Path) -> None:
    def job(host: Host, send: Sender) -> None:
        send.control(**wire.open_message(Artifact("a", b"", "x")))
        try:
            while True:
                send.data(b"x" * MIB)
        except DeadlinePassed:
            send.control(**wire.settle_message(Settlement(Outcome.PARTIAL, Reason("cut", "in order"))))

    worker = run(job, held, tmp_path, limit_s=0.5)
    (artifact,) = [item for item in supervise("x", worker, tmp_path) if isinstance(item, Artifact) and drain(item) >= 0]
    worker.end()
    assert artifact.settled().reason == Reason("cut", "in order")


def drain(artifact: Artifact) -> int:
    """Reads a streamed body; its length."""
    assert not isinstance(artifact.body, bytes | Path)
    return sum(len(chunk) for chunk in artifact.body)


def test_stop_wakes_a_capture_that_waits(held: Pin, tmp_path: Path) -> None:
    stop = Stop()
    worker = run(lambda host, send: time.sleep(1000), held, tmp_path, limit_s=600, stop=stop)
    signal.signal(signal.SIGALRM, lambda *_: stop.ask("SIGALRM"))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    began = time.monotonic()
    try:
        items = list(supervise("x", worker, tmp_path))
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        worker.end()
    assert time.monotonic() - began < 20
    assert worker.cut == "SIGALRM"
    assert stop.why == "SIGALRM"
    assert any(isinstance(item, Gap) for item in items)


def test_first_reason_to_stop_stays() -> None:
    stop = Stop()
    stop.ask("SIGTERM")
    for _ in range(100_000):  # however often: the pipe behind it never fills
        stop.ask("SIGINT")
    assert stop.why == "SIGTERM"


# ---- the wire


@pytest.mark.parametrize(
    "settlement",
    [
        Settlement(),
        Settlement(
            Outcome.PARTIAL, Reason("cut", "says", "next"), {"a": [1, {"b": None}]}, Pause(1.5, PauseBasis.AT_MOST)
        ),
    ],
)
def test_settlement_survives_the_wire(settlement: Settlement) -> None:
    import json

    assert wire.read_settlement(json.loads(json.dumps(wire.settle_message(settlement)))) == settlement


def test_gap_survives_the_wire() -> None:
    import json

    gap = Gap("w", Outcome.DENIED, Reason("code", "says \udcff\n", "next"), "why?")
    assert wire.read_gap(json.loads(json.dumps(wire.gap_message(gap)))) == gap


@pytest.mark.parametrize("sizes", [[0], [1, 2, 3], [MIB - 1, MIB, MIB + 1], [5 * MIB]])
def test_bytes_arrive_as_they_were_sent_whatever_their_size(held: Pin, tmp_path: Path, sizes: list[int]) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]

    def job(host: Host, send: Sender) -> None:
        send.control(**wire.open_message(Artifact("a", b"", "x")))
        for chunk in chunks:
            send.data(chunk)
        send.control(**wire.settle_message(Settlement()))

    worker = run(job, held, tmp_path)
    got = b""
    for item in supervise("x", worker, tmp_path):
        assert isinstance(item, Artifact)
        assert not isinstance(item.body, bytes | Path)
        for piece in item.body:
            assert len(piece) <= MIB
            got += piece
    worker.end()
    assert got == b"".join(chunks)


@pytest.mark.parametrize(
    "raw",
    [b"", b"C", b"C\xff\xff\xff\xff", b"C\x05\x00\x00\x00{}", b"D\xff\xff\xff\x7fxx", b"Z\x00\x00\x00\x00"],
    ids=["nothing", "half-header", "endless-control", "cut-control", "cut-data", "unknown"],
)
def test_torn_frame_is_the_end_of_the_collector_and_no_crash(held: Pin, tmp_path: Path, raw: bytes) -> None:
    def job(host: Host, send: Sender) -> None:
        os.write(send._fd, raw)
        os._exit(0)

    worker = run(job, held, tmp_path)
    items = list(supervise("x", worker, tmp_path))
    worker.end()
    assert [item.reason.code for item in items if isinstance(item, Gap)] == ["collector-died"]
