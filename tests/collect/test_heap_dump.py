"""A heap dump holds every object, goes where it should, is refused when it does not fit, and is never left behind."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pmforensics.collect import heap_dump
from pmforensics.collect.heap_dump import HeapDump
from pmforensics.errors import NotSupported
from pmforensics.model.capture import Outcome, PauseBasis
from tests import zoo
from tests.collect.harness import collect_one
from tests.collect.hprof_walk import count_instances
from tests.collect.jvms import (
    AS_NOBODY,
    IN_A_CONTAINER,
    JDKS,
    fake_jvm,
    here,
    left_behind,
    let_all_read,
    tmp_of,
)

ASKED = HeapDump(asked=True, allow_pause_s=60.0)
DIRECT = "straight onto the evidence volume"
COPIED = "in the target's /tmp, then copied"


# ---- JVM


@pytest.mark.parametrize("program", JDKS)
def test_every_entry_is_in_the_dump(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "heap", 16) as sick:
        collected = collect_one(ASKED, sick.pid, tmp_path)
        assert not collected.gaps
        assert count_instances(collected.artifacts["heap.hprof"])["Zoo$CacheEntry"] == sick.ready["entries"]
        settled = collected.settlements["heap.hprof"]
        assert settled.outcome is Outcome.COLLECTED
        assert settled.facts["structure"] == "whole"
        assert settled.facts["written"] == DIRECT
        assert len(collected.artifacts["heap.hprof"]) < int(str(settled.facts["predicted_bytes"]))
        assert settled.pause is not None
        assert settled.pause.basis is PauseBasis.AT_MOST
        assert collected.runs_again is True
        assert left_behind(collected, sick.pid) == set()
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_the_file_is_private(tmp_path: Path) -> None:
    with zoo.start("java17", "heap", 2) as sick, here(sick.pid, tmp_path) as it:
        (artifact,) = ASKED.collect(it.target, it.host)
        assert not isinstance(artifact, heap_dump.Gap)
        assert isinstance(artifact.body, Path)
        assert artifact.body.parent == it.host.spool
        assert stat.S_IMODE(artifact.body.stat().st_mode) == 0o600
        assert os.listdir(it.host.spool) == [artifact.body.name]


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize("program", JDKS)
def test_another_users_jvm_writes_to_its_own_tmp(program: str, tmp_path: Path) -> None:
    let_all_read(program)
    with zoo.start(program, "heap", 16, prefix=AS_NOBODY) as sick:
        collected = collect_one(ASKED, sick.pid, tmp_path)
        assert count_instances(collected.artifacts["heap.hprof"])["Zoo$CacheEntry"] == sick.ready["entries"]
        settled = collected.settlements["heap.hprof"]
        assert settled.outcome is Outcome.COLLECTED
        assert settled.facts["written"] == COPIED
        assert left_behind(collected, sick.pid) == set()
        sick.assert_alive()


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("program", JDKS)
def test_from_a_container(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    with zoo.start(program, "heap", 16, prefix=IN_A_CONTAINER) as sick:
        before = tmp_of(sick.pid)
        collected = collect_one(ASKED, sick.pid, tmp_path)
        assert count_instances(collected.artifacts["heap.hprof"])["Zoo$CacheEntry"] == sick.ready["entries"]
        assert collected.settlements["heap.hprof"].facts["written"] == COPIED
        assert {name for name in tmp_of(sick.pid) - before if not name.startswith(".java_pid")} == set()
        sick.assert_alive()


@pytest.mark.needs("root", "unshare", "jdk17")
def test_volume_that_is_read_only_for_the_target_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    prefix = (
        "unshare", "--mount", "sh", "-c",
        f'mount --bind {evidence} {evidence} && mount -o remount,ro,bind {evidence} && exec "$@"', "sh",
    )  # fmt: skip
    with zoo.start("java17", "heap", 2, prefix=prefix) as sick:
        collected = collect_one(ASKED, sick.pid, evidence)
        assert collected.settlements["heap.hprof"].facts["written"] == COPIED
        assert collected.settlements["heap.hprof"].outcome is Outcome.COLLECTED
        assert any(DIRECT in touch.what and "Read-only" in touch.result for touch in collected.touches)


@pytest.mark.needs("jdk17")
def test_not_asked_is_not_even_attached(tmp_path: Path) -> None:
    with zoo.start("java17", "heap", 2) as sick:
        collected = collect_one(HeapDump(), sick.pid, tmp_path)
        assert collected.ended is None
        assert not collected.artifacts
        assert not Path(f"/tmp/.java_pid{sick.pid}").exists()


@pytest.mark.parametrize("program", JDKS)
def test_what_does_not_fit_is_refused_before_it_begins(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "heap", 64) as sick:
        pause = collect_one(HeapDump(asked=True, allow_pause_s=0.01), sick.pid, tmp_path)
        assert "--allow-pause" in pause.gap("would-harm").reason.next_step

        space = collect_one(ASKED, sick.pid, tmp_path, floor_bytes=1 << 60)
        assert "MiB" in space.gap("would-harm").reason.says

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heap_dump, "DUMP_S_PER_GIB", 1000.0)
            patch.setattr(heap_dump, "MERGED_DUMP_S_PER_GIB", 1000.0)
            slow = HeapDump(asked=True, allow_pause_s=10_000.0)
            time = collect_one(slow, sick.pid, tmp_path, limit_s=2.0)
        assert "--budget" in time.gap("would-harm").reason.next_step

        for collected in (pause, space, time):
            assert collected.gaps[0].outcome is Outcome.REFUSED
            assert not collected.artifacts
            assert not any("GC.heap_dump" in touch.what for touch in collected.touches)
        sick.assert_alive()


@pytest.mark.parametrize("program", JDKS)
def test_dump_that_outlasts_its_time_leaves_nothing(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "heap", 400) as sick, pytest.MonkeyPatch.context() as patch:
        patch.setattr(heap_dump, "DUMP_S_PER_GIB", 0.0)
        patch.setattr(heap_dump, "MERGED_DUMP_S_PER_GIB", 0.0)
        patch.setattr(HeapDump, "limit_s", 0.25)
        collected = collect_one(ASKED, sick.pid, tmp_path)
        # On a loaded machine the capture may cut the collector off while it says so itself.
        assert {(gap.reason.code, gap.outcome) for gap in collected.gaps} == {("deadline-passed", Outcome.LATE)}
        assert not collected.artifacts
        assert list(tmp_path.rglob("*.hprof*")) == []
        assert left_behind(collected, sick.pid) == set()
        sick.assert_alive()


# ---- the others


def test_cpython_and_native_have_none(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        gap = collect_one(ASKED, sick.pid, tmp_path).gap("not-supported")
        assert "CPython" in gap.reason.says
        assert "--core full" in gap.reason.next_step


@pytest.mark.needs("go")
def test_go_is_told_what_there_is_instead(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        gap = collect_one(ASKED, sick.pid, tmp_path).gap("not-supported")
        assert gap.outcome is Outcome.MISSING
        assert "heap profile" in gap.reason.says
        assert "--core full" in gap.reason.next_step


@pytest.mark.needs("node")
def test_node_without_the_option_gets_no_signal(tmp_path: Path) -> None:
    with zoo.start("node", "idle") as sick:
        collected = collect_one(ASKED, sick.pid, tmp_path)
        assert "--heapsnapshot-signal" in collected.gap("not-supported").reason.next_step
        assert not [touch for touch in collected.touches if touch.verb == "signal"]
        sick.assert_alive()


@pytest.mark.needs("node")
def test_nodes_own_snapshot_is_taken_and_removed(tmp_path: Path) -> None:
    with zoo.start("node", "idle", env={"NODE_OPTIONS": "--heapsnapshot-signal=SIGUSR2"}) as sick:
        collected = collect_one(ASKED, sick.pid, tmp_path, limit_s=60.0)
        snapshot = json.loads(collected.artifacts["heap.heapsnapshot"])
        fields = len(snapshot["snapshot"]["meta"]["node_fields"])
        assert len(snapshot["nodes"]) == fields * snapshot["snapshot"]["node_count"] > 0
        settled = collected.settlements["heap.heapsnapshot"]
        assert settled.outcome is Outcome.COLLECTED
        assert settled.facts["signal"] == "SIGUSR2"
        assert settled.pause is not None
        assert list(sick.directory.glob("*.heapsnapshot")) == []
        sick.assert_alive()


@pytest.mark.needs("node")
def test_snapshot_that_would_stop_the_event_loop_too_long_is_refused(tmp_path: Path) -> None:
    with zoo.start("node", "idle", env={"NODE_OPTIONS": "--heapsnapshot-signal=SIGUSR2"}) as sick:
        collected = collect_one(HeapDump(asked=True, allow_pause_s=0.5), sick.pid, tmp_path)
        assert "--allow-pause" in collected.gap("would-harm").reason.next_step
        assert not [touch for touch in collected.touches if touch.verb == "signal"]


def test_option_of_the_program_is_not_nodes_option(tmp_path: Path) -> None:
    with fake_jvm("silent", tmp_path) as fake, here(fake.pid, tmp_path) as it:
        argv = ("node", "--enable-source-maps", "app.js", "--heapsnapshot-signal=SIGUSR2")
        with pytest.raises(NotSupported):
            heap_dump._snapshot_options(replace(it.target, argv=argv), it.host)
        argv = ("node", "--heapsnapshot-signal", "SIGUSR2", "--diagnostic-dir=/tmp", "app.js")
        signum, folder = heap_dump._snapshot_options(replace(it.target, argv=argv), it.host)
        assert signum.name == "SIGUSR2"
        assert folder == Path(f"/proc/{fake.pid}/root/tmp")
