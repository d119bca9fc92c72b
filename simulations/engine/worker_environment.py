"""The environment of a worker: versions, code, device and data. A worker proves that they are the driver's before its first work.

A worker is a Ray actor or a node of Flower. The driver of a Ray cluster can send its code to workers, so that the code is the same.
"""

import hashlib
import json
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from omegaconf import DictConfig, OmegaConf

import fedkd
from fedkd.errors import EngineError, one_line
from simulations.overrides import CONF
from simulations.process import configure_process
from simulations.run_folder.source_code import LIBRARIES, combined, installed_version, module_path, modules_of, packages_of, read_module
from simulations.setup.simulation import build_simulation

Environment = dict[str, Any]
"""``node``, ``python``, ``versions`` by package, ``device``, ``code`` (one digest), ``modules`` (a digest of each), and ``data`` (a digest
by name). Where the simulation cannot be built, ``error`` stands in place of the last three."""

NOT_SHIPPED = ("__pycache__", "*.pyc", "results", ".*")
"""Files and folders of packages that workers do not need."""

SHOWN = 3
"""Differences of one kind that a message names."""

ENVIRONMENT = "environment"
"""Name of the record with which a node of Flower is asked for its environment, and of the record with its answer."""

REMEDIES = {
    "versions": "install the same version there",
    "device": "results depend on it: use nodes of one kind, or set ATEN_CPU_CAPABILITY to the same value on all",
    "code": "engine.ship_code=true sends the driver's code; with false, install the same there",
    "data": "give that node the same files, and remove its cache",
}
"""What to do about each kind of difference on a Ray cluster."""

FLOWER_REMEDIES = {**REMEDIES, "code": "Flower sends the app's own code; install the same version of other modules there"}
"""What to do about each kind of difference on nodes of Flower."""

Modules = dict[str, tuple[str, str]]
"""By the name of a module: the hash of its file, and the digest of its code, in which comments do not count."""


def driver_modules(config: str) -> Modules:
    """The modules that compute the run of a configuration, as they are in this process.

    Args:
        config: the resolved configuration as YAML.
    """
    digests = modules_of(packages_of(to_config(config)))
    return {name: (file_hash(path), digest) for name, digest in digests.items() if (path := module_path(name)) is not None}


def describe_environment(config: str, modules: Modules, node: str = "") -> Environment:
    """The environment of this process for a configuration. It builds the simulation, so the data are read.

    Args:
        config: the resolved configuration as YAML.
        modules: the modules of the driver.
        node: the name of the node beside that of its host, such as Ray's.
    """
    found = describe_process(config, node)
    try:
        data = dict(build_simulation(config).digests)  # first, as it makes the user's modules importable
    except Exception as error:
        return {**found, "error": one_line(error) or type(error).__name__}
    return {**found, **describe_code(modules), "data": data}


def describe_process(config: str, node: str = "") -> Environment:
    """The host, versions and device of this process.

    Args:
        config: the resolved configuration as YAML.
        node: the name of the node beside that of its host.
    """
    return {
        "node": f"{socket.gethostname()} ({node})" if node else socket.gethostname(),
        "python": platform.python_version(),
        "versions": {
            "fedkd": fedkd.__version__,
            "flwr": str(installed_version("flwr")),
            "numpy": numpy.__version__,
            "torch": torch.__version__,
        },
        "device": device_class(str(to_config(config).device)),
    }


def describe_code(modules: Modules) -> Environment:
    """The digests of the driver's modules as they are in this process.

    Args:
        modules: the modules of the driver. The digest of a file that is the same needs not be computed again.
    """
    paths = {name: module_path(name) for name in modules}
    here = {
        name: digest if file_hash(path) == content else read_module(path)[0]
        for name, (content, digest) in modules.items()
        if (path := paths[name]) is not None
    }
    return {"code": combined(here.items()), "modules": here}


def to_config(text: str) -> DictConfig:
    """A resolved configuration."""
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    return config


def file_hash(path: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def device_class(device: str) -> str:
    """What arithmetic depends on: the name of the GPU, or the instruction set that PyTorch uses on this CPU, such as ``cpu AVX2``."""
    if device != "cpu":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def check_environment(ours: Environment, theirs: Environment, owner: str = "driver", remedies: Mapping[str, str] = REMEDIES) -> None:
    """Check that a worker has the driver's environment.

    Args:
        ours: the environment of the driver. A part that it lacks is not compared.
        theirs: that of the worker.
        owner: what the message calls the driver.
        remedies: what to do about each kind of difference.

    Raises:
        EngineError: it has not. The message names the node, what differs, and both values.
    """
    if "error" in theirs:
        raise EngineError(f"the worker on node {theirs['node']} cannot build the run: {theirs['error']}")
    for kind, rule in differences(ours, theirs):
        raise EngineError(f"the worker on node {theirs['node']} must have the {owner}'s {rule}; {remedies[kind]}")


def differences(ours: Environment, theirs: Environment) -> Iterator[tuple[str, str]]:
    """What differs: the kind of each difference, which is a key of :data:`REMEDIES`, and a rule with both values."""
    for name, version in ours["versions"].items():
        if theirs["versions"].get(name) != version:
            yield "versions", f"{name}, got {theirs['versions'].get(name)} there and {version} here"
    if "device" in ours and theirs["device"] != ours["device"]:
        yield "device", f"device, got {theirs['device']} there and {ours['device']} here"
    if changed := unlike(ours["modules"], theirs["modules"]):
        yield "code", f"code, got {changed}"
    if "data" in ours and (changed := unlike(ours["data"], theirs["data"])):
        yield "data", f"data, got {changed}"


def unlike(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """The names whose digests differ, with both digests. Empty where all are equal."""
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    shown = [f"{name} ({theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here)" for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def recorded(environments: Mapping[str, Environment]) -> list[Environment]:
    """The environments as ``environment.json`` keeps them: one of each node, without the digests of single modules."""
    return [{key: value for key, value in environments[node].items() if key != "modules"} for node in sorted(environments)]


# ---------------------------------------------------------------------------------------------------- nodes of Flower
def environment_request(config: str, modules: Modules) -> ConfigRecord:
    """The record that asks a node of Flower for its environment. See :func:`report_environment`."""
    return ConfigRecord({"config": config, "modules": json.dumps(modules)})


def modules_of_request(request: ConfigRecord) -> Modules:
    """The modules of the driver in :func:`environment_request`."""
    return {name: (content, digest) for name, (content, digest) in json.loads(str(request["modules"])).items()}


def report_environment(message: Message, context: Context) -> Message:
    """The reply of a node of Flower to :func:`environment_request`: its environment as JSON."""
    configure_process()
    request = message.content.config_records[ENVIRONMENT]
    found = describe_environment(str(request["config"]), modules_of_request(request), f"node {context.node_id}")
    return Message(RecordDict({ENVIRONMENT: ConfigRecord({ENVIRONMENT: json.dumps(found)})}), reply_to=message)


# ---------------------------------------------------------------------------------------------------------------- code
def code_of(config: str) -> dict[str, Path]:
    """The packages and modules that workers need: those of fedkd, and the user's own that the configuration names.

    Args:
        config: the resolved configuration as YAML.

    Returns:
        The folder of each package and the file of each module, by name.
    """
    names = [name for name in packages_of(to_config(config)) if name not in LIBRARIES and name != "__main__"]
    files = {name: path for name in [*names, "fedkd", "strategies", "simulations"] if (path := module_path(name)) is not None}
    return {"conf": CONF, **{name: path.parent if path.name == "__init__.py" else path for name, path in files.items()}}


@contextmanager
def shipped_folder(code: Mapping[str, Path]) -> Iterator[str]:
    """A temporary folder with copies of packages and modules. Ray reads it while it connects."""
    with tempfile.TemporaryDirectory(prefix="fedkd-code-") as folder:
        for path in code.values():
            if path.is_dir():
                shutil.copytree(path, Path(folder) / path.name, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
            else:
                shutil.copy(path, folder)
        yield folder


def code_digest(code: Mapping[str, Path]) -> str:
    """A digest of the content of packages and modules."""
    digest = hashlib.sha256()
    with shipped_folder(code) as folder:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
