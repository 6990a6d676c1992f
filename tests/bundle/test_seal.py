"""A sealed bundle, as judges see it that know nothing of pmf."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import bagit
import pytest

from pmforensics.bundle.recover import recover
from pmforensics.bundle.seal import finish_seal, seal
from pmforensics.errors import VolumeUnusable
from pmforensics.model.capture import Fact, Gap, Outcome, Reason
from tests import captures
from tests.bundle import synthetic


@pytest.mark.parametrize("items", [synthetic.whole, synthetic.with_gap, list], ids=["whole", "with-gap", "nothing"])
def test_bundle_satisfies_bagit_sha256sum_and_its_own_schema(tmp_path: Path, items: object) -> None:
    sealed = synthetic.bundle(tmp_path, items())  # type: ignore[operator]
    evidence = captures.judge(sealed.folder)
    assert evidence == json.loads(json.dumps(sealed.evidence))


def test_bagit_notices_what_sha256sum_notices(tmp_path: Path) -> None:
    # Without this the judges above could be asleep.
    folder = synthetic.bundle(tmp_path).folder
    (folder / "data" / "01-first" / "status").write_bytes(b"Name: sneaky!!\n")
    with pytest.raises(bagit.BagValidationError):
        bagit.Bag(str(folder)).validate()
    with pytest.raises(AssertionError):
        captures.sha256sum(folder, "manifest-sha256.txt")


def test_seal_is_the_sha256_of_the_tag_manifest(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    digest = subprocess.run(
        ["sha256sum", "tagmanifest-sha256.txt"], cwd=sealed.folder, capture_output=True, text=True, check=True
    )
    assert digest.stdout.split()[0] == sealed.digest


def test_tag_manifest_covers_every_tag_file_but_custody_and_itself(tmp_path: Path) -> None:
    folder = synthetic.bundle(tmp_path).folder
    covered = {line.split("  ")[1] for line in (folder / "tagmanifest-sha256.txt").read_text().splitlines()}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    outside_data = {name for name in files if not name.startswith("data/")}
    assert outside_data - covered == {"custody.jsonl", "tagmanifest-sha256.txt"}


def test_every_folder_is_0700_and_every_file_0600_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = synthetic.bundle(tmp_path / "evidence").folder
    finally:
        os.umask(before)
    paths = [folder, *folder.rglob("*")]
    assert len(paths) > 10
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_gap_makes_it_incomplete_and_so_does_an_artifact_that_is_not_whole(tmp_path: Path) -> None:
    assert synthetic.bundle(tmp_path / "a").evidence["completeness"] == "complete"
    assert synthetic.bundle(tmp_path / "b", synthetic.with_gap()).evidence["completeness"] == "incomplete"
    cut = synthetic.artifact("core", b"half", outcome=Outcome.PARTIAL, reason=Reason("cut", "it ends early"))
    sealed = synthetic.bundle(tmp_path / "c", synthetic.collector("first", cut))
    assert sealed.evidence["completeness"] == "incomplete"
    (gap,) = captures.evidence_of(sealed.folder)["gaps"]
    assert (gap["wanted"], gap["outcome"], gap["reason"]["code"]) == ("data/01-first/core", "partial", "cut")


@pytest.mark.parametrize(
    "outcome", [outcome for outcome in Outcome if outcome not in (Outcome.COLLECTED, Outcome.EMPTY)]
)
def test_no_outcome_but_collected_and_empty_passes_for_complete(tmp_path: Path, outcome: Outcome) -> None:
    sealed = synthetic.bundle(tmp_path, synthetic.collector("first", synthetic.artifact(outcome=outcome)))
    assert sealed.evidence["completeness"] == "incomplete"
    captures.judge(sealed.folder)


@pytest.mark.parametrize("ended_by", ["SIGTERM", "SIGINT", "killed"])
def test_capture_that_was_cut_short_is_never_complete(tmp_path: Path, ended_by: str) -> None:
    made = synthetic.writer(tmp_path)
    for item in synthetic.whole():
        made.add(item)
    assert synthetic.finish(made, ended_by).evidence["completeness"] == "incomplete"


def test_line_breaks_and_bytes_that_are_no_utf8_cannot_forge_a_field(tmp_path: Path) -> None:
    incident = "INC-1\nPayload-Oxum: 0.0\r\nBag-Size: 9 \udcff"
    sealed = synthetic.bundle(tmp_path, incident=incident, service="a\nb\udcfe")
    evidence = captures.judge(sealed.folder)
    assert evidence["capture"]["incident"] == incident
    info = bagit.Bag(str(sealed.folder)).info
    assert info["Payload-Oxum"] != "0.0"
    assert set(info) == {
        "Bag-Software-Agent", "Bagging-Date", "External-Identifier", "External-Description", "Payload-Oxum",
        "Bag-Group-Identifier",
    }  # fmt: skip


HOSTILE_NAMES = [
    "../../../etc", "/etc/passwd", "..", ".", "", "-rf", ".hidden", "a/b\\c", "line\nbreak", "\x1b[31mred\x07",
    "x" * 5000, "ünïcødé ☃", "\udcff\udcfe", "a  b\tc", "%0a%2f", "con:*?\"<>|", "$(reboot)`id`",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=[ascii(name)[:20] for name in HOSTILE_NAMES])
def test_hostile_service_and_host_names_stay_inside_the_evidence_folder(tmp_path: Path, name: str) -> None:
    evidence = tmp_path / "evidence"
    sealed = synthetic.bundle(evidence, service=name, host=name)
    assert sealed.folder.parent.parent == evidence
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", sealed.folder.parent.name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}-20261120T131500Z-1f3a9c02", sealed.folder.name)
    assert [path.name for path in tmp_path.iterdir()] == ["evidence"]
    captures.judge(sealed.folder)
    assert captures.evidence_of(sealed.folder)["capture"]["service"] == name


@pytest.mark.needs("openssl")
def test_custody_chain_holds_when_recomputed_in_the_shell(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    # prev of line n is the sha256 of line n-1 with its newline; the seal names the last line that it saw.
    script = r"""
    set -eu
    expected=0000000000000000000000000000000000000000000000000000000000000000
    count=0
    while IFS= read -r line; do
        said=$(printf '%s\n' "$line" | sed -n 's/.*"prev": "\([0-9a-f]*\)".*/\1/p')
        test "$said" = "$expected"
        before=$expected
        expected=$(printf '%s\n' "$line" | openssl dgst -sha256 -r | cut -d' ' -f1)
        count=$((count + 1))
    done < custody.jsonl
    echo "$count $before"
    """
    ran = subprocess.run(["sh", "-c", script], cwd=sealed.folder, capture_output=True, text=True, check=True)
    count, head = ran.stdout.split()
    assert int(count) == 2
    assert head == sealed.evidence["custody_head"]


def test_custody_says_who_opened_and_who_sealed(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    opened, closed = [json.loads(line) for line in (sealed.folder / "custody.jsonl").read_text().splitlines()]
    assert (opened["event"], closed["event"]) == ("opened", "sealed")
    assert closed["seal"] == sealed.digest
    assert opened["actor"]["uid"] == os.getuid()
    assert opened["actor"]["host"] == os.uname().nodename


def test_finishing_a_seal_twice_changes_nothing(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    before = {path: path.read_bytes() for path in sealed.folder.rglob("*") if path.is_file()}
    assert finish_seal(sealed.folder, sealed.evidence) == sealed
    assert {path: path.read_bytes() for path in sealed.folder.rglob("*") if path.is_file()} == before


def test_seal_that_was_killed_before_its_custody_record_gets_it_once(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    custody = sealed.folder / "custody.jsonl"
    custody.write_bytes(custody.read_bytes().splitlines(keepends=True)[0])
    assert recover(sealed.folder)[0].digest == sealed.digest
    assert [json.loads(line)["event"] for line in custody.read_text().splitlines()] == ["opened", "sealed"]


def test_replaced_tag_manifest_is_not_vouched_for_by_recovering(tmp_path: Path) -> None:
    sealed = synthetic.bundle(tmp_path)
    manifest = sealed.folder / "tagmanifest-sha256.txt"
    (sealed.folder / "bag-info.txt").write_text("Payload-Oxum: 1.1\n")
    other = hashlib.sha256((sealed.folder / "bag-info.txt").read_bytes()).hexdigest()
    manifest.write_text(re.sub(r"[0-9a-f]{64}(?=  bag-info)", other, manifest.read_text()))
    recover(sealed.folder)
    events = [json.loads(line) for line in (sealed.folder / "custody.jsonl").read_text().splitlines()]
    assert [event.get("seal") for event in events] == [None, sealed.digest]


def test_order_and_numbers_of_folders_are_the_order_of_collection(tmp_path: Path) -> None:
    names = [f"step_{letter}" for letter in "dcba"]
    items = [item for name in names for item in synthetic.collector(name, synthetic.artifact())]
    sealed = synthetic.bundle(tmp_path, items)
    assert sorted(path.name for path in (sealed.folder / "data").iterdir()) == [
        f"{number:02d}-{name}" for number, name in enumerate(names, 1)
    ]


def test_facts_reach_the_manifest_in_their_places(tmp_path: Path) -> None:
    evidence = synthetic.bundle(tmp_path, [*synthetic.whole(), Fact("compression", {"chosen": "none"})]).evidence
    assert evidence["target"]["end"] == {"alive": True, "was_stopped": False}  # type: ignore[index, call-overload]
    assert evidence["volume"]["compression"] == {"chosen": "none"}  # type: ignore[index, call-overload]


def test_collector_row_carries_the_longest_pause(tmp_path: Path) -> None:
    from pmforensics.model.capture import Pause, PauseBasis

    short = synthetic.artifact("a", pause=Pause(0.1, PauseBasis.MEASURED))
    long = synthetic.artifact("b", pause=Pause(0.7, PauseBasis.AT_MOST))
    evidence = captures.judge(synthetic.bundle(tmp_path, synthetic.collector("first", short, long)).folder)
    assert evidence["collectors"][0]["pause"] == {"seconds": 0.7, "basis": "at-most"}


def test_seal_of_a_removed_folder_says_so_and_makes_no_new_one(tmp_path: Path) -> None:
    import shutil

    made = synthetic.writer(tmp_path)
    made.add(Gap("x", Outcome.MISSING, Reason("not-there", "gone")))
    shutil.rmtree(made.folder)
    with pytest.raises(VolumeUnusable, match="gone"):
        seal(made.folder, made.journal, ended_by="done", seconds=1.0, clock={})
    assert not made.folder.exists()


def test_seal_on_a_volume_that_takes_nothing_is_a_volume_error_not_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = synthetic.writer(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        from pmforensics.errors import VolumeFull

        with pytest.raises(VolumeFull) as caught:
            seal(made.folder, made.journal, ended_by="done", seconds=1.0, clock={})
    assert "pmf recover" in caught.value.hint
    sealed, worked = recover(made.folder)
    assert worked
    captures.judge(sealed.folder)
