"""Readers of /proc agree with psutil, findmnt and what the test itself set up, and survive any text."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.proc import (
    Listener,
    Mapping,
    parse_cgroup,
    parse_maps,
    parse_mountinfo,
    parse_net_tcp,
    parse_stat_start_ticks,
    parse_stat_state,
    parse_status,
    signal_blocked,
    signal_caught,
    signal_ignored,
)


@contextlib.contextmanager
def python(code: str) -> Iterator[int]:
    """The pid of a Python process that has run `code` and now waits."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def read(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "surrogateescape")


# ---- status and stat


def test_status_of_a_real_process() -> None:
    fields = parse_status(read("self", "status"))
    assert fields["Pid"] == str(os.getpid())
    assert fields["PPid"] == str(os.getppid())
    assert fields["State"] == "R (running)"


def test_signals_caught_ignored_and_blocked() -> None:
    code = (
        "import signal as s\n"
        "s.signal(s.SIGQUIT, lambda *_: None); s.signal(s.SIGUSR1, s.SIG_IGN); s.signal(s.SIGRTMAX, lambda *_: None)\n"
        "s.pthread_sigmask(s.SIG_BLOCK, {s.SIGUSR2, s.SIGRTMIN})"
    )
    with python(code) as pid:
        text = read(pid, "status")
    signals = [number for number in range(1, 65) if number not in (32, 33)]  # glibc keeps these two to itself
    caught = {number for number in signals if signal_caught(text, number)}
    ignored = {number for number in signals if signal_ignored(text, number)}
    blocked = {number for number in signals if signal_blocked(text, number)}
    assert caught == {signal.SIGINT, signal.SIGQUIT, signal.SIGRTMAX}
    assert ignored == {signal.SIGUSR1, signal.SIGPIPE, signal.SIGXFSZ}  # CPython ignores the latter two
    assert blocked == {signal.SIGUSR2, signal.SIGRTMIN}


@pytest.mark.parametrize("text", ["", "Name:\tx\n", "SigCgt:\n", "SigCgt:\tzz\n", "SigCgt:\t" + "f" * 1000])
def test_no_guess_about_signals(text: str) -> None:
    with pytest.raises(FormatError):
        signal_caught(text, signal.SIGQUIT)
    with pytest.raises(ValueError, match="65"):
        signal_caught("SigCgt:\t0", 65)


@pytest.mark.parametrize("name", ["plain", "a b", "a) R 1 (b", ") Z 0", "(((", "a\nb) S 1", "\u00fc"])
def test_a_name_cannot_forge_the_stat_line(tmp_path: Path, name: str) -> None:
    unnamed = tmp_path / "stat"
    code = (
        f"from pathlib import Path\nPath({str(unnamed)!r}).write_bytes(Path('/proc/self/stat').read_bytes())\n"
        f"Path('/proc/self/comm').write_bytes({name.encode()!r})"
    )
    with python(code) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        created_at = psutil.Process(pid).create_time()
    assert f"({name})".encode() in stat
    assert parse_stat_start_ticks(stat) == parse_stat_start_ticks(unnamed.read_bytes())
    assert parse_stat_state(stat) == "T"
    since_boot_s = parse_stat_start_ticks(stat) / os.sysconf("SC_CLK_TCK")
    assert abs(since_boot_s + psutil.boot_time() - created_at) < 2


@pytest.mark.parametrize("stat", [b"", b"1 (x", b"1 (x)", b"1 (x) ", b"1 (x) S 1 2", b"1 (x) S" + b" x" * 30])
def test_cut_stat_line_is_a_format_error(stat: bytes) -> None:
    with pytest.raises(FormatError):
        parse_stat_start_ticks(stat)


# ---- maps


def test_maps_of_a_real_process_are_what_psutil_says() -> None:
    with python("import ssl, json") as pid:
        read_maps = parse_maps(read(pid, "maps"))
        said = psutil.Process(pid).memory_maps(grouped=False)
    assert read_maps.lost_lines == 0
    ours = {(m.start, m.end, m.perms, m.path or "[anon]") for m in read_maps.mappings if m.path != "[vsyscall]"}
    theirs = set()
    for row in said:  # psutil goes by smaps, which has no vsyscall page
        start, _, end = row.addr.partition("-")
        if row.path != "[vsyscall]":
            theirs.add((int(start, 16), int(end, 16), row.perms, row.path))
    assert ours == theirs
    assert len(ours) > 20


@pytest.mark.parametrize("name", ["plain", "two  blanks", "new\nline", "back\\slash", "deleted", "\udcff"])
@pytest.mark.parametrize("unlink", [False, True])
def test_odd_paths_in_maps(tmp_path: Path, name: str, unlink: bool) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(8192))
    with path.open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        device = os.fstat(file.fileno()).st_dev
        held = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ, offset=4096)
    if unlink:
        path.unlink()
    found = [m for m in parse_maps(read("self", "maps")).mappings if m.inode == inode and str(tmp_path) in m.path]
    held.close()
    assert len(found) == 1
    assert found[0].path == str(path)
    assert found[0].deleted is unlink
    assert found[0].offset == 4096
    assert found[0].end - found[0].start == 4096
    assert (found[0].perms, found[0].dev) == ("r--s", (os.major(device), os.minor(device)))


def test_maps_beyond_the_bound_and_broken_lines_are_counted_as_lost() -> None:
    line = "7f00-7f01 r--p 00000000 00:00 0 \n"
    read_maps = parse_maps(line * 200_005 + "what is this\n")
    assert len(read_maps.mappings) == 200_000
    assert read_maps.lost_lines == 6
    assert read_maps.mappings[0] == Mapping(0x7F00, 0x7F01, "r--p", 0, (0, 0), 0, "", False)


# ---- mountinfo


@pytest.mark.needs("findmnt")
def test_mounts_of_this_process_are_what_findmnt_says() -> None:
    mounts = parse_mountinfo(read("self", "mountinfo"))
    command = ["findmnt", "--kernel", "--list", "--json", "-o", "ID,PARENT,MAJ:MIN,TARGET,FSTYPE,VFS-OPTIONS"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["filesystems"]
    theirs = {(m["id"], m["parent"], m["maj:min"], m["target"], m["fstype"], m["vfs-options"]) for m in said}
    ours = {
        (m.mount_id, m.parent_id, "{}:{}".format(*m.dev), m.mount_point, m.fs_type, ",".join(m.options)) for m in mounts
    }
    assert ours == theirs
    assert any(m.mount_point == "/" for m in mounts)


def test_escapes_and_optional_fields_of_mountinfo() -> None:
    text = (
        "36 35 98:0 /a\\040b /mnt\\011x\\012y\\134z rw,noatime master:1 shared:2 - ext3 /dev/root\\043 rw,quota\n"
        "37 35 0:31 / /run rw - tmpfs none rw\n"
        "38 35 0:32 / /empty rw - tmpfs  rw\n"
        "broken\n"
    )
    first, second, third = parse_mountinfo(text)
    assert (first.root, first.mount_point, first.source) == ("/a b", "/mnt\tx\ny\\z", "/dev/root#")
    assert (first.options, first.super_options) == (("rw", "noatime"), ("rw", "quota"))
    assert (second.mount_id, second.parent_id, second.dev, second.fs_type) == (37, 35, (0, 31), "tmpfs")
    assert third.source == ""


# ---- cgroup

ID = "3f4e0c9a" * 8
OTHER_ID = "00112233" * 8
UID = "8f6f7a5e-2b1c-4d3e-9f00-0123456789ab"
UID_ = UID.replace("-", "_")
POD_SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"


@pytest.mark.parametrize(
    ("path", "container_id", "pod_uid", "unit"),
    [
        (f"/docker/{ID}", ID, None, None),
        (f"/system.slice/docker-{ID}.scope", ID, None, None),
        (f"/docker/{OTHER_ID}/docker/{ID}", ID, None, None),
        (f"/kubepods/burstable/pod{UID}/{ID}", ID, UID, None),
        (f"/kubepods/pod{UID}/{ID}", ID, UID, None),
        (f"{POD_SLICE}/cri-containerd-{ID}.scope", ID, UID, None),
        (f"{POD_SLICE}/crio-{ID}.scope", ID, UID, None),
        (f"{POD_SLICE}/crio-{ID}.scope/container", ID, UID, None),
        (f"{POD_SLICE}/crio-conmon-{ID}.scope", None, UID, None),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/docker-{ID}.scope", ID, UID, None),
        (f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}", ID, UID, None),
        (f"/kubepods/besteffort/pod{'ab' * 16}/{ID}", ID, "ab" * 16, None),
        (f"/machine.slice/libpod-{ID}.scope/container", ID, None, None),
        (f"/machine.slice/libpod-conmon-{ID}.scope", None, None, None),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container", ID, None, None),
        (f"/libpod_parent/libpod-{ID}", ID, None, None),
        (f"/system.slice/shop.service/libpod-payload-{ID}", ID, None, "shop.service"),
        (f"/ecs/{'ab' * 16}/{ID}", ID, None, None),
        (f"/ecs/{'ab' * 16}/{'ab' * 16}-1234567890", "ab" * 16 + "-1234567890", None, None),
        ("/system.slice/nginx.service", None, None, "nginx.service"),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", None, None, "postgresql@15-main.service"),
        ("/system.slice/foo\\x2dbar.service/worker", None, None, "foo\\x2dbar.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service", None, None, "shop.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope", None, None, None),
        ("/user.slice/user-0.slice/session-3.scope", None, None, None),
        ("/", None, None, None),
        ("/../..", None, None, None),
        (f"/docker/{ID[:63]}", None, None, None),
        (f"/docker/{ID}ff", None, None, None),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_cgroup_paths(version: int, path: str, container_id: str | None, pod_uid: str | None, unit: str | None) -> None:
    text = f"0::{path}\n" if version == 2 else f"3:cpu,cpuacct:{path}\n2:pids:/\n1:name=systemd:{path}\n0::/\n"
    cgroup = parse_cgroup(text)
    assert (cgroup.container_id, cgroup.pod_uid, cgroup.unit) == (container_id, pod_uid, unit)
    assert cgroup.paths["" if version == 2 else "cpu,cpuacct"] == path


def test_path_with_a_colon_stays_whole() -> None:
    assert parse_cgroup("1:name=systemd:/a:b:c\n").paths == {"name=systemd": "/a:b:c"}


# ---- net/tcp


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_listeners_of_this_machine(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listening, socket.socket(family) as bound:
        listening.bind((address, 0))
        listening.listen()
        bound.bind((address, 0))  # bound but not listening
        inode = int(os.readlink(f"/proc/self/fd/{listening.fileno()}").strip("socket:[]"))
        expected = Listener(address, listening.getsockname()[1], inode)
        ipv6 = family == socket.AF_INET6
        found = parse_net_tcp(read("self", "net/tcp6" if ipv6 else "net/tcp"), ipv6)
        said = psutil.net_connections("tcp6" if ipv6 else "tcp4")
        unwanted_port = bound.getsockname()[1]
    assert expected in found
    assert unwanted_port not in {listener.port for listener in found}
    assert {(listener.address, listener.port) for listener in found} == {
        (c.laddr.ip, c.laddr.port) for c in said if c.status == psutil.CONN_LISTEN
    }


def test_lines_that_are_no_sockets_are_left_out() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    good = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n"
    bad = [
        good.replace("0A", "01"),
        good.replace("0100007F", "0100007"),
        good.replace("0100007F", "0100007G"),
        good.replace("1F90", "1F9"),
        good.replace("4711", "-"),
        "   0: 0100007F:1F90\n",
        "\n",
    ]
    expected = [Listener("127.0.0.1" if sys.byteorder == "little" else "1.0.0.127", 8080, 4711)]
    assert parse_net_tcp(head + good + "".join(bad), ipv6=False) == expected
    assert parse_net_tcp(head + good, ipv6=True) == []
    assert parse_net_tcp("", ipv6=False) == []


# ---- any text

SAMPLES = [read("self", name) for name in ("status", "maps", "mountinfo", "cgroup", "net/tcp")]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.sampled_from(SAMPLES), st.text(max_size=20), st.integers(0, 2000), st.integers(0, 50))
def test_any_text_is_read_or_is_a_format_error(text: str, insertion: str, at: int, dropped: int) -> None:
    changed = text[:at] + insertion + text[at + dropped :]
    parse_status(changed)
    parse_maps(changed)
    parse_mountinfo(changed)
    parse_cgroup(changed)
    parse_net_tcp(changed, ipv6=False)
    parse_net_tcp(changed, ipv6=True)
    with contextlib.suppress(FormatError):
        signal_caught(changed, 3)
    with contextlib.suppress(FormatError):
        parse_stat_start_ticks(changed.encode("utf-8", "surrogateescape"))
