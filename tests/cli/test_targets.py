"""Awkward targets, captured by the real command."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import captures, users, zoo

ROGUES = (sys.executable, "-m", "tests.collect.rogues")


@contextmanager
def process(*argv: str, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end."""
    with subprocess.Popen(argv, **more) as running:  # type: ignore[call-overload]
        try:
            yield running
        finally:
            running.kill()


def files_with(folder: Path, needle: bytes) -> list[str]:
    """The files of a bundle, names included, in which these bytes occur."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (needle in path.read_bytes() or needle in os.fsencode(path.name))
    ]


# ---- numbers that are no process


@pytest.mark.parametrize("pid", [4_194_305, 999_999_999, 10**30])
def test_pid_that_nobody_has_is_said_and_nothing_is_made(tmp_path: Path, pid: int) -> None:
    done = captures.pmf("capture", "--pid", pid, "--evidence", tmp_path / "new", "--force")
    assert done.returncode == 4
    assert f"there is no process {pid} [no-such-process]" in done.stderr
    assert "hint: " in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pid", ["0", "-1", "x", "", "1.5"])
def test_pid_that_is_no_number_is_a_usage_error(tmp_path: Path, pid: str) -> None:
    assert captures.pmf("capture", "--pid", pid, "--evidence", tmp_path, "--force").returncode == 2


@pytest.mark.needs("gcc")
def test_thread_id_names_the_process_to_capture_instead(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 2) as sick:
        tid = max(int(path.name) for path in Path(f"/proc/{sick.pid}/task").iterdir())
        assert tid != sick.pid
        done = captures.pmf("capture", "--pid", tid, "--evidence", tmp_path, "--force")
    assert done.returncode == 4
    assert f"{tid} is a thread of process {sick.pid} [not-a-process]" in done.stderr
    assert f"--pid {sick.pid}" in done.stderr
    assert captures.bundles(tmp_path) == []


def test_pmf_does_not_capture_itself(tmp_path: Path) -> None:
    own = f'exec {sys.executable} -m pmforensics capture --pid $$ --evidence "$0" --force'
    done = subprocess.run(["sh", "-c", own, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "[not-a-process]" in done.stderr
    assert captures.bundles(tmp_path) == []


# ---- states


@pytest.mark.needs("gcc")
def test_target_that_was_stopped_stays_stopped_and_is_shown_so(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 2) as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        captures.wait_for("the stop", lambda: captures.states(sick.pid) == {"T"})
        done = captures.pmf("capture", "--pid", sick.pid, "--evidence", tmp_path, "--force")
        assert done.returncode in (0, 3)
        assert captures.states(sick.pid) == {"T"}
        evidence = captures.judge(captures.only_bundle(tmp_path))
        assert evidence["target"]["state"] == "T"
        assert evidence["target"]["end"] == {"alive": True, "was_stopped": True}
        assert f"Process {sick.pid} is stopped, as before" in done.stdout
        assert all(row["runs_again"] is not False for row in evidence["collectors"])
        os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()


def test_zombie_yields_what_the_kernel_still_has_and_never_passes_for_complete(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        child.kill()
        captures.wait_for("the zombie", lambda: captures.states(child.pid) <= {"Z"} and captures.states(child.pid))
        done = captures.pmf("capture", "--pid", child.pid, "--evidence", tmp_path, "--force")
        assert done.returncode == 3, done.stderr
        folder = captures.only_bundle(tmp_path)
        evidence = captures.judge(folder)
        assert evidence["target"]["state"] == "Z"
        assert evidence["gaps"]
        assert b"State:\tZ (zombie)" in (folder / "data" / "01-process_state" / "status").read_bytes()
        assert not [gap for gap in evidence["gaps"] if gap["reason"]["code"] in ("bug", "collector-died")]
    finally:
        child.wait()


@pytest.mark.needs("root")
def test_kernel_thread_is_captured_without_stacks_of_its_own_program(tmp_path: Path) -> None:
    threads = [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if int(stat.read_text(errors="replace").rpartition(")")[2].split()[6]) & 0x00200000
    ]
    if not threads:
        pytest.skip("needs: a kernel thread that can be seen")
    pid = min(threads)
    done = captures.pmf("capture", "--pid", pid, "--evidence", tmp_path, "--force")
    assert done.returncode in (0, 3), done.stderr
    folder = captures.only_bundle(tmp_path)
    evidence = captures.judge(folder)
    assert evidence["target"]["kernel_thread"] is True
    assert evidence["target"]["runtimes"] == []
    assert not [gap for gap in evidence["gaps"] if gap["reason"]["code"] in ("bug", "collector-died")]
    (line,) = (folder / "data" / "01-process_state" / "threads.jsonl").read_text().splitlines()
    assert "+0x" in json.loads(line)["stack"]


# ---- they go away


@pytest.mark.needs("go")
def test_target_that_exits_by_itself_during_the_capture_leaves_a_true_bundle(tmp_path: Path) -> None:
    for delay_ms in (100, 300, 600, 1000):
        with zoo.start("go", "goes-away", delay_ms) as sick:
            place = tmp_path / str(delay_ms)
            done = captures.pmf("capture", "--pid", sick.pid, "--evidence", place, "--force")
            if done.returncode == 4:
                assert "no-such-process" in done.stderr or "target-gone" in done.stderr
                continue
            folder = captures.only_bundle(place)
            evidence = captures.judge(folder)
            gone = not evidence["target"]["end"]["alive"]
            assert done.returncode == 3 or not gone
            if gone:
                assert "target-gone" in captures.gap_codes(folder)
                assert f"Process {sick.pid} exited during the capture." in done.stdout
                assert evidence["completeness"] == "incomplete"
                assert evidence["artifacts"]


def test_target_killed_between_two_collectors_is_recorded_as_gone(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with process("sleep", "1000") as target:
        capture = subprocess.Popen(
            [*ROGUES, "Fine,Waits+real", "capture", "--pid", str(target.pid), "--evidence", tmp_path / "e", "--force"],
            env={**os.environ, "ROGUE_MEETING": str(meeting)},
            stdout=subprocess.DEVNULL,
        )
        captures.wait_for("the collector that waits", (meeting / "here").exists)
        target.kill()
        target.wait()
        (meeting / "go").touch()
        assert capture.wait(captures.TIMEOUT_S) == 3
    folder = captures.only_bundle(tmp_path / "e")
    evidence = captures.judge(folder)
    assert evidence["target"]["end"]["alive"] is False
    assert "target-gone" in captures.gap_codes(folder)
    # Only what needs no process comes after its death: the clocks, the host.
    after = {row["path"].split("/", 2)[1].partition("-")[2] for row in evidence["artifacts"]} - {"fine", "waits"}
    assert after <= {"clock", "clock_again", "resources", "cores_on_disk", "logs"}, after


SUCCESSION = r"""
import json, os, subprocess, sys, time
from pathlib import Path

evidence, meeting, mark = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
log = meeting / f"{mark}.log"
log.write_text(mark * 100)

def become(words, env):
    # As much of its own as a process can show: arguments, environment, name, open files, memory.
    os.open(log, os.O_RDWR)
    os.execve(sys.executable, words, env)

victim = os.fork()
if victim == 0:
    os.execvp("sleep", ["sleep", "1000"])
capture = subprocess.Popen(
    [sys.executable, "-m", "tests.collect.rogues", "Fine,Waits+real",
     "capture", "--pid", str(victim), "--evidence", str(evidence), "--force"],
    env={**os.environ, "ROGUE_MEETING": str(meeting)}, stdout=subprocess.DEVNULL)
while not (meeting / "here").exists():
    time.sleep(0.005)
os.kill(victim, 9)
os.waitpid(victim, 0)
successor = 0
for attempt in range(1000):
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(victim - 1))
    pid = os.fork()
    if pid == 0:
        code = f"import time; secret = {mark!r} * 1000; open('/proc/self/comm', 'w').write({mark!r}); time.sleep(1000)"
        become([mark, "-c", code], {**os.environ, "SUCCESSOR": mark})
    if pid == victim:
        successor = pid
        break
    os.kill(pid, 9)
    os.waitpid(pid, 0)
time.sleep(0.3)
(meeting / "go").touch()
code = capture.wait()
alive = bool(successor) and os.waitpid(successor, os.WNOHANG) == (0, 0)
comm = Path(f"/proc/{victim}/comm").read_text().strip() if alive else ""
print(json.dumps({"reused": bool(successor), "code": code, "alive": alive, "comm": comm, "pid": victim}))
"""


@pytest.mark.needs("root", "unshare")
def test_successor_with_the_same_pid_is_never_read(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    mark = "succ3ss0r"
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", SUCCESSION,
         tmp_path / "evidence", meeting, mark],
        capture_output=True, text=True, timeout=captures.TIMEOUT_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["reused"], "the pid was not given out again: this test proves nothing"
    assert result["alive"]
    assert result["comm"] == mark
    assert result["code"] == 3
    folder = captures.only_bundle(tmp_path / "evidence")
    captures.judge(folder)
    assert files_with(folder, mark.encode()) == []
    assert "target-gone" in captures.gap_codes(folder)


# ---- somewhere else, somebody else's


@pytest.mark.needs("root", "unshare", "gcc")
def test_process_in_other_namespaces_is_captured_as_it_sees_itself(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 2, prefix=("unshare", "--pid", "--fork", "--mount-proc", "--net")) as sick:
        folder = captures.capture(sick.pid, tmp_path)
        sick.assert_alive()
        evidence = captures.judge(folder)
        target = evidence["target"]
        assert (target["pid"], target["ns_pids"][0]) == (sick.pid, sick.pid)
        assert target["ns_pids"][-1] == sick.ready["pid"] != sick.pid
        assert (target["same_pid_ns"], target["same_mnt_ns"], target["same_net_ns"]) == (False, False, False)
        images = json.loads((next((folder / "data").glob("*-build_ids")) / "images.json").read_text())["images"]
        assert images
        assert all(image["read_by"] for image in images)


@pytest.mark.needs("root", "setpriv")
def test_ordinary_user_gets_what_the_kernel_allows_and_the_refusals_with_their_reasons(tmp_path: Path) -> None:
    evidence_folder = users.open_to(tmp_path / "evidence")
    with process("sleep", "1000") as target:
        done = users.pmf("capture", "--pid", target.pid, "--evidence", evidence_folder, "--force")
        assert captures.states(target.pid) == {"S"}
    assert done.returncode == 3, done.stderr
    folder = captures.only_bundle(evidence_folder)
    evidence = captures.judge(folder)
    denied = [gap for gap in evidence["gaps"] if gap["outcome"] == "denied"]
    assert any("maps" in gap["wanted"] or "build_ids" in gap["wanted"] for gap in denied)
    assert all(gap["reason"]["next_step"] for gap in denied), [gap for gap in denied if not gap["reason"]["next_step"]]
    assert not [gap for gap in evidence["gaps"] if gap["reason"]["code"] in ("bug", "collector-died")]
    # What everybody may read is there.
    assert b"Name:\tsleep" in (folder / "data" / "01-process_state" / "status").read_bytes()
    assert evidence["target"]["uid"] == os.getuid()
    assert {path.stat().st_uid for path in folder.rglob("*")} == {users.UID}
    assert "denied" in done.stdout or "access-denied" in done.stdout


@pytest.mark.needs("root", "setpriv")
def test_ordinary_user_captures_a_process_of_their_own(tmp_path: Path) -> None:
    evidence_folder = users.open_to(tmp_path / "evidence")
    with process(*users.prefix(), "sleep", "1000") as target:
        captures.wait_for("the exec", lambda: Path(f"/proc/{target.pid}/comm").read_text() == "sleep\n")
        done = users.pmf("capture", "--pid", target.pid, "--evidence", evidence_folder, "--force")
        assert captures.states(target.pid) == {"S"}
    assert done.returncode in (0, 3), done.stderr
    folder = captures.only_bundle(evidence_folder)
    captures.judge(folder)
    images = json.loads((next((folder / "data").glob("*-build_ids")) / "images.json").read_text())["images"]
    assert any(image["path"].endswith("sleep") and image["read_by"] for image in images)


@pytest.mark.needs("root", "setpriv")
def test_bundle_of_root_is_closed_to_an_ordinary_user_and_says_so(tmp_path: Path) -> None:
    place = users.open_to(tmp_path / "open")
    with process("sleep", "1000") as target:
        folder = captures.capture(target.pid, place)
    (place / "sleep").chmod(0o755)
    for command in ("show", "check", "recover"):
        done = users.pmf(command, folder)
        assert done.returncode == 4, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "hint:" in done.stderr


# ---- names made to deceive


ESCAPES = {
    "comm": b"\x1b[31m\nX\x9b5m\r",
    "argv": b"\x1b]0;pwned\x07\x1b[2J\nSeal sha256:0000\x9b31m\xc2\x9b\xe2\x80\xae",
}
DANGEROUS = re.compile(rb"\x1b\][^\x07]*|\x1b\[2J|\x1b\[31mX|\x9b|\r\n?X|\x07|\xe2\x80\xae|\xc2\x9b")


@contextmanager
def deceiver() -> Iterator[int]:
    """A process with terminal escapes and line breaks in its name and its first argument."""
    pid = os.fork()
    if pid == 0:
        code = (
            "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, "
            f"ctypes.c_char_p({ESCAPES['comm']!r}), 0, 0, 0); open(sys.argv[1], 'w').close(); time.sleep(1000)"
        )
        ready = f"/tmp/pmf-test-ready-{os.getpid()}"
        os.execve(sys.executable, [ESCAPES["argv"], b"-c", code.encode(), ready.encode()], os.environ)
    ready = Path(f"/tmp/pmf-test-ready-{pid}")
    try:
        captures.wait_for("the deceiver", ready.exists)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ready.unlink(missing_ok=True)


def on_terminal(*args: object) -> bytes:
    """All that `pmf` writes to a terminal, stdout and stderr together."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp(captures.PMF[0], [*captures.PMF, *map(str, args)])
    said = b""
    while select.select([fd], [], [], captures.TIMEOUT_S)[0]:
        try:
            piece = os.read(fd, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(fd)
    os.waitpid(pid, 0)
    return said


def test_terminal_escapes_in_the_names_of_a_process_reach_no_terminal_and_forge_no_line(tmp_path: Path) -> None:
    with deceiver() as pid:
        assert Path(f"/proc/{pid}/comm").read_bytes() == ESCAPES["comm"][:15] + b"\n"
        said = [
            on_terminal("capture", "--pid", pid, "--evidence", tmp_path / "terminal", "--force"),
            captures.pmf("capture", "--pid", pid, "--evidence", tmp_path / "pipe", "--force").stdout.encode(
                "latin-1", "replace"
            ),
            on_terminal("doctor", "--pid", pid),
        ]
    folder = captures.only_bundle(tmp_path / "pipe")
    captures.judge(folder)
    for command in ("show", "check"):
        said.append(on_terminal(command, folder))
        plain = captures.pmf(command, folder)
        said.append((plain.stdout + plain.stderr).encode("utf-8", "surrogateescape"))
        assert "\x1b" not in plain.stdout + plain.stderr
    assert all(said)
    for text in said:
        assert not DANGEROUS.search(text), DANGEROUS.search(text)
        assert not re.search(rb"^Seal sha256:0000", text, re.MULTILINE)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", folder.parent.name)
    # The evidence itself is raw.
    assert ESCAPES["comm"][:2] in (folder / "data" / "01-process_state" / "status").read_bytes() or (
        b"Name:" in (folder / "data" / "01-process_state" / "status").read_bytes()
    )


def test_hostile_manifest_is_shown_without_its_escapes_and_without_a_crash(tmp_path: Path) -> None:
    with process("sleep", "1000") as target:
        folder = captures.capture(target.pid, tmp_path)
    evidence = captures.evidence_of(folder)

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return f"{value}\x1b[31m\n\x9b" if isinstance(value, str) else value

    (folder / "evidence.json").write_text(json.dumps(poison(evidence)))
    for args in (("show",), ("show", "--all"), ("check",)):
        done = captures.pmf(*args, folder)
        assert done.returncode in (0, 1), done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x9b" not in done.stdout + done.stderr
    changes: list[dict[str, object]] = [{"artifacts": [1]}, {"gaps": "x"}, {"clock": None}, {"target": []}]
    for broken in ({}, {"capture": 1}, *({**evidence, **change} for change in changes)):
        (folder / "evidence.json").write_text(json.dumps(broken))
        done = captures.pmf("show", folder)
        assert done.returncode == 4
        assert "[bundle-broken]" in done.stderr
        assert "Traceback" not in done.stderr


# ---- names that are no text


def test_names_that_are_no_utf8_are_captured_and_shown(tmp_path: Path) -> None:
    program = tmp_path / os.fsdecode(b"sl\xffeep")
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    opened = tmp_path / os.fsdecode(b"log-\xfe.log")
    opened.touch()
    evidence = tmp_path / os.fsdecode(b"evidence-\xfd")
    with opened.open("ab") as log, process(str(program), "1000", stdout=log) as target:
        done = captures.pmf(
            "capture", "--pid", target.pid, "--evidence", evidence, "--force",
            "--service", os.fsdecode(b"serv\xffice"), "--incident", os.fsdecode(b"INC-\xff"), "--log", opened,
        )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    folder = captures.only_bundle(evidence)
    assert str(folder) in done.stdout
    told = captures.judge(folder)
    assert told["capture"]["incident"] == "INC-\\xff"
    assert not [gap for gap in told["gaps"] if gap["reason"]["code"] in ("bug", "collector-died")]
    for command in ("show", "check", "recover"):
        shown = captures.pmf(command, folder)
        assert shown.returncode in (0, 3), shown.stderr
        assert json.loads(captures.pmf(command, folder, "--json").stdout)


@pytest.mark.needs("gcc")
def test_two_captures_of_one_process_at_the_same_time_make_two_whole_bundles(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 4) as sick:
        both = [captures.start_pmf("capture", "--pid", sick.pid, "--evidence", tmp_path, "--force") for _ in range(2)]
        for one in both:
            one.communicate(timeout=captures.TIMEOUT_S)
            assert one.returncode in (0, 3)
        sick.assert_alive()
    folders = captures.bundles(tmp_path)
    assert len(folders) == 2
    for folder in folders:
        captures.judge(folder)


def test_clock_of_the_capture_brackets_it(tmp_path: Path) -> None:
    before_ns = time.time_ns()
    with process("sleep", "1000") as target:
        evidence = captures.judge(captures.capture(target.pid, tmp_path))
    start, end = evidence["clock"]["start"], evidence["clock"]["end"]
    assert before_ns <= start["wall_ns"] <= end["wall_ns"] <= time.time_ns()
    assert start["monotonic_ns"] < end["monotonic_ns"]
    assert start["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ctypes.sizeof(ctypes.c_void_p) in (4, 8)
