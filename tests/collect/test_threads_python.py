from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect import threads_python
from pmforensics.collect.threads_python import ThreadsPython
from pmforensics.model.capture import Outcome, PauseBasis
from tests import zoo
from tests.collect.harness import Collected, collect_one

DUMPS = ["threads.json", "threads-native.json"]
PATIENT = 60.0  # seconds of pause allowed where the test is not about the gate: the machine may be slow


def threads(got: Collected, path: str) -> dict[str, dict[str, Any]]:
    return {thread["thread_name"]: thread for thread in json.loads(got.artifacts[path])}


def functions(thread: dict[str, Any]) -> list[str]:
    return [frame["name"] for frame in thread["frames"]]


@contextmanager
def python(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that runs `program`, once that has printed a line."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.needs("py-spy")
@pytest.mark.parametrize(("way", "where"), [("idle", "await_work"), ("lock-wait", "wait_for_lock")])
def test_every_thread_is_in_both_dumps_with_its_frames(way: str, where: str, tmp_path: Path) -> None:
    with zoo.start("python", way) as sick:
        tids = {int(name) for name in os.listdir(f"/proc/{sick.pid}/task")}
        got = collect_one(ThreadsPython(allow_pause_s=PATIENT), sick.pid, tmp_path, limit_s=90)
        sick.assert_alive()
    assert got.order == DUMPS
    assert got.gaps == []
    assert got.runs_again is True
    for path in DUMPS:
        found = threads(got, path)
        assert {thread["os_thread_id"] for thread in found.values()} == tids
        assert any(where in functions(thread) for thread in found.values())
        facts = got.settlements[path].facts
        assert (facts["threads"], facts["os_threads"], facts["unlisted_tids"]) == (len(tids), len(tids), [])


@pytest.mark.needs("py-spy")
def test_holder_of_the_gil_is_named_without_stopping_the_process(tmp_path: Path) -> None:
    with zoo.start("python", "gil-held") as sick:
        got = collect_one(ThreadsPython(allow_pause_s=PATIENT), sick.pid, tmp_path, limit_s=90)
        sick.assert_alive()
    found = threads(got, "threads.json")
    assert [name for name, thread in found.items() if thread["owns_gil"]] == ["stuck-in-c"]
    assert found["stuck-in-c"]["active"] is False
    native = threads(got, "threads-native.json")["stuck-in-c"]["frames"]
    assert any("sleep" in frame["name"] and frame["module"] for frame in native)


@pytest.mark.needs("py-spy")
def test_only_the_native_dump_records_a_pause(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        got = collect_one(ThreadsPython(allow_pause_s=PATIENT), sick.pid, tmp_path, limit_s=90)
    assert got.settlements["threads.json"].pause is None
    pause = got.settlements["threads-native.json"].pause
    assert pause is not None
    assert pause.basis is PauseBasis.AT_MOST


@pytest.mark.needs("py-spy")
def test_version_of_py_spy_is_on_record(tmp_path: Path) -> None:
    said = subprocess.run([zoo.get_tool("py-spy"), "--version"], capture_output=True, text=True, check=True).stdout
    with zoo.start("python", "idle") as sick:
        got = collect_one(ThreadsPython(), sick.pid, tmp_path)
    assert said.split() == ["py-spy", got.settlements["threads.json"].facts["tool_version"]]


@pytest.mark.needs("py-spy")
def test_native_dump_is_refused_when_the_allowed_pause_is_shorter_than_the_predicted_one(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        got = collect_one(ThreadsPython(allow_pause_s=0.1), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == DUMPS[:1]
    gap = got.gap("would-harm")
    assert gap.outcome is Outcome.REFUSED
    assert "0.1 s are allowed" in gap.reason.says
    assert gap.reason.next_step.startswith("--allow-pause 1 ")
    assert not any("--native" in touch.what for touch in got.touches)


NATIVE_THREAD = """
import ctypes, time
start = ctypes.CDLL(None).pthread_create
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
start(ctypes.byref(thread), None, ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(600))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.needs("py-spy")
def test_thread_that_python_does_not_know_is_named_as_unlisted(tmp_path: Path) -> None:
    with python(NATIVE_THREAD) as process:
        (native,) = {int(name) for name in os.listdir(f"/proc/{process.pid}/task")} - {process.pid}
        got = collect_one(ThreadsPython(), process.pid, tmp_path)
    facts = got.settlements["threads.json"].facts
    assert (facts["threads"], facts["os_threads"], facts["unlisted_tids"]) == (1, 2, [native])


BUSY = """
import json, threading, time
def deeper(n): return n and deeper(n - 1) + len(json.dumps([n]))
def work():
    while True: deeper(60)
for _ in range(6): threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.needs("py-spy")
def test_threads_that_never_hold_still_are_dumped_all_the_same(tmp_path: Path) -> None:
    with python(BUSY) as process:
        got = collect_one(ThreadsPython(allow_pause_s=PATIENT), process.pid, tmp_path, limit_s=90)
        assert process.poll() is None
    assert got.order == DUMPS
    assert got.gaps == []
    assert len(json.loads(got.artifacts["threads.json"])) == 7


@pytest.mark.needs("py-spy")
def test_process_is_stopped_for_a_moment_when_it_cannot_be_read_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_python, "_RUNNING", replace(threads_python._RUNNING, option="--no-such-option"))
    with zoo.start("python", "lock-wait") as sick:
        got = collect_one(ThreadsPython(allow_pause_s=PATIENT), sick.pid, tmp_path, limit_s=90)
        sick.assert_alive()
        refused = collect_one(ThreadsPython(allow_pause_s=0.05), sick.pid, tmp_path)
    assert got.order == DUMPS
    assert got.settlements["threads.json"].pause is not None
    assert "holder" in threads(got, "threads.json")
    # The reason is why it could not be read, not that it may not be stopped.
    assert refused.gaps[0].reason.code == "tool-failed"
    assert "--no-such-option" in refused.gaps[0].reason.says


@pytest.mark.needs("py-spy", "root", "unshare")
def test_threads_of_another_pid_namespace_are_matched_by_their_own_numbers(tmp_path: Path) -> None:
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    with zoo.start("python", "idle", prefix=inside) as sick:
        got = collect_one(ThreadsPython(), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == DUMPS[:1]
    assert got.settlements["threads.json"].facts["unlisted_tids"] == []
    assert {thread["os_thread_id"] for thread in threads(got, "threads.json").values()} == {1, 2, 3, 4}
    assert "pid namespace" in got.gap("not-supported").reason.says


WEDGE_C = """
#include <unistd.h>
void wedge(void) { if (vfork() == 0) for (;;) pause(); }
"""
# The parent of a vfork sleeps in the kernel, deaf to every signal but SIGKILL, until its child is gone.
WEDGE = """
import ctypes, os, sys, threading, time
threading.Thread(target=ctypes.CDLL(sys.argv[1]).wedge, daemon=True).start()
children = ""
while not children:
    time.sleep(0.01)
    children = "".join(open(f"/proc/self/task/{tid}/children").read() for tid in os.listdir("/proc/self/task"))
print(children, flush=True)
while True:
    time.sleep(0.02)
"""


@pytest.mark.needs("py-spy", "gcc")
def test_thread_that_cannot_be_stopped_ends_the_native_dump_and_the_target_goes_on(tmp_path: Path) -> None:
    library = tmp_path / "wedge.so"
    (tmp_path / "wedge.c").write_text(WEDGE_C)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "wedge.c"], check=True)
    with subprocess.Popen([sys.executable, "-c", WEDGE, library], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            got = collect_one(ThreadsPython(allow_pause_s=2.0), process.pid, tmp_path)
            main = Path(f"/proc/{process.pid}/task/{process.pid}")
            before = switches(main)
            give_up = time.monotonic() + 60
            while switches(main) == before:
                assert time.monotonic() < give_up, (main / "status").read_text()
                time.sleep(0.02)
        finally:
            os.kill(child, 9)
            process.kill()
    assert got.order == DUMPS[:1]
    assert got.gap("deadline-passed").outcome is Outcome.LATE
    assert got.runs_again is True


def switches(task: Path) -> int:
    """How often the thread has gone to sleep by itself: it grows while the thread runs."""
    status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
    assert status["TracerPid"] == "0"
    return int(status["voluntary_ctxt_switches"])


@pytest.mark.needs("py-spy", "root", "setpriv")
def test_without_the_right_to_trace_the_gap_says_denied_and_how_to_get_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.collect.harness import collect_one;"
        "from pmforensics.collect.threads_python import ThreadsPython;"
        "got = collect_one(ThreadsPython(), int(sys.argv[1]), Path(sys.argv[2]));"
        "print([(gap.outcome.value, gap.reason.code, gap.reason.next_step) for gap in got.gaps])"
    )
    with zoo.start("python", "idle") as sick:
        tmp_path.chmod(0o777)
        ran = subprocess.run(
            ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all", sys.executable, "-c", program,
             str(sick.pid), str(tmp_path)],
            capture_output=True, text=True, cwd=zoo.REPO,
        )  # fmt: skip
        sick.assert_alive()
    assert "('denied', 'access-denied'" in ran.stdout, ran.stdout + ran.stderr
    assert "CAP_SYS_PTRACE" in ran.stdout


def test_without_py_spy_the_gap_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An interpreter elsewhere, and a PATH without it: then nothing of that name can be found.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with python_elsewhere() as pid:
        got = collect_one(ThreadsPython(), pid, tmp_path)
    gap = got.gap("tool-missing")
    assert gap.outcome is Outcome.MISSING
    assert gap.reason.next_step == "pip install 'pmforensics[python]'"


@contextmanager
def python_elsewhere() -> Iterator[int]:
    interpreter = Path(sys.prefix) / "bin" / "python3"
    with subprocess.Popen([interpreter, "-c", "print(flush=True); import time; time.sleep(600)"], stdout=-1) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
