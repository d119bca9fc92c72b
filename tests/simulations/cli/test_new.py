"""``fedkd new``: templates that work as they are, on every engine, under their own name."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from simulations.cli.main import cli
from simulations.cli.templates import TEMPLATES
from simulations.report import main
from tests.processes import Command

TINY = ("num_clients=4", "clients_per_round=2", "local_steps=2", "clients_per_vmap=1", "rounds=1", "progress=false")


def new(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error of the command."""
    result = CliRunner().invoke(cli, ["new", *words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with one template of each kind."""
    where = tmp_path_factory.mktemp("where")
    for kind in TEMPLATES:
        code, out, err = new(kind, str(where / "mylab" / f"my_{kind}"))
        assert code == 0 and len(out.splitlines()) == 3 and "next: pytest" in err
    return where


def test_the_tests_of_all_templates_pass_as_written(lab):
    pytest_alone = "import pytest; raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', 'mylab']))"
    done = Command((), lab, before=pytest_alone, forked=True).end()
    assert done.code == 0, done.out[-3000:]
    assert " passed" in done.out and " failed" not in done.out and " skipped" not in done.out


def test_a_template_runs_in_ray_actors_and_keeps_its_name(lab, capsys):
    """The modules reach the actors, the search path is recorded, list calls the run by its option, and report by its label."""
    words = ("run", "strategy=my_strategy", "partition=my_partition", "searchpath=mylab", *TINY, "engine.workers=1")
    done = Command(words, lab, module="simulations.cli.main", forked=True).end()
    assert done.code == 0, done.err
    folder = done.folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["choices"]["strategy"] == "my_strategy" and config["choices"]["engine"] == "ray"
    assert config["searchpath"] == [str(lab / "mylab")] and config["strategy"]["_target_"] == "my_strategy.MyStrategy"
    (row,) = json.loads(CliRunner().invoke(cli, ["list", str(folder), "--json"]).stdout)
    assert row["strategy"] == "my_strategy" and row["setting"] == "my_partition mixed=0.2"
    assert main([str(folder), "--no-figures", "--output", str(lab / "report")]) == 0
    results = (lab / "report" / "results.csv").read_text().splitlines()
    assert results[1].startswith("MyStrategy,my_strategy,") and "| MyStrategy" in capsys.readouterr().out


def test_describe_lists_the_options_of_the_user_s(lab, monkeypatch):
    monkeypatch.chdir(lab)
    for kind in TEMPLATES:
        assert f"my_{kind} " in CliRunner().invoke(cli, ["describe", kind, "searchpath=mylab"]).stdout
    page = CliRunner().invoke(cli, ["describe", "strategy", "my_strategy", "searchpath=mylab"]).stdout
    assert "strategy.weight=0.1" in page and "Weight of the term" in page
    (lab / "fedkd.yaml").write_text("searchpath: mylab\n")
    assert "my_model " in CliRunner().invoke(cli, ["describe", "model"]).stdout
    (lab / "fedkd.yaml").unlink()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_short_and_say_what_they_are(lab, kind):
    text = (lab / "mylab" / f"my_{kind}.py").read_text()
    assert len(text.splitlines()) <= 60 and max(map(len, text.splitlines())) <= 140
    assert (lab / "mylab" / "conf" / kind / f"my_{kind}.yaml").read_text().startswith("# My")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy", "mylab/fedavg"], "must not be that of an option of fedkd's"),
        (["strategy", "mylab/json"], "must not be that of an installed module"),
        (["strategy", "mylab/torch"], "must not be that of an installed module"),
        (["strategy", "fedmax"], "must be <folder>/<name>"),
        (["strategy", "mylab/FedMax"], "small letters"),
        (["strategy", "mylab/fed-max"], "small letters"),
        (["strategy", "mylab/class"], "small letters"),
        (["loss", "mylab/x"], "'loss' is not one of"),
    ],
)
def test_names_that_would_mean_something_else_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = new(*words)
    assert code == 2 and out == "" and message in err and not list(tmp_path.iterdir())


def test_files_are_never_overwritten(lab, monkeypatch):
    monkeypatch.chdir(lab)
    (lab / "mylab" / "test_other.py").write_text("mine\n")
    code, _, err = new("strategy", "mylab/other")
    assert code == 2 and "test_other.py exists" in err and (lab / "mylab" / "test_other.py").read_text() == "mine\n"
    (lab / "mylab" / "test_other.py").unlink()
