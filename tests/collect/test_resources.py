"""Limits and use, held against the files that the kernel shows this test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmforensics.collect.resources import HOST_FILES, Resources
from tests import captures, zoo
from tests.collect.harness import collect_one


def test_host_files_are_copied_where_they_exist(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        collected = collect_one(Resources(), sick.pid, tmp_path)
    present = {f"host/{os.path.basename(path)}" for path in HOST_FILES if os.path.exists(path)}
    assert present <= collected.artifacts.keys()
    assert collected.artifacts["host/core_pattern"] == Path("/proc/sys/kernel/core_pattern").read_bytes()
    assert collected.artifacts["host/version"] == Path("/proc/version").read_bytes()
    assert b"MemAvailable:" in collected.artifacts["host/meminfo"]
    assert not collected.gaps


@pytest.mark.needs("gcc")
def test_memory_of_the_process_is_summed_up_by_the_kernel(tmp_path: Path) -> None:
    with zoo.start("c", "big", 64) as sick:
        text = collect_one(Resources(), sick.pid, tmp_path).artifacts["smaps_rollup"].decode()
        sick.assert_alive()
    resident_kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))
    assert 64 * 1024 <= resident_kib < 4 * 1024 * 1024


@contextmanager
def cgroup(root: Path, **limits: str) -> Iterator[Path]:
    """A control group of its own with these limits."""
    group = root / f"pmf-test-{os.getpid()}"
    group.mkdir()
    try:
        for name, value in limits.items():
            (group / name.replace("__", ".")).write_text(value)
        yield group
    finally:
        captures.wait_for("an empty cgroup", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.needs("root", "gcc")
def test_limits_of_its_own_cgroup_are_there_and_nobody_elses(tmp_path: Path) -> None:
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (v1 / "memory.limit_in_bytes").exists():
        context, path = cgroup(v1, memory__limit_in_bytes="268435456"), "cgroup-memory/memory.limit_in_bytes"
    elif "memory" in ((v2 / "cgroup.controllers").read_text() if (v2 / "cgroup.controllers").exists() else ""):
        (v2 / "cgroup.subtree_control").write_text("+memory")
        context, path = cgroup(v2, memory__max="268435456"), "cgroup/memory.max"
    else:
        pytest.skip("needs: a memory cgroup")
    with context as group, zoo.start("c", "threads", 1) as sick:
        (group / "cgroup.procs").write_text(str(sick.pid))
        collected = collect_one(Resources(), sick.pid, tmp_path)
        sick.assert_alive()
        assert collected.artifacts[path] == b"268435456\n"
        shown = collected.sources[path]
        assert shown.startswith(str(group))


@pytest.mark.needs("root", "gcc")
def test_throttling_is_visible_in_the_evidence(tmp_path: Path) -> None:
    v1 = Path("/sys/fs/cgroup/cpu")
    if not (v1 / "cpu.cfs_quota_us").exists():
        v2 = Path("/sys/fs/cgroup")
        if "cpu" not in ((v2 / "cgroup.controllers").read_text() if (v2 / "cgroup.controllers").exists() else ""):
            pytest.skip("needs: a cpu cgroup with quotas")
        (v2 / "cgroup.subtree_control").write_text("+cpu")
        context, path = cgroup(v2, cpu__max="5000 100000"), "cgroup/cpu.stat"
    else:
        context, path = cgroup(v1, cpu__cfs_quota_us="5000"), "cgroup-cpu/cpu.stat"
    with context as group, zoo.start("c", "spin") as sick:
        (group / "cgroup.procs").write_text(str(sick.pid))
        captures.wait_for("throttling", lambda: "nr_throttled 0\n" not in (group / "cpu.stat").read_text())
        text = collect_one(Resources(), sick.pid, tmp_path).artifacts[path].decode()
    assert int(text.split("nr_throttled ")[1].split()[0]) > 0


def test_kernel_thread_has_no_memory_to_sum_up(tmp_path: Path) -> None:
    threads = [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if int(stat.read_text(errors="replace").rpartition(")")[2].split()[6]) & 0x00200000
    ]
    if not threads:
        pytest.skip("needs: a kernel thread that can be seen")
    collected = collect_one(Resources(), min(threads), tmp_path)
    assert "smaps_rollup" not in collected.artifacts
    assert "host/meminfo" in collected.artifacts
    assert not collected.gaps


def test_hostile_cgroup_path_stays_below_the_cgroup_folder(tmp_path: Path) -> None:
    # The kernel shows a path with /../ for a process outside the reader's cgroup namespace.
    from pmforensics.model.process import Target

    asked: list[str] = []

    class Recorder:
        def read_proc(self, name: str, limit_bytes: int = 0) -> bytes:
            return b"0::/../../../../etc\n9:memory:/../../../tmp\n" if name == "cgroup" else b""

        def read(self, path: str, limit_bytes: int = 0) -> bytes:
            asked.append(path)
            return b""

    list(Resources().collect(Target(1, 1), Recorder()))  # type: ignore[arg-type]
    assert asked
    assert not [path for path in asked if ".." in path]
    assert all(path.startswith(("/sys/fs/cgroup/", "/proc/")) for path in asked)


def test_process_that_exits_leaves_the_host_files(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        process.kill()
        captures.wait_for("the zombie", lambda: captures.states(process.pid) == {"Z"})
        collected = collect_one(Resources(), process.pid, tmp_path)
    finally:
        process.wait()
    assert "host/meminfo" in collected.artifacts
