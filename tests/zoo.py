"""
Starts the sick programs of fixtures/zoo/ for tests, and ends them for certain.

    with zoo.start("go", "producer-gone", 1000) as sick:
        capture(sick.pid)
        sick.assert_alive()

A program is "go", "java", "java17", "java25" (any version), "python", "node" or "c". Those that need building
are built on demand into .cache/zoo/. What a machine lacks is returned by name (missing), so
that a test can be skipped with it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
ZOO = REPO / "fixtures" / "zoo"
# Some tests give a program a /tmp of its own, which would hide a checkout that lies in /tmp.
CACHE = Path("/var/tmp") / f"pmf-zoo-{os.getuid()}" if Path("/tmp") in REPO.parents else REPO / ".cache" / "zoo"
PROGRAMS = ("go", "java17", "java25", "python", "node", "c")

READY_S = 120.0  # how long a program may take to fall sick on a loaded machine
BEAT_S = 60.0  # how long a heartbeat may stand still before its process counts as stopped
KILL_S = 60.0  # how long a SIGKILLed process may take to go

_GO_ENV = {
    "GOTOOLCHAIN": "local",
    "GOPROXY": "off",
    "GOFLAGS": "-mod=mod",
    "GOENV": "off",
    "CGO_ENABLED": "0",
    "GOCACHE": str(REPO / ".cache" / "go-build"),
    "GOPATH": str(REPO / ".cache" / "go"),
}
_GO_BUILD = ("build", "-trimpath", "-buildvcs=false")
# No fortification and no canary: the way "smash" must reach its wild return.
_C_FLAGS = ("-g", "-O1", "-Wl,--build-id", "-pthread", "-fno-stack-protector", "-U_FORTIFY_SOURCE")
_JAVAC_FLAGS = ("--release", "17")
_JAR_MANIFEST = """\
Manifest-Version: 1.0
Main-Class: Zoo
Implementation-Title: zoo
Implementation-Version: 1.0
"""


class ZooError(Exception):
    """A zoo program could not be built or did not say ready; the text holds what it printed."""


# ---- toolchains


@functools.cache
def find_tool(name: str) -> Path | None:
    """Finds an executable in the running environment's bin directory, else on PATH."""
    beside = Path(sys.prefix) / "bin" / name
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def get_tool(name: str) -> Path:
    """As find_tool; raises ZooError when there is none."""
    found = find_tool(name)
    if found is None:
        raise ZooError(f"no {name} here")
    return found


@functools.cache
def jdk(version: int | None = None) -> Path | None:
    """The home of a JDK of that feature version, or of any: from JAVA_HOME, then PATH, then /usr/lib/jvm."""
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    on_path = shutil.which("javac")
    if on_path:
        homes.append(Path(on_path).resolve().parent.parent)
    jvm = Path("/usr/lib/jvm")
    homes += sorted(jvm.iterdir()) if jvm.is_dir() else []
    for home in homes:
        parts = (home / "release", home / "bin" / "java", home / "bin" / "javac")
        if not all(part.is_file() for part in parts):
            continue
        feature = re.search(r'^JAVA_VERSION="(\d+)', parts[0].read_text(), re.MULTILINE)
        if feature and version in (None, int(feature[1])):
            return home
    return None


def missing(*tools: str) -> list[str]:
    """
    Which of these this machine lacks.

    A tool is the name of an executable, "jdk", "jdk17" (any version), "py:NAME" for a Python module, or "root" for the
    right to be root.
    """
    lacking = []
    for tool in tools:
        java = re.fullmatch(r"jdk(\d*)", tool)
        if java:
            here = jdk(int(java[1]) if java[1] else None) is not None
        elif tool.startswith("py:"):
            here = importlib.util.find_spec(tool.removeprefix("py:")) is not None
        elif tool == "root":
            here = os.geteuid() == 0
        else:
            here = find_tool(tool) is not None
        if not here:
            lacking.append(tool)
    return lacking


def tools(program: str) -> tuple[str, ...]:
    """What building and running a program needs, in the words that missing() understands."""
    if program.startswith("java"):
        return (f"jdk{program.removeprefix('java')}",)
    return {"go": ("go",), "c": ("gcc",), "node": ("node",), "python": ()}[program]


def _java_home(program: str) -> Path:
    version = program.removeprefix("java")
    home = jdk(int(version) if version else None)
    if home is None:
        raise ZooError(f"no jdk{version} here")
    return home


# ---- building


def build(program: str, cache: Path = CACHE) -> Path:
    """
    The program's runnable file: an executable, zoo.jar, or the script itself.

    Built once per sources, flags and toolchain version, in a private directory that is then renamed, so that
    builds may run at the same time. Raises ZooError with the compiler's words.
    """
    if program == "python":
        return ZOO / "python" / "zoo.py"
    if program == "node":
        return ZOO / "node" / "zoo.js"
    language = "java" if program.startswith("java") else program
    output = "zoo.jar" if language == "java" else "zoo"
    done = cache / _cache_key(program, language)
    if not (done / output).exists():
        cache.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
        try:
            if language == "go":
                _run([get_tool("go"), *_GO_BUILD, "-o", private / output, "."], ZOO / "go", _GO_ENV)
            elif language == "c":
                source_map = f"-ffile-prefix-map={ZOO / 'c'}=."
                _run([get_tool("gcc"), *_C_FLAGS, source_map, "-o", private / output, "zoo.c"], ZOO / "c")
            else:
                _build_jar(_java_home(program), private, private / output)
            try:
                private.rename(done)
            except OSError:
                if not (done / output).exists():  # else another build of the same was first
                    raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
    return done / output


@functools.cache
def _toolchain_version(program: str) -> str:
    if program == "go":
        return _run([get_tool("go"), "version"], ZOO / "go", _GO_ENV)
    if program == "c":
        return _run([get_tool("gcc"), "--version"], ZOO / "c")
    return (_java_home(program) / "release").read_text()


def _cache_key(program: str, language: str) -> str:
    flags = {"go": (*_GO_BUILD, _GO_ENV), "c": _C_FLAGS, "java": (*_JAVAC_FLAGS, _JAR_MANIFEST)}[language]
    digest = hashlib.sha256(repr((language, _toolchain_version(program), flags)).encode())
    sources = sorted(path for path in (ZOO / language).rglob("*") if path.is_file())
    for path in sources:
        digest.update(repr((str(path.relative_to(ZOO)), path.read_bytes())).encode())
    return digest.hexdigest()


def _build_jar(home: Path, work: Path, jar: Path) -> None:
    classes = work / "classes"
    _run([home / "bin" / "javac", *_JAVAC_FLAGS, "-d", classes, "Zoo.java"], ZOO / "java")
    with zipfile.ZipFile(jar, "w") as archive:
        # ZipInfo's own date, 1980, makes the same classes the same jar.
        archive.writestr(zipfile.ZipInfo("META-INF/MANIFEST.MF"), _JAR_MANIFEST)
        for path in sorted(classes.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    shutil.rmtree(classes)


def _run(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if ran.returncode != 0:
        raise ZooError(f"{' '.join(map(str, command))}: exit {ran.returncode}\n{ran.stderr}")
    return ran.stdout


# ---- running


@dataclass(frozen=True, slots=True)
class Sick:
    """A zoo program that has said ready."""

    pid: int  # of the sick process itself, as seen from here, whatever prefix or parent started it
    popen: subprocess.Popen[bytes]
    ready: dict[str, Any]
    heartbeat: Path  # lines "counter monotonic_ns", one every 20 ms while the process runs
    stderr: Path
    directory: Path  # its own temporary directory, and its working directory unless another was asked for

    def beats(self) -> int:
        """The heartbeat's counter; 0 before the first beat."""
        beats = self._beats(tail_bytes=4096)
        return beats[-1][0] if beats else 0

    def longest_pause_ns(self, since_ns: int = 0) -> int:
        """The longest time between two beats, the later of them after since_ns (time.monotonic_ns())."""
        ends = [at for _, at in self._beats()]
        return max((end - start for start, end in itertools.pairwise(ends) if end > since_ns), default=0)

    def assert_alive(self) -> None:
        """Raises AssertionError when a thread is stopped, traced or dead, or the heartbeat stands still."""
        for task in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while we look
                state = task.read_text().rpartition(")")[2].split()[0]
                assert state not in "TtZXx", f"thread {task.parent.name} of {self.pid} is in state {state}"
        before = self.beats()
        give_up = time.monotonic() + BEAT_S
        while self.beats() <= before:
            assert Path(f"/proc/{self.pid}").exists(), f"process {self.pid} is gone"
            assert time.monotonic() < give_up, f"the heartbeat of {self.pid} stands still at {before}"
            time.sleep(0.01)

    def _beats(self, tail_bytes: int | None = None) -> list[tuple[int, int]]:
        with self.heartbeat.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, self.heartbeat.stat().st_size - tail_bytes))
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1].splitlines()
            # A tail may begin inside a line.
            beats = whole[1:] if file.tell() > len(text) else whole
        return [(int(counter), int(at)) for counter, at in (line.split() for line in beats)]


def ways(program: str) -> dict[str, str]:
    """The program's ways and what they do, in the program's own words (--list)."""
    listed = _run([*_command(program), "--list"], ZOO)
    return dict(line.split("\t", 1) for line in listed.splitlines())


@contextmanager
def start(
    program: str,
    way: str,
    *args: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Sick]:
    """
    Runs a program until it has said ready, yields it, and at the end kills it with all that it started.

    env is added to the environment; prefix is a command that runs the program, as ("unshare", "--pid") is.
    Its stderr goes to a file. Raises ZooError when it ends before it is ready, or is not ready after READY_S.
    """
    command = _command(program)
    _watch_over_this_run()
    marker = f"{_SESSION}-{next(_RUNS)}"
    directory = Path(tempfile.mkdtemp(prefix="zoo-"))
    directory.chmod(0o777)  # a prefix may run the program as another user
    if (program, way) == ("node", "report"):
        command[1:1] = ["--report-on-signal", f"--report-directory={directory}"]
    heartbeat, stderr = directory / "heartbeat", directory / "stderr.log"
    heartbeat.touch()
    heartbeat.chmod(0o666)
    name, _, value = marker.partition("=")
    ours = {"ZOO_HEARTBEAT": str(heartbeat), "TMPDIR": str(directory), name: value}
    try:
        with stderr.open("wb") as errors:
            popen = subprocess.Popen(
                [*prefix, *map(str, command), way, *map(str, args)],
                env={**os.environ, **ours, **(env or {})},
                cwd=cwd or directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            ready = _await_ready(popen, stderr)
            sick = Sick(_pid_here(marker, ready["pid"]), popen, ready, heartbeat, stderr, directory)
            yield sick
        finally:
            _kill_all(f"{marker}\0")
            popen.kill()
            popen.wait()
            assert popen.stdout is not None
            popen.stdout.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _command(program: str) -> list[Path | str]:
    runnable = build(program)
    if program.startswith("java"):
        return [_java_home(program) / "bin" / "java", "-jar", runnable]
    if program == "python":
        return [sys.executable, runnable]
    if program == "node":
        return [get_tool("node"), runnable]
    return [runnable]


def _await_ready(popen: subprocess.Popen[bytes], stderr: Path) -> dict[str, Any]:
    assert popen.stdout is not None
    fd = popen.stdout.fileno()
    give_up = time.monotonic() + READY_S
    said = b""
    while not said.endswith(b"\n"):
        left = give_up - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise ZooError(f"not ready after {READY_S:.0f} s; it said {said!r} and {_tail(stderr)!r}")
        # Byte by byte, so that what follows the line stays in the pipe.
        byte = os.read(fd, 1)
        if not byte:
            raise ZooError(f"ended before ready ({popen.wait()}); it said {said!r} and {_tail(stderr)!r}")
        said += byte
    word, _, fields = said.decode().partition(" ")
    if word != "ready":
        raise ZooError(f"said {said!r} instead of ready")
    ready: dict[str, Any] = json.loads(fields)
    return ready


def _tail(stderr: Path) -> str:
    return stderr.read_text(errors="replace")[-4096:]


# ---- ending what was started

# Every process that a run starts inherits this variable, by which it is found wherever it has moved to.
_SESSION = f"ZOO_RUN={uuid.uuid4().hex}"
_RUNS = itertools.count(1)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _is_marked(pid: int, marker: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
    return f"\0{marker}".encode() in b"\0" + environ


def _pid_here(marker: str, pid_there: int) -> int:
    """The pid, in our pid namespace, of the marked process that calls itself pid_there in its own."""
    for pid in _pids():
        if _is_marked(pid, f"{marker}\0"):
            with suppress(OSError):
                chain = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                if chain and int(chain[1].split()[-1]) == pid_there:
                    return pid
    raise ZooError(f"ready names process {pid_there}, which is not there")


def _kill_all(marker: str) -> None:
    """SIGKILLs every process whose environment holds marker, until there is none."""
    give_up = time.monotonic() + KILL_S
    while marked := [pid for pid in _pids() if _is_marked(pid, marker)]:
        for pid in marked:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    # Asked again now that the pid is pinned: it may have passed to a stranger since.
                    if _is_marked(pid, marker):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        if time.monotonic() > give_up:
            raise ZooError(f"{marked} do not die")
        time.sleep(0.005)


@functools.cache
def _watch_over_this_run() -> None:
    """Starts a process that outlives this one, even if SIGKILLed, and then kills what it left behind."""
    watcher = subprocess.Popen(
        [sys.executable, __file__, _SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(watcher.communicate)


def _watch(session: str) -> None:
    sys.stdin.read()  # ends when the last holder of the other end, the test run, has ended
    _kill_all(f"{session}-")


if __name__ == "__main__":
    _watch(sys.argv[1])
