"""``python -m tests.newest_flower``: the tests of Flower with the newest flwr that pyproject.toml allows, in a folder of its own.

All other packages are those that are installed. Where the newest flwr cannot be installed, such as offline, nothing is tested, and a line
says why.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import version

from tests.small_runs import ROOT

TESTS = ("tests/simulations/engine/test_flower_engine.py", "tests/simulations/deployment", "tests/simulations/federation/test_flower.py")
"""What depends on Flower. The rest of the suite does not notice its version."""

INSTALL_SECONDS, TEST_SECONDS = 120, 600
"""How long the two steps may take."""


def requirement() -> str:
    """The versions of flwr that pyproject.toml allows, without extras: ``flwr>=1.41,<1.43``."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (found,) = [re.sub(r"\[.*?\]", "", line) for line in dependencies if line.startswith("flwr[")]
    return found


def main() -> int:
    """Install and test. The exit code is that of the tests, and 0 where there is nothing to test."""
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "1"]
        try:
            done = subprocess.run(
                [*install, "--target", folder, requirement()], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"pip has not ended after {INSTALL_SECONDS} seconds"
        if reason:
            print(f"skipped: {requirement()} cannot be installed here: {reason}")
            return 0
        path = os.pathsep.join([folder, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        ask = [sys.executable, "-c", "from importlib.metadata import version; print(version('flwr'))"]
        newest = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        if newest == version("flwr"):
            print(f"skipped: flwr {newest} is the newest that {requirement()} allows, and is installed")
            return 0
        print(f"flwr {newest} in place of {version('flwr')}", flush=True)
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "--dist",
            "loadfile",
            "--timeout",
            "300",
            "--timeout-method",
            "thread",
            *TESTS,
        ]
        return subprocess.run(tests, cwd=ROOT, env=environment, timeout=TEST_SECONDS, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
