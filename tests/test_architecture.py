"""The house: imports point one way, randomness has one door, Flower's private names one more, and conf/ is the registry."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from hydra.utils import get_object
from omegaconf import OmegaConf

from fedkd.config.build import build
from fedkd.config.validation import check_run, check_types
from simulations.config import compose
from simulations.distillation import setup
from simulations.distillation.runner import compose_distillation as distillation
from simulations.engine import flower_compat
from tests.conftest import ROOT

LEVELS = [
    {
        "fedkd.types",
        "fedkd.errors",
        "fedkd.tensor_ops",
        "fedkd.training.step_program",
        "fedkd.training.step_program",
        "fedkd.config.validation_fraction",
        "fedkd.config.schema",
    },
    {"fedkd.seed"},
    {
        "fedkd.losses",
        "fedkd.models",
        "fedkd.generators",
        "fedkd.partition",
        "fedkd.data",
        "fedkd.models.ensemble",
        "fedkd.federation.system_heterogeneity",
    },
    {"fedkd.public_data", "fedkd.data.client_shift", "fedkd.data.client_shift", "fedkd.data.augmentation"},
    {"fedkd.data.rotated_domains"},
    {
        "fedkd.training.batch",
        "fedkd.training.functional_model",
        "fedkd.training.optimizers",
        "fedkd.training.step_program",
        "fedkd.metrics.accuracy",
        "fedkd.metrics.retrieval",
        "fedkd.metrics.parameter_path",
        "fedkd.training.vectorized_layers",
    },
    {"fedkd.training.loop"},
    {"fedkd.training.vectorized", "fedkd.distillation.logit_distillation", "fedkd.distillation.image_synthesis"},
    {"fedkd.sources"},
    {"fedkd.distillers", "fedkd.federation.server", "fedkd.checkpoint", "fedkd.federation.serialization", "fedkd.federation.aggregation"},
    {"fedkd.federation.messaging", "fedkd.distillation.student_training"},
    {"fedkd.federation.server_loop"},
    {"fedkd.strategy"},
    {"fedkd.server_distillation"},
    {"strategies"},
    {"fedkd.config.build", "simulations"},
]
FLWR_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
SOURCES = sorted(path for room in ("fedkd", "strategies", "simulations") for path in (ROOT / room).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[str]:
    """All modules that ``module`` imports, anywhere in it; ``from fedkd import wire`` counts as ``fedkd.federation.serialization``."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def level(module: str) -> int:
    """The floor on which ``module`` stands."""
    floors = [i for i, rooms in enumerate(LEVELS) for room in rooms if module == room or module.startswith(f"{room}.")]
    assert floors, f"{module} must have a place in LEVELS"
    return floors[0]


def users(library: str) -> set[str]:
    """The modules that import ``library`` or anything in it."""
    return {module for module in MODULES for name in imports(module) if name.split(".")[0] == library}


# -------------------------------------------------------------------------------------------------------------- imports
@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("fedkd",)])
def test_imports_point_downwards(module):
    ours = [name for name in imports(module) if name.split(".")[0] in ("fedkd", "strategies", "simulations", "tests")]
    assert "tests" not in {name.split(".")[0] for name in ours}
    above = [name for name in ours if level(name) > level(module)]
    assert not above, f"{module} (floor {level(module)}) imports {above}"


def test_no_module_imports_itself_by_a_detour():
    """Imports within functions aside, which are the way out where two modules need each other."""
    graph = {}
    for module, tree in TREES.items():
        nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        names = [(node.module, f"{node.module}.{alias.name}") for node in nodes for alias in node.names]
        graph[module] = {inner if inner in MODULES else outer for outer, inner in names} & set(MODULES)
    assert list(TopologicalSorter(graph).static_order())


def test_in_the_library_flower_hydra_and_ray_have_one_place_each():
    library = {module for module in MODULES if module.startswith(("fedkd", "strategies"))}
    assert users("flwr") & library == {"fedkd.federation.messaging", "fedkd.federation.server_loop", "fedkd.federation.serialization"}
    assert users("hydra") & library == users("omegaconf") & library == {"fedkd.config.build"}
    assert users("ray") == {"simulations.engine.ray_cluster", "simulations.engine.worker"}


def test_strategies_do_not_know_each_other():
    for module in (name for name in MODULES if name.startswith("strategies.")):
        assert not [name for name in imports(module) if name.startswith("strategies.")], module


def test_flower_s_private_names_stand_in_compat_alone():
    private = {module: {name for name in imports(module) if name.startswith("flwr")} - FLWR_PUBLIC for module in MODULES}
    assert {module for module, names in private.items() if names} == {"simulations.engine.flower_compat"}


# ----------------------------------------------------------------------------------------------------------- randomness
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson", "rand_like", "randn_like", "randint_like"}
IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_"}
SEEDS = {"manual_seed", "manual_seed_all", "seed", "initial_seed", "set_rng_state", "fork_rng", "default_generator"}
FREE = {"default_rng", "Generator", "SeedSequence", "PCG64"}


def dotted(node: ast.AST) -> str:
    """``np.random.seed`` of the expression that reads so."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def global_randomness(tree: ast.AST) -> Iterator[str]:
    """What in ``tree`` seeds a global random generator or draws from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (f"import {name}" for name in names if name == "random" or name.startswith(("numpy.random", "torch.random")))
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            numpy = name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in FREE
            torch = name.startswith("torch.") and (node.attr in SEEDS or name.startswith(("torch.random.", "torch.cuda.manual")))
            yield from [name] * (numpy or torch)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            attribute, given = node.func.attr, {keyword.arg for keyword in node.keywords}
            drawn = attribute in IN_PLACE or (attribute in DRAWS and dotted(node.func) == f"torch.{attribute}")
            yield from [f"{attribute} without a generator"] * (drawn and "generator" not in given)


def test_global_random_generators_are_touched_in_seed_alone():
    found = {module: sorted(set(global_randomness(tree))) for module, tree in TREES.items()}
    touching = {module: names for module, names in found.items() if names}
    assert set(touching) == {"fedkd.seed"}, touching


@pytest.mark.parametrize(
    "code",
    ["torch.manual_seed(0)", "np.random.seed(0)", "np.random.rand()", "import random", "from random import choice", "torch.randn(3)",
     "torch.randperm(9)", "x.normal_()", "torch.random.fork_rng()"],
)  # fmt: skip
def test_the_search_finds(code):
    assert list(global_randomness(ast.parse(code)))


@pytest.mark.parametrize("code", ["np.random.default_rng(0)", "torch.randn(3, generator=g)", "rng.random(3)", "x: np.random.Generator"])
def test_the_search_lets_pass(code):
    assert not list(global_randomness(ast.parse(code)))


# --------------------------------------------------------------------------------------------------------------- Flower
def test_messages_can_be_made_in_a_process_that_flower_did_not_start(monkeypatch):
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(flower_compat.TaskIdentity, name, None)
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=0, message_type="train")
    flower_compat.identify()
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert message.metadata.dst_node_id == 7, f"Flower {version('flwr')}"
    monkeypatch.setattr(flower_compat.TaskIdentity, "_run_id", 99)
    flower_compat.identify()
    assert flower_compat.TaskIdentity.run_id == 99, "an identity that Flower gave stays"


# ---------------------------------------------------------------------------------------------------------------- conf/
PLACES = {
    "data": "data", "partition": "partition", "model": "model", "optimizer": "optimizer", "strategy": "strategy", "engine": "engine",
    "generator": "strategy.generator", "shift": "shift", "systems": "systems", "public_data": "public_data",
    "distiller": "distiller", "source": "source", "augmentation": "augmentation",
}  # fmt: skip
YAMLS = [(group, path) for group in PLACES for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
OPTIONAL = {"flwr_datasets"}
"""Parts, called as the package that they need."""
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def ident(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


@cache
def composed(group: str, path: Path):
    """The configuration that chooses this file, its node, and where the node is."""
    place = PLACES[group]
    if place in ("distiller", "source", "augmentation"):
        config = distillation([f"{group}={path.stem}"])
        return config, OmegaConf.to_container(config[place], resolve=True), place
    images = group == "generator" and path.stem.startswith("image")
    config = compose(
        ["strategy=fedftg" if images else "strategy=fedgen", f"{group}={path.stem}" if place == group else f"{group}@{place}={path.stem}"]
    )
    return config, OmegaConf.to_container(OmegaConf.select(config, place), resolve=True), place


@pytest.mark.parametrize(("group", "path"), YAMLS, ids=ident)
def test_a_part_resolves_type_checks_and_builds(group, path):
    if path.stem in OPTIONAL:
        pytest.importorskip(path.stem)
    config, node, place = composed(group, path)
    check_types(node, place)
    (setup.check_distillation if "distiller" in config else check_run)(config)
    assert build(config, place.partition(".")[0]) is not None


@pytest.mark.parametrize(("group", "path"), YAMLS, ids=ident)
def test_a_part_s_keys_are_the_keywords_of_its_signature_which_holds_no_defaults(group, path):
    _, node, _ = composed(group, path)
    target, keys = get_object(node["_target_"]), set(node) - {"_target_", "_partial_"}
    parameters = inspect.signature(target).parameters
    if not target.__module__.startswith(("fedkd.", "strategies.", "simulations.")):
        assert keys <= set(parameters)
        return
    own = {name: parameter for name, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY}
    assert keys == set(own)
    assert [name for name, parameter in own.items() if parameter.default is not parameter.empty] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes(name):
    check_run(compose([f"experiment={name}"]))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")))
def test_a_recipe_composes(name):
    setup.check_distillation(distillation([f"recipe={name}"]))


def test_every_folder_of_conf_is_enumerated_here():
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert folders == {*PLACES, "switches", "evaluation", "experiment", "recipe"}


@pytest.mark.parametrize("path", [path for group, path in YAMLS if group == "strategy"], ids=ident)
def test_a_strategy_s_docstring_says_what_it_computes_and_what_deviates(path):
    _, node, _ = composed("strategy", path)
    document = inspect.getdoc(get_object(node["_target_"]))
    assert "Deviations" in document and "(" in document.partition("\n\n")[0]
