"""Networks of any kind as a :class:`~fedkd.models.base.Classifier`: lazy layers are initialized, and plain modules are wrapped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedkd.errors import ConfigError, FedkdError, require
from fedkd.models.base import Classifier
from fedkd.types import INPUTS, Task

NETWORKS = {
    "image": "model=fedgen_cnn or mlp",
    "tokens": "model=fasttext, text_cnn or char_lstm",
    "table": "model=mlp",
    "series": "model=mlp or one of your own",
}
"""Networks for each kind of input, for messages."""

REMEDY = "; subclass fedkd.models.base.Classifier for another network"


def make_classifier(factory: Callable[[Task], nn.Module], task: Task) -> Classifier:
    """The network of ``factory``.

    Lazy layers get the shapes of the task. A plain module is wrapped: its last linear layer becomes the head, and the input of this layer
    is the embedding.

    Args:
        factory: ``task -> module``. A plain module maps images [B, channels, height, width], or other inputs, to logits [B, C].
        task: the classification task.

    Raises:
        ConfigError: the network is no module or reads other inputs, or a plain module does not end with a linear layer.
    """
    inputs = getattr(getattr(factory, "func", factory), "inputs", INPUTS)
    rule = f"must make a network that reads {task.input}, such as {NETWORKS[task.input]}"
    require(task.input in inputs, "_target_", rule, f"one that reads {', '.join(inputs)}")
    network = factory(task)
    require(isinstance(network, nn.Module), "_target_", "must make a torch.nn.Module", network)
    if any(is_lazy(tensor) for tensor in chain(network.parameters(), network.buffers())):
        evaluate(network, task.inputs(2))
    return network if isinstance(network, Classifier) else wrap(network, task)


def evaluate(network: nn.Module, x: Tensor) -> object:
    """The output for ``x`` in eval mode, without gradients. The mode is restored."""
    was_training = network.training
    try:
        with torch.no_grad():
            return network.eval()(x)
    finally:
        network.train(was_training)


def wrap(network: nn.Module, task: Task) -> Classifier:
    """A plain module as one stage and a head. Its last linear layer, which must make the logits, is the head.

    Raises:
        ConfigError: the module returns something else than logits, or other operations follow its last linear layer.
    """
    name = type(network).__name__
    spread = torch.linspace(-1, 1, 2 * prod(task.shape)).view(2, *task.shape)
    x = task.inputs(2) if task.input == "tokens" else spread
    calls: list[tuple[str, nn.Linear]] = []
    layers = {layer: path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    handles = [layer.register_forward_hook(lambda layer, *_: calls.append((layers[layer], layer))) for layer in layers]
    try:
        logits = evaluate(network, x)
    except Exception as error:
        text = f"got {name}, which raises {type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"_target_ must make a network that reads inputs ({task.input}) of shape {list(task.shape)}, {text}") from error
    finally:
        for handle in handles:
            handle.remove()
    kind = type(logits).__name__
    rule = f"must make a network that returns one tensor of logits{REMEDY}"
    require(isinstance(logits, Tensor), "_target_", rule, f"{name}, which returns a {kind}")
    assert isinstance(logits, Tensor)
    shape, expected = tuple(logits.shape), (2, *task.positions, task.num_classes)
    require(shape == expected, "_target_", f"must make a network with logits of shape {expected} for two examples", f"{name} with {shape}")
    rule = f"must make a network that ends with a linear layer, whose input is the embedding{REMEDY}"
    require(bool(calls) and calls[-1][0] != "", "_target_", rule, name)
    path, head = calls[-1]
    network.set_submodule(path, nn.Identity())
    try:
        z = evaluate(network, x)
        ends = isinstance(z, Tensor) and z.shape == (2, *task.positions, head.in_features) and torch.equal(head(z), logits)
    except Exception:
        ends = False
    require(ends, "_target_", rule, name)
    return Classifier(task, [network], nn.Identity(), head, head.in_features)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(error).strip() or "no message").splitlines()[0]


@contextmanager
def in_one_line(rule: str, where: str = "") -> Iterator[None]:
    """A context in which an exception of a network or a loss becomes one line. Divergence is left to the training.

    Args:
        rule: the key, the rule and the value.
        where: stands after the name of the exception.

    Raises:
        ConfigError: the block raised an exception.
    """
    try:
        yield
    except FloatingPointError:
        return
    except FedkdError:
        raise
    except Exception as error:
        raise ConfigError(f"{rule}, which raises {type(error).__name__}{where}: {first_line(error)}") from error
