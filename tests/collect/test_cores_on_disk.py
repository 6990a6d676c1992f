from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect import cores_on_disk
from pmforensics.collect.core import Core
from pmforensics.collect.cores_on_disk import CoresOnDisk
from pmforensics.collect.host import LocalHost
from pmforensics.model.capture import MIB, CoreKind, Outcome
from tests import zoo
from tests.collect.frozen import wait_for
from tests.collect.harness import Collected, collect_one

PATTERN = "/proc/sys/kernel/core_pattern"
FULL = Core(kind=CoreKind.FULL, allow_pause_s=60.0)
BOOT = "0123456789abcdef0123456789abcdef"

pytestmark = pytest.mark.needs("gcc", "gcore")


def pretend_pattern(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """As on a machine whose kernel has this core_pattern."""
    read = LocalHost.read

    def reads(host: LocalHost, path: str, limit_bytes: int = 16 * MIB) -> bytes:
        return f"{pattern}\n".encode() if path == PATTERN else read(host, path, limit_bytes)

    monkeypatch.setattr(LocalHost, "read", reads)


def gcore(pid: int, to: Path, age_s: float = 0.0) -> bytes:
    """A real core of a process under this name, as old as is wanted."""
    subprocess.run(["gcore", "-o", to, str(pid)], check=True, capture_output=True)
    Path(f"{to}.{pid}").rename(to)
    os.utime(to, (time.time() - age_s,) * 2)
    return to.read_bytes()


def index(got: Collected) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(got.artifacts["index.json"])
    return read


@contextmanager
def sleeper(folder: Path) -> Iterator[int]:
    """Another program than those of the zoo, in a folder of its own."""
    with subprocess.Popen(["sleep", "infinity"], cwd=folder) as popen:
        try:
            wait_for(lambda: Path(f"/proc/{popen.pid}/comm").read_text() == "sleep\n")
            yield popen.pid
        finally:
            popen.kill()


def test_cores_in_the_targets_working_directory_are_adopted_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pattern(monkeypatch, "core")
    with zoo.start("c", "threads", 1, cwd=tmp_path) as sick, sleeper(tmp_path) as stranger:
        cores = {number: gcore(sick.pid, tmp_path / f"core.{number}", number * 100.0) for number in (1, 2, 3)}
        gcore(stranger, tmp_path / "core.4")
        (tmp_path / "core.5").write_text("not a core")
        (tmp_path / "core.6").mkdir()
        (tmp_path / "core.7").symlink_to(tmp_path / "nowhere")
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert got.order == ["index.json", "cores/01-core.1", "cores/02-core.2"]
    assert got.artifacts["cores/01-core.1"] == cores[1]
    assert got.settlements["cores/01-core.1"].outcome is Outcome.COLLECTED
    assert got.settlements["cores/01-core.1"].facts["structure"] == "whole"
    found = index(got)["found"]
    assert [(Path(each["path"]).name, each["adopted"]) for each in found] == [
        ("core.1", True),
        ("core.2", True),
        ("core.3", False),
    ]
    assert {each["pid"] for each in found} == {sick.pid}
    assert found[0]["size_bytes"] == len(cores[1])
    assert index(got)["core_pattern"] == "core"
    assert not got.gaps


def test_a_core_that_the_kernel_wrote_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Path(PATTERN).read_text().strip()
    if pattern.startswith(("|", "/")) or "%" in pattern:
        pattern = "core"  # the kernel of this machine hands its cores to a program: gdb's must do
        pretend_pattern(monkeypatch, pattern)
    with zoo.start("c", "threads", 1, cwd=tmp_path) as earlier:
        if Path(PATTERN).read_text().strip() != pattern:
            gcore(earlier.pid, tmp_path / pattern)
        resource.prlimit(earlier.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.kill(earlier.pid, signal.SIGSEGV)
        earlier.popen.wait()
    with zoo.start("c", "threads", cwd=tmp_path) as sick:
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    [found] = index(got)["found"]
    assert found["pid"] == earlier.pid
    assert found["adopted"]
    [core] = [path for path in got.order if path.startswith("cores/")]
    assert got.artifacts[core].startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("/{folder}/core.%e.%p.%t", "core.zoo.{pid}.1700000000", True),
        ("/{folder}/core.%e.%p.%t", "core.zoo.{pid}", False),
        ("/{folder}/%h-%E-%P-%s-%u-%g", "host-{exe}-{pid}-11-0-0", True),
        ("/{folder}/%h-%E-%P-%s-%u-%g", "host-!usr!bin!other-{pid}-11-0-0", False),
        ("/{folder}/100%%.%p", "100%.{pid}", True),
        ("/{folder}/%%p", "12", False),
        ("/{folder}/core", "core.{pid}", True),  # kernel.core_uses_pid
        ("/{folder}/core", "core.txt", False),
        ("/{folder}/core%", "core", True),  # a single % at the end is dropped
    ],
)
def test_names_are_read_by_the_pattern(
    pattern: str, name: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cores"
    folder.mkdir()
    pretend_pattern(monkeypatch, pattern.replace("{folder}", str(folder).lstrip("/")))
    with zoo.start("c", "threads", 1) as sick:
        exe = str(zoo.build("c")).replace("/", "!")
        gcore(sick.pid, folder / name.format(pid=sick.pid, exe=exe))
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert bool(index(got)["found"]) is found
    assert index(got)["looked_in"] == [{"folder": str(folder), "files": int(found or ("other" not in name and False))}]


def test_a_cut_core_is_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pattern(monkeypatch, "core.%e")
    with zoo.start("c", "threads", 1, cwd=tmp_path) as sick:
        whole = gcore(sick.pid, tmp_path / "core.zoo")  # gdb writes the notes last: they are cut off
        (tmp_path / "core.zoo").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "core.other").write_bytes(whole[: len(whole) // 2])
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert got.order == ["index.json", "cores/01-core.zoo"]
    settlement = got.settlements["cores/01-core.zoo"]
    assert settlement.outcome is Outcome.PARTIAL
    assert settlement.reason is not None
    assert settlement.reason.code == "cut"
    assert settlement.facts["expected_bytes"] == len(whole)


def test_the_same_interpreter_with_other_arguments_is_named_but_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pattern(monkeypatch, "core")
    with zoo.start("python", "idle", cwd=tmp_path) as sick:
        # By our own hand: gdb leaves the arguments out of what it writes of a process that it did not start.
        (tmp_path / "core.1").write_bytes(collect_one(FULL, sick.pid, tmp_path).artifacts["core"])
        os.utime(tmp_path / "core.1", (time.time() - 100,) * 2)
        other = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
        with subprocess.Popen(other, cwd=tmp_path, stdout=subprocess.PIPE) as popen:
            assert popen.stdout is not None
            popen.stdout.readline()
            (tmp_path / "core.2").write_bytes(collect_one(FULL, popen.pid, tmp_path).artifacts["core"])
            popen.kill()
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    found = {Path(each["path"]).name: each for each in index(got)["found"]}
    assert found["core.1"]["adopted"]
    assert found["core.1"]["doubt"] is None
    assert not found["core.2"]["adopted"]
    assert "same interpreter" in found["core.2"]["doubt"]
    assert got.order == ["index.json", "cores/01-core.1"]


@pytest.mark.needs("root", "unshare", "chroot")
def test_an_absolute_pattern_is_followed_in_the_targets_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "cores").mkdir()
    pretend_pattern(monkeypatch, "/cores/core.%p")
    source = tmp_path / "wait.c"
    source.write_text('#include <unistd.h>\nint main(void) { (void)!write(1, "x", 1); for (;;) pause(); }\n')
    subprocess.run([zoo.get_tool("gcc"), "-static", "-o", root / "bin" / "wait", source], check=True)
    command = ["unshare", "--mount", "chroot", root, "/bin/wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        assert popen.stdout.read(1) == b"x"
        gcore(popen.pid, root / "cores" / "core.77")
        got = collect_one(CoresOnDisk(), popen.pid, tmp_path)
        popen.kill()
    [found] = index(got)["found"]
    assert found["path"] == "/cores/core.77"
    assert found["seen_by"] == "target"
    assert got.order == ["index.json", "cores/01-core.77"]


def test_the_store_of_systemd_is_searched_by_comm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pattern(monkeypatch, "|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h --token=secret")
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr(cores_on_disk, "SYSTEMD_FOLDER", str(store))
    compressed = b"\x28\xb5\x2f\xfd" + bytes(range(200))
    (store / f"core.zoo.0.{BOOT}.4711.1700000000000000.zst").write_bytes(compressed)
    (store / f"core.nginx.0.{BOOT}.4712.1700000000000000.zst").write_bytes(compressed)
    (store / "core.zoo").write_bytes(compressed)
    listing = tmp_path / "coredumpctl"
    listing.write_text('#!/bin/sh\necho "[{\\"asked\\":\\"$*\\"}]"\n')
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with zoo.start("c", "threads", 1) as sick:
        exe = os.readlink(f"/proc/{sick.pid}/exe")
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    [found] = index(got)["found"]
    assert found["pid"] == 4711
    assert found["seen_by"] == "pmf"
    assert index(got)["core_pattern"] == "|/usr/lib/systemd/systemd-coredump"
    [core] = [path for path in got.order if path.startswith("cores/")]
    assert got.artifacts[core] == compressed
    assert got.settlements[core].facts["compressed"] == "zstd"
    [asked] = json.loads(got.artifacts["coredumpctl.json"])
    assert asked["asked"].endswith(f"list {exe}")


def test_reports_of_apport_are_found_by_the_executables_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pattern(monkeypatch, "|/usr/share/apport/apport -p%p")
    monkeypatch.setattr(cores_on_disk, "APPORT_FOLDER", str(tmp_path))
    with zoo.start("c", "threads", 1) as sick:
        name = os.readlink(f"/proc/{sick.pid}/exe").replace("/", "_")
        (tmp_path / f"{name}.0.crash").write_text("ProblemType: Crash\n")
        (tmp_path / "_usr_bin_other.0.crash").write_text("ProblemType: Crash\n")
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert [Path(each["path"]).name for each in index(got)["found"]] == [f"{name}.0.crash"]
    assert b"ProblemType: Crash\n" in got.artifacts.values()


def test_without_room_a_core_is_named_and_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pattern(monkeypatch, "core")
    with zoo.start("c", "threads", 1, cwd=tmp_path) as sick:
        gcore(sick.pid, tmp_path / "core")
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path, floor_bytes=1 << 60)
    assert got.order == ["index.json"]
    assert got.gap("would-harm").outcome is Outcome.REFUSED
    assert len(index(got)["found"]) == 1


def test_where_there_is_none_the_index_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pattern(monkeypatch, "/nowhere/to/be/seen/core.%p")
    with zoo.start("c", "threads", 1) as sick:
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert index(got) == {
        "core_pattern": "/nowhere/to/be/seen/core.%p",
        "looked_in": [{"folder": "/nowhere/to/be/seen", "files": None}],
        "not_looked_into": 0,
        "found": [],
    }
    assert not got.gaps


def test_a_core_planted_to_lead_elsewhere_stays_inside_the_targets_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pattern(monkeypatch, "core")
    with zoo.start("c", "threads", 1, cwd=tmp_path) as sick:
        (tmp_path / "core.1").symlink_to("/etc/passwd")
        os.mkfifo(tmp_path / "core.2")
        got = collect_one(CoresOnDisk(), sick.pid, tmp_path)
    assert got.order == ["index.json"]
    assert index(got)["found"] == []
