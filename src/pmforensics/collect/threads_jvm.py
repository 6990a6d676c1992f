"""Thread dumps of a HotSpot JVM: twice as text, on JDK 21 and later once as JSON with the virtual threads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.attach_jvm import SECOND_PATIENCE_S, Jvm, attach
from pmforensics.collect.base import Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.collect.gaps import gap_of
from pmforensics.collect.target_folder import room_in_target, target_folder
from pmforensics.errors import CollectError, DeadlinePassed, ToolFailed
from pmforensics.formats.jvm_settings import redact_command_line, redact_options, select_properties
from pmforensics.formats.structure import HotspotThreadsCheck, JsonCheck
from pmforensics.model.capture import GIB, MIB, Artifact, Gap, Json, Pause, PauseBasis
from pmforensics.model.process import Runtime, Target

FIRST_WITH_VIRTUAL_THREADS = 21  # JDK 19 and 20 have Thread.dump_to_file behind --enable-preview only
# 100,000 parked virtual threads: 79 MB of JSON, 444 MB of heap (JDK 25.0.3). The stacks of platform threads are not
# in the heap: the least is for them.
JSON_PER_HEAP = 0.25
JSON_LEAST_BYTES = 64 * MIB
JSON_MOST_BYTES = GIB
NEEDS_S = 1.0  # the second dump's own share of its time; the rest may be waited away


@dataclass(frozen=True, slots=True)
class ThreadsJvm:
    """
    Every thread of the JVM with its stack and its locks, in HotSpot's own words; and its settings.

    Source:   Thread.print -l -e, Thread.dump_to_file -format=json (JDK 21 and later), VM.version, VM.uptime,
              VM.command_line, VM.flags, VM.system_properties, over the attach socket, else through jcmd.
    Yields:   threads.txt, threads.json, vm.txt (secrets redacted, properties by allow-list).
    Cost:     one safepoint while the text is made: 30 ms for 1,000 threads (JDK 17 and 25, 2 CPUs). The JSON stops
              each thread for its own stack only; it is written to a private folder in the target's /tmp that is
              removed again. The JVM opens its attach socket and keeps it: one more thread, a few kB.
    Partial:  a text without its last section, a JSON document that is not closed.
    Errors:   WouldHarm (SIGQUIT not caught, process stopped, no room in /tmp), AccessDenied (attach disabled,
              socket not to be trusted), NotSupported (OpenJ9), DeadlinePassed (no safepoint in time).
    """

    name: ClassVar[str] = "threads_jvm"
    question: ClassVar[str] = "Which threads were stuck, on which locks, and who held them?"
    limit_s: ClassVar[float] = 10.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return Runtime.JVM in target

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        with attach(target, host) as jvm:
            try:
                yield _print(jvm, {})
            except ToolFailed as error:
                yield gap_of(error, f"{self.name}/threads.txt", self.question)
            if jvm.feature >= FIRST_WITH_VIRTUAL_THREADS:
                yield from self._json(jvm, target, host)
            yield from self._settings(jvm)

    def _json(self, jvm: Jvm, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        fd = -1
        try:
            room_in_target(target, host, _json_room_bytes(jvm))
            with target_folder(target, host) as folder:
                said = jvm.read(f"Thread.dump_to_file -format=json {folder.path}/threads.json")
                if not said.startswith(b"Created "):
                    raise ToolFailed(f"the JVM wrote no JSON dump: {said[:300].decode('utf-8', 'replace').strip()}")
                fd = folder.take("threads.json")
            check = JsonCheck()
            yield Artifact(
                "threads.json",
                checked(host.iter_fd(fd), check),
                "Thread.dump_to_file -format=json",
                "application/json",
                bulk=os.fstat(fd).st_size > MIB,
                settle=lambda: settlement_of(check.finish(), jvm.facts()),
            )
        except DeadlinePassed:
            raise
        except CollectError as error:
            yield gap_of(
                error,
                f"{self.name}/threads.json: virtual threads, which the text dump does not show",
                "Was a virtual thread stuck, or holding a lock?",
            )
        finally:
            if fd >= 0:
                os.close(fd)

    def _settings(self, jvm: Jvm) -> Iterator[Artifact | Gap]:
        parts: list[str] = []
        withheld = 0
        for command in ("VM.version", "VM.uptime", "VM.command_line", "VM.flags", "VM.system_properties"):
            try:
                text = jvm.read(command).decode("utf-8", "replace")
            except DeadlinePassed:
                raise
            except CollectError as error:
                yield gap_of(error, f"{self.name}/vm.txt: {command}")
                continue
            if command == "VM.command_line":
                text = redact_command_line(text)
            elif command == "VM.flags":
                text = redact_options(text) + "\n"
            elif command == "VM.system_properties":
                text, withheld = select_properties(text)
            parts.append(f"== {command}\n{text.rstrip()}\n")
        if parts:
            yield Artifact(
                "vm.txt",
                "\n".join(parts).encode(),
                "VM.version, VM.uptime, VM.command_line, VM.flags, VM.system_properties",
                facts={**jvm.facts(), "withheld_properties": withheld},
            )


@dataclass(frozen=True, slots=True)
class ThreadsJvmAgain:
    """
    The thread dump once more, some seconds later: what did not move between the two is stuck.

    It waits until `apart_s` have passed since `first_at` (a time of the monotonic clock: when the first dump was
    done; None: now), or as much of that as the time allows.

    Source:   Thread.print -l -e over the attach socket, else through jcmd.
    Yields:   threads.txt
    Cost:     as the first.
    Partial:  a text without its last section.
    Errors:   as the first.
    """

    name: ClassVar[str] = "threads_jvm_again"
    question: ClassVar[str] = "Which threads moved between the two dumps, and which did not?"
    limit_s: ClassVar[float] = 10.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False
    apart_s: float = 2.0
    first_at: float | None = None

    def applies_to(self, target: Target) -> bool:
        return Runtime.JVM in target

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        begun = time.monotonic()
        first_at = begun if self.first_at is None else self.first_at
        time.sleep(max(0.0, min(first_at + self.apart_s - begun, host.remaining_s() - NEEDS_S)))
        apart_s = time.monotonic() - first_at
        host.check_alive()
        with attach(target, host, patience_s=SECOND_PATIENCE_S) as jvm:
            yield _print(jvm, {"apart_at_least_s": round(apart_s, 3)})


def _print(jvm: Jvm, facts: dict[str, Json]) -> Artifact:
    """The dump as text; the JVM has made all of it when this returns. ToolFailed when it refuses."""
    command = "Thread.print -l -e"
    try:
        answer = jvm.call(command)
    except ToolFailed:
        command = "Thread.print -l"  # before JDK 11 there is no -e
        answer = jvm.call(command)
    check = HotspotThreadsCheck()
    pause = Pause(answer.waited_s, PauseBasis.AT_MOST)
    return Artifact(
        "threads.txt",
        checked(answer.chunks, check),
        command,
        settle=lambda: settlement_of(check.finish(), {**jvm.facts(), **facts}, pause),
        pause=pause,
    )


def _json_room_bytes(jvm: Jvm) -> int:
    used_bytes = jvm.heap().used_bytes or 0
    return min(max(int(used_bytes * JSON_PER_HEAP), JSON_LEAST_BYTES), JSON_MOST_BYTES)
