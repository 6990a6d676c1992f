"""
HotSpot's GC.heap_info: how much of the heap is in use.

Each garbage collector prints its own text, from JDK 8 to 25:

    G1          garbage-first heap   total 389120K, used 31068K [...
    Parallel    PSYoungGen      total 113152K, used 33988K [...          and ParOldGen
    Serial      def new generation   total 116160K, used 34506K [...     and tenured generation; DefNew, Tenured
    ZGC         ZHeap           used 36M, capacity 378M, max capacity 512M
    Shenandoah  512M max, 512M soft max, 376M committed, 30351K used
    Epsilon     space 385692K,   8% used [...
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT_BYTES = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NOT_HEAP = re.compile(r"\s*(?:Metaspace|class space|compacting perm gen|PSPermGen)\b")
_USED_BEHIND = re.compile(r"\bused (\d{1,15})([BKMGT])\b")
_USED_BEFORE = re.compile(r"\bcommitted, (\d{1,15})([BKMGT]) used\b")
_PERCENT = re.compile(r"\s*space (\d{1,15})([BKMGT]),\s+(\d{1,3})% used\b")
_MAX_LINES = 500


@dataclass(frozen=True, slots=True)
class HeapInfo:
    """
    used_bytes   live and dead objects together, None when the text has no such number
    concurrent   ZGC or Shenandoah, whose heap walk is several times slower than that of the others
    """

    used_bytes: int | None
    concurrent: bool


def parse_heap_info(text: str) -> HeapInfo:
    """The answer to GC.heap_info."""
    lines = text.splitlines()[:_MAX_LINES]
    concurrent = any("ZHeap" in line or "Shenandoah" in line for line in lines)
    heap = [line for line in lines if not _NOT_HEAP.match(line)]
    found = [match for line in heap if (match := _USED_BEHIND.search(line) or _USED_BEFORE.search(line))]
    if found:
        return HeapInfo(sum(int(match[1]) * _UNIT_BYTES[match[2]] for match in found), concurrent)
    for line in heap:
        if match := _PERCENT.match(line):
            # Whole percents, rounded down: one more is an upper bound.
            return HeapInfo(int(match[1]) * _UNIT_BYTES[match[2]] * (int(match[3]) + 1) // 100, concurrent)
    return HeapInfo(None, concurrent)
