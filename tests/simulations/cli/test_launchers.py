"""Launchers and sweepers of Hydra: runs in other processes, their failures, and the objective that Optuna reads."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from fedkd.errors import ConfigError
from simulations.cli.exit_codes import FAILED, WRONG
from simulations.cli.sweep_jobs import JobResult, SweepJobs
from simulations.process import EndedBySignal, handlers_end_the_run
from simulations.run_folder.objective import read_objective
from tests.processes import Command, Ended
from tests.simulations.cli.test_sweep_failures import SMALL, failing

SLURM = f"""#!{sys.executable}
import os, re, subprocess, sys
name, *words = sys.argv
if name.endswith("srun"):  # runs the command behind its options
    command = words[words.index(sys.executable):]
    os.execv(command[0], command)
if name.endswith("sacct"):
    print("JobID|State|NodeList")
    sys.exit()
text = open(words[-1]).read()
with open("submitted", "a") as file:
    file.write(text)
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
for task in range(int(first), int(last) + 1):
    own = dict(SLURM_JOB_ID=f"7{{task}}", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(task), SLURM_NTASKS="1", SLURM_NODEID="0")
    own |= dict(SLURM_JOB_NUM_NODES="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="n0")
    subprocess.Popen(["bash", words[-1]], env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
"""A program that stands for ``sbatch``, ``srun`` and ``sacct``. The tasks of an array are processes of this machine."""


def launch(where: Path, *words: str, module: str = "simulations.run", path: str = "", forked: bool = True) -> Ended:
    """Run a command whose launched processes find the plugins of Hydra where this process does."""
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.pathsep.join(filter(None, [path, os.environ["PATH"]]))}
    return Command(words, where, environment, module=module, forked=forked).end()


# ------------------------------------------------------------------------------------------------------- jobs of a multirun
def hydra_node(number: int, word: str, folder: Path, *, launcher: str = "Joblib", sweeper: str = "Basic"):
    """The configuration with Hydra's node, as callbacks are given it."""
    return OmegaConf.create(
        {
            "hydra": {
                "sweep": {"dir": str(folder)},
                "job": {"num": number},
                "overrides": {"task": [word, "rounds=2"]},
                "launcher": {"_target_": f"x.{launcher}Launcher"},
                "sweeper": {"_target_": f"x.{sweeper}Sweeper"},
            }
        }
    )


def end_job(jobs: SweepJobs, config, result: JobResult) -> JobReturn:
    """Tell of the end of a job."""
    returned = JobReturn(_return_value=result, status=JobStatus.COMPLETED)
    jobs.on_job_end(config, returned)
    return returned


def test_folders_are_printed_in_the_order_of_the_jobs_and_failures_are_named_by_what_was_swept(tmp_path, capsys):
    jobs = SweepJobs()
    jobs.on_multirun_start(hydra_node(0, "seed=0,1,2", tmp_path))
    for number, result in ((2, JobResult(folder="c")), (1, JobResult(code=WRONG, text="bad")), (0, JobResult(0.5, folder="a"))):
        assert end_job(jobs, hydra_node(number, f"seed={number}", tmp_path), result).return_value == result.objective
    with pytest.raises(SystemExit) as end:
        jobs.on_multirun_end(hydra_node(0, "seed=0,1,2", tmp_path))
    assert end.value.code == WRONG
    assert capsys.readouterr() == ("run: a\nrun: c\n", "1 of 3 runs failed:\nfailed: seed=1: bad\n")


def test_a_sweeper_that_reads_objectives_is_given_a_failure_as_an_exception(tmp_path):
    jobs, config = SweepJobs(), hydra_node(0, "seed=0", tmp_path, sweeper="Optuna")
    jobs.on_multirun_start(config)
    failed = end_job(jobs, config, JobResult(code=WRONG, text="x must be 1"))
    assert failed.status == JobStatus.FAILED
    with pytest.raises(ConfigError, match="^x must be 1$"):
        _ = failed.return_value
    assert end_job(jobs, config, JobResult(0.0, FAILED, "diverged")).return_value == 0.0


def test_the_end_of_a_job_s_time_is_no_failure_of_the_code_that_runs_then(monkeypatch):
    """submitit's handler raises in the midst of training, where an exception would be that of a client."""

    def limit(number, frame):
        raise RuntimeError("timed-out too many times")

    def train():
        try:
            signal.raise_signal(signal.SIGUSR2)
        except Exception:
            pytest.fail("the client is blamed")

    before = signal.signal(signal.SIGUSR2, limit)
    try:
        with pytest.raises(EndedBySignal, match="^timed-out too many times; the same command continues from the last checkpoint$"):
            with handlers_end_the_run():
                train()
        assert signal.getsignal(signal.SIGUSR2) is limit
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert failing(monkeypatch, EndedBySignal("x")) == JobResult(None, FAILED, "x")


# ----------------------------------------------------------------------------------------------------------------- plugins
def test_optuna_reads_the_objective_of_each_run(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1"]
    ended = launch(tmp_path, "-m", *search, *SMALL, "optimizer.lr=choice(0.05,0.1,1e30)")
    folders = [Path(line.removeprefix("run: ")) for line in ended.out.splitlines() if line.startswith("run: ")]
    assert ended.code == FAILED and "1 of 3 runs failed:\nfailed: optimizer.lr=1e+30: " in ended.err
    found = yaml.safe_load((tmp_path / "runs" / ".sweep" / "optimization_results.yaml").read_text())
    assert len(folders) == 2 and found["best_value"] == max(read_objective(folder, "local_test_accuracy_last10") for folder in folders)


@pytest.fixture
def lab(tmp_path) -> list[str]:
    """The words of two runs with a strategy of the user's own, of which the second diverges."""
    (tmp_path / "lab" / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "lab" / "mine.py").write_text("from strategies.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    (tmp_path / "lab" / "conf" / "strategy" / "mine.yaml").write_text("# Mine.\ndefaults: [fedavg, _self_]\n_target_: mine.Mine\n")
    words = [word for word in SMALL if not word.startswith("strategy=")]
    return ["-m", *words, "searchpath=lab", "strategy=mine", "optimizer.lr=0.05,1e30"]


def assert_one_of_two_failed(ended: Ended) -> None:
    """One run is finished, and the other one is listed."""
    assert ended.code == FAILED and len(ended.out.splitlines()) == 1 and (ended.folder / "checkpoint.safetensors").exists(), ended.err
    *_, number, failed = ended.err.splitlines()
    assert number == "1 of 2 runs failed:" and failed.startswith("failed: optimizer.lr=1e+30: ") and "Traceback" not in ended.err


@pytest.mark.slow
def test_joblib_makes_runs_in_other_processes(tmp_path, lab):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert_one_of_two_failed(launch(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *lab, forked=False))


def test_slurm_is_given_one_array_job_with_a_task_for_each_run(tmp_path, lab):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "sacct"):
        (tmp_path / "bin" / name).write_text(SLURM)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu"]
    assert_one_of_two_failed(launch(tmp_path, *slurm, *lab, path=str(tmp_path / "bin")))
    submitted = (tmp_path / "submitted").read_text()
    assert re.findall(r"--array=(\S+)", submitted) == ["0-1%2"] and "--partition=cpu" in submitted and "--job-name=fedkd" in submitted
