"""
Make the generated pages: docs/collectors.md from the collectors' own docstrings.

    python docs/make.py            write
    python docs/make.py --check    fail when a page is not what would be written
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from pmforensics.collect import OPT_IN, collectors
from pmforensics.model.capture import Ask

DOCS = Path(__file__).parent
HEADINGS = ("Source", "Yields", "Cost", "Partial", "Errors")


def collectors_page() -> str:
    """docs/collectors.md."""
    lines = [
        "# Collectors",
        "",
        "What `pmf capture` collects, in this order. Made from the source by `make docs`.",
        "",
        '`--exclude NAME` leaves one out; `--include NAME` adds one that runs only when asked for. "Stops" means',
        "that it can make the target stand still; its pause is then recorded, and the target is proven to run again.",
        "",
    ]
    for collector in collectors(Ask(pid=1)):
        said = inspect.getdoc(type(collector)) or ""
        summary, _, rest = said.partition("\n\n")
        marks = []
        if collector.stops:
            marks.append("stops")
        if collector.name in OPT_IN:
            marks.append("only when asked for")
        lines += [f"## {collector.name}", "", summary, "", f"**{collector.question}**", ""]
        lines += ["| | |", "|---|---|"]
        for heading, text in _headings(rest):
            lines.append(f"| {heading} | {text.replace('|', chr(92) + '|')} |")
        lines += [f"| At most | {collector.limit_s:g} s{', ' + ', '.join(marks) if marks else ''} |", ""]
    return "\n".join(lines)


def _headings(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        head, colon, rest = line.partition(":")
        if colon and head in HEADINGS:
            found.append((head, rest.strip()))
        elif found and line.strip():
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif not line.strip():
            continue
    return found


PAGES = {"collectors.md": collectors_page}


def main() -> int:
    """Write or check; 1 when a page is stale."""
    stale = 0
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"docs/{name} is not what the source says: make docs", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
