"""The console blocks of the README and the runbooks are executed, and print what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import zoo

PAGES = [zoo.REPO / "README.md", *sorted((zoo.REPO / "runbooks").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GOROUTINES = "120000"  # so many that printing them one by one takes over a second on any machine
MARK = "=== end of command"


@dataclass(frozen=True)
class Step:
    """One `$` line and what the page says that it prints."""

    command: str
    expected: str


def steps_of(page: Path) -> list[Step]:
    """All commands of a page, in order; they share one shell."""
    steps: list[Step] = []
    for block in BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            steps.append(Step(command, expected))
    return steps


def pattern_of(expected: str) -> re.Pattern[str]:
    """`...` stands for anything, also for several lines; runs of blanks in a table count as one."""
    pieces = [re.sub(r"(\\ )+", r" +", re.escape(piece)) for piece in expected.rstrip("\n").split("...")]
    return re.compile(r".*?".join(pieces) + r"\s*", re.DOTALL)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A sick Go service called `notify`, and an environment in which the page's commands find it."""
    binary = tmp_path / "bin" / "notify"
    binary.parent.mkdir()
    shutil.copy(zoo.build("go"), binary)
    evidence = zoo.REPO / ".cache" / f"evidence-{os.getpid()}"
    log = tmp_path / "notify.log"
    with (
        log.open("wb") as out,
        subprocess.Popen([binary, "producer-gone", GOROUTINES], stdout=out, stderr=out) as child,
    ):
        give_up = time.monotonic() + zoo.READY_S
        while b"ready" not in log.read_bytes():
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.05)
        yield {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PMF_EVIDENCE": str(evidence),
            "COLUMNS": "80",
        }
        assert child.poll() is None, "the service did not survive the page"
        child.kill()
    shutil.rmtree(evidence, ignore_errors=True)


def test_pages_are_found() -> None:
    assert len(PAGES) >= 2
    assert all(steps_of(page) for page in PAGES)


@pytest.mark.needs("go", "root")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_console_blocks_do_what_they_say(
    page: Path, service: dict[str, str], tmp_path: Path, needs: Callable[..., None]
) -> None:
    if "cd incident\n" in page.read_text():
        needs("gcc", "gdb")
        subprocess.run([zoo.REPO / "fixtures" / "rebuilt-library" / "make", tmp_path / "incident"], check=True)
    steps = [step for step in steps_of(page) if not step.command.startswith("make ")]
    script = "".join(f"{step.command}\necho '{MARK}'\n" for step in steps)
    ran = subprocess.run(
        ["bash", "-u"],
        input=script,
        env=service,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # stdout and stderr together would interleave; errors of pmf are looked up in stderr instead.
    outputs = ran.stdout.split(MARK + "\n")
    for step, output in zip(steps, outputs, strict=False):
        wanted = pattern_of(step.expected)
        both = output if output.strip() else ran.stderr
        found = wanted.fullmatch(output) or (step.expected.startswith("pmf:") and wanted.search(both))
        assert found, f"$ {step.command}\nprinted:\n{output}\nthe page says:\n{step.expected}\nstderr:\n{ran.stderr}"
    assert len(outputs) == len(steps) + 1, ran.stderr
