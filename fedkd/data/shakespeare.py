"""Shakespeare's plays by speaking role: the next character of a role's lines. A role is a natural client."""

import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedkd.data.cache import content_digest
from fedkd.errors import ConfigError, require
from fedkd.types import PADDING, Examples, Task

PAD, BEGIN, END, UNKNOWN = "<pad>", "<begin>", "<end>", "<unknown>"
"""Tokens beside the characters: the first three tokens, and the last one."""

LEAST_LINES = 3
"""Lines of a role that is used."""


@dataclass(frozen=True, kw_only=True)
class Shakespeare:
    """Plays in XML (PLAY, ACT, SCENE, SPEECH, SPEAKER, LINE), from a folder or a zip file.

    A role is a speaker of a play, in capital letters; of a speech with several speakers, the first one. Speeches without a speaker, stage
    directions inside of lines, and lines that are empty then are left out. The last fifth of a role's lines are its test lines, at least
    one, and roles with two lines or fewer are left out. The training lines of a role are one text, and so are its test lines: the lines
    with a line feed after each, between the tokens ``<begin>`` and ``<end>``. The text is cut into windows of ``length`` characters, of
    which the targets are the next characters; the last one is filled with padding. The characters are those of the training lines of all
    roles that are used.

    The roles are the groups of the examples: ``partition=by_group`` makes clients of them. Padding and ``<end>`` do not count in accuracy.

    Source:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-efficient learning of deep networks from decentralized data, AISTATS
            2017.

    Args:
        root: the folder or the zip file.
        length: characters of a window, > 0.
        min_characters: characters of a role that is used, >= 0, training and test lines together.
        max_roles: the roles with most characters that are used, > 0; null: all.

    Raises:
        ConfigError: a value is out of its range; on calling if there are no plays, or a file is damaged.
    """

    root: str
    length: int
    min_characters: int
    max_roles: int | None

    def __post_init__(self) -> None:
        require(self.length > 0, "length", "must be > 0 characters", self.length)
        require(self.min_characters >= 0, "min_characters", "must be >= 0", self.min_characters)
        require(self.max_roles is None or self.max_roles > 0, "max_roles", "must be > 0, or null for all", self.max_roles)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        lines = lines_by_role(read_plays(self.root))
        sizes = {role: sum(len(line) + 1 for line in own) for role, own in lines.items()}
        roles = [role for role, own in lines.items() if len(own) >= LEAST_LINES and sizes[role] >= self.min_characters]
        roles = sorted(roles, key=lambda role: (-sizes[role], role))[: self.max_roles]
        require(len(roles) > 0, "min_characters", "must leave a role with three lines or more", self.min_characters)
        roles.sort()
        cuts = {role: len(lines[role]) - max(1, len(lines[role]) // 5) for role in roles}
        texts = {
            "train": ["".join(f"{line}\n" for line in lines[role][: cuts[role]]) for role in roles],
            "test": ["".join(f"{line}\n" for line in lines[role][cuts[role] :]) for role in roles],
        }
        vocabulary = (PAD, BEGIN, END, *sorted(set().union(*texts["train"])), UNKNOWN)
        arrays: dict[str, np.ndarray] = {"vocabulary": np.frombuffer("".join(vocabulary).encode(), np.uint8)}
        for part, of in texts.items():
            windows = [next_token_windows(text, vocabulary, self.length) for text in of]
            arrays |= {f"{part}_{kind}": np.concatenate([window[place] for window in windows]) for place, kind in enumerate("xy")}
            arrays[f"{part}_groups"] = np.arange(len(roles)).repeat([len(x) for x, _ in windows])
        digest = content_digest(arrays)
        train, test = (
            Examples(
                torch.from_numpy(arrays[f"{part}_x"]), torch.from_numpy(arrays[f"{part}_y"]), 1.0, (0.0,), (1.0,), digest,
                groups=torch.from_numpy(arrays[f"{part}_groups"]), group_names=tuple(roles), tokens=True,
            )
            for part in ("train", "test")
        )  # fmt: skip
        task = Task(
            "shakespeare", (self.length,), len(vocabulary), vocabulary, input="tokens", target="next_token", vocabulary=vocabulary,
            uncounted=(PADDING, vocabulary.index(END)),
        )  # fmt: skip
        return task, train, test


def read_plays(root: str) -> dict[str, bytes]:
    """The XML files of a folder, at any depth, or of a zip file, by name.

    Raises:
        ConfigError: there are none, or the zip file is damaged.
    """
    path = Path(root).expanduser().resolve()
    if path.is_dir():
        found = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.xml"))}
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as file:
                names = sorted(name for name in file.namelist() if name.endswith(".xml") and "__MACOSX" not in name)
                found = {name: file.read(name) for name in names}
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ConfigError(f"root must hold intact files, got a damaged one: {path} ({error})") from error
    else:
        found = {}
    require(len(found) > 0, "root", "must be a folder or a zip file with plays in XML (*.xml)", str(root))
    return found


def lines_by_role(plays: dict[str, bytes]) -> dict[str, list[str]]:
    """The lines of each role, in the order of the play, by ``title: SPEAKER``.

    Args:
        plays: the XML of each play.

    Raises:
        ConfigError: a file is damaged.
    """
    lines: dict[str, list[str]] = {}
    for name, content in plays.items():
        try:
            play = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            raise ConfigError(f"root must hold intact files, got a damaged one: {name} ({error})") from error
        title = " ".join((play.findtext("TITLE") or name).split())
        for speech in play.iter("SPEECH"):
            speaker = " ".join((speech.findtext("SPEAKER") or "").split()).upper()
            if speaker:
                own = lines.setdefault(f"{title}: {speaker}", [])
                own += [text for line in speech.findall("LINE") if (text := text_of(line))]
    return lines


def text_of(line: ElementTree.Element) -> str:
    """The text of a line without that of its children, such as stage directions."""
    return "".join([line.text or "", *(child.tail or "" for child in line)]).strip()


def next_token_windows(text: str, vocabulary: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:  # [N, length], [N, length]
    """The characters of a text, between begin and end, as windows, and the next characters of each. Inputs are uint8 or int32.

    Args:
        text: the text.
        vocabulary: the tokens.
        length: characters of a window.
    """
    number_of = {token: number for number, token in enumerate(vocabulary)}
    unknown = number_of[UNKNOWN]
    ids = [number_of[BEGIN], *(number_of.get(character, unknown) for character in text), number_of[END]]
    number = -(-(len(ids) - 1) // length)
    windows = np.full((2, number * length), PADDING, np.int64)
    windows[0, : len(ids) - 1], windows[1, : len(ids) - 1] = ids[:-1], ids[1:]
    x, y = windows.reshape(2, number, length)
    return x.astype(np.uint8 if len(vocabulary) <= 256 else np.int32), y
