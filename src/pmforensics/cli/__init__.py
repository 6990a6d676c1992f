"""The `pmf` command: one file per sub-command, loaded only when it is called."""

from __future__ import annotations

import importlib
import sys
import time

import click

from pmforensics import __version__

STARTED = time.monotonic()
"""When this process began to be pmf; budgets count from here."""

COMMANDS = {
    "capture": "Save the evidence of a process before it is restarted.",
    "show": "What is in a bundle, and what is missing.",
    "check": "Is a bundle what was sealed?",
    "verify": "Does this dump belong to this binary?",
    "symbols": "Keep binaries and debug files, found by build ID.",
    "recover": "Finish a bundle whose capture was killed.",
    "doctor": "What can be captured here, what not, and how to fix it.",
}


class _Lazy(click.Group):
    """Imports a command's module when the command is used; `pmf --version` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pmforensics.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="pmf")
def pmf() -> None:
    """
    Save the evidence of a sick process before the restart destroys it.

    \b
    pmf doctor --pid N     can everything be captured here?
    pmf capture --pid N    capture, seal, and say what is missing

    Exit codes: 0 done or yes, 1 the answer is no, 2 usage, 3 incomplete, 4 could not, 70 a bug in pmf, 130
    interrupted.
    """


def main() -> None:
    """Entry point: runs the command and ends the process with its exit code."""
    from pmforensics.cli.errors import guarded

    sys.exit(guarded(pmf))
