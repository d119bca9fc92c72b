"""The architecture: allowed imports between folders, sizes, public names, one place for randomness, and conf/ as the registry."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version

import pytest
from flwr.app import Message, RecordDict

from simulations.engine import flower_compat
from tests.mutant_list import MUTANTS
from tests.small_runs import ROOT

BASE = {"fedkd.errors", "fedkd.types", "fedkd.seed", "fedkd.tensor_ops", "fedkd.files"}
"""Modules that all others may import."""

ALLOWED = {
    "fedkd.errors": set(),
    "fedkd.types": BASE,
    "fedkd.seed": BASE,
    "fedkd.tensor_ops": BASE,
    "fedkd.files": BASE,
    "fedkd.losses": BASE,
    "fedkd.models": BASE,
    "fedkd.data": BASE,
    "fedkd.partition": BASE,
    "fedkd.client_states": BASE,
    "fedkd.checkpoint": {"fedkd.client_states", *BASE},
    "fedkd.config": BASE,
    "fedkd.metrics": {"fedkd.losses", *BASE},
    "fedkd.training": BASE,
    "fedkd.distillation": {"fedkd.training", "fedkd.models", "fedkd.losses", "fedkd.data", *BASE},
    "fedkd.federation": {"fedkd.training", "fedkd.metrics", "fedkd.models", *BASE},
    "fedkd.strategy": {"fedkd.federation", "fedkd.training", "fedkd.metrics", "fedkd.models", "fedkd.losses", *BASE},
    "fedkd.server_distillation": {
        "fedkd.strategy", "fedkd.federation", "fedkd.distillation", "fedkd.training", "fedkd.metrics", "fedkd.losses", "fedkd.models",
        *BASE,
    },
    "fedkd.prototype_sharing": {"fedkd.strategy", "fedkd.federation", "fedkd.training", "fedkd.metrics", "fedkd.losses", *BASE},
    "fedkd.two_networks": {"fedkd.strategy", "fedkd.federation", "fedkd.training", "fedkd.models", *BASE},
    "strategies": {
        "fedkd.strategy", "fedkd.server_distillation", "fedkd.prototype_sharing", "fedkd.two_networks", "fedkd.federation",
        "fedkd.distillation", "fedkd.training", "fedkd.metrics", "fedkd.models", "fedkd.losses", *BASE,
    },
    "simulations.config": {"fedkd", "simulations.overrides", "simulations.user_modules"},
    "simulations.user_modules": {"fedkd"},
    "simulations.overrides": {"fedkd"},
    "simulations.process": {"fedkd"},
    "simulations.progress": {"fedkd"},
    "simulations.run_folder": {"fedkd", "simulations.config", "simulations.overrides"},
    "simulations.trackers": {"fedkd", "simulations.run_folder"},
    "simulations.setup": {"fedkd", "simulations.config", "simulations.overrides", "simulations.user_modules"},
    "simulations.engine": {
        "fedkd", "simulations.setup", "simulations.process", "simulations.run_folder.source_code", "simulations.overrides", "strategies",
    },
    "simulations.distillation": {
        "fedkd", "simulations.setup", "simulations.run_folder", "simulations.trackers", "simulations.process", "simulations.progress",
        "simulations.config",
        "simulations.overrides", "simulations.user_modules",
    },
    "simulations.federation": {
        "fedkd", "simulations.engine", "simulations.setup", "simulations.run_folder", "simulations.trackers", "simulations.distillation",
        "simulations.process",
        "simulations.progress", "simulations.config", "simulations.overrides", "simulations.user_modules",
    },
    "simulations.reports": {
        "simulations.run_folder", "simulations.overrides", "simulations.process", "fedkd.metrics.label_skew", "fedkd.errors", "fedkd.files",
    },
    "simulations.experiments": {
        "fedkd", "simulations.federation", "simulations.distillation", "simulations.reports", "simulations.run_folder",
        "simulations.config", "simulations.overrides", "simulations.process", "simulations.progress", "simulations.setup.simulation",
        "simulations.setup.clients",
    },
    "simulations.deployment": {"fedkd", "simulations.engine", "simulations.setup", "simulations.process", "simulations.overrides"},
    "simulations.flower_app": {
        "fedkd", "simulations.federation", "simulations.deployment", "simulations.engine", "simulations.setup", "simulations.config",
        "simulations.overrides",
    },
    "simulations": {"fedkd", "strategies", "simulations"},
    "fedkd": {"simulations.api", "simulations.cli", "simulations.trackers"},
}  # fmt: skip
"""By folder or module: what it may import beside itself. The longest name that fits holds."""

LATE = {"simulations.federation.generator_diagnostics"}
"""Modules that may be imported inside a function where the importing module would be slow otherwise (scikit-learn)."""

ENTRIES = {
    "simulations.run",
    "simulations.distill",
    "simulations.report",
    "simulations.reproduce",
    "simulations.api",
    "simulations.benchmarks",
}
GROWING = {
    "strategies",
    "fedkd/losses",
    "fedkd/models",
    "fedkd/data",
    "fedkd/partition",
    "fedkd/distillation/methods",
    "simulations/results",
}
"""Folders with one named thing per file, which may hold any number of files."""

FLWR_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
PACKAGES = ("fedkd", "strategies", "simulations")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[str]:
    """All modules that ``module`` imports, anywhere in it; ``from fedkd import types`` counts as ``fedkd.types``."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in inner)


def inside(module: str, name: str) -> bool:
    """``module`` is ``name`` or lies in it."""
    return module == name or module.startswith(f"{name}.")


def rule_of(module: str) -> str:
    """The key of ``ALLOWED`` that holds for ``module``."""
    return max((name for name in ALLOWED if inside(module, name)), key=len)


def users(library: str) -> set[str]:
    """The modules that import ``library`` or anything in it."""
    return {module for module in MODULES for name in imports(module) if name.split(".")[0] == library}


# -------------------------------------------------------------------------------------------------------------- imports
def forbidden_imports(module: str) -> set[str]:
    """What a module imports although its folder may not."""
    rule = rule_of(module)
    ours = {name for name in imports(module) if name.split(".")[0] in (*PACKAGES, "tests")}
    wrong = {name for name in ours if not inside(name, rule) and not any(inside(name, allowed) for allowed in ALLOWED[rule])}
    return wrong | {name for name in ours if rule == "strategies" and inside(name, "strategies")}


def test_a_module_imports_only_what_its_folder_may():
    assert not {module: (f"rule of {rule_of(module)}", names) for module in MODULES if (names := forbidden_imports(module))}


def test_only_the_command_imports_its_subcommands():
    users_of_cli = {module: {name for name in imports(module) if inside(name, "simulations.cli")} for module in MODULES}
    for module, names in users_of_cli.items():
        if names and not inside(module, "simulations.cli") and module not in ("fedkd", "fedkd.__main__"):
            assert any(inside(module, entry) for entry in ENTRIES), f"{module} imports {names}"
            assert not names & {"simulations.cli.main", "simulations.cli.commands"}, f"{module} imports {names}"


def graph(*, late: bool) -> dict[str, set[str]]:
    """The imports between modules, those inside functions included. Those of ``LATE`` only if asked for."""
    return {
        module: {name for name in imports(module) if name in MODULES and name != module and (late or name not in LATE)}
        for module in MODULES
        if module != "fedkd"  # its names are resolved when they are first used
    }


def test_there_is_no_circle_of_imports():
    try:
        TopologicalSorter(graph(late=True)).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_search_for_circles_finds_one():
    circle = {**graph(late=True), "fedkd.errors": {"fedkd.strategy"}}
    with pytest.raises(CycleError):
        TopologicalSorter(circle).prepare()


def test_in_the_library_flower_hydra_and_ray_have_one_place_each():
    library = {module for module in MODULES if module.startswith(("fedkd", "strategies"))}
    places = {f"fedkd.federation.{name}" for name in ("messaging", "server_loop", "serialization", "update_check")}
    assert users("flwr") & library == places
    assert (users("hydra") | users("omegaconf")) & library <= {f"fedkd.config.{name}" for name in ("build", "targets", "validation")}
    assert users("ray") == {"simulations.engine.ray_cluster", "simulations.engine.worker"}


def test_flower_s_private_names_are_in_flower_compat_alone():
    private = {module: {name for name in imports(module) if name.startswith("flwr")} - FLWR_PUBLIC for module in MODULES}
    assert {module for module, names in private.items() if names} == {"simulations.engine.flower_compat"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages, and modules of this project, that are loaded once ``code`` has run in a fresh process."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import fedkd", {"torch", "flwr", "ray", "hydra", "matplotlib", "pandas", "numpy"}),
        ("import simulations.run", {"matplotlib", "scipy.stats", "pandas", "sklearn.manifold", "simulations.reports.builder"}),
        ("import simulations.reports.builder", {"torch", "flwr", "ray"}),
        ("from simulations.config import compose; compose(['seed=1'])", {"torch", "flwr", "ray", "matplotlib", "pandas"}),
        ("import simulations.cli.main", {"torch", "flwr", "ray", "hydra", "matplotlib", "pandas", "omegaconf"}),
    ],
    ids=["fedkd", "run", "report", "compose", "command"],
)
def test_what_is_not_needed_is_not_imported(code, heavy):
    assert not loaded_by(code) & heavy


# ---------------------------------------------------------------------------------------------------------------- sizes
def test_a_module_has_at_most_400_lines_and_says_what_it_is():
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]}
    assert not {str(path): lines for path, text in texts.items() if (lines := len(text.splitlines())) > 400}
    packages = {path for path in texts if path.name == "__init__.py"}
    assert not {str(path) for path in packages if texts[path] and path.parent != ROOT / "fedkd"}, "packages are empty but for fedkd"
    assert not {str(path) for path in texts.keys() - packages if not ast.get_docstring(ast.parse(texts[path]))}, "no docstring"


def test_a_folder_has_at_most_15_files():
    folders = {path.parent for path in SOURCES}
    sizes = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {name: size for name, size in sizes.items() if size > 15 and name not in GROWING}


def test_no_module_outside_tests_is_named_like_a_test():
    """Flower leaves such files out of the package that ``flwr run`` ships."""
    assert not [path for path in SOURCES if path.name.startswith("test_") or path.name.endswith("_test.py")]


def test_tests_mirror_the_packages():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [str(folder) for folder in folders if not (ROOT / folder).is_dir()]


# ----------------------------------------------------------------------------------------------------------- vocabulary
RETIRED = {
    "accuracy_own_labels", "accuracy_worst_tenth", "accuracy_spread", "accuracy_newcomers", "bytes_up", "bytes_down", "seconds_local",
    "seconds_server", "seconds_evaluate", "num_participants", "num_dropped", "num_late", "simulated_time", "straggler_steps",
    "newcomers", "colour", "noisy_clients", "regularised_steps", "distill_with", "diagnose_every", "unlike_models", "only_sums",
    "needs_public", "travelling", "fresh_memory", "train_cohort", "fit_cohort", "World", "Holdings", "Fleet", "Committee", "Mixed",
    "Thinned",
    "Fusion", "Lesson", "Planned", "Board", "Learner", "Bound",
}  # fmt: skip
"""Names of version 0.1 that no code, column, key or page uses any more."""


def words_of(text: str) -> set[str]:
    """The identifiers in a text."""
    return set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", text))


def names_of(tree: ast.AST) -> set[str]:
    """Names that a module defines or uses, and the keywords and identifiers in its strings but for seed paths."""
    frozen = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in frozen and " " not in node.value:
            found |= words_of(node.value)
    return found


def test_no_module_uses_a_retired_name():
    assert not {module: names for module, tree in TREES.items() if (names := names_of(tree) & RETIRED)}


def test_no_page_and_no_configuration_uses_a_retired_name():
    retired = RETIRED - {"Mixed", "Planned", "Board", "World", "Bound", "Fusion"}
    files = [*(ROOT / "conf").rglob("*.yaml"), *ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")]
    files = [path for path in files if path.name != "CHANGELOG.md" and not {".venv", "outputs"} & set(path.parts)]
    assert len(files) > 100
    assert not {str(path): names for path in files if (names := words_of(path.read_text(encoding="utf-8")) & retired)}


# ----------------------------------------------------------------------------------------------------------- randomness
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson", "rand_like", "randn_like", "randint_like"}
IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_"}
SEEDS = {"manual_seed", "manual_seed_all", "seed", "initial_seed", "set_rng_state", "fork_rng", "default_generator"}
FREE = {"default_rng", "Generator", "SeedSequence", "PCG64"}


def dotted(node: ast.AST) -> str:
    """``np.random.seed`` of the expression that reads so."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def global_randomness(tree: ast.AST) -> Iterator[str]:
    """Code in ``tree`` that seeds a global random generator or draws from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
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


def test_global_random_generators_are_used_in_seed_alone():
    found = {module: sorted(set(global_randomness(tree))) for module, tree in TREES.items()}
    touching = {module: names for module, names in found.items() if names}
    assert set(touching) == {"fedkd.seed"}, touching


@pytest.mark.parametrize(
    "code",
    ["torch.manual_seed(0)", "np.random.seed(0)", "np.random.rand()", "import random", "from random import choice", "torch.randn(3)",
     "torch.randperm(9)", "x.normal_()", "torch.random.fork_rng()"],
)  # fmt: skip
def test_the_search_for_global_randomness_finds(code):
    assert list(global_randomness(ast.parse(code)))


@pytest.mark.parametrize("code", ["np.random.default_rng(0)", "torch.randn(3, generator=g)", "rng.random(3)", "x: np.random.Generator"])
def test_the_search_for_global_randomness_allows(code):
    assert not list(global_randomness(ast.parse(code)))


# --------------------------------------------------------------------------------------------------------------- Flower
def test_messages_can_be_made_in_a_process_that_flower_did_not_start(monkeypatch):
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(flower_compat.TaskIdentity, name, None)
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=0, message_type="train")
    flower_compat.set_task_identity()
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert message.metadata.dst_node_id == 7, f"Flower {version('flwr')}"
    monkeypatch.setattr(flower_compat.TaskIdentity, "_run_id", 99)
    flower_compat.set_task_identity()
    assert flower_compat.TaskIdentity.run_id == 99, "an identity that Flower gave stays"


def test_every_fault_of_the_mutants_stands_in_its_file_once():
    """Otherwise ``python -m tests.mutants`` would plant nothing."""
    assert not [(one.file, one.old) for one in MUTANTS if (ROOT / one.file).read_text(encoding="utf-8").count(one.old) != 1]
