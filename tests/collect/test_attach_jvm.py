"""The attach socket: when it is used, when it is not trusted, and when nothing is sent at all."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pmforensics.collect import attach_jvm
from pmforensics.collect.attach_jvm import JCMD, SOCKET, Jvm, attach
from pmforensics.collect.threads_jvm import ThreadsJvm, ThreadsJvmAgain
from pmforensics.errors import ToolFailed
from pmforensics.model.capture import Outcome
from pmforensics.model.process import Runtime
from tests import zoo
from tests.collect.harness import Collected, collect_one
from tests.collect.jvms import (
    AS_NOBODY,
    IN_A_CONTAINER,
    JDKS,
    NOBODY,
    fake_jvm,
    here,
    left_behind,
    let_all_read,
    tmp_of,
)

OPTIONS = "JAVA_TOOL_OPTIONS"


def signals(collected: Collected) -> list[str]:
    return [touch.what for touch in collected.touches if touch.verb == "signal"]


def is_whole(collected: Collected) -> bool:
    return collected.settlements["threads.txt"].outcome is Outcome.COLLECTED


# ---- waking


@pytest.mark.parametrize("program", JDKS)
def test_one_signal_wakes_it_and_nothing_is_left(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "idle") as sick:
        first = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        second = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert signals(first) == [f"SIGQUIT to {sick.pid}"]
        assert signals(second) == []  # it listens already
        assert is_whole(first)
        assert is_whole(second)
        assert first.settlements["threads.txt"].facts["route"] == SOCKET
        assert left_behind(first, sick.pid) == set()
        assert not list(sick.directory.glob(".attach_pid*"))
        sick.assert_alive()


@pytest.mark.parametrize("program", JDKS)
def test_xrs_needs_no_signal_and_gets_none(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "idle", env={OPTIONS: "-Xrs"}) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert is_whole(collected)
        assert signals(collected) == []
        sick.assert_alive()


@pytest.mark.parametrize("program", JDKS)
def test_socket_of_a_dead_jvm_does_not_stop_it(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "idle") as sick:
        stale = Path(f"/tmp/.java_pid{sick.pid}")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
            dead.listen()
        stale.chmod(0o600)
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert is_whole(collected)
        assert signals(collected) == [f"SIGQUIT to {sick.pid}"]
        sick.assert_alive()


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize("program", JDKS)
def test_jvm_of_another_user_is_asked_as_that_user(program: str, tmp_path: Path) -> None:
    let_all_read(program)
    with zoo.start(program, "idle", prefix=AS_NOBODY) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert Path(f"/tmp/.java_pid{sick.pid}").stat().st_uid == NOBODY
        assert is_whole(collected)
        assert not collected.gaps
        assert left_behind(collected, sick.pid) == set()
        sick.assert_alive()
    assert os.geteuid() == 0


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("program", JDKS)
def test_jvm_in_namespaces_of_its_own(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")  # the heartbeat must not be hidden by the private /tmp
    with zoo.start(program, "lock-ring", prefix=IN_A_CONTAINER) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert collected.target is not None
        assert (collected.target.same_pid_ns, collected.target.same_mnt_ns) == (False, False)
        own_pid = collected.target.own_pid
        assert own_pid != sick.pid
        assert is_whole(collected)
        assert not collected.gaps
        assert f".java_pid{own_pid}" in tmp_of(sick.pid)
        assert left_behind(collected, sick.pid) == set()
        made = {touch.what.split()[0] for touch in collected.touches if touch.verb == "create"}
        assert made
        for path in {*made, f"/tmp/.java_pid{own_pid}"}:
            assert not Path(path).exists()  # not in our /tmp
        sick.assert_alive()


@pytest.mark.needs("root")
@pytest.mark.parametrize("program", JDKS)
def test_attach_file_of_somebody_else_is_passed_by(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "idle") as sick:
        planted = Path(f"/tmp/.attach_pid{sick.pid}")
        planted.touch()
        os.chown(planted, NOBODY, NOBODY)
        try:
            collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
            assert is_whole(collected)
            created = [touch.what for touch in collected.touches if touch.verb == "create" and "attach" in touch.what]
            assert created == [f"{planted.name} in the target's working directory, removed again"]
            assert not (sick.directory / planted.name).exists()
            assert planted.exists()
        finally:
            planted.unlink()


# ---- not waking


def test_without_a_handler_for_sigquit_none_is_sent(tmp_path: Path) -> None:
    with fake_jvm("deaf", tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path)
        assert collected.target is not None
        assert Runtime.JVM in collected.target
        gap = collected.gap("would-harm")
        assert gap.outcome is Outcome.REFUSED
        assert "SIGQUIT" in gap.reason.says
        assert gap.reason.next_step
        assert signals(collected) == []
        assert not Path(f"/tmp/.attach_pid{fake.pid}").exists()
        assert fake.is_alive()


def test_openj9_is_left_alone(tmp_path: Path) -> None:
    with fake_jvm("no-socket", tmp_path, "libj9vm29.so") as fake:
        gap = collect_one(ThreadsJvm(), fake.pid, tmp_path).gap("not-supported")
        assert "OpenJ9" in gap.reason.says
        assert fake.heard() == []


def test_go_beside_the_jvm_forbids_sigquit(tmp_path: Path) -> None:
    with fake_jvm("silent", tmp_path) as fake, here(fake.pid, tmp_path) as it:
        both = replace(it.target, runtimes=it.target.runtimes | {Runtime.GO})
        with pytest.raises(attach_jvm.WouldHarm, match="Go"), attach(both, it.host):
            pass
        assert fake.heard() == []


@pytest.mark.needs("jdk17")
@pytest.mark.parametrize(
    "env",
    [
        {OPTIONS: "-XX:+DisableAttachMechanism"},
        {OPTIONS: "-XX:-DisableAttachMechanism", "_JAVA_OPTIONS": "-XX:+DisableAttachMechanism"},
    ],
    ids=["before", "after"],
)
def test_disabled_attach_is_seen_before_a_signal(env: dict[str, str], tmp_path: Path) -> None:
    with zoo.start("java17", "idle", env=env) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        gap = collected.gap("access-denied")
        assert "DisableAttachMechanism" in gap.reason.says
        assert gap.reason.next_step
        assert signals(collected) == []
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_last_switch_counts(tmp_path: Path) -> None:
    env = {OPTIONS: "-XX:+DisableAttachMechanism", "_JAVA_OPTIONS": "-XX:-DisableAttachMechanism"}
    with zoo.start("java17", "idle", env=env) as sick:
        assert is_whole(collect_one(ThreadsJvm(), sick.pid, tmp_path))


def test_no_socket_after_the_signal_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_jvm, "WAKE_S", 0.3)
    with fake_jvm("no-socket", tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path)
        assert "no attach socket" in collected.gap("access-denied").reason.says
        assert fake.heard() == ["SIGQUIT"]
        assert left_behind(collected, fake.pid) == set()


@pytest.mark.needs("jdk17")
def test_stopped_jvm_gets_no_signal_to_act_on_later(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        try:
            while Path(f"/proc/{sick.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.01)
            collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
            assert "stopped" in collected.gap("would-harm").reason.says
            assert signals(collected) == []
        finally:
            os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()


@pytest.mark.needs("root", "setpriv")
def test_read_only_tmp_is_said_without_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    read_only = (*IN_A_CONTAINER[:5], "sh", "-c", 'mount -t tmpfs -o ro tmpfs /tmp && exec "$@"', "sh")
    with zoo.start("java17", "idle", prefix=read_only) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert "cannot open its attach socket" in collected.gap("access-denied").reason.says
        assert signals(collected) == []
        sick.assert_alive()


# ---- not trusting


@contextmanager
def listener(path: Path, uid: int) -> Iterator[socket.socket]:
    """A socket of ours under that name, as if that user had made it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        os.chown(path, uid, uid)
        path.chmod(0o666)
        server.listen()
        server.setblocking(False)
        try:
            yield server
        finally:
            path.unlink(missing_ok=True)


def received(server: socket.socket) -> bytes:
    """What the next client said; b"" when there was no client, or a silent one."""
    try:
        connection, _ = server.accept()
    except BlockingIOError:
        return b""
    with connection:
        connection.setblocking(False)
        try:
            return connection.recv(4096)
        except BlockingIOError:
            return b""


@pytest.mark.needs("root", "jdk17")
def test_socket_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick, listener(Path(f"/tmp/.java_pid{sick.pid}"), NOBODY) as planted:
        gap = collect_one(ThreadsJvm(), sick.pid, tmp_path).gap("access-denied")
        assert str(NOBODY) in gap.reason.says
        with pytest.raises(BlockingIOError):
            planted.accept()
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_socket_of_another_process_of_the_same_user_is_not_trusted(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick, listener(Path(f"/tmp/.java_pid{sick.pid}"), os.geteuid()) as planted:
        gap = collect_one(ThreadsJvm(), sick.pid, tmp_path).gap("access-denied")
        assert f"process {os.getpid()}" in gap.reason.says
        assert received(planted) == b""
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_link_to_another_jvm_is_not_followed(tmp_path: Path) -> None:
    with zoo.start("java17", "lock-ring") as other, zoo.start("java17", "idle") as sick:
        assert is_whole(collect_one(ThreadsJvm(), other.pid, tmp_path))
        link = Path(f"/tmp/.java_pid{sick.pid}")
        link.symlink_to(f"/tmp/.java_pid{other.pid}")
        try:
            collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        finally:
            link.unlink()
        assert "not a socket" in collected.gap("access-denied").reason.says
        assert "threads.txt" not in collected.artifacts


# ---- answers that are none


def test_jvm_that_does_not_answer_is_late(tmp_path: Path) -> None:
    with fake_jvm("silent", tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path, limit_s=1.5)
        gap = collected.gap("deadline-passed")
        assert gap.outcome is Outcome.LATE
        assert "Thread.print" in gap.reason.says
        assert "safepoint" in gap.reason.next_step
        assert fake.heard() == ["SIGQUIT", "getversion options", "jcmd VM.version", "jcmd Thread.print -l -e"]
        assert left_behind(collected, fake.pid) == set()


def test_dump_that_stops_halfway_is_partial(tmp_path: Path) -> None:
    with fake_jvm("falls-silent", tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path, limit_s=1.5)
        settled = collected.settlements["threads.txt"]
        assert collected.artifacts["threads.txt"].startswith(b"2026-11-20 13:15:00\nFull thread dump")
        assert settled.outcome is Outcome.PARTIAL
        assert settled.reason is not None
        assert settled.reason.code == "deadline-passed"


def test_jvm_that_dies_of_something_else_meanwhile(tmp_path: Path) -> None:
    with fake_jvm("dies", tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path)
        settled = collected.settlements["threads.txt"]
        assert settled.outcome is Outcome.PARTIAL


@pytest.mark.parametrize(
    ("way", "code"), [("hangs-up", "access-denied"), ("garbage", "answer-broken"), ("endless", "answer-broken")]
)
def test_nonsense_becomes_a_gap(way: str, code: str, tmp_path: Path) -> None:
    with fake_jvm(way, tmp_path) as fake:
        collected = collect_one(ThreadsJvm(), fake.pid, tmp_path)
        assert collected.gap(code).reason.says
        assert not collected.artifacts
        assert fake.is_alive()


@pytest.mark.parametrize("program", JDKS)
def test_refused_command_says_why(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "idle") as sick, here(sick.pid, tmp_path) as it, attach(it.target, it.host) as jvm:
        with pytest.raises(ToolFailed, match="Unknown diagnostic command"):
            jvm.read("No.such_thing")
        with pytest.raises(ToolFailed, match="Unknown argument '-q'"):
            jvm.read("Thread.print -q")
        assert jvm.feature == int(program.removeprefix("java"))
        assert jvm.version.startswith("OpenJDK 64-Bit Server VM")


# ---- not holding the VM


@pytest.mark.needs("jdk25")
def test_slow_reader_does_not_hold_the_vm_at_a_safepoint(tmp_path: Path) -> None:
    with zoo.start("java25", "many-threads", 1000) as sick, here(sick.pid, tmp_path) as it:
        with attach(it.target, it.host) as jvm:
            assert jvm.buffered
            answer = jvm.call("Thread.print -l -e")
            sick.assert_alive()  # its heart beats while the answer waits to be read
            whole = b"".join(answer.chunks)
            assert whole.count(b'"worker-') == 1000

            # The danger is real: as JDK 24 and later answer by themselves, the VM stands until we have read.
            answer = replace(jvm, buffered=False).call("Thread.print -l -e")
            time.sleep(0.3)  # a beat that was under way may still be written
            beats = sick.beats()
            time.sleep(0.5)
            assert sick.beats() == beats
            assert len(b"".join(answer.chunks)) > len(whole) // 2
        sick.assert_alive()


# ---- the JDK's program instead


@pytest.mark.parametrize("program", JDKS)
def test_jcmd_when_the_socket_is_out_of_reach(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = zoo.jdk(int(program.removeprefix("java")))
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(attach_jvm, "TMP", "/no/such/folder")
    with zoo.start(program, "idle") as sick, here(sick.pid, tmp_path) as it:
        with attach(it.target, it.host) as jvm:
            assert jvm.route == JCMD
            assert jvm.feature == int(program.removeprefix("java"))
            text = jvm.read("Thread.print -l -e")
        assert b"Full thread dump" in text.splitlines()[1]
        sick.assert_alive()


def test_jcmd_is_not_started_on_a_process_that_it_would_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_jvm, "TMP", "/no/such/folder")
    with fake_jvm("deaf", tmp_path) as fake, here(fake.pid, tmp_path) as it:
        jvm = Jvm(it.target, it.host, JCMD, jcmd=Path("/bin/false"))
        with pytest.raises(attach_jvm.WouldHarm):
            jvm.read("VM.version")
        assert fake.is_alive()


# ---- as the target's user


AS_ROOT_IN_A_CONTAINER = """
import sys
from dataclasses import replace
from pathlib import Path
from pmforensics.collect.class_histogram import ClassHistogram
from pmforensics.collect.threads_jvm import ThreadsJvm
from pmforensics.model.process import Runtime
from tests.collect.jvms import here
with here(int(sys.argv[1]), Path(sys.argv[2])) as it:
    target = replace(it.target, runtimes=frozenset({Runtime.JVM}))
    for collector in (ThreadsJvm(), ClassHistogram()):
        for artifact in collector.collect(target, it.host):
            print(artifact.path, len(b"".join(artifact.body)) if artifact.path != "vm.txt" else "")
"""


@pytest.mark.needs("root", "setpriv", "jdk25")
def test_root_without_the_right_to_trace_still_gets_all(tmp_path: Path) -> None:
    let_all_read("java25")
    with zoo.start("java25", "virtual", 20, 2, prefix=AS_NOBODY) as sick:
        assert is_whole(collect_one(ThreadsJvm(), sick.pid, tmp_path))
        ran = subprocess.run(
            [
                "setpriv",
                "--bounding-set=-sys_ptrace",
                sys.executable,
                "-c",
                AS_ROOT_IN_A_CONTAINER,
                str(sick.pid),
                tmp_path,
            ],
            cwd=zoo.REPO,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        names = [line.split()[0] for line in ran.stdout.splitlines()]
        assert names == ["threads.txt", "threads.json", "vm.txt", "class_histogram.txt"]
        sick.assert_alive()


@pytest.mark.needs("root")
def test_root_again_afterwards(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY) as other:
        try:
            with here(other.pid, tmp_path) as it:
                with attach_jvm.as_target(it.target):
                    assert (os.geteuid(), os.getegid()) == (NOBODY, NOBODY)
                    made = Path("/tmp", f"pmf-test-{os.getpid()}")
                    made.touch()
                assert stat.S_ISREG(made.stat().st_mode)
                assert made.stat().st_uid == NOBODY
                made.unlink()
                assert (os.geteuid(), os.getegid()) == (0, 0)
        finally:
            other.kill()


def test_after_a_wedge_the_next_collector_gives_up_before_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmforensics.collect.threads_jvm.SECOND_PATIENCE_S", 0.3)
    with fake_jvm("silent", tmp_path) as fake:
        collect_one(ThreadsJvm(), fake.pid, tmp_path, limit_s=1.5)
        again = collect_one(ThreadsJvmAgain(apart_s=0.0), fake.pid, tmp_path)
        assert again.gap("deadline-passed").outcome is Outcome.LATE
        assert not any("Thread.print" in touch.what for touch in again.touches)
        assert fake.heard().count("SIGQUIT") == 1
