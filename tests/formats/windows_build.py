"""Builds Windows programs with clang and lld-link; no SDK is needed, because they call nothing."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import zoo

TOOLS = ("clang", "lld-link")
TRIPLES = {"x86": "i686-pc-windows-msvc", "amd64": "x86_64-pc-windows-msvc", "arm64": "aarch64-pc-windows-msvc"}

SOURCE = """\
int _fltused;
int answer(int question) {{ return question * 3 + {number}; }}
int entry(void) {{ return answer(4); }}
"""


@dataclass(frozen=True)
class Program:
    """An executable and its PDB."""

    exe: Path
    pdb: Path


def run(*command: str | Path, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="backslashreplace")
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def build(
    folder: Path, machine: str = "amd64", *, number: int = 1, name: str = "service", stamp: int = 1_700_000_000
) -> Program:
    """A program whose one function returns another `number` for another build; `stamp` becomes its time stamp."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.c").write_text(SOURCE.format(number=number))
    triple = f"--target={TRIPLES[machine]}"
    compile_flags = ("--driver-mode=cl", triple, "/c", "/Z7", "/O1", "/GS-", f"/Fo{name}.obj")
    run(zoo.get_tool("clang"), *compile_flags, "--", f"{name}.c", cwd=folder)
    link_flags = ("/nodefaultlib", "/entry:entry", "/subsystem:console", "/debug", f"/timestamp:{stamp}")
    outputs = (f"/pdb:{name}.pdb", f"/pdbaltpath:{name}.pdb", f"/out:{name}.exe")
    run(zoo.get_tool("lld-link"), *link_flags, *outputs, f"{name}.obj", cwd=folder)
    return Program(folder / f"{name}.exe", folder / f"{name}.pdb")
