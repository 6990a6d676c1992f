"""A real capture, killed at any instant: what was saved is sealed by `pmf recover`, and the target runs on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pmforensics.bundle.recover import recover
from pmforensics.errors import BundleBroken, NotABundle
from pmforensics.verify.integrity import Integrity, check_integrity
from tests import captures, zoo

pytestmark = pytest.mark.needs("gcc")

SEED = int(os.environ.get("PMF_TEST_SEED", "20261120"))
KILLS = 200
AT_ONCE = 4  # captures wait for the disk more than for the processor


@pytest.fixture(scope="module")
def patients() -> Iterator[list[zoo.Sick]]:
    """One target for each capture that runs at the same time."""
    zoo.build("c")
    with ExitStack() as stack:
        yield [stack.enter_context(zoo.start("c", "threads", 24)) for _ in range(AT_ONCE)]


def start_capture(pid: int, evidence: Path) -> subprocess.Popen[bytes]:
    """As a person would, into a folder of its own."""
    return captures.start_pmf("capture", "--pid", pid, "--evidence", evidence, "--force")


@dataclass(frozen=True)
class Instant:
    """
    When to strike: once the journal has grown to that part of its length in a whole capture, and then a little later.

    Progress instead of time, so that the instants are spread over the capture whatever else the machine does.
    """

    part: float
    later_s: float


def random_instants(count: int, seed: int) -> list[Instant]:
    """Spread over the whole capture; a tenth of them from its last record on, where the sealing is."""
    chance = random.Random(seed)
    print("seed", seed)
    instants = [Instant(chance.uniform(0.0, 0.98), chance.uniform(0.0, 0.01)) for _ in range(count - count // 10)]
    instants += [Instant(0.98, chance.uniform(0.0, 0.3)) for _ in range(count // 10)]
    chance.shuffle(instants)
    return instants


@pytest.fixture(scope="module")
def whole_bytes(patients: list[zoo.Sick], tmp_path_factory: pytest.TempPathFactory) -> int:
    """The length of the journal when a capture is about to seal."""
    folder = tmp_path_factory.mktemp("measured")
    process = start_capture(patients[0].pid, folder)
    process.communicate(timeout=captures.TIMEOUT_S)
    assert process.returncode in (0, 3)
    return (captures.only_bundle(folder) / "journal.jsonl").stat().st_size


def strike(process: subprocess.Popen[bytes], signum: signal.Signals, at: Instant, whole: int, evidence: Path) -> None:
    """Send the signal at that instant, if the capture lives to see it."""
    journal: Path | None = None
    while process.poll() is None:
        if journal is None:
            journal = next(evidence.glob("*/*/journal.jsonl"), None)
        if journal is not None and journal.stat().st_size >= whole * at.part:
            time.sleep(at.later_s)
            process.send_signal(signum)
            return
        time.sleep(0.002)


def payload(folder: Path) -> Counter[str]:
    """The digests of all files of evidence that the disk holds, finished or not."""
    return Counter(
        captures.sha256(path)
        for top in ("data", ".spool")
        for path in (folder / top).rglob("*")
        if path.is_file() and not path.is_symlink()
    )


@dataclass
class Tally:
    """How the kills met the captures."""

    counts: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    sealing: int = 0


def kill_once(number: int, at: Instant, whole: int, sick: zoo.Sick, evidence: Path, tally: Tally) -> None:
    """One capture killed at this instant, and all that must hold then."""
    process = start_capture(sick.pid, evidence)
    strike(process, signal.SIGKILL, at, whole, evidence)
    process.communicate()
    ended = process.returncode != -signal.SIGKILL
    captures.assert_session_ends(process.pid)
    captures.assert_runs(sick.pid)
    found = captures.bundles(evidence)
    if not found:
        tally.counts["before the bundle"] += 1
        return
    (folder,) = found
    records = captures.journal_of(folder) if (folder / "journal.jsonl").exists() else []
    promised = {record["path"]: record["sha256"] for record in records if record["event"] == "artifact"}
    for path, digest in promised.items():
        assert captures.sha256(folder / path) == digest, f"{path} is in the journal and not on the disk"
    begun = {record["path"] for record in records if record["event"] == "begin"}
    in_flight = {path for path in begun if path not in promised and f"{path}.zst" not in promised}
    assert len(in_flight) <= 1
    on_disk = payload(folder)
    sealed_already = (folder / "tagmanifest-sha256.txt").exists()
    if not records:
        tally.counts["before the first record"] += 1
        assert not on_disk
        with pytest.raises((NotABundle, BundleBroken)):
            recover(folder)
        return
    if number % 20 == 0:
        done = captures.pmf("recover", folder, "--json")
        assert done.returncode == (captures.pmf("check", folder).returncode), done.stderr
        worked = json.loads(done.stdout)["recovered"]
    else:
        _, worked = recover(folder)
    assert worked is not sealed_already
    told = captures.judge(folder, coreutils=number % 10 == 0)
    rows = {row["path"]: row["sha256"] for row in told["artifacts"]}
    assert promised.items() <= rows.items()
    assert payload(folder) == on_disk, "recovering lost bytes that were on the disk"
    assert check_integrity(folder).verdict is not Integrity.ALTERED
    if not sealed_already:
        assert told["completeness"] == "incomplete"
    tally.in_flight += len(in_flight)
    tally.sealing += any(record["event"] == "end" for record in records) and not sealed_already
    tally.counts["sealed already" if sealed_already else "killed", "ended" if ended else "cut"] += 1


@pytest.mark.slow
def test_sigkill_at_200_random_instants_loses_at_most_the_artifact_in_flight(
    tmp_path: Path, patients: list[zoo.Sick], whole_bytes: int
) -> None:
    instants = random_instants(KILLS, SEED)
    tally = Tally()

    def one(worker: int) -> None:
        for number in range(worker, KILLS, AT_ONCE):
            evidence = tmp_path / str(number)
            kill_once(number, instants[number], whole_bytes, patients[worker], evidence, tally)
            shutil.rmtree(evidence, ignore_errors=True)  # kept when something failed

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(AT_ONCE)))
    for sick in patients:
        sick.assert_alive()
    print(dict(tally.counts), f"{tally.in_flight} with an artifact in flight, {tally.sealing} while sealing")
    # The instants must have met captures that were under way, or they have shown nothing.
    assert tally.counts["killed", "cut"] > KILLS * 2 / 3
    assert tally.in_flight > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "attempts"), [(signal.SIGTERM, 3, 24), (signal.SIGINT, 130, 8), (signal.SIGHUP, 3, 4)]
)
def test_signal_at_random_instants_seals_at_once_what_is_there(
    tmp_path: Path, patients: list[zoo.Sick], whole_bytes: int, signum: signal.Signals, code: int, attempts: int
) -> None:
    instants = random_instants(attempts, SEED + signum)
    codes: Counter[int] = Counter()

    def one(worker: int) -> None:
        for number in range(worker, attempts, AT_ONCE):
            evidence = tmp_path / str(number)
            process = start_capture(patients[worker].pid, evidence)
            strike(process, signum, instants[number], whole_bytes, evidence)
            began = time.monotonic()
            process.communicate(timeout=captures.TIMEOUT_S)
            # A second for a collector that ignores TERM, a second to set the target free, and a loaded machine.
            assert time.monotonic() - began < 20
            codes[process.returncode] += 1
            captures.assert_session_ends(process.pid)
            captures.assert_runs(patients[worker].pid)
            told = captures.judge(captures.only_bundle(evidence))
            assert process.returncode in (0, 3, code)
            if told["capture"]["ended_by"] == signum.name:
                assert process.returncode == code
                assert told["completeness"] == "incomplete"
                assert any(gap["reason"]["code"] == "interrupted" for gap in told["gaps"]) or told["collectors"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(AT_ONCE)))
    print(dict(codes))
    assert codes[code] > attempts / 2


def test_recover_command_finishes_a_killed_capture_and_then_has_nothing_to_do(
    tmp_path: Path, patients: list[zoo.Sick], whole_bytes: int
) -> None:
    process = start_capture(patients[0].pid, tmp_path)
    strike(process, signal.SIGKILL, Instant(0.4, 0.0), whole_bytes, tmp_path)
    process.communicate()
    captures.assert_session_ends(process.pid)
    folder = captures.only_bundle(tmp_path)
    for command in ("show", "check"):
        refused = captures.pmf(command, folder)
        assert refused.returncode == 4
        assert f"pmf recover {folder}" in refused.stderr.replace("\n", " ")
    first = captures.pmf("recover", folder)
    assert first.returncode == 3
    assert "capture was cut short (killed)" in first.stdout
    captures.judge(folder)
    second = captures.pmf("recover", folder)
    assert (second.returncode, second.stderr) == (3, "")
    assert "Already sealed" in second.stdout
    assert captures.pmf("check", folder).returncode == 3


def test_recover_of_a_running_capture_is_refused(tmp_path: Path, patients: list[zoo.Sick]) -> None:
    process = start_capture(patients[0].pid, tmp_path)
    try:
        (folder,) = captures.wait_for("the bundle", lambda: captures.bundles(tmp_path))
        captures.wait_for("its first record", lambda: (folder / "custody.jsonl").exists())
        refused = captures.pmf("recover", folder)
        # It may have come to its end meanwhile; then there is nothing left to refuse.
        assert (refused.returncode, "bundle-busy" in refused.stderr) == (4, True) or process.poll() is not None
    finally:
        process.communicate(timeout=captures.TIMEOUT_S)
    assert process.returncode in (0, 3)
    captures.judge(folder)
