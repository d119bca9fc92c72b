"""Checks of the words of commands whose other words are Hydra's."""

from collections.abc import Iterable, Sequence

from fedkd.errors import ConfigError
from simulations.overrides import nearest


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
            raise ConfigError(
                f"an option must be one of the command's, got {word.partition('=')[0]!r}{nearest(word.partition('=')[0], flags)}"
            )
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"a word must be KEY=VALUE, got {word!r}")
