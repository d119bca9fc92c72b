"""Click commands as processes: usage errors in one line, exit codes, and readers that go away."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from simulations.cli.exit_codes import OK, WRONG


def run_command(main: Callable[..., Any], arguments: Sequence[str] | None, program: str, **extra: Any) -> int:
    """Run a click command.

    Args:
        main: the method ``main`` of the command.
        arguments: words after the program's name; None takes those of the process.
        program: name in help and messages.
        extra: for ``main``.

    Returns:
        The exit code. A usage error has been printed in one line.
    """
    try:
        code = main(args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False, **extra)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = "" if context is None else f"; see '{context.command_path} --help'"
        click.echo(f"error: {' '.join(error.format_message().split())}{where}", err=True)
        return WRONG
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code if isinstance(code, int) else OK
