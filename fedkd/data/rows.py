"""Files of rows (CSV, TSV, JSON lines, Parquet), and what tables and texts of a user share: parts, labels, groups, and a random split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from fedkd.data.labels import Label, find_classes, read_labels
from fedkd.errors import ConfigError, require
from fedkd.seed import Seed

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of files of rows. ``.csv.gz`` and ``.tsv.gz`` are read too."""


def read_rows(path: Path) -> pa.Table:
    """The rows of a file, whose suffix says its format. CSV and TSV files begin with the names of the columns.

    Raises:
        ConfigError: the file is damaged or has no rows.
    """
    kind = next((suffix for suffix in path.suffixes[::-1] if suffix != ".gz"), "")
    try:
        if kind == ".jsonl":
            table = pyarrow.json.read_json(path)
        elif kind == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            parsed = pyarrow.csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True)
            table = pyarrow.csv.read_csv(path, parse_options=parsed, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"root must hold intact files, got a damaged one: {path} ({' '.join(str(error).split())})") from error
    require(table.num_rows > 0, "root", f"must hold one row of examples or more in {path}", 0)
    return table


def files_of(root: str) -> tuple[Path, Path | None]:
    """The training file and the test file below ``root``, which may also be the training file itself; None where there is no test file.

    Raises:
        ConfigError: there is no training file.
    """
    folder = Path(root).expanduser().resolve()
    if folder.is_file():
        return folder, None
    found = {
        part: [path for suffix in (*SUFFIXES, ".csv.gz", ".tsv.gz") if (path := folder / f"{part}{suffix}").is_file()]
        for part in ("train", "test")
    }
    rule = "must be a file of rows, or a folder with train.csv and test.csv (or tsv, jsonl, parquet)"
    require(
        len(found["train"]) == 1 and len(found["test"]) < 2, "root", rule, f"{str(root)!r}, which has {len(found['train'])} files train.*"
    )
    return found["train"][0], found["test"][0] if found["test"] else None


@dataclass(frozen=True)
class RowParts:
    """The rows of both parts of a data set.

    Args:
        rows: all columns of the training rows, and of the test rows.
        labels: the class of each row of both parts, int64.
        names: the name of each class [C].
        groups: the group of each row of both parts, int64; None: no groups.
        group_names: the name of each group.
        files: where the rows of both parts stand, for messages.
    """

    rows: tuple[pa.Table, pa.Table]
    labels: tuple[np.ndarray, np.ndarray]
    names: tuple[str, ...]
    groups: tuple[np.ndarray, np.ndarray] | None
    group_names: tuple[str, ...]
    files: tuple[Path, Path]


def read_parts(root: str, label_column: str, group_column: str | None, test_fraction: float, split_seed: int) -> RowParts:
    """Read the training rows and the test rows of a data set.

    Without a test file a fraction of the rows of each class, drawn by ``split_seed``, are the test rows.

    Args:
        root: a file of rows, or a folder with ``train.*`` and perhaps ``test.*``.
        label_column: the column of labels.
        group_column: the column of groups; None: no groups.
        test_fraction: fraction of the rows that are test rows, where there is no test file, in 0..1, both excluded.
        split_seed: seed of this split, which is the same for all seeds of runs.

    Raises:
        ConfigError: a file or a column is missing or damaged, or labels are no classes.
    """
    train_file, test_file = files_of(root)
    train = read_rows(train_file)
    if test_file is None:
        labels = column_of(train, label_column, "label_column", train_file)
        is_test = drawn_rows(find_classes(labels, (), str(train_file)).indices(labels, str(train_file)), test_fraction, split_seed)
        train, test, test_file = train.filter(~is_test), train.filter(is_test), train_file
    else:
        test = read_rows(test_file)
    files = train_file, test_file
    found = [column_of(rows, label_column, "label_column", file) for rows, file in zip((train, test), files)]
    classes = find_classes(found[0], (), str(train_file))
    indices = [classes.indices(labels, str(file)) for labels, file in zip(found, files)]
    groups, group_names = None, tuple[str, ...]()
    if group_column is not None:
        given = [column_of(rows, group_column, "group_column", file) for rows, file in zip((train, test), files)]
        whole = find_classes([*given[0], *given[1]], (), str(train_file))
        groups = whole.indices(given[0], str(train_file)), whole.indices(given[1], str(test_file))
        group_names = tuple(map(str, whole.values))
    return RowParts((train, test), (indices[0], indices[1]), tuple(map(str, classes.values)), groups, group_names, files)


def column_of(rows: pa.Table, name: str, parameter: str, file: Path) -> list[Label]:
    """A column of labels or groups.

    Raises:
        ConfigError: the file has no such column, or values are missing or no labels.
    """
    require(name in rows.column_names, parameter, f"must be one of the columns of {file}: {', '.join(rows.column_names[:20])}", name)
    return read_labels(rows[name], str(file), parameter)


def drawn_rows(labels: np.ndarray, fraction: float, split_seed: int) -> np.ndarray:  # [N] -> [N], bool
    """Which examples are test examples: a fraction of each class, rounded down, drawn at random.

    Args:
        labels: the class of each example.
        fraction: in 0..1, both excluded.
        split_seed: seed of the draw.

    Raises:
        ConfigError: there would be no test example.
    """
    rng, chosen = (Seed(split_seed) / "test_rows").numpy(), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen[own[: int(fraction * len(own))]] = True
    require(bool(chosen.any()), "test_fraction", f"must leave a test example of {len(labels)} examples", fraction)
    return chosen


def check_split(test_fraction: float, split_seed: int) -> None:
    """Check the parameters of a split.

    Raises:
        ConfigError: the fraction is not in 0..1, or the seed is negative.
    """
    require(0 < test_fraction < 1, "test_fraction", "must be in 0..1, both excluded", test_fraction)
    require(isinstance(split_seed, int) and split_seed >= 0, "split_seed", "must be a whole number >= 0", split_seed)


def listed(names: Sequence[str]) -> str:
    """Names in a message, ten at most."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
