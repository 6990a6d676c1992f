"""
Where things lie in a bundle, and how they are named.

    SERVICE/HOST-20261120T131500Z-1f3a9c02/
      bagit.txt  bag-info.txt        the BagIt declaration and description
      manifest-sha256.txt            sha256 of every file under data/, as stored
      tagmanifest-sha256.txt         the seal: sha256 of every tag file listed here; written last
      evidence.json                  the manifest: artifacts, gaps, target, clocks; schema/ explains it
      journal.jsonl                  what happened, one line each, written and synced while capturing
      custody.jsonl                  who did what, hash-chained; grows after sealing, so it is not in the seal
      derived/NNNN-what.json         conclusions drawn later; outside the seal, each named by a custody line
      data/NN-collector/...          the evidence, one folder per collector, in the order of collection
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

BAGIT = "bagit.txt"
BAG_INFO = "bag-info.txt"
PAYLOAD_MANIFEST = "manifest-sha256.txt"
TAG_MANIFEST = "tagmanifest-sha256.txt"
EVIDENCE = "evidence.json"
SCHEMA = "schema/evidence-1.schema.json"
JOURNAL = "journal.jsonl"
CUSTODY = "custody.jsonl"
DATA = "data"
DERIVED = "derived"
SPOOL = ".spool"
RESERVE = ".reserve"
PARTIAL_SUFFIX = ".partial"

SEALED_FILES = (BAGIT, BAG_INFO, PAYLOAD_MANIFEST, EVIDENCE, SCHEMA, JOURNAL)
"""The tag files that the seal covers, in the order of the tag manifest."""

BAGIT_TEXT = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PAYLOAD_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._+@=,-]*/)*[A-Za-z0-9_-][A-Za-z0-9._+@=,-]*")
MAX_PATH_CHARS = 400


def safe_component(name: str, fallback: str) -> str:
    """One path component from any text: letters, digits, `._-`, no leading dot, at most 80 characters."""
    return _UNSAFE.sub("-", name).strip("-.")[:80] or fallback


def is_payload_path(path: str) -> bool:
    """Whether a path below a collector's folder is one that pmf writes: plain characters, no dot files, no `..`."""
    return len(path) <= MAX_PATH_CHARS and _PAYLOAD_PATH.fullmatch(path) is not None


def bundle_name(host: str, at: datetime, capture_id: str) -> str:
    """HOST-20261120T131500Z-ID."""
    return f"{safe_component(host, 'host')}-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{capture_id}"
