"""Open a bundle that somebody else may have touched."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmforensics.bundle.layout import EVIDENCE, JOURNAL, TAG_MANIFEST
from pmforensics.bundle.regular import open_regular
from pmforensics.errors import AccessDenied, BundleBroken, NotABundle, NotSealed
from pmforensics.model.capture import MIB

MAX_TAG_FILE_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True)
class Bundle:
    """A sealed bundle as it says it is; `verify.integrity` tells whether that is so."""

    folder: Path
    evidence: dict[str, Any]


def read_bundle(folder: Path) -> Bundle:
    """
    The manifest of a sealed bundle.

    Errors: NotABundle, NotSealed (capture running or killed), BundleBroken, AccessDenied.
    """
    require_folder(folder)
    if not os.path.lexists(folder / TAG_MANIFEST):
        if os.path.lexists(folder / JOURNAL):
            raise NotSealed(
                f"{folder} is not sealed: its capture is still running, or was killed",
                hint=f"If it was killed: pmf recover {folder}",
            )
        raise NotABundle(f"{folder} is not a bundle", hint="Give the folder that `pmf capture` printed.")
    try:
        evidence = json.loads(read_tag_file(folder, EVIDENCE))
    except (ValueError, RecursionError):
        raise BundleBroken(f"{folder / EVIDENCE} cannot be read", hint="pmf check tells what was altered.") from None
    if not isinstance(evidence, dict):
        raise BundleBroken(f"{folder / EVIDENCE} is not a manifest")
    return Bundle(folder, evidence)


def require_folder(folder: Path) -> None:
    """Errors: NotABundle when this is no folder, AccessDenied when it may not be looked into."""
    if not folder.is_dir():
        raise NotABundle(f"{folder} is not a folder", hint="Give the folder that `pmf capture` printed.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise unreadable(folder)


def unreadable(path: Path) -> AccessDenied:
    """The error for a file or folder of a bundle that this user may not read."""
    return AccessDenied(f"{path} may not be read", hint="Run it as the user who captured, or as root.")


def read_tag_file(folder: Path, name: str) -> bytes:
    """
    A tag file, bounded; never through a link.

    Errors: BundleBroken, AccessDenied.
    """
    try:
        fd = open_regular(folder / name)
    except PermissionError:
        raise unreadable(folder / name) from None
    except OSError as error:
        raise BundleBroken(f"{folder / name} cannot be opened ({error.strerror})") from None
    with os.fdopen(fd, "rb") as file:
        content = file.read(MAX_TAG_FILE_BYTES + 1)
    if len(content) > MAX_TAG_FILE_BYTES:
        raise BundleBroken(f"{folder / name} is larger than any that pmf writes")
    return content
