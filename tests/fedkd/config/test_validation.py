"""Wrong configurations are refused before any work, in one line that names the key, the rule, the value, and the remedy."""

import numpy as np
import pytest
import torch

from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.processes import TINY, assert_refused, quick

CASES = {
    "unknown key": (["roundz=1"], ["roundz", "did you mean 'rounds'?"]),
    "unknown key appended": (["+roundz=1"], ["roundz must be a key of", "did you mean 'rounds'?"]),
    "unknown key of a part": (["partition.alhpa=1"], ["partition.alhpa", "did you mean 'partition.alpha'?"]),
    "unknown parameter of a part": (
        ["+partition.alhpa=1"],
        ["partition.alhpa must be a parameter of Dirichlet, got 1", "did you mean 'alpha'?"],
    ),
    "a network of millions of layers": (["model=resnet8", "model.depth=2147483648"], ["model.depth", "1202", "got 2147483648"]),
    "noise beyond the memory": (["public_data=noise", "public_data.size=1000000000000"], ["public_data.size", "10 million"]),
    "interpolation of nothing": (["rounds=${nowhere}"], ["rounds must hold an interpolation that can be resolved", "nowhere"]),
    "interpolation of nothing in modules": (["++allow_targets=${nowhere}"], ["allow_targets must hold an interpolation", "nowhere"]),
    "interpolation of nothing in a list": (["searchpath=[${nowhere}]"], ["searchpath", "nowhere"]),
    "interpolation of nothing in a label": (["+strategy._label_=${nowhere}"], ["strategy._label_ must hold an interpolation", "nowhere"]),
    "word for a whole number": (["rounds=abc"], ["rounds", "abc", "Integer"]),
    "fraction for a whole number": (["rounds=2.5"], ["rounds", "2.5"]),
    "null for a whole number": (["rounds=null"], ["rounds"]),
    "no value": (["rounds"], ["rounds"]),
    "word in a part": (["partition.alpha=abc"], ["partition.alpha", "abc", "number"]),
    "number in quotes": (["optimizer.lr='1e-3'"], ["optimizer.lr must be a valid number, got '1e-3'; without quotes it is a number"]),
    "word in a strategy": (["strategy=fedprox", "strategy.mu=abc"], ["strategy.mu", "abc", "number"]),
    "word in a generator": (["strategy.generator.hidden=abc"], ["strategy.generator.hidden", "abc"]),
    "alpha 0": (["partition.alpha=0"], ["partition.alpha", "> 0", "got 0"]),
    "alpha -1": (["partition.alpha=-1"], ["partition.alpha", "> 0", "-1"]),
    "more clients per round than clients": (["clients_per_round=7"], ["clients_per_round", "num_clients", "6", "7"]),
    "more clients than examples": (["num_clients=5000"], ["num_clients", "5000"]),
    "too few examples a client": (["partition.min_size=999"], ["partition.min_size", "999"]),
    "steps and epochs": (["local_epochs=1"], ["local_steps", "local_epochs", "not both"]),
    "neither steps nor epochs": (["local_steps=null"], ["local_steps", "local_epochs"]),
    "no epochs": (["local_steps=null", "local_epochs=0"], ["local_epochs", ">= 1", "0"]),
    "no clients": (["num_clients=0"], ["num_clients must be >= 1, got 0"]),
    "no rounds": (["rounds=0"], ["rounds", ">= 1", "0"]),
    "no rounds between diagnostics": (["generator_diagnostics_every=0"], ["generator_diagnostics_every", ">= 1", "0"]),
    "a word for a truth value": (["drop_last=perhaps"], ["drop_last", "perhaps"]),
    "more clients tested than there are": (["evaluation.clients=7"], ["evaluation.clients", "1..num_clients (6)", "null", "7"]),
    "no client tested": (["evaluation.clients=0"], ["evaluation.clients", "1..num_clients (6)", "0"]),
    "no evaluation": (["evaluation.every=0"], ["evaluation.every", ">= 1", "0"]),
    "missing data": (["data=mnist", "data.root=/nonexistent"], ["data.root", "/nonexistent"]),
    "missing partition": (["partition=from_file", "partition.path=/nonexistent.npz"], ["partition.path", "/nonexistent.npz"]),
    "missing partition to subsample": (
        ["partition=subsample", "partition@partition.base=from_file", "partition.base.path=/nonexistent.npz"],
        ["partition.base.path", "/nonexistent.npz"],
    ),
    "alpha -1 of a partition to subsample": (["partition=subsample", "partition.base.alpha=-1"], ["partition.base.alpha", "> 0", "-1"]),
    "word in a partition to subsample": (["partition=subsample", "partition.base.alpha=abc"], ["partition.base.alpha", "abc", "number"]),
    "no such device": (["device=cuda"], ["device", "cuda"]),
    "no device at all": (["device=abacus"], ["device", "abacus", "cuda"]),
    "no such strategy": (["strategy=nope"], ["strategy", "nope", "fedgen"]),
    "no such module": (["strategy._target_=nope.Nope"], ["strategy._target_", "nope.Nope"]),
    "no such class": (["strategy._target_=strategies.fedavg.Nope"], ["strategy._target_", "Nope"]),
    "no class": (["strategy._target_=strategies.fedavg"], ["strategy._target_", "strategies.fedavg"]),
    "no strategy": (["~strategy", "+strategy._target_=fedkd.partition.iid.IID"], ["strategy._target_", "IID"]),
    "missing parameter": (["~strategy.alpha"], ["strategy", "FedGen", "alpha"]),
    "no workers": (["engine=ray", "engine.workers=0"], ["engine.workers", "> 0", "0"]),
    "no clients per vmap": (["clients_per_vmap=0"], ["clients_per_vmap", ">= 1", "auto", "0"]),
    "a word for clients per vmap": (["clients_per_vmap=many"], ["clients_per_vmap", "auto", "many"]),
    "a word for compile": (["compile=perhaps"], ["compile", "perhaps"]),
    "half precision": (["precision=float16"], ["precision", "float32", "float64", "float16"]),
    "negative mu": (["strategy=fedprox", "strategy.mu=-1"], ["strategy.mu", ">= 0", "-1"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer", "lr", "-1"]),
    "negative learning rate of the generator": (["strategy.generator_optimizer.lr=-1"], ["strategy.generator_optimizer", "lr", "-1"]),
    "no such failure policy": (["on_client_failure=ignore"], ["on_client_failure", "retry", "ignore"]),
    "rotation above 180 degrees": (["shift.rotation=181"], ["shift.rotation", "0..180", "181"]),
    "label noise above 1": (["shift=label_noise", "shift.label_noise=1.5"], ["shift.label_noise", "0..1", "1.5"]),
    "negative label noise": (["shift.label_noise=-0.1"], ["shift.label_noise", "0..1", "-0.1"]),
    "no such kind of label noise": (["shift.label_noise_kind=odd"], ["shift.label_noise_kind", "symmetric", "pair", "odd"]),
    "no domains": (["shift=domains", "shift.domains=[]"], ["shift.domains", "one or more angles", "null"]),
    "infinite noise": (["shift.noise=inf"], ["shift.noise", "finite", "inf"]),
    "no such per_client": (["shift.per_client=many"], ["shift.per_client", "random", "same", "many"]),
    "timeout 0": (["timeout=0"], ["timeout", "> 0"]),
    "no public data": (["strategy=feddf"], ["public_data", "feddf", "held_out", "noise"]),
    "heterogeneous models where models are averaged": (
        ["strategy=fedavg", "model=heterogeneous"],
        ["model", "fedavg", "cnn_wide", "fedmd", "shared_layers=head"],
    ),
    "more classes than there are": (["partition=classes_per_client", "partition.per_client=11"], ["partition.per_client", "10", "11"]),
    "everything held out": (["validation_fraction=1"], ["validation_fraction", "0..1"]),
    "validation without held-out examples": (["evaluation.split=validation"], ["validation_fraction", "> 0", "0"]),
    "no such split": (["evaluation.split=train"], ["evaluation.split", "validation", "train"]),
    "a generator of images for embeddings": (["generator@strategy.generator=image_conv"], ["strategy.generator", "embeddings", "images"]),
    "a generator of embeddings for images": (
        ["strategy=dense", "generator@strategy.generator=feature_mlp", "~strategy.generator.conditional"],
        ["strategy.generator", "images", "embeddings"],
    ),
    "DENSE with local BatchNorm statistics": (["strategy=dense", "strategy.batchnorm=local"], ["strategy.batchnorm", "averaged", "local"]),
    "no such shared layers": (["strategy.shared_layers=body"], ["strategy.shared_layers", "head", "body"]),
    "no layers of a name": (
        ["strategy=fedavg", "strategy.shared_layers=trunk.*"],
        ["strategy.shared_layers", "layers of the network", "head", "trunk.*"],
    ),
    "missing file of tuned parameters": (["tuned_params=/nonexistent.csv"], ["tuned_params", "/nonexistent.csv"]),
    "no such client sampling": (["systems.client_sampling=perhaps"], ["systems.client_sampling", "proportional", "perhaps"]),
    "no trace": (["systems.client_sampling=trace"], ["systems.trace", "columns round and client"]),
    "a trace that is not used": (["systems.trace=x.csv"], ["systems.trace", "client_sampling=trace", "x.csv"]),
    "missing trace": (["systems.client_sampling=trace", "systems.trace=/nonexistent.csv"], ["systems.trace", "CSV", "/nonexistent.csv"]),
    "dropout rate 1": (["systems.dropout_rate=1"], ["systems.dropout_rate", "0..1", "got 1"]),
    "stragglers without a step": (["systems.straggler_min_fraction=0"], ["systems.straggler_min_fraction", "(0, 1]", "got 0"]),
    "deadline 0": (["systems.deadline=0"], ["systems.deadline", "> 0", "got 0"]),
    "no examples per second": (["systems.examples_per_second=0"], ["systems.examples_per_second", "> 0", "got 0"]),
    "negative sigma": (["systems.bandwidth_sigma=-1"], ["systems.bandwidth_sigma", "0..10", "-1"]),
    "too many new clients": (["systems.num_new_clients=3"], ["systems.num_new_clients", "clients_per_round (4)", "at most 2", "got 3"]),
    "new clients after the last round": (
        ["systems.num_new_clients=1", "systems.new_clients_join_round=101"],
        ["systems.new_clients_join_round", "rounds (100)", "101"],
    ),
    "no public share": (
        ["strategy=fedmd", "public_data=held_out", "public_data.share=0"],
        ["public_data.share", "both excluded", "got 0"],
    ),
    "all examples public": (
        ["strategy=fedmd", "public_data=held_out", "public_data.share=1.0"],
        ["public_data.share", "both excluded", "got 1.0"],
    ),
    "too small a public share": (
        ["strategy=feddf", "public_data=held_out", "public_data.share=1e-5"],
        ["public_data.share", "larger share", "1e-05"],
    ),
    "no noise images": (["strategy=feddf", "public_data=noise", "public_data.size=0"], ["public_data.size", "> 0", "got 0"]),
    "negative exponent of noise images": (
        ["strategy=feddf", "public_data=noise", "public_data.exponent=-1"],
        ["public_data.exponent", ">= 0", "-1"],
    ),
    "missing public data": (
        ["strategy=feddf", "public_data=other_dataset", "public_data.data.root=/nonexistent"],
        ["public_data.data.root", "/nonexistent"],
    ),
    "FedDF with local BatchNorm statistics": (
        ["strategy=feddf", "public_data=held_out", "strategy.batchnorm=local"],
        ["strategy.batchnorm", "averaged", "local"],
    ),
    "DENSE with shared heads": (["strategy=dense", "strategy.shared_layers=head"], ["strategy.shared_layers", "all", "head"]),
    "FedFTG with a generator of embeddings": (
        ["strategy=fedftg", "generator@strategy.generator=feature_mlp"],
        ["strategy.generator", "image_conv", "embeddings"],
    ),
    "no such average of the teachers": (
        ["strategy=feddf", "public_data=held_out", "strategy.average=losses"],
        ["strategy.average", "probabilities", "losses"],
    ),
    "no patience": (["strategy=feddf", "public_data=held_out", "strategy.patience=0"], ["strategy.patience", "> 0", "got 0"]),
    "one image per batch": (["strategy=dense", "strategy.batch_size=1"], ["strategy.batch_size", "> 1", "got 1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_configuration_is_refused_before_any_work(tmp_path, case):
    overrides, words = CASES[case]
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    replaced = any(word.startswith(("strategy=", "partition=", "strategy._target_", "~strategy")) for word in overrides)
    tiny = [word for word in TINY if not (replaced and word.startswith(("strategy.", "partition.")))]
    with pytest.raises(ConfigError) as raised:
        run_federation(compose(["engine=local", *tiny, *overrides, f"output={tmp_path / 'runs'}"]))
    message = str(raised.value)
    assert "\n" not in message and all(word in message for word in words), (words, message)
    assert not [*tmp_path.rglob("metrics.csv"), *tmp_path.rglob("checkpoint*")]


@pytest.mark.parametrize(
    "overrides, words", [(["partition.alpha=1,-1"], ["partition.alpha", "> 0", "-1"]), (["rounds=1,abc"], ["rounds", "abc"])]
)
def test_a_sweep_ends_at_the_first_error(tmp_path, overrides, words):
    ended = quick(tmp_path, "-m", "engine=local", *TINY, "rounds=1", *overrides, f"output={tmp_path / 'runs'}")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(word in ended.err.strip().splitlines()[-1] for word in words)


@pytest.mark.parametrize(("sweep", "code"), [([], 2), (["-m"], 1)])
def test_an_output_folder_that_is_a_file_is_refused(tmp_path, sweep, code):
    (tmp_path / "taken").write_text("mine")
    ended = quick(tmp_path, *sweep, "engine=local", *TINY, "rounds=1", f"output={tmp_path / 'taken'}")
    assert_refused(ended, tmp_path, "output", str(tmp_path / "taken"), code=code)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_partition_for_another_number_of_clients_is_refused(tmp_path):
    np.savez(tmp_path / "two.npz", train_0=[0, 1], train_1=[2, 3], test_0=[0], test_1=[1])
    given = [o for o in TINY if not o.startswith("partition")]
    ended = quick(
        tmp_path, "engine=local", *given, "partition=from_file", f"partition.path={tmp_path / 'two.npz'}", f"output={tmp_path / 'runs'}"
    )
    assert_refused(ended, tmp_path / "runs", "partition.path", "num_clients=6", "two.npz")


def test_damaged_data_are_refused(tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", 60), ("t10k", 10)):
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + size.to_bytes(4, "big") + bytes(size))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (size, 28, 28)) + bytes(99)
        )
    given = ["engine=local", *TINY, "data=mnist", f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"]
    assert_refused(quick(tmp_path, *given, f"output={tmp_path / 'runs'}"), tmp_path / "runs", "data.", "ubyte")


def test_the_command_prints_the_same_error(tmp_path):
    ended = quick(tmp_path, "engine=local", "partition.alpha=0", f"output={tmp_path / 'runs'}")
    assert_refused(ended, tmp_path / "runs", "partition.alpha", "> 0", "got 0")
    assert not list(tmp_path.iterdir()), "the working directory stays empty"
