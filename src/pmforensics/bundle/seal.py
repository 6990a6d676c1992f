"""
Seal a bundle: write the manifests and fix everything with one digest.

Works from the journal and the hashes in it, so that it takes no time that depends on the size of the evidence, and
is the same for a capture that ended well and for one that is finished later. The tag manifest is renamed into place
last: with it the bundle is sealed, without it it is not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pmforensics import __version__
from pmforensics.bundle.custody import read_custody, write_custody
from pmforensics.bundle.journal import Journal, Record, read_journal
from pmforensics.bundle.layout import (
    BAG_INFO,
    EVIDENCE,
    PAYLOAD_MANIFEST,
    RESERVE,
    SCHEMA,
    SEALED_FILES,
    SPOOL,
    TAG_MANIFEST,
)
from pmforensics.bundle.manifest import build_manifest, live_artifacts
from pmforensics.bundle.read import read_tag_file
from pmforensics.bundle.regular import open_regular
from pmforensics.bundle.write import sync_folder, write_tag_file
from pmforensics.errors import VolumeFull, VolumeUnusable
from pmforensics.model.capture import Json


@dataclass(frozen=True, slots=True)
class Seal:
    """A sealed bundle: the sha256 of its tag manifest, and the manifest that it covers."""

    folder: Path
    digest: str
    evidence: dict[str, Json]


def seal(folder: Path, journal: Journal, *, ended_by: str, seconds: float, clock: dict[str, Json]) -> Seal:
    """
    Seal the bundle whose journal is open here; closes the journal.

    ended_by   "done", "budget", a signal's name, or "killed"
    seconds    how long the capture took
    clock      the clocks at the end, {} when they are not known
    Errors: VolumeFull, VolumeUnusable (the folder is gone, or takes nothing any more).
    """
    later = f"What was saved is there: pmf recover {folder}"
    try:
        if not journal.is_in_place():
            raise VolumeUnusable(f"{folder} is gone: it was removed, or its volume unmounted", hint=later)
        return _seal(folder, journal, ended_by=ended_by, seconds=seconds, clock=clock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VolumeFull(f"{folder} could not be sealed: the volume is full", hint=f"Make room. {later}") from None
        raise VolumeUnusable(f"{folder} could not be sealed ({error.strerror})", hint=later) from None


def _seal(folder: Path, journal: Journal, *, ended_by: str, seconds: float, clock: dict[str, Json]) -> Seal:
    (folder / RESERVE).unlink(missing_ok=True)
    if (folder / SPOOL).exists():
        import shutil

        shutil.rmtree(folder / SPOOL, ignore_errors=True)  # whatever was worth keeping has been moved out
    _, digests, _ = read_custody(folder)
    journal.write(
        "end", ended_by=ended_by, seconds=round(seconds, 3), clock=clock, custody_head=digests[-1] if digests else None
    )
    journal.close()
    # A target with thousands of threads has tens of thousands of touches, and none of them is in the manifest.
    records, _ = read_journal(folder, without=frozenset({"touch"}))
    evidence = build_manifest(records)
    write_tag_file(folder / EVIDENCE, _text_bytes(json.dumps(evidence, indent=1, ensure_ascii=False)) + b"\n")
    write_tag_file(folder / SCHEMA, _schema())
    artifacts = list(live_artifacts(records).values())
    write_tag_file(
        folder / PAYLOAD_MANIFEST,
        "".join(f"{record['sha256']}  {record['path']}\n" for record in artifacts).encode(),
    )
    write_tag_file(folder / BAG_INFO, _bag_info(evidence, artifacts))
    return finish_seal(folder, evidence)


def finish_seal(folder: Path, evidence: dict[str, Json]) -> Seal:
    """The last step: the tag manifest, then the custody record. Safe to repeat after a kill in between."""
    if not (folder / TAG_MANIFEST).exists():
        lines = [f"{_sha256(folder / name)}  {name}\n" for name in SEALED_FILES]
        write_tag_file(folder / TAG_MANIFEST, "".join(lines).encode())
        sync_folder(folder)
    digest = seal_digest(folder)
    # One seal, one record: a tag manifest that was replaced since must not be vouched for by finishing it again.
    if not any(record.get("event") == "sealed" for record in read_custody(folder)[0]):
        write_custody(folder, "sealed", seal=digest)
    return Seal(folder, digest, evidence)


def seal_digest(folder: Path) -> str:
    """The sha256 of the tag manifest: the one value that fixes everything in the bundle. Errors: BundleBroken."""
    return hashlib.sha256(read_tag_file(folder, TAG_MANIFEST)).hexdigest()


def _bag_info(evidence: dict[str, Json], artifacts: list[Record]) -> bytes:
    capture = evidence["capture"]
    assert isinstance(capture, dict)
    stored_bytes = sum(int(record["stored_bytes"]) for record in artifacts)
    lines = {
        "Bag-Software-Agent": f"pmf {__version__}",
        "Bagging-Date": f"{datetime.fromtimestamp(time.time(), UTC):%Y-%m-%d}",
        "External-Identifier": str(capture["id"]),
        "External-Description": f"Evidence of service {capture['service']}: {evidence['completeness']}",
        "Payload-Oxum": f"{stored_bytes}.{len(artifacts)}",
    }
    if capture["incident"]:
        lines["Bag-Group-Identifier"] = str(capture["incident"])
    # A line break in a value would start a new field.
    return _text_bytes("".join(f"{name}: {' '.join(value.split())}\n" for name, value in lines.items()))


def _text_bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate (a name that was no UTF-8) as \\udcXX, which JSON reads back as it was."""
    return text.encode("utf-8", "backslashreplace")


def _schema() -> bytes:
    return (Path(__file__).parent / SCHEMA).read_bytes()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
