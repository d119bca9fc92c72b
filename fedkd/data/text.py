"""Texts with one label each: TREC's questions, sentence polarity, and files of rows of the user's. Words become token ids."""

import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from fedkd.data.cache import content_digest
from fedkd.data.rows import check_split, drawn_rows, read_parts
from fedkd.errors import ConfigError, require
from fedkd.types import Examples, Task

PADDING_WORD, UNKNOWN_WORD = "<pad>", "<unknown>"
"""The first two tokens of every vocabulary of words."""


class Texts(NamedTuple):
    """The texts of one part of a data set.

    Args:
        texts: one string per example [N].
        labels: their classes [N], int64.
        groups: their groups [N], int64; None: no groups.
    """

    texts: Sequence[str]
    labels: np.ndarray
    groups: np.ndarray | None = None


class LabeledTexts(NamedTuple):
    """All texts of a data set.

    Args:
        train: the training texts.
        test: the test texts.
        names: the name of each class [C].
        group_names: the name of each group.
    """

    train: Texts
    test: Texts
    names: tuple[str, ...]
    group_names: tuple[str, ...] = ()


def words_of(text: str) -> list[str]:
    """The words of a text: lower-cased, and divided at spaces."""
    return text.lower().split()


def vocabulary_of(texts: Sequence[str], min_count: int, max_size: int | None) -> tuple[str, ...]:
    """The padding, the unknown word, and the words of ``texts``, the most frequent first, and alphabetical where equally frequent.

    Args:
        texts: the training texts.
        min_count: how often a word must occur.
        max_size: number of tokens at most, with the first two; None: any number.
    """
    counts = Counter(word for text in texts for word in words_of(text))
    words = sorted((word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word))
    return PADDING_WORD, UNKNOWN_WORD, *words[: None if max_size is None else max(max_size - 2, 0)]


def token_ids(texts: Sequence[str], vocabulary: Sequence[str], length: int) -> np.ndarray:  # [N, length], int32
    """The token ids of texts. Longer texts are cut at the end, and shorter ones filled with padding."""
    number_of = {word: number for number, word in enumerate(vocabulary)}
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in zip(ids, texts):
        words = words_of(text)[:length]
        row[: len(words)] = [number_of.get(word, 1) for word in words]
    return ids


def read_file(root: str, name: str) -> bytes:
    """The content of the one file ``name`` in a folder, at any depth, or in a zip file.

    Args:
        root: the folder or the zip file.
        name: name of the file without folders.

    Raises:
        ConfigError: there is no such file, or several, or the zip file is damaged.
    """
    path = Path(root).expanduser().resolve()
    rule = f"must be a folder or a zip file that holds one file {name}"
    if path.is_dir():
        found = sorted(path.rglob(name))
        require(len(found) == 1, "root", rule, f"{str(root)!r} with {len(found)}")
        return found[0].read_bytes()
    require(path.is_file() and zipfile.is_zipfile(path), "root", rule, str(root))
    try:
        with zipfile.ZipFile(path) as file:
            members = [member for member in file.namelist() if member.rpartition("/")[2] == name and "__MACOSX" not in member]
            require(len(members) == 1, "root", rule, f"{str(root)!r} with {len(members)}")
            return file.read(members[0])
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError) as error:
        raise ConfigError(f"root must hold intact files, got a damaged one: {path} ({error})") from error


@dataclass(frozen=True, kw_only=True)
class TextSource(ABC):
    """Texts with one label each.

    The vocabulary is that of the training texts alone. Words are lower-cased and divided at spaces.

    Args:
        root: the folder or the file of the texts.
        max_length: words of a text that are used, >= 1: the first ones.
        min_count: how often a word must occur in the training texts, >= 1. Rarer words are unknown.
        max_vocabulary: number of tokens at most, > 2: the most frequent ones; null: all.

    Raises:
        ConfigError: a value is out of its range; on calling if a file is missing or damaged.
    """

    root: str
    max_length: int
    min_count: int
    max_vocabulary: int | None

    def __post_init__(self) -> None:
        for name in ("max_length", "min_count"):
            require(getattr(self, name) >= 1, name, "must be >= 1", getattr(self, name))
        require(self.max_vocabulary is None or self.max_vocabulary > 2, "max_vocabulary", "must be > 2, or null", self.max_vocabulary)

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the task."""

    @abstractmethod
    def read(self) -> LabeledTexts:
        """The texts.

        Raises:
            ConfigError: a file is missing or damaged.
        """

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        texts = self.read()
        vocabulary = vocabulary_of(texts.train.texts, self.min_count, self.max_vocabulary)
        arrays = {"vocabulary": np.frombuffer("\n".join(vocabulary).encode(), np.uint8)}
        for part, of in (("train", texts.train), ("test", texts.test)):
            arrays |= {f"{part}_x": token_ids(of.texts, vocabulary, self.max_length), f"{part}_y": of.labels}
            arrays |= {} if of.groups is None else {f"{part}_groups": of.groups}
        digest = content_digest(arrays)
        train, test = (
            Examples(
                torch.from_numpy(arrays[f"{part}_x"]), torch.from_numpy(arrays[f"{part}_y"]), 1.0, (0.0,), (1.0,), digest,
                groups=None if of.groups is None else torch.from_numpy(of.groups), group_names=texts.group_names, tokens=True,
            )
            for part, of in (("train", texts.train), ("test", texts.test))
        )  # fmt: skip
        task = Task(self.name, (self.max_length,), len(texts.names), texts.names, input="tokens", vocabulary=vocabulary)
        return task, train, test


@dataclass(frozen=True, kw_only=True)
class Trec(TextSource):
    """TREC's questions: 5,452 training questions and 500 test questions of 6 classes, or of 50 finer ones.

    The files are ``train.txt`` and ``test.txt``. A line is ``CLASS:finer question``, in Latin-1.

    Source:
        Li, Roth: Learning question classifiers, COLING 2002.

    Args:
        labels: ``coarse``: 6 classes; ``fine``: the finer ones that occur in the training set.
    """

    labels: Literal["coarse", "fine"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.labels in ("coarse", "fine"), "labels", "must be coarse or fine", self.labels)

    @property
    def name(self) -> str:
        """``trec``."""
        return "trec"

    def read(self) -> LabeledTexts:
        """The questions of both files."""
        parts = {part: self._questions(part) for part in ("train", "test")}
        names = tuple(sorted({label for label, _ in parts["train"]}))
        unknown = sorted({label for label, _ in parts["test"]} - set(names))
        require(not unknown, "root", "must hold training questions of every class of test.txt", f"none of {', '.join(unknown)}")
        number_of = {name: number for number, name in enumerate(names)}
        train, test = (
            Texts([text for _, text in questions], np.array([number_of[label] for label, _ in questions], np.int64))
            for questions in parts.values()
        )
        return LabeledTexts(train, test, names)

    def _questions(self, part: str) -> list[tuple[str, str]]:
        """Label and text of each question of a part."""
        lines = read_file(self.root, f"{part}.txt").decode("latin-1").splitlines()
        questions = []
        for number, line in enumerate(lines, 1):
            label, _, text = line.partition(" ")
            require(
                ":" in label and bool(text.strip()),
                "root",
                "must hold lines 'CLASS:finer question'",
                f"line {number} of {part}.txt: {line!r}",
            )
            questions.append((label if self.labels == "fine" else label.partition(":")[0], text))
        require(len(questions) > 0, "root", f"must hold questions in {part}.txt", "none")
        return questions


@dataclass(frozen=True, kw_only=True)
class DividedTexts(TextSource):
    """Texts whose test set is drawn.

    Args:
        test_fraction: fraction of the texts of each class that are test texts, rounded down.
        split_seed: seed of this split, which is the same for all runs.
    """

    test_fraction: float
    split_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split(self.test_fraction, self.split_seed)


@dataclass(frozen=True, kw_only=True)
class SentencePolarity(DividedTexts):
    """Sentences of film reviews: 5,331 positive and 5,331 negative ones, in ``rt-polarity.pos`` and ``rt-polarity.neg``.

    There is no official split: a fraction of each class, drawn by ``split_seed``, are the test sentences.

    Source:
        Pang, Lee: Seeing stars: Exploiting class relationships for sentiment categorization with respect to rating scales, ACL 2005.

    Args:
        test_fraction: fraction of the sentences of each class that are test sentences, rounded down.
        split_seed: seed of this split, which is the same for all runs.
    """

    @property
    def name(self) -> str:
        """``sentence_polarity``."""
        return "sentence_polarity"

    def read(self) -> LabeledTexts:
        """The sentences of both files, divided."""
        texts: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(("neg", "pos")):
            content = read_file(self.root, f"rt-polarity.{name}")
            try:
                lines = content.decode("utf-8").split("\n")
            except UnicodeDecodeError:
                lines = content.decode("latin-1").split("\n")
            lines = [line for line in lines if line.strip()]
            texts, labels = [*texts, *lines], [*labels, *[label] * len(lines)]
        y = np.array(labels, np.int64)
        is_test = drawn_rows(y, self.test_fraction, self.split_seed)
        train, test = (Texts([texts[row] for row in np.flatnonzero(chosen)], y[chosen]) for chosen in (~is_test, is_test))
        return LabeledTexts(train, test, ("negative", "positive"))


@dataclass(frozen=True, kw_only=True)
class TextRows(DividedTexts):
    """Files of rows with a column of texts and a column of labels: CSV, TSV, JSON lines or Parquet.

    ``root`` is a folder with ``train.csv`` and perhaps ``test.csv``, or one file.

    Args:
        text_column: the column of texts.
        label_column: the column of labels: whole numbers, words or truth values.
        group_column: the column of groups, such as authors, for ``partition=by_group``; null: no groups.
        test_fraction: fraction of the rows of each class that are test rows, rounded down, where there is no test file.
        split_seed: seed of this split, which is the same for all runs.
    """

    text_column: str
    label_column: str
    group_column: str | None

    @property
    def name(self) -> str:
        """The name of the file or the folder, without suffix."""
        return Path(self.root).expanduser().resolve().stem

    def read(self) -> LabeledTexts:
        """The rows of both parts."""
        parts = read_parts(self.root, self.label_column, self.group_column, self.test_fraction, self.split_seed)
        found = []
        for number, (rows, file) in enumerate(zip(parts.rows, parts.files)):
            rule = f"must be one of the columns of {file}: {', '.join(rows.column_names[:20])}"
            require(self.text_column in rows.column_names, "text_column", rule, self.text_column)
            texts = rows[self.text_column].to_pylist()
            wrong = [row for row, text in enumerate(texts) if not isinstance(text, str)]
            rule = f"must hold a text in every row of {file}"
            require(not wrong, "text_column", rule, f"{len(wrong)} without (first: row {(wrong or [0])[0]})")
            found.append(Texts(texts, parts.labels[number], None if parts.groups is None else parts.groups[number]))
        return LabeledTexts(found[0], found[1], parts.names, parts.group_names)
