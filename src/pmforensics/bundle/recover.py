"""
Finish a bundle whose capture was killed.

Everything that the journal names is checked against its bytes; the artifact that was in flight is kept as far as it
got; what was planned and never reached becomes a gap. Then the bundle is sealed like any other.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pmforensics.bundle.custody import write_custody
from pmforensics.bundle.journal import Journal, Record, read_journal
from pmforensics.bundle.layout import (
    BAGIT,
    BAGIT_TEXT,
    DATA,
    JOURNAL,
    PARTIAL_SUFFIX,
    SCHEMA,
    SPOOL,
    TAG_MANIFEST,
    is_payload_path,
    safe_component,
)
from pmforensics.bundle.manifest import live_artifacts
from pmforensics.bundle.read import read_bundle, require_folder
from pmforensics.bundle.regular import open_regular
from pmforensics.bundle.seal import Seal, finish_seal, seal
from pmforensics.bundle.write import WRITERS_GO_WITHIN_S, is_being_written, write_tag_file
from pmforensics.errors import BundleBroken, BundleBusy, VolumeUnusable
from pmforensics.model.capture import Json, Outcome, Reason

KILLED = Reason("capture-killed", "the capture was killed before this was finished; it may be cut")
NEVER = Reason("capture-killed", "the capture was killed before its turn")
TORN = Reason("journal-torn", "lines of the journal could not be read; what they named is kept as unfinished")
LOST = Reason("lost", "the journal names it, but the file is missing or holds other bytes")
RECOVERED = "99-recovered"


def recover(folder: Path, progress: Callable[[str], None] = lambda _: None) -> tuple[Seal, bool]:
    """
    Seal an unsealed bundle; returns the seal and whether anything had to be done.

    Nothing is deleted: unfinished files are kept and marked. Safe to repeat, and safe to kill.
    Errors: NotABundle, BundleBusy (the capture still runs, or a tool of it still writes), BundleBroken (records or
    folders that pmf does not make), VolumeUnusable, VolumeFull.
    """
    require_folder(folder)
    try:
        journal = Journal(folder, create=False)
    except OSError as error:
        raise VolumeUnusable(
            f"{folder} cannot be written ({error.strerror})",
            hint="Run it as the user who captured, on a writable volume.",
        ) from None
    try:
        if (folder / TAG_MANIFEST).exists():
            return finish_seal(folder, read_bundle(folder).evidence), False
        _refuse_links(folder)
        return _recover(folder, journal, progress), True
    except (KeyError, TypeError, ValueError, AttributeError):
        # A journal is JSON that pmf wrote; where it is not, it is somebody else's, and nothing in it can be relied on.
        raise BundleBroken(f"{folder / JOURNAL} holds records that pmf does not write") from None
    finally:
        journal.close()


def _recover(folder: Path, journal: Journal, progress: Callable[[str], None]) -> Seal:
    torn = journal.end_torn_line()
    records, unread = read_journal(folder)
    if (torn or unread) and not any(record.get("wanted") == JOURNAL for record in records):
        torn_gap: Record = {"event": "gap", **_gap(JOURNAL, "capture", Outcome.PARTIAL, TORN)}
        journal.write(**torn_gap)
    if _digest(folder / BAGIT)[0] != hashlib.sha256(BAGIT_TEXT.encode()).hexdigest():
        write_tag_file(folder / BAGIT, BAGIT_TEXT.encode())  # written before the journal, and not synced
    if not any(record["event"] == "recover" for record in records):
        write_custody(folder, "recovering")
    journal.write("recover")
    for record in _missing(folder, records, progress):
        journal.write(**record)
    records, _ = read_journal(folder)
    opening = next((record for record in records if record["event"] == "open"), records[0])
    worked_s = _last_sign(records) - int(opening.get("mono_ns", 0)) / 1e9
    return seal(folder, journal, ended_by="killed", seconds=max(worked_s, 0.0), clock={})


def _refuse_links(folder: Path) -> None:
    """A link where a folder belongs would lead what recovery moves and writes out of the bundle."""
    for top in (DATA, SPOOL, SCHEMA.split("/", maxsplit=1)[0]):
        if (folder / top).is_symlink():
            raise BundleBroken(f"{folder / top} is a link; pmf makes none")
        for parent, folders, _ in os.walk(folder / top):
            for name in folders:
                if (Path(parent) / name).is_symlink():
                    raise BundleBroken(f"{Path(parent) / name} is a link; pmf makes none")


def _last_sign(records: list[Record]) -> float:
    before = [record for record in records if record["event"] not in ("recover", "end")]
    cut = next((n for n, record in enumerate(records) if record["event"] == "recover"), len(before))
    return max((int(record.get("mono_ns", 0)) for record in records[:cut]), default=0) / 1e9


def _missing(folder: Path, records: list[Record], progress: Callable[[str], None]) -> Iterator[Record]:
    """The records that the killed capture would still have had to write."""
    known = live_artifacts(records)
    begun = {record["path"]: record for record in records if record["event"] == "begin"}
    for path, record in list(known.items()):
        progress(path)
        if not _is_evidence_path(path) or _digest(folder / path)[0] != record["sha256"]:
            # What the disk holds under that name, if anything, is found below like any other unfinished file.
            del known[path]
            yield {"event": "lost", "path": path}
            yield {"event": "gap", **_gap(path, record["collector"], Outcome.FAILED, LOST)}
    yield from _unfinished(folder, known, begun, progress)
    ended = {record["name"] for record in records if record["event"] == "collector-end"}
    already = {record["wanted"] for record in records if record["event"] == "gap"}
    opening = next((record for record in records if record["event"] == "open"), {})
    for name in opening.get("plan", []):
        if name not in ended and name not in already:
            yield {"event": "gap", **_gap(name, name, Outcome.LATE, NEVER)}


def _unfinished(
    folder: Path, known: dict[str, Record], begun: dict[str, Record], progress: Callable[[str], None]
) -> Iterator[Record]:
    for place, root in ((folder / DATA, folder / DATA), (folder / SPOOL, folder / SPOOL)):
        for parent, _, names in os.walk(root):
            for name in sorted(names):
                source = Path(parent) / name
                if not stat.S_ISREG(source.lstat().st_mode):
                    continue
                inside = str(source.relative_to(folder))
                if inside in known:
                    continue
                progress(inside)
                if place.name == DATA:
                    final = inside.removesuffix(PARTIAL_SUFFIX)
                    if not _is_evidence_path(final):
                        final = f"{DATA}/{RECOVERED}/{safe_component(name, 'file')}"
                        (folder / final).parent.mkdir(mode=0o700, exist_ok=True)
                else:
                    collector = safe_component(source.relative_to(root).parts[0], "collector")
                    final = f"{DATA}/{RECOVERED}/{collector}/{safe_component(name, 'file')}"
                    (folder / final).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                final = _unused(folder, final, source)
                _make_ours(source)
                os.rename(source, folder / final)
                digest, size = _digest(folder / final)
                was = begun.get(final) or begun.get(final.removesuffix(".zst")) or {}
                yield {
                    "event": "artifact",
                    "path": final,
                    "collector": final.split("/")[1].partition("-")[2],
                    "outcome": Outcome.PARTIAL.value,
                    "reason": KILLED.json(),
                    "source": was.get("source", "left behind by the capture"),
                    "media_type": was.get("media_type", "application/octet-stream"),
                    "bytes": None if final.endswith(".zst") else size,
                    "stored_bytes": size,
                    "sha256": digest,
                    "encoding": "zstd" if final.endswith(".zst") else None,
                    "content_sha256": None,
                    "facts": {},
                    "pause": None,
                    "seconds": None,
                }


def _unused(folder: Path, final: str, source: Path) -> str:
    """`final`, or with a number behind it where another file has that name: nothing is overwritten."""
    path, number = final, 1
    while folder / path != source and os.path.lexists(folder / path):
        number += 1
        path = f"{final}-{number}"
    return path


def _is_evidence_path(path: str) -> bool:
    """data/NN-collector/... in plain characters."""
    return path.startswith(f"{DATA}/") and path.count("/") > 1 and is_payload_path(path)


def _make_ours(path: Path) -> None:
    """Nobody else may change the file from here on."""
    fd = open_regular(path)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o600)
        if is_being_written(fd, WRITERS_GO_WITHIN_S):
            raise BundleBusy(
                f"a process is still writing {path}",
                hint="Wait for it to end, then try again; fuser tells which it is.",
            )
    finally:
        os.close(fd)


def _gap(wanted: str, collector: str, outcome: Outcome, reason: Reason) -> dict[str, Json]:
    return {
        "collector": collector,
        "wanted": wanted,
        "outcome": outcome.value,
        "reason": reason.json(),
        "question": "",
    }


def _digest(path: Path) -> tuple[str, int]:
    """sha256 and size of a regular file; ("", 0) for anything else."""
    try:
        fd = open_regular(path)
    except OSError:
        return "", 0
    digest = hashlib.sha256()
    with os.fdopen(fd, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest(), file.tell()
