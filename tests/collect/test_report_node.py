from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pmforensics.collect.report_node import WITHHELD, Enabled, ReportNode, read_enabled
from pmforensics.model.capture import Outcome, PauseBasis
from tests import zoo
from tests.collect.harness import Collected, collect_one

SECRET = {"DB_PASSWORD": "hunter2-of-the-database"}
ON = {"NODE_OPTIONS": "--report-on-signal"}


def signals(got: Collected) -> list[str]:
    return [touch.what.split()[0] for touch in got.touches if touch.verb == "signal"]


@pytest.mark.needs("node")
def test_report_is_whole_and_tells_the_stack_and_the_handles(tmp_path: Path) -> None:
    with zoo.start("node", "report") as sick:
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        sick.assert_alive()
    report = json.loads(got.artifacts["report.json"])
    assert report["header"]["processId"] == sick.pid
    assert report["header"]["trigger"] == "Signal"
    assert any(handle["type"] == "tcp" for handle in report["libuv"])
    assert report["javascriptHeap"]["usedMemory"] > 0
    settled = got.settlements["report.json"]
    assert settled.outcome is Outcome.COLLECTED
    assert settled.pause is not None
    assert settled.pause.basis is PauseBasis.AT_MOST
    assert got.runs_again is True


@pytest.mark.needs("node")
def test_environment_and_marked_arguments_are_withheld_their_names_are_kept(tmp_path: Path) -> None:
    with zoo.start("node", "report", env=SECRET) as sick:
        environ = Path(f"/proc/{sick.pid}/environ").read_bytes()
        got = collect_one(ReportNode(), sick.pid, tmp_path)
    assert b"hunter2" in environ
    assert b"hunter2" not in got.artifacts["report.json"]
    assert "hunter2" not in repr(got)
    variables = json.loads(got.artifacts["report.json"])["environmentVariables"]
    assert variables["DB_PASSWORD"] == WITHHELD
    assert set(variables.values()) == {WITHHELD}
    names = {entry.partition(b"=")[0].decode() for entry in environ.split(b"\0") if entry}
    assert set(variables) == names
    assert got.settlements["report.json"].facts["values_withheld"] == len(names)


WITH_ARGUMENTS = """
const { Worker, isMainThread } = require('node:worker_threads');
if (isMainThread) new Worker(__filename).once('online', () => console.log('ready'));
setInterval(() => {}, 1000);
"""


@pytest.mark.needs("node")
def test_secrets_in_the_command_line_and_in_the_report_of_a_worker_thread_are_withheld(tmp_path: Path) -> None:
    (tmp_path / "served.js").write_text(WITH_ARGUMENTS)
    command = [str(zoo.get_tool("node")), "--report-on-signal", "served.js", "--token=hunter2", "--port=80"]
    with subprocess.Popen(command, cwd=tmp_path, env=SECRET, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            got = collect_one(ReportNode(), process.pid, tmp_path)
        finally:
            process.kill()
    report = json.loads(got.artifacts["report.json"])
    assert b"hunter2" not in got.artifacts["report.json"]
    assert report["header"]["commandLine"][-2:] == ["--token=(redacted)", "--port=80"]
    assert report["workers"][0]["header"]["threadId"] == 1
    assert set(report["workers"][0]["environmentVariables"].values()) == {WITHHELD}


@pytest.mark.needs("node")
def test_report_that_we_caused_is_removed_from_the_target_s_folder_and_that_is_on_record(tmp_path: Path) -> None:
    with zoo.start("node", "report") as sick:
        (sick.directory / "report.20200101.000000.1.0.001.json").write_text("an earlier one")
        before = set(sick.directory.iterdir())
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        assert set(sick.directory.iterdir()) == before
    assert got.settlements["report.json"].facts["removed_from_target"] is True
    assert [touch.result for touch in got.touches if touch.verb == "remove"] == ["ok"]


@pytest.mark.needs("node")
def test_report_is_found_in_a_folder_relative_to_the_working_directory(tmp_path: Path) -> None:
    env = {"NODE_OPTIONS": '--report-on-signal --report-directory="re ports" --report-filename=out.json'}
    work = tmp_path / "work"
    (work / "re ports").mkdir(parents=True)
    with zoo.start("node", "idle", env=env, cwd=work) as sick:
        got = collect_one(ReportNode(), sick.pid, tmp_path)
    assert json.loads(got.artifacts["report.json"])["header"]["filename"] == "out.json"
    assert got.sources["report.json"].startswith(f"{work}/re ports/out.json ")


@pytest.mark.needs("node")
def test_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "out.json").write_text("the report of the crash before")
    with zoo.start(
        "node", "idle", env={"NODE_OPTIONS": "--report-on-signal --report-filename=out.json"}, cwd=work
    ) as sick:
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.gap("would-harm").outcome is Outcome.REFUSED
    assert signals(got) == []
    assert (work / "out.json").read_text() == "the report of the crash before"


@pytest.mark.needs("node")
@pytest.mark.parametrize("way", ["idle", "loop"])
def test_process_without_the_option_gets_no_signal(way: str, tmp_path: Path) -> None:
    with zoo.start("node", way) as sick:
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        sick.assert_alive()
    gap = got.gap("not-supported")
    assert gap.outcome is Outcome.MISSING
    assert "NODE_OPTIONS" in gap.reason.next_step
    assert signals(got) == []


@pytest.mark.needs("node")
def test_option_of_the_script_is_not_taken_for_node_s_own(tmp_path: Path) -> None:
    script = "process.on('SIGUSR2', () => process.exit(9)); console.log('ready'); setInterval(() => {}, 1000)"
    (tmp_path / "served.js").write_text(script)
    command = [str(zoo.get_tool("node")), "served.js", "--report-on-signal"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            got = collect_one(ReportNode(), process.pid, tmp_path)
            assert process.poll() is None
        finally:
            process.kill()
    assert signals(got) == []
    assert got.gap("not-supported")


@pytest.mark.needs("node")
def test_busy_event_loop_is_late_and_says_so(tmp_path: Path) -> None:
    with zoo.start("node", "loop", env=ON) as sick:
        got = collect_one(ReportNode(wait_s=1.0), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.artifacts == {}
    gap = got.gap("deadline-passed")
    assert gap.outcome is Outcome.LATE
    assert "the event loop did not serve SIGUSR2" in gap.reason.says
    assert "environment" in gap.reason.next_step


@pytest.mark.needs("node")
def test_signal_that_the_process_does_not_catch_is_not_sent(tmp_path: Path) -> None:
    script = "process.report.reportOnSignal = false; console.log('ready'); setInterval(() => {}, 1000)"
    (tmp_path / "served.js").write_text(script)
    command = [str(zoo.get_tool("node")), "--report-on-signal", "served.js"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            got = collect_one(ReportNode(), process.pid, tmp_path)
            time.sleep(0.2)
            assert process.poll() is None
        finally:
            process.kill()
    assert got.gap("would-harm").outcome is Outcome.REFUSED
    assert signals(got) == []


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.needs("node")
def test_stopped_process_gets_no_signal_that_would_wait_for_it(tmp_path: Path) -> None:
    with zoo.start("node", "report") as sick:
        os.kill(sick.pid, signal.SIGSTOP)
        while state(sick.pid) != "T":
            time.sleep(0.01)
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        assert state(sick.pid) == "T"
        os.kill(sick.pid, signal.SIGCONT)
        sick.assert_alive()
    assert "stopped" in got.gap("not-supported").reason.says
    assert signals(got) == []


@pytest.mark.needs("node")
def test_sigusr1_is_never_sent_even_when_it_is_the_report_signal(tmp_path: Path) -> None:
    with zoo.start("node", "idle", env={"NODE_OPTIONS": "--report-on-signal --report-signal=SIGUSR1"}) as sick:
        status = dict(line.split(":\t") for line in Path(f"/proc/{sick.pid}/status").read_text().splitlines())
        assert int(status["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1
        got = collect_one(ReportNode(), sick.pid, tmp_path)
    assert got.gap("would-harm").outcome is Outcome.REFUSED
    assert signals(got) == []


@pytest.mark.needs("node", "root", "unshare")
def test_report_of_a_process_in_other_pid_and_mount_namespaces_is_found_under_its_own_number(tmp_path: Path) -> None:
    script = 'mount -t tmpfs none /mnt && cd /mnt && exec "$@"'
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--mount", "sh", "-c", script, "sh")
    with zoo.start("node", "idle", env=ON, prefix=inside) as sick:
        got = collect_one(ReportNode(), sick.pid, tmp_path)
        assert list(Path(f"/proc/{sick.pid}/root/mnt").iterdir()) == []
        sick.assert_alive()
    assert json.loads(got.artifacts["report.json"])["header"]["processId"] == 1
    assert got.sources["report.json"].startswith("/mnt/report.")


OPTIONS = [
    ("node server.js", "", None),
    ("node --report-on-signal server.js", "", Enabled()),
    ("node --report_on_signal server.js", "", Enabled()),
    ("node --report-on-signal --no-report-on-signal server.js", "", None),
    ("node --no-report-on-signal server.js", "--report-on-signal", None),
    ("node server.js --report-on-signal", "", None),
    ("node -- server.js --report-on-signal", "", None),
    ("node -r ./server.js --report-on-signal server.js", "", Enabled()),
    ("node --title server.js --report-on-signal server.js", "", Enabled()),
    ("node --report-signal SIGHUP --report-on-signal server.js", "", Enabled("SIGHUP")),
    ("node --report-signal=SIGHUP server.js", "--report-on-signal --report-signal=SIGINT", Enabled("SIGHUP")),
    ("node --report-dir=/a --report-on-signal server.js", "", Enabled(directory="/a")),
    ("node server.js", "--report-on-signal --report-directory /b --report-filename x", Enabled("SIGUSR2", "/b", "x")),
]
ASK_NODE = "r = process.report; console.log(JSON.stringify([r.reportOnSignal, r.signal, r.directory, r.filename]))"


@pytest.mark.parametrize(("argv", "node_options", "wanted"), OPTIONS)
def test_options_are_read(argv: str, node_options: str, wanted: Enabled | None) -> None:
    assert read_enabled(argv.split(), node_options.split()) == wanted


@pytest.mark.needs("node")
@pytest.mark.parametrize(("argv", "node_options", "wanted"), OPTIONS)
def test_options_are_read_as_node_itself_reads_them(
    argv: str, node_options: str, wanted: Enabled | None, tmp_path: Path
) -> None:
    (tmp_path / "server.js").write_text(ASK_NODE)
    command = [str(zoo.get_tool("node")), *argv.split()[1:]]
    ran = subprocess.run(
        command, cwd=tmp_path, env={"NODE_OPTIONS": node_options}, capture_output=True, text=True, check=True
    )
    on, *how = json.loads(ran.stdout.splitlines()[-1])
    assert (Enabled(*how) if on else None) == wanted


def test_process_that_wrote_over_its_arguments_or_has_none_has_no_options() -> None:
    assert read_enabled(["worker --report-on-signal"], []) is None
    assert read_enabled([], []) is None
