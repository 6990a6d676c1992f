"""Log slices from real processes, files, rotations and journals."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import os
import pty
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pmforensics.collect import log_slice
from pmforensics.collect.examine import examine, read_target_json
from pmforensics.collect.host import LocalHost
from pmforensics.collect.logs import MAX_FILES, Logs, log_family
from pmforensics.collect.pin import pin
from pmforensics.model.capture import MIB, Artifact, Gap, Outcome
from pmforensics.model.process import Target
from tests import zoo
from tests.collect.harness import Collected, collect_one

NOTHING = zoo.REPO / "fixtures" / "zoo" / "c"  # a folder with neither pods nor journals
JOURNAL_REMOTE = "/lib/systemd/systemd-journal-remote"
MINUTE = 60.0


def logs(**options: Any) -> Logs:
    """Without the machine's own container logs and journal."""
    options = {"journal_dir": NOTHING, "pods_dir": NOTHING, "docker_dir": NOTHING, **options}
    return Logs(**options)


def collect(collector: Logs, pid: int, tmp_path: Path) -> Collected:
    """Through the supervisor; without the empty journal of the unit that these tests may run in."""
    collected = collect_one(collector, pid, tmp_path)
    if collected.artifacts.get("journal.export") == b"":
        collected.order.remove("journal.export")
        del collected.artifacts["journal.export"], collected.settlements["journal.export"]
    return collected


def utc(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def line(epoch_s: float, text: str = "request done") -> bytes:
    return f"{utc(epoch_s)} INFO {text}\n".encode()


def lines_between(start_s: float, end_s: float, count: int = 500, text: str = "request done") -> list[bytes]:
    step_s = (end_s - start_s) / count
    return [line(start_s + n * step_s, f"{text} {n}") for n in range(count)]


def later_than(lines: Sequence[bytes], since_s: float) -> bytes:
    """The linear scan: stamps of one spelling in one zone sort as text."""
    first = utc(since_s).encode()
    return b"".join(one for one in lines if one >= first)


@contextmanager
def process(
    *,
    stdout: Any = subprocess.DEVNULL,
    stderr: Any = subprocess.DEVNULL,
    fds: Sequence[int] = (),
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[int]:
    """A process that sleeps, with these descriptors."""
    sleeper = subprocess.Popen(
        [*prefix, "sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=fds,
        env={**os.environ, **(env or {})},
    )
    try:
        give_up = time.monotonic() + 30
        while Path(f"/proc/{sleeper.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < give_up
            time.sleep(0.005)
        yield sleeper.pid
    finally:
        sleeper.kill()
        sleeper.wait()


@contextmanager
def writing_to(path: Path) -> Iterator[int]:
    """A process whose stdout is this file."""
    with path.open("ab") as out, process(stdout=out) as pid:
        yield pid


def slices(collected: Collected) -> list[str]:
    return [path for path in collected.order if path.endswith(".log")]


def facts_of(collected: Collected, path: str) -> dict[str, Any]:
    return dict(collected.settlements[path].facts)


@dataclass
class Driven:
    """The collector in this process, so that a test can act between two chunks."""

    items: Iterator[Artifact | Gap]
    target: Target


@contextmanager
def driven(collector: Logs, pid: int, tmp_path: Path, **changes: Any) -> Iterator[Driven]:
    with pin(pid) as held:
        blank = Target(pid, held.start_ticks)

        def host_for(target: Target) -> LocalHost:
            return LocalHost(
                held,
                target,
                deadline=time.monotonic() + 60,
                spool=tmp_path,
                floor_bytes=0,
                log=lambda _verb, _what, _seconds, _result: None,
            )

        target = replace(read_target_json(examine(held, host_for(blank))), **changes)
        yield Driven(iter(collector.collect(target, host_for(target))), target)


def drain(item: Artifact | Gap | None) -> bytes:
    assert isinstance(item, Artifact), item
    assert not isinstance(item.body, bytes | Path)
    return b"".join(item.body)


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "app.log", "app.log.1", "app.log.12", "app.log.1.gz", "app.log.2.zst", "app.log-20261120",
        "app.log-20261120.gz", "app.log-20261120-1795180500.gz", "app.log.20261120-131500", "app.log.2026-11-20",
        "app.log.2026-11-20-13", "app.log.2026-11-20_13-15-00", "app.log.2026-11", "app.2026-11-20.log",
        "app-2026-11-20.log", "app_20261120.log", "app-2026-11-20T13-15-00.123.log", "app-2026-11-20-1.log.gz",
        "app.1.log", "app.2026-11-20.3.log.gz", "app.log.1795180500", "app.log.2026-11-20.1.gz",
    ],
)  # fmt: skip
def test_rotated_names_belong_to_their_log(name: str) -> None:
    assert log_family(name) == "app.log"


@pytest.mark.parametrize("name", ["worker-1", "worker_2", "worker-1.log", "shard-12.out"])
def test_numbered_instances_are_logs_of_their_own(name: str) -> None:
    assert log_family(name) == name
    assert log_family(f"{name}.3.gz") == name


@pytest.mark.parametrize(
    "name",
    ["app-2.log", "app.err.log", "app.log.bak", "myapp.log", "app.json.log", "app.log.old", "app", "20261120", "1.gz"],
)
def test_other_names_do_not(name: str) -> None:
    assert log_family(name) not in ("app.log", "")


# -- one file ----------------------------------------------------------------------------------------------------


def test_slice_of_stdout_is_the_bytes_of_the_window_and_says_where_they_stood(tmp_path: Path) -> None:
    now = time.time()
    written = lines_between(now - 120 * MINUTE, now, 40_000)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    assert collected.order == ["01-app.log"]
    assert collected.gaps == []
    body, settled = collected.artifacts["01-app.log"], collected.settlements["01-app.log"]
    facts = facts_of(collected, "01-app.log")
    assert settled.outcome is Outcome.COLLECTED
    assert body == later_than(written, datetime.fromisoformat(facts["since_at"]).timestamp())
    assert abs(datetime.fromisoformat(facts["since_at"]).timestamp() - (now - 900)) < 60
    start, end = facts["range"]
    assert path.read_bytes()[start:end] == body
    assert end == facts["size"] == path.stat().st_size
    status = path.stat()
    assert facts["path"] == str(path)
    assert facts["inode"] == status.st_ino
    assert facts["device"] == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert facts["first_stamp_raw"] == body.split()[0].decode()
    assert facts["last_stamp_raw"] == written[-1].split()[0].decode()
    assert datetime.fromisoformat(facts["first_at"]) == datetime.fromisoformat(facts["first_stamp_raw"])
    assert facts["form"] == "iso-8601"
    assert facts["found_by"] == "bisection"
    assert facts["origin"] == "open"
    assert facts["fds"] == [1]
    assert facts["reads"] < 60
    assert "zone_assumed" not in facts


def test_file_that_begins_inside_the_window_is_taken_whole(tmp_path: Path) -> None:
    now = time.time()
    path = tmp_path / "app.log"
    path.write_bytes(b"starting up\n" + line(now - 60) + b"\tat a frame\n" + line(now))
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    assert collected.artifacts["01-app.log"] == path.read_bytes()
    assert facts_of(collected, "01-app.log")["found_by"] == "whole"


def test_few_bytes_of_a_large_file_are_read(tmp_path: Path) -> None:
    """4 GiB, of which all but the ends is a hole: a read of the whole would show in the process's io counters."""
    now = time.time()
    path = tmp_path / "app.log"
    with path.open("wb") as out:
        out.write(b"".join(lines_between(now - 500 * MINUTE, now - 400 * MINUTE, 20_000)))
        out.seek(4 << 30)
        tail = lines_between(now - 20 * MINUTE, now, 20_000)
        out.write(b"\n" + b"".join(tail))
    before = int(Path("/proc/self/io").read_text().split()[1])
    with writing_to(path) as pid, driven(logs(), pid, tmp_path) as run:
        item = next(run.items)
        body = drain(item)
        assert isinstance(item, Artifact)
        since = datetime.fromisoformat(str(item.settled().facts["since_at"])).timestamp()
    assert body == later_than(tail, since)
    assert int(Path("/proc/self/io").read_text().split()[1]) - before < 64 * MIB


def test_empty_file_is_empty_and_old_file_has_nothing_in_the_window(tmp_path: Path) -> None:
    now = time.time()
    empty, old = tmp_path / "empty.log", tmp_path / "old.log"
    empty.touch()
    old.write_bytes(b"".join(lines_between(now - 200 * MINUTE, now - 100 * MINUTE)))
    os.utime(old, (now - 100 * MINUTE, now - 100 * MINUTE))
    with process() as pid:
        collected = collect(logs(files=(empty, old)), pid, tmp_path)
    assert {path: one.outcome for path, one in collected.settlements.items()} == {
        "01-empty.log": Outcome.EMPTY,
        "02-old.log": Outcome.EMPTY,
    }
    reason = collected.settlements["02-old.log"].reason
    assert reason is not None
    assert reason.code == "nothing-in-window"
    assert facts_of(collected, "02-old.log")["last_stamp_raw"] in reason.says


def test_file_without_stamps_gives_its_last_4_mib_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"a line that says nothing of its time\n" * 200_000)
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    settled = collected.settlements["01-app.log"]
    assert collected.artifacts["01-app.log"] == path.read_bytes()[-4 * MIB :]
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "no-timestamps"
    assert settled.facts["found_by"] == "tail"


def test_short_file_without_stamps_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"panic: everything is lost\n")
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    assert collected.artifacts["01-app.log"] == path.read_bytes()
    assert collected.settlements["01-app.log"].outcome is Outcome.COLLECTED


def test_panic_without_stamps_after_an_old_line_is_in_the_window(tmp_path: Path) -> None:
    """A service that was silent for an hour and then died in unstamped lines: the file's own time tells."""
    now = time.time()
    path = tmp_path / "app.log"
    quiet = lines_between(now - 200 * MINUTE, now - 60 * MINUTE, 3000)
    panic = b"panic: runtime error\n" + b"goroutine 7 [running]:\nmain.f()\n" * 100_000
    path.write_bytes(b"".join(quiet) + panic)
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    assert collected.artifacts["01-app.log"] == quiet[-1] + panic
    assert collected.settlements["01-app.log"].outcome is Outcome.COLLECTED
    assert facts_of(collected, "01-app.log")["found_by"] == "tail"


@pytest.mark.parametrize("written_ago_min", [0, 60])
def test_dump_too_long_to_be_searched_is_taken_if_it_may_be_of_the_window(written_ago_min: int, tmp_path: Path) -> None:
    now = time.time()
    path = tmp_path / "app.log"
    quiet = lines_between(now - 200 * MINUTE, now - 61 * MINUTE, 3000)
    panic = b"panic: runtime error\n" + b"goroutine 7 [running]:\nmain.f()\n" * 300_000
    path.write_bytes(b"".join(quiet) + panic)
    os.utime(path, (now - written_ago_min * MINUTE,) * 2)
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    body, settled = collected.artifacts["01-app.log"], collected.settlements["01-app.log"]
    assert body == (b"" if written_ago_min else quiet[-1] + panic)
    assert settled.outcome is (Outcome.EMPTY if written_ago_min else Outcome.COLLECTED)


def test_stamps_that_contradict_the_files_own_time_are_told(tmp_path: Path) -> None:
    """A process whose clock stands 37 minutes behind."""
    now = time.time()
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(lines_between(now - 200 * MINUTE, now - 37 * MINUTE, 3000)))
    with writing_to(path) as pid:
        collected = collect(logs(), pid, tmp_path)
    settled = collected.settlements["01-app.log"]
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "stamps-disagree"
    assert collected.artifacts["01-app.log"] == path.read_bytes()


def test_more_than_the_limit_keeps_the_newest_whole_lines(tmp_path: Path) -> None:
    now = time.time()
    written = lines_between(now - 10 * MINUTE, now, 20_000)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    with writing_to(path) as pid:
        collected = collect(logs(max_bytes=100_000), pid, tmp_path)
    body, settled = collected.artifacts["01-app.log"], collected.settlements["01-app.log"]
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "over-limit"
    assert settled.facts["truncated_to"] == 100_000
    assert path.read_bytes().endswith(body)
    assert body.splitlines(keepends=True)[0] in written
    assert 100_000 - len(written[-1]) <= len(body) <= 100_000
    assert settled.facts["first_stamp_raw"] == body.split()[0].decode()


def test_limit_over_all_files_is_kept_and_the_rest_is_a_gap(tmp_path: Path) -> None:
    now = time.time()
    files = []
    for name in ("a.log", "b.log", "c.log"):
        (tmp_path / name).write_bytes(b"".join(lines_between(now - 10 * MINUTE, now, 2000)))
        files.append(tmp_path / name)
    size = files[0].stat().st_size
    with process() as pid:
        collected = collect(logs(files=tuple(files), all_bytes=size + size // 2), pid, tmp_path)
    assert [len(collected.artifacts[path]) == size for path in collected.order] == [True, False]
    assert collected.settlements["02-b.log"].outcome is Outcome.PARTIAL
    gap = collected.gap("over-limit")
    assert "c.log" in gap.wanted
    assert gap.outcome is Outcome.REFUSED


# -- which files -------------------------------------------------------------------------------------------------


def test_file_that_is_given_and_open_twice_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(line(time.time()))
    (tmp_path / "link.log").symlink_to(path)
    with path.open("ab") as out, process(stdout=out, stderr=out) as pid:
        collected = collect(logs(files=(tmp_path / "link.log",)), pid, tmp_path)
        by_fd = collect(logs(), pid, tmp_path)
    assert collected.order == ["01-app.log"]
    assert facts_of(collected, "01-app.log")["origin"] == "given"
    assert by_fd.order == ["01-app.log"]
    assert facts_of(by_fd, "01-app.log")["fds"] == [1, 2]


def test_open_files_with_the_name_of_a_log_are_found_and_others_are_not(tmp_path: Path) -> None:
    now = time.time()
    with ExitStack() as stack:
        fds = []
        for name in ("gc.log", "audit.json.log", "catalina.out", "error_log", "data.db", "login.py", "outer.txt"):
            (tmp_path / name).write_bytes(line(now, name))
            fds.append(stack.enter_context((tmp_path / name).open("ab")).fileno())
        pid = stack.enter_context(process(fds=fds))
        collected = collect(logs(), pid, tmp_path)
    assert collected.order == ["01-gc.log", "02-audit.json.log", "03-catalina.out.log", "04-error_log.log"]
    assert collected.gaps == []


def test_stderr_of_a_zoo_program_is_taken(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        sick.stderr.write_bytes(line(time.time(), "from the zoo"))
        collected = collect(logs(), sick.pid, tmp_path)
        sick.assert_alive()
    assert collected.artifacts["01-stderr.log"].endswith(b"from the zoo\n")
    assert facts_of(collected, "01-stderr.log")["fds"] == [2]
    # Its stdout is a pipe that this very process reads.
    assert f"process {os.getpid()} (" in collected.gap("not-a-file").reason.says


def test_deleted_file_is_read_through_its_descriptor_and_its_old_parts_are_found(tmp_path: Path) -> None:
    now = time.time()
    old = lines_between(now - 30 * MINUTE, now - 10 * MINUTE, 2000)
    new = lines_between(now - 10 * MINUTE, now, 2000)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(new))
    (tmp_path / "app.log.1").write_bytes(b"".join(old))
    with writing_to(path) as pid:
        path.unlink()
        collected = collect(logs(), pid, tmp_path)
    assert collected.artifacts["01-app.log"] == b"".join(new)
    facts = facts_of(collected, "01-app.log")
    assert facts["deleted"] is True
    assert facts["path"] == str(path)
    since = datetime.fromisoformat(facts["since_at"]).timestamp()
    assert collected.artifacts["02-app.log.1.log"] == later_than(old, since)


@pytest.mark.needs("root", "unshare", "mount")
def test_parts_are_looked_for_where_the_target_sees_its_log(tmp_path: Path) -> None:
    """In a mount namespace of its own: the same path outside holds another program's files."""
    now = time.time()
    folder = tmp_path / "var"
    folder.mkdir()
    inside = tmp_path / "prepared"
    inside.mkdir()
    (inside / "app.log").write_bytes(line(now, "inside, now"))
    (inside / "app.log.1").write_bytes(line(now - 30, "inside, before"))
    os.utime(inside / "app.log.1", (now - 30, now - 30))
    (folder / "app.log").write_bytes(line(now, "outside"))
    (folder / "app.log.1").write_bytes(line(now - 30, "outside, before"))
    script = f"mount -t tmpfs none {folder} && cp -p {inside}/* {folder}/ && exec sleep 1000 >> {folder}/app.log"
    with process(prefix=("unshare", "--mount", "sh", "-c", script, "sh")) as pid:
        collected = collect(logs(), pid, tmp_path)
    assert {path: body.split(b"INFO ")[1] for path, body in collected.artifacts.items()} == {
        "01-app.log": b"inside, now\n",
        "02-app.log.1.log": b"inside, before\n",
    }
    assert collected.target is not None
    assert not collected.target.same_mnt_ns


@pytest.mark.needs("root", "chroot", "gcc")
def test_log_of_a_chrooted_process_is_found_with_its_parts(tmp_path: Path) -> None:
    """The kernel names its files by our root; a path of ours is not a path of the target's."""
    now = time.time()
    path = tmp_path / "app.log"
    path.write_bytes(line(now, "now"))
    (tmp_path / "app.log.1").write_bytes(line(now - 30, "before"))
    os.utime(tmp_path / "app.log.1", (now - 30, now - 30))
    jail = tmp_path / "jail"
    (jail / "bin").mkdir(parents=True)
    source = jail / "sleep.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    subprocess.run(["gcc", "-static", "-o", jail / "bin" / "sleep", source], check=True)
    with path.open("ab") as out:
        jailed = subprocess.Popen(["chroot", jail, "/bin/sleep"], stdout=out, stdin=subprocess.DEVNULL)
        try:
            give_up = time.monotonic() + 30
            while os.readlink(f"/proc/{jailed.pid}/root") != str(jail):
                assert time.monotonic() < give_up
                time.sleep(0.005)
            collected = collect(logs(), jailed.pid, tmp_path)
        finally:
            jailed.kill()
            jailed.wait()
    assert collected.order[:2] == ["01-app.log", "02-app.log.1.log"]


def test_binary_file_with_the_name_of_a_log_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "000012.log"
    path.write_bytes(random.Random(3).randbytes(6 * MIB))
    with path.open("ab") as out, process(fds=[out.fileno()]) as pid:
        collected = collect(logs(), pid, tmp_path)
        asked = collect(logs(files=(path,)), pid, tmp_path)
    assert collected.order == []
    assert collected.gap("binary").outcome is Outcome.REFUSED
    assert asked.artifacts["01-000012.log"] == path.read_bytes()[-4 * MIB :]


def test_more_logs_than_can_be_taken_leave_a_gap(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fds = []
        for n in range(MAX_FILES + 3):
            path = tmp_path / f"shard-{n}.log"
            path.write_bytes(line(time.time()))
            fds.append(stack.enter_context(path.open("ab")).fileno())
        pid = stack.enter_context(process(fds=fds))
        collected = collect(logs(), pid, tmp_path)
    assert len(collected.order) == MAX_FILES
    assert collected.gap("too-many-files").wanted == "3 more logs"


def test_given_file_that_is_missing_or_no_file_is_a_gap_each_and_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.log"
    os.mkfifo(fifo)
    there = tmp_path / "there.log"
    there.write_bytes(line(time.time()))
    with process() as pid:
        collected = collect(logs(files=(tmp_path / "no.log", fifo, tmp_path, there)), pid, tmp_path)
    assert collected.order == ["01-there.log"]
    assert [gap.outcome for gap in collected.gaps] == [Outcome.MISSING] * 3
    assert {gap.reason.code for gap in collected.gaps} == {"not-there", "not-supported"}


@pytest.mark.needs("root", "setpriv")
def test_file_that_may_not_be_read_is_denied_and_the_rest_is_taken(tmp_path: Path) -> None:
    closed, open_to_all = tmp_path / "closed.log", tmp_path / "open.log"
    for path in (closed, open_to_all):
        path.write_bytes(line(time.time()))
    closed.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(folder.stat().st_mode | 0o5)
    script = (
        "import sys; from pathlib import Path; from tests.collect.test_logs import *\n"
        "collected = collect(logs(files=(Path(sys.argv[2]), Path(sys.argv[3]))), int(sys.argv[1]), "
        "Path(sys.argv[4]))\n"
        "print(sorted(collected.order), [(gap.outcome.value, gap.reason.code) for gap in collected.gaps])"
    )
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    with process(prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")) as pid:
        ran = subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
                *(sys.executable, "-B", "-c", script, str(pid), closed, open_to_all, home),
            ],
            cwd=zoo.REPO,
            env={**os.environ, "PYTHONPATH": f"{zoo.REPO}:{zoo.REPO / 'src'}", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.stdout == "['01-open.log'] [('denied', 'access-denied')]\n", ran.stderr


def test_strange_names_and_times_are_recorded_and_break_nothing(tmp_path: Path) -> None:
    """A name that is no UTF-8, and a last change in the year 33658, which a tmpfs can hold."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/app \xff\n;.log"))
        path.write_bytes(b"".join(lines_between(time.time() - 7200, time.time() - 3600)))
        os.utime(path, (10**12, 10**12))
        with writing_to(path) as pid:
            collected = collect(logs(), pid, tmp_path)
    assert collected.order == ["01-app____.log"]
    facts = facts_of(collected, "01-app____.log")
    assert facts["path"] == folder + "/app \\xff\n;.log"
    assert facts["written_at"] == "1000000000000 s after 1970"


def test_kernel_thread_has_logs_only_when_they_are_given(tmp_path: Path) -> None:
    thread = Target(2, 0, kernel_thread=True)
    assert not Logs().applies_to(thread)
    assert Logs(files=(tmp_path / "x.log",)).applies_to(thread)
    assert Logs().applies_to(Target(2, 0))


# -- rotation ----------------------------------------------------------------------------------------------------


def rotated(tmp_path: Path, names: Sequence[str], minutes: float, now: float) -> dict[str, list[bytes]]:
    """Parts of `minutes` each, newest first, with the times that a rotation leaves."""
    parts = {}
    for n, name in enumerate(names):
        end = now - n * minutes * MINUTE
        parts[name] = lines_between(end - minutes * MINUTE, end, 800, name)
        data = b"".join(parts[name])
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        os.utime(tmp_path / name, (end, end))
    return parts


@pytest.mark.parametrize(
    "names",
    [
        ["app.log", "app.log.1", "app.log.2", "app.log.3", "app.log.4"],
        ["app.log", "app.log.1", "app.log.2.gz", "app.log.3.gz", "app.log.4.gz"],
        ["app.log", "app.log-20261120.gz", "app.log-20261119.gz", "app.log-20261118.gz", "app.log-20261117.gz"],
        ["app.2026-11-20.log", "app.2026-11-19.log", "app.2026-11-18.log", "app.2026-11-17.log", "app.log.5"],
    ],
    ids=["numbered", "compressed", "dated", "dated-inside"],
)
def test_rotated_parts_are_taken_as_far_back_as_the_window_reaches(names: list[str], tmp_path: Path) -> None:
    now = time.time()
    parts = rotated(tmp_path, names, 6, now)  # the window ends in the third
    (tmp_path / "other.log.1").write_bytes(line(now))
    (tmp_path / "app-2.log").write_bytes(line(now))
    with process() as pid:
        collected = collect(logs(files=(tmp_path / names[0],)), pid, tmp_path)
    assert collected.gaps == []
    assert [facts_of(collected, path)["path"] for path in collected.order] == [
        str(tmp_path / name) for name in names[:3]
    ]
    since = datetime.fromisoformat(facts_of(collected, collected.order[0])["since_at"]).timestamp()
    for path, name in zip(collected.order, names[:3], strict=True):
        assert collected.artifacts[path] == later_than(parts[name], since)
        facts = facts_of(collected, path)
        assert facts.get("unpacked") == ("gzip" if name.endswith(".gz") else None)
        start, end = facts["range"]
        assert b"".join(parts[name])[start:end] == collected.artifacts[path]
    opened = {touch.what for touch in collected.touches if touch.verb == "open"}
    assert str(tmp_path / names[3]) not in opened
    assert str(tmp_path / names[4]) not in opened


def test_target_that_holds_a_rotated_file_has_its_newer_parts_taken_too(tmp_path: Path) -> None:
    now = time.time()
    parts = rotated(tmp_path, ["app.log", "app.log.1", "app.log.2"], 6, now)
    with (tmp_path / "app.log.1").open("ab") as out, process(stdout=out) as pid:
        collected = collect(logs(), pid, tmp_path)
    taken = [Path(facts_of(collected, path)["path"]).name for path in collected.order]
    assert taken == ["app.log.1", "app.log", "app.log.2"]
    assert collected.artifacts["02-app.log"] == b"".join(parts["app.log"])


def test_part_packed_otherwise_is_a_gap_only_when_it_may_hold_the_window(tmp_path: Path) -> None:
    now = time.time()
    rotated(tmp_path, ["app.log"], 6, now)
    for name, minutes in (("app.log.1.zst", 6), ("app.log.2.bz2", 60)):
        (tmp_path / name).write_bytes(bz2.compress(line(now)))
        os.utime(tmp_path / name, (now - minutes * MINUTE,) * 2)
    with process() as pid:
        collected = collect(logs(files=(tmp_path / "app.log",)), pid, tmp_path)
    gap = collected.gap("packed")
    assert "app.log.1.zst" in gap.wanted
    assert gap.outcome is Outcome.REFUSED
    assert len(collected.gaps) == 1


def test_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    now = time.time()
    written = lines_between(now - 20 * MINUTE, now, 3000)
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(b"".join(gzip.compress(b"".join(written[n : n + 700])) for n in range(0, 3000, 700)) + bytes(512))
    with process() as pid:
        collected = collect(logs(files=(path,)), pid, tmp_path)
    since = datetime.fromisoformat(facts_of(collected, "01-app.log.1.log")["since_at"]).timestamp()
    assert collected.artifacts["01-app.log.1.log"] == later_than(written, since)
    assert collected.settlements["01-app.log.1.log"].outcome is Outcome.COLLECTED


def test_large_gzip_file_is_cut_to_the_window(tmp_path: Path) -> None:
    """Larger than the blocks in which it is searched."""
    now = time.time()
    written = lines_between(now - 60 * MINUTE, now, 150_000, "x" * 60)
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(gzip.compress(b"".join(written), 1))
    with process() as pid:
        collected = collect(logs(files=(path,)), pid, tmp_path)
        limited = collect(logs(files=(path,), max_bytes=50_000), pid, tmp_path)
    since = datetime.fromisoformat(facts_of(collected, "01-app.log.1.log")["since_at"]).timestamp()
    assert collected.artifacts["01-app.log.1.log"] == later_than(written, since)
    assert limited.artifacts["01-app.log.1.log"] == b"".join(written)[-50_000:]
    assert limited.settlements["01-app.log.1.log"].outcome is Outcome.PARTIAL


@pytest.mark.parametrize("damage", ["cut", "broken"])
def test_damaged_gzip_file_gives_what_can_be_unpacked(damage: str, tmp_path: Path) -> None:
    now = time.time()
    noise = random.Random(4)
    written = [line(now - 600 + n / 10, noise.randbytes(60).hex()) for n in range(5000)]
    packed = gzip.compress(b"".join(written))
    half = len(packed) // 2
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(packed[:half] if damage == "cut" else packed[:half] + bytes(4000) + packed[half + 4000 :])
    with process() as pid:
        collected = collect(logs(files=(path,)), pid, tmp_path)
    body, settled = collected.artifacts["01-app.log.1.log"], collected.settlements["01-app.log.1.log"]
    assert len(body) > 100_000
    if damage == "cut":
        assert b"".join(written).startswith(body)
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code in (damage, "broken")


def test_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "app.log.1.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    with path.open("wb") as out:
        for _ in range(300):
            out.write(packer.compress(bytes(MIB)))
        out.write(packer.flush())
    with process() as pid:
        collected = collect(logs(files=(path,)), pid, tmp_path)
    assert collected.order == []
    assert "pmf stopped there" in collected.gap("answer-broken").reason.says


def test_log_renamed_and_begun_anew_while_it_is_read_is_had_in_both_parts(tmp_path: Path) -> None:
    now = time.time()
    written = lines_between(now - 10 * MINUTE, now, 60_000, "x" * 40)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    with writing_to(path) as pid, driven(logs(), pid, tmp_path) as run:
        item = next(run.items)
        assert isinstance(item, Artifact)
        chunks = iter(item.body)  # type: ignore[arg-type]
        body = next(chunks)  # type: ignore[arg-type]
        path.rename(tmp_path / "app.log.1")
        path.write_bytes(line(now + 1, "the new file"))
        body += b"".join(chunks)  # type: ignore[arg-type]
        assert body == b"".join(written)
        assert item.settled().outcome is Outcome.COLLECTED
        newer = next(run.items)
        assert drain(newer) == line(now + 1, "the new file")
        assert next(run.items, None) is None


def test_log_copied_and_truncated_while_it_is_read_is_partial_and_its_copy_is_taken(tmp_path: Path) -> None:
    now = time.time()
    written = lines_between(now - 10 * MINUTE, now, 60_000, "x" * 40)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    with writing_to(path) as pid, driven(logs(), pid, tmp_path) as run:
        item = next(run.items)
        assert isinstance(item, Artifact)
        chunks = iter(item.body)  # type: ignore[arg-type]
        body = next(chunks)  # type: ignore[arg-type]
        (tmp_path / "app.log.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        body += b"".join(chunks)  # type: ignore[arg-type]
        settled = item.settled()
        assert settled.outcome is Outcome.PARTIAL
        assert settled.reason is not None
        assert settled.reason.code == "cut"
        assert settled.facts["range"] == [0, len(body)]
        assert b"".join(written).startswith(body)
        assert drain(next(run.items)) == b"".join(written)


def test_log_truncated_and_grown_again_while_it_is_read_is_not_called_whole(tmp_path: Path) -> None:
    now = time.time()
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(lines_between(now - 10 * MINUTE, now, 60_000, "x" * 40)))
    with writing_to(path) as pid, driven(logs(), pid, tmp_path) as run:
        item = next(run.items)
        assert isinstance(item, Artifact)
        chunks = iter(item.body)  # type: ignore[arg-type]
        next(chunks)  # type: ignore[arg-type]
        size = path.stat().st_size
        os.truncate(path, 0)
        with path.open("ab") as out:
            out.write(line(now, "y" * 90) * (size // 100))
        assert sum(len(chunk) for chunk in chunks) > 0  # type: ignore[arg-type, misc]
        settled = item.settled()
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "rewritten"


def test_log_truncated_while_it_is_searched_is_searched_again(tmp_path: Path) -> None:
    now = time.time()
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(lines_between(now - 60 * MINUTE, now, 60_000)))
    left = b"".join(lines_between(now - MINUTE, now, 100, "after the truncation"))
    first_data = log_slice._first_data

    def truncated_behind_us(fd: int, size: int) -> int:
        if size > len(left):
            path.write_bytes(left)
        return first_data(fd, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_slice, "_first_data", truncated_behind_us)
        with process() as pid, driven(logs(files=(path,)), pid, tmp_path) as run:
            assert drain(next(run.items)) == left


def test_log_that_grows_is_cut_where_it_ended_when_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    program = (
        "import sys, time, datetime\n"
        "while True:\n"
        "    print(datetime.datetime.now(datetime.UTC).isoformat(), 'x' * 100, flush=True)\n"
    )
    with path.open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=out)
    try:
        give_up = time.monotonic() + 60
        while path.stat().st_size < 2 * MIB:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        collected = collect(logs(), writer.pid, tmp_path)
        assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    body = collected.artifacts["01-app.log"]
    start, end = facts_of(collected, "01-app.log")["range"]
    assert collected.settlements["01-app.log"].outcome is Outcome.COLLECTED
    assert path.read_bytes()[start:end] == body
    assert path.stat().st_size > end


def test_hole_under_a_writer_that_does_not_append_is_left_out(tmp_path: Path) -> None:
    """copytruncate under a writer that keeps its offset: 300 MiB of nothing, then the log."""
    now = time.time()
    path = tmp_path / "app.log"
    with path.open("wb") as out, process(stdout=out) as pid:
        out.seek(300 * MIB)
        out.write(line(now, "first after the truncation") + line(now))
        out.flush()
        collected = collect(logs(), pid, tmp_path)
    body, facts = collected.artifacts["01-app.log"], facts_of(collected, "01-app.log")
    assert body.lstrip(b"\0") == line(now, "first after the truncation") + line(now)
    assert len(body) < 64 << 10
    assert facts["range"][1] == path.stat().st_size
    assert facts["hole_bytes"] == facts["range"][0]
    assert facts["first_at"] == facts["last_at"]


# -- time zones --------------------------------------------------------------------------------------------------


def local_lines(start_s: float, end_s: float, zone: str, count: int = 4000) -> tuple[list[bytes], list[float]]:
    step_s = (end_s - start_s) / (count - 1)
    times = [start_s + n * step_s for n in range(count)]
    texts = [
        datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S,").encode()
        + b"%03d INFO x\n" % (at % 1 * 1000)
        for at in times
    ]
    return texts, times


@pytest.mark.parametrize("tz", ["America/St_Johns", ":Asia/Kathmandu", "/usr/share/zoneinfo/Pacific/Chatham", "UTC0"])
def test_stamps_without_a_zone_are_read_in_the_zone_of_the_target(tz: str, tmp_path: Path) -> None:
    zone = tz.removeprefix(":").removeprefix("/usr/share/zoneinfo/").replace("UTC0", "UTC")
    now = time.time()
    written, times = local_lines(now - 50 * MINUTE, now - 3 * MINUTE, zone)
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    with path.open("ab") as out, process(stdout=out, env={"TZ": tz}) as pid:
        collected = collect(logs(), pid, tmp_path)
    facts = facts_of(collected, "01-app.log")
    since = datetime.fromisoformat(facts["since_at"]).timestamp()
    wanted = b"".join(text for text, at in zip(written, times, strict=True) if int(at * 1000) >= since * 1000)
    assert collected.artifacts["01-app.log"] == wanted
    assert facts["zone_assumed"] == f"{tz.removeprefix(':').replace('UTC0', 'UTC')}, the target's TZ"
    assert datetime.fromisoformat(facts["last_at"]).timestamp() == pytest.approx(times[-1], abs=0.01)


def test_program_that_logs_in_a_zone_of_its_own_is_found_out_by_the_files_time(tmp_path: Path) -> None:
    now = time.time()
    written, times = local_lines(now - 50 * MINUTE, now, "Asia/Kathmandu")
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(written))
    os.utime(path, (now, now))
    with path.open("ab") as out, process(stdout=out, env={"TZ": "UTC"}) as pid:
        collected = collect(logs(), pid, tmp_path)
    facts = facts_of(collected, "01-app.log")
    since = datetime.fromisoformat(facts["since_at"]).timestamp()
    wanted = b"".join(text for text, at in zip(written, times, strict=True) if int(at * 1000) >= since * 1000)
    assert collected.artifacts["01-app.log"] == wanted
    assert facts["zone_assumed"].startswith("UTC+05:45, by the last line")


def test_rotated_parts_are_read_in_the_zone_of_the_newest(tmp_path: Path) -> None:
    now = time.time()
    newest, _ = local_lines(now - 5 * MINUTE, now, "Asia/Kathmandu")
    older, times = local_lines(now - 30 * MINUTE, now - 5 * MINUTE, "Asia/Kathmandu")
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(newest))
    os.utime(path, (now, now))
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b"".join(older)))
    os.utime(tmp_path / "app.log.1.gz", (now - 2 * MINUTE,) * 2)
    with process(env={"TZ": "UTC"}) as pid:
        collected = collect(logs(files=(path,)), pid, tmp_path)
    since = datetime.fromisoformat(facts_of(collected, "02-app.log.1.log")["since_at"]).timestamp()
    wanted = b"".join(text for text, at in zip(older, times, strict=True) if int(at * 1000) >= since * 1000)
    assert collected.artifacts["02-app.log.1.log"] == wanted


# -- what is no file ---------------------------------------------------------------------------------------------


def test_output_into_a_pipe_names_its_reader(tmp_path: Path) -> None:
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    try:
        with process(stdout=reader.stdin, stderr=reader.stdin) as pid:
            collected = collect(logs(), pid, tmp_path)
    finally:
        reader.stdin.close()
        reader.wait()
    gap = collected.gap("not-a-file")
    assert gap.outcome is Outcome.MISSING
    assert gap.reason.says.startswith(f"stdout and stderr is a pipe to process {reader.pid} (cat)")
    assert str(reader.pid) in gap.reason.next_step


def test_output_to_a_terminal_names_who_holds_it(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:
        number = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]  # TIOCGPTN
        with process(stdout=slave) as pid:
            assert os.readlink(f"/proc/{pid}/fd/1") == f"/dev/pts/{number}"
            collected = collect(logs(), pid, tmp_path)
    finally:
        os.close(master)
        os.close(slave)
    assert f"stdout is a terminal to process {os.getpid()} (" in collected.gap("not-a-file").reason.says


def test_output_into_a_socket_is_a_gap_with_a_next_step(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, process(stdout=theirs) as pid:
        collected = collect(logs(), pid, tmp_path)
    gap = collected.gap("not-a-file")
    assert "a socket" in gap.reason.says
    assert "ss -xp" in gap.reason.next_step


def test_process_without_any_log_is_one_gap(tmp_path: Path) -> None:
    with process() as pid:
        collected = collect(logs(), pid, tmp_path)
    assert collected.order == []
    assert collected.gap("no-log").reason.next_step == "Name its log files with --log PATH."


# -- containers --------------------------------------------------------------------------------------------------

CONTAINER = "0123456789abcdef" * 4
POD = "6f1c2b7e-1111-4222-8333-123456789abc"


def cri(at: float, text: str) -> bytes:
    return f"{utc(at)[:-1]}000Z stdout F {text}\n".encode()


def test_log_of_a_pod_is_found_with_its_earlier_instance_and_its_rotated_parts(tmp_path: Path) -> None:
    now = time.time()
    pods, links = tmp_path / "pods", tmp_path / "containers"
    own = pods / f"shop_web-1_{POD}" / "web"
    sidecar = pods / f"shop_web-1_{POD}" / "proxy"
    for folder in (own, sidecar, links, pods / "shop_other_7" / "x"):
        folder.mkdir(parents=True)
    (own / "0.log").write_bytes(cri(now - 8 * MINUTE, "crashed"))
    (own / "1.log").write_bytes(cri(now, "now"))
    (own / "1.log.20261120-131500").write_bytes(cri(now - 2 * MINUTE, "rotated"))
    (own / "1.log.20261120-130000.gz").write_bytes(gzip.compress(cri(now - 4 * MINUTE, "packed")))
    (sidecar / "0.log").write_bytes(cri(now, "sidecar"))
    (pods / "shop_other_7" / "x" / "0.log").write_bytes(cri(now, "another pod"))
    for name, minutes in (("0.log", 8), ("1.log.20261120-131500", 2), ("1.log.20261120-130000.gz", 4)):
        os.utime(own / name, (now - minutes * MINUTE,) * 2)
    (links / f"web-1_shop_web-{CONTAINER}.log").symlink_to(own / "1.log")
    said = []
    read_end, write_end = os.pipe()
    with process(stdout=write_end) as pid:
        changes = {"container_id": CONTAINER, "pod_uid": POD}
        with driven(logs(pods_dir=pods), pid, tmp_path, **changes) as run:
            for item in run.items:
                said.append(drain(item).split(b" F ")[1])
                assert isinstance(item, Artifact)
                assert item.settled().facts["origin"] == "container"
        os.close(write_end)
        os.close(read_end)
    # No gap for stdout, which is a pipe: the runtime's file has its lines.
    assert said == [b"now\n", b"rotated\n", b"packed\n", b"crashed\n"]


def test_all_containers_of_the_pod_are_taken_when_the_own_one_cannot_be_told(tmp_path: Path) -> None:
    now = time.time()
    pods = tmp_path / "pods"
    for name in ("web", "proxy"):
        folder = pods / f"shop_web-1_{POD}" / name
        folder.mkdir(parents=True)
        (folder / "0.log").write_bytes(cri(now, name))
    with process() as pid, driven(logs(pods_dir=pods), pid, tmp_path, pod_uid=POD) as run:
        said = [drain(item).split(b" F ")[1] for item in run.items]
    assert said == [b"proxy\n", b"web\n"]


def test_log_of_a_docker_container_is_found_by_its_id(tmp_path: Path) -> None:
    now = time.time()
    folder = tmp_path / CONTAINER
    folder.mkdir()
    written = [
        b'{"log":"line %d\\n","stream":"stdout","time":"%s"}\n' % (n, utc(now - 3000 + n).encode()) for n in range(3000)
    ]
    (folder / f"{CONTAINER}-json.log").write_bytes(b"".join(written))
    with process() as pid, driven(logs(docker_dir=tmp_path), pid, tmp_path, container_id=CONTAINER) as run:
        item = next(run.items)
        body = drain(item)
        assert isinstance(item, Artifact)
        settled = item.settled()
    assert b"".join(written).endswith(body)
    assert 895 <= body.count(b"\n") <= 901
    assert settled.facts["form"] == "json"


# -- the journal -------------------------------------------------------------------------------------------------


def entry(at_s: float, fields: dict[str, str | bytes]) -> bytes:
    """One entry in the journal export format, binary where it must be."""
    boot = "0" * 31 + "1"
    parts = [f"__REALTIME_TIMESTAMP={int(at_s * 1e6)}\n__MONOTONIC_TIMESTAMP={int(at_s)}\n_BOOT_ID={boot}\n".encode()]
    for name, value in {"_MACHINE_ID": "2" * 32, **fields}.items():
        raw = value.encode() if isinstance(value, str) else value
        if b"\n" in raw:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n")
        else:
            parts.append(name.encode() + b"=" + raw + b"\n")
    return b"".join(parts) + b"\n"


@pytest.fixture
def make_journal(tmp_path: Path, needs: Callable[..., None]) -> Callable[[bytes], Path]:
    needs("journalctl", JOURNAL_REMOTE)

    def make(export: bytes) -> Path:
        folder = tmp_path / "journal"
        folder.mkdir()
        source = tmp_path / "export"
        source.write_bytes(export)
        subprocess.run(
            [JOURNAL_REMOTE, f"--output={folder / 'machine.journal'}", source], check=True, capture_output=True
        )
        return folder

    return make


def test_journal_of_the_unit_is_taken_for_the_window(make_journal: Callable[[bytes], Path], tmp_path: Path) -> None:
    now = time.time()
    unit = "shop\\x2dweb.service"
    secret = {"_CMDLINE": "web --password=hunter2"}
    folder = make_journal(
        entry(now - 3600, {"MESSAGE": "an hour ago", "_SYSTEMD_UNIT": unit})
        + entry(now - 300, {"MESSAGE": "in the window", "_SYSTEMD_UNIT": unit, "PRIORITY": "3", **secret})
        + entry(now - 200, {"MESSAGE": "two\nlines", "_SYSTEMD_USER_UNIT": unit})
        + entry(now - 150, {"MESSAGE": "of another", "_SYSTEMD_UNIT": "other.service"})
        + entry(now - 100, {"MESSAGE": "Main process exited", "UNIT": unit, "_PID": "1"})
        + entry(now - 50, {"MESSAGE": "forged", "UNIT": unit, "_PID": "77"})
    )
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        process(stdout=theirs) as pid,
        driven(Logs(journal_dir=folder, pods_dir=NOTHING, docker_dir=NOTHING), pid, tmp_path, unit=unit) as run,
    ):
        item = next(run.items)
        body = drain(item)
        assert isinstance(item, Artifact)
        settled = item.settled()
        # No gap for stdout, which is a socket: the journal has its lines.
        assert next(run.items, None) is None
    assert item.path == "journal.export"
    assert settled.outcome is Outcome.COLLECTED
    assert settled.facts["entries"] == 3
    assert datetime.fromisoformat(str(settled.facts["first_at"])).timestamp() == pytest.approx(now - 300, abs=1e-5)
    assert datetime.fromisoformat(str(settled.facts["last_at"])).timestamp() == pytest.approx(now - 100, abs=1e-5)
    assert b"MESSAGE=in the window\n" in body
    assert b"PRIORITY=3\n" in body
    assert b"MESSAGE\n" + struct.pack("<Q", 9) + b"two\nlines\n" in body
    for absent in (b"an hour ago", b"of another", b"forged", b"hunter2"):
        assert absent not in body
    # What was kept is a journal again.
    again = tmp_path / "again.journal"
    (tmp_path / "kept").write_bytes(body)
    subprocess.run([JOURNAL_REMOTE, f"--output={again}", tmp_path / "kept"], check=True, capture_output=True)
    read = subprocess.run(["journalctl", f"--file={again}", "--output=cat"], check=True, capture_output=True, text=True)
    assert read.stdout == "in the window\ntwo\nlines\nMain process exited\n"


def test_journal_of_a_process_without_a_unit_is_taken_by_pid(
    make_journal: Callable[[bytes], Path], tmp_path: Path
) -> None:
    now = time.time()
    with process() as pid:
        folder = make_journal(
            entry(now - 300, {"MESSAGE": "mine", "_PID": str(pid)})
            + entry(now - 200, {"MESSAGE": "yours", "_PID": "99"})
        )
        with driven(logs(journal_dir=folder), pid, tmp_path, unit=None) as run:
            body = drain(next(run.items))
    assert body.count(b"__REALTIME_TIMESTAMP=") == 1
    assert b"MESSAGE=mine\n" in body


def test_unit_that_said_nothing_has_an_empty_journal(make_journal: Callable[[bytes], Path], tmp_path: Path) -> None:
    folder = make_journal(entry(time.time() - 3600, {"MESSAGE": "x", "_SYSTEMD_UNIT": "web.service"}))
    with process() as pid:
        with driven(logs(journal_dir=folder), pid, tmp_path, unit="web.service") as run:
            item = next(run.items)
            assert drain(item) == b""
            assert isinstance(item, Artifact)
            assert item.settled().outcome is Outcome.EMPTY
        with driven(logs(journal_dir=folder), pid, tmp_path, unit=None) as run:
            gap = next(run.items)
            assert isinstance(gap, Gap)
            assert gap.reason.code == "no-log"


def test_journal_above_the_limit_is_partial(make_journal: Callable[[bytes], Path], tmp_path: Path) -> None:
    now = time.time()
    folder = make_journal(
        b"".join(entry(now - 600 + n / 10, {"MESSAGE": "x" * 500, "_SYSTEMD_UNIT": "web.service"}) for n in range(900))
    )
    with (
        process() as pid,
        driven(logs(journal_dir=folder, max_bytes=100_000), pid, tmp_path, unit="web.service") as run,
    ):
        item = next(run.items)
        assert len(drain(item)) == 100_000
        assert isinstance(item, Artifact)
        settled = item.settled()
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "over-limit"


def test_journal_that_cannot_be_read_is_a_gap(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("journalctl")
    path = tmp_path / "app.log"
    path.write_bytes(line(time.time()))
    with (
        writing_to(path) as pid,
        driven(logs(journal_dir=tmp_path / "absent"), pid, tmp_path, unit="web.service") as run,
    ):
        assert drain(next(run.items)) == path.read_bytes()
        gap = next(run.items)
    assert isinstance(gap, Gap)
    assert gap.wanted == "the journal of web.service"
    assert gap.outcome is Outcome.FAILED


# -- the end of the target ---------------------------------------------------------------------------------------


def test_given_log_is_taken_of_a_target_that_exits_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(line(time.time()))
    sleeper = subprocess.Popen(["sleep", "1000"])
    with driven(logs(files=(path,)), sleeper.pid, tmp_path) as run:
        sleeper.kill()
        sleeper.wait()
        assert drain(next(run.items)) == path.read_bytes()
        gap = next(run.items)
        assert isinstance(gap, Gap)
        assert gap.reason.code == "target-gone"
        assert next(run.items, None) is None
