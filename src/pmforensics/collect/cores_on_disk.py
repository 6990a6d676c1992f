"""Cores that earlier crashes of the same program have left behind."""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.collect.gaps import gap_of
from pmforensics.collect.live_core import CORE_MEDIA_TYPE
from pmforensics.collect.target_memory import inside_root
from pmforensics.errors import AccessDenied, CollectError, DeadlinePassed, FormatError, NotThere, TargetGone
from pmforensics.formats.elf import ELF_HEADER_BYTES, ET_CORE, PT_NOTE, iter_program_headers, parse_elf_header
from pmforensics.formats.structure import CoreCheck
from pmforensics.model.capture import KIB, MIB, Artifact, Gap, Json
from pmforensics.model.process import Runtime, Target

SYSTEMD_FOLDER = "/var/lib/systemd/coredump"
APPORT_FOLDER = "/var/crash"
MAX_NAMES = 20_000  # in one folder
MAX_LOOKED_INTO = 64  # files whose notes are read, newest first
MAX_NOTES_BYTES = 4 * MIB
MAX_PROGRAM_HEADERS = 4096  # the notes come first
COMM_CHARS = 15  # TASK_COMM_LEN without its NUL
NT_PRPSINFO = 3
PRPSINFO_BYTES = 136  # struct elf_prpsinfo of 64-bit machines
ARGUMENTS_BYTES = 79  # ELF_PRARGSZ without its NUL
OTHER_SERVICE = "the same interpreter, perhaps of another service: its arguments differ or cannot be seen"

# Specifiers of core_pattern, core(5), as what they leave in a name. %e and %f are looked at again inside the core:
# %e is the name of the thread that crashed, which need not be that of the program.
_SPECIFIERS = {
    "%": "%", "p": r"\d+", "P": r"\d+", "i": r"\d+", "I": r"\d+", "u": r"\d+", "g": r"\d+", "d": r"\d+",
    "s": r"\d+", "t": r"\d+", "c": r"\d+", "C": r"\d+", "h": r"[^/]*", "e": r"[^/]*", "f": r"[^/]*",
}  # fmt: skip
# core.COMM.UID.BOOT.PID.TIME[.zst]; COMM and the boot id as systemd writes them.
_SYSTEMD_NAME = re.compile(r"core\.(?P<program>.+)\.(\d+)\.([0-9a-f]{32})\.(\d+)\.(\d+)(\.zst|\.lz4|\.xz)?")
_COMPRESSED: dict[bytes, str] = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zX": "xz"}


@dataclass(frozen=True, slots=True)
class Found:
    """
    A file whose name is that of a core.

    path      as the target sees it, or as pmf does (`here`)
    program   the name of a program in it; "" when it has none
    """

    path: str
    here: bool
    size_bytes: int = 0
    mtime_s: float = 0.0
    program: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A core of this program: what ties it to the program, and what makes it one of another service (or "")."""

    found: Found
    pid: int
    why: str
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class CoresOnDisk:
    """
    Cores of this program that already exist: of its earlier lives, or of its other processes.

    Source:   /proc/sys/kernel/core_pattern leads to them: a folder the target sees, its working directory,
              systemd-coredump's store, or /var/crash of apport.
    Yields:   index.json (where was looked, what was found), cores/*: the newest `adopt` of them, copied.
              coredumpctl.json where systemd keeps a list.
    Cost:     none to the target; as much room as the cores take.
    Partial:  a core that the kernel, or a size limit, cut. Compressed ones are copied without a look inside.
    Errors:   AccessDenied per folder; WouldHarm where there is no room.
    """

    name: ClassVar[str] = "cores_on_disk"
    question: ClassVar[str] = "Did this program crash before, and what did it look like then?"
    limit_s: ClassVar[float] = 120.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    adopt: int = 2

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        pattern = host.read("/proc/sys/kernel/core_pattern", 4 * KIB).decode("utf-8", "replace").rstrip("\n")
        looked: list[Json] = []
        refused: list[Gap] = []
        candidates: list[Found] = []
        for folder, here, names in _places(pattern, target, host):
            try:
                found = list(_list(folder, here, names, host))
            except NotThere:
                looked.append({"folder": folder, "files": None})
            except (TargetGone, DeadlinePassed):
                raise
            except CollectError as error:
                looked.append({"folder": folder, "files": None, "error": error.message})
                refused.append(gap_of(error, f"{self.name}: {folder}", self.question))
            else:
                looked.append({"folder": folder, "files": len(found)})
                candidates += found
        candidates.sort(key=lambda found: found.mtime_s, reverse=True)
        own = _own(target, host)
        matches = [match for found in candidates[:MAX_LOOKED_INTO] if (match := _match(found, own, host)) is not None]
        adopted = [match.found for match in matches if not match.doubt][: self.adopt]
        index: dict[str, Json] = {
            "core_pattern": pattern if not pattern.startswith("|") else pattern.split(" ")[0],
            "looked_in": looked,
            "not_looked_into": max(0, len(candidates) - MAX_LOOKED_INTO),
            "found": [_entry(match, match.found in adopted) for match in matches],
        }
        yield Artifact(
            "index.json",
            json.dumps(index, indent=1).encode() + b"\n",
            "/proc/sys/kernel/core_pattern and the folders it leads to",
            "application/json",
            facts={"found": len(matches)},
        )
        yield from refused
        if "systemd-coredump" in pattern:
            yield from _coredumpctl(target, host)
        for number, core in enumerate(adopted, 1):
            yield from _adopted(f"cores/{number:02d}-{_plain(core.path)}", core, host)


# -- where to look ---------------------------------------------------------------------------------------------------


def _places(pattern: str, target: Target, host: Host) -> Iterator[tuple[str, bool, re.Pattern[str]]]:
    """(folder, whether as pmf sees it, which names) for a core_pattern."""
    if pattern.startswith("|"):
        # Handlers run in the namespaces of init, which are pmf's own when it runs on the host.
        yield SYSTEMD_FOLDER, True, _SYSTEMD_NAME
        if target.exe:
            crash = re.escape(target.exe.replace("/", "_"))
            yield APPORT_FOLDER, True, re.compile(rf"{crash}\.\d+\.crash")
        return
    if not pattern:
        return
    folder, _, name = pattern.rpartition("/")
    if not pattern.startswith("/"):
        folder = posixpath.join(inside_root(host.link_proc("cwd"), host.link_proc("root")), folder)
    if "%" in folder:
        return  # a folder per process: it cannot be found without knowing which
    yield folder or "/", False, _names(name, target)


def _names(pattern: str, target: Target) -> re.Pattern[str]:
    """The names that the pattern can yield for this program; a pid may be appended (core_uses_pid)."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] != "%":
            parts.append(re.escape(pattern[at]))
            at += 1
            continue
        letter = pattern[at + 1 : at + 2]
        if letter == "E":
            parts.append(re.escape(target.exe.replace("/", "!")) if target.exe else r"[^/]*")
        elif letter in ("e", "f") and "(?P<program>" not in parts:
            parts += ("(?P<program>", _SPECIFIERS[letter], ")")
        else:
            parts.append(_SPECIFIERS.get(letter, ""))
        at += 2
    return re.compile("".join(parts) + r"(?:\.\d+)?")


def _list(folder: str, here: bool, names: re.Pattern[str], host: Host) -> Iterator[Found]:
    if here:
        try:
            listed = sorted(os.listdir(folder))
        except FileNotFoundError:
            raise NotThere(f"{folder} does not exist") from None
        except OSError as error:
            raise AccessDenied(f"{folder}: {error.strerror}", hint="Run pmf as root.") from None
        finally:
            host.note("list", folder)
    else:
        listed = host.list_target(folder)
    for name in listed[:MAX_NAMES]:
        named = names.fullmatch(name)
        if named is None:
            continue
        path = posixpath.join(folder, name)
        try:
            fd = _open(Found(path, here), host)
        except CollectError:
            continue  # gone, not a plain file, or not ours to read
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        program = named.groupdict().get("program") or ""
        yield Found(path, here, status.st_size, status.st_mtime, program)


def _open(found: Found, host: Host) -> int:
    if not found.here:
        return host.open_target(found.path)
    try:
        fd = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotThere(f"{found.path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotThere(f"{found.path} is not a regular file")
    return fd


# -- whose core it is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Own:
    """
    What a core of this program says of itself.

    arguments    the first 79 bytes of the command line as the kernel writes them, and with secrets redacted, as pmf
                 does; compared, never recorded
    interpreted  the executable alone does not tell which service it is
    """

    comms: frozenset[str]
    arguments: frozenset[bytes]
    interpreted: bool


def _own(target: Target, host: Host) -> _Own:
    comms = {target.comm[:COMM_CHARS]}
    if target.exe:
        comms.add(posixpath.basename(target.exe)[:COMM_CHARS])
    try:
        raw = host.read_proc("cmdline", 8 * MIB).replace(b"\0", b" ")
    except CollectError:
        raw = b""
    redacted = " ".join(target.argv).encode("utf-8", "replace")
    arguments = frozenset(words[:ARGUMENTS_BYTES].rstrip() for words in (raw, redacted)) - {b""}
    interpreted = bool(target.runtimes & {Runtime.JVM, Runtime.CPYTHON, Runtime.NODE})
    return _Own(frozenset(comms), arguments, interpreted)


def _match(found: Found, own: _Own, host: Host) -> Match | None:
    """What ties the file to the program; None when nothing does."""
    name = posixpath.basename(found.path)
    if name.endswith(".crash"):
        return Match(found, 0, "the report is named after its executable")
    systemd = _SYSTEMD_NAME.fullmatch(name) if found.here else None
    program = re.sub(r"\\x([0-9a-f]{2})", lambda escape: chr(int(escape[1], 16)), found.program)
    by_name = None
    if program in own.comms:
        doubt = OTHER_SERVICE if own.interpreted else ""
        by_name = Match(found, int(systemd[4]) if systemd else 0, f"it is named after {program}", doubt)
    if systemd is not None and systemd[6]:
        return by_name  # compressed: there is no looking inside
    try:
        fd = _open(found, host)
    except CollectError:
        return None
    try:
        psinfo = _psinfo(fd)
    finally:
        os.close(fd)
    if psinfo is None:
        return by_name  # cut before its notes, or not a core of this kind
    pid, comm, arguments = psinfo
    if comm not in own.comms:
        return None
    doubt = OTHER_SERVICE if own.interpreted and arguments not in own.arguments else ""
    return Match(found, pid, f"its process was called {comm}", doubt)


def _psinfo(fd: int) -> tuple[int, str, bytes] | None:
    """(pid, comm, arguments) from the NT_PRPSINFO note of an ELF core; None for anything else."""
    try:
        header = parse_elf_header(os.pread(fd, ELF_HEADER_BYTES, 0))
    except FormatError:
        return None
    if header.elf_type != ET_CORE or header.elf_class != 64:
        return None
    count = min(header.phnum, MAX_PROGRAM_HEADERS)
    table = os.pread(fd, count * 56, header.phoff)
    for segment in iter_program_headers(table[: len(table) - len(table) % 56], header):
        if segment.segment_type != PT_NOTE:
            continue
        notes = os.pread(fd, min(segment.filesz, MAX_NOTES_BYTES), segment.offset)
        at = 0
        while at + 12 <= len(notes):
            owner_bytes, content_bytes, kind = struct.unpack_from(f"{header.order}III", notes, at)
            content_at = at + 12 + (owner_bytes + 3 & -4)
            content = notes[content_at : content_at + content_bytes]
            if kind == NT_PRPSINFO and len(content) == PRPSINFO_BYTES:
                pid = struct.unpack_from(f"{header.order}i", content, 24)[0]
                comm, arguments = content[40:56].partition(b"\0")[0], content[56:].partition(b"\0")[0]
                return pid, comm.decode("utf-8", "replace"), arguments[:ARGUMENTS_BYTES].rstrip()
            at = content_at + (content_bytes + 3 & -4)
    return None


# -- what is kept ----------------------------------------------------------------------------------------------------


def _entry(match: Match, adopted: bool) -> Json:
    found = match.found
    return {
        "path": found.path,
        "seen_by": "pmf" if found.here else "target",
        "size_bytes": found.size_bytes,
        "modified_at": datetime.fromtimestamp(found.mtime_s, UTC).isoformat(timespec="seconds"),
        "pid": match.pid or None,
        "why": match.why,
        "doubt": match.doubt or None,
        "adopted": adopted,
    }


def _adopted(path: str, found: Found, host: Host) -> Iterator[Artifact | Gap]:
    try:
        host.room_for(found.size_bytes)
        fd = _open(found, host)
    except (TargetGone, DeadlinePassed):
        raise
    except CollectError as error:
        yield gap_of(error, f"{CoresOnDisk.name}/{path}")
        return
    try:
        begin = os.pread(fd, 4, 0)
        facts: dict[str, Json] = {"modified_at": datetime.fromtimestamp(found.mtime_s, UTC).isoformat()}
        body = host.iter_fd(fd, 0, found.size_bytes)
        if begin == b"\x7fELF":
            check = CoreCheck()
            yield Artifact(
                path,
                checked(body, check),
                found.path,
                CORE_MEDIA_TYPE,
                bulk=True,
                settle=lambda: settlement_of(check.finish(), facts),
            )
        else:
            facts["compressed"] = _COMPRESSED.get(begin)
            yield Artifact(path, body, found.path, "application/octet-stream", facts=facts, bulk=True)
    finally:
        os.close(fd)


def _coredumpctl(target: Target, host: Host) -> Iterator[Artifact | Gap]:
    tool = host.find_tool("coredumpctl")
    if tool is None or not target.exe:
        return
    try:
        # Ends with 1 when it knows of no core.
        ran = host.run([tool, "--no-pager", "--json=short", "list", target.exe], timeout_s=5.0, ok=(0, 1))
    except (TargetGone, DeadlinePassed):
        raise
    except CollectError as error:
        yield gap_of(error, f"{CoresOnDisk.name}/coredumpctl.json")
        return
    if ran.stdout.strip():
        yield Artifact("coredumpctl.json", ran.stdout, "coredumpctl list", "application/json")


def _plain(path: str) -> str:
    """The file's name in the letters that an artifact's path may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", posixpath.basename(path))[:200]
