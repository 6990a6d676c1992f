"""
From a live target to a stream of artifacts.

`collectors` is the table of contents and the run order in one: most fleeting, cheapest and most telling first, bulk
last. A new collector is one module, one line here, one test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pmforensics.collect.base import Collector
from pmforensics.model.capture import Ask, CoreKind

NAMES = (
    "process_state",
    "clock",
    "build_ids",
    "goroutines",
    "threads_jvm",
    "threads_python",
    "report_node",
    "threads_native",
    "logs",
    "resources",
    "heap_profile",
    "class_histogram",
    "threads_jvm_again",
    "provenance",
    "cores_on_disk",
    "executable",
    "heap_dump",
    "core",
    "clock_again",
)
"""Every collector by name, in order; known without importing any of them."""

JVM_DUMPS_APART_S = 1.25  # long enough to see what moves, short enough for a seal within two seconds

OPT_IN = ("executable",)
"""Those that run only when asked for by name."""


def collectors(ask: Ask) -> Iterator[Collector]:
    """
    The collectors of one capture, in order, with their options.

    Each is imported when its turn comes: the first evidence is on the disk before the rest is even loaded.
    """
    from pmforensics.collect.process_state import ProcessState

    yield ProcessState()
    from pmforensics.collect.clock import Clock, ClockAgain

    yield Clock()
    from pmforensics.collect.build_ids import BuildIds

    yield BuildIds()
    from pmforensics.collect.goroutines import Goroutines

    yield Goroutines(pprof_url=ask.pprof_url, allow_pause_s=ask.allow_pause_s)
    from pmforensics.collect.threads_jvm import ThreadsJvm, ThreadsJvmAgain

    yield ThreadsJvm()
    threads_jvm_at = time.monotonic()
    from pmforensics.collect.threads_python import ThreadsPython

    yield ThreadsPython(allow_pause_s=ask.allow_pause_s)
    from pmforensics.collect.report_node import ReportNode

    yield ReportNode()
    from pmforensics.collect.threads_native import ThreadsNative

    yield ThreadsNative(keep_core=ask.core is not CoreKind.NONE, allow_pause_s=ask.allow_pause_s)
    from pmforensics.collect.logs import Logs

    yield Logs(files=ask.logs, since_s=ask.since_s)
    from pmforensics.collect.resources import Resources

    yield Resources()
    from pmforensics.collect.heap_profile import HeapProfile

    yield HeapProfile(pprof_url=ask.pprof_url)
    from pmforensics.collect.class_histogram import ClassHistogram

    yield ClassHistogram(allow_pause_s=ask.allow_pause_s)
    yield ThreadsJvmAgain(apart_s=JVM_DUMPS_APART_S, first_at=threads_jvm_at)
    from pmforensics.collect.provenance import Executable, Provenance

    yield Provenance()
    from pmforensics.collect.cores_on_disk import CoresOnDisk

    yield CoresOnDisk()
    yield Executable()
    from pmforensics.collect.heap_dump import HeapDump

    yield HeapDump(asked=ask.heap_dump, allow_pause_s=ask.allow_pause_s)
    from pmforensics.collect.core import Core

    yield Core(kind=ask.core, allow_pause_s=ask.allow_pause_s)
    yield ClockAgain()
