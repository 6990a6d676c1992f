from __future__ import annotations

from pathlib import Path

import pytest

from pmforensics.collect.heap_profile import HeapProfile
from pmforensics.model.capture import MIB, Outcome
from tests import zoo
from tests.collect import pprof_oracle
from tests.collect.harness import collect_one

PROFILES = ["heap.pb.gz", "allocs.pb.gz", "threadcreate.pb.gz"]


@pytest.mark.needs("go")
def test_profiles_are_whole_and_pprof_reads_what_each_one_samples(tmp_path: Path) -> None:
    with zoo.start("go", "deep", 20000, 16) as sick:
        got = collect_one(HeapProfile(), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == PROFILES
    assert got.gaps == []
    assert {settled.outcome for settled in got.settlements.values()} == {Outcome.COLLECTED}
    heap, allocs = (pprof_oracle.raw(got.artifacts[name]) for name in PROFILES[:2])
    assert "inuse_space/bytes" in heap
    assert "alloc_space/bytes[dflt]" in allocs
    assert "runtime.malg" in heap  # 20,000 goroutines of 400 bytes each, with one sample per 512 kB
    for name in PROFILES:
        assert len(pprof_oracle.samples(got.artifacts[name])) == got.settlements[name].facts["samples"]


@pytest.mark.needs("go")
def test_no_garbage_collection_is_asked_for_and_no_pause_is_caused(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        got = collect_one(HeapProfile(), sick.pid, tmp_path)
    urls = [touch.what for touch in got.touches if touch.verb == "get"]
    assert [url.rpartition("/")[2] for url in urls] == ["", "heap", "allocs", "threadcreate"]
    assert [settled.pause for settled in got.settlements.values()] == [None] * 3
    assert got.runs_again is None


@pytest.mark.needs("go")
@pytest.mark.parametrize("way", ["pprof-lies", "pprof-flood"])
def test_answer_that_is_no_profile_is_partial_and_does_not_block_the_next(way: str, tmp_path: Path) -> None:
    with zoo.start("go", way) as sick:
        got = collect_one(HeapProfile(limit_bytes=2 * MIB), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == PROFILES
    for name in PROFILES:
        assert got.settlements[name].outcome is Outcome.PARTIAL
        assert got.settlements[name].facts["structure"] == "unreadable"
        assert 0 < len(got.artifacts[name]) <= 2 * MIB


@pytest.mark.needs("go")
def test_service_without_pprof_leaves_one_gap_with_the_remedy(tmp_path: Path) -> None:
    with zoo.start("go", "no-pprof") as sick:
        got = collect_one(HeapProfile(), sick.pid, tmp_path)
    assert got.artifacts == {}
    assert len(got.gaps) == 1
    assert 'import _ "net/http/pprof"' in got.gap("endpoint-refused").reason.next_step
