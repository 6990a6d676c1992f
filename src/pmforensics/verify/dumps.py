"""Open a dump, whatever kind it is, and read its images from its own bytes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pmforensics.errors import DumpUnreadable, FormatError
from pmforensics.formats.elf import ET_CORE, parse_elf_header
from pmforensics.formats.macho import MH_CORE, is_macho, read_macho_slices
from pmforensics.formats.macho_core import read_macho_core_images
from pmforensics.model.capture import GIB, MIB
from pmforensics.model.image import DumpImage, DumpImages, Reading, Unread
from pmforensics.verify.candidates import Candidate, OpenFile, naming, read_candidate

if TYPE_CHECKING:
    from pmforensics.formats.core import ElfCore

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
HPROF = b"JAVA PROFILE 1.0."
BINARY = "binary"  # the format of a binary in a dump's place
# A compressed dump may unpack to this without a word; above it, only to so many times its size. Cores are mostly
# zeros and pack well (3 to 20 times); 200 times is no core that anybody wrote.
UNPACK_FREELY_BYTES = GIB
UNPACK_RATIO = 200
KEEP_FREE_BYTES = 256 * MIB
CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # what no text has; escapes colour some
ARCHIVES = {
    b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a rar archive",
    b"BZh": "bzip2-compressed", b"\xfd7zXZ": "xz-compressed", b"\x04\x22\x4d\x18": "lz4-compressed",
    b"MSCF": "a cabinet archive",
}  # fmt: skip


@dataclass(slots=True)
class Dump:
    """
    A dump whose images have been read.

    core       the ELF core behind it, for looks into its memory; None for other formats
    binaries   a binary in the dump's place, read as a candidate: one for each image
    file       open until the context ends
    warnings   sentences that belong above every verdict
    """

    path: Path
    file: OpenFile
    images: DumpImages
    core: ElfCore | None = None
    binaries: tuple[Candidate, ...] = ()
    warnings: list[str] = field(default_factory=list)


@contextmanager
def open_dump(path: Path) -> Iterator[Dump]:
    """
    Open and read.

    Errors: DumpUnreadable with a sentence for everything that is no dump; FormatError for a broken one.
    """
    with _plain_file(path) as (fd, file, warnings):
        before = os.fstat(fd)
        dump = _read(path, file)
        dump.warnings += warnings
        yield dump
        after = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DumpUnreadable(
                f"{path} is still being written: it changed while it was read",
                hint="Wait until its size no longer changes, then verify again.",
            )


def is_heap_dump(path: Path) -> bool:
    """Whether the file, plain or compressed, is an .hprof."""
    if not path.is_file():
        return False
    with open_stream(path) as stream:
        return stream.read(len(HPROF)) == HPROF


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """
    A file's bytes in order, unpacked when it is gz or zst; the reader bounds how much it takes.

    Errors: DumpUnreadable, also for a packed stream that is damaged.
    """
    import gzip
    import zlib

    try:
        with path.open("rb") as raw:
            head = raw.read(4)
            raw.seek(0)
            if head[:2] == GZIP:
                with gzip.open(raw, "rb") as unpacked:
                    yield unpacked  # type: ignore[misc] # GzipFile reads like any binary file
            elif head == ZSTD:
                with _zstd().ZstdFile(raw, "rb") as unpacked:
                    yield unpacked
            else:
                yield raw
    except (OSError, EOFError, zlib.error, _zstd().ZstdError) as error:
        raise DumpUnreadable(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


@contextmanager
def _plain_file(path: Path) -> Iterator[tuple[int, OpenFile, list[str]]]:
    """The file itself, the same unpacked, and what was wrong with it."""
    try:
        status = path.stat()
    except OSError as error:
        raise DumpUnreadable(f"{path} cannot be opened ({error.strerror})") from None
    if stat.S_ISDIR(status.st_mode):
        raise DumpUnreadable(f"{path} is a folder and no bundle", hint="Give the dump file, or a bundle of pmf.")
    if not stat.S_ISREG(status.st_mode):
        raise DumpUnreadable(
            f"{path} is a pipe or a device", hint="Write the dump to a file first: identities lie all over it."
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DumpUnreadable(f"{path} cannot be opened ({error.strerror})") from None
    try:
        head = os.pread(fd, 8, 0)
        if head[:2] == GZIP or head[:4] == ZSTD:
            with tempfile.TemporaryFile(prefix="pmf-unpacked-") as unpacked:
                warnings = _unpack(path, fd, head, unpacked)
                yield fd, OpenFile(unpacked.fileno(), os.fstat(unpacked.fileno()).st_size), warnings
        else:
            yield fd, OpenFile(fd, os.fstat(fd).st_size), []
    finally:
        os.close(fd)


def _unpack(path: Path, fd: int, head: bytes, into: Any) -> list[str]:
    """Unpack to a file, zeros as holes, within bounds; a cut stream gives what it has and a warning."""
    import zlib

    packed_bytes = os.fstat(fd).st_size
    most_bytes = max(UNPACK_FREELY_BYTES, packed_bytes * UNPACK_RATIO)
    room = shutil.disk_usage(tempfile.gettempdir()).free - KEEP_FREE_BYTES
    written = held = 0
    with os.fdopen(os.dup(fd), "rb") as raw:
        raw.seek(0)
        stream: Any = _zstd().ZstdFile(raw, "rb") if head[:4] == ZSTD else __import__("gzip").open(raw, "rb")
        try:
            while chunk := stream.read1(MIB):  # read() loses up to 1 MiB before the place where a stream is cut
                written += len(chunk)
                if written > most_bytes:
                    raise DumpUnreadable(
                        f"{path} unpacks to more than {UNPACK_RATIO} times its size: pmf stops there",
                        hint="If you trust it, unpack it yourself and verify the file.",
                    )
                if chunk.count(0) == len(chunk):
                    into.seek(len(chunk), os.SEEK_CUR)
                    continue
                held += len(chunk)
                if held > room:
                    raise DumpUnreadable(
                        f"{path} needs more room to unpack than {tempfile.gettempdir()} has",
                        hint="Set TMPDIR to a larger volume.",
                    )
                into.write(chunk)
        except (EOFError, zlib.error, OSError, _zstd().ZstdError) as error:
            into.truncate(written)
            into.flush()
            return [f"the compressed file is cut or damaged after {written:,} unpacked bytes ({str(error)[:120]})"]
    into.truncate(written)
    into.flush()
    return []


def _read(path: Path, file: OpenFile) -> Dump:
    head = file.read(0, 4096)
    if not head:
        raise DumpUnreadable(f"{path} is empty", hint="The dump was never written: ask what ended it.")
    if _is_binary(path, file, head):
        return _binary(path, file)
    with naming(path):
        return _read_dump(path, file, head)


def _is_binary(path: Path, file: OpenFile, head: bytes) -> bool:
    with naming(path):
        if head[:4] == b"\x7fELF":
            return parse_elf_header(head).elf_type != ET_CORE
        if is_macho(head):
            return not any(one.file_type == MH_CORE for one in read_macho_slices(file.read, file.size))
        return head[:2] == b"MZ"


def _read_dump(path: Path, file: OpenFile, head: bytes) -> Dump:
    if head[:4] == b"\x7fELF":
        from pmforensics.formats.core import read_core

        core = read_core(file.read, file.size)
        return Dump(path, file, core.images, core)
    if head[:4] == b"MDMP":
        from pmforensics.formats.minidump import read_minidump_images

        return Dump(path, file, read_minidump_images(file.read, file.size))
    if is_macho(head):
        return Dump(path, file, read_macho_core_images(file.read, file.size))
    for magic, what in ARCHIVES.items():
        if head.startswith(magic):
            raise DumpUnreadable(f"{path} is {what}", hint="Unpack it first.")
    if head[257:262] == b"ustar":
        raise DumpUnreadable(f"{path} is a tar archive", hint="Unpack it first.")
    return _text(path, file, head)


def _text(path: Path, file: OpenFile, head: bytes) -> Dump:
    from pmforensics.formats.apple_crash import MAX_REPORT_BYTES, read_apple_crash

    if not CONTROLS.search(head) and file.size <= MAX_REPORT_BYTES:
        try:
            return Dump(path, file, read_apple_crash(file.read(0, file.size)))
        except FormatError:
            raise DumpUnreadable(
                f"{path} is text and no crash report with a list of images",
                hint="A dump that was opened in an editor, or an error page saved as a dump? Fetch it again.",
            ) from None
    raise DumpUnreadable(
        f"{path} is no dump that pmf can read",
        hint="ELF cores, minidumps, Mach-O cores, .ips, .crash, .hprof and pmf bundles can be verified.",
    )


def _binary(path: Path, file: OpenFile) -> Dump:
    """A binary in the dump's place: its own identity, to hold a debug file or dSYM against."""
    candidates = tuple(read_candidate(path))
    images = tuple(
        DumpImage(
            candidate.name,
            None,
            tuple(Reading(one, 0, "the file itself") for one in candidate.ids),
            None if candidate.ids else Unread.NO_ID,
            is_main=True,
            machine=candidate.slice,
            says=candidate.says,
        )
        for candidate in candidates
    )
    return Dump(path, file, DumpImages(BINARY, images, file.size), binaries=candidates)


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # new in Python 3.14
    except ImportError:
        from backports import zstd  # type: ignore[no-redef, unused-ignore] # below 3.14
    return zstd
