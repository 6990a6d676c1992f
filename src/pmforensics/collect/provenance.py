"""What was installed and deployed: the executable's digest, and the packages of the language runtime."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.gaps import gap_of
from pmforensics.errors import CollectError, NotThere, TargetGone
from pmforensics.formats.proc import parse_maps
from pmforensics.model.capture import KIB, MIB, Artifact, Gap, Json
from pmforensics.model.process import Runtime, Target

MAX_JARS = 2_000
MAX_PACKAGES = 20_000
MANIFEST_LIMIT_BYTES = 64 * KIB
NODE_LOCKS = ("package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "package.json")
NODE_RELEASE_BYTES = 64
_NODE_RELEASE = re.compile(rb"/release/(v\d{1,4}\.\d{1,4}\.\d{1,4})/node-v")
_SITE_PACKAGES = re.compile(r"(/.*?/(?:site|dist)-packages)/")
_PYTHON_PREFIX = re.compile(r"(/.*)/bin/python[\d.]*$")


@dataclass(frozen=True, slots=True)
class Provenance:
    """
    Digests and versions that tell one deployment from another.

    Source:   the executable through /proc/PID/exe; jars among the open files and mappings; the `release` file of
              the JDK; `*.dist-info` folders beside the interpreter's modules; package.json and lock files of Node.
    Yields:   executable.json (sha256, size); jvm.json (JDK release, sha256 and manifest per jar); python.json
              (interpreter, distributions and versions); node.json (version, digest of package and lock files).
    Cost:     reads the executable and the jars once, about 1.5 GB/s; no pause.
    Partial:  what the deadline leaves out is not in the file, and a gap says so.
    Errors:   AccessDenied, NotThere per file.
    """

    name: ClassVar[str] = "provenance"
    question: ClassVar[str] = "Exactly which release, with which libraries, was running?"
    limit_s: ClassVar[float] = 5.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        parts = [("executable", self._executable)]
        if Runtime.JVM in target:
            parts.append(("jvm", self._jvm))
        if Runtime.CPYTHON in target:
            parts.append(("python", self._python))
        if Runtime.NODE in target:
            parts.append(("node", self._node))
        for name, read in parts:
            try:
                value = read(target, host)
            except TargetGone:
                raise
            except CollectError as error:
                yield gap_of(error, f"{self.name}/{name}.json", self.question)
                continue
            body = json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
            yield Artifact(f"{name}.json", body, f"/proc/{target.pid} and its file system", "application/json")

    def _executable(self, target: Target, host: Host) -> dict[str, Json]:
        fd = host.open_proc("exe")
        try:
            return {"path": target.exe, "deleted": target.exe_deleted, **_digest(fd, host)}
        finally:
            os.close(fd)

    def _jvm(self, target: Target, host: Host) -> dict[str, Json]:
        value: dict[str, Json] = {"jars": []}
        jars: list[Json] = []
        for path, number in sorted(_open_files(target, host, (".jar", ".war", ".jmod")).items())[:MAX_JARS]:
            try:
                fd = host.open_proc(f"fd/{number}")
            except CollectError as error:
                jars.append({"path": path, "refused": error.message})
                continue
            try:
                jars.append({"path": path, **_digest(fd, host), "manifest": _jar_manifest(fd)})
            finally:
                os.close(fd)
        value["jars"] = jars
        home = posixpath.dirname(posixpath.dirname(target.exe or "/"))
        for folder in (home, posixpath.dirname(home)):  # JDK 8 has its launcher one level down, in jre/bin
            try:
                value["release"] = host.read_target(f"{folder}/release", MIB).decode("utf-8", "replace")
                value["java_home"] = folder
                break
            except NotThere:
                continue
        return value

    def _python(self, target: Target, host: Host) -> dict[str, Json]:
        folders = _python_folders(target, host)
        found: dict[str, Json] = {}
        for folder in sorted(folders):
            try:
                names = host.list_target(folder)
            except CollectError:
                continue  # a guess from the interpreter's path that does not exist here
            packages: dict[str, Json] = {}
            for name in names[:MAX_PACKAGES]:
                stem, dot, kind = name.rpartition(".")
                if dot and kind in ("dist-info", "egg-info"):
                    package, _, version = stem.partition("-")
                    packages[package] = version.partition("-py")[0]
            found[folder] = packages
        return {"interpreter": target.exe, "distributions": found}

    def _node(self, target: Target, host: Host) -> dict[str, Json]:
        value: dict[str, Json] = {"executable": target.exe, "version": _node_version(host), "files": {}}
        folder = host.link_proc("cwd")
        script = next((word for word in target.argv[1:] if not word.startswith("-")), None)
        starts = [folder]
        if script is not None:
            starts.insert(0, posixpath.dirname(posixpath.join(folder, script)))
        files: dict[str, Json] = {}
        for start in starts:
            for place in _upwards(start):
                for name in NODE_LOCKS:
                    path = posixpath.join(place, name)
                    if path in files:
                        continue
                    try:
                        fd = host.open_target(path)
                    except CollectError:
                        continue
                    try:
                        files[path] = _digest(fd, host)
                    finally:
                        os.close(fd)
                if files:
                    break
        value["files"] = files
        return value


@dataclass(frozen=True, slots=True)
class Executable:
    """
    A copy of the executable itself, for when the registry has forgotten this build.

    Source:   /proc/PID/exe, also when the file was deleted or replaced.
    Yields:   the executable under its own base name.
    Cost:     one read of the file; no pause.
    Partial:  cut when the deadline or the volume's floor comes first.
    Errors:   AccessDenied, WouldHarm (no room).
    """

    name: ClassVar[str] = "executable"
    question: ClassVar[str] = "Can the evidence be symbolized when the build is gone?"
    limit_s: ClassVar[float] = 60.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = True

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        fd = host.open_proc("exe")
        try:
            host.room_for(os.fstat(fd).st_size)
            yield Artifact(
                "executable",
                host.iter_fd(fd),
                f"/proc/{target.pid}/exe ({target.exe})",
                "application/x-executable",
                bulk=True,
            )
        finally:
            os.close(fd)


def _digest(fd: int, host: Host) -> dict[str, Json]:
    digest = hashlib.sha256()
    for chunk in host.iter_fd(fd):
        digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": os.fstat(fd).st_size}


def _node_version(host: Host) -> str | None:
    """
    The version that Node was built as, from the download address that its executable carries as process.release.

    The executable is not asked: running a program of the target's is no way to look at it. None in builds without.
    """
    fd = host.open_proc("exe")
    try:
        tail = b""
        for chunk in host.iter_fd(fd):
            if match := _NODE_RELEASE.search(tail + chunk):
                return match[1].decode()
            tail = chunk[-NODE_RELEASE_BYTES:]
    finally:
        os.close(fd)
    return None


def _open_files(target: Target, host: Host, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Path to descriptor number of the files that the target holds open."""
    found: dict[str, str] = {}
    for number in host.list_proc("fd"):
        try:
            path = host.link_proc(f"fd/{number}")
        except CollectError:
            continue  # closed in between
        if path.endswith(suffixes):
            found.setdefault(path, number)
    return found


def _jar_manifest(fd: int) -> str | None:
    """META-INF/MANIFEST.MF, at most 64 KiB of it; None when there is none or the jar is broken."""
    import zipfile
    import zlib

    try:
        with (
            os.fdopen(os.dup(fd), "rb") as file,
            zipfile.ZipFile(file) as jar,
            jar.open("META-INF/MANIFEST.MF") as manifest,
        ):
            return manifest.read(MANIFEST_LIMIT_BYTES).decode("utf-8", "replace")
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return None


def _python_folders(target: Target, host: Host) -> set[str]:
    """Where this interpreter keeps distributions: beside mapped modules, and under its and its venv's prefix."""
    folders: set[str] = set()
    maps = parse_maps(host.read_proc("maps", 64 * MIB).decode("utf-8", "replace"))
    library = ""
    for mapping in maps.mappings:
        if match := _SITE_PACKAGES.match(mapping.path):
            folders.add(match[1])
        if not library and (match := re.search(r"/(python3\.\d+)/", mapping.path)):
            library = match[1]
    if not library and target.exe and (match := re.search(r"(python3\.\d+)$", target.exe)):
        library = match[1]
    starts = [target.exe or "", target.argv[0] if target.argv else ""]
    for start in starts:
        if library and (match := _PYTHON_PREFIX.match(start)):
            for kind in ("site-packages", "dist-packages"):
                folders.add(f"{match[1]}/lib/{library}/{kind}")
    if library:
        folders.add("/usr/lib/python3/dist-packages")
    return folders


def _upwards(folder: str) -> Iterator[str]:
    """The folder and its parents, root last, at most 40."""
    folder = posixpath.normpath(folder)
    for _ in range(40):
        yield folder
        if folder == "/":
            return
        folder = posixpath.dirname(folder)
