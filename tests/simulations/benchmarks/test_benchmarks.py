"""The opponents of the benchmarks: they do the work that they stand for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from simulations.benchmarks import distillation
from simulations.benchmarks.reference_process import PIECES, PIXELS, Opponent, Pieces, pixels
from simulations.engine.local_engine import LocalGrid
from tests.conftest import ROOT, SMALL, settle

FEW = (*SMALL, "strategy=fedgen", "strategy.generator_steps=10")


def test_the_naive_loop_learns():
    pieces = Pieces([*FEW, "local_steps=20", "optimizer.lr=0.05"])
    before, _ = pieces.fedgen.evaluate()
    scores = [pieces.fedgen.round(number) for number in range(1, 11)]
    assert before < 0.4 and all(score > 0.6 for score in scores[-1])


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_of_work_is_done_in_some_seconds(piece):
    assert Pieces([*FEW, "local_steps=1"]).seconds({"local_pixels": "local_pixels 1 1"}.get(piece, piece)) > 0


def test_random_images_are_a_matter_of_the_seed():
    home, _ = settle("strategy=fedgen")
    one, two, other = pixels(home.seed, 4), pixels(home.seed, 4), pixels(home.seed / 1, 4)
    assert one.x.shape == (4, *PIXELS.shape) and one.x.equal(two.x) and not one.x.equal(other.x)


def test_the_opponent_answers_and_ends():
    opponent = Opponent(list(FEW))
    assert opponent.seconds("local 1") > 0 and opponent.seconds("generator 2 1") > 0
    with pytest.raises(RuntimeError, match="when asked for 'lunch'"):
        opponent.seconds("lunch")
    opponent.close()


SIMULATION = """
import json, os, sys
from flwr.serverapp import ServerApp
from simulations.benchmarks.flower import OneToOne
from simulations.benchmarks.nodes import CONFIG, single_app
from simulations.compat import simulate
from simulations.world import world

server_app, text = ServerApp(), sys.argv[1]
os.environ[CONFIG] = text

@server_app.main()
def main(grid, context):
    strategy = world(text).strategy
    strategy.federation = world(text).federation()
    arrays = strategy.start(OneToOne(grid, 6), num_rounds=3).arrays
    print(json.dumps({name: array.data.hex() for name, array in arrays.items()}), flush=True)

simulate(server_app, single_app, 6, 2)
os._exit(0)
"""


@pytest.mark.slow
def test_one_client_a_node_of_flowers_runtime_gives_the_same_bits(tmp_path):
    home, text = settle(*FEW)
    ours = home.strategy.start(LocalGrid(6, text), num_rounds=3).arrays
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SIMULATION, OmegaConf.to_yaml(home.config, resolve=True)]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    theirs = json.loads(ended.stdout.splitlines()[-1])
    assert theirs == {name: array.data.hex() for name, array in ours.items()}, ended.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what a program has held since it began")
def test_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    child = "from simulations.benchmarks.distillation import high_water; print(high_water())"
    parent = (
        "import subprocess, sys; held = bytearray(3 << 30); held[::4096] = b'1' * len(held[::4096]);"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], check=True, capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True, cwd=ROOT)
    assert 50 < float(done.stdout) < 2000, "MiB: what the imports take, less than the 3 GiB of the parent"


def test_what_distillation_s_pipeline_is_compared_with_is_training_on_one_batch():
    small = ["student.widths=[4,5,6]", "teacher.widths=[4,5,6]", "batch_size=16"]
    for work in (distillation.ready(small), distillation.epochs("none", small)):
        work()
