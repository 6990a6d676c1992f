"""Find out what kind of process the target is, so that the right collectors run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from pmforensics.collect.base import Host
from pmforensics.collect.pin import Pin, split_stat
from pmforensics.errors import CollectError, FormatError, TargetGone
from pmforensics.formats.argv import parse_cmdline, redact_argv
from pmforensics.formats.elf import ElfIdentity, read_elf_identity, read_go_build_info
from pmforensics.formats.proc import parse_cgroup, parse_maps, parse_status
from pmforensics.model.capture import Json
from pmforensics.model.process import Runtime, Target

PF_KTHREAD = 0x00200000  # include/linux/sched.h; field 9 of /proc/PID/stat
DELETED = " (deleted)"
_PYTHON = re.compile(r"(?:lib)?python\d+(?:\.\d+)*[a-z]*(?:\.so[.\d]*)?$")
_NODE = re.compile(r"(?:node|nodejs|libnode\.so[.\d]*)$")


def examine(pin: Pin, host: Host) -> dict[str, Json]:
    """Everything in a Target, as JSON for the manifest; what cannot be read stays at its default."""
    *_, known = iter_examination(pin, host)
    return known


def iter_examination(pin: Pin, host: Host) -> Iterator[dict[str, Json]]:
    """
    What `examine` returns, first without and then with what is in the target's memory.

    Files that do not need the target's memory lock (status, cgroup, links) come before those that do (cmdline,
    maps). In a wedged process the latter can hang for ever, and then the former are still known.
    """
    target = _from_stat(Target(pin.pid, pin.start_ticks, pin.state, pin.comm), pin)
    with suppress(TargetGone):  # a zombie, or just now: what is known by then still is
        for step in (_from_status, _from_namespaces, _from_cgroup, _from_executable):
            target = step(target, host)
        yield target_json(target)
        target = _from_memory(target, host)
    yield target_json(target)


def target_json(target: Target) -> dict[str, Json]:
    """A Target as the manifest spells it."""
    value: dict[str, Json] = {}
    for item in fields(Target):
        raw = getattr(target, item.name)
        if isinstance(raw, frozenset):
            value[item.name] = sorted(runtime.value for runtime in raw)
        else:
            value[item.name] = list(raw) if isinstance(raw, tuple) else raw
    return value


def read_target_json(value: Any) -> Target:
    """The inverse of `target_json`."""
    return Target(
        **{
            **value,
            "argv": tuple(value["argv"]),
            "ns_pids": tuple(value["ns_pids"]),
            "runtimes": frozenset(Runtime(name) for name in value["runtimes"]),
        }
    )


def _from_stat(target: Target, pin: Pin) -> Target:
    try:
        _, stat = split_stat(pin.read("stat"))
        return replace(target, kernel_thread=bool(int(stat[6]) & PF_KTHREAD))
    except (OSError, IndexError, ValueError):
        return target


def _from_status(target: Target, host: Host) -> Target:
    try:
        status = parse_status(host.read_proc("status").decode("utf-8", "replace"))
        return replace(
            target,
            uid=int(status["Uid"].split()[1]),
            gid=int(status["Gid"].split()[1]),
            ns_pids=tuple(int(pid) for pid in status.get("NSpid", "").split()),
        )
    except (CollectError, KeyError, IndexError, ValueError):
        return target


def _from_namespaces(target: Target, host: Host) -> Target:
    def same(name: str) -> bool:
        try:
            return host.link_proc(f"ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
        except (CollectError, OSError):
            return True  # no permission: assume our own, which every later step checks anyway

    return replace(target, same_pid_ns=same("pid"), same_mnt_ns=same("mnt"), same_net_ns=same("net"))


def _from_cgroup(target: Target, host: Host) -> Target:
    try:
        placed = parse_cgroup(host.read_proc("cgroup").decode("utf-8", "replace"))
    except CollectError:
        return target
    return replace(target, container_id=placed.container_id, pod_uid=placed.pod_uid, unit=placed.unit)


def _from_executable(target: Target, host: Host) -> Target:
    try:
        exe = host.link_proc("exe")
    except CollectError:
        return target
    deleted = exe.endswith(DELETED)
    target = replace(target, exe=exe.removesuffix(DELETED), exe_deleted=deleted)
    try:
        fd = host.open_proc("exe")
    except CollectError:
        return target
    try:

        def read(offset: int, length: int) -> bytes:
            return os.pread(fd, length, offset)

        size = os.fstat(fd).st_size
        identity: ElfIdentity = read_elf_identity(read, size)
        runtimes = target.runtimes
        if identity.go_build_id is not None or read_go_build_info(read, size) is not None:
            runtimes |= {Runtime.GO}
        return replace(target, machine=identity.machine, elf_class=identity.elf_class, runtimes=runtimes)
    except (FormatError, OSError):
        return target
    finally:
        os.close(fd)


def _from_memory(target: Target, host: Host) -> Target:
    try:
        argv = parse_cmdline(host.read_proc("cmdline"))
        target = replace(target, argv=tuple(redact_argv(argv)[0]))
    except CollectError:
        pass  # argv stays empty; the gap is process_state's to report
    names = {os.path.basename(target.exe or "")}
    try:
        maps = parse_maps(host.read_proc("maps", 64 << 20).decode("utf-8", "replace"))
        names |= {os.path.basename(mapping.path) for mapping in maps.mappings}
    except CollectError:
        pass  # the executable's own name still tells python and node
    runtimes = set(target.runtimes)
    if names & {"libjvm.so", "libj9vm29.so"}:
        runtimes.add(Runtime.JVM)
    if any(_PYTHON.match(name) for name in names):
        runtimes.add(Runtime.CPYTHON)
    if any(_NODE.match(name) for name in names):
        runtimes.add(Runtime.NODE)
    if not runtimes and not target.kernel_thread:
        runtimes.add(Runtime.NATIVE)
    return replace(target, runtimes=frozenset(runtimes))
