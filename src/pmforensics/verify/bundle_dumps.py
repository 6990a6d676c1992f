"""The dumps that lie in a bundle: cores, and the list of images that was read from the live process."""

from __future__ import annotations

import json
from typing import Any

from pmforensics.bundle.layout import is_payload_path
from pmforensics.bundle.read import Bundle
from pmforensics.errors import DumpUnreadable
from pmforensics.formats.core import gnu_id, go_id
from pmforensics.model.capture import MIB
from pmforensics.model.image import DumpImage, DumpImages, Reading, Unread
from pmforensics.verify.candidates import open_regular
from pmforensics.verify.dumps import Dump

CORE_COLLECTORS = ("threads_native", "core", "cores_on_disk")
IMAGE_LIST = "build_ids/images.json"
MAX_LIST_BYTES = 64 * MIB
MAX_IMAGES = 100_000


def dumps_in(bundle: Bundle) -> list[str]:
    """Paths of the artifacts that identities can be read from, cores first."""
    paths = [
        str(row["path"]) for row in bundle.evidence["artifacts"] if row["stored_bytes"] and is_payload_path(row["path"])
    ]
    cores = [
        path
        for path in paths
        if path.split("/")[1].partition("-")[2] in CORE_COLLECTORS
        and path.rsplit("/", 1)[1].removesuffix(".zst").endswith(("core", ".core", ".dmp"))
    ]
    return cores + [path for path in paths if path.endswith("-" + IMAGE_LIST)]


def read_image_list(bundle: Bundle, path: str) -> Dump:
    """
    The images that the capture read from the live process, as a dump: `offset` is 0, `rule` says how it read them.

    Errors: DumpUnreadable.
    """
    place = bundle.folder / path
    file = open_regular(place)
    try:
        if file.size > MAX_LIST_BYTES:
            raise DumpUnreadable(f"{path} is larger than any that pmf writes")
        try:
            listed: Any = json.loads(file.read(0, file.size))
            rows = [row for row in listed["images"][:MAX_IMAGES] if isinstance(row, dict)]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DumpUnreadable(f"{path} is no list of images") from None
    finally:
        file.close()
    exe = bundle.evidence["target"].get("exe")
    images = tuple(_image(row, exe) for row in rows)
    return Dump(place, file, DumpImages("captured images", images, file.size))


def _image(row: dict[str, Any], exe: object) -> DumpImage:
    rule = f"captured by {row.get('read_by')}"
    readings = []
    if isinstance(row.get("gnu_build_id"), str):
        try:
            readings.append(Reading(gnu_id(bytes.fromhex(row["gnu_build_id"])), 0, rule))
        except ValueError:
            readings = []
    if isinstance(row.get("go_build_id"), str):
        readings.append(Reading(go_id(row["go_build_id"].encode()), 0, rule))
    path = str(row.get("path", ""))
    start = str(row.get("start", ""))
    return DumpImage(
        path,
        int(start, 16) if start.startswith("0x") and len(start) < 20 else None,
        tuple(readings),
        None if readings else Unread.NO_ID,
        is_main=path == exe,
        is_vdso=path == "[vdso]",
        says={"package": row["package_note"]} if isinstance(row.get("package_note"), str) else {},
    )
