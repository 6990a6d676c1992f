"""LocalHost: this machine, seen from inside a collector's process."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pmforensics.collect.base import CHUNK_BYTES, HttpReply, Ran
from pmforensics.collect.pin import Pin
from pmforensics.errors import (
    AccessDenied,
    AnswerBroken,
    CollectError,
    DeadlinePassed,
    EndpointRefused,
    NotSupported,
    NotThere,
    TargetGone,
    ToolFailed,
    ToolMissing,
    WouldHarm,
)
from pmforensics.model.capture import MIB
from pmforensics.model.process import Target

if TYPE_CHECKING:
    import subprocess
    from http.client import HTTPConnection, HTTPResponse
    from socket import socket as Socket

STDERR_TAIL_BYTES = 4096
TERM_GRACE_S = 0.5  # between TERM and KILL for a tool that is over its time
MAX_LINKS = 40  # as the kernel's own limit on links in one path
NO_ACCESS_HINT = "Run pmf as root, or with the target's uid and CAP_SYS_PTRACE; `pmf doctor --pid N` tells which."


class LocalHost:
    """
    The one implementation of Host. Lives in a collector's own process; ends with it.

    `deadline` is a time of the monotonic clock; `log` receives every touch.
    """

    def __init__(
        self,
        pin: Pin,
        target: Target,
        *,
        deadline: float,
        spool: Path,
        floor_bytes: int,
        log: Callable[[str, str, float, str], None],
    ) -> None:
        self.spool = spool
        self._pin = pin
        self._target = target
        self._deadline = deadline
        self._floor_bytes = floor_bytes
        self._log = log

    # -- time and life ------------------------------------------------------------------------------------------

    def remaining_s(self) -> float:
        return self._deadline - time.monotonic()

    def check_deadline(self) -> None:
        if self.remaining_s() <= 0:
            raise DeadlinePassed("its share of the budget is spent", hint="Give more time: --budget")

    def check_alive(self) -> None:
        if not self._pin.is_alive():
            raise TargetGone(f"process {self._pin.pid} has exited")

    # -- /proc of the target -------------------------------------------------------------------------------------

    def read_proc(self, name: str, limit_bytes: int = 16 * MIB) -> bytes:
        with self._touch("read", f"/proc/{self._pin.pid}/{name}"):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._pin.proc_fd)
            try:
                return self._read_all(fd, name, limit_bytes)
            finally:
                os.close(fd)

    def iter_proc(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._touch("read", f"/proc/{self._pin.pid}/{name}"):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._pin.proc_fd)
            try:
                yield from self.iter_fd(fd, start, end)
            finally:
                os.close(fd)

    def list_proc(self, name: str = ".") -> list[str]:
        with self._touch("list", f"/proc/{self._pin.pid}/{name}"):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._pin.proc_fd)
            try:
                return _natural(os.listdir(fd))
            finally:
                os.close(fd)

    def link_proc(self, name: str) -> str:
        # Not logged one by one: a process with ten thousand descriptors would fill the journal.
        try:
            return os.readlink(name, dir_fd=self._pin.proc_fd)
        except OSError as error:
            self._refuse(error, f"/proc/{self._pin.pid}/{name}")

    def open_proc(self, name: str) -> int:
        with self._touch("open", f"/proc/{self._pin.pid}/{name}"):
            return _open_regular(name, self._pin.proc_fd)

    # -- the target's file system --------------------------------------------------------------------------------

    def open_target(self, path: str) -> int:
        with self._touch("open", f"{path} (as the target sees it)"):
            folder, name = self._walk(path)
            try:
                return _open_regular(name, folder)
            finally:
                os.close(folder)

    def list_target(self, path: str) -> list[str]:
        with self._touch("list", f"{path} (as the target sees it)"):
            folder, name = self._walk(path)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    return _natural(os.listdir(fd))
                finally:
                    os.close(fd)
            finally:
                os.close(folder)

    def target_path(self, path: str) -> Path:
        with self._touch("resolve", f"{path} (as the target sees it)"):
            folder, name = self._walk(path)
            try:
                inside = os.readlink(f"/proc/self/fd/{folder}")
            finally:
                os.close(folder)
            root = os.readlink("root", dir_fd=self._pin.proc_fd)
        if root != "/" and (inside == root or inside.startswith(root + "/")):
            inside = inside[len(root) :]  # a plain chroot: the path is told from our root, and is wanted from its own
        return Path(f"/proc/{self._pin.pid}/root") / inside.lstrip("/") / name

    def read_target(self, path: str, limit_bytes: int = 16 * MIB) -> bytes:
        fd = self.open_target(path)
        try:
            return self._read_all(fd, path, limit_bytes)
        finally:
            os.close(fd)

    def _walk(self, path: str) -> tuple[int, str]:
        """
        A descriptor of the folder that holds the file behind `path`, and the file's own name.

        /proc/PID/root leads into the target's root, but an absolute link met on the way would be resolved from
        pmf's root: in a container /lib64 -> /usr/lib64 would open the host's library. So every component is
        opened without following, and links are followed here, from the target's root.
        """
        root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._pin.proc_fd)
        stack = [root]
        todo = [part for part in path.split("/") if part][::-1]
        links = 0
        try:
            if not todo:
                return os.dup(root), "."
            while True:
                part = todo.pop()
                if part == "..":
                    if len(stack) > 1:
                        os.close(stack.pop())
                    part = "."
                if part == ".":
                    if todo:
                        continue
                    return os.dup(stack[-1]), "."
                try:
                    link = os.readlink(part, dir_fd=stack[-1])
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    if not todo:
                        return os.dup(stack[-1]), part
                    stack.append(
                        os.open(
                            part,
                            os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                            dir_fd=stack[-1],
                        )
                    )
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if link.startswith("/"):
                    while len(stack) > 1:
                        os.close(stack.pop())
                todo.extend([piece for piece in link.split("/") if piece][::-1])
                if not todo:
                    return os.dup(stack[-1]), "."
        finally:
            for fd in stack:
                os.close(fd)

    # -- files in general ----------------------------------------------------------------------------------------

    def read(self, path: str, limit_bytes: int = 16 * MIB) -> bytes:
        with self._touch("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return self._read_all(fd, path, limit_bytes)
            finally:
                os.close(fd)

    def iter_fd(self, fd: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        at = start
        while end is None or at < end:
            self.check_deadline()
            chunk = os.pread(fd, CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - at), at)
            if not chunk:
                return
            at += len(chunk)
            yield chunk

    def _read_all(self, fd: int, name: str, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        total = 0
        while part := os.read(fd, CHUNK_BYTES):
            total += len(part)
            if total > limit_bytes:
                raise AnswerBroken(f"{name} is longer than {limit_bytes} bytes")
            parts.append(part)
            self.check_deadline()
        return b"".join(parts)

    def room_for(self, wanted_bytes: int, at: str | Path | None = None) -> None:
        place = os.statvfs(at if at is not None else self.spool)
        free_bytes = place.f_bavail * place.f_frsize
        if wanted_bytes + self._floor_bytes > free_bytes:
            raise WouldHarm(
                f"it needs {wanted_bytes / MIB:,.0f} MiB and {free_bytes / MIB:,.0f} MiB are free"
                f" ({self._floor_bytes / MIB:,.0f} MiB are kept free)",
                hint="Give a larger volume with --evidence, or make room.",
            )

    # -- network -------------------------------------------------------------------------------------------------

    def http_get(self, url: str, *, timeout_s: float = 5.0, limit_bytes: int = 1024 * MIB) -> HttpReply:
        import http.client
        from urllib.parse import urlsplit

        from pmforensics.formats.argv import redact_url

        shown = redact_url(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise EndpointRefused(f"{shown} is not an http address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointRefused(f"{shown} is not an http address")
        self.check_deadline()
        self._enter_network()
        timeout_s = max(0.05, min(timeout_s, self.remaining_s()))
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            import ssl

            # Evidence is copied, not trusted: a self-signed certificate must not lose it.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(parts.hostname, port, timeout=timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s)
        headers = {"Accept-Encoding": "identity", "User-Agent": "pmf"}
        if parts.username is not None:
            import base64
            from urllib.parse import unquote

            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        started = time.monotonic()
        try:
            connection.request("GET", path, headers=headers)
            socket = connection.sock  # the connection forgets it when the server says that it will close
            reply = connection.getresponse()
        except TimeoutError:
            connection.close()
            self._log("get", shown, time.monotonic() - started, "timeout")
            raise DeadlinePassed(
                f"{shown} did not answer within {timeout_s:.1f} s",
                hint="The process may be wedged: its thread states and core still tell where.",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._log("get", shown, time.monotonic() - started, type(error).__name__)
            raise EndpointRefused(f"nothing answers at {shown} ({_brief(error)})") from None
        self._log("get", shown, time.monotonic() - started, str(reply.status))
        if reply.status != 200:
            connection.close()
            raise EndpointRefused(f"{shown} answers {reply.status}", status=reply.status)
        return HttpReply(
            reply.status,
            {name.lower(): value for name, value in reply.getheaders()},
            reply.length,
            self._body(connection, reply, socket, shown, timeout_s, limit_bytes),
        )

    def _body(
        self,
        connection: HTTPConnection,
        reply: HTTPResponse,
        socket: Socket,
        shown: str,
        timeout_s: float,
        limit_bytes: int,
    ) -> Iterator[bytes]:
        import http.client

        length = reply.length
        got = 0
        try:
            while True:
                self.check_deadline()
                try:
                    socket.settimeout(max(0.05, min(timeout_s, self.remaining_s())))
                    chunk = reply.read1(CHUNK_BYTES // 4)
                except TimeoutError:
                    raise DeadlinePassed(f"{shown} went silent after {got:,} bytes") from None
                except (OSError, http.client.HTTPException) as error:
                    raise AnswerBroken(f"{shown} broke off after {got:,} bytes ({_brief(error)})") from None
                if not chunk:
                    break
                got += len(chunk)
                if got > limit_bytes:
                    raise AnswerBroken(f"{shown} sent more than {limit_bytes:,} bytes; cut there")
                yield chunk
            if length is not None and got < length:
                raise AnswerBroken(f"{shown} promised {length:,} bytes and sent {got:,}")
        finally:
            connection.close()

    def _enter_network(self) -> None:
        """Loopback addresses are the target's own: go into its network namespace. This process does nothing else."""
        if self._target.same_net_ns:
            return
        import ctypes

        with self._touch("enter", f"/proc/{self._pin.pid}/ns/net"):
            fd = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._pin.proc_fd)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
                raise AccessDenied(
                    f"the target's network namespace cannot be entered ({os.strerror(ctypes.get_errno())})",
                    hint="Give pmf CAP_SYS_ADMIN, or run it inside the target's container.",
                )
        finally:
            os.close(fd)

    # -- programs ------------------------------------------------------------------------------------------------

    def find_tool(self, *names: str) -> Path | None:
        beside = Path(sys.executable).parent
        for name in names:
            for folder in (beside, *map(Path, os.environ.get("PATH", os.defpath).split(os.pathsep))):
                candidate = folder / name
                # access() first: it answers False, without an error, for a folder that may not be entered.
                if folder.is_absolute() and os.access(candidate, os.X_OK) and candidate.is_file():
                    return candidate
        return None

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 30.0,
        limit_bytes: int = 64 * MIB,
        ok: Sequence[int] = (0,),
        as_target_user: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        chunks: list[bytes] = []
        total = 0
        for chunk in self._pump(argv, timeout_s, as_target_user, env, ok, answer := _Answer()):
            total += len(chunk)
            if total > limit_bytes:
                raise AnswerBroken(f"{Path(argv[0]).name} printed more than {limit_bytes:,} bytes")
            chunks.append(chunk)
        return Ran(answer.exit_code, b"".join(chunks), answer.stderr_tail)

    def stream(
        self, argv: Sequence[str | Path], *, timeout_s: float = 30.0, env: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        return self._pump(argv, timeout_s, False, env, (0,), _Answer())

    def _pump(
        self,
        argv: Sequence[str | Path],
        timeout_s: float,
        as_target_user: bool,
        env: Mapping[str, str] | None,
        ok: Sequence[int],
        answer: _Answer,
    ) -> Iterator[bytes]:
        """Start, yield stdout as it comes, reap; kill what is left however this ends."""
        import select
        import subprocess

        from pmforensics.formats.argv import redact_argv

        self.check_deadline()
        words = [str(word) for word in argv]
        shown = " ".join(redact_argv(words)[0])
        started = time.monotonic()
        give_up = started + min(timeout_s, self.remaining_s())
        user = self._target.uid if as_target_user and os.geteuid() == 0 else None
        group = self._target.gid if as_target_user and os.geteuid() == 0 else None
        try:
            child = subprocess.Popen(  # noqa: S603 - a list, never a shell; the program was found by find_tool
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                user=user,
                group=group,
                extra_groups=[] if user is not None else None,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LANG": "C.UTF-8",
                    "TZ": "UTC",
                    "HOME": str(self.spool),
                    **(env or {}),
                },
                cwd="/",
            )
        except FileNotFoundError:
            raise ToolMissing(f"{words[0]} is not installed") from None
        except OSError as error:
            raise ToolFailed(f"{words[0]} could not be started ({_brief(error)})") from None
        assert child.stdout is not None
        assert child.stderr is not None
        out, err = child.stdout.fileno(), child.stderr.fileno()
        tail = b""
        result = "killed"
        poll = select.poll()
        open_fds = {out, err}
        for fd in open_fds:
            poll.register(fd, select.POLLIN | select.POLLHUP)
        try:
            while open_fds:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise DeadlinePassed(f"{Path(words[0]).name} did not finish in {give_up - started:.1f} s")
                for fd, _ in poll.poll(left * 1000):
                    chunk = os.read(fd, CHUNK_BYTES if fd == out else STDERR_TAIL_BYTES)
                    if not chunk:
                        poll.unregister(fd)
                        open_fds.discard(fd)
                    elif fd == out:
                        yield chunk
                    else:
                        tail = (tail + chunk)[-STDERR_TAIL_BYTES:]
            try:
                answer.exit_code = child.wait(max(0.01, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise DeadlinePassed(f"{Path(words[0]).name} closed its output and did not end") from None
            result = f"exit {answer.exit_code}"
        finally:
            answer.stderr_tail = tail.decode("utf-8", "replace").strip()
            _end(child)
            child.stdout.close()
            child.stderr.close()
            self._log("run", shown, time.monotonic() - started, result)
        if answer.exit_code not in ok:
            last = answer.stderr_tail.splitlines()[-1:] or ["no message"]
            raise ToolFailed(f"{Path(words[0]).name} ended with {answer.exit_code}: {last[0][:300]}")

    def signal(self, signum: int) -> None:
        from pmforensics.formats.proc import signal_caught

        name = signal.Signals(signum).name
        status = self.read_proc("status").decode("utf-8", "replace")
        if not signal_caught(status, signum):
            raise WouldHarm(f"the target does not catch {name}: sending it could end the process")
        with self._touch("signal", f"{name} to {self._pin.pid}"):
            signal.pidfd_send_signal(self._pin.pidfd, signum)

    def note(self, verb: str, what: str, result: str = "ok", seconds: float = 0.0) -> None:
        self._log(verb, what, seconds, result)

    # -- errors --------------------------------------------------------------------------------------------------

    @contextmanager
    def _touch(self, verb: str, what: str) -> Iterator[None]:
        self.check_deadline()
        started = time.monotonic()
        result = "ok"
        try:
            yield
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, "error")
            self._refuse(error, what)
        except CollectError as error:
            result = error.code
            raise
        finally:
            self._log(verb, what, time.monotonic() - started, result)

    def _refuse(self, error: OSError, what: str) -> NoReturn:
        if error.errno == errno.ESRCH or not self._pin.is_alive():
            raise TargetGone(f"process {self._pin.pid} exited while {what} was read") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise AccessDenied(f"{what}: {error.strerror}", hint=NO_ACCESS_HINT) from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotThere(f"{what} does not exist") from None
        raise ToolFailed(f"{what}: {error.strerror}") from None


class _Answer:
    """How a program ended, filled in by `_pump` once it has."""

    exit_code: int = -1
    stderr_tail: str = ""


def _open_regular(name: str, folder: int) -> int:
    """Opening a FIFO would hang and opening a device can act, so the name is looked at before it is opened."""
    place = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise NotSupported(f"{name} is not a regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(place)


def _end(child: subprocess.Popen[bytes]) -> None:
    """TERM, a moment, KILL; always reaped."""
    import subprocess

    if child.poll() is None:
        child.terminate()
        try:
            child.wait(TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _natural(names: list[str]) -> list[str]:
    return sorted(
        names, key=lambda name: [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name)]
    )


def _brief(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__
