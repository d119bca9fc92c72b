"""What the user gets wrong: refused before any work, in one line that names the key, the rule and the value."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.running import TINY, quick, run


def refused(ended, output: Path, *words: str) -> None:
    """Exit code 1, nothing on standard output, one line of error (beside what is told of slow work) with all ``words`` in it, and no run begun."""
    assert ended.code == 1 and ended.out == "", (ended.code, ended.out, ended.err)
    lines = [line for line in ended.err.strip().splitlines() if not line.startswith(("decoding ", "partition: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert all(word in lines[0] for word in words), (words, lines[0])
    assert not list(output.rglob("metrics.csv")) and not list(output.rglob("checkpoint*"))


CASES = {
    "unknown key": (["bogus=1"], ["bogus"]),
    "unknown key appended": (["+bogus=1"], ["bogus"]),
    "unknown key of a part": (["partition.alhpa=1"], ["partition.alhpa"]),
    "unknown key of a part appended": (["+partition.alhpa=1"], ["partition.alhpa", "alpha"]),
    "word for a whole number": (["rounds=abc"], ["rounds", "abc", "Integer"]),
    "fraction for a whole number": (["rounds=2.5"], ["rounds", "2.5"]),
    "nothing for a whole number": (["rounds=null"], ["rounds"]),
    "no value": (["rounds"], ["rounds"]),
    "word in a part": (["partition.alpha=abc"], ["partition.alpha", "abc", "number"]),
    "word in a strategy": (["strategy=fedprox", "strategy.mu=abc"], ["strategy.mu", "abc", "number"]),
    "word in a generator": (["strategy.generator.hidden=abc"], ["strategy.generator.hidden", "abc"]),
    "alpha 0": (["partition.alpha=0"], ["partition.alpha", "> 0", "got 0"]),
    "alpha -1": (["partition.alpha=-1"], ["partition.alpha", "> 0", "-1"]),
    "cohort above population": (["clients_per_round=7"], ["clients_per_round", "num_clients", "6", "7"]),
    "more clients than examples": (["num_clients=5000"], ["num_clients", "5000"]),
    "too few examples a client": (["partition.min_size=999"], ["partition.min_size", "999"]),
    "steps and epochs": (["local_epochs=1"], ["local_steps", "local_epochs", "not both"]),
    "neither steps nor epochs": (["local_steps=null"], ["local_steps", "local_epochs"]),
    "no epochs": (["local_steps=null", "local_epochs=0"], ["local_epochs", ">= 1", "0"]),
    "no rounds": (["rounds=0"], ["rounds", ">= 1", "0"]),
    "no evaluation": (["evaluation.every=0"], ["evaluation.every", ">= 1", "0"]),
    "missing data": (["data=mnist", "data.root=/nonexistent"], ["data.root", "/nonexistent"]),
    "missing partition": (["partition=file", "partition.path=/nonexistent.npz"], ["partition.path", "/nonexistent.npz"]),
    "no such device": (["device=cuda"], ["device", "cuda"]),
    "no device at all": (["device=abacus"], ["device", "abacus", "cuda"]),
    "no such strategy": (["strategy=nope"], ["strategy/nope", "fedgen"]),
    "no such module": (["strategy._target_=nope.Nope"], ["strategy._target_", "nope.Nope"]),
    "no such class": (["strategy._target_=strategies.fedavg.Nope"], ["strategy._target_", "Nope"]),
    "no class": (["strategy._target_=strategies.fedavg"], ["strategy._target_", "strategies.fedavg"]),
    "no strategy": (["~strategy", "+strategy._target_=fedkd.partition.iid.IID"], ["strategy._target_", "IID"]),
    "missing parameter": (["~strategy.alpha"], ["strategy", "FedGen", "alpha"]),
    "no workers": (["engine=ray", "engine.workers=0"], ["engine.workers", "> 0", "0"]),
    "nobody at once": (["cohort=0"], ["cohort", ">= 1", "auto", "0"]),
    "a word for a cohort": (["cohort=many"], ["cohort", "auto", "many"]),
    "a word for compile": (["compile=perhaps"], ["compile", "perhaps"]),
    "half precision": (["precision=float16"], ["precision", "float32", "float64", "float16"]),
    "negative mu": (["strategy=fedprox", "strategy.mu=-1"], ["strategy.mu", ">= 0", "-1"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer", "lr", "-1"]),
    "negative learning rate of the generator": (["strategy.generator_optimizer.lr=-1"], ["strategy.generator_optimizer", "lr", "-1"]),
    "no such policy": (["on_client_failure=shrug"], ["on_client_failure", "retry", "shrug"]),
    "no time": (["timeout=0"], ["timeout", "> 0"]),
    "no public set": (["strategy=feddf"], ["public", "strategy feddf", "held_out", "got none"]),
    "nothing to give away": (["strategy=fedmd", "public=held_out", "public.share=0"], ["public.share", "both excluded", "got 0"]),
    "everything given away": (["strategy=fedmd", "public=held_out", "public.share=1.0"], ["public.share", "both excluded", "got 1.0"]),
    "too little to give away": (["strategy=feddf", "public=held_out", "public.share=1e-5"], ["public.share", "larger share", "1e-05"]),
    "no images": (["strategy=feddf", "public=synthetic", "public.size=0"], ["public.size", "> 0", "got 0"]),
    "rising noise": (["strategy=feddf", "public=synthetic", "public.exponent=-1"], ["public.exponent", ">= 0", "-1"]),
    "missing public data": (["strategy=feddf", "public=other", "public.data.root=/nonexistent"], ["public.data.root", "/nonexistent"]),
    "all held out": (["validation=1.0"], ["validation", "1 excluded", "1.0"]),
    "BatchNorm that stays": (
        ["strategy=feddf", "public=held_out", "strategy.batchnorm=local"],
        ["strategy.batchnorm", "averaged", "local"],
    ),
    "heads for teachers": (["strategy=dense", "strategy.sharing=head"], ["strategy.sharing", "all", "head"]),
    "embeddings for images": (
        ["strategy=fedftg", "generator@strategy.generator=feature_mlp"],
        ["strategy.generator", "image_conv", "embeddings"],
    ),
    "no such average": (["strategy=feddf", "public=held_out", "strategy.average=losses"], ["strategy.average", "probabilities", "losses"]),
    "no patience": (["strategy=feddf", "public=held_out", "strategy.patience=0"], ["strategy.patience", "> 0", "got 0"]),
    "one image a batch": (["strategy=dense", "strategy.batch_size=1"], ["strategy.batch_size", "> 1", "got 1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_any_work(tmp_path, case):
    given, words = CASES[case]
    if given == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    tiny = [option for option in TINY if not any(o.startswith(("strategy=", "partition=", "strategy._target_", "~strategy")) for o in given)
            or not option.startswith(("strategy.", "partition."))]  # fmt: skip
    refused(quick(tmp_path, "engine=local", *tiny, *given, f"output={tmp_path / 'runs'}"), tmp_path / "runs", *words)


@pytest.mark.parametrize(
    "given, words", [(["partition.alpha=1,-1"], ["partition.alpha", "> 0", "-1"]), (["rounds=1,abc"], ["rounds", "abc"])]
)
def test_a_sweep_ends_at_the_first_error(tmp_path, given, words):
    ended = quick(tmp_path, "-m", "engine=local", *TINY, "rounds=1", *given, f"output={tmp_path / 'runs'}")
    assert ended.code == 1 and "Traceback" not in ended.err
    assert all(word in ended.err.strip().splitlines()[-1] for word in words)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_output_that_is_a_file(tmp_path, sweep):
    (tmp_path / "taken").write_text("mine")
    ended = quick(tmp_path, *sweep, "engine=local", *TINY, "rounds=1", f"output={tmp_path / 'taken'}")
    refused(ended, tmp_path, "output", str(tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"


def test_partition_of_another_number_of_clients(tmp_path):
    np.savez(tmp_path / "two.npz", train_0=[0, 1], train_1=[2, 3], test_0=[0], test_1=[1])
    given = [o for o in TINY if not o.startswith("partition")]
    ended = quick(
        tmp_path, "engine=local", *given, "partition=file", f"partition.path={tmp_path / 'two.npz'}", f"output={tmp_path / 'runs'}"
    )
    refused(ended, tmp_path / "runs", "partition.path", "num_clients=6", "two.npz")


def test_damaged_data(tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", 60), ("t10k", 10)):
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + size.to_bytes(4, "big") + bytes(size))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (size, 28, 28)) + bytes(99)
        )
    given = ["engine=local", *TINY, "data=mnist", f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"]
    refused(quick(tmp_path, *given, f"output={tmp_path / 'runs'}"), tmp_path / "runs", "data.", "ubyte")


def test_the_command_itself_says_the_same(tmp_path):
    ended = run(tmp_path, "engine=local", "partition.alpha=0", f"output={tmp_path / 'runs'}")
    refused(ended, tmp_path / "runs", "partition.alpha", "> 0", "got 0")
    assert not list(tmp_path.iterdir()), "nothing is left in the working directory"
