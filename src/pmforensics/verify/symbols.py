"""
A store of executables and debug files, found by build ID: the layout that gdb, lldb and debuginfod know.

    STORE/.build-id/xx/yyyy          the executable or library
    STORE/.build-id/xx/yyyy.debug    its debug file; a link to the executable, where that carries the debug information
    STORE/.build-id/xx/yyyy.json     what it is: name, sha256, version, when and from where it was added

Files are copied in whole and renamed into place; no file that is there is ever replaced. Where a build is added both
stripped and not, the first to come is the executable; the unstripped one is, or becomes, its debug file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pmforensics.bundle.journal import utc_text
from pmforensics.bundle.write import sync_folder
from pmforensics.errors import CandidateUnreadable, PmfError, VerifyError
from pmforensics.model.capture import MIB
from pmforensics.model.image import IdKind
from pmforensics.verify.candidates import Candidate, CandidateKind, open_regular, read_candidate

BUILD_ID = re.compile(r"[0-9a-f]{2,128}")
MIN_ID_DIGITS = 4
DEBUG = ".debug"
MAX_RECORD_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of the store."""

    build_id: str
    path: Path
    is_debug: bool
    name: str = ""
    sha256: str = ""
    version: str = ""
    added_at: str = ""


class SymbolStore:
    """A folder with a `.build-id` tree in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, path: Path) -> tuple[Stored, bool]:
        """
        Copy an ELF file in; returns what is stored and whether it is new.

        Errors: CandidateUnreadable (no ELF file, no build ID), VerifyError when other bytes are stored under the
        same ID already and stripping does not explain it: they are kept, and the newcomer lies beside them as
        `yyyy.SHA8`.
        """
        candidate = read_candidate(path)[0]
        build_id = _build_id(candidate)
        is_debug = candidate.kind is CandidateKind.DEBUG_FILE
        place = self._place(build_id, DEBUG if is_debug else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
        try:
            digest = _copy(path, partial)
            added_at = utc_text(time.time_ns())
            stored = Stored(build_id, place, is_debug, candidate.name, digest, _version(candidate.says), added_at)
            if is_debug and place.is_symlink():
                place.unlink()  # our own link to the executable: a debug file of its own is better
            if not place.exists():
                partial.rename(place)
            elif any(_sha256(other) == digest for other in place.parent.glob(f"{build_id[2:]}*") if _is_kept(other)):
                return stored, False
            else:
                stored = self._add_second(path, candidate, stored, partial)
        finally:
            partial.unlink(missing_ok=True)
        self._record(stored, path)
        if not is_debug and _has_names(candidate):
            link = self._place(build_id, DEBUG)
            if not link.exists() and stored.path == place:
                link.symlink_to(place.name)
        sync_folder(place.parent)
        return stored, True

    def _add_second(self, path: Path, candidate: Candidate, stored: Stored, partial: Path) -> Stored:
        """Another file with the ID of one that is stored."""
        place = stored.path
        here = read_candidate(place)[0]
        debug_place = self._place(stored.build_id, DEBUG)
        if not stored.is_debug and _has_names(candidate) and not _has_names(here) and not debug_place.exists():
            partial.rename(debug_place)
            return replace(stored, path=debug_place, is_debug=True)
        beside = place.with_name(f"{place.name}.{stored.sha256[:8]}")
        partial.rename(beside)
        if _has_names(candidate) != _has_names(here):
            return replace(stored, path=beside)
        raise VerifyError(
            f"{path} has the ID of {place} and other bytes: two files with one ID; it was kept as {beside.name}",
            hint="One of them was altered after linking (patchelf, signing), or the linker repeats IDs.",
        )

    def find(self, build_id: str) -> list[Stored]:
        """
        What is stored under an ID, or under every ID that begins with it (4 digits at least).

        Errors: VerifyError when it is no ID.
        """
        wanted = build_id.strip().lower()
        if not BUILD_ID.fullmatch(wanted) or len(wanted) < MIN_ID_DIGITS:
            raise VerifyError(f"{build_id!r} is no build ID", hint="Hex digits, as readelf -n prints them.")
        folder = self.root / ".build-id" / wanted[:2]
        if not folder.is_dir():
            return []
        return [stored for stored in self._folder(folder) if stored.build_id.startswith(wanted)]

    def iter_all(self) -> Iterator[Stored]:
        """Everything, by ID."""
        root = self.root / ".build-id"
        if not root.is_dir():
            return
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and BUILD_ID.fullmatch(folder.name):
                yield from self._folder(folder)

    def missing(self, build_ids: Sequence[str]) -> list[str]:
        """Those IDs under which nothing is stored."""
        return [build_id for build_id in build_ids if not self.paths_for(build_id)]

    def serve_layout(self, out: Path) -> int:
        """
        Make `out/buildid/ID/{executable,debuginfo}` links: any static web server over `out` is then a debuginfod.

        Returns the number of new links. Those that are there are kept.
        """
        count = 0
        for stored in self.iter_all():
            folder = out / "buildid" / stored.build_id
            folder.mkdir(parents=True, exist_ok=True)
            debug = self._place(stored.build_id, DEBUG)
            # An unstripped executable is its own debug file.
            places = {"debuginfo": debug} if stored.is_debug else {"executable": stored.path, "debuginfo": debug}
            for name, place in places.items():
                link = folder / name
                if place.exists() and not link.is_symlink():
                    link.symlink_to(place.resolve())
                    count += 1
        return count

    def paths_for(self, build_id: str) -> list[Path]:
        """The files stored under exactly this ID."""
        if not BUILD_ID.fullmatch(build_id):
            return []
        places = (self._place(build_id, ""), self._place(build_id, DEBUG))
        return [place for place in places if place.is_file() and not self._is_own_link(place)]

    def _is_own_link(self, place: Path) -> bool:
        """Whether it is the link that says that an executable is its own debug file."""
        return place.is_symlink() and place.readlink() == Path(place.name.removesuffix(DEBUG))

    def _place(self, build_id: str, suffix: str) -> Path:
        return self.root / ".build-id" / build_id[:2] / (build_id[2:] + suffix)

    def _record(self, stored: Stored, source: Path) -> None:
        place = stored.path.with_name(stored.path.name + ".json")
        partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
        partial.write_text(
            json.dumps(
                {
                    "name": stored.name,
                    "sha256": stored.sha256,
                    "version": stored.version,
                    "added_at": stored.added_at,
                    "source": str(source.absolute()),
                },
                indent=1,
            )
        )
        partial.rename(place)

    def _folder(self, folder: Path) -> Iterator[Stored]:
        for path in sorted(folder.iterdir()):
            stem = path.name.removesuffix(DEBUG)
            if not BUILD_ID.fullmatch(stem) or not path.is_file() or self._is_own_link(path):
                continue
            is_debug = path.name.endswith(DEBUG)
            record = _read_record(path.with_name(path.name + ".json"))
            yield Stored(
                folder.name + stem,
                path,
                is_debug,
                record.get("name", ""),
                record.get("sha256", ""),
                record.get("version", ""),
                record.get("added_at", ""),
            )


def iter_elf_files(path: Path) -> Iterator[Path]:
    """The path itself, or the ELF files under a folder; links are not followed."""
    if not path.is_dir():
        yield path
        return
    for parent, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            inside = Path(parent) / name
            if inside.is_file() and not inside.is_symlink():
                with inside.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        yield inside


def add_all(store: SymbolStore, paths: Sequence[Path]) -> tuple[list[tuple[Stored, bool]], list[str]]:
    """Add files and folders; returns what is stored, and a sentence for each file that is not."""
    added: list[tuple[Stored, bool]] = []
    trouble: list[str] = []
    for path in paths:
        for inside in iter_elf_files(path):
            try:
                added.append(store.add(inside))
            except PmfError as error:
                trouble.append(f"{error.message}. {error.hint}".rstrip())
    return added, trouble


def _build_id(candidate: Candidate) -> str:
    path = candidate.path
    ids = [one for one in candidate.ids if one.kind is IdKind.GNU]
    if candidate.kind not in (CandidateKind.PROGRAM, CandidateKind.DEBUG_FILE) or not ids:
        raise CandidateUnreadable(
            f"{path} has no GNU build ID to file it under", hint="Link with -Wl,--build-id (Go: -ldflags=-B=gobuildid)."
        )
    if ids[0].weak:
        raise CandidateUnreadable(f"{path}: its build ID {ids[0].value} proves nothing ({ids[0].weak})")
    return ids[0].value


def _is_kept(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(".json") and ".partial-" not in path.name


def _has_names(candidate: Candidate) -> bool:
    """Whether a debugger finds names or lines in it."""
    return candidate.debug is not None and not candidate.debug.stripped


def _version(says: dict[str, str]) -> str:
    return says.get("vcs_revision") or says.get("go_module") or says.get("package") or ""


def _copy(source: Path, to: Path) -> str:
    file = open_regular(source)
    digest = hashlib.sha256()
    try:
        with to.open("xb") as out:
            at = 0
            while chunk := os.pread(file.fd, MIB, at):
                digest.update(chunk)
                out.write(chunk)
                at += len(chunk)
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
    finally:
        file.close()
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: str(value) for key, value in record.items()} if isinstance(record, dict) else {}
