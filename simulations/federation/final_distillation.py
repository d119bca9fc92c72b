"""The last stage of a federated run, or one every so many rounds: its aggregated model is distilled into a student."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_distillation
from fedkd.distillation.methods.base import StudentModule
from fedkd.errors import ConfigError, require
from fedkd.models.ensemble import EnsembleModel
from fedkd.strategy import Strategy
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import Origin, make_setup
from simulations.distillation.teachers import clients_ensemble, holding, pooled
from simulations.run_folder.csv_rows import append, cut
from simulations.run_folder.metric_names import DISTILLED_COLUMNS
from simulations.setup.simulation import Simulation


def distillation_config(config: DictConfig, folder: str, server_round: int | None) -> DictConfig:
    """The distillation that a federated run's configuration asks for.

    Raises:
        ConfigError: a part's own keys are nested, which would take the place of its name.
    """
    for key, value in config.distill_overrides.items():
        rule = f"must be one value; the keys of a part stand with a dot: '+distill_overrides={{{key}.<name>: <value>}}'"
        require(not isinstance(value, DictConfig), f"distill_overrides.{key}", rule, str(value))
    asked = [f"{key}={'null' if value is None else value}" for key, value in config.distill_overrides.items()]
    own = [f"{key}={config[key]}" for key in ("output", "device", "progress")]
    own += [f"searchpath=[{','.join(config.searchpath)}]"] if config.searchpath else []
    own += ["precision=float64"] if config.precision == "float64" else []
    at = [] if server_round is None else [f"round={server_round}"]
    return compose_distillation([*own, f"distiller={config.distill}", *asked, f"teacher_run={folder}", *at])


def check_final_distillation(home: Simulation) -> None:
    """Refuse now what could not be distilled in the end.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    if home.config.distill is None:
        return
    config = distillation_config(home.config, "later", None)
    check_distillation(config)
    config.data = home.config.data
    name = home.config.choices.get("strategy", home.config.strategy["_target_"])
    if not isinstance(home.strategy, Strategy):
        raise ConfigError(f"distill must be null for Flower's own strategies, which keep no state, got {home.config.distill} with {name}")
    server = home.federation().server
    state = home.strategy.init_server(server)
    if home.strategy.global_model(server, state) is None:
        raise ConfigError(f"distill must be null for a strategy without a global model, got {home.config.distill} with {name}")
    ensemble = config.teacher_kind == "client_ensemble"
    if ensemble and clients_ensemble(home.strategy, server, {**state, "member-0": state["model"]}) is None:
        raise ConfigError(
            f"distill_overrides.teacher_kind must be global_model for a strategy without its clients' models, got 'ensemble' with {name}"
        )
    network = home.config.model, home.config.choices.get("model", "model")
    make_setup(config, Origin(pooled(home), holding(StudentModule(EnsembleModel([home.model]) if ensemble else home.model)), network))


def is_distillation_round(config: DictConfig, server_round: int) -> bool:
    """A round before the last after which it is distilled too."""
    return bool(config.distill and config.distill_every) and server_round % config.distill_every == 0 and server_round < config.rounds


def distill_global_model(home: Simulation, folder: Path, server_round: int) -> None:
    """Distil what the run has after ``server_round``, and note it in ``distilled.csv``."""
    config = distillation_config(OmegaConf.create(OmegaConf.to_container(home.config)), str(folder), server_round)
    student = run_distillation(config)
    scored = [row for row in read_rows(student) if row["test_accuracy"]]
    cut(folder / "distilled.csv", server_round - 1)
    row = {
        "round": server_round,
        "distiller": home.config.distill,
        "initial_accuracy": scored[0]["test_accuracy"],
        "student_accuracy": scored[-1]["test_accuracy"],
    }
    append(folder / "distilled.csv", DISTILLED_COLUMNS, [{**row, "run": student.name}])
