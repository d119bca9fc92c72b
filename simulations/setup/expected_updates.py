"""What each client is asked to send: the form of an update, found by one local step of the same client on the server.

The form follows from strategy and network, so no strategy has to declare it. The step uses the client's own seed and changes no draw of
the run.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from flwr.app import Message

from fedkd.federation import serialization
from fedkd.federation.client import Client
from fedkd.federation.update_check import Arrays, ExpectedUpdate, form_of, unsound_names
from fedkd.strategy import Strategy
from fedkd.training.loop import Execution
from fedkd.types import Tensors


def expected_update(strategy: Strategy, make_client: Callable[[int, int], Client], message: Message) -> ExpectedUpdate | None:
    """The update that the client of a training message sends.

    Args:
        strategy: the strategy.
        make_client: ``(number, server round) -> client``.
        message: the message of the server.

    Returns:
        The form of the update. None if the local step fails on the server too; the client itself then reports why.
    """
    server_round = serialization.server_round_of(message.content)
    client = make_client(message.metadata.dst_node_id, server_round)
    client = replace(client, num_steps=1, execution=Execution(autocast=client.execution.autocast))
    broadcast = serialization.from_record(serialization.array_record(message.content, serialization.BROADCAST), client.device)
    try:
        with (client.seed / "form").globally():
            update, client_state = strategy.train(client, broadcast, None, server_round)
    except Exception:
        return None
    sent, kept = (serialization.to_arrays(serialization.to_record(state)) for state in (update.state, client_state))
    decompress = None if type(strategy).decompress is Strategy.decompress else partial(decompressed, strategy)
    arrays = {name: form_of(values) for name, values in (sent if decompress is None else decompress(sent)).items()}
    infinite = frozenset(unsound_names({**sent, **kept}))
    return ExpectedUpdate(update.architecture, arrays, frozenset(update.metrics), infinite, decompress)


def decompressed(strategy: Strategy, arrays: Arrays) -> Arrays:
    """The arrays of a message with the model that its part ``model`` stands for."""
    state = serialization.unflatten({name: torch.from_numpy(np.array(values)) for name, values in arrays.items()})
    state["model"] = strategy.decompress(state["model"])
    return {name: value.numpy() for name, value in serialization.flatten(state).items()}


def expected_model(initial: Tensors, message: Message) -> ExpectedUpdate:
    """What every client of one of Flower's strategies sends: the model, and the mean of its loss.

    Args:
        initial: the tensors of the model.
        message: the message of the server, which does not matter.
    """
    arrays = serialization.to_arrays(serialization.to_record({"": initial}))
    arrays = {name.removeprefix(":"): values for name, values in arrays.items()}
    forms = {name: form_of(values) for name, values in arrays.items()}
    return ExpectedUpdate(None, forms, frozenset({"loss"}), frozenset(unsound_names(arrays)))
