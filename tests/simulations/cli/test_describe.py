"""``fedkd describe``: groups, options and parameters, read from YAML and source alone."""

import json

import pytest
from click.testing import CliRunner
from omegaconf import OmegaConf

from simulations.cli import catalog, signatures
from simulations.cli.main import cli
from simulations.config import compose
from simulations.overrides import CONF, groups, options
from tests.small_runs import ROOT


def run(*words: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(cli, ["describe", *words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_all_groups_are_listed_with_their_defaults():
    rows = json.loads(run("--json"))
    assert {row["group"] for row in rows} == {path.name for path in CONF.iterdir() if path.is_dir()} == set(catalog.GROUPS)
    defaults = {row["group"]: row["default"] for row in rows}
    assert defaults["strategy"] == "fedgen" and defaults["data"] == "digits" and defaults["distiller"] == "kd"
    assert all(f"{row['group']} " in run() and row["meaning"] for row in rows)


@pytest.mark.parametrize("group", groups())
def test_every_option_has_a_line(group):
    rows = catalog.describe(group)
    assert [row["option"] for row in rows] == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert all(row["meaning"] for row in rows), "line 1 of every yaml is a sentence"


OF_RUNS = ("strategy", "data", "partition", "model", "shift", "public_data", "systems", "engine", "evaluation")
OF_DISTILLATIONS = ("distiller", "augmentation", "image_source", "optimizer")
COMPOSED = [(group, name) for group in (*OF_RUNS, *OF_DISTILLATIONS) for name, path in options(group).items() if catalog.load(path)[1]]
"""Options with a defaults list; the others are as their file says."""


@pytest.mark.parametrize(("group", "option"), COMPOSED)
def test_values_are_those_that_hydra_composes(group, option):
    """The defaults lists of conf are resolved as Hydra does."""
    composed = compose([f"{group}={option}"], "config" if group in OF_RUNS else "distill")
    assert catalog.values(group, option) == OmegaConf.to_container(composed[group])


@pytest.mark.parametrize("group", ["strategy", "distiller", "partition", "model", "data"])
def test_parameters_have_a_type_or_a_comment(group):
    """A parameter of an option is explained by the class that it builds, or by the comment behind it."""
    for option in options(group):
        rows = catalog.describe(group, option)
        assert all(row["type"] or row["meaning"] or "." in row["key"] for row in rows), option


def test_an_option_shows_docstring_yaml_and_parameters():
    text = run("strategy", "fedprox")
    assert "||w - w_g||^2" in text and "_target_: strategies.fedprox.FedProx" in text and "strategy.mu=1.0" in text
    page = json.loads(run("strategy", "fedprox", "--json"))
    mu = next(row for row in page["parameters"] if row["key"] == "mu")
    assert mu == {"key": "mu", "value": 1.0, "type": "float", "meaning": mu["meaning"]} and ">= 0" in mu["meaning"]
    assert page["file"] == "conf/strategy/fedprox.yaml" and page["docstring"]


@pytest.mark.parametrize(("command", "key"), [("run", "clients_per_round"), ("distill", "teacher_run")])
def test_the_keys_of_commands_are_explained(command, key):
    rows = {row["key"]: row for row in catalog.describe(command)}
    assert rows[key]["meaning"] and rows[key]["type"] and all(row["type"] for row in rows.values() if row["key"] != "evaluation")
    assert key in run(command)


def test_markdown_has_a_table_for_every_group():
    text = run("--markdown")
    assert all(f"### `{group}`" in text for group in groups()) and "| `fedgen` |" in text
    assert run("partition", "--markdown").startswith("| option | description |")


BASE = """
@dataclass
class Base:
    '''B.

    Args:
        a: first,
            and more.
    '''

    kind: ClassVar[str] = "x"
    a: int
"""
MINE = """
from base import Base
raise RuntimeError("imported")


@dataclass(kw_only=True)
class Mine(Base):
    '''M.

    Args:
        b, c: both.
    '''

    b: float = 1.0
    c: list[str] = field(default_factory=list)


def make(task, *, width: int = 3):
    pass
"""


def test_signatures_are_read_without_an_import(tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "mine.py").write_text(MINE)
    found = signatures.signature("mine.Mine", [tmp_path])
    assert found is not None and list(found.parameters) == ["a", "b", "c"] and found.docstring.startswith("M.")
    assert found.parameters["a"].meaning == "first, and more." and found.parameters["c"].meaning == "both."
    function = signatures.signature("mine.make", [tmp_path])
    assert function is not None and function.parameters["width"].default == "3" and function.parameters["task"].default is None
    assert signatures.signature("torch.optim.SGD", [tmp_path]) is None


def test_benchmarks_are_listed():
    assert set(catalog.benchmarks()) == {"cifar100", "client_memory", "distillation", "engine", "gpu", "report", "round_phases"}
    assert all((ROOT / "simulations" / "benchmarks" / f"{name}.py").is_file() for name in catalog.benchmarks())
