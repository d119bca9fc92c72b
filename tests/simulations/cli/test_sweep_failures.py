"""A sweep (-m) goes on past runs that fail or diverge, and ends with a list of what failed and why."""

import pytest

from simulations.cli.exit_codes import FAILED, WRONG
from simulations.cli.hydra_command import Attempts
from tests.processes import quick


def test_a_run_that_diverges_does_not_end_the_sweep(tmp_path):
    words = ["data=digits", "model=mlp", "strategy=fedavg", "partition=iid", "rounds=2", "num_clients=4", "clients_per_round=2"]
    words += ["local_steps=2", "clients_per_vmap=1", "engine=local", "progress=false", "output=runs"]
    for attempt in (1, 2):
        ended = quick(tmp_path, "-m", *words, "optimizer.lr=0.05,1e30,0.1")
        assert ended.code == FAILED and ended.out.count("run: ") == 2, (attempt, ended.err)
        *_, number, failed = ended.err.splitlines()
        assert number == "1 of 3 runs failed:" and failed.startswith("failed: optimizer.lr=1e+30: ") and "diverged" in failed
        assert ("already finished" in ended.err) == (attempt == 2) and ("not repeated" in ended.err) == (attempt == 2)


@pytest.mark.parametrize(("errors", "code"), [([ValueError("x")], WRONG), ([ValueError("x"), KeyError("y")], FAILED)])
def test_every_failure_is_listed_and_gives_the_exit_code(errors, code, capsys):
    attempts = Attempts(["seed=0,1"])

    def fail(error):
        raise error

    for seed, error in enumerate(errors):
        attempts.make(lambda error=error: fail(error), [f"seed={seed}"], is_sweep=True)
    attempts.make(lambda: None, ["seed=9"], is_sweep=True)
    with pytest.raises(SystemExit) as end:
        attempts.conclude()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == code and f"{len(errors)} of {len(errors) + 1} runs failed:" in lines
    assert [line.split(":")[1].strip() for line in lines if line.startswith("failed: ")] == [f"seed={k}" for k in range(len(errors))]


def test_outside_a_sweep_an_error_ends_the_command():
    def fail():
        raise ValueError("x")

    with pytest.raises(SystemExit) as end:
        Attempts([]).make(fail, [], is_sweep=False)
    assert end.value.code == WRONG
    Attempts([]).conclude()


def test_an_interrupt_ends_a_sweep():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Attempts([]).make(interrupt, ["seed=0"], is_sweep=True)
