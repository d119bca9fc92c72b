"""Distillation of the global model into a student, after the last round of a federated run and at configured rounds before."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_distillation
from fedkd.distillation.methods.base import StudentModule
from fedkd.errors import ConfigError, require
from fedkd.models.ensemble import EnsembleModel
from fedkd.strategy import Strategy
from simulations.distillation.dry_step import check_distillation_step
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import Setup, make_setup
from simulations.distillation.teachers import TeacherRun, find_client_ensemble, fixed_teacher, pooled_data
from simulations.overrides import quoted, quoted_list
from simulations.run_folder.csv_rows import append, cut
from simulations.run_folder.metric_names import DISTILLED_COLUMNS
from simulations.setup.simulation import Simulation


def distillation_config(config: DictConfig, folder: str, server_round: int | None) -> DictConfig:
    """The configuration of the distillation of a federated run.

    Args:
        config: the configuration of the federated run.
        folder: its run folder.
        server_round: the round whose model is distilled. None for the last round.

    Raises:
        ConfigError: a value of ``distill_overrides`` is nested. A nested value would replace the name of a part.
    """
    for key, value in config.distill_overrides.items():
        rule = f"must be one value; keys of a part are written with a dot: '+distill_overrides={{{key}.<name>: <value>}}'"
        require(not isinstance(value, DictConfig), f"distill_overrides.{key}", rule, str(value))
    overrides = [f"output={quoted(config.output)}", f"device={config.device}", f"progress={config.progress}"]
    overrides += [f"{key}={quoted_list(config[key])}" for key in ("searchpath", "allow_targets") if config.get(key)]
    overrides += ["precision=float64"] if config.precision == "float64" else []
    overrides += [f"distiller={config.distill}"]
    overrides += [f"{key}={'null' if value is None else value}" for key, value in config.distill_overrides.items()]
    overrides += [f"teacher_run={quoted(folder)}"]
    overrides += [] if server_round is None else [f"round={server_round}"]
    return compose_distillation(overrides)


def check_final_distillation(simulation: Simulation) -> Setup | None:
    """Check before the first round that the distillation after the last one will be possible.

    Returns:
        The distillation with the initial model as its teacher. None if the run distills nothing.

    Raises:
        ConfigError: the strategy has no such teacher, or the distillation's own configuration is wrong.
    """
    run = simulation.config
    if run.distill is None:
        return None
    config = distillation_config(run, "later", None)
    check_distillation(config)
    config.data = run.data
    name = run.choices.get("strategy", run.strategy["_target_"])
    if not isinstance(simulation.flower_strategy, Strategy):
        raise ConfigError(f"distill must be null for strategies of Flower, which have no state to distill, got {run.distill} with {name}")
    strategy, server = simulation.strategy, simulation.federation().server
    state = strategy.init_server(server)
    if strategy.global_model(server, state) is None:
        raise ConfigError(f"distill must be null for a strategy without a global model, got {run.distill} with {name}")
    ensemble = config.teacher_kind == "client_ensemble"
    alike = next((client for client, network in enumerate(simulation.networks) if network.model is simulation.model), 0)
    if ensemble and find_client_ensemble(strategy, server, {**state, f"member-{alike}": state["model"]}) is None:
        raise ConfigError(
            "distill_overrides.teacher_kind must be global_model for a strategy whose server keeps no models of clients, "
            f"got client_ensemble with {name}"
        )
    teacher = fixed_teacher(StudentModule(EnsembleModel([simulation.model]) if ensemble else simulation.model))
    return make_setup(config, TeacherRun(pooled_data(simulation), teacher, run.model, run.choices.get("model", "model")))


def check_final_step(simulation: Simulation) -> None:
    """Try one step of the distillation after the last round, see :func:`simulations.distillation.dry_step.check_distillation_step`.

    Raises:
        ConfigError: the step fails.
    """
    if (setup := check_final_distillation(simulation)) is not None:
        check_distillation_step(setup, prefix="distill_overrides.")


def is_distillation_round(config: DictConfig, server_round: int) -> bool:
    """Whether the model is distilled after this round, which is not the last one."""
    return bool(config.distill and config.distill_every) and server_round % config.distill_every == 0 and server_round < config.rounds


def distill_global_model(simulation: Simulation, folder: Path, server_round: int) -> None:
    """Distill the model of a run's checkpoint, and write the accuracies of teacher and student to ``distilled.csv``.

    Args:
        simulation: the simulation of the run.
        folder: the run folder.
        server_round: the round of the checkpoint.
    """
    run = OmegaConf.create(OmegaConf.to_container(simulation.config))
    assert isinstance(run, DictConfig)
    student = run_distillation(distillation_config(run, str(folder), server_round))
    evaluated = [row for row in read_rows(student) if row["test_accuracy"]]
    cut(folder / "distilled.csv", server_round - 1)
    row = {
        "round": server_round,
        "distiller": run.distill,
        "initial_accuracy": evaluated[0]["test_accuracy"],
        "student_accuracy": evaluated[-1]["test_accuracy"],
        "run": student.name,
    }
    append(folder / "distilled.csv", DISTILLED_COLUMNS, [row])
