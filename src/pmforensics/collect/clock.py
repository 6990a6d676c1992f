"""What time it is, and how far that can be believed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.model.capture import Artifact, Gap, Json
from pmforensics.model.process import Target

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
STA_NANO = 0x2000


@dataclass(frozen=True, slots=True)
class Clock:
    """
    Wall clock, monotonic clocks, boot ID and the kernel's own opinion of its synchronization.

    Source:   clock_gettime(2), adjtimex(2) with modes = 0, /proc/sys/kernel/random/boot_id.
    Yields:   clock.json; the capture takes one at its start and one at its end.
    Cost:     none.
    Partial:  never.
    Errors:   NotSupported where adjtimex is filtered (seccomp): then `sync` is null.
    """

    name: ClassVar[str] = "clock"
    question: ClassVar[str] = "How do this host's times compare with those of other hosts?"
    limit_s: ClassVar[float] = 1.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return True

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        reading: dict[str, Json] = {**read_clocks(), "sync": clock_sync()}
        host.note("clock", "clock_gettime, adjtimex")
        yield Artifact(
            "clock.json",
            json.dumps(reading, indent=1).encode() + b"\n",
            "clock_gettime(2), adjtimex(2)",
            "application/json",
            facts=reading,
        )


@dataclass(frozen=True, slots=True)
class ClockAgain(Clock):
    """
    The clocks once more, at the end.

    Source:   as Clock.
    Yields:   clock.json; against the first one it shows steps of the wall clock during the capture.
    Cost:     none.
    Partial:  never.
    Errors:   as Clock.
    """

    name: ClassVar[str] = "clock_again"


def read_clocks() -> dict[str, Json]:
    """The clocks of this machine at one moment: wall in ns since the epoch, monotonic and boot time in ns."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read(64).strip()
    except OSError:
        boot_id = ""
    return {
        "wall_ns": time.time_ns(),
        "monotonic_ns": time.monotonic_ns(),
        "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "boot_id": boot_id,
    }


def clock_sync() -> dict[str, Json] | None:
    """
    The kernel's clock discipline: whether synchronized, the offset being slewed, the estimated and maximum error.

    Offsets and errors in seconds. None where the call is not permitted.
    """
    import ctypes

    class Timex(ctypes.Structure):
        _fields_ = [
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("constant", ctypes.c_long),
            ("precision", ctypes.c_long),
            ("tolerance", ctypes.c_long),
            ("rest", ctypes.c_byte * 256),
        ]

    timex = Timex()
    state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    unit_s = 1e-9 if timex.status & STA_NANO else 1e-6
    return {
        "synchronized": state != TIME_ERROR,
        "offset_s": timex.offset * unit_s,
        "estimated_error_s": timex.esterror * 1e-6,
        "maximum_error_s": timex.maxerror * 1e-6,
    }
