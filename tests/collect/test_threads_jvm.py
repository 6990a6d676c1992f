"""Thread dumps say what jcmd says, show virtual threads, and keep the JVM's secrets."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect.target_folder import memory_left_bytes, room_in_target, target_folder
from pmforensics.collect.threads_jvm import ThreadsJvm, ThreadsJvmAgain
from pmforensics.errors import AnswerBroken, WouldHarm
from pmforensics.model.capture import Outcome, PauseBasis
from tests import zoo
from tests.collect.harness import collect_one
from tests.collect.jvms import (
    AS_NOBODY,
    IN_A_CONTAINER,
    JDKS,
    here,
    jcmd,
    left_behind,
    let_all_read,
    thread_names,
    tmp_of,
)

END_S = 60.0


def names_in_json(document: dict[str, Any]) -> set[str]:
    containers = document["threadDump"]["threadContainers"]
    return {thread["name"] for container in containers for thread in container["threads"]}


@pytest.mark.parametrize("program", JDKS)
def test_same_threads_and_the_same_ring_as_jcmd_shows(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "lock-ring") as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        text = collected.artifacts["threads.txt"].decode()
        judge = jcmd(program, sick.pid, "Thread.print", "-l", "-e")
        assert thread_names(text) == thread_names(judge)
        assert {"ring-0", "ring-1", "ring-2", "heartbeat"} <= thread_names(text)
        assert "Found one Java-level deadlock:" in text
        assert judge.count("waiting to lock monitor") == text.count("waiting to lock monitor") == 3
        settled = collected.settlements["threads.txt"]
        assert settled.outcome is Outcome.COLLECTED
        assert settled.facts["deadlocks"] == 1
        assert settled.pause is not None
        assert settled.pause.basis is PauseBasis.AT_MOST
        assert settled.pause.seconds > 0
        assert collected.runs_again is True
        assert not collected.gaps
        sick.assert_alive()


@pytest.mark.needs("jdk25")
def test_json_has_the_virtual_threads_that_the_text_lacks(tmp_path: Path) -> None:
    with zoo.start("java25", "virtual", 1000, 4) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert not collected.gaps
        mine = names_in_json(json.loads(collected.artifacts["threads.json"]))
        judge = sick.directory / "judge.json"
        jcmd("java25", sick.pid, "Thread.dump_to_file", "-format=json", str(judge))
        virtual = {f"parked-{n}" for n in range(1000)} | {f"blocked-{n}" for n in range(4)}
        assert virtual <= mine
        assert virtual <= names_in_json(json.loads(judge.read_text()))
        assert b"parked-1" not in collected.artifacts["threads.txt"]
        assert collected.settlements["threads.json"].facts["structure"] == "whole"
        assert left_behind(collected, sick.pid) == set()
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_no_json_and_no_gap_before_virtual_threads(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert collected.order == ["threads.txt", "vm.txt"]
        assert not collected.gaps


@pytest.mark.needs("root", "unshare", "jdk25")
def test_json_from_a_container_leaves_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    with zoo.start("java25", "virtual", 50, 2, prefix=IN_A_CONTAINER) as sick:
        before = tmp_of(sick.pid)
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert "parked-49" in names_in_json(json.loads(collected.artifacts["threads.json"]))
        assert {name for name in tmp_of(sick.pid) - before if not name.startswith(".java_pid")} == set()
        sick.assert_alive()


@pytest.mark.needs("root", "setpriv", "jdk25")
def test_json_of_another_user(tmp_path: Path) -> None:
    let_all_read("java25")
    with zoo.start("java25", "virtual", 50, 2, prefix=AS_NOBODY) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        assert "parked-49" in names_in_json(json.loads(collected.artifacts["threads.json"]))
        assert left_behind(collected, sick.pid) == set()


@pytest.mark.needs("jdk25")
def test_full_tmp_costs_the_json_only(tmp_path: Path) -> None:
    with zoo.start("java25", "virtual", 50, 2) as sick:
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path, floor_bytes=1 << 60)
        assert collected.order == ["threads.txt", "vm.txt"]
        gap = collected.gap("would-harm")
        assert gap.outcome is Outcome.REFUSED
        assert "virtual threads" in gap.wanted


@pytest.mark.parametrize("program", JDKS)
def test_second_dump_is_apart_by_what_it_says(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "lock-ring") as sick:
        first = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        first_at = time.monotonic()
        again = collect_one(ThreadsJvmAgain(apart_s=1.5, first_at=first_at), sick.pid, tmp_path)
        passed_s = time.monotonic() - first_at
        assert passed_s >= 1.5
        assert again.order == ["threads.txt"]
        assert 1.5 <= float(str(again.settlements["threads.txt"].facts["apart_at_least_s"])) <= passed_s

        def cpu_ms(text: bytes) -> float:
            found = re.search(rb'^"pool-busy-0" .*cpu=([\d.]+)ms', text, re.MULTILINE)
            assert found
            return float(found[1])

        assert cpu_ms(again.artifacts["threads.txt"]) > cpu_ms(first.artifacts["threads.txt"])
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_second_dump_waits_no_longer_than_its_time_allows(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick:
        again = collect_one(ThreadsJvmAgain(apart_s=3600.0), sick.pid, tmp_path, limit_s=3.0)
        settled = again.settlements["threads.txt"]
        assert settled.outcome is Outcome.COLLECTED
        assert 0 < float(str(settled.facts["apart_at_least_s"])) < ThreadsJvmAgain.limit_s


SECRETS = """
-Dpool.size=17 -Xmx300m
-Ddb.password=hunter2 -Djava.naming.security.credentials=hunter2 -Dspring.datasource.url=jdbc:x://sa:hunter2@db/x
-Djavax.net.ssl.trustStorePassword=hunter2 "-Dapi.token=two words hunter2" "-Dlines.secret=one\nhunter2"
"-XX:OnOutOfMemoryError=curl -H X-Key:hunter2 http://alert" -Dlast.password=hunter2
"""


@pytest.mark.parametrize("program", JDKS)
def test_no_secret_of_the_jvm_gets_out(program: str, tmp_path: Path) -> None:
    options = " ".join(SECRETS.strip().split("\n")).replace("one hunter2", "one\nhunter2")
    with zoo.start(program, "idle", env={"JDK_JAVA_OPTIONS": options}) as sick:
        assert "hunter2" in jcmd(program, sick.pid, "VM.command_line")
        assert "hunter2" in jcmd(program, sick.pid, "VM.system_properties")
        collected = collect_one(ThreadsJvm(), sick.pid, tmp_path)
        settings = collected.artifacts["vm.txt"].decode()
        everything = repr((collected.settlements, collected.touches, collected.gaps, collected.sources))
        assert "hunter2" not in settings
        assert "hunter2" not in everything
        for told in ("-Dpool.size=17", "-Xmx300m", "MaxHeapSize=314572800", "java.vm.name=", "JDK " + program[4:]):
            assert told in settings
        assert int(str(collected.settlements["vm.txt"].facts["withheld_properties"])) > 5


# ---- the folder in the target's /tmp


@pytest.mark.needs("jdk17")
def test_folder_goes_even_when_the_collector_is_killed(tmp_path: Path) -> None:
    with zoo.start("java17", "idle") as sick:
        ready_fd, say_fd = os.pipe()
        child = os.fork()
        if child == 0:
            with here(sick.pid, tmp_path) as it, target_folder(it.target, it.host) as folder:
                Path(folder.path, "half.hprof").write_bytes(b"x" * 100)
                os.write(say_fd, folder.path.encode())
                signal.pause()
            os._exit(1)
        folder_path = Path(os.read(ready_fd, 4096).decode())
        assert (folder_path / "half.hprof").exists()
        assert folder_path.stat().st_mode & 0o777 == 0o700
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        give_up = time.monotonic() + END_S
        while folder_path.exists():
            assert time.monotonic() < give_up, "the folder is still there"
            time.sleep(0.01)
        os.close(ready_fd)
        os.close(say_fd)


@pytest.mark.needs("jdk17")
def test_only_a_regular_file_of_the_target_is_taken(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for the bundle")
    with zoo.start("java17", "idle") as sick, here(sick.pid, tmp_path) as it:
        with target_folder(it.target, it.host) as folder:
            Path(folder.path, "link").symlink_to(secret)
            os.mkfifo(Path(folder.path, "fifo"))
            for name in ("link", "fifo"):
                with pytest.raises(AnswerBroken):
                    folder.take(name)
            Path(folder.path, "file").write_text("evidence")
            fd = folder.take("file")
            assert os.read(fd, 100) == b"evidence"
            os.close(fd)
            assert not Path(folder.path, "file").exists()
        assert not Path(folder.path).exists()


@pytest.mark.needs("root", "unshare", "jdk17")
def test_tmp_in_memory_counts_against_the_memory_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    huge = (*IN_A_CONTAINER[:5], "sh", "-c", 'mount -t tmpfs -o size=1t,mode=1777 tmpfs /tmp && exec "$@"', "sh")
    with zoo.start("java17", "idle", prefix=huge) as sick, here(sick.pid, tmp_path) as it:
        left_bytes = memory_left_bytes(it.host)
        assert left_bytes is not None
        room_in_target(it.target, it.host, 1 << 20)
        with pytest.raises(WouldHarm, match="is memory"):
            room_in_target(it.target, it.host, left_bytes + (1 << 30))
