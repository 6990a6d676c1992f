"""The one door to the outside: bounded, logged, in the target's own view, and never past its deadline."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect.base import Host
from pmforensics.collect.host import LocalHost
from pmforensics.collect.pin import Pin, pin
from pmforensics.collect.run import supervise
from pmforensics.collect.wire import Sender
from pmforensics.collect.worker import Stop, start
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
from pmforensics.model.capture import MIB, Fact
from pmforensics.model.process import Target
from tests import captures, users, zoo


@dataclass
class Door:
    """A host for one target, and what it logged."""

    host: LocalHost
    pin: Pin
    log: list[tuple[str, str, float, str]] = field(default_factory=list)

    def results(self, verb: str) -> list[str]:
        """How the touches of a kind ended."""
        return [result for logged, _, _, result in self.log if logged == verb]


@contextmanager
def door(pid: int, spool: Path, *, within_s: float = 60.0, floor_bytes: int = 0, **target: Any) -> Iterator[Door]:
    """The host for this process."""
    with pin(pid) as held:
        log: list[tuple[str, str, float, str]] = []
        host = LocalHost(
            held,
            Target(held.pid, held.start_ticks, **{"uid": os.getuid(), "gid": os.getgid(), **target}),
            deadline=time.monotonic() + within_s,
            spool=spool,
            floor_bytes=floor_bytes,
            log=lambda *touch: log.append(touch),
        )
        yield Door(host, held, log)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        captures.wait_for("the exec", lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        yield process
        process.kill()


@pytest.fixture
def here(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Door]:
    """The host for it."""
    with door(sleeper.pid, tmp_path) as opened:
        yield opened


# ---- /proc


def test_read_gives_the_kernels_bytes_and_is_logged(here: Door) -> None:
    pid = here.pin.pid
    assert here.host.read_proc("cmdline") == b"sleep\0001000\0"
    assert here.host.read_proc("limits") == Path(f"/proc/{pid}/limits").read_bytes()
    assert b"".join(here.host.iter_proc("maps")) == Path(f"/proc/{pid}/maps").read_bytes()
    assert [(verb, what, result) for verb, what, _, result in here.log] == [
        ("read", f"/proc/{pid}/{name}", "ok") for name in ("cmdline", "limits", "maps")
    ]


def test_listing_is_in_the_order_people_count(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 12) as sick, door(sick.pid, tmp_path) as opened:
        tids = [int(name) for name in opened.host.list_proc("task")]
        assert tids == sorted(tids)
        assert len(tids) >= 13


def test_links_are_read_as_they_stand(here: Door) -> None:
    assert here.host.link_proc("exe") == os.path.realpath("/bin/sleep")
    with pytest.raises(NotThere):
        here.host.link_proc("fd/999")


def test_name_that_is_not_there_is_missing_not_failed(here: Door) -> None:
    with pytest.raises(NotThere):
        here.host.read_proc("no-such-file")
    assert here.results("read") == ["ENOENT"]


def test_file_longer_than_its_limit_is_refused(here: Door) -> None:
    with pytest.raises(AnswerBroken, match="longer than 100 bytes"):
        here.host.read_proc("maps", 100)
    assert here.results("read") == ["answer-broken"]


def test_target_that_exits_is_gone_not_missing(sleeper: subprocess.Popen[bytes], here: Door) -> None:
    sleeper.kill()
    sleeper.wait()
    for read in (
        lambda: here.host.read_proc("status"),
        lambda: here.host.list_proc("task"),
        lambda: here.host.link_proc("exe"),
        lambda: here.host.open_proc("exe"),
        lambda: here.host.read_target("/etc/hostname"),
        lambda: list(here.host.iter_proc("maps")),
        here.host.check_alive,
    ):
        with pytest.raises(TargetGone):
            read()


def test_deadline_ends_every_call(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with door(sleeper.pid, tmp_path, within_s=-1) as opened:
        host = opened.host
        with open("/dev/zero", "rb") as zero:
            for call in (
                lambda: host.read_proc("status"),
                lambda: host.list_proc("task"),
                lambda: host.read("/proc/version"),
                lambda: list(host.iter_fd(zero.fileno())),
                lambda: host.run(["/bin/true"]),
                lambda: host.http_get("http://127.0.0.1:9/"),
                host.check_deadline,
            ):
                with pytest.raises(DeadlinePassed):
                    call()
        assert host.remaining_s() < 0


@pytest.mark.needs("root")
def test_what_the_kernel_refuses_is_denied_with_a_way_out(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    def look(host: Host) -> str:
        os.setgroups([])
        os.setresgid(users.UID, users.UID, users.UID)
        os.setresuid(users.UID, users.UID, users.UID)
        try:
            host.read_proc("maps")
        except AccessDenied as error:
            return error.hint
        return ""

    assert "CAP_SYS_PTRACE" in in_worker(sleeper.pid, tmp_path, look)


def in_worker(pid: int, spool: Path, look: Callable[[Host], str], **target: Any) -> str:
    """What `look` returns in a collector's process, which it may change as it likes."""

    def job(host: Host, send: Sender) -> None:
        send.control(kind="fact", name="seen", value=look(host))

    with pin(pid) as held:
        worker = start(
            job, held, Target(pid, held.start_ticks, **target), limit_s=30.0, spool=spool, floor_bytes=0, stop=Stop()
        )
        items = list(supervise("look", worker, spool))
        worker.end()
    facts = [item.value for item in items if isinstance(item, Fact)]
    assert len(facts) == 1, items
    return str(facts[0])


# ---- the target's file system


@contextmanager
def elsewhere(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A process with a mount namespace of its own, in which the folder holds other files than here."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("outside")
    (place / "secret").write_text("outside secret")
    script = f"""
    set -e
    mount -t tmpfs none {place}
    cd {place}
    printf inside > file
    printf 'inside secret' > secret
    mkdir -p a/b
    printf deep > a/b/c
    ln -s {place}/secret absolute
    ln -s secret relative
    ln -s a/b/../../a folder
    ln -s loop2 loop1; ln -s loop1 loop2
    ln -s ../../../../../../../../../../../../../../etc/hostname up
    ln -s nowhere dangling
    mkfifo fifo
    mknod zero c 1 5
    touch ready
    exec sleep 1000
    """
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script]) as process:
        try:
            captures.wait_for("the mounts", Path(f"/proc/{process.pid}/root{place}/ready").exists)
            yield process.pid, place
        finally:
            process.kill()


pytestmark_mounts = pytest.mark.needs("root", "unshare")


@pytestmark_mounts
def test_files_are_those_that_the_target_sees_also_behind_absolute_links(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as (pid, place), door(pid, tmp_path, same_mnt_ns=False) as opened:
        host = opened.host
        assert (place / "file").read_text() == "outside"
        for name, content in {
            "file": b"inside", "secret": b"inside secret", "absolute": b"inside secret", "relative": b"inside secret",
            "a/b/c": b"deep", "folder/b/c": b"deep", "./a/./b/../b/c": b"deep", "a/../../place/file": b"inside",
        }.items():  # fmt: skip
            assert host.read_target(f"{place}/{name}") == content, name
            assert host.target_path(f"{place}/{name}").read_bytes() == content, name
        # However far up a path goes, it stays below the target's root.
        assert host.read_target(f"{place}/up") == Path("/etc/hostname").read_bytes()
        assert host.read_target("/../../../../etc/hostname") == Path("/etc/hostname").read_bytes()
        assert host.list_target(f"{place}/folder") == ["b"]
        assert "file" in host.list_target(str(place))
        assert "proc" in host.list_target("/")


@pytestmark_mounts
def test_what_is_no_plain_file_is_refused_without_touching_it(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as (pid, place), door(pid, tmp_path) as opened:
        for name, error in {
            "fifo": NotSupported, "zero": NotSupported, "a": NotSupported, "loop1": ToolFailed, "dangling": NotThere,
            "nowhere": NotThere, "file/below": NotThere, "x" * 300: ToolFailed,
        }.items():  # fmt: skip
            with pytest.raises(error):
                opened.host.open_target(f"{place}/{name}")


@pytestmark_mounts
def test_walking_the_targets_tree_leaks_no_descriptor(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as (pid, place), door(pid, tmp_path) as opened:
        before = len(os.listdir("/proc/self/fd"))
        for name in ("file", "absolute", "folder/b/c", "fifo", "loop1", "dangling", "a/b/c/d", "up"):
            try:
                opened.host.read_target(f"{place}/{name}")
            except CollectError:
                continue
        assert len(os.listdir("/proc/self/fd")) == before


# ---- room


def test_room_is_asked_with_the_floor_added(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    with door(sleeper.pid, tmp_path, floor_bytes=free // 2) as opened:
        opened.host.room_for(free // 4)
        with pytest.raises(WouldHarm, match="kept free"):
            opened.host.room_for(free * 3 // 4)


# ---- signals


def test_signal_that_the_target_does_not_catch_is_never_sent(here: Door) -> None:
    for signum in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGTERM):
        with pytest.raises(WouldHarm, match=signum.name):
            here.host.signal(signum)
    here.host.check_alive()
    assert here.results("signal") == []


def test_signal_that_the_target_catches_arrives(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path(sys.argv[1]).touch())\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "while True: time.sleep(1)\n"
    )
    got, ready = tmp_path / "got", tmp_path / "ready"
    with subprocess.Popen([sys.executable, "-c", code, got, ready]) as process:
        try:
            captures.wait_for("the handler", ready.exists)
            with door(process.pid, tmp_path) as opened:
                opened.host.signal(signal.SIGUSR1)
                captures.wait_for("the signal", got.exists)
                assert opened.results("signal") == ["ok"]
        finally:
            process.kill()


@pytest.mark.parametrize("way", ["sigquit-ignored"])
def test_signal_that_the_target_ignores_is_not_sent_either(tmp_path: Path, needs: Any, way: str) -> None:
    needs("go")
    with zoo.start("go", way) as sick, door(sick.pid, tmp_path) as opened:
        with pytest.raises(WouldHarm):
            opened.host.signal(signal.SIGQUIT)
        sick.assert_alive()


# ---- programs


def test_program_runs_with_a_small_environment_and_no_input(here: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    ran = here.host.run(["/bin/sh", "-c", "env; pwd; cat; echo bye >&2; exit 3"], ok=(3,), env={"EXTRA": "1"})
    text = ran.stdout.decode()
    assert ran.exit_code == 3
    assert ran.stderr_tail == "bye"
    assert "hunter2" not in text
    names = {line.partition("=")[0] for line in text.splitlines() if "=" in line}
    assert names <= {"PATH", "LANG", "TZ", "HOME", "EXTRA", "PWD", "SHLVL", "_", "OLDPWD"}
    assert "TZ=UTC" in text
    assert "EXTRA=1" in text
    assert here.results("run") == ["exit 3"]


def test_failing_program_is_told_with_its_last_words(here: Door) -> None:
    with pytest.raises(ToolFailed, match=r"sh ended with 7: the reason"):
        here.host.run(["/bin/sh", "-c", "echo one >&2; echo the reason >&2; exit 7"])
    with pytest.raises(ToolFailed, match="-9"):
        here.host.run(["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(ToolMissing):
        here.host.run(["/no/such/program"])
    with pytest.raises(ToolFailed, match="could not be started"):
        here.host.run(["/etc/hostname"])


def test_secrets_on_a_command_line_are_not_logged(here: Door) -> None:
    here.host.run(["/bin/echo", "--password=hunter2", "http://u:hunter2@h/"])
    assert "hunter2" not in str(here.log)
    assert "(redacted)" in str(here.log)


def test_program_that_prints_too_much_is_cut(here: Door) -> None:
    with pytest.raises(AnswerBroken, match="more than 1,000 bytes"):
        here.host.run(["/bin/sh", "-c", "yes"], limit_bytes=1000)
    with pytest.raises(ToolFailed):
        here.host.run(["/bin/sh", "-c", "yes | head -c 5000000 >&2; exit 1"])


def test_streamed_output_is_whole_and_its_failure_comes_at_the_end(here: Door) -> None:
    stream = here.host.stream(["/bin/sh", "-c", "head -c 5000000 /dev/zero; exit 2"])
    got = 0
    with pytest.raises(ToolFailed, match="ended with 2"):
        for chunk in stream:
            got += len(chunk)
    assert got == 5_000_000


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000",
        "trap '' TERM; while :; do sleep 1; done",
        "exec >&- 2>&-; sleep 1000",
        "yes > /dev/null & sleep 1000",
    ],
)
def test_program_over_its_time_is_ended_whatever_it_does(here: Door, script: str) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlinePassed):
        here.host.run(["/bin/sh", "-c", script], timeout_s=0.3)
    assert time.monotonic() - began < 20
    subprocess.run(["pkill", "-P", str(os.getpid()), "-x", "yes"], check=False)


def test_stream_that_is_abandoned_ends_its_program(here: Door) -> None:
    stream = here.host.stream(["/bin/sh", "-c", "echo $$; exec yes"])
    pid = int(next(iter(stream)).split()[0])
    stream.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.needs("root")
def test_program_can_run_as_the_targets_user_without_any_groups(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with door(sleeper.pid, tmp_path, uid=users.UID, gid=users.UID) as opened:
        ran = opened.host.run(["/usr/bin/id"], as_target_user=True)
        assert ran.stdout.split()[:3] == [b"uid=12345", b"gid=12345", b"groups=12345"]
        assert b"uid=0" in opened.host.run(["/usr/bin/id"]).stdout


def test_tool_beside_the_interpreter_comes_before_the_path(
    here: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("beside", "path"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "tool").write_text("#!/bin/sh\n")
        (tmp_path / place / "tool").chmod(0o755)
    (tmp_path / "path" / "plain").write_text("no program")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setenv("PATH", f"relative:{tmp_path / 'path'}")
    assert here.host.find_tool("none", "tool") == tmp_path / "beside" / "tool"
    assert here.host.find_tool("plain") is None
    (tmp_path / "beside" / "tool").unlink()
    assert here.host.find_tool("tool") == tmp_path / "path" / "tool"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    (tmp_path / "relative" / "local").write_text("#!/bin/sh\n")
    (tmp_path / "relative" / "local").chmod(0o755)
    assert here.host.find_tool("local") is None


# ---- HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path in its own bad way."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        getattr(self, "at_" + self.path.split("?")[0].strip("/").replace("-", "_"))()

    def answer(self, body: bytes, *, length: int | None = None, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def at_whole(self) -> None:
        self.answer(b"x" * 3_000_000, length=3_000_000)

    def at_chunked(self) -> None:
        self.answer(
            b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", Transfer_Encoding="x", **{"Transfer-Encoding": "chunked"}
        )

    def at_cut_chunk(self) -> None:
        self.answer(b"ff\r\nhello", **{"Transfer-Encoding": "chunked"})

    def at_lies(self) -> None:
        self.answer(b"x" * 1000, length=5000)

    def at_open_end(self) -> None:
        self.answer(b"y" * 1000)

    def at_missing(self) -> None:
        self.answer(b"no", length=2, code=404)

    def at_redirect(self) -> None:
        self.answer(b"", length=0, code=302, Location="/whole")

    def at_flood(self) -> None:
        self.answer(b"")
        try:
            while True:
                self.wfile.write(b"f" * 65536)
        except OSError:
            pass

    def at_hangs(self) -> None:
        time.sleep(30)

    def at_silent(self) -> None:
        self.answer(b"start", length=1000)
        self.wfile.flush()
        self.close_connection = False
        time.sleep(30)

    def at_who(self) -> None:
        told = self.headers.get("Authorization", "none").encode() + b"|" + self.path.encode()
        self.answer(told, length=len(told))


@contextmanager
def server(*, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A server on loopback; its address."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    scheme = "http"
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        served.socket = context.wrap_socket(served.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{served.server_address[1]}"
    finally:
        served.shutdown()
        served.server_close()


def body(door_: Door, url: str, **more: Any) -> bytes:
    """All of an answer."""
    return b"".join(door_.host.http_get(url, **more).chunks)


def test_whole_answers_arrive_whole(here: Door) -> None:
    with server() as url:
        reply = here.host.http_get(f"{url}/whole")
        assert (reply.status, reply.length_bytes) == (200, 3_000_000)
        chunks = list(reply.chunks)
        assert sum(map(len, chunks)) == 3_000_000
        assert max(map(len, chunks)) <= MIB
        assert body(here, f"{url}/chunked") == b"hello world"
        assert body(here, f"{url}/open-end") == b"y" * 1000
        assert here.results("get") == ["200"] * 3


def test_answer_shorter_than_promised_is_broken_and_what_came_is_kept(here: Door) -> None:
    with server() as url:
        for path in ("lies", "cut-chunk"):
            got = b""
            with pytest.raises(AnswerBroken):
                for chunk in here.host.http_get(f"{url}/{path}").chunks:
                    got += chunk
            assert got or path == "cut-chunk"


def test_answer_without_end_is_cut_at_the_limit(here: Door) -> None:
    with server() as url:
        got = 0
        with pytest.raises(AnswerBroken, match="more than 10,000,000 bytes"):
            for chunk in here.host.http_get(f"{url}/flood", limit_bytes=10_000_000).chunks:
                got += len(chunk)
        assert got <= 10_000_000


def test_answer_without_end_ends_at_the_deadline(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with server() as url, door(sleeper.pid, tmp_path, within_s=1.0) as opened, pytest.raises(DeadlinePassed):
        for _ in opened.host.http_get(f"{url}/flood", limit_bytes=1 << 50).chunks:
            pass


def test_server_that_never_answers_or_goes_silent_costs_its_timeout(here: Door, tmp_path: Path) -> None:
    with server() as url:
        with pytest.raises(DeadlinePassed, match=r"did not answer within 0\.3 s"):
            here.host.http_get(f"{url}/hangs", timeout_s=0.3)
        with (
            door(here.pin.pid, tmp_path, within_s=1.0) as opened,
            pytest.raises(DeadlinePassed, match="silent after 5 bytes"),
        ):
            body(opened, f"{url}/silent")


def test_listener_that_never_accepts_or_speaks_costs_its_timeout(here: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(DeadlinePassed):
        here.host.http_get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.3)


def test_server_that_speaks_no_http_is_refused(here: Door) -> None:
    def speak(listener: socket.socket) -> None:
        for greeting in (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\0" * 70_000,
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500,
        ):
            peer, _ = listener.accept()
            peer.sendall(greeting)
            peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, args=(listener,))
        thread.start()
        for _ in range(4):
            with pytest.raises((EndpointRefused, AnswerBroken)):
                body(here, f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()


def test_refusals_are_told_apart_and_redirects_are_not_followed(here: Door) -> None:
    with server() as url:
        with pytest.raises(EndpointRefused, match="answers 404"):
            here.host.http_get(f"{url}/missing")
        with pytest.raises(EndpointRefused, match="answers 302"):
            here.host.http_get(f"{url}/redirect")
    with pytest.raises(EndpointRefused, match="nothing answers"):
        here.host.http_get(f"{url}/whole")


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/", "file:///etc/passwd", "http://", "http://h:port/", "http://h:99999/", "gopher", "http://[::1"],
)
def test_what_is_no_http_address_is_refused(here: Door, url: str) -> None:
    with pytest.raises(EndpointRefused):
        here.host.http_get(url)


def test_credentials_of_the_address_are_sent_and_not_logged(here: Door) -> None:
    with server() as url:
        told = body(here, url.replace("//", "//user:hunter%322@") + "/who?token=hunter2&x=1")
        assert told == b"Basic dXNlcjpodW50ZXIyMg==|/who?token=hunter2&x=1".replace(
            b"dXNlcjpodW50ZXIyMg==", b"dXNlcjpodW50ZXIyMg=="
        )
        assert "hunter2" not in str(here.log)
        with pytest.raises(EndpointRefused) as caught:
            here.host.http_get(url.replace("//", "//user:hunter2@") + "/missing?token=hunter2")
        assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.needs("openssl")
def test_self_signed_certificate_does_not_lose_the_evidence(here: Door, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
         "-subj", "/CN=somebody-else"],
        check=True, capture_output=True,
    )  # fmt: skip
    with server(tls=(certificate, key)) as url:
        assert body(here, f"{url}/open-end") == b"y" * 1000


def test_proxy_of_the_environment_is_not_asked(here: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    with server() as url:
        assert body(here, f"{url}/open-end")


@pytest.mark.needs("root", "unshare", "ip")
def test_loopback_is_the_targets_own(tmp_path: Path, needs: Any) -> None:
    needs("go")
    up = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with zoo.start("go", "idle", prefix=up) as sick:
        url = f"{sick.ready['pprof']}/goroutine?debug=1"

        def look(host: Host) -> str:
            return b"".join(host.http_get(url).chunks).decode()[:20]

        assert in_worker(sick.pid, tmp_path, look, same_net_ns=False).startswith("goroutine profile:")
        with door(sick.pid, tmp_path) as opened, pytest.raises(EndpointRefused):
            opened.host.http_get(url)
