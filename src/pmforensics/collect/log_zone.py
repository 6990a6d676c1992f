"""Which time zone the target's local times are in."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from pmforensics.collect.base import Host
from pmforensics.errors import CollectError, DeadlinePassed, TargetGone
from pmforensics.model.capture import MIB

ZONE_FILE_BYTES = MIB
QUARTER_S = 900  # every zone in use is a whole number of quarter hours from UTC
QUARTERS = 14 * 4  # and none is further from it than Kiribati
MTIME_SLACK_S = 5.0  # between the stamp of a line and the write that carried it


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone that was assumed, and why."""

    zone: tzinfo
    says: str


class LocalZone:
    """The target's own zone, looked up once, when the first stamp without a zone turns up."""

    def __init__(self, host: Host, now: datetime) -> None:
        self._host = host
        self._now = now
        self._known: Zone | None = None

    def of_process(self) -> Zone:
        """What the C library of the target would use: TZ, else /etc/localtime, else UTC."""
        if self._known is None:
            self._known = self._read()
        return self._known

    def of_file(self, wall: datetime, written_s: float) -> Zone:
        """
        The zone of a file's stamps. `wall` is its last stamp read as if it were UTC, `written_s` its mtime.

        A file's last line was written when the file was. Where the target's own zone disagrees with that, and a
        whole number of quarter hours does not, the program logs in a zone of its own.
        """
        assumed = self.of_process()
        for fold in (0, 1):
            at = wall.replace(tzinfo=assumed.zone, fold=fold).timestamp()
            if abs(at - written_s) <= MTIME_SLACK_S:
                return assumed
        ahead_s = wall.timestamp() - written_s
        quarters = round(ahead_s / QUARTER_S)
        if abs(ahead_s - quarters * QUARTER_S) > MTIME_SLACK_S or abs(quarters) > QUARTERS:
            return assumed
        zone = timezone(timedelta(seconds=quarters * QUARTER_S))
        return Zone(zone, f"{zone}, by the last line against the file's last change")

    def _read(self) -> Zone:
        name = self._tz()
        if name is not None:
            if name in ("", "UTC", "UTC0", "GMT", "GMT0", "Etc/UTC"):
                return Zone(UTC, "UTC, the target's TZ")
            if re.fullmatch(r"/?[A-Za-z0-9_+-]{1,64}(?:/[A-Za-z0-9_+-]{1,64}){0,8}", name):
                zone = self._zone_file(name if name.startswith("/") else f"/usr/share/zoneinfo/{name}")
                if zone is not None:
                    return Zone(zone, f"{name}, the target's TZ")
        zone = self._zone_file("/etc/localtime")
        if zone is not None:
            return Zone(zone, f"UTC{self._now.astimezone(zone):%z}, the target's /etc/localtime")
        return Zone(UTC, "UTC, for want of a zone of the target")

    def _tz(self) -> str | None:
        """Nothing else of the environment is kept."""
        try:
            environ = self._host.read_proc("environ")
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone):
            return None
        value = next((item[3:] for item in environ.split(b"\0") if item.startswith(b"TZ=")), None)
        return None if value is None else value.decode("utf-8", "replace").removeprefix(":")

    def _zone_file(self, path: str) -> tzinfo | None:
        from zoneinfo import ZoneInfo

        try:
            data = self._host.read_target(path, ZONE_FILE_BYTES)
            return ZoneInfo.from_file(io.BytesIO(data), key=path)
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone, ValueError, IndexError, OverflowError, struct.error):
            return None  # missing, or not a zone file
