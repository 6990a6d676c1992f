"""The kernel's view of a process, held against what the kernel tells this test directly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pmforensics.collect.process_state import ENVIRONMENT, THREAD_FILES, ProcessState
from pmforensics.formats.argv import is_secret_name
from pmforensics.model.capture import Outcome
from tests import captures, users, zoo
from tests.collect.harness import Collected, collect_one

pytestmark = pytest.mark.needs("root")


def lines(collected: Collected, path: str) -> list[dict[str, object]]:
    """A JSON-lines artifact."""
    return [json.loads(line) for line in collected.artifacts[path].splitlines()]


@pytest.mark.needs("gcc")
def test_every_thread_is_there_with_its_own_files(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 10) as sick:
        collected = collect_one(ProcessState(), sick.pid, tmp_path)
        sick.assert_alive()
        threads = lines(collected, "threads.jsonl")
        listed = {int(path.name) for path in Path(f"/proc/{sick.pid}/task").iterdir()}
        assert {thread["tid"] for thread in threads} == listed
        assert len(listed) >= 11
        assert collected.settlements["threads.jsonl"].facts["threads"] == len(listed)
        for thread in threads:
            task = Path(f"/proc/{sick.pid}/task/{thread['tid']}")
            assert thread["comm"] == (task / "comm").read_text()
            assert f"Pid:\t{thread['tid']}\n" in str(thread["status"])
            present = {name for name in THREAD_FILES if (task / name).exists()}
            assert present <= thread.keys()
        waits = {thread["wchan"] for thread in threads if thread["wchan"] != "0"}
        assert waits & {"hrtimer_nanosleep", "do_nanosleep", "futex_wait_queue", "futex_wait_queue_me", "futex_do_wait"}


def test_files_are_the_kernels_own_words(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        collected = collect_one(ProcessState(), sick.pid, tmp_path)
        for name in ("limits", "cgroup", "oom_score_adj", "coredump_filter", "mountinfo", "auxv", "maps", "uid_map"):
            assert collected.artifacts[name] == Path(f"/proc/{sick.pid}/{name}").read_bytes(), name
        assert {"status", "stat", "io", "sched", "statm"} <= collected.artifacts.keys()
        assert not collected.gaps


def test_most_telling_comes_first_and_what_can_hang_comes_last(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        order = collect_one(ProcessState(), sick.pid, tmp_path).order
    assert order[:2] == ["status", "threads.jsonl"]
    assert order[-4:] == ["cmdline.json", "environ.json", "auxv", "maps"]


def test_open_files_and_sockets_are_listed_as_the_kernel_lists_them(tmp_path: Path) -> None:
    code = (
        "import os, socket, sys, time\n"
        "s = socket.create_server(('127.0.0.1', 0)); f = open(sys.argv[1], 'w'); r, w = os.pipe()\n"
        "os.unlink(sys.argv[1]); print(s.getsockname()[1], flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "open.log"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            collected = collect_one(ProcessState(), process.pid, tmp_path)
            listed = {
                int(name): os.readlink(f"/proc/{process.pid}/fd/{name}")
                for name in os.listdir(f"/proc/{process.pid}/fd")
            }
        finally:
            process.kill()
    assert {row["fd"]: row["to"] for row in lines(collected, "fds.jsonl")} == listed
    assert any(str(to).endswith("open.log (deleted)") for to in listed.values())
    assert collected.settlements["fds.jsonl"].facts["descriptors"] == len(listed)
    assert f"0100007F:{port:04X} 00000000:0000 0A" in collected.artifacts["net/tcp"].decode()


@pytest.mark.needs("root", "unshare", "gcc")
def test_sockets_are_those_of_the_targets_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        with zoo.start("c", "threads", 1, prefix=("unshare", "--net")) as sick:
            collected = collect_one(ProcessState(), sick.pid, tmp_path)
        assert f":{port:04X} " in Path("/proc/net/tcp").read_text()
        assert f":{port:04X} " not in collected.artifacts["net/tcp"].decode()


def test_arguments_are_redacted_and_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    env = {"PATH": "/bin", "TZ": "UTC", "GOGC": "50", "MY_TOKEN": "hunter2", "SOMETHING": "hunter2",
           "JAVA_OPTS": "-Xmx1g -Dapp.password=hunter2"}  # fmt: skip
    with subprocess.Popen(
        ["/bin/sh", "-c", "while :; do sleep 100; done", "sh", "--secret=hunter2", "plain"], env=env
    ) as process:
        try:
            captures.wait_for("the exec", lambda: b"plain" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
            collected = collect_one(ProcessState(), process.pid, tmp_path)
        finally:
            subprocess.run(["pkill", "-P", str(process.pid)], check=False)
            process.kill()
    argv = json.loads(collected.artifacts["cmdline.json"])["argv"]
    assert argv[0] == "/bin/sh"
    assert argv[-2:] == ["--secret=(redacted)", "plain"]
    assert collected.settlements["cmdline.json"].facts == {"redacted": 1}
    kept = json.loads(collected.artifacts["environ.json"])
    assert kept.keys() == {"PATH", "TZ", "GOGC", "JAVA_OPTS"}
    assert kept["JAVA_OPTS"].startswith("-Xmx1g ")
    assert collected.settlements["environ.json"].facts["withheld"] >= 2
    assert b"hunter2" not in b"".join(collected.artifacts.values())
    assert "hunter2" not in str(collected.touches)


def test_no_name_on_the_allow_list_promises_a_secret() -> None:
    assert len(ENVIRONMENT) > 20
    assert not [name for name in ENVIRONMENT if is_secret_name(name)]


def test_stopped_process_is_read_as_it_stands(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            os.kill(process.pid, signal.SIGSTOP)
            captures.wait_for("the stop", lambda: captures.states(process.pid) == {"T"})
            collected = collect_one(ProcessState(), process.pid, tmp_path)
            assert b"State:\tT (stopped)" in collected.artifacts["status"]
            assert captures.states(process.pid) == {"T"}
        finally:
            process.kill()


def test_process_that_is_gone_is_a_gap_that_says_so(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        process.kill()
        captures.wait_for("the zombie", lambda: captures.states(process.pid) == {"Z"})
        collected = collect_one(ProcessState(), process.pid, tmp_path)
    finally:
        process.wait()
    assert b"State:\tZ (zombie)" in collected.artifacts["status"]
    assert {gap.reason.code for gap in collected.gaps} <= {"target-gone", "access-denied", "not-there"}
    assert collected.gaps


@pytest.mark.needs("root", "setpriv")
def test_threads_that_may_not_be_looked_into_are_counted_by_file(tmp_path: Path) -> None:
    # As an ordinary user: the whole command, since this process is root.
    with zoo.start("c", "threads", 5) as sick:
        evidence = users.open_to(tmp_path / "evidence")
        done = users.pmf("capture", "--pid", sick.pid, "--evidence", evidence, "--force")
    assert done.returncode == 3
    folder = captures.only_bundle(evidence)
    gaps = [gap for gap in captures.judge(folder)["gaps"] if "threads.jsonl" in gap["wanted"]]
    assert gaps
    assert all(gap["outcome"] == Outcome.DENIED.value for gap in gaps)
    assert any("of 7 of 7 threads" in gap["wanted"] or " threads" in gap["wanted"] for gap in gaps)
    rows = [
        json.loads(line) for line in (folder / "data" / "01-process_state" / "threads.jsonl").read_text().splitlines()
    ]
    assert len(rows) >= 6
    assert all("status" in row and row["comm"] for row in rows)


@pytest.mark.needs("gcc")
def test_thousand_threads_stay_within_the_time_and_the_journal(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 1000) as sick:
        folder = captures.capture(sick.pid, tmp_path, "--core", "none")
        sick.assert_alive()
    captures.judge(folder)
    rows = (folder / "data" / "01-process_state" / "threads.jsonl").read_text().splitlines()
    assert len(rows) >= 1001
    assert (folder / "journal.jsonl").stat().st_size < 8 << 20
