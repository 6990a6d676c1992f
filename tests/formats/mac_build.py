"""Builds macOS programs with clang and ld64.lld; no SDK is needed, because a stub stands in for libSystem."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import zoo

ARCHES = ("x86_64", "arm64")


def tool(name: str) -> str:
    """The name under which a tool of LLVM is here; Debian gives some of them with their version only."""
    if zoo.find_tool(name) is not None:
        return name
    versioned = re.compile(re.escape(name) + r"-(\d+)")
    found = {
        int(match[1]): match[0]
        for folder in os.environ.get("PATH", "").split(os.pathsep)
        if os.path.isdir(folder)
        for match in map(versioned.fullmatch, os.listdir(folder))
        if match
    }
    return found[max(found)] if found else name


CLANG, LD, DSYMUTIL, LIPO, OTOOL = map(tool, ("clang", "ld64.lld", "dsymutil", "llvm-lipo", "llvm-otool"))
DWARFDUMP, AR, NM, READOBJ = map(tool, ("llvm-dwarfdump", "llvm-ar", "llvm-nm", "llvm-readobj"))
TOOLS = (CLANG, LD, DSYMUTIL, LIPO, OTOOL, DWARFDUMP)

LIBRARY = "int answer(int question) {{ return question * 6 + {number}; }}\n"
PROGRAM = "int answer(int); int main(void) { return answer(7); }\n"
LIBSYSTEM = """\
--- !tapi-tbd
tbd-version: 4
targets: [ x86_64-macos, arm64-macos ]
install-name: /usr/lib/libSystem.B.dylib
exports:
  - targets: [ x86_64-macos, arm64-macos ]
    symbols: [ dyld_stub_binder ]
...
"""


@dataclass(frozen=True)
class Build:
    """A program and the library that it calls, of one architecture or of several."""

    program: Path
    library: Path


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    environment = os.environ | (env or {})
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, errors="backslashreplace")
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def build(folder: Path, arch: str, *, number: int = 0, debug: bool = True) -> Build:
    """The library's one function returns another `number` for another build; version 1.2.3, for macOS 11.0."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libSystem.tbd").write_text(LIBSYSTEM)
    (folder / "answer.c").write_text(LIBRARY.format(number=number))
    (folder / "main.c").write_text(PROGRAM)
    for source in ("answer", "main"):
        flags = ("-g",) if debug else ()
        run(CLANG, "-target", f"{arch}-apple-macos11", *flags, "-c", f"{source}.c", "-o", f"{source}.o", cwd=folder)
    linker = (LD, "-arch", arch, "-platform_version", "macos", "11.0", "11.3", "libSystem.tbd")
    library = ("-dylib", "-install_name", "/opt/answer/libanswer.dylib", "-current_version", "1.2.3")
    run(*linker, *library, "answer.o", "-o", "libanswer.dylib", cwd=folder)
    run(*linker, "main.o", "libanswer.dylib", "-o", "ask", cwd=folder)
    return Build(folder / "ask", folder / "libanswer.dylib")


def join(output: Path, *files: Path) -> Path:
    """One fat file out of several thin ones."""
    run(LIPO, "-create", *files, "-output", output)
    return output


def dsym(binary: Path, output: Path) -> Path:
    """The file inside the dSYM folder that dsymutil makes; for a fat one it calls a program named lipo."""
    tools = output.parent / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "lipo").exists():
        (tools / "lipo").symlink_to(zoo.get_tool(LIPO))
    run(DSYMUTIL, binary, "-o", output, env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"})
    (inner,) = (output / "Contents" / "Resources" / "DWARF").iterdir()
    return inner


def uuids(path: Path) -> dict[str, str]:
    """UUID by architecture, in the words of llvm-dwarfdump."""
    found = re.findall(r"^UUID: ([0-9A-F-]{36}) \((\w+)\)", run(DWARFDUMP, "--uuid", path), re.MULTILINE)
    return {arch: uuid.replace("-", "").lower() for uuid, arch in found}
