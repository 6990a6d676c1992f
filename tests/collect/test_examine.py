"""What kind of process it is: real ones of every kind, each recognized."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmforensics.collect.clock import Clock
from pmforensics.collect.examine import read_target_json, target_json
from pmforensics.model.process import Runtime, Target
from tests import captures, zoo
from tests.collect.harness import collect_one


def examined(pid: int, tmp_path: Path) -> Target:
    """The target as every collector but the first sees it."""
    target = collect_one(Clock(), pid, tmp_path).target
    assert target is not None
    return target


@pytest.mark.parametrize(
    ("program", "way", "runtime"),
    [
        ("go", "idle", Runtime.GO), ("java17", "idle", Runtime.JVM), ("java25", "idle", Runtime.JVM),
        ("python", "idle", Runtime.CPYTHON), ("node", "idle", Runtime.NODE), ("c", "threads", Runtime.NATIVE),
        ("c", "deleted", Runtime.NATIVE),
    ],
)  # fmt: skip
def test_runtime_of_every_program_of_the_zoo_is_known(
    tmp_path: Path, needs: object, program: str, way: str, runtime: Runtime
) -> None:
    needs(*zoo.tools(program))  # type: ignore[operator]
    with zoo.start(program, way) as sick:
        target = examined(sick.pid, tmp_path)
        assert target.runtimes == {runtime}
        assert target.exe_deleted is (way == "deleted")
        assert target.uid == os.getuid()
        assert target.gid == os.getgid()
        assert target.own_pid == sick.pid
        assert not target.kernel_thread
        elf = subprocess.run(["readelf", "-h", f"/proc/{sick.pid}/exe"], capture_output=True, text=True, check=True)
        assert target.elf_class == (64 if "ELF64" in elf.stdout else 32)
        assert target.machine == (62 if "X86-64" in elf.stdout else 183 if "AArch64" in elf.stdout else target.machine)


@pytest.mark.needs("go", "readelf")
def test_go_is_known_also_when_stripped_and_renamed(tmp_path: Path) -> None:
    program = tmp_path / "python3.11"  # the name alone must not decide
    built = zoo.build("go")
    subprocess.run(["strip", "-s", "-o", program, built], check=True)
    with subprocess.Popen([program, "idle"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert Runtime.GO in examined(process.pid, tmp_path)
        finally:
            process.kill()


def test_identity_is_what_the_kernel_says(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        target = examined(sick.pid, tmp_path)
        assert target.exe == os.readlink(f"/proc/{sick.pid}/exe") == os.path.realpath(sys.executable)
        words = Path(f"/proc/{sick.pid}/cmdline").read_bytes().split(b"\0")[:-1]
        assert list(target.argv) == [word.decode() for word in words]
        assert target.ns_pids[0] == sick.pid
        assert (target.same_pid_ns, target.same_mnt_ns, target.same_net_ns) == (True, True, True)


@pytest.mark.needs("root", "unshare", "gcc")
def test_namespaces_are_told_one_by_one(tmp_path: Path) -> None:
    for option, field in (("--net", "same_net_ns"), ("--mount", "same_mnt_ns")):
        with zoo.start("c", "threads", 1, prefix=("unshare", option)) as sick:
            target = examined(sick.pid, tmp_path)
            others = {"same_pid_ns", "same_mnt_ns", "same_net_ns"} - {field}
            assert getattr(target, field) is False
            assert all(getattr(target, name) for name in others)


@pytest.mark.needs("root", "unshare", "gcc")
def test_pid_inside_its_own_namespace_is_known(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 1, prefix=("unshare", "--pid", "--fork", "--mount-proc")) as sick:
        target = examined(sick.pid, tmp_path)
        assert target.own_pid == sick.ready["pid"]
        assert target.own_pid != target.pid == sick.pid


@pytest.mark.needs("root", "gcc")
def test_container_is_known_by_its_cgroup(tmp_path: Path) -> None:
    container = "0123456789abcdef" * 4
    roots = [
        path
        for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
        if path.is_dir()
    ]
    group = next((made for root in roots if (made := new_cgroup(root, f"docker-{container}.scope"))), None)
    if group is None:
        pytest.skip("needs: a cgroup that can be made")
    try:
        with zoo.start("c", "threads", 1) as sick:
            (group / "cgroup.procs").write_text(str(sick.pid))
            assert examined(sick.pid, tmp_path).container_id == container
    finally:
        captures.wait_for("an empty cgroup", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
        group.parent.rmdir()


def new_cgroup(root: Path, name: str) -> Path | None:
    """A control group two levels below the root; None where none can be made."""
    group = root / f"pmf-test-{os.getpid()}" / name
    try:
        group.mkdir(parents=True)
    except OSError:
        return None
    return group


def test_target_survives_json() -> None:
    runtimes = frozenset({Runtime.GO, Runtime.JVM})
    target = Target(
        1, 2, "S", "comm", "/exe", True, ("a", "b"), 3, 4, (1, 7), runtimes, 62, 64, "c" * 64, "pod", "unit",
        False, False, False, True,
    )  # fmt: skip
    assert read_target_json(target_json(target)) == target
    assert read_target_json(target_json(Target(1, 2))) == Target(1, 2)
