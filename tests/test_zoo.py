"""The zoo's programs are as sick as they say, by the word of independent tools, and leave nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import zoo

END_S = 60  # a bound on waiting for what must happen, not a claim about speed
TESTS = Path(__file__).parent


def _every_way() -> Iterator[Any]:
    for program in zoo.PROGRAMS:
        if zoo.missing(*zoo.tools(program)):
            # One test that skips with the toolchain's name stands for all of the program's ways.
            yield pytest.param(program, None, id=program, marks=pytest.mark.needs(*zoo.tools(program)))
        else:
            for way in zoo.ways(program):
                yield pytest.param(program, way, id=f"{program}-{way}")


def _each_program() -> list[Any]:
    return [pytest.param(p, marks=pytest.mark.needs(*zoo.tools(p))) for p in zoo.PROGRAMS]


def _get(url: str, timeout_s: float = END_S) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as response:
        body: bytes = response.read()
    return body


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _status(pid: int, field: str) -> str:
    found = re.search(rf"^{field}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, field
    return found[1]


def _is_dead(pid: int) -> bool:
    try:
        # Where nobody reaps orphans, a zombie is as dead as it gets.
        return _status(pid, "State").startswith("Z")
    except FileNotFoundError:
        return True


def _until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + END_S
    while not holds():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.02)


# ---- every way


@pytest.mark.parametrize("program", _each_program())
def test_every_program_lists_its_ways_and_the_readme_has_them_all(program: str) -> None:
    ways = zoo.ways(program)
    assert ways
    assert all(ways.values())
    readme = (zoo.ZOO / "README.md").read_text()
    language = program.rstrip("0123456789")
    assert [way for way in ways if f"| `{language}` | `{way}` |" not in readme] == []


@pytest.mark.parametrize(("program", "way"), list(_every_way()))
def test_way_says_ready_and_lives_and_ends_as_it_says(program: str, way: str) -> None:
    with zoo.start(program, way) as sick:
        if "signal" in sick.ready:
            assert sick.popen.wait(END_S) == -sick.ready["signal"]
            return
        if "exits_after_ms" in sick.ready:
            assert sick.popen.wait(END_S) == 0
            return
        sick.assert_alive()
        os.kill(sick.pid, signal.SIGTERM)
        if way == "ignore-term":
            sick.assert_alive()
            return
        # A JVM catches SIGTERM, winds up and exits with 128 + 15.
        assert sick.popen.wait(END_S) == (143 if program.startswith("java") else -signal.SIGTERM)


@pytest.mark.parametrize("program", _each_program())
def test_unknown_way_or_argument_is_a_usage_error(program: str) -> None:
    runnable = zoo.build(program)
    if program.startswith("java"):
        home = zoo.jdk(int(program.removeprefix("java")))
        assert home is not None
        command = [str(home / "bin" / "java"), "-jar", str(runnable)]
    else:
        runner = {"python": [sys.executable], "node": ["node"]}.get(program, [])
        command = [*runner, str(runnable)]
    for arguments in (["no-such-way"], ["idle", "-1"], []):
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr


# ---- go


@pytest.mark.needs("go")
def test_producer_gone_has_all_its_consumers_and_no_producer() -> None:
    with zoo.start("go", "producer-gone", 1000) as sick:
        text = _get(f"{sick.ready['pprof']}/goroutine?debug=2").decode()
        assert text.count("notify.(*Consumer).receive(") == 1000
        assert text.count("[chan receive") == 1000
        assert "Producer" not in text
        assert "notify: producer: panic: runtime error: index out of range" in sick.stderr.read_text()


@pytest.mark.needs("go")
def test_deep_is_cut_at_64_mib_before_its_living_producer() -> None:
    with zoo.start("go", "deep") as sick:
        whole = _get(f"{sick.ready['pprof']}/goroutine?debug=1").decode()
        assert "notify.(*Producer).Run" in whole
        cut = _get(f"{sick.ready['pprof']}/goroutine?debug=2")
        assert len(cut) == 64 << 20
        assert b"Producer" not in cut
        frames = [block.count(b"\n\t") for block in cut.split(b"\n\n") if b"Consumer).receive(" in block][:-1]
        assert Counter(frames).most_common(1)[0][0] == 32 + 1  # and the line that says who created it
        sick.assert_alive()
        assert sick.longest_pause_ns() > 0


@pytest.mark.needs("go")
def test_no_pprof_serves_http_but_no_pprof() -> None:
    with zoo.start("go", "no-pprof") as sick:
        assert _get(f"http://127.0.0.1:{sick.ready['port']}/healthz") == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(f"http://127.0.0.1:{sick.ready['port']}/debug/pprof/")


@pytest.mark.needs("go")
def test_pprof_hangs_answers_the_index_only() -> None:
    with zoo.start("go", "pprof-hangs") as sick:
        assert b"goroutine" in _get(f"{sick.ready['pprof']}/")
        with pytest.raises(TimeoutError):
            _get(f"{sick.ready['pprof']}/goroutine?debug=1", timeout_s=1)


@pytest.mark.needs("go")
@pytest.mark.parametrize("profile", ["goroutine", "goroutine?debug=2", "heap"])
def test_pprof_lies_sends_less_than_it_declares(profile: str) -> None:
    with zoo.start("go", "pprof-lies") as sick:
        assert b"goroutine" in _get(f"{sick.ready['pprof']}/")
        with pytest.raises(http.client.IncompleteRead):
            _get(f"{sick.ready['pprof']}/{profile}")


@pytest.mark.needs("go")
def test_pprof_flood_goes_on_and_on_without_a_length() -> None:
    with (
        zoo.start("go", "pprof-flood") as sick,
        urllib.request.urlopen(f"{sick.ready['pprof']}/goroutine?debug=2") as response,
    ):
        assert response.headers["Content-Length"] is None
        assert len(response.read(200_000_000)) == 200_000_000


@pytest.mark.needs("go")
def test_pprof_elsewhere_only_echoes_on_its_first_port() -> None:
    with zoo.start("go", "pprof-elsewhere") as sick:
        request = b"GET /debug/pprof/ HTTP/1.0\r\n\r\n"
        with socket.create_connection(("127.0.0.1", sick.ready["port"])) as echo:
            echo.settimeout(0.5)
            with pytest.raises(TimeoutError):
                echo.recv(1)
            echo.settimeout(END_S)
            echo.sendall(request)
            assert echo.recv(len(request), socket.MSG_WAITALL) == request
        assert b"goroutine" in _get(f"{sick.ready['pprof']}/")


@pytest.mark.needs("go")
def test_sigquit_ignored_survives_sigquit() -> None:
    with zoo.start("go", "sigquit-ignored") as sick:
        os.kill(sick.pid, signal.SIGQUIT)
        sick.assert_alive()
        assert int(_status(sick.pid, "SigIgn"), 16) >> (signal.SIGQUIT - 1) & 1
        assert sick.stderr.read_text() == ""


# ---- java


def _jcmd(version: int, sick: zoo.Sick, *command: str) -> str:
    home = zoo.jdk(version)
    assert home is not None
    return _output(home / "bin" / "jcmd", str(sick.pid), *command)


@pytest.mark.parametrize("version", [pytest.param(v, marks=pytest.mark.needs(f"jdk{v}")) for v in (17, 25)])
def test_lock_ring_is_a_deadlock_to_the_jvm(version: int) -> None:
    with zoo.start(f"java{version}", "lock-ring", 2) as sick:
        dump = _jcmd(version, sick, "Thread.print", "-l")
        assert "Found one Java-level deadlock" in dump
        names = set(re.findall(r'^"([^"]+)" #', dump, re.MULTILINE))
        assert {"ring-0", "ring-1", "pool-busy-0", "heartbeat"} <= names
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_heap_holds_its_entries() -> None:
    with zoo.start("java17", "heap", 8) as sick:
        histogram = _jcmd(17, sick, "GC.class_histogram")
        row = re.search(r"(\d+)\s+\d+\s+Zoo\$CacheEntry$", histogram, re.MULTILINE)
        assert row
        assert int(row[1]) == sick.ready["entries"] == 8 * 4096


@pytest.mark.needs("jdk17")
def test_many_threads_has_them_all() -> None:
    with zoo.start("java17", "many-threads", 300) as sick:
        assert len(re.findall(r'^"worker-\d+" ', _jcmd(17, sick, "Thread.print"), re.MULTILINE)) == 300


@pytest.mark.needs("jdk17")
def test_virtual_is_not_offered_before_java_21() -> None:
    assert "virtual" not in zoo.ways("java17")


@pytest.mark.needs("jdk25")
def test_virtual_threads_are_parked_and_blocked(tmp_path: Path) -> None:
    with zoo.start("java25", "virtual", 50, 3) as sick:
        dump = tmp_path / "threads.json"
        _jcmd(25, sick, "Thread.dump_to_file", "-format=json", str(dump))
        containers = json.loads(dump.read_text())["threadDump"]["threadContainers"]
        frames = [
            "\n".join(thread["stack"])
            for container in containers
            for thread in container["threads"]
            if thread["name"].startswith(("parked-", "blocked-"))
        ]
        assert sum("Zoo.parkForEver" in stack for stack in frames) == 50
        assert sum("Zoo.enter" in stack for stack in frames) == 3


# ---- python


def _py_spy(pid: int) -> list[dict[str, Any]]:
    dump = _output(zoo.get_tool("py-spy"), "dump", "--json", "--pid", str(pid))
    threads: list[dict[str, Any]] = json.loads(dump)
    return threads


def _inside(function: str, threads: list[dict[str, Any]]) -> int:
    return sum(any(frame["name"] == function for frame in thread["frames"]) for thread in threads)


@pytest.mark.needs("py-spy", "root")
def test_gil_held_by_a_sleeper() -> None:
    with zoo.start("python", "gil-held", 2) as sick:
        threads = _py_spy(sick.pid)
        (holder,) = [thread for thread in threads if thread["owns_gil"]]
        assert holder["frames"][0]["name"] == "stuck_in_c"
        assert not holder["active"]
        assert _inside("tick", threads) == 2 + 1  # the main thread too
        sick.assert_alive()


@pytest.mark.parametrize("program", _each_program())
def test_heartbeat_stands_still_while_the_process_is_stopped_and_tells_for_how_long(program: str) -> None:
    # Where the GIL is held the beats take a detour through another process, so that is the way to try.
    ways = {"python": "gil-held", "c": "threads", "java17": "idle", "java25": "idle"}
    with zoo.start(program, ways.get(program, "idle")) as sick:
        sick.assert_alive()
        os.kill(sick.pid, signal.SIGSTOP)
        _until(lambda: _status(sick.pid, "State").startswith("T"))
        with pytest.raises(AssertionError, match="state T"):
            sick.assert_alive()
        time.sleep(0.1)  # a beat that was on its way has arrived
        stopped_at_ns, beats = time.monotonic_ns(), sick.beats()
        time.sleep(0.5)
        assert sick.beats() == beats > 0
        os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()
        assert sick.longest_pause_ns(since_ns=stopped_at_ns) >= 500_000_000
        assert sick.longest_pause_ns(since_ns=time.monotonic_ns()) == 0


@pytest.mark.needs("py-spy", "root")
def test_lock_wait_has_a_sleeping_holder_and_its_waiters() -> None:
    with zoo.start("python", "lock-wait", 5) as sick:
        threads = _py_spy(sick.pid)
        assert _inside("hold_asleep", threads) == 1
        assert _inside("wait_for_lock", threads) == 5


@pytest.mark.needs("py-spy", "root")
def test_forked_lock_has_no_holder() -> None:
    with zoo.start("python", "forked-lock") as sick:
        assert int(_status(sick.pid, "PPid")) == sick.ready["parent"] == sick.popen.pid
        threads = _py_spy(sick.pid)
        assert _inside("wait_for_inherited_lock", threads) == 1
        assert _inside("hold_asleep", threads) == 0


# ---- node


@pytest.mark.needs("node")
def test_loop_burns_processor_time() -> None:
    def ticks(pid: int) -> int:
        return int(Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    with zoo.start("node", "loop") as sick:
        before = ticks(sick.pid)
        _until(lambda: ticks(sick.pid) >= before + 20)


@pytest.mark.needs("node")
def test_report_is_written_on_its_signal() -> None:
    with zoo.start("node", "report") as sick:
        os.kill(sick.pid, signal.Signals[sick.ready["report_signal"]])
        _until(lambda: any(sick.directory.glob("report.*.json")))
        sick.assert_alive()


# ---- c


def _gdb(*arguments: str) -> str:
    return _output("gdb", "--nx", "--batch", *arguments)


@pytest.mark.needs("gcc", "readelf")
def test_c_program_has_a_build_id_and_debug_info() -> None:
    elf = str(zoo.build("c"))
    assert re.search(r"Build ID: [0-9a-f]{40}", _output("readelf", "--notes", elf))
    assert ".debug_info" in _output("readelf", "--sections", "--wide", elf)


@pytest.mark.needs("gcc", "gdb", "root")
def test_threads_sleep_in_named_functions() -> None:
    with zoo.start("c", "threads", 6) as sick:
        stacks = _gdb("-p", str(sick.pid), "-ex", "thread apply all bt")
        assert stacks.count(" sleep_in_nanosleep (") == 3
        assert stacks.count(" wait_on_futex (") == 3
        assert '"heartbeat"' in stacks
        sick.assert_alive()


@pytest.mark.needs("gcc", "gdb", "root")
def test_deep_stack_is_deep() -> None:
    with zoo.start("c", "deep-stack", 300) as sick:
        assert _gdb("-p", str(sick.pid), "-ex", "bt").count(" descend (") == 300


@pytest.mark.needs("gcc", "gdb")
def test_smash_leaves_nothing_but_0x41_above_its_return() -> None:
    ran = _gdb("-ex", "run", "-ex", "x/64bx $sp", "--args", str(zoo.build("c")), "smash", "1")
    assert "SIGSEGV" in ran
    words = re.findall(r"^0x[0-9a-f]+.*:\s+(.*)$", ran, re.MULTILINE)[-8:]
    assert "\t".join(words).split("\t") == ["0x41"] * 64


@pytest.mark.needs("gcc", "root")
def test_big_has_its_numbered_blocks_and_an_untouched_mapping() -> None:
    with zoo.start("c", "big", 16) as sick:
        assert sick.ready["blocks"] == 256
        maps = Path(f"/proc/{sick.pid}/smaps").read_text()
        heap = re.search(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", maps, re.MULTILINE)
        assert heap
        low, high = (int(address, 16) for address in heap.groups())
        with Path(f"/proc/{sick.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(low)
            content = memory.read(high - low)
        assert set(re.findall(rb"zoo-big-block (\d{8})", content)) == {b"%08d" % i for i in range(256)}
        untouched = maps[maps.index(f"{sick.ready['untouched_address']:x}-") :]
        assert re.search(r"^Size: +(\d+) kB\nKernel.*\nMMU.*\nRss: +0 kB$", untouched, re.MULTILINE)
        assert sick.ready["untouched_bytes"] == 4 << 30


@pytest.mark.needs("gcc")
def test_child_is_its_child() -> None:
    with zoo.start("c", "child") as sick:
        assert int(_status(sick.ready["child"], "PPid")) == sick.pid


@pytest.mark.needs("gcc")
def test_deleted_runs_from_an_executable_that_is_gone() -> None:
    with zoo.start("c", "deleted") as sick:
        exe = str(Path(f"/proc/{sick.pid}/exe").readlink())
        assert exe.endswith(" (deleted)")
        assert not Path(exe.removesuffix(" (deleted)")).exists()


# ---- starting, ending, building


@pytest.mark.needs("gcc")
def test_the_whole_tree_is_dead_afterwards() -> None:
    with zoo.start("c", "child") as sick:
        pids = [sick.pid, sick.ready["child"]]
        os.kill(sick.pid, signal.SIGKILL)  # its child is an orphan now
        sick.popen.wait(END_S)
    _until(lambda: all(_is_dead(pid) for pid in pids))
    assert not sick.directory.exists()


@pytest.mark.needs("gcc")
def test_nothing_outlives_a_killed_test_run() -> None:
    starter = (
        "import os, signal\nfrom tests import zoo\n"
        "with zoo.start('c', 'ignore-term') as sick:\n"
        "    print(sick.pid, sick.directory, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", starter], cwd=zoo.REPO, capture_output=True, text=True)
    pid, directory = ran.stdout.split()
    try:
        assert ran.returncode == -signal.SIGKILL
        _until(lambda: _is_dead(int(pid)))
    finally:
        shutil.rmtree(directory)


@pytest.mark.needs("gcc", "unshare", "root")
def test_pid_is_ours_when_the_program_has_its_own_pid_namespace() -> None:
    with zoo.start("c", "threads", prefix=("unshare", "--pid", "--fork", "--mount-proc")) as sick:
        assert sick.ready["pid"] == 1
        assert _status(sick.pid, "NSpid").split()[-1] == "1"
        assert _status(sick.pid, "Name") == "zoo"
        sick.assert_alive()


def test_a_program_that_ends_before_ready_is_an_error_with_its_words() -> None:
    with pytest.raises(zoo.ZooError, match=r"usage: zoo\.py"), zoo.start("python", "no-such-way"):
        pass


@pytest.mark.needs("gcc")
def test_builds_at_the_same_time_yield_one_result(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(lambda _: zoo.build("c", cache=tmp_path), range(4)))
    assert len(built) == 1
    assert "crash-abort" in _output(built.pop(), "--list")
    assert len(list(tmp_path.iterdir())) == 1


# ---- needs and PMF_NO_SKIPS


def _pytest_in(folder: Path, test: str, **env: str) -> subprocess.CompletedProcess[str]:
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    for name in ("__init__.py", "conftest.py", "zoo.py"):
        shutil.copy(TESTS / name, tests)
    (tests / "test_it.py").write_text(f"import pytest\n{test}")
    ours = {key: value for key, value in os.environ.items() if key != "PMF_NO_SKIPS"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        f"--rootdir={folder}",
        str(folder),
    ]
    return subprocess.run(command, env={**ours, **env}, capture_output=True, text=True)


SKIPS = {
    "marker": "@pytest.mark.needs('no-such-tool')\ndef test_it(): raise AssertionError\n",
    "fixture": "def test_it(needs):\n    needs('no-such-tool')\n    raise AssertionError\n",
    "module": "pytest.skip('needs: no-such-tool', allow_module_level=True)\n",
}
PASSES = "def test_passes(): pass\n@pytest.mark.xfail\ndef test_fails_as_expected(): raise AssertionError\n"


@pytest.mark.parametrize("how", ["marker", "fixture"])
def test_a_missing_tool_skips_by_name(tmp_path: Path, how: str) -> None:
    ran = _pytest_in(tmp_path, SKIPS[how])
    assert ran.returncode == pytest.ExitCode.OK
    assert "needs: no-such-tool" in ran.stdout


@pytest.mark.parametrize("how", SKIPS)
def test_no_skips_fails_a_run_that_skips_and_says_what(tmp_path: Path, how: str) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_other.py").write_text(f"import pytest\n{PASSES}")
    ran = _pytest_in(tmp_path, SKIPS[how], PMF_NO_SKIPS="1")
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED
    assert "PMF_NO_SKIPS=1 forbids" in ran.stdout
    assert re.search(r"^\S*test_it.*needs: no-such-tool", ran.stdout, re.MULTILINE)


def test_no_skips_passes_a_run_that_skips_nothing(tmp_path: Path) -> None:
    assert _pytest_in(tmp_path, PASSES, PMF_NO_SKIPS="1").returncode == pytest.ExitCode.OK


def test_missing_names_only_what_is_missing() -> None:
    assert zoo.missing("sh", "no-such-tool", "jdk3") == ["no-such-tool", "jdk3"]
