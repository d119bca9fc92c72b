"""Every reply is checked against what was asked for: names, shapes, types, finite values, counts, metrics, and the norm."""

from functools import lru_cache

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedkd.federation import serialization
from fedkd.federation.update_check import unsound_names
from simulations.engine.local_engine import LocalGrid
from tests.small_runs import small_simulation

EXAMPLES = "num-examples"


@lru_cache
def asked(kind: str, *overrides: str):
    """The check of a small run, and for each of two clients the message and its sound reply."""
    simulation, text = small_simulation("strategy=fedavg", "num_clients=3", *overrides)
    strategy, grid = simulation.strategy, LocalGrid(3, text)
    arrays = serialization.to_record(strategy.init_server(strategy.federation.server))
    ask = strategy.configure_train if kind == "train" else strategy.configure_evaluate
    messages = list(ask(1, arrays, ConfigRecord(), grid))
    return strategy.federation.check, list(zip(messages, grid.send_and_receive(messages)))


def changed(message: Message, reply: Message, *, arrays=None, metrics=None, info=None, records=()) -> Message:
    """The reply to ``message`` with other values. A value of None removes the entry."""

    def merged(record, values):
        return {name: value for name, value in {**record, **(values or {})}.items() if value is not None}

    content = RecordDict({name: record for name, record in reply.content.items() if name not in records})
    if serialization.UPDATE in content:
        sound = serialization.to_arrays(serialization.array_record(reply.content, serialization.UPDATE))
        content[serialization.UPDATE] = serialization.to_array_record(merged(sound, arrays))
    if serialization.METRICS in content:
        content[serialization.METRICS] = MetricRecord(merged(reply.content[serialization.METRICS], metrics))
    if serialization.CLIENT_INFO in content:
        content[serialization.CLIENT_INFO] = ConfigRecord(merged(reply.content[serialization.CLIENT_INFO], info))
    return Message(content, reply_to=message)


def spoiled(values: np.ndarray, value: float) -> np.ndarray:
    """The array with one other value."""
    copy = values.copy()
    copy.flat[-1] = value
    return copy


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_sound_replies_are_accepted(kind):
    check, pairs = asked(kind)
    assert pairs and all(check(message, reply) is None and check(message, changed(message, reply)) is None for message, reply in pairs)


@pytest.mark.parametrize(
    ("change", "words", "diverged"),
    [
        (lambda first, a: {"arrays": {first: spoiled(a, np.nan)}}, "finite", True),
        (lambda first, a: {"arrays": {first: spoiled(a, np.inf)}}, "finite", True),
        (lambda first, a: {"metrics": {"loss": float("nan")}}, "loss must be finite", True),
        (lambda first, a: {"arrays": {first: a.astype(np.float16)}}, "float16", False),
        (lambda first, a: {"arrays": {first: a[..., None]}}, "shape", False),
        (lambda first, a: {"arrays": {first: None}}, "none of", False),
        (lambda first, a: {"arrays": {"model:more": a}}, "also ['model:more']", False),
        (lambda first, a: {"metrics": {EXAMPLES: 10**15}}, "num-examples", False),
        (lambda first, a: {"metrics": {EXAMPLES: -5}}, "num-examples", False),
        (lambda first, a: {"metrics": {EXAMPLES: 0}}, "num-examples", False),
        (lambda first, a: {"metrics": {EXAMPLES: 1.5}}, "num-examples", False),
        (lambda first, a: {"metrics": {EXAMPLES: None}}, "num-examples", False),
        (lambda first, a: {"metrics": {"loss": None}}, "metrics", False),
        (lambda first, a: {"metrics": {"more": 1.0}}, "metrics", False),
        (lambda first, a: {"metrics": {"loss": [1.0]}}, "metrics", False),
        (lambda first, a: {"info": {"architecture": "another"}}, "architecture", False),
        (lambda first, a: {"records": [serialization.UPDATE]}, "one update", False),
        (lambda first, a: {"records": [serialization.METRICS]}, "one record of metrics", False),
        (lambda first, a: {"records": [serialization.CLIENT_INFO]}, "architecture", False),
    ],
)
def test_a_training_reply_that_was_not_asked_for_is_refused(change, words, diverged):
    check, ((message, reply), *_) = asked("train")
    first, values = next(iter(serialization.to_arrays(serialization.array_record(reply.content, serialization.UPDATE)).items()))
    refusal = check(message, changed(message, reply, **change(first, values)))
    assert refusal is not None and words in refusal.reason and refusal.diverged == diverged
    assert "\n" not in refusal.reason


@pytest.mark.parametrize(
    "metrics", [{EXAMPLES: 10**9}, {EXAMPLES: -1}, {"num-correct": 10**9}, {"num-correct": -1}, {"num-correct": None}, {EXAMPLES: 2.5}]
)
def test_an_impossible_evaluation_is_refused(metrics):
    check, ((message, reply), *_) = asked("evaluate")
    refusal = check(message, changed(message, reply, metrics=metrics))
    assert refusal is not None and next(iter(metrics)) in refusal.reason


def test_a_client_state_that_is_not_finite_is_refused():
    check, ((message, reply), *_) = asked("train")
    state = serialization.to_array_record({"local:mean": np.array([1.0, np.nan])})
    refusal = check(message, reply, state)
    assert refusal is not None and refusal.diverged and "local:mean" in refusal.reason
    assert check(message, reply, serialization.to_array_record({"local:mean": np.ones(2)})) is None


def test_the_norm_of_a_change_is_bounded():
    check, ((message, reply), *_) = asked("train")
    sent, update = (serialization.to_arrays(serialization.array_record(m.content, name)) for m, name in (
        (message, serialization.BROADCAST), (reply, serialization.UPDATE)))  # fmt: skip
    norm = sum(float(((update[name] - sent[name]).astype(np.float64) ** 2).sum()) for name in update) ** 0.5
    tight, _ = asked("train", f"max_update_norm={norm * 0.999}")
    loose, _ = asked("train", f"max_update_norm={norm * 1.001}")
    assert loose(message, reply) is None
    refusal = tight(message, reply)
    assert refusal is not None and "max_update_norm" in refusal.reason and not refusal.diverged


def test_large_finite_values_are_sound():
    arrays = {"large": np.full(4, 3e38, np.float32), "whole": np.array([2**62]), "empty": np.zeros((0, 3)), "half": np.ones(3, np.float16)}
    assert unsound_names(arrays) == []
    assert unsound_names({**arrays, "bad": np.array([[0.0, -np.inf]])}) == ["bad"]
