"""What the process said: the last minutes of its logs, cut out by time, byte for byte."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

from pmforensics.collect.base import Host
from pmforensics.collect.gaps import gap_of
from pmforensics.collect.journal_slice import journal_slice
from pmforensics.collect.log_slice import PACKED, LogFile, LogSlicer, Origin, refusals, shown_path
from pmforensics.collect.log_zone import Zone
from pmforensics.errors import CollectError, DeadlinePassed, NotSupported, NotThere, TargetGone
from pmforensics.model.capture import GIB, MIB, Artifact, Gap, Outcome, Reason
from pmforensics.model.process import Target

MAX_FILES = 64  # logs of one process; a program with more has one per connection or per shard
MAX_PARTS = 64  # rotated parts of one log
MAX_NAMES = 100_000  # in one folder, or descriptors of one process
FIND_READER_S = 0.5
DELETED = " (deleted)"
OUTPUTS = {1: "stdout", 2: "stderr"}

_LOG_NAME = re.compile(r"(?:^|[._-])(?:logs?|out|err|stdout|stderr)(?:[._-]|$)", re.IGNORECASE)
# A counter after a dot, or a date: "worker-1" and "worker-2" are two logs, not one that was rotated.
_TURN = (
    r"(?:\.\d{1,5}|[._-](?:\d{9,19}"
    r"|\d{4}-?\d\d(?:-?\d\d)?(?:[T_.-]?\d\d[:-]?\d\d(?:[:-]?\d\d)?(?:\.\d{1,9})?)?(?:[.-]\d{1,5})?))"
)
_TURN_AT_END = re.compile(rf"{_TURN}$")
_TURN_INSIDE = re.compile(rf"{_TURN}(?=\.[A-Za-z][\w-]{{0,15}}$)")
_NO_FILE = re.compile(r"(?!/)|/(?:dev/(?!shm/)|proc/|sys/|memfd:)")
_CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
_POD_LOG = re.compile(r"\d{1,6}\.log")
_KINDS = {"pipe:": "a pipe", "socket:": "a socket", "/dev/pts/": "a terminal", "/dev/": "a device", "": "no file"}


@dataclass(frozen=True, slots=True)
class Logs:
    """
    The lines of the last `since_s` seconds, from wherever the process leaves them.

    Source:   files named by the caller; regular files that the process has open as stdout, stderr or under a
              log's name; the container runtime's files; their rotated parts; the journal, by unit or pid. For
              stamps without a zone: TZ of /proc/PID/environ (nothing else of it), /etc/localtime of the target.
    Yields:   NN-NAME.log, the bytes as they stand in the file (.gz ones unpacked), with facts: path, inode, byte
              range, first and last stamp raw and in UTC, how the range was found; journal.export.
    Cost:     some thirty reads per file, whatever its size, and the slice itself. Rotated .gz files are unpacked
              twice. Nothing is asked of the target.
    Partial:  more than max_bytes in a slice (the newest are kept); no readable stamps (the last 4 MiB); a file
              that was truncated or rewritten while it was read; stamps that contradict the file's last change.
    Errors:   NotThere, AccessDenied, NotSupported, AnswerBroken per file; ToolMissing, ToolFailed for the journal.
    """

    name: ClassVar[str] = "logs"
    question: ClassVar[str] = "What did the process itself say before it fell sick?"
    limit_s: ClassVar[float] = 12.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    files: tuple[Path, ...] = ()
    since_s: float = 900.0
    max_bytes: int = 256 * MIB
    all_bytes: int = GIB
    journal_dir: Path | None = None
    pods_dir: Path = Path("/var/log/pods")
    docker_dir: Path = Path("/var/lib/docker/containers")

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread or bool(self.files)

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        run = _Run(self, target, host)
        nothing = True
        for item in run.everything():
            nothing = False
            yield item
        if nothing:
            reason = Reason(
                "no-log",
                "the process has no log open, and neither a container runtime nor the journal keeps one for it",
                "Name its log files with --log PATH.",
            )
            yield Gap("logs", Outcome.MISSING, reason, self.question)


def log_family(name: str) -> str:
    """
    The name that a log and its rotated parts share.

    "app.log", "app.log.1", "app.log.2.gz", "app.log-20261120", "app.2026-11-20.log" and
    "app-2026-11-20T13-15-00.123.log.gz" are all "app.log"; "app-2.log" is a log of its own.
    """
    name = PACKED.sub("", name)
    for _ in range(2):
        name = _TURN_AT_END.sub("", name) or name
    return _TURN_INSIDE.sub("", name)


# -- file systems ------------------------------------------------------------------------------------------------


class _Tree(Protocol):
    """A file system as somebody sees it."""

    def names(self, folder: str) -> list[str]: ...

    def statuses(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]: ...

    def open(self, path: str) -> int: ...


@dataclass(frozen=True, slots=True)
class _HostTree:
    host: Host

    def names(self, folder: str) -> list[str]:
        with self._touch("list", folder):
            return sorted(os.listdir(folder))

    def statuses(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
        for name in names:
            with suppress(OSError):  # it was rotated away since the folder was read
                yield name, (Path(folder) / name).stat()

    def open(self, path: str) -> int:
        with self._touch("open", path):
            # A FIFO would hang, and its writer would notice: look before opening.
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(place).st_mode):
                    raise NotSupported(f"{shown_path(path)} is not a regular file")
                return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
            finally:
                os.close(place)

    @contextmanager
    def _touch(self, verb: str, path: str) -> Iterator[None]:
        self.host.check_deadline()
        result = "ok"
        try:
            with refusals(path):
                yield
        except CollectError as error:
            result = error.code
            raise
        finally:
            self.host.note(verb, shown_path(path), result)


@dataclass(frozen=True, slots=True)
class _TargetTree:
    host: Host

    def names(self, folder: str) -> list[str]:
        return self.host.list_target(folder)

    def statuses(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
        place = self.host.target_path(folder)
        for name in names:
            with suppress(OSError):
                yield name, (place / name).lstat()  # a link would be followed from pmf's root, not the target's

    def open(self, path: str) -> int:
        return self.host.open_target(path)


@dataclass(frozen=True, slots=True)
class _Source:
    """
    One log, how to open it, and where to look for its older parts.

    trees    file systems in which log.path may be meant; the likeliest first
    is_part  whether a name in the same folder is a part of it
    """

    log: LogFile
    open: Callable[[], int]
    trees: tuple[_Tree, ...]
    is_part: Callable[[str], bool]


# -- one run -----------------------------------------------------------------------------------------------------


class _Run:
    """What has been taken already, of one target."""

    def __init__(self, wanted: Logs, target: Target, host: Host) -> None:
        self._wanted = wanted
        self._target = target
        self._host = host
        self._seen: set[tuple[int, int]] = set()
        self._streams: dict[str, list[int]] = {}  # stdout and stderr that are no files, by their links
        self._slicer = LogSlicer(
            host,
            now_s=time.time(),
            since_s=wanted.since_s,
            max_bytes=wanted.max_bytes,
            all_bytes=wanted.all_bytes,
            question=Logs.question,
        )

    def everything(self) -> Iterator[Artifact | Gap]:
        tree = _HostTree(self._host)
        for file in self._wanted.files:
            path = os.path.realpath(file)
            log = LogFile(path, Origin.GIVEN, insist=True)
            yield from self._log(_Source(log, partial(tree.open, path), (tree,), _same_family(path)))
        if not self._target.kernel_thread:
            yield from self._open_files()
        before_bytes = self._slicer.taken_bytes
        yield from self._container_logs(tree)
        kept_by_container = self._slicer.taken_bytes > before_bytes
        before_bytes = self._slicer.taken_bytes
        yield from self._journal()
        kept_by_journal = self._slicer.taken_bytes > before_bytes
        for link, fds in self._streams.items():
            if (link.startswith("pipe:") and kept_by_container) or (link.startswith("socket:") and kept_by_journal):
                continue
            yield self._unkept(link, fds)

    # -- where logs are ------------------------------------------------------------------------------------------

    def _open_files(self) -> Iterator[Artifact | Gap]:
        """What the process has open as stdout, stderr or under a log's name."""
        by_link: dict[str, list[int]] = {}
        try:
            for number in [int(name) for name in self._host.list_proc("fd")[:MAX_NAMES]]:
                with suppress(NotThere):  # closed since the list was read
                    self._sort_in(number, self._host.link_proc(f"fd/{number}"), by_link)
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone) as error:
            yield gap_of(error, "logs that the process has open", Logs.question)
            return
        trees = (_TargetTree(self._host), _HostTree(self._host))
        outputs_first = sorted(by_link.items(), key=lambda item: min([3, *OUTPUTS.keys() & set(item[1])]))
        for taken, (link, fds) in enumerate(outputs_first):
            if taken == MAX_FILES:
                reason = Reason(
                    "too-many-files",
                    f"the process has {len(by_link)} logs open and {MAX_FILES} are taken",
                    "Name the ones that matter with --log PATH.",
                )
                yield Gap(f"{len(by_link) - taken} more logs", Outcome.REFUSED, reason, Logs.question)
                return
            path = link.removesuffix(DELETED)
            log = LogFile(path, Origin.OPEN, insist=not OUTPUTS.keys().isdisjoint(fds), fds=tuple(fds))
            yield from self._log(_Source(log, partial(self._host.open_proc, f"fd/{fds[0]}"), trees, _same_family(path)))

    def _sort_in(self, number: int, link: str, by_link: dict[str, list[int]]) -> None:
        if _NO_FILE.match(link):
            if number in OUTPUTS and link != "/dev/null":
                self._streams.setdefault(link, []).append(number)
        elif number in OUTPUTS or _LOG_NAME.search(os.path.basename(link.removesuffix(DELETED))):
            by_link.setdefault(link, []).append(number)

    def _container_logs(self, tree: _HostTree) -> Iterator[Artifact | Gap]:
        """The files in which the kubelet or Docker keeps what the container prints."""
        container = self._target.container_id or ""
        if not _CONTAINER_ID.fullmatch(container):
            container = ""
        try:
            pod_logs = self._pod_logs(tree, self._target.pod_uid, container) if self._target.pod_uid else []
            docker_logs = self._docker_logs(container) if container else []
        except DeadlinePassed:
            raise
        except CollectError as error:
            yield gap_of(error, "the container's log", Logs.question)
            return
        for path in pod_logs:
            log = LogFile(path, Origin.CONTAINER, insist=True)
            # 0.log is the first instance of the container, 1.log the next: all of them are parts of one story.
            yield from self._log(_Source(log, partial(tree.open, path), (tree,), _is_pod_log))
        for path in docker_logs:
            log = LogFile(path, Origin.CONTAINER, insist=True)
            yield from self._log(_Source(log, partial(tree.open, path), (tree,), _same_family(path)))

    def _docker_logs(self, container: str) -> list[str]:
        path = str(self._wanted.docker_dir / container / f"{container}-json.log")
        return [path] if _is_there(path) else []

    def _pod_logs(self, tree: _HostTree, pod_uid: str, container: str) -> list[str]:
        """The newest file of each container of the pod; of the target's own container where that can be told."""
        root = self._wanted.pods_dir
        if not _is_there(str(root)):
            return []
        pods = [root / name for name in tree.names(str(root)) if name.endswith(f"_{pod_uid}")]
        folders = [pod / name for pod in pods for name in tree.names(str(pod)) if os.path.isdir(pod / name)]
        links = root.parent / "containers"  # POD_NAMESPACE_CONTAINER-ID.log -> pods/.../N.log
        if container and _is_there(str(links)):
            own = {
                (links / name).resolve().parent for name in tree.names(str(links)) if name.endswith(f"-{container}.log")
            }
            folders = [folder for folder in folders if folder.resolve() in own] or folders
        newest = []
        for folder in folders:
            names = [name for name in tree.names(str(folder)) if _POD_LOG.fullmatch(name)]
            if names:
                newest.append(str(folder / max(names, key=lambda name: int(name.partition(".")[0]))))
        return newest

    def _journal(self) -> Iterator[Artifact | Gap]:
        yield from journal_slice(
            self._target,
            self._host,
            since=self._slicer.since,
            limit_bytes=self._slicer.limit_bytes,
            folder=self._wanted.journal_dir,
            question=Logs.question,
            took=self._slicer.take,
        )

    # -- one log and its older parts -----------------------------------------------------------------------------

    def _log(self, source: _Source) -> Iterator[Artifact | Gap]:
        log = source.log
        try:
            fd = source.open()
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone) as error:
            if not (log.origin is Origin.OPEN and isinstance(error, NotThere)):  # closed since the list was read
                yield gap_of(error, f"the log {shown_path(log.path)}", Logs.question)
            return
        try:
            if not self._is_new(os.fstat(fd)):
                return
            reaches_back, zone = yield from self._slicer.cut(fd, log, None)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        yield from self._parts(source, status, reaches_back, zone)

    def _parts(
        self, source: _Source, own: os.stat_result, reaches_back: bool, zone: Zone | None
    ) -> Iterator[Artifact | Gap]:
        """Rotated parts, newest first, only as far back as the window goes."""
        log = source.log
        try:
            tree, parts = self._find_parts(source, own)
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone) as error:
            if not reaches_back and own.st_nlink > 0:
                yield gap_of(error, f"older parts of {shown_path(log.path)}", Logs.question)
            return
        for number, (name, status) in enumerate(parts):
            # The target may hold a file that was rotated long ago: newer parts exist then, and are wanted.
            is_older = status.st_mtime_ns <= own.st_mtime_ns
            if reaches_back and is_older:
                return
            if number == MAX_PARTS:
                reason = Reason("too-many-files", f"{MAX_PARTS} parts are taken", "Shorten --since, or copy the files.")
                yield Gap(
                    f"{len(parts) - number} more parts of {shown_path(log.path)}",
                    Outcome.REFUSED,
                    reason,
                    Logs.question,
                )
                return
            path = os.path.join(os.path.dirname(log.path), name)
            try:
                fd = tree.open(path)
            except DeadlinePassed:
                raise
            except (CollectError, TargetGone) as error:
                yield gap_of(error, f"the log {shown_path(path)}", Logs.question)
                continue
            try:
                if self._is_new(os.fstat(fd)):
                    part = LogFile(path, log.origin, log.insist, rotated=True)
                    reached, zone = yield from self._slicer.cut(fd, part, zone)
                    reaches_back = reaches_back or (reached and is_older)
            finally:
                os.close(fd)

    def _find_parts(self, source: _Source, own: os.stat_result) -> tuple[_Tree, list[tuple[str, os.stat_result]]]:
        """Other parts that were written inside the window, newest first, and the file system that has them."""
        folder = os.path.dirname(source.log.path)
        deleted = own.st_nlink == 0
        for tree in source.trees[:1] if deleted else source.trees:
            try:
                names = [name for name in tree.names(folder)[:MAX_NAMES] if source.is_part(name)]
            except NotThere:
                continue
            found = list(tree.statuses(folder, names))
            # The same path can mean another folder elsewhere: the log itself must be in it, under whatever name.
            if not deleted and all((at.st_dev, at.st_ino) != (own.st_dev, own.st_ino) for _, at in found):
                continue
            parts = [
                (name, at)
                for name, at in found
                if stat.S_ISREG(at.st_mode)
                and (at.st_dev, at.st_ino) not in self._seen
                and at.st_mtime >= self._slicer.since.timestamp()
            ]
            return tree, sorted(parts, key=lambda part: -part[1].st_mtime_ns)
        raise NotThere(f"the folder of {shown_path(source.log.path)} is not to be found from here")

    def _is_new(self, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    # -- what is no file -----------------------------------------------------------------------------------------

    def _unkept(self, link: str, fds: Sequence[int]) -> Gap:
        """stdout or stderr leads to where pmf cannot follow: who is at the other end?"""
        what = " and ".join(OUTPUTS[fd] for fd in fds)
        kind = next(kind for start, kind in _KINDS.items() if link.startswith(start))
        reader = _find_reader(link, self._target, self._host)
        if reader is not None:
            pid, comm = reader
            to = f" to process {pid} ({comm})"
            ask = f"Ask {comm} (process {pid}) what it keeps; for a container: kubectl logs, docker logs."
        else:
            to = ""
            ask = "Find its other end from the host: ss -xp for a socket, lsof for a pipe."
        reason = Reason("not-a-file", f"{what} is {kind}{to}; nothing that pmf can read keeps it", ask)
        return Gap(f"what the process printed to {what}", Outcome.MISSING, reason, Logs.question)


def _is_there(path: str) -> bool:
    """Whether there is such a name; AccessDenied when that cannot be told."""
    try:
        with refusals(path):
            os.lstat(path)
    except NotThere:
        return False
    return True


def _same_family(path: str) -> Callable[[str], bool]:
    family = log_family(os.path.basename(path))
    return lambda name: log_family(name) == family


def _is_pod_log(name: str) -> bool:
    return _POD_LOG.match(name) is not None


def _find_reader(link: str, target: Target, host: Host) -> tuple[int, str] | None:
    """The process that reads the other end of a pipe or a terminal: pid and comm."""
    if link.startswith("pipe:"):
        end, about = link, r"^flags:\s*[0-7]*0$"  # O_RDONLY
    elif link.startswith("/dev/pts/") and target.same_mnt_ns:  # each devpts counts its terminals for itself
        end, about = "/ptmx", rf"^tty-index:\s*{re.escape(link.removeprefix('/dev/pts/'))}$"
    else:
        return None
    give_up = time.monotonic() + FIND_READER_S
    found = None
    for name in os.listdir("/proc"):
        if found is not None or time.monotonic() > give_up:
            break
        if not name.isdigit() or int(name) in (target.pid, os.getpid()):
            continue
        process = Path("/proc") / name
        with suppress(OSError):  # gone, or not ours to look at
            for number in os.listdir(process / "fd"):
                if not os.readlink(process / "fd" / number).endswith(end):
                    continue
                if re.search(about, (process / "fdinfo" / number).read_text(), re.MULTILINE):
                    found = int(name), (process / "comm").read_text("utf-8", "replace").strip()
                    break
    host.note("look", f"/proc/*/fd for the reader of {link}", "not found" if found is None else "ok")
    return found
