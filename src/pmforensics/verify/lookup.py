"""
Candidates that nobody named: from symbol stores by identity, and from the paths that a dump names.

Both only when asked for. What is found is a candidate like any other: its identity is read from its own bytes,
because a store can hold the wrong file under the right name, and a path of another machine or container leads to
whatever lies there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pmforensics.errors import PmfError
from pmforensics.model.image import IdKind
from pmforensics.verify.candidates import Candidate, read_candidate
from pmforensics.verify.dumps import Dump
from pmforensics.verify.symbols import SymbolStore


def from_stores(dump: Dump, stores: Sequence[Path]) -> tuple[list[Candidate], list[str]]:
    """
    What symbol stores hold under the IDs in the dump, and what dwz took out of it; and sentences about files that
    cannot be read. One that is found counts as asked about.
    """
    found: list[Candidate] = []
    trouble: list[str] = []
    for root in stores:
        store = SymbolStore(root)
        wanted = [
            reading.id.value
            for image in dump.images.images
            for reading in image.readings
            if reading.id.kind is IdKind.GNU and not reading.id.weak
        ]
        here, trouble_here = _stored(store, wanted)
        shared = [one.links.altlink.build_id for one in here if one.links and one.links.altlink]
        more, trouble_there = _stored(store, [value for value in shared if value not in wanted])
        found += here + more
        trouble += trouble_here + trouble_there
    return found, trouble


def _stored(store: SymbolStore, build_ids: Iterable[str]) -> tuple[list[Candidate], list[str]]:
    found: list[Candidate] = []
    trouble: list[str] = []
    for build_id in dict.fromkeys(build_ids):
        for path in store.paths_for(build_id):
            try:
                found += (replace(one, meant_for=build_id) for one in read_candidate(path))
            except PmfError as error:
                trouble.append(error.message)
    return found, trouble


def from_local_paths(dump: Dump, given: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """What lies at the paths that the dump names, on this machine; and a sentence that says so."""
    taken = {one.path.absolute() for one in given}
    found: list[Candidate] = []
    for name in dict.fromkeys(image.name for image in dump.images.images if not image.is_vdso):
        path = Path(name)
        if path.is_absolute() and path not in taken:
            try:
                found += read_candidate(path)
            except PmfError:
                continue  # not on this machine, or no binary
    count = len({one.path for one in found})
    return found, f"{count} files were opened at the paths that the dump names, on this machine (--local-paths)"
