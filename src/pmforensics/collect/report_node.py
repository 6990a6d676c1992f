"""Node's own diagnostic report, where the process was started with it."""

from __future__ import annotations

import json
import posixpath
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pmforensics.collect.base import Host, facts_of
from pmforensics.errors import AnswerBroken, CollectError, DeadlinePassed, NotSupported, WouldHarm
from pmforensics.formats.argv import parse_cmdline, redact_argv
from pmforensics.formats.proc import parse_stat_state
from pmforensics.model.capture import MIB, Artifact, Gap, Pause, PauseBasis, Settlement
from pmforensics.model.process import Runtime, Target

WAIT_S = 5.0  # Node 20 had a report of 13 kB whole 0.01 s after the signal
FIRST_LOOK_S, LAST_LOOK_S = 0.01, 0.25  # each look is logged: few of them, soon at first
MAX_BYTES = 8 * MIB  # 300 bytes per open handle; parsed in memory
WITHHELD = "(withheld)"
DEFAULT_SIGNAL = "SIGUSR2"

_NOT_ENABLED_HINT = (
    "Start the service with NODE_OPTIONS='--report-on-signal --report-directory=DIR'. Until then the core has the"
    " native stacks. Never send SIGUSR1: it opens the debugger's port."
)
# Options of Node 18 to 24 whose value may be an argument of its own: what follows them is not the script. One that is
# not named here ends the search too early, which costs a report and sends no signal.
_TAKES_VALUE = frozenset(
    ("-C", "-e", "-p", "-pe", "-r", "--conditions", "--diagnostic-dir", "--disable-warning", "--env-file", "--eval",
     "--experimental-loader", "--icu-data-dir", "--import", "--input-type", "--loader", "--print", "--report-dir",
     "--report-directory", "--report-filename", "--report-signal", "--require", "--title", "--unhandled-rejections")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Enabled:
    """How the process writes reports on a signal: which one, into which folder ("" its own), under which name."""

    signal_name: str = DEFAULT_SIGNAL
    directory: str = ""
    filename: str = ""


@dataclass(frozen=True, slots=True)
class ReportNode:
    """
    JavaScript stack, heap spaces, native stack, libuv handles, limits and libraries, as Node reports them.

    Source:   the file that Node writes on the signal of --report-signal when it runs with --report-on-signal (argv, or
              NODE_OPTIONS, the only variable that is read).
    Yields:   report.json: the report, the values of environment variables withheld and its command line redacted.
    Cost:     the main thread writes it, 0.01 s. The file in the target's folder is removed once it is copied.
    Partial:  never; a report that is not whole is left where it is, because it cannot be cleared of secrets.
    Errors:   NotSupported (not enabled), WouldHarm (signal not caught, or a file in the way), DeadlinePassed (the
              event loop did not serve the signal), AnswerBroken.
    """

    name: ClassVar[str] = "report_node"
    question: ClassVar[str] = "What was the event loop busy with, and which handles kept it?"
    limit_s: ClassVar[float] = 8.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    wait_s: float = WAIT_S

    def applies_to(self, target: Target) -> bool:
        return Runtime.NODE in target

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        enabled = read_enabled(parse_cmdline(host.read_proc("cmdline")), _node_options(host))
        if enabled is None:
            raise NotSupported(
                "neither the command line nor NODE_OPTIONS turns on --report-on-signal", hint=_NOT_ENABLED_HINT
            )
        if parse_stat_state(host.read_proc("stat")) in "Tt":
            raise NotSupported("the process is stopped: it would write the report after the capture, unnoticed")
        signum = _signal_of(enabled)
        folder = _folder_of(enabled, host)
        before = set(host.list_target(folder))
        if enabled.filename in before:
            raise WouldHarm(
                f"the report would overwrite {posixpath.join(folder, enabled.filename)}",
                hint="Move that file away first.",
            )
        sent = time.monotonic()
        host.signal(signum)
        path, report = self._await(enabled, folder, before, target, host)
        pause = Pause(time.monotonic() - sent, PauseBasis.AT_MOST)
        facts = facts_of(
            values_withheld=_withhold(report),
            node_version=_text(report["header"], "nodejsVersion"),
            written_at=_text(report["header"], "dumpEventTime"),
        )
        yield Artifact(
            "report.json",
            json.dumps(report, indent=2).encode() + b"\n",
            f"{path} (as the target sees it), written on {enabled.signal_name}",
            "application/json",
            pause=pause,
            settle=lambda: Settlement(facts={**facts, "removed_from_target": _remove(path, host)}, pause=pause),
        )

    def _await(
        self, enabled: Enabled, folder: str, before: set[str], target: Target, host: Host
    ) -> tuple[str, dict[str, Any]]:
        """The new file, and what it says once it is whole."""
        ours = re.compile(re.escape(enabled.filename) if enabled.filename else _default_name(target))
        wait_s = min(self.wait_s, host.remaining_s() * 0.9)
        give_up = time.monotonic() + wait_s
        pause_s = FIRST_LOOK_S
        seen = ""
        while time.monotonic() < give_up:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_LOOK_S)
            host.check_alive()
            for name in host.list_target(folder):
                if name not in before and ours.fullmatch(name):
                    seen = posixpath.join(folder, name)
                    report = _parse(host.read_target(seen, MAX_BYTES))
                    if report is not None and report["header"].get("event") == enabled.signal_name:
                        return seen, report
        if seen:
            raise AnswerBroken(
                f"the report {seen} was not whole after {wait_s:.1f} s and was left there",
                hint="It holds the whole environment: save it by hand, then remove it.",
            )
        raise DeadlinePassed(
            f"the event loop did not serve {enabled.signal_name} within {wait_s:.1f} s: the main thread is busy,"
            f" or cannot write to {folder}",
            hint=f"The core has the native stacks. Once the loop turns, a report appears in {folder}: remove it, as it"
            " holds the whole environment.",
        )


# -- how it is enabled -----------------------------------------------------------------------------------------------


def read_enabled(argv: Sequence[str], node_options: Sequence[str]) -> Enabled | None:
    """
    How reports on a signal are turned on; None when they are not.

    Node reads NODE_OPTIONS first, then its own options on the command line: those before the script.
    """
    on, values = False, {"signal": DEFAULT_SIGNAL, "directory": "", "dir": "", "filename": ""}
    words = [*node_options, *_options_of_node(argv)]
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in ("--report-on-signal", "--no-report-on-signal"):
            on = name == "--report-on-signal"
        elif name.startswith("--report-") and name.removeprefix("--report-") in values:
            following = words[at + 1] if at + 1 < len(words) else ""
            values[name.removeprefix("--report-")] = value if equals else following
    return Enabled(values["signal"], values["directory"] or values["dir"], values["filename"]) if on else None


def _options_of_node(argv: Sequence[str]) -> Iterator[str]:
    """The words between the executable and the script: what follows belongs to the program."""
    value_follows = False
    for word in argv[1:]:
        if not value_follows and (not word.startswith("-") or word in ("-", "--")):
            return
        yield word
        value_follows = not value_follows and word.replace("_", "-") in _TAKES_VALUE


def _node_options(host: Host) -> list[str]:
    """NODE_OPTIONS as words; blanks may stand inside double quotes, where a backslash escapes."""
    for entry in host.read_proc("environ").split(b"\0"):
        if entry.startswith(b"NODE_OPTIONS="):
            text = entry.partition(b"=")[2].decode("utf-8", "surrogateescape")
            words = re.findall(r'(?:"(?:\\.|[^"\\])*"|[^ "])+', text)
            return [re.sub(r'\\(.)|"', r"\1", word) for word in words]
    return []


def _signal_of(enabled: Enabled) -> int:
    if enabled.signal_name == "SIGUSR1":
        raise WouldHarm("--report-signal is SIGUSR1, on which Node opens the debugger's port")
    try:
        return signal.Signals[enabled.signal_name]
    except KeyError:
        raise NotSupported(f"--report-signal {enabled.signal_name[:40]!r} is no signal of this system") from None


def _folder_of(enabled: Enabled, host: Host) -> str:
    """The folder of the reports, as the target sees it."""
    if enabled.filename in ("stdout", "stderr"):
        raise NotSupported(f"reports go to the target's {enabled.filename} (--report-filename)")
    working, root = host.link_proc("cwd"), host.link_proc("root")
    if root != "/":
        working = working.removeprefix(root) or "/"  # the link is told from our root, paths are looked up from its own
    return posixpath.normpath(posixpath.join(working, enabled.directory))


def _default_name(target: Target) -> str:
    """report.DATE.TIME.PID.THREAD.NUMBER.json"""
    return rf"report\.\d{{8}}\.\d{{6}}\.{target.own_pid}\.\d+\.\d+\.json"


# -- what it says ----------------------------------------------------------------------------------------------------


def _parse(text: bytes) -> dict[str, Any] | None:
    """The report; None while it is being written."""
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(report, dict) and isinstance(report.get("header"), dict)
    return report if whole else None


def _withhold(report: dict[str, Any]) -> int:
    """
    Take out, in place, what may be secret: the environment's values and marked arguments. Returns how many.

    A worker thread's report is a report inside the report.
    """
    withheld = 0
    todo: list[Any] = [report]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        if not isinstance(part, dict):
            continue
        for name, value in part.items():
            if name == "environmentVariables" and isinstance(value, dict):
                part[name] = dict.fromkeys(value, WITHHELD)
                withheld += len(value)
            elif name == "commandLine" and isinstance(value, list):
                part[name], redacted = redact_argv([str(word) for word in value])
                withheld += redacted
            else:
                todo.append(value)
    return withheld


def _text(part: dict[str, Any], name: str) -> str | None:
    value = part.get(name)
    return value if isinstance(value, str) else None


def _remove(path: str, host: Host) -> bool:
    """We had it written, it holds the whole environment, and it has been copied."""
    started = time.monotonic()
    result = "ok"
    try:
        host.target_path(path).unlink()
    except OSError as error:
        result = error.strerror or "error"
    except CollectError as error:
        result = error.code
    host.note("remove", f"{path} (as the target sees it)", result, time.monotonic() - started)
    return result == "ok"
