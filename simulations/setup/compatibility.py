"""What fits together and what does not: refused at the start, before anything is trained."""

from collections.abc import Sequence

from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig

from fedkd.config.build import call_part
from fedkd.errors import ConfigError, require
from fedkd.federation.client import batchnorm_statistics
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices, Systems, make_devices
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from simulations.setup.clients import ClientData, Network


def make_run_devices(config: DictConfig, strategy: FlowerStrategy, systems: Systems, num_examples: Sequence[int], seed: Seed) -> Devices:
    """The clients' devices.

    Raises:
        ConfigError: the rules do not suit the run, or its strategy, where that is Flower's own and chooses clients itself.
    """
    if not isinstance(strategy, Strategy):
        rule = f"must be {{}} with {type(strategy).__name__}, which chooses clients itself and waits for all (with fedkd's strategies it may differ)"
        for name in ("client_sampling", "dropout_rate", "straggler_rate", "deadline", "num_new_clients"):
            given, alike = getattr(systems, name), getattr(HOMOGENEOUS, name)
            require(given == alike, f"systems.{name}", rule.format("null" if alike is None else alike), given)
    batches = [min(config.batch_size, examples) for examples in num_examples]
    steps = [config.local_steps or config.local_epochs * (examples // batch) for examples, batch in zip(num_examples, batches)]
    return call_part("systems", make_devices, systems, seed, list(zip(batches, steps)), num_examples, config.clients_per_round, config.rounds)


def check_compatibility(config: DictConfig, strategy: FlowerStrategy, networks: Sequence[Network], held: ClientData) -> None:
    """Refuse what would fail later, or mean nothing.

    Raises:
        ConfigError: naming the key, the rule, the value and what to do.
    """
    name = config.choices.get("strategy", config.strategy["_target_"])
    enough_examples([len(index) for index in held.partition.train], networks)
    if isinstance(strategy, Strategy) and strategy.needs_public_data and held.public_data is None:
        raise ConfigError(
            f"public_data must be a public data set for strategy {name}, which distills on one: public_data=held_out, client_images, other_dataset or noise, got none"
        )
    can = strategy.model_heterogeneity if isinstance(strategy, Strategy) else "none"
    check_model_heterogeneity(name, can, {network.name: network.model.embedding_size for network in networks})


def enough_examples(sizes: Sequence[int], networks: Sequence[Network]) -> None:
    """Every client has an example, and two where its network has BatchNorm."""
    for client, (size, network) in enumerate(zip(sizes, networks)):
        rule = "must leave no client without training examples (fewer clients, or a larger min_size)"
        require(size > 0, "partition", rule, f"client {client} with none")
        rule = "must leave every client two training examples, as BatchNorm needs them (min_size=2, fewer clients, less held out, or model=mlp)"
        require(size > 1 or not batchnorm_statistics(network.model), "partition", rule, f"client {client} with 1")


def check_model_heterogeneity(name: str, can: str, sizes: dict[str, int]) -> None:
    """Clients of unlike networks, by the size of their embeddings, have a strategy that can do with them."""
    if len(sizes) == 1:
        return
    if can == "none":
        from simulations.setup.strategy_table import strategies_with_model_heterogeneity

        as_they_are, with_heads = strategies_with_model_heterogeneity()
        advice = " or share heads alone (strategy.shared_layers=head)," if name in with_heads else ""
        raise ConfigError(
            f"model must be one network for all clients with strategy {name}, which averages whole models, got {', '.join(sizes)}; take one "
            f"network,{advice} or a strategy that can: {', '.join(as_they_are)}; with strategy.shared_layers=head also {', '.join(with_heads)}"
        )
    if can == "same_embedding_size" and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{one} {size}" for one, size in sizes.items())
        raise ConfigError(f"model.networks must have embeddings of one size, as strategy {name} shares what reads them, got {shown}")
