"""How answers look: tables, sizes, colour on a terminal only, progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COLOURS = {
    "collected": "green", "empty": None, "partial": "yellow", "missing": None, "denied": "yellow",
    "refused": "yellow", "late": "yellow", "failed": "red", "intact": "green", "altered": "red",
    "incomplete": "yellow", "ok": "green", "limited": "yellow", "no": "red",
}  # fmt: skip


def width() -> int:
    """Columns to fill: the terminal's, at most 100; 80 when there is none."""
    for stream in (sys.stdout, sys.stderr):
        try:
            return min(os.get_terminal_size(stream.fileno()).columns or 80, 100)
        except (OSError, ValueError):
            continue
    return 80


def paint(text: str, word: str) -> str:
    """`text` in the colour of `word`, when stdout is a terminal and NO_COLOR is not set."""
    colour = COLOURS.get(word)
    if colour is None or "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return click.style(text, fg=colour)


def strong(text: str) -> str:
    """Bold on a terminal."""
    return click.style(text, bold=True) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def size_text(count: int | None) -> str:
    """Bytes for people: three digits and a unit."""
    if count is None:
        return "-"
    value = float(count)
    for unit in UNITS:
        if value < 1000 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit always returns")


def seconds_text(seconds: float | None) -> str:
    """Seconds for people: milliseconds below one."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def pause_text(pause: dict[str, Any] | None) -> str:
    """A pause; `<` marks an upper bound."""
    if not pause:
        return "-"
    return ("<" if pause["basis"] == "at-most" else "") + seconds_text(pause["seconds"])


def plain(text: object) -> str:
    """Text from outside without control characters: a process may name itself with terminal escapes."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]) -> str:
    """
    Aligned columns; the first one takes what is left of the width and is cut in the middle when it must be.

    `right` names the columns that align right. A cell may be painted only in its outcome word.
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    room = width() - sum(widths[1:]) - 2 * (len(head) - 1)
    widths[0] = max(min(widths[0], room), 12)
    lines = []
    for number, row in enumerate((head, *rows)):
        cells = []
        for column, cell in enumerate(row):
            text = shorten(cell, widths[column]) if column == 0 else cell
            text = text.rjust(widths[column]) if column in right else text.ljust(widths[column])
            cells.append(strong(text) if number == 0 else paint(text, cell))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shorten(text: str, room: int) -> str:
    """Cut in the middle: the beginning says where, the end says what."""
    if len(text) <= room:
        return text
    tail = (room - 1) * 2 // 3
    return text[: room - 1 - tail] + "~" + text[-tail:]


def wrap(text: str, indent: str) -> str:
    """A paragraph, indented, never breaking a word that could be a path or a command."""
    import textwrap

    return textwrap.fill(
        plain(text),
        width(),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def render_gaps(gaps: Sequence[dict[str, Any]]) -> str:
    """What is missing, why, and what to do: one stanza each."""
    lines = []
    for gap in gaps:
        reason = gap.get("reason") or {}
        wanted = plain(gap.get("wanted")).removeprefix("data/")
        head = f"{wanted} [{plain(reason.get('code'))}]"
        lines.append(paint(head, str(gap.get("outcome"))))
        lines.append(wrap(str(reason.get("says", "")), "  "))
        if reason.get("next_step"):
            lines.append(wrap("next: " + str(reason["next_step"]), "  "))
    return "\n".join(lines)


class Progress:
    """One line on stderr that overwrites itself; silent when stderr is not a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._shown = False

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._on:
            sys.stderr.write("\r\x1b[K" + plain(text)[: width() - 1])
            sys.stderr.flush()
            self._shown = True

    def done(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
