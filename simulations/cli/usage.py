"""Usage errors in one line: of click, and of words that click leaves to Hydra."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from fedkd.errors import ConfigError
from fedkd.files import with_home
from simulations.cli.exit_codes import OK, WRONG
from simulations.overrides import nearest


class FilePath(click.Path):
    """A path on the command line. A ``~`` at its beginning is the home folder, also where no shell replaces it, as after ``=``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path with the home folder."""
        return super().convert(with_home(value), param, ctx)


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


def check_words(words: Sequence[str], flags: Iterable[str]) -> None:
    """Refuse words that are neither KEY=VALUE nor one of Hydra's ``~group``.

    Args:
        words: those that click has left.
        flags: the options of the command, for the nearest name.

    Raises:
        ConfigError: naming the word.
    """
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            raise ConfigError(f"an option must be one of the command's, got {name!r}{nearest(name, flags)}")
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"a word must be KEY=VALUE, got {word!r}")
