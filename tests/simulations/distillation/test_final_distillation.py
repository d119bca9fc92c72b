"""Federated runs whose global model is distilled at the end, or every few rounds."""

import pytest

from simulations.config import compose
from simulations.federation import runner
from tests.simulations.distillation.small_distillations import SMALL_FEDERATION, final_accuracy, read_csv

FEDAVG = (*SMALL_FEDERATION, "rounds=3", "strategy=fedavg")

KD = ("distill=kd", "distill_every=2", "distill_overrides.image_source=real", "+distill_overrides.export=false")


def test_a_federated_run_is_distilled_every_two_rounds_and_at_the_end(tmp_path):
    folder = runner.run_federation(compose([*FEDAVG, *KD, "distill_overrides.epochs=2", f"output={tmp_path}"]))
    rows = read_csv(folder / "distilled.csv")
    assert [row["round"] for row in rows] == ["2", "3"] and rows[0]["run"] != rows[1]["run"]
    for row in rows:
        assert float(row["student_accuracy"]) == final_accuracy(tmp_path / "distilled" / row["run"])
    plain = runner.run_federation(compose([*FEDAVG, f"output={tmp_path / 'plain'}"]))
    assert plain.name == folder.name, "the distillation does not change the identity of the run"
    assert (plain / "checkpoint.safetensors").read_bytes() == (folder / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill=hsakd", "distill_overrides.student=mlp"], "^student must be a network with an extra stage|^distiller.teaching trains"),
        (
            ["distill=kd", "+distill_overrides.teacher_kind=client_ensemble"],
            r"^distill_overrides\.teacher_kind must be global_model .* keeps no models of clients, got client_ensemble with fedavg$",
        ),
        (
            ["distill=kd", "+distill_overrides.image_source.steps=2"],
            r"^distill_overrides\.image_source must be one value; keys of a part are written with a dot: .*, got",
        ),
        (["distill=kd", "+distill_overrides={image_source.steps: 0}"], r"^image_source\.steps must be > 0, got 0$"),
        (
            ["distill=kd", "~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0"],
            r"^distill must be null for strategies of Flower, .*, got kd with flwr\.serverapp\.strategy\.FedAvg$",
        ),
    ],
)
def test_a_distillation_that_cannot_work_is_rejected_before_the_first_round(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runner.run_federation(compose([*FEDAVG, f"output={tmp_path / 'output'}", *words]))
    assert not (tmp_path / "output").exists()


def test_a_distillation_that_was_interrupted_between_rounds_is_repeated(tmp_path, monkeypatch):
    config = [*FEDAVG, *KD, "distill_overrides.epochs=1", f"output={tmp_path}"]
    original = runner.distill_global_model

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "distill_global_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run_federation(compose(config))
    monkeypatch.setattr(runner, "distill_global_model", original)
    folder = runner.run_federation(compose(config))
    assert [row["round"] for row in read_csv(folder / "distilled.csv")] == ["2", "3"]


def test_dpk_distills_a_federated_run_with_its_shipped_settings(tmp_path):
    small = "distiller.width: 8, distiller.heads: 2, distiller.depth: 1"
    images = "image_source.steps: 2, image_source.batch_size: 16, image_source.generator.width: 4"
    words = ["distill=dpk", "distill_overrides.epochs=1", "+distill_overrides.export=false", f"+distill_overrides={{{small}, {images}}}"]
    folder = runner.run_federation(compose([*SMALL_FEDERATION, "rounds=2", "strategy=fedavg", *words, f"output={tmp_path}"]))
    assert [row["distiller"] for row in read_csv(folder / "distilled.csv")] == ["dpk"]
