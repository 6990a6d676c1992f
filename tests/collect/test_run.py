"""The budget and the order: whatever one collector does, it is bounded and recorded, and the next ones run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect.run import reserve_s
from pmforensics.collect.worker import Stop
from tests import captures, volumes, zoo
from tests.collect import rogues

MIB = 1 << 20


@pytest.fixture
def target() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def run(tmp_path: Path, target: int, *members: Any, budget_s: float = 10.0) -> dict[str, Any]:
    """The manifest of a judged bundle made by these collectors and two good ones at the end."""
    sealed = rogues.capture([*members, rogues.Fine(), rogues.Again()], target, tmp_path, budget_s=budget_s)
    evidence = captures.judge(sealed.folder)
    rows = {row["name"]: row for row in evidence["collectors"]}
    assert rows["fine"]["outcome"] == rows["again"]["outcome"] == "collected", "the next collectors did not run"
    assert captures.states(target) == {"S"}
    return evidence


def artifacts(evidence: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by the path below the collector's folder, without those of the good ones."""
    return {
        row["path"].split("/", 2)[2]: row for row in evidence["artifacts"] if row["collector"] not in ("fine", "again")
    }


def gap(evidence: dict[str, Any], name: str) -> dict[str, Any]:
    """The gap that stands for the whole collector."""
    return next(gap for gap in evidence["gaps"] if gap["wanted"] == name)


def children() -> set[str]:
    """The processes that this one has not reaped."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# ---- collectors that do not end


@pytest.mark.parametrize(
    "rogue",
    [
        rogues.Hangs(), rogues.HangsInBody(), rogues.IgnoresTerm(), rogues.Blocks(), rogues.StubbornTool(),
        rogues.WritesForever(), rogues.Trickles(),
    ],
    ids=lambda rogue: rogue.name,
)  # fmt: skip
def test_collector_that_does_not_end_is_cut_at_its_limit_and_recorded_as_late(
    tmp_path: Path, target: int, rogue: Any
) -> None:
    evidence = run(tmp_path, target, rogue)
    row = evidence["collectors"][0]
    assert row["outcome"] == "late"
    # Its limit, the grace after TERM, the time to die, and a loaded machine's share.
    assert rogue.limit_s * 0.5 <= row["seconds"] < rogue.limit_s + 10
    assert evidence["completeness"] == "incomplete"
    for artifact in artifacts(evidence).values():
        whole = artifact["path"].endswith("before.txt")
        assert artifact["outcome"] == ("collected" if whole else "partial")
        assert whole or artifact["reason"]["code"] == "deadline-passed"
    assert {gap["reason"]["code"] for gap in evidence["gaps"]} == {"deadline-passed"}


@pytest.mark.parametrize("rogue", [rogues.StubbornTool(), rogues.LeavesChild()], ids=lambda rogue: rogue.name)
def test_tool_that_ignores_term_dies_with_its_collector(tmp_path: Path, target: int, rogue: Any) -> None:
    run(tmp_path, target, rogue)

    def stubborn() -> list[str]:
        found = subprocess.run(["pgrep", "-fa", "sleep 98[789]"], capture_output=True, text=True, check=False)
        return [line for line in found.stdout.splitlines() if "pgrep" not in line]

    captures.wait_for("the tools to die", lambda: not stubborn())


def test_budget_is_kept_though_every_collector_overruns(tmp_path: Path, target: int) -> None:
    budget_s = 16.0
    began = time.monotonic()
    hogs = [type(f"Hog{number}", (rogues.IgnoresTerm,), {"limit_s": 100.0})() for number in range(6)]
    sealed = rogues.capture(hogs, target, tmp_path, budget_s=budget_s)
    took_s = time.monotonic() - began
    evidence = captures.judge(sealed.folder)
    assert took_s < budget_s
    assert evidence["capture"]["seconds"] < budget_s
    # Each gets a share of what is left, so that the last ones get a turn too.
    limits = [row["limit_s"] for row in evidence["collectors"]]
    assert limits == sorted(limits, reverse=True)
    assert len(limits) >= 3
    reached = {row["name"] for row in evidence["collectors"]}
    for hog in hogs:
        assert gap(evidence, hog.name)["outcome"] == "late"
        assert hog.name in reached or gap(evidence, hog.name)["reason"]["code"] == "deadline-passed"


def test_smallest_budget_is_sealed_though_nothing_fits(tmp_path: Path, target: int) -> None:
    hogs = [type(f"Hog{number}", (rogues.Blocks,), {"limit_s": 100.0})() for number in range(3)]
    sealed = rogues.capture(hogs, target, tmp_path, budget_s=1.0)
    evidence = captures.judge(sealed.folder)
    assert {gap["wanted"] for gap in evidence["gaps"]} == {"hog0", "hog1", "hog2"}
    assert evidence["capture"]["seconds"] < 10


def test_examination_that_hangs_does_not_outlast_the_budget(
    tmp_path: Path, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pmforensics.collect.examine as module

    # As where the target's memory lock is held: status and links answer, cmdline and maps never do.
    monkeypatch.setattr(module, "_from_memory", lambda *_: time.sleep(1000))
    evidence = run(tmp_path, target, budget_s=5.0)
    assert gap(evidence, "examine")["reason"]["code"] == "deadline-passed"
    assert evidence["target"]["uid"] == os.getuid()
    assert evidence["target"]["exe"] == os.path.realpath("/bin/sleep")
    assert evidence["target"]["argv"] == []
    assert evidence["capture"]["seconds"] < 5.0


@pytest.mark.parametrize(("budget_s", "kept_s"), [(1, 0.5), (5, 1), (25, 2.5), (300, 5)])
def test_reserve_for_the_seal_is_a_tenth_within_bounds(budget_s: float, kept_s: float) -> None:
    assert reserve_s(budget_s) == kept_s


# ---- collectors that break


@pytest.mark.parametrize(
    "rogue", [rogues.Crashes(), rogues.CrashesInBody(), rogues.ExitsQuietly()], ids=lambda rogue: rogue.name
)
def test_collector_that_dies_is_recorded_with_what_it_had_sent(tmp_path: Path, target: int, rogue: Any) -> None:
    evidence = run(tmp_path, target, rogue)
    assert gap(evidence, rogue.name)["reason"]["code"] == "collector-died"
    for path, row in artifacts(evidence).items():
        assert row["outcome"] == ("collected" if path == "before.txt" else "partial")
    assert len(artifacts(evidence)) == 1


@pytest.mark.parametrize(
    "rogue",
    [rogues.Bug(), rogues.BugInBody(), rogues.BugInSettle(), rogues.BadFacts()],
    ids=lambda rogue: rogue.name,
)
def test_bug_in_a_collector_is_recorded_as_one_with_its_traceback(tmp_path: Path, target: int, rogue: Any) -> None:
    evidence = run(tmp_path, target, rogue)
    told = gap(evidence, rogue.name)
    assert (told["outcome"], told["reason"]["code"]) == ("failed", "bug")
    assert "Error" in told["reason"]["says"]
    assert "report" in told["reason"]["next_step"]
    folder = captures.only_bundle(tmp_path)
    (trace,) = [record for record in captures.journal_of(folder) if record.get("verb") == "bug"]
    assert trace["what"].startswith("Traceback")
    for path, row in artifacts(evidence).items():
        assert row["outcome"] == ("collected" if path == "before.txt" else "partial")
    assert len(artifacts(evidence)) == 1


def test_error_of_ours_in_a_body_makes_it_partial_and_the_collector_goes_on(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.BrokenFormat())
    rows = artifacts(evidence)
    assert (rows["half.txt"]["outcome"], rows["half.txt"]["reason"]["code"]) == ("partial", "broken-elf")
    assert rows["after.txt"]["outcome"] == "collected"
    assert gap(evidence, "brokenformat")["reason"]["code"] == "broken-elf"


def test_error_before_the_first_byte_is_a_gap_and_no_file(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.NotThereInBody())
    assert list(artifacts(evidence)) == ["after.txt"]
    told = gap(evidence, "nottthereinbody/nothing.txt".replace("ttt", "tt"))
    assert (told["outcome"], told["reason"]["code"]) == ("missing", "not-there")


# ---- collectors that talk too much


def test_flood_of_touches_is_counted_not_kept(tmp_path: Path, target: int) -> None:
    for number, rogue in enumerate((rogues.FloodsTouches(), rogues.FloodsTouchesInBody())):
        run(tmp_path / str(number), target, rogue)
        folder = captures.only_bundle(tmp_path / str(number))
        assert (folder / "journal.jsonl").stat().st_size < 10 * MIB
        (more,) = [record for record in captures.journal_of(folder) if record.get("verb") == "more"]
        assert "further touches" in more["what"]


def test_flood_of_gaps_is_counted_not_kept(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.FloodsGaps())
    assert sum(len(str(gap)) for gap in evidence["gaps"]) < 10 * MIB
    assert any(gap["reason"]["code"] == "too-many" for gap in evidence["gaps"])


def test_message_longer_than_any_is_replaced(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.HugeMessage())
    assert gap(evidence, "hugemessage")["reason"]["code"] == "bug"
    assert artifacts(evidence)["after.txt"]["outcome"] == "collected"


def test_paths_that_lead_out_of_the_bundle_make_gaps(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path / "evidence", target, rogues.BadPaths())
    assert list(artifacts(evidence)) == ["good.txt"]
    assert len([gap for gap in evidence["gaps"] if gap["reason"]["code"] == "bad-path"]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["evidence"]
    assert not list(tmp_path.rglob("escaped"))


# ---- what is left in the spool


def test_file_left_in_the_spool_is_adopted_as_partial_and_nothing_else_is(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.LeavesSpool())
    rows = artifacts(evidence)
    assert list(rows) == ["unfinished/left.bin"]
    row = rows["unfinished/left.bin"]
    assert (row["outcome"], row["bytes"], row["reason"]["code"]) == ("partial", 4000, "deadline-passed")


def test_file_left_by_a_collector_that_failed_is_adopted_and_scratch_is_not(tmp_path: Path, target: int) -> None:
    evidence = run(tmp_path, target, rogues.FailsWithSpool(), rogues.KeepsScratch())
    rows = artifacts(evidence)
    assert sorted(rows) == ["before.txt", "unfinished/left.bin"]
    assert rows["unfinished/left.bin"]["reason"]["code"] == "collector-failed"


def test_huge_file_left_in_the_spool_does_not_overrun_the_budget(tmp_path: Path, target: int) -> None:
    # 200 GiB take minutes to hash: it is cut where its share of the time ends.
    evidence = run(tmp_path, target, rogues.LeavesHuge(), budget_s=6.0)
    assert evidence["capture"]["seconds"] < 6.0
    row = artifacts(evidence)["unfinished/huge.bin"]
    assert (row["outcome"], row["reason"]["code"]) == ("partial", "deadline-passed")
    assert 0 < row["bytes"] < 200 << 30


def test_late_writer_outside_the_process_group_cannot_change_a_sealed_file(tmp_path: Path, target: int) -> None:
    sealed = rogues.capture([rogues.LateWriter(), rogues.Fine()], target, tmp_path)
    try:
        (path,) = (sealed.folder / "data").glob("*/unfinished/growing.bin")
        for _ in range(20):
            captures.judge(sealed.folder, coreutils=False)
            time.sleep(0.02)
        writers = subprocess.run(["pgrep", "-f", "late %d"], capture_output=True, check=False).stdout
        assert writers, "the late writer is gone: this test proves nothing"
        row = next(row for row in sealed.evidence["artifacts"] if row["path"].endswith("growing.bin"))  # type: ignore
        assert row["reason"]["code"] == "still-written"  # type: ignore[index, call-overload]
        assert path.stat().st_size == row["bytes"]  # type: ignore[index, call-overload]
    finally:
        subprocess.run(["pkill", "-f", "late %d"], check=False)


# ---- the volume fails under the capture


@pytest.mark.needs("root", "mkfs.ext4")
def test_neighbour_that_fills_the_volume_leaves_a_sealed_bundle(tmp_path: Path, target: int) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        sealed = rogues.capture([rogues.Fine(), rogues.FillsVolume(), rogues.Again()], target, place)
        evidence = captures.judge(sealed.folder)
        rows = {row["collector"]: row for row in evidence["artifacts"]}
        assert rows["fine"]["outcome"] == "collected"
        assert volumes.free_bytes(place) < 5 * MIB


# ---- the target is held


@pytest.mark.needs("root")
def test_target_that_a_collector_holds_at_its_limit_runs_again(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        sealed = rogues.capture([rogues.AttachesBriefly(), rogues.Fine()], sick.pid, tmp_path)
        sick.assert_alive()
        evidence = captures.judge(sealed.folder)
        assert evidence["collectors"][0]["runs_again"] is True
        assert evidence["collectors"][1]["runs_again"] is None


@pytest.mark.needs("root", "gdb", "gcc")
def test_target_that_stays_held_is_the_first_thing_a_person_must_know(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 1) as sick:
        try:
            sealed = rogues.capture([rogues.Escapes(), rogues.Fine()], sick.pid, tmp_path)
            evidence = captures.judge(sealed.folder)
            assert evidence["collectors"][0]["runs_again"] is False
            told = next(gap for gap in evidence["gaps"] if gap["reason"]["code"] == "target-held")
            assert f"kill -CONT {sick.pid}" in told["reason"]["next_step"]
            shown = captures.pmf("show", sealed.folder).stdout
            assert "target-held" in shown
            assert evidence["completeness"] == "incomplete"
        finally:
            subprocess.run(["pkill", "-KILL", "-f", f"gdb -q -batch -p {sick.pid} "], check=False)
        captures.assert_runs(sick.pid)


# ---- asked to stop


@pytest.mark.parametrize("rogue", [rogues.Hangs(), rogues.IgnoresTerm(), rogues.WritesForever()], ids=lambda r: r.name)
def test_stop_ends_the_running_collector_and_keeps_what_it_sent(tmp_path: Path, target: int, rogue: Any) -> None:
    patient = type(rogue).__name__
    slow = type(patient, (type(rogue),), {"limit_s": 300.0})()
    stop = Stop()
    threading.Timer(0.5, stop.ask, ["SIGTERM"]).start()
    began = time.monotonic()
    sealed = rogues.capture([slow, rogues.Fine()], target, tmp_path, budget_s=600.0, stop=stop)
    assert time.monotonic() - began < 30
    evidence = captures.judge(sealed.folder)
    assert evidence["capture"]["ended_by"] == "SIGTERM"
    assert gap(evidence, "fine")["reason"]["code"] == "interrupted"
    assert any(row["collector"] == slow.name for row in evidence["artifacts"])


def test_nothing_of_a_capture_outlives_it(tmp_path: Path, target: int) -> None:
    before = children()
    run(tmp_path, target, rogues.Hangs(), rogues.Crashes(), rogues.Bug())
    assert children() == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
