"""The code of a run: which modules count, what changes their digests, and what a run, a sweep and a report say about changed code."""

import ast
import json
import sys
from pathlib import Path

import pytest

from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.experiments.grid import plan_grid
from simulations.federation.runner import run_federation
from simulations.reports.run_description import code_notes
from simulations.run_folder import source_code
from simulations.run_folder.listing import find_runs
from simulations.run_folder.reader import find_run_folders, read_run
from simulations.run_folder.source_code import changed_modules, modules_of, packages_of
from simulations.setup.simulation import build_simulation
from tests.small_runs import ROOT, SMALL, InterruptedGrid

MINE = '''
"""A strategy of a user."""
from dataclasses import dataclass
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from {package}.terms import factor


@dataclass(kw_only=True)
class Mine(Strategy):
    """FedAvg with another loss."""

    def loss(self, model, batch, shared, own):
        return factor() * cross_entropy(model(batch.x).logits, batch.y).mean(), {{}}
'''
TERMS = 'def factor():\n    """One."""\n    return 1.0  # as in FedAvg\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a package of the user, which can be imported under the name of the folder."""
    folder = tmp_path / "mylab"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mine.py").write_text(MINE.format(package=folder.name))
    (folder / "terms.py").write_text(TERMS)
    (folder / "unused.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    forget()


def forget() -> None:
    """Forget what a new process would not know."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    build_simulation.cache_clear()
    source_code.module_path.cache_clear()


def config(tmp_path: Path, *words: str):
    """The configuration of a run of the user's strategy."""
    given = [
        *SMALL,
        "rounds=2",
        "partition=iid",
        "strategy=fedavg",
        "strategy._target_=mylab.mine.Mine",
        "progress=false",
        "allow_targets=[mylab]",
    ]
    given.remove("partition.alpha=1.0")
    given.remove("partition=dirichlet")
    return compose([*given, "evaluation.every=1", f"output={tmp_path / 'runs'}", *words])


def loss_of(folder: Path) -> float:
    return float(read_run(folder).metrics["train_loss"].iloc[-1])


# -------------------------------------------------------------------------------------------------- modules and digests
def test_the_code_of_a_run_is_that_of_its_parts_their_imports_and_what_computes(package, tmp_path):
    packages = packages_of(config(tmp_path))
    modules = modules_of(packages)
    assert {name for name in modules if name.startswith("mylab")} == {"mylab", "mylab.mine", "mylab.terms"}
    assert {"fedkd.losses.cross_entropy", "fedkd.training.loop", "fedkd.federation.server_loop", "fedkd.data.digits"} <= modules.keys()
    assert {"simulations.engine.client_work", "simulations.setup.simulation", "torch.optim.sgd"} <= modules.keys()
    outside = ("simulations.reports", "simulations.cli", "simulations.api", "simulations.benchmarks", "simulations.experiments")
    assert not [
        name for name in modules if name.startswith((*outside, "fedkd.distillation.methods.dkd", "hydra", "numpy", "strategies.dense"))
    ]
    mylab = packages["mylab"]
    assert mylab["path"] == str(package) and len(mylab["digest"]) == 16
    assert mylab["commit"] is None and mylab["uncommitted_changes"] is False, "it is in no checkout"
    assert packages["torch"]["version"] is not None and packages["fedkd"]["version"] is not None


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("# a remark\ndef factor():\n    '''Another text.'''\n    return (1.0)\n", False),
        ("def factor():\n    return 1.0\n", False),
        ("def factor():\n    return -1.0\n", True),
        ("def factor():\n    return 1\n", True),
        ("def factor(x=2):\n    return 1.0\n", True),
        ("def factor():\n    'a' 'b'; return 1.0\n\n\nfactor = lambda: 2.0\n", True),
    ],
)
def test_a_digest_changes_where_code_changes_and_not_where_comments_docstrings_and_line_breaks_do(package, tmp_path, text, changes):
    before = packages_of(config(tmp_path))
    (package / "terms.py").write_text(text)
    after = packages_of(config(tmp_path))
    assert changed_modules(before, after) == (["mylab.terms"] if changes else [])
    assert (before["mylab"]["digest"] != after["mylab"]["digest"]) == changes


def test_the_digests_of_a_strategy_do_not_depend_on_another_one_or_on_the_engine(tmp_path):
    one, other = (modules_of(packages_of(compose([f"strategy={name}", f"engine={engine}"]))) for name, engine in
                  (("fedgen", "local"), ("dense", "ray")))  # fmt: skip
    assert "strategies.fedgen" not in other and "strategies.dense" not in one
    assert modules_of(packages_of(compose(["strategy=fedgen", "engine=ray"]))) == one


def test_relative_imports_count(package, tmp_path):
    (package / "terms.py").write_text("from .unused import x\ndef factor():\n    return float(x)\n")
    assert "mylab.unused" in modules_of(packages_of(config(tmp_path)))


# ---------------------------------------------------------------------------------------------------- runs and reports
def test_changed_code_stops_the_command_until_it_is_accepted_or_the_run_is_forced(package, tmp_path, capsys):
    folder = run_federation(config(tmp_path))
    first = loss_of(folder)
    forget()
    assert run_federation(config(tmp_path)) == folder and capsys.readouterr().err.endswith("already finished, skipped\n")
    (package / "terms.py").write_text(TERMS.replace("1.0", "-1.0"))
    forget()
    with pytest.raises(ConfigError, match=r"^code must be that of the run in .*mylab/terms\.py; force=true .*accept_code=true"):
        run_federation(config(tmp_path))
    assert [run.state for run in plan_grid(words(tmp_path))] == ["outdated"], "a sweep does not take the old result for the new one"
    assert [run.state for run in plan_grid([*words(tmp_path), "accept_code=true"])] == ["finished"]
    assert run_federation(config(tmp_path, "accept_code=true")) == folder and loss_of(folder) == first
    assert "terms.py changed since" in capsys.readouterr().err
    before, _ = {path.name: path.read_bytes() for path in folder.iterdir()}, capsys.readouterr()
    assert run_federation(config(tmp_path, "force=true")) == folder
    assert loss_of(folder) < 0 < first, "the sign of the loss has changed"
    kept = folder.parent / ".replaced" / f"{folder.name}-1"
    assert f"force: the earlier result is now in {kept}\n" in capsys.readouterr().err and loss_of(kept) == first
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {name: text for name, text in before.items() if name != ".lock"}
    assert find_run_folders([tmp_path]) == find_runs(tmp_path) == [folder] and find_run_folders([kept]) == [kept]
    run_federation(config(tmp_path, "force=true"))
    assert sorted(path.name for path in kept.parent.iterdir()) == [kept.name, f"{folder.name}-2"]
    assert run_federation(config(tmp_path)) == folder, "the record is that of the new code"
    assert [run.state for run in plan_grid([*words(tmp_path), "force=true"])] == ["missing"]


def words(tmp_path: Path) -> list[str]:
    """The words of :func:`config`, as a sweep takes them."""
    given = [word for word in SMALL if not word.startswith("partition")]
    more = ("rounds=2", "partition=iid", "strategy=fedavg", "strategy._target_=mylab.mine.Mine", "progress=false", "evaluation.every=1")
    return [*given, *more, "allow_targets=[mylab]", f"output={tmp_path / 'runs'}"]


def test_an_interrupted_run_goes_on_with_other_code_only_if_that_is_accepted_and_says_so_in_reports(package, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_federation(config(tmp_path, "rounds=3"), InterruptedGrid)
    (package / "terms.py").write_text(TERMS.replace("1.0", "2.0"))
    forget()
    with pytest.raises(ConfigError, match="code must be"):
        run_federation(config(tmp_path, "rounds=3"))
    run = read_run(run_federation(config(tmp_path, "rounds=3", "accept_code=true")))
    recorded = json.loads((run.folder / "environment.json").read_text())
    assert len(recorded["earlier_packages"]) == 1
    assert code_notes([run]) == ["runs of unlike code are compared: mylab.terms differs (2 versions)"]


def test_a_report_of_runs_of_unlike_code_says_so(package, tmp_path):
    first = read_run(run_federation(config(tmp_path)))
    (package / "terms.py").write_text(TERMS.replace("1.0", "2.0"))
    forget()
    second = read_run(run_federation(config(tmp_path, "seed=1")))
    assert code_notes([first]) == code_notes([second]) == []
    assert code_notes([first, second]) == ["runs of unlike code are compared: mylab.terms differs (2 versions)"]
    (second.folder / "environment.json").unlink()
    assert code_notes([first, second]) == ["runs of unlike code are compared: unknown for 1 of 2 runs"]


def test_a_run_without_a_record_of_its_code_is_not_taken_for_one_of_the_present_code(package, tmp_path):
    folder = run_federation(config(tmp_path))
    (folder / "environment.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"got changes in .*environment\.json"):
        run_federation(config(tmp_path))


def test_all_modules_that_a_strategy_computes_with_count():
    """A module of fedkd that a strategy imports is one of those whose digest is recorded, unless it only checks."""
    imported = set()
    for path in (ROOT / "strategies").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedkd."):
                imported.add(node.module)
    counted = tuple(f"{name}." for name in source_code.COMPUTING)
    assert {name for name in imported if not f"{name}.".startswith(counted)} == {"fedkd.errors"}
