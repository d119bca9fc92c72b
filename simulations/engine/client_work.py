"""The ServerApp and the ClientApp, free of configuration: the same two run in every engine and under ``flwr run``.

A ClientApp is asked for one client, or by a grid of :mod:`simulations.engine.base` for a cohort: then a record ``cohort`` names the
clients and carries the configuration, each client's memory travels in a record of its own, and the answers come back the
same way.
"""

import os
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import islice

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedkd.errors import ConfigError
from fedkd.federation import serialization
from fedkd.federation.client import Client
from fedkd.metrics.accuracy import Score
from fedkd.strategy import Strategy
from fedkd.types import State, Update
from simulations.process import configure_process
from simulations.setup.simulation import Simulation, build_simulation, simulation_from_overrides
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx

CLIENT_RAISED, WORKER_LOST, TIMED_OUT = 2, 0, 3
"""Codes of error replies; the first two are Flower's own."""


Owns = list[ArrayRecord | None]

Work = Callable[[Simulation, RecordDict, State | None, Owns, list[int]], list[RecordDict]]


def answer(message: Message, context: Context, work: Work) -> Message:
    """One client's answer as it is, or a cohort's answers with the client's number before each record's name."""
    configure_process()
    content = message.content
    if "cohort" not in content:
        home, own = simulation_from_overrides(str(context.run_config.get("overrides", ""))), context.state.get(serialization.CLIENT_STATE)
        (reply,) = work(home, content, broadcast(home, content), [own], [int(context.node_config["partition-id"])])
        if serialization.CLIENT_STATE in reply:
            context.state[serialization.CLIENT_STATE] = reply.pop(serialization.CLIENT_STATE)
        return Message(reply, reply_to=message)
    cohort = content["cohort"]
    owns = {client: content[name] for client in cohort["clients"] if (name := f"{client}/{serialization.CLIENT_STATE}") in content}
    found = answers(work, content, cohort, owns)
    return Message(
        RecordDict({f"{client}/{name}": record for client, records in found.items() for name, record in records.items()}), reply_to=message
    )


def answers(work: Work, content: RecordDict, cohort: ConfigRecord, owns: Mapping[int, ArrayRecord]) -> dict[int, RecordDict]:
    """A cohort's answers, chunk by chunk: what the ClientApp replies with, and the engines of this package ask for.

    Args:
        work: :func:`train_chunk` or :func:`evaluate_chunk`.
        content: what all clients share.
        cohort: the clients, the lengths of their chunks, and the configuration as YAML.
        owns: the memories of those that have one.
    """
    configure_process()
    home, found = build_simulation(str(cohort["config"])), {}
    shared, clients = broadcast(home, content), iter(cohort["clients"])
    for chunk in [list(islice(clients, size)) for size in cohort["chunks"]]:
        try:
            replies = work(home, content, shared, [owns.get(client) for client in chunk], chunk)
        except Exception:  # noqa: BLE001 - whatever a client's code raises is its chunk's failure, and the run's policy decides
            failed = ConfigRecord({"code": CLIENT_RAISED, "reason": traceback.format_exc()})
            replies = [RecordDict({"error": failed})] * len(chunk)
        found.update(zip(chunk, replies))
    return found


def broadcast(home: Simulation, content: RecordDict) -> State | None:
    """What every client of a message shares, decoded once; None where the message is not in fedkd's dialect."""
    return serialization.from_record(content[serialization.BROADCAST], home.config.device) if serialization.BROADCAST in content else None


def train_chunk(home: Simulation, content: RecordDict, shared: State | None, owns: Owns, clients: list[int]) -> list[RecordDict]:
    """The training of clients that train at once: of each its update, its metrics, its memory."""
    server_round = int(content["config"]["server-round"])
    sites = [home.client(client, server_round) for client in clients]
    if shared is None:
        return [train_foreign(home, content, site, server_round) for site in sites]
    memories = [remembered(own, site.device) for own, site in zip(owns, sites)]
    begin = time.perf_counter()
    if len(sites) == 1:
        trained = [home.strategy.train(sites[0], shared, memories[0], server_round)]
    else:
        trained = home.strategy.train_clients(sites, shared, memories, server_round)
    seconds = (time.perf_counter() - begin) / len(sites)
    return [records(update, kept, seconds) for update, kept in trained]


def train_foreign(home: Simulation, content: RecordDict, site: Client, server_round: int) -> RecordDict:
    """One client's training in the dialect of Flower's own strategies."""
    name, shared, half = foreign(home, content)
    update, _ = half.train(site, shared, None, server_round)
    metrics = MetricRecord({"num-examples": update.num_examples, **update.metrics})
    return RecordDict({name: ArrayRecord(update.state["model"]), serialization.METRICS: metrics})


def records(update: Update, kept: State, seconds: float) -> RecordDict:
    """A client's answer in records; ``seconds`` is its share of its chunk's training time."""
    return RecordDict({
        serialization.UPDATE: serialization.to_record(update.state),
        serialization.METRICS: MetricRecord({"num-examples": update.num_examples, **update.metrics}),
        serialization.CLIENT_INFO: ConfigRecord({"architecture": update.architecture, "seconds": seconds, "worker": os.getpid()}),
        serialization.CLIENT_STATE: serialization.to_record(kept),
    })  # fmt: skip


def evaluate_chunk(home: Simulation, content: RecordDict, shared: State | None, owns: Owns, clients: list[int]) -> list[RecordDict]:
    """The scores of clients on their own test shards, one after the other."""
    server_round, half, answers = int(content["config"]["server-round"]), home.strategy, []
    if shared is None:
        _, shared, half = foreign(home, content)
    batch_size = home.config.evaluation.batch_size
    for own, client in zip(owns, clients):
        site = home.client(client, server_round, testing=True)
        score = half.evaluate(site, shared, remembered(own, site.device), batch_size)
        answers.append(RecordDict({serialization.METRICS: MetricRecord(scores(score))}))
    return answers


def remembered(own: ArrayRecord | None, device: torch.device) -> State | None:
    """A client's memory as it travelled; None before its first round."""
    return None if own is None else serialization.from_record(own, device)


def scores(score: Score) -> dict[str, int | float]:
    """A score as Flower's strategies expect it: the loss is a mean, ``num-examples`` its weight."""
    total = int(score.total.sum())
    return {
        "num-examples": total,
        "num-correct": int(score.correct.sum()),
        "loss": score.loss / max(total, 1),
        "accuracy": score.accuracy if total else 0.0,
    }


def foreign(home: Simulation, content: RecordDict) -> tuple[str, State, Strategy]:
    """The dialect of Flower's own strategies: one ArrayRecord that is the whole model. The client's half is FedAvg's, or
    FedProx's where the server asks for its proximal term."""
    (name, record), *rest = content.array_records.items()
    if rest:
        raise ConfigError(f"a message of a strategy that is not fedkd's must carry one ArrayRecord, got {[name, *dict(rest)]}")
    switches = {"batchnorm": "averaged", "aggregation": "examples", "lr_schedule": "constant", "lr_decay": 1.0, "shared_layers": "all"}
    mu = content["config"].get("proximal-mu")
    half = FedAvg(**switches) if mu is None else FedProx(**switches, mu=float(mu), weight_decay=0.0)
    return name, {"model": home.receive(record)}, half
