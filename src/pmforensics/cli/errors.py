"""The only place where errors are caught and turned into words and exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys

import click

from pmforensics.errors import PmfError

# What the machine may refuse at any time and a message of ours did not foresee: no bug, and no traceback.
ENVIRONMENT = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG}
)
EXIT_DONE, EXIT_NO, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_COULD_NOT, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 70, 130


def guarded(command: click.Command) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path need not be UTF-8, and must not end in a traceback
            stream.reconfigure(errors="surrogateescape")
    try:
        result = command.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        click.echo("pmf: interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except PmfError as error:
        from pmforensics.cli.terminal import plain

        click.echo(f"pmf: {plain(error.message)} [{error.code}]", err=True)
        if error.hint:
            click.echo(f"hint: {plain(error.hint)}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`pmf show | head`): no words, and none at interpreter exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_COULD_NOT
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            return _bug()
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"pmf: {where}{error.strerror} [system-error]", err=True)
        return EXIT_COULD_NOT
    except Exception:
        return _bug()
    return result if isinstance(result, int) else EXIT_DONE


def _bug() -> int:
    import traceback

    traceback.print_exc()
    click.echo("pmf: this is a bug in pmf; please report it with the lines above [bug]", err=True)
    return EXIT_BUG
