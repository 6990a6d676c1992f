"""
Derived evidence: what was concluded from a bundle later, kept in it, and told apart from what was captured.

A verdict is written to `derived/NNNN-NAME.json` in the bundle, outside its seal, and a custody line names the file,
its sha256 and the artifacts that it cites. So the seal stays what it was, and a changed verdict is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pmforensics.bundle.custody import read_custody, write_custody
from pmforensics.bundle.layout import DERIVED
from pmforensics.bundle.read import Bundle
from pmforensics.bundle.write import write_tag_file
from pmforensics.model.capture import Json


def write_derived(bundle: Bundle, name: str, value: dict[str, Json], cites: Sequence[str]) -> Path:
    """
    Keep a conclusion in the bundle; returns its path.

    `cites` are paths of artifacts in the bundle; their sha256 go into the file and the custody line.
    Errors: OSError when the bundle cannot be written (a read-only copy).
    """
    digests = {row["path"]: row["sha256"] for row in bundle.evidence["artifacts"]}
    cited: list[Json] = [{"path": path, "sha256": digests[path]} for path in cites]
    folder = bundle.folder / DERIVED
    folder.mkdir(mode=0o700, exist_ok=True)
    number = 1 + sum(record["event"] == "derived" for record in read_custody(bundle.folder)[0])
    path = folder / f"{number:04d}-{name}.json"
    body = json.dumps({"cites": cited, **value}, indent=1, ensure_ascii=False).encode() + b"\n"
    write_tag_file(path, body)
    try:
        write_custody(
            bundle.folder,
            "derived",
            path=str(path.relative_to(bundle.folder)),
            sha256=hashlib.sha256(body).hexdigest(),
            cites=cited,
        )
    except OSError:
        path.unlink()  # a file that no custody line names counts as slipped in
        raise
    return path
