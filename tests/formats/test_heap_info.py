"""GC.heap_info as every garbage collector of JDK 17 and 25 prints it."""

from __future__ import annotations

import pytest

from pmforensics.formats.heap_info import HeapInfo, parse_heap_info

K, M = 1 << 10, 1 << 20

# Printed by OpenJDK 17.0.15 and Temurin 25.0.3 for one and the same program; trimmed to the lines with numbers.
CASES = {
    "g1-17": (
        """ garbage-first heap   total 389120K, used 31068K [0x00000000e0000000, 0x0000000100000000)
  region size 1024K, 9 young (9216K), 3 survivors (3072K)
 Metaspace       used 144K, committed 384K, reserved 1114112K
  class space    used 4K, committed 128K, reserved 1048576K
""",
        HeapInfo(31068 * K, False),
    ),
    "g1-25": (
        """garbage-first heap   total reserved 524288K, committed 389120K, used 32398K [0xe0000000, 0x100000000)
 region size 1024K, 10 young (10240K), 3 survivors (3072K)
""",
        HeapInfo(32398 * K, False),
    ),
    "serial-17": (
        """ def new generation   total 116160K, used 34506K [0x00000000e0000000, 0x00000000e7e00000, 0x00000000eaaa0000)
  eden space 103296K,  33% used [0x00000000e0000000, 0x00000000e21b28e8, 0x00000000e64e0000)
 tenured generation   total 258048K, used 10K [0x00000000eaaa0000, 0x00000000fa6a0000, 0x0000000100000000)
   the space 258048K,   0% used [0x00000000eaaa0000, 0x00000000eaaa0000, 0x00000000eaaa0200, 0x00000000fa6a0000)
 Metaspace       used 195K, committed 384K, reserved 1114112K
  class space    used 5K, committed 128K, reserved 1048576K
""",
        HeapInfo((34506 + 10) * K, False),
    ),
    "parallel-25": (
        """PSYoungGen      total 113152K, used 41109K [0x00000000f5580000, 0x00000000fd380000, 0x0000000100000000)
 eden space 97280K, 42% used [0x00000000f5580000,0x00000000f76b13c0,0x00000000fb480000)
ParOldGen       total 258048K, used 1166K [0x00000000e0000000, 0x00000000efc00000, 0x00000000f5580000)
 object space 258048K, 0% used [0x00000000e0000000,0x00000000e0123ab8,0x00000000efc00000)
""",
        HeapInfo((41109 + 1166) * K, False),
    ),
    "z-17": (
        """ ZHeap           used 36M, capacity 378M, max capacity 512M
 Metaspace       used 198K, committed 384K, reserved 1114112K
  class space    used 5K, committed 128K, reserved 1048576K
""",
        HeapInfo(36 * M, True),
    ),
    "z-25": (
        """ZHeap            used 40M, capacity 378M, max capacity 512M
 Cache           338M (3)
  size classes   2M (1), 8M (1), 256M (1)
""",
        HeapInfo(40 * M, True),
    ),
    "shenandoah-25": (
        """Shenandoah Heap
 512M max, 512M soft max, 376M committed, 31887K used
 2048 x 256 K regions
Status: not cancelled
""",
        HeapInfo(31887 * K, True),
    ),
    "epsilon-17": (
        """Epsilon Heap
Allocation space:
 space 385692K,   8% used [0x00000000e0000000, 0x00000000e1ef91f8, 0x00000000f78a7000)
 Metaspace       used 198K, committed 384K, reserved 1114112K
""",
        HeapInfo(385692 * K * 9 // 100, False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_used_heap_without_metaspace(case: str) -> None:
    text, expected = CASES[case]
    assert parse_heap_info(text) == expected


@pytest.mark.parametrize(
    "text", ["", "java.lang.IllegalArgumentException: Unknown diagnostic command\n", "used K\n" * 10_000]
)
def test_unknown_text_gives_no_number(text: str) -> None:
    assert parse_heap_info(text).used_bytes is None
