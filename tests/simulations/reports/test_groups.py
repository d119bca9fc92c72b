"""Groups of runs: labels that tell them from each other, tuned and untuned runs, seeds and baselines."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from simulations.report import main
from simulations.reports.builder import collect
from simulations.reports.groups import file_slugs, group
from simulations.reports.summary import baselines
from simulations.run_folder.metric_names import DISTILLER_NAMES, STRATEGY_NAMES
from simulations.run_folder.reader import find_run_folders, read_run
from simulations.run_folder.stored_config import read_yaml
from tests.processes import ROOT
from tests.simulations.reports.folders import half_width, write_run, write_whole_run


def labels(folder: Path) -> list[str]:
    return [one.label for one in group([read_run(one) for one in find_run_folders([folder])])]


@pytest.mark.parametrize(("names", "part"), [(STRATEGY_NAMES, "strategy"), (DISTILLER_NAMES, "distiller")])
def test_every_shipped_option_has_a_printed_name(names, part):
    assert set(names) == {path.stem for path in (ROOT / "conf" / part).glob("*.yaml")}
    assert len(set(names.values())) == len(names)


def test_a_label_names_the_strategy_and_the_keys_that_differ(tmp_path):
    for seed in range(2):
        for strategy in ("fedgen", "fedavg"):
            write_run(tmp_path / f"{strategy}{seed}", strategy, seed, partition={"path": None})
    assert labels(tmp_path) == ["FedAvg", "FedGen"]
    write_run(tmp_path / "half", "fedgen", alpha=1.0)
    assert labels(tmp_path) == ["FedAvg, alpha 0.1", "FedGen, alpha 0.1", "FedGen, alpha 1.0"]
    write_run(tmp_path / "beta", "fedgen", parameters={"beta": 5.0})
    fedgen = ["FedGen, alpha 0.1, beta 5.0", "FedGen, alpha 0.1, no beta", "FedGen, alpha 1.0, no beta"]
    assert labels(tmp_path) == ["FedAvg, alpha 0.1", *fedgen]


def test_a_strategy_of_the_user_is_called_by_its_yaml_file(tmp_path):
    write_run(tmp_path / "a"), write_run(tmp_path / "b", "fedmax")
    assert labels(tmp_path) == ["FedAvg", "fedmax"]


def test_a_strategy_is_called_by_the_label_of_its_yaml_file_and_a_label_of_two_says_which(tmp_path):
    write_run(tmp_path / "a"), write_run(tmp_path / "b", "fedmax", choices={"strategy_label": "FedMAX (ours)"})
    assert labels(tmp_path) == ["FedAvg", "FedMAX (ours)"]
    assert all(group([read_run(tmp_path / "b")])[0].is_called(name) for name in ("fedmax", "FedMAX (ours)"))
    write_run(tmp_path / "c", "fedmax2", choices={"strategy_label": "FedMAX (ours)"})
    write_run(tmp_path / "d", "mine", choices={"strategy_label": "FedAvg"})
    assert sorted(labels(tmp_path)) == ["FedAvg", "FedAvg (mine)", "FedMAX (ours) (fedmax)", "FedMAX (ours) (fedmax2)"]


def test_runs_of_one_option_under_two_names_are_two_rows(tmp_path):
    for name, label, seed in (("a", "First", 0), ("b", "First", 1), ("c", "Second", 0), ("d", "Second", 1)):
        write_run(tmp_path / name, "fedmax", seed, choices={"strategy_label": label})
    groups, notes = collect(find_run_folders([tmp_path]))
    assert [(one.label, one.seeds) for one in groups] == [("First", (0, 1)), ("Second", (0, 1))] and not notes
    write_run(tmp_path / "base")
    groups, _ = collect(find_run_folders([tmp_path]))
    assert [base.label for one in groups for base in baselines(one, groups, "fedavg")] == [], "other seeds"
    write_run(tmp_path / "base1", seed=1)
    groups, _ = collect(find_run_folders([tmp_path]))
    assert [base.label for one in groups for base in baselines(one, groups, "fedavg")] == ["FedAvg"] * 2


def test_options_name_parts_that_differ_and_a_key_that_stands_twice_is_shown_once(tmp_path):
    write_run(tmp_path / "a", "fedgen", optimizer={"local_steps": 20}, generator={"_target_": "g.Mlp", "width": 8})
    write_run(tmp_path / "b", "fedavg", local_steps=5, optimizer={"local_steps": 5})
    write_run(tmp_path / "c", "fedavg", local_steps=20, optimizer={"local_steps": 20})
    shards = write_run(tmp_path / "d", "fedavg", local_steps=20, optimizer={"local_steps": 20})
    config = OmegaConf.load(shards / "config.yaml")
    config.partition, config.choices.partition = {"_target_": "fedkd.partition.common.Shards", "per_client": 2}, "shards"
    OmegaConf.save(config, shards / "config.yaml")
    assert labels(tmp_path)[0].startswith("FedAvg, dirichlet, local_steps 5")
    assert labels(tmp_path)[-1].startswith("FedAvg, shards, local_steps 20") and "per_client" not in labels(tmp_path)[-1]
    assert all(label.count("local_steps") <= 1 and "width" not in label for label in labels(tmp_path))


def test_keys_of_equal_names_are_written_out(tmp_path):
    for i, (mine, split) in enumerate([(1.0, 0.1), (2.0, 0.1), (1.0, 0.5), (2.0, 0.5)]):
        write_run(tmp_path / str(i), "fedgen", alpha=split, parameters={"alpha": mine})
    assert labels(tmp_path)[0] == "FedGen, partition.alpha 0.1, strategy.alpha 1.0"


def test_settings_in_names_of_files_have_no_dots_and_are_distinct():
    assert file_slugs(["alpha 0.1", "alpha 0-1", "x/../y", "é"]) == ["alpha_0_1", "alpha_0_1_1", "x_y", "x"]


# ----------------------------------------------------------------------------------------------------------- baselines
def test_strategies_are_paired_with_fedavg_by_seed_on_the_same_setting_with_the_same_seeds(tmp_path, capsys):
    ours, base = (0.70, 0.72, 0.80), (0.60, 0.65, 0.69)
    for seed in range(3):
        write_run(tmp_path / f"avg{seed}", "fedavg", seed, [0.5, base[seed]])
        write_run(tmp_path / f"gen{seed}", "fedgen", seed, [0.5, ours[seed]])
        write_run(tmp_path / f"prox{seed}", "fedprox", seed + 1, [0.5, 0.9])
        write_run(tmp_path / f"other{seed}", "fedgen", seed, [0.5, 0.9], alpha=1.0)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert table["strategy"].tolist() == ["FedGen, alpha 0.1"] and table["baseline"].tolist() == ["FedAvg, alpha 0.1"]
    gains = 100 * np.subtract(ours, base)
    assert table["global acc., final"][0] == pytest.approx(gains.mean())
    assert table["global acc., final: high"][0] - table["global acc., final"][0] == pytest.approx(half_width(gains))
    said = capsys.readouterr()
    assert f"+{gains.mean():.2f} ± {half_width(gains):.2f}" in said.out
    assert "FedProx, alpha 0.1 (seeds 1 2 3): no run of fedavg has the same setting, training and seeds" in said.err
    assert "FedGen, alpha 1.0" in said.err


@pytest.mark.parametrize("baseline", ["fedgen", "FedGen"])
def test_another_baseline(baseline, tmp_path, capsys):
    for strategy, accuracy in (("fedavg", 0.5), ("fedgen", 0.7)):
        for seed in range(2):
            write_run(tmp_path / f"{strategy}{seed}", strategy, seed, [accuracy + seed / 100] * 2)
    assert main([str(tmp_path), "--no-figures", "--baseline", baseline]) == 0
    table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
    assert table["strategy"].tolist() == ["FedAvg"] * 2 and set(table["baseline"]) == {"FedGen"}
    assert table["difference"].tolist() == pytest.approx([-20, -20])
    assert main([str(tmp_path), "--no-figures", "--baseline", "fedprox"]) == 2
    assert "baseline must be a strategy of the runs, or one of 'FedAvg', 'FedGen'; got 'fedprox'" in capsys.readouterr().err


def test_one_row_can_be_the_baseline_of_an_ablation(tmp_path):
    for beta in (0.0, 1.0, 2.0):
        for seed in range(2):
            folder = tmp_path / f"{beta}-{seed}"
            write_run(folder, "fedgen", seed, [0.5 + beta / 10 + seed / 100 * beta] * 2, parameters={"beta": beta})
    for name in ("FedGen, beta 1.0", "fedgen, beta 1.0"):
        assert main([str(tmp_path), "--no-figures", "--baseline", name]) == 0
        table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
        assert table["strategy"].tolist() == ["FedGen, beta 0.0", "FedGen, beta 2.0"] * 2
        assert set(table["baseline"]) == {"FedGen, beta 1.0"}


@pytest.mark.parametrize("part", ["server_optimizer", "aggregator"])
def test_a_step_of_the_server_is_compared_with_the_row_that_has_none(part, tmp_path):
    for seed in range(2):
        write_run(
            tmp_path / f"plain{seed}",
            seed=seed,
            accuracy=[0.5 + seed / 100] * 2,
            choices={part: "plain"},
            **{part: {"_target_": "x.Plain"}},
        )
        other = {"_target_": "x.Other", "lr": 0.1}
        write_run(tmp_path / f"other{seed}", seed=seed, accuracy=[0.6 + seed / 50] * 2, choices={part: "other"}, **{part: other})
    assert main([str(tmp_path), "--no-figures", "--baseline", "FedAvg, plain"]) == 0
    table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
    assert table["strategy"].tolist() == ["FedAvg, other"] * 2 and set(table["baseline"]) == {"FedAvg, plain"}


@pytest.mark.parametrize("baseline", [[], ["--baseline", "fedprox"]])
def test_variants_of_the_baseline_are_compared_with_its_defaults(baseline, tmp_path):
    """Also with runs of a version without these groups. Other strategies are compared with the variant of the baseline that is nearest."""
    strategy = baseline[1] if baseline else "fedavg"
    median = {"aggregator": {"_target_": "fedkd.federation.aggregators.Median"}, "server_optimizer": {"_target_": "x.NoServerOptimizer"}}
    plain = {"aggregator": {"_target_": "fedkd.federation.aggregators.Mean"}, "server_optimizer": {"_target_": "x.NoServerOptimizer"}}
    for seed in range(3):
        new = {"choices": {"aggregator": "mean", "server_optimizer": "none"}, **plain} if seed else {}
        write_run(tmp_path / f"plain{seed}", strategy, seed, accuracy=[0.5 + seed / 100] * 2, **new)
        for name in (strategy, "fedgen"):
            found = {"choices": {"aggregator": "median", "server_optimizer": "none"}, **median}
            write_run(tmp_path / f"{name}{seed}", name, seed, accuracy=[0.6 + seed / 50] * 2, **found)
    assert main([str(tmp_path), "--no-figures", *baseline]) == 0
    table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
    title = STRATEGY_NAMES[strategy]
    assert dict(zip(table["strategy"], table["baseline"])) == {f"{title}, median": title, "FedGen": f"{title}, median"}
    assert set(table["n"]) == {3} and table["p, t, Holm"].notna().all()


def test_one_seed_is_not_tested(tmp_path, capsys):
    for strategy, accuracy in (("fedavg", 0.5), ("fedgen", 0.7)):
        write_run(tmp_path / strategy, strategy, accuracy=[accuracy] * 2)
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert "Tests against the baseline" not in text and "+20.00 |" in text and "none at n = 1" in text
    assert not (tmp_path / "report" / "comparisons.csv").exists()


# ---------------------------------------------------------------------------------------------------------- tuned runs
def write_tuned_runs(folder: Path, *runs: tuple[str, float, str | None, float]) -> None:
    """Two seeds of runs: strategy, learning rate, file of selected values, accuracy."""
    for seed in range(2):
        for strategy, lr, tuned, accuracy in runs:
            options = {"optimizer": {"_target_": "torch.optim.SGD", "lr": lr}, "tuned_params": tuned}
            write_run(folder / f"{strategy}{lr}-{seed}", strategy, seed, [accuracy + seed / 100] * 2, **options)


def test_tuned_runs_are_ranked_apart_and_compared_with_the_tuned_baseline(tmp_path):
    """The tuned baseline has a learning rate of its own; a tuned strategy is not compared with the untuned one."""
    runs = [("fedavg", 0.01, None, 0.5), ("fedavg", 0.1, "t.csv", 0.7), ("fedgen", 0.01, "t.csv", 0.8), ("fedprox", 0.01, None, 0.6)]
    write_tuned_runs(tmp_path, *runs)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert table["strategy"].tolist() == ["FedGen, lr 0.01, tuned", "FedProx, lr 0.01, untuned"]
    assert table["baseline"].tolist() == ["FedAvg, lr 0.1, tuned", "FedAvg, lr 0.01, untuned"]
    assert table["global acc., final"].tolist() == pytest.approx([10, 10])
    text = (tmp_path / "report" / "headlines.tex").read_text()
    assert re.findall(r"^(\S+), .*textbf", text, re.MULTILINE) == ["FedGen", "FedProx"]
    assert pd.read_csv(tmp_path / "report" / "results.csv")["tuned"].tolist() == ["tuned", "tuned", "untuned", "untuned"]


def test_a_run_whose_selected_value_is_the_shipped_one_is_in_both_blocks(tmp_path):
    """One run, a row as tuned and a row as untuned, each compared with the FedAvg of its kind."""
    write_tuned_runs(tmp_path, ("fedavg", 0.01, None, 0.5), ("fedavg", 0.1, "t.csv", 0.7), ("fedgen", 0.01, None, 0.8))
    for seed in range(2):
        (tmp_path / f"fedgen0.01-{seed}" / "tuned.json").write_text('{"shipped": true}')
    assert main([str(tmp_path), "--no-figures"]) == 0
    rows = pd.read_csv(tmp_path / "report" / "results.csv").set_index("label")
    tuned = {"FedAvg, lr 0.1, tuned": "tuned", "FedGen, lr 0.01, tuned": "tuned"}
    untuned = {"FedAvg, lr 0.01, untuned": "untuned", "FedGen, lr 0.01, untuned": "untuned"}
    assert rows["tuned"].to_dict() == tuned | untuned and rows["num_seeds"].tolist() == [2] * 4
    pairs = pd.read_csv(tmp_path / "report" / "differences.csv").set_index("strategy")
    assert pairs["global acc., final"].to_dict() == pytest.approx({"FedGen, lr 0.01, tuned": 10.0, "FedGen, lr 0.01, untuned": 30.0})
    assert main([str(tmp_path), "--no-figures", "--baseline", "fedgen"]) == 0
    pairs = pd.read_csv(tmp_path / "report" / "differences.csv").set_index("strategy")["baseline"]
    assert pairs.to_dict() == {"FedAvg, lr 0.1, tuned": "FedGen, lr 0.01, tuned", "FedAvg, lr 0.01, untuned": "FedGen, lr 0.01, untuned"}
    for seed in range(2):
        (tmp_path / f"fedavg0.01-{seed}" / "tuned.json").write_text('{"shipped": true}')
        shutil.rmtree(tmp_path / f"fedavg0.1-{seed}")
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 4, "both are tuned and untuned"
    assert len(pd.read_csv(tmp_path / "report" / "comparisons.csv")) == 2, "which is one comparison per metric"
    assert "4 in 4 rows" in (tmp_path / "report" / "report.html").read_text(), "and four runs"


@pytest.mark.parametrize(("tuned", "note", "kinds"), [
    (None, None, ("untuned",)), ("t.csv", None, ("tuned",)), (None, '{"shipped": false}', ("tuned", "untuned")),
    ("t.csv", '{"shipped": false}', ("tuned",)), ("t.csv", '{"shipped": true}', ("tuned", "untuned")), ("t.csv", "{", ("tuned",)),
])  # fmt: skip
def test_kinds_of_a_run_by_its_configuration_and_its_note(tuned, note, kinds, tmp_path):
    folder = write_run(tmp_path / "a", tuned_params=tuned)
    if note is not None:
        (folder / "tuned.json").write_text(note)
    assert read_run(folder).kinds == kinds


def test_each_block_has_the_seeds_of_its_kind(tmp_path):
    for seed in range(3):
        folder = write_run(tmp_path / str(seed), seed=seed)
        if seed < 2:
            (folder / "tuned.json").write_text('{"shipped": true}')
    groups, _ = collect(find_run_folders([tmp_path]))
    assert [(one.tuned, one.seeds) for one in groups] == [("tuned", (0, 1)), ("untuned", (0, 1, 2))]


# ------------------------------------------------------------------------------------------------------- corrupt files
def test_corrupt_clients_exclude_a_run_and_the_report_lists_it(tmp_path):
    for seed in range(3):
        write_whole_run(tmp_path / f"r{seed}", "fedavg", seed)
    lines = (tmp_path / "r1/clients.csv").read_text().splitlines()
    (tmp_path / "r1/clients.csv").write_text("\n".join(lines[:40]))
    (tmp_path / "r2/clients.csv").write_text("")
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "excluded_runs.csv")
    assert [Path(folder).name for folder in table["run"]] == ["r1", "r2"]
    assert "up to the last evaluated round, 12" in table["reason"][0] and "unreadable" in table["reason"][1]
    assert "Excluded runs:" in (tmp_path / "report" / "results.md").read_text()
    assert pd.read_csv(tmp_path / "report" / "headlines.csv")["n"].tolist() == [1]


CLASS_0 = "global_test_accuracy_class_00"


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("metrics.csv", lambda rows: rows.assign(**{CLASS_0: "good"}), f"something else in {CLASS_0}"),
        ("metrics.csv", lambda rows: rows.assign(**{CLASS_0: 100 * rows[CLASS_0]}), "accuracies in 0..1"),
        ("metrics.csv", lambda rows: rows.assign(generator_loss="low"), "something else in generator_loss"),
        ("metrics.csv", lambda rows: rows.assign(train_generated_loss="low"), "something else in train_generated_loss"),
        ("clients.csv", lambda rows: rows[:-2], "the same clients, each once"),
        ("clients.csv", lambda rows: pd.concat([rows, rows[-3:]]), "the same clients, each once"),
    ],
)
def test_a_corrupt_column_excludes_a_run_from_the_means(name, spoil, why, tmp_path):
    for seed in range(2):
        write_whole_run(tmp_path / f"r{seed}", "fedavg", seed)
    path = tmp_path / "r1" / name
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    (reason,) = pd.read_csv(tmp_path / "report" / "excluded_runs.csv")["reason"]
    assert why in reason and pd.read_csv(tmp_path / "report" / "headlines.csv")["n"].tolist() == [1]


def test_until_cuts_clients_too(tmp_path):
    write_whole_run(tmp_path / "a", "fedavg", 0)
    run = read_run(tmp_path / "a", until=5)
    assert run.clients["round"].max() == 5 and len(run.metrics) == 5


# ------------------------------------------------------------------------------------------------------ configurations
@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_configurations_are_read_as_omegaconf_reads_them(path, tmp_path):
    config = OmegaConf.load(path)
    if not OmegaConf.is_dict(config):
        return
    OmegaConf.save(config, tmp_path / "config.yaml")
    if "${" not in (tmp_path / "config.yaml").read_text():
        assert read_yaml(tmp_path / "config.yaml") == OmegaConf.to_container(config)


def test_numbers_in_configurations(tmp_path):
    listed = [1, 2.5, None, True, "1e3x"]
    given = {"a": 1e-05, "b": 1e16, "c": "2020-01-01", "d": listed, "e": float("inf"), "f": "1e-5", "g": "${a}", "h": -3e-7}
    for keys in ("abcdefgh", "abcdefh"):
        OmegaConf.save(OmegaConf.create({key: given[key] for key in keys}), tmp_path / "c.yaml")
        assert read_yaml(tmp_path / "c.yaml") == OmegaConf.to_container(OmegaConf.load(tmp_path / "c.yaml"), resolve=True)
