"""
Is this what was sealed?

Three verdicts: intact; incomplete as recorded (nothing was changed, and the bundle itself says what is missing);
altered. The bytes on the disk are held against the manifests, the manifests against the seal, the seal against the
custody log, and all of them against the digest that was printed at the capture, when the reader has it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pmforensics.bundle.custody import read_custody
from pmforensics.bundle.layout import (
    BAG_INFO,
    CUSTODY,
    DATA,
    DERIVED,
    PAYLOAD_MANIFEST,
    SCHEMA,
    SEALED_FILES,
    TAG_MANIFEST,
    is_payload_path,
)
from pmforensics.bundle.read import read_bundle, read_tag_file, unreadable
from pmforensics.bundle.regular import open_regular
from pmforensics.bundle.seal import seal_digest
from pmforensics.errors import BundleBroken
from pmforensics.model.capture import MIB

_LINE = re.compile(rb"([0-9a-f]{64})  ([^\r\n]+)")
MAX_FINDINGS = 1000


class Integrity(Enum):
    """The three verdicts, never merged."""

    INTACT = "intact"
    INCOMPLETE = "incomplete as recorded"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """
    The verdict and what it rests on.

    seal          sha256 of the tag manifest as it is now
    alterations   one sentence each; empty unless ALTERED
    files, bytes  what was hashed
    gaps          how many gaps the manifest records
    """

    verdict: Integrity
    seal: str
    alterations: tuple[str, ...]
    files: int
    bytes: int
    gaps: int


def check_integrity(
    folder: Path,
    *,
    expected_seal: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> IntegrityReport:
    """
    Hash everything and compare.

    `expected_seal` is the digest that the capture printed ("sha256:" in front or not). `progress` gets bytes done
    and bytes in all.
    Errors: NotABundle, NotSealed, AccessDenied, and BundleBroken for a disk that fails: what cannot be read is not
    thereby altered. What is wrong inside a sealed bundle is a finding, not an error.
    """
    wrong: list[str] = []
    evidence: dict[str, Any] = {}
    digest = ""
    try:
        evidence = read_bundle(folder).evidence
    except BundleBroken as error:
        wrong.append(error.message)
    try:
        digest = seal_digest(folder)
    except BundleBroken as error:
        wrong.append(error.message)
    if expected_seal is not None and expected_seal.removeprefix("sha256:").lower() != digest:
        wrong.append(f"the seal is sha256:{digest}, not the expected {expected_seal}")
    tags = _manifest(folder, TAG_MANIFEST, wrong)
    for name in SEALED_FILES:
        if name not in tags:
            wrong.append(f"{name} is not covered by the seal")
    for name, expected in tags.items():
        if name not in SEALED_FILES:
            wrong.append(f"{TAG_MANIFEST} names {name}, which is no tag file of a bundle")
        elif _hash(folder / name, lambda _: None) != expected:
            wrong.append(f"{name} is missing or changed")
    payload = _manifest(folder, PAYLOAD_MANIFEST, wrong)
    present = _walk(folder, wrong)
    total = sum(present.values())
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for path, expected in payload.items():
        if path not in present:
            wrong.append(f"{path} is missing")
        elif _hash(folder / path, step) != expected:
            wrong.append(f"{path} is changed")
    wrong += [f"{path} was added" for path in present if path not in payload]
    wrong += _against_evidence(evidence, payload)
    wrong += _against_oxum(folder, present)
    wrong += _against_custody(folder, digest, evidence)
    gaps = evidence.get("gaps")
    gap_count = len(gaps) if isinstance(gaps, list) else 0
    if wrong:
        verdict = Integrity.ALTERED
    elif gap_count or evidence.get("completeness") != "complete":
        verdict = Integrity.INCOMPLETE
    else:
        verdict = Integrity.INTACT
    return IntegrityReport(verdict, digest, tuple(wrong[:MAX_FINDINGS]), len(present), total, gap_count)


def _manifest(folder: Path, name: str, wrong: list[str]) -> dict[str, str]:
    """Path to sha256 of a BagIt manifest; only paths that pmf writes, so that none can lead out of the bundle."""
    try:
        content = read_tag_file(folder, name)
    except BundleBroken as error:
        wrong.append(error.message)
        return {}
    entries: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), 1):
        match = _LINE.fullmatch(line)
        path = match[2].decode("utf-8", "replace") if match else ""
        if match is None or not is_payload_path(path) or path in entries:
            wrong.append(f"{name} line {number} is not one that pmf writes")
            continue
        entries[path] = match[1].decode()
    return entries


def _walk(folder: Path, wrong: list[str]) -> dict[str, int]:
    """Every regular file under data/ with its size; anything else is a finding. Strangers beside it too."""
    present: dict[str, int] = {}
    schema_folder, _, schema_file = SCHEMA.partition("/")
    wrong += [f"{name} is a link, not a folder" for name in (DATA, schema_folder) if (folder / name).is_symlink()]
    for parent, folders, names in os.walk(folder / DATA, onerror=_refuse, followlinks=False):
        for name in sorted(names) + sorted(folders):
            path = Path(parent) / name
            mode = path.lstat()
            inside = str(path.relative_to(folder))
            if stat.S_ISREG(mode.st_mode):
                present[inside] = mode.st_size
            elif not stat.S_ISDIR(mode.st_mode):
                wrong.append(f"{inside} is not a regular file")
    expected = {*SEALED_FILES, TAG_MANIFEST, CUSTODY, DATA, schema_folder}
    if (folder / DERIVED).is_dir() and not (folder / DERIVED).is_symlink():
        expected.add(DERIVED)
    wrong += [f"{entry.name} was added" for entry in os.scandir(folder) if entry.name not in expected]
    with suppress(NotADirectoryError, FileNotFoundError):  # findings already
        wrong += [f"{schema_folder}/{n} was added" for n in os.listdir(folder / schema_folder) if n != schema_file]
    return present


def _refuse(error: OSError) -> None:
    """A folder that may not be read says nothing about what is in it; one that is not there is a finding."""
    if isinstance(error, PermissionError):
        raise unreadable(Path(error.filename))


def _hash(path: Path, step: Callable[[int], None]) -> str | None:
    """None when there is no such regular file; what may not, or cannot, be read is an error."""
    try:
        fd = open_regular(path)
    except PermissionError:
        raise unreadable(path) from None
    except OSError:
        return None
    digest = hashlib.sha256()
    with os.fdopen(fd, "rb", buffering=0) as file:
        try:
            while chunk := file.read(MIB):
                digest.update(chunk)
                step(len(chunk))
        except OSError as error:
            raise BundleBroken(f"{path} cannot be read ({error.strerror})", hint="Is the disk failing?") from None
    return digest.hexdigest()


def _against_evidence(evidence: dict[str, Any], payload: dict[str, str]) -> list[str]:
    """evidence.json and the payload manifest are both sealed; they must also tell the same story."""
    artifacts = evidence.get("artifacts")
    if not isinstance(artifacts, list):
        return []
    told = {str(row.get("path")): row.get("sha256") for row in artifacts if isinstance(row, dict)}
    differ = [path for path, digest in told.items() if payload.get(path) != digest]
    wrong = [f"evidence.json and {PAYLOAD_MANIFEST} disagree on {path}" for path in differ]
    return wrong + [f"evidence.json does not name {path}" for path in payload if path not in told]


def _against_oxum(folder: Path, present: dict[str, int]) -> list[str]:
    try:
        info = read_tag_file(folder, BAG_INFO).decode("utf-8", "replace")
    except BundleBroken:
        return []  # already a finding: it is one of the sealed files
    match = re.search(r"^Payload-Oxum: ([0-9]{1,20})\.([0-9]{1,20})$", info, re.MULTILINE)
    counted = (sum(present.values()), len(present))
    if match is None or (int(match[1]), int(match[2])) != counted:
        return [f"Payload-Oxum says otherwise than the {counted[1]} files with {counted[0]} bytes that are there"]
    return []


def _against_custody(folder: Path, digest: str, evidence: dict[str, Any]) -> list[str]:
    records, digests, broken = read_custody(folder)
    if broken:
        return [broken]
    wrong = []
    head = evidence.get("custody_head")
    if head is not None and head not in digests:
        wrong.append(f"{CUSTODY} lost the line that the seal names")
    if not any(record.get("event") == "sealed" and record.get("seal") == digest for record in records):
        wrong.append(f"{CUSTODY} does not record this seal")
    return wrong + _against_derived(folder, records)


def _against_derived(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """Conclusions lie outside the seal; each one's digest stands in the custody chain."""
    named = {str(record.get("path")): record.get("sha256") for record in records if record.get("event") == "derived"}
    wrong = []
    for path, digest in named.items():
        if not is_payload_path(path) or not path.startswith(f"{DERIVED}/"):
            wrong.append(f"{CUSTODY} names a derived file that pmf would not write")
        elif _hash(folder / path, lambda _: None) != digest:
            wrong.append(f"{path} is missing or changed")
    if (folder / DERIVED).is_dir() and not (folder / DERIVED).is_symlink():
        present = sorted(entry.name for entry in os.scandir(folder / DERIVED))
        wrong += [f"{DERIVED}/{name} was added" for name in present if f"{DERIVED}/{name}" not in named]
    return wrong
