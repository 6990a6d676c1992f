"""
The images and build IDs of large ELF cores, against eu-unstrip, gdb and drgn on the same cores in one run.

Three real kernel cores: A is 4 GB (sparse) with 200 libraries and 65 threads; B has 41,000 segments; C has 72,000, so
that the count overflows e_phnum and the kernel leaves NT_FILE out.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.timing import PMF, PYTHON, in_turn, row, timed

MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
LIBRARIES = 200

DRGN = """
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
modules = [module for module, _ in program.loaded_modules()]
print(len([module for module in modules if module.build_id]), "of", len(modules))
"""

# argv: "images" or "pages" or "files", a count, a file to map. Dies by abort().
C_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static pthread_barrier_t all_run;
static void *run(void *unused) { pthread_barrier_wait(&all_run); for (;;) pause(); return unused; }
static void require(int holds, const char *what) { if (!holds) { perror(what); exit(1); } }
int main(int argc, char **argv)
{
    long count = argc > 2 ? atol(argv[2]) : 0, page = 4096;
    if (!strcmp(argv[1], "files")) {
        /* Every other page of a file, each written to: no two mappings can be merged. */
        int fd = open(argv[3], O_RDWR);
        require(fd >= 0, "open");
        for (long i = 0; i < count; i++) {
            char *at = mmap(0, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 2 * i * page);
            require(at != MAP_FAILED, "mmap");
            at[0] = 1;
        }
        abort();
    }
    char name[64];
    for (int i = 0; i < LIBRARIES; i++) {
        snprintf(name, sizeof name, "./lib%d.so", i);
        require(dlopen(name, RTLD_NOW) != 0, dlerror());
    }
    pthread_barrier_init(&all_run, 0, 65);
    for (int i = 0; i < 64; i++) {
        pthread_t thread;
        require(!pthread_create(&thread, 0, run, 0), "pthread_create");
    }
    pthread_barrier_wait(&all_run);
    if (!strcmp(argv[1], "images")) {
        char *memory = mmap(0, count << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        require(memory != MAP_FAILED, "mmap");
        for (long i = 0; i < count; i += 16)
            memory[i << 20] = 1;
    } else {
        char *memory = mmap(0, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        require(memory != MAP_FAILED, "mmap");
        for (long i = 0; i < count; i++) {
            memory[i * page] = 1;
            if (i & 1)
                require(!mprotect(memory + i * page, page, PROT_READ), "mprotect");
        }
    }
    abort();
}
"""


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _dump(folder: Path, name: str, *argv: str) -> Path | None:
    """A core of the program, renamed; None where the kernel writes none."""
    subprocess.run(["./program", *argv], cwd=folder, preexec_fn=_limits, stderr=subprocess.DEVNULL, check=False)
    written = next(iter(folder.glob("core*")), None)
    return written.rename(folder / f"{name}.dump") if written else None


@contextmanager
def _mappings_allowed(count: int) -> Iterator[None]:
    before = MAX_MAP_COUNT.read_text()
    MAX_MAP_COUNT.write_text(str(max(count, int(before))))
    try:
        yield
    finally:
        MAX_MAP_COUNT.write_text(before)


def _build(folder: Path) -> None:
    (folder / "program.c").write_text(C_SOURCE.replace("LIBRARIES", str(LIBRARIES)))
    subprocess.run(["gcc", "-pthread", "-Wl,--build-id", "-o", "program", "program.c", "-ldl"], cwd=folder, check=True)
    (folder / "lib.c").write_text("int number(void) { return NUMBER; }\n")
    for number in range(LIBRARIES):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-Wl,--build-id", f"-DNUMBER={number}", "-o", f"lib{number}.so", "lib.c"],
            cwd=folder,
            check=True,
        )
    # The name is long so that 72,000 rows exceed the 4 MiB that the kernel allows NT_FILE.
    with (folder / "a-file-of-many-pages-mapped-one-by-one").open("wb") as file:
        file.truncate(2 * 72_000 * 4096)


def _drgn(folder: Path) -> Path | None:
    """A Python with drgn in an environment of its own; None where it cannot be had."""
    python = folder / "drgn" / "bin" / "python"
    made = subprocess.run([sys.executable, "-m", "venv", folder / "drgn"], capture_output=True, check=False)
    if made.returncode:
        return None
    got = subprocess.run([python, "-m", "pip", "install", "-q", "drgn"], capture_output=True, check=False)
    return None if got.returncode else python


def _said(argv: Sequence[str], folder: Path) -> str:
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False).stdout


def _compare(folder: Path, core: Path, what: str, asked: str, runs: int) -> None:
    ours = [PMF, "verify", str(core), str(folder / "program"), "--json"]
    drgn = _drgn_command(folder, core)
    peers = {
        "eu-unstrip": ["eu-unstrip", "-n", f"--core={core}"],
        "gdb": ["gdb", "-q", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "info sharedlibrary",
                str(folder / "program"), str(core)],
    }  # fmt: skip
    if drgn:
        peers["drgn"] = drgn
    peak_mb = 0.0

    def our_s() -> float:
        nonlocal peak_mb
        done = timed(ours)
        assert done.exit_code == 0, "the executable is the core's own"
        peak_mb = max(peak_mb, done.peak_mb)
        return done.wall_s

    start_s, median_s = in_turn(runs, lambda: timed([PYTHON, "-c", "pass"]).wall_s, our_s)
    size = f"{core.stat().st_size / 1e9:.1f} GB"
    images = json.loads(_said(ours, folder))["images"]
    found = f"{sum(bool(row['id'] or row['candidate']) for row in images)} of {len(images)}"
    complete = {
        "eu-unstrip": lambda text: f"{len(re.findall('[0-9a-f]{40}@', text))} ids",
        "gdb": lambda text: f"{len(re.findall('^0x', text, re.MULTILINE))} libraries, no ids",
        "drgn": str.strip,
    }
    for name in ("eu-unstrip", "gdb", "drgn"):
        if name not in peers or not shutil.which(peers[name][0]):
            row(f"{what}, {size}", f"{median_s:.2f} s", f"{name} is not here", "-", asked)
            continue
        # One run: eu-unstrip needs up to a minute.
        peer = timed(peers[name], cwd=folder)
        row(
            f"{what}, {size}",
            f"{median_s:.2f} s ({median_s - start_s:.2f} s above start), {peak_mb:.0f} MB; {found} with id",
            f"{name} {peer.wall_s:.2f} s, {peer.peak_mb:.0f} MB; {complete[name](_said(peers[name], folder))}",
            f"{peer.wall_s / median_s:.1f} times as fast",
            asked,
        )


def _drgn_command(folder: Path, core: Path) -> list[str] | None:
    python = folder / "drgn" / "bin" / "python"
    return [str(python), "-c", DRGN, str(core)] if (folder / "drgn" / "lib").exists() and python.exists() else None


def run(runs: int = 5) -> None:
    """Make the three cores, compare, remove them."""
    if CORE_PATTERN.read_text().startswith("|"):
        row("images of a core", "-", "the kernel hands cores to a program here (core_pattern)", "-", "-")
        return
    folder = Path(tempfile.mkdtemp(dir=Path.cwd() / ".cache"))
    try:
        _build(folder)
        if _drgn(folder) is None:
            shutil.rmtree(folder / "drgn", ignore_errors=True)
        core = _dump(folder, "a", "images", "4096")
        if core:
            _compare(folder, core, "A: 200 libraries, 65 threads", "0.4 s above start, 60 MB", runs)
            core.unlink()
        core = _dump(folder, "b", "pages", "40000")
        if core:
            _compare(folder, core, "B: 41,000 segments", "2 s; 5 times as fast as eu-unstrip", runs)
            core.unlink()
        try:
            with _mappings_allowed(100_000):
                core = _dump(folder, "c", "files", "72000", "a-file-of-many-pages-mapped-one-by-one")
        except PermissionError:
            row("C: 72,000 segments", "-", "vm.max_map_count cannot be raised here", "-", "-")
            return
        if core:
            _compare(folder, core, "C: 72,000 segments", "3.5 s; 10 times as fast as eu-unstrip", runs)
    finally:
        shutil.rmtree(folder)
