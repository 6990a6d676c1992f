"""Every kind of alteration is found, and nothing that was only recorded as missing passes for altered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmforensics.bundle.custody import write_custody
from pmforensics.errors import AccessDenied, NotABundle, NotSealed
from pmforensics.model.capture import Artifact
from pmforensics.verify.integrity import Integrity, IntegrityReport, check_integrity
from tests import captures
from tests.bundle import synthetic

PAYLOAD = "data/01-first/net/tcp"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle; never written to."""
    return synthetic.bundle(tmp_path_factory.mktemp("sealed")).folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be altered."""
    copy = tmp_path / "bundle"
    shutil.copytree(sealed, copy)
    return copy


def files_of(folder: Path) -> list[str]:
    """Every file of a bundle."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def names_of_files() -> list[str]:
    """The same for parametrizing, before there is a bundle: kept true by the first test."""
    return [
        "bag-info.txt", "bagit.txt", "custody.jsonl", "data/01-first/net/tcp", "data/01-first/status",
        "data/02-second/chunks.bin", "data/02-second/empty", "evidence.json", "journal.jsonl", "manifest-sha256.txt",
        "schema/evidence-1.schema.json", "tagmanifest-sha256.txt",
    ]  # fmt: skip


def altered(folder: Path) -> IntegrityReport:
    """The report on a bundle that must be found altered, with a reason in words."""
    report = check_integrity(folder)
    assert report.verdict is Integrity.ALTERED
    assert all(report.alterations)
    return report


def test_the_files_below_are_all_files_of_a_bundle(sealed: Path) -> None:
    assert files_of(sealed) == names_of_files()


# ---- the verdicts


def test_untouched_bundle_without_gaps_is_intact(sealed: Path) -> None:
    report = check_integrity(sealed)
    assert (report.verdict, report.alterations, report.gaps) == (Integrity.INTACT, (), 0)
    assert (report.files, report.bytes) == (4, 15 + 1700 + 2000)
    assert report.seal == captures.sha256(sealed / "tagmanifest-sha256.txt")


def test_recorded_gap_is_incomplete_not_altered(tmp_path: Path) -> None:
    report = check_integrity(synthetic.bundle(tmp_path, synthetic.with_gap()).folder)
    assert (report.verdict, report.gaps) == (Integrity.INCOMPLETE, 1)


def test_capture_cut_short_without_a_gap_is_incomplete(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    for item in synthetic.whole():
        made.add(item)
    assert check_integrity(synthetic.finish(made, "SIGTERM").folder).verdict is Integrity.INCOMPLETE


def test_copy_and_move_of_a_bundle_are_intact(sealed: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", sealed, tmp_path / "copy"], check=True)  # other times, other modes
    subprocess.run(["tar", "-C", sealed.parent, "-cf", tmp_path / "bundle.tar", sealed.name], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "bundle.tar"], check=True)
    for copy in ("copy", sealed.name):
        assert check_integrity(tmp_path / copy).verdict is Integrity.INTACT


def test_custody_may_grow_after_the_seal(folder: Path) -> None:
    write_custody(folder, "copied", to="evidence-store")
    write_custody(folder, "read")
    assert check_integrity(folder).verdict is Integrity.INTACT


def test_progress_ends_at_the_whole(sealed: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_integrity(sealed, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.bytes, report.bytes)
    assert seen == sorted(seen)


# ---- one thing changed


@pytest.mark.parametrize("name", [name for name in names_of_files() if name != "data/02-second/empty"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_changed_bit_in_any_file_is_found(folder: Path, name: str, where: str) -> None:
    content = bytearray((folder / name).read_bytes())
    at = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[where]
    content[at] ^= 1
    (folder / name).write_bytes(content)
    altered(folder)


@pytest.mark.parametrize("name", names_of_files())
def test_added_byte_in_any_file_is_found(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    altered(folder)


@pytest.mark.parametrize("name", names_of_files())
def test_removed_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    if name == "tagmanifest-sha256.txt":
        with pytest.raises(NotSealed):  # then there is no seal to hold anything against
            check_integrity(folder)
    else:
        altered(folder)


@pytest.mark.parametrize("name", [name for name in names_of_files() if name != "tagmanifest-sha256.txt"])
def test_renamed_file_is_found(folder: Path, name: str) -> None:
    (folder / name).rename(folder / f"{name}2")
    altered(folder)


@pytest.mark.parametrize(
    "name",
    ["data/stranger", "data/01-first/stranger", "data/03-new/x", "stranger", ".hidden", "schema/x", "x/y", ".spool/a"],
)
def test_added_file_is_found(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("I was not there")
    assert any("added" in sentence for sentence in altered(folder).alterations)


@pytest.mark.parametrize("name", names_of_files())
def test_link_in_place_of_a_file_is_found_though_it_leads_to_the_same_bytes(
    folder: Path, sealed: Path, name: str
) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(sealed / name)
    altered(folder)


@pytest.mark.parametrize("name", ["data", "data/01-first", "data/01-first/net", "schema"])
def test_link_in_place_of_a_folder_is_found_though_it_leads_to_the_same_bytes(
    folder: Path, sealed: Path, name: str
) -> None:
    shutil.rmtree(folder / name)
    (folder / name).symlink_to(sealed / name)
    altered(folder)


@pytest.mark.parametrize("name", names_of_files())
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_fifo_or_folder_in_place_of_a_file_is_found_and_nothing_waits(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    (os.mkfifo if kind == "fifo" else os.mkdir)(folder / name)
    altered(folder)


@pytest.mark.parametrize("kind", ["fifo", "link", "socket"])
def test_added_thing_that_is_no_file_is_found(folder: Path, kind: str) -> None:
    import socket

    path = folder / "data" / "01-first" / "thing"
    listener = socket.socket(socket.AF_UNIX)
    {
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: listener.bind(str(path)),
    }[kind]()
    listener.close()
    assert any("not a regular file" in sentence for sentence in altered(folder).alterations)


# ---- the lists


def edit_list(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of a manifest."""
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(change(lines)))


LIST_CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "line-twice": lambda lines: [*lines, lines[0]],
    "line-dropped": lambda lines: lines[1:],
    "order": lambda lines: lines[::-1],
    "path-up": lambda lines: [*lines, f"{'0' * 64}  data/../../etc/passwd\n"],
    "path-absolute": lambda lines: [*lines, f"{'0' * 64}  /etc/passwd\n"],
    "path-dot": lambda lines: [*lines, f"{'0' * 64}  ./data/01-first/status\n"],
    "path-tilde": lambda lines: [*lines, f"{'0' * 64}  ~root/x\n"],
    "upper-case": lambda lines: [lines[0].upper(), *lines[1:]],
    "one-blank": lambda lines: [lines[0].replace("  ", " "), *lines[1:]],
    "binary-mark": lambda lines: [lines[0].replace("  ", " *"), *lines[1:]],
    "short-digest": lambda lines: [lines[0][1:], *lines[1:]],
    "carriage-return": lambda lines: [line.replace("\n", "\r\n") for line in lines],
    "blank-line": lambda lines: [*lines, "\n"],
    "nothing": lambda _: [],
    "nul": lambda lines: [*lines, "\0\n"],
    "escapes": lambda lines: [*lines, "\x1b[31m\n"],
}


@pytest.mark.parametrize("name", ["manifest-sha256.txt", "tagmanifest-sha256.txt"])
@pytest.mark.parametrize("change", LIST_CHANGES.values(), ids=LIST_CHANGES)
def test_changed_list_is_found(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    edit_list(folder, name, change)
    altered(folder)


def reseal(folder: Path) -> None:
    """Makes the tag manifest true again for the tag files as they are."""
    edit_list(
        folder,
        "tagmanifest-sha256.txt",
        lambda lines: [f"{captures.sha256(folder / line.split()[1])}  {line.split()[1]}\n" for line in lines],
    )


def forge_custody(folder: Path) -> None:
    """Writes the custody log anew, as if the present seal had been the first: no key is needed for that."""
    (folder / "custody.jsonl").unlink()
    head = write_custody(folder, "opened")
    evidence = captures.evidence_of(folder)
    evidence["custody_head"] = head
    (folder / "evidence.json").write_text(json.dumps(evidence))
    reseal(folder)
    write_custody(folder, "sealed", seal=captures.sha256(folder / "tagmanifest-sha256.txt"))


def forge_payload(folder: Path) -> None:
    """Changes evidence and every record of it but the custody log."""
    (folder / PAYLOAD).write_bytes(b"forged")
    digest = hashlib.sha256(b"forged").hexdigest()
    edit_list(
        folder,
        "manifest-sha256.txt",
        lambda lines: [f"{digest}  {PAYLOAD}\n" if line.endswith(f"{PAYLOAD}\n") else line for line in lines],
    )
    evidence = captures.evidence_of(folder)
    row = next(row for row in evidence["artifacts"] if row["path"] == PAYLOAD)
    row.update(sha256=digest, bytes=6, stored_bytes=6)
    (folder / "evidence.json").write_text(json.dumps(evidence))
    info = folder / "bag-info.txt"
    info.write_text(info.read_text().replace(f"Payload-Oxum: {15 + 1700 + 2000}.", f"Payload-Oxum: {15 + 6 + 2000}."))
    reseal(folder)


def test_manifest_edited_and_rehashed_is_betrayed_by_the_custody_log(folder: Path) -> None:
    evidence = captures.evidence_of(folder)
    evidence["target"]["argv"] = ["innocent"]
    (folder / "evidence.json").write_text(json.dumps(evidence))
    reseal(folder)
    captures.judge(folder)  # no judge without the log of custody can tell
    assert any("custody" in sentence for sentence in altered(folder).alterations)


def test_gap_that_was_taken_out_and_rehashed_is_betrayed_by_the_custody_log(tmp_path: Path) -> None:
    folder = synthetic.bundle(tmp_path, synthetic.with_gap()).folder
    evidence = captures.evidence_of(folder)
    evidence.update(gaps=[], completeness="complete")
    (folder / "evidence.json").write_text(json.dumps(evidence))
    reseal(folder)
    altered(folder)


def test_payload_forged_consistently_is_betrayed_by_the_custody_log(folder: Path) -> None:
    forge_payload(folder)
    captures.judge(folder)
    assert altered(folder).alterations == ("custody.jsonl does not record this seal",)


def test_everything_forged_consistently_is_found_only_with_the_seal_that_the_capture_printed(folder: Path) -> None:
    printed = check_integrity(folder).seal
    forge_payload(folder)
    forge_custody(folder)
    captures.judge(folder)
    # Without a key or an outside anchor no check of the bundle alone can find this: hence the printed digest.
    assert check_integrity(folder).verdict is Integrity.INTACT
    report = check_integrity(folder, expected_seal=printed)
    assert report.verdict is Integrity.ALTERED
    assert printed in " ".join(report.alterations)


def test_expected_seal_is_taken_with_or_without_prefix_and_in_any_case(sealed: Path) -> None:
    digest = check_integrity(sealed).seal
    for expected in (digest, f"sha256:{digest}", digest.upper()):
        assert check_integrity(sealed, expected_seal=expected).verdict is Integrity.INTACT
    for other in ("0" * 64, digest[:-1], "", "sha256:"):
        assert check_integrity(sealed, expected_seal=other).verdict is Integrity.ALTERED


@pytest.mark.parametrize(
    "change", ["drop-first", "drop-last", "edit-first", "edit-last", "drop-all", "swap", "prepend"]
)
def test_changed_custody_log_is_found(folder: Path, change: str) -> None:
    write_custody(folder, "copied")
    path = folder / "custody.jsonl"
    first, second, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(
            {
                "drop-first": [second, last],
                "drop-last": [first],
                "edit-first": [first.replace(b"opened", b"OPENED"), second, last],
                "edit-last": [first, second.replace(b'"seal": "', b'"seal": "0')],
                "drop-all": [],
                "swap": [second, first, last],
                "prepend": [last, first, second, last],
            }[change]
        )
    )
    altered(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"artifacts": []},
        {"artifacts": [{"path": ["x"], "sha256": {}}, 7, None]},
        {"artifacts": "none"},
        {"custody_head": "0" * 64},
        {"custody_head": ["x"]},
        {"gaps": 7},
        {"completeness": 1},
    ],
    ids=str,
)
def test_manifest_of_any_shape_is_a_finding_and_no_crash(folder: Path, change: dict[str, object]) -> None:
    evidence = captures.evidence_of(folder)
    evidence.update(change)
    (folder / "evidence.json").write_text(json.dumps(evidence))
    altered(folder)
    reseal(folder)
    altered(folder)


@pytest.mark.parametrize("oxum", ["0.0", "9" * 5000 + ".1", "-1.4", "3715.4\nPayload-Oxum: 0.0", "x", ""])
def test_wrong_payload_oxum_is_found(folder: Path, oxum: str) -> None:
    (folder / "bag-info.txt").write_text(f"Payload-Oxum: {oxum}\n")
    reseal(folder)
    altered(folder)


# ---- bundles made to hurt


def bounded(folder: Path, memory_bytes: int = 2 << 30) -> int:
    """Finds it altered in a process of its own that may not use more memory than this; how many sentences it said."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({memory_bytes}, {memory_bytes}))\n"
        "from pmforensics.verify.integrity import Integrity, check_integrity\n"
        "report = check_integrity(Path(sys.argv[1]))\n"
        "assert report.verdict is Integrity.ALTERED\n"
        "print(len(report.alterations))\n"
    )
    ran = subprocess.run([captures.sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert 0 < int(ran.stdout) <= 1000
    return int(ran.stdout)


@pytest.mark.parametrize("name", ["manifest-sha256.txt", "tagmanifest-sha256.txt"])
def test_list_of_a_million_lines_is_read_in_bounded_memory_and_time(folder: Path, name: str) -> None:
    with (folder / name).open("a") as file:
        file.writelines(f"{'0' * 64}  data/01-first/{number}\n" for number in range(1_000_000))
    began = time.monotonic()
    assert bounded(folder) == 1000
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("name", ["evidence.json", "custody.jsonl", "journal.jsonl", "manifest-sha256.txt"])
@pytest.mark.parametrize("content", [b"[" * 3_000_000, b'{"a":' * 1_000_000, b"\0" * 10_000_000, b"9" * 1_000_000])
def test_file_of_nonsense_is_a_finding_in_bounded_memory(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    bounded(folder)


@pytest.mark.parametrize(
    "name", ["evidence.json", "custody.jsonl", "manifest-sha256.txt", "tagmanifest-sha256.txt", "bag-info.txt"]
)
def test_sparse_tag_file_of_a_terabyte_is_a_finding_at_once(folder: Path, name: str) -> None:
    # bag-info.txt is hashed to its end before it is parsed: a gigabyte shows that it is not held in memory.
    size = 1 << 30 if name == "bag-info.txt" else 1 << 40
    if name in ("evidence.json", "custody.jsonl", "manifest-sha256.txt"):
        edit_list(folder, "tagmanifest-sha256.txt", lambda lines: [line for line in lines if name not in line])
    with (folder / name).open("wb") as file:
        file.truncate(size)
    bounded(folder)


def test_folder_nested_as_deep_as_paths_go_is_a_finding(folder: Path) -> None:
    place = folder / "data"
    for _ in range(150):
        place /= "d" * 20
        place.mkdir()
    (place / "x").touch()
    altered(folder)


# ---- what cannot be read is not altered


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize("name", ["", "data", "data/01-first", "data/01-first/status", "evidence.json", "schema"])
def test_what_this_user_may_not_read_is_an_error_not_an_alteration(folder: Path, name: str) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 12345, 12345)
    (folder / name).chmod(0)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)  # the test's own folder
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            try:
                check_integrity(folder)
            except AccessDenied as error:
                status = 0 if "may not be read" in error.message and error.hint else 3
            except NotABundle:
                status = 4
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_artifact_larger_than_memory_is_hashed_in_pieces(tmp_path: Path) -> None:
    made = synthetic.writer(tmp_path)
    spool = made.spool_root / "big"
    with spool.open("wb") as file:
        file.truncate(600 << 20)
    for item in synthetic.collector("first", Artifact("big", spool, "x", bulk=True)):
        made.add(item)
    folder = synthetic.finish(made).folder
    (folder / "data" / "01-first" / "big").chmod(0o600)
    with (folder / "data" / "01-first" / "big").open("r+b") as file:
        file.seek(300 << 20)
        file.write(b"x")
    bounded(folder, 500 << 20)
