"""
What a collector's process tells the capture, over one pipe.

Each collector runs in a process of its own, so that it can be cut off at any instant and whatever it does (a read
that hangs in the kernel, a ptrace stop, a crash in a C call) cannot take the capture with it. Frames are a type,
a length and a payload: DATA carries bytes of the artifact that is open, CONTROL one JSON object.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmforensics.model.capture import (
    MIB,
    Artifact,
    Gap,
    Json,
    Outcome,
    Pause,
    PauseBasis,
    Reason,
    Settlement,
    Touch,
)

HEADER = struct.Struct("=cI")
CONTROL, DATA = b"C", b"D"
MAX_CONTROL_BYTES = 4 * MIB
MAX_DATA_BYTES = MIB


class Sender:
    """
    The collector's end: blocking writes; a closed pipe ends the process by SIGPIPE, which is wanted.

    A frame is never left half written: an interruption waits until the frame is out.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._writing = False
        self._interruption: BaseException | None = None

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` now, or as soon as the frame that is being written is whole. For a signal handler."""
        if not self._writing:
            raise error
        self._interruption = error

    def control(self, **message: Json) -> None:
        """Send one JSON object; its `kind` names what it is."""
        payload = json.dumps(message).encode()
        if len(payload) > MAX_CONTROL_BYTES:
            payload = json.dumps({"kind": "bug", "says": f"a {message['kind']} message was too long"}).encode()
        self._frame(CONTROL, memoryview(payload))

    def data(self, chunk: bytes | memoryview) -> None:
        """Send bytes of the open artifact, in frames of at most MAX_DATA_BYTES."""
        view = memoryview(chunk)
        for start in range(0, len(view), MAX_DATA_BYTES):
            self._frame(DATA, view[start : start + MAX_DATA_BYTES])

    def _frame(self, kind: bytes, payload: memoryview) -> None:
        self._writing = True
        self._write(memoryview(HEADER.pack(kind, len(payload))))
        self._write(payload)
        self._writing = False
        if self._interruption is not None:
            error, self._interruption = self._interruption, None
            raise error

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._fd, view) :]


def open_message(artifact: Artifact) -> dict[str, Json]:
    """An artifact begins. A spooled file goes by name; its bytes stay where they are."""
    return {
        "kind": "artifact",
        "path": artifact.path,
        "source": artifact.source,
        "media_type": artifact.media_type,
        "bulk": artifact.bulk,
        "spooled": artifact.body.name if isinstance(artifact.body, Path) else None,
    }


def settle_message(settlement: Settlement) -> dict[str, Json]:
    """The open artifact is at its end."""
    return {
        "kind": "settled",
        "outcome": settlement.outcome.value,
        "reason": settlement.reason.json() if settlement.reason else None,
        "facts": dict(settlement.facts),
        "pause": settlement.pause.json() if settlement.pause else None,
    }


def gap_message(gap: Gap) -> dict[str, Json]:
    """Something is missing."""
    return {
        "kind": "gap",
        "wanted": gap.wanted,
        "outcome": gap.outcome.value,
        "reason": gap.reason.json(),
        "question": gap.question,
    }


def read_reason(value: Any) -> Reason | None:
    """The inverse of `Reason.json`."""
    return None if value is None else Reason(value["code"], value["says"], value["next_step"])


def read_pause(value: Any) -> Pause | None:
    """The inverse of `Pause.json`."""
    return None if value is None else Pause(value["seconds"], PauseBasis(value["basis"]))


def read_settlement(message: Mapping[str, Any]) -> Settlement:
    """The inverse of `settle_message`."""
    return Settlement(
        Outcome(message["outcome"]),
        read_reason(message["reason"]),
        message["facts"],
        read_pause(message["pause"]),
    )


def read_gap(message: Mapping[str, Any]) -> Gap:
    """The inverse of `gap_message`."""
    reason = read_reason(message["reason"])
    assert reason is not None  # a Gap always has one; this is our own process speaking
    return Gap(message["wanted"], Outcome(message["outcome"]), reason, message["question"])


def read_touch(message: Mapping[str, Any]) -> Touch:
    """A touch as sent by the host."""
    return Touch(message["verb"], message["what"], message["seconds"], message["result"])
