"""
Real programs, real cores, and what verification says of them.

    report = judge(core, program)
    assert verdict_of(report, program) == ("MATCH", "same-id")
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pmforensics.model.image import DumpImage
from pmforensics.verify.candidates import read_candidates
from pmforensics.verify.dumps import open_dump
from pmforensics.verify.identity import verify_identity
from pmforensics.verify.verdict import IdentityReport, Row
from tests import zoo
from tests.formats.test_core import run

CRASH = "#include <stdlib.h>\nint main(void) { abort(); }\n"
REBUILT = zoo.REPO / "fixtures" / "rebuilt-library" / "make"


@dataclass(frozen=True)
class Crashed:
    """A program and the core that the kernel wrote of it, with the contents of its text too."""

    program: Path
    core: Path


@dataclass(frozen=True)
class Rebuilt:
    """A crash in a library that was rebuilt since: see fixtures/rebuilt-library/make."""

    folder: Path

    @property
    def core(self) -> Path:
        return self.folder / "checkout.core"

    @property
    def program(self) -> Path:
        return self.folder / "srv" / "checkout"

    @property
    def now(self) -> Path:
        """The library as it is now."""
        return self.folder / "srv" / "libprice.so"

    @property
    def then(self) -> Path:
        """The library as it was."""
        return self.folder / "release-1.0" / "libprice.so"


def judge(dump: Path, *candidates: Path, strict: bool = False) -> IdentityReport:
    """What `pmf verify` works out, as objects."""
    given, trouble = read_candidates(candidates)
    with open_dump(dump) as opened:
        return verify_identity(opened, given, strict=strict, trouble=trouble)


def rows_for(report: IdentityReport, candidate: Path) -> list[Row]:
    """The rows in which this file was held against something."""
    return [row for row in report.rows if row.candidate is not None and row.candidate.path == candidate]


def row_for(report: IdentityReport, candidate: Path) -> Row:
    """The one such row."""
    (row,) = rows_for(report, candidate)
    return row


def verdict_of(report: IdentityReport, candidate: Path) -> tuple[str, str]:
    """Verdict and code of that row."""
    row = row_for(report, candidate)
    return row.verdict.value, row.code


def main_of(report: IdentityReport) -> DumpImage:
    """The executable in the dump."""
    found = {id(row.image): row.image for row in report.rows if row.image is not None and row.image.is_main}
    (image,) = found.values()
    return image


def gdb_core(program: Path, core: Path) -> Path:
    """Runs a program that dies under gdb, which writes the core."""
    commands = ("-ex", "run", "-ex", f"generate-core-file {core}")
    run("gdb", "--nx", "-q", "-batch", "-iex", "set debuginfod enabled off", *commands, program)
    return core


def copied(program: Path, name: str, command: Callable[[Path, Path], object] = shutil.copy) -> Path:
    """Another file beside it, made by `command`."""
    other = program.with_name(name)
    command(program, other)
    return other


def edited(program: Path, name: str, at: int, new: bytes) -> Path:
    """A copy with other bytes in one place."""
    data = bytearray(program.read_bytes())
    assert data[at : at + len(new)] != new
    data[at : at + len(new)] = new
    other = program.with_name(name)
    other.write_bytes(data)
    other.chmod(0o755)
    return other


def symbol(program: Path, name: str) -> int:
    """Where a symbol is, by nm."""
    listed = run("nm", program)
    (line,) = (line for line in listed.splitlines() if line.endswith(f" {name}"))
    return int(line.split()[0], 16)


def fixed_id(number: int) -> str:
    """The flag for a build ID that is not made from the contents."""
    return f"-Wl,--build-id=0x{number:040x}"


def start(*command: str | Path, cwd: Path) -> subprocess.Popen[bytes]:
    """A program that says "ready" on its standard output."""
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child
