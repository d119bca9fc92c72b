"""``import fedkd``: light, lazy, and complete."""

import inspect
import subprocess
import sys
import tomllib

import pytest

import fedkd
from fedkd import errors
from tests.processes import ROOT

IMPORT = "import time; began = time.perf_counter(); import fedkd; print(time.perf_counter() - began)"


def test_the_import_takes_less_than_a_tenth_of_a_second():
    times = [
        float(subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, check=True, capture_output=True, text=True).stdout) for _ in range(3)
    ]
    assert min(times) < 0.1


def test_reading_runs_needs_no_torch():
    code = (
        "import fedkd; fedkd.load, fedkd.list_runs, fedkd.Run; import sys; print([n for n in ('torch', 'flwr', 'ray') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in fedkd.__all__:
        value = getattr(fedkd, name)
        assert name in dir(fedkd) and inspect.getdoc(value), name
        assert fedkd.__dict__[name] is value, "a name is looked up once"
    with pytest.raises(AttributeError, match="has no attribute 'rn'"):
        _ = fedkd.rn


def test_the_names_of_the_design_are_public():
    functions = {"run", "distill", "tune", "reproduce", "compose", "load", "list_runs", "describe", "report"}
    classes = {"Run", "Runs", "Callback", "Strategy", "Seed", "Tracker", "EarlyStopping", "BestCheckpoint"}
    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.FedkdError)}
    assert set(fedkd.__all__) == functions | classes | known


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fedkd.__version__ == project["version"]


def test_types_are_published():
    assert (ROOT / "fedkd" / "py.typed").is_file()


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (fedkd.ConfigError, ValueError),
        (fedkd.ReportError, RuntimeError),
        (fedkd.RunFolderError, ValueError),
        (fedkd.ClientFailure, RuntimeError),
        (fedkd.DivergedError, FloatingPointError),
        (fedkd.StopRun, Exception),
    ],
    ids=lambda value: value.__name__,
)
def test_errors_have_one_base(error, base):
    assert issubclass(error, fedkd.FedkdError) and issubclass(error, base)
