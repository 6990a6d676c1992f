"""The class histogram counts what the program made, without a garbage collection, or is refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pmforensics.collect.class_histogram import ClassHistogram, walk_s
from pmforensics.formats.heap_info import HeapInfo
from pmforensics.model.capture import GIB, Outcome
from tests import zoo
from tests.collect.harness import collect_one
from tests.collect.jvms import AS_NOBODY, JDKS, jcmd, let_all_read

COLLECTORS = ["G1", "Serial", "Parallel", "Z", "Shenandoah"]


def instances(histogram: str, name: str) -> int:
    found = re.search(rf"^\s*\d+:\s+(\d+)\s+\d+\s+{re.escape(name)}(?: |$)", histogram, re.MULTILINE)
    assert found, f"{name} is not in the histogram"
    return int(found[1])


def full_collections(program: str, pid: int) -> int:
    home = zoo.jdk(int(program.removeprefix("java")))
    assert home is not None
    ran = subprocess.run([home / "bin" / "jstat", "-gc", str(pid)], capture_output=True, text=True, check=True)
    names, values = (line.split() for line in ran.stdout.splitlines())
    return int(dict(zip(names, values, strict=True))["FGC"])


@pytest.mark.parametrize("program", JDKS)
def test_counts_every_entry_and_collects_no_garbage(program: str, tmp_path: Path) -> None:
    with zoo.start(program, "heap", 64) as sick:
        before = full_collections(program, sick.pid)
        collected = collect_one(ClassHistogram(), sick.pid, tmp_path)
        text = collected.artifacts["class_histogram.txt"].decode()
        assert full_collections(program, sick.pid) == before
        assert instances(text, "Zoo$CacheEntry") == sick.ready["entries"]
        judge = jcmd(program, sick.pid, "GC.class_histogram", "-all")
        assert instances(judge, "Zoo$CacheEntry") == sick.ready["entries"]
        settled = collected.settlements["class_histogram.txt"]
        assert settled.outcome is Outcome.COLLECTED
        assert settled.facts["structure"] == "whole"
        assert settled.pause is not None
        assert collected.runs_again is True
        assert not collected.gaps
        # The judge can tell: the default form of the command does collect.
        jcmd(program, sick.pid, "GC.class_histogram")
        assert full_collections(program, sick.pid) > before
        sick.assert_alive()


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize("program", JDKS)
def test_use_of_the_heap_is_known_for_every_collector(program: str, collector: str, tmp_path: Path) -> None:
    with zoo.start(program, "heap", 64, env={"JAVA_TOOL_OPTIONS": f"-XX:+Use{collector}GC"}) as sick:
        collected = collect_one(ClassHistogram(allow_pause_s=60.0), sick.pid, tmp_path)
        settled = collected.settlements["class_histogram.txt"]
        assert settled.outcome is Outcome.COLLECTED
        used_bytes = int(str(settled.facts["used_heap_bytes"]))
        counted_bytes = int(str(settled.facts["bytes"]))
        # Some collectors count whole regions, and ZGC does not count what its walk does not reach.
        assert 0.5 * counted_bytes < used_bytes < 3 * counted_bytes
        sick.assert_alive()


@pytest.mark.needs("jdk17")
def test_a_longer_pause_than_allowed_is_refused_unasked(tmp_path: Path) -> None:
    with zoo.start("java17", "heap", 64) as sick:
        collected = collect_one(ClassHistogram(allow_pause_s=0.001), sick.pid, tmp_path)
        gap = collected.gap("would-harm")
        assert gap.outcome is Outcome.REFUSED
        assert "--allow-pause 1" in gap.reason.next_step
        assert not any("class_histogram" in touch.what for touch in collected.touches)
        assert not collected.artifacts
        sick.assert_alive()


@pytest.mark.needs("root", "setpriv", "jdk17")
def test_jvm_of_another_user(tmp_path: Path) -> None:
    let_all_read("java17")
    with zoo.start("java17", "heap", 2, prefix=AS_NOBODY) as sick:
        text = collect_one(ClassHistogram(), sick.pid, tmp_path).artifacts["class_histogram.txt"].decode()
        assert instances(text, "Zoo$CacheEntry") == sick.ready["entries"]


def test_marking_collectors_are_predicted_slower() -> None:
    assert walk_s(HeapInfo(GIB, concurrent=True)) > walk_s(HeapInfo(GIB, concurrent=False)) > 0
    assert walk_s(HeapInfo(2 * GIB, concurrent=False)) == 2 * walk_s(HeapInfo(GIB, concurrent=False))
