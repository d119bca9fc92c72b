"""A recorded step gives the bits of its Python function, or is not used."""

from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from torch import nn

from fedkd.federation import serialization
from fedkd.training import loop, step_program
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.training.loop import Execution, cached_program
from fedkd.training.step_program import Program, tree_leaves
from fedkd.types import Examples
from simulations.engine.local_engine import LocalGrid
from simulations.setup.simulation import Simulation
from tests.small_runs import LOCAL_TRAININGS, TRAININGS, same_tensors, small_run, small_simulation, strategy_overrides

ALWAYS, NEVER = 0, 10**9


@pytest.fixture(autouse=True)
def _empty_cache_of_programs(monkeypatch):
    """Every test begins with an empty cache of programs, and leaves no program."""
    monkeypatch.setattr(loop, "_programs", type(loop._programs)())


def graphs() -> list:
    """The graphs of all cached programs; None where a step runs its Python function."""
    return [graph for _, kept in loop._programs.values() for graph in kept._graphs.values()]


# ------------------------------------------------------------------------------------------------------- whole federations
def federation(*overrides: str) -> tuple[dict, dict, dict]:
    """State, client states and metrics after the last round, computed with new programs."""
    loop._programs.clear()
    simulation, text = small_simulation("rounds=2", *overrides)
    grid = LocalGrid(simulation.config.num_clients, text)
    result = simulation.strategy.start(grid, num_rounds=simulation.config.rounds)
    client_states = {client: serialization.from_record(record) for client, record in sorted(grid.client_states.items())}
    return (
        serialization.from_record(result.arrays),
        client_states,
        {number: dict(record) for number, record in result.train_metrics_clientapp.items()},
    )


def assert_replay_is_exact(monkeypatch, *overrides: str) -> None:
    """A federation with replayed steps equals, bit for bit, one whose steps run their Python functions."""
    monkeypatch.setattr(step_program, "REPLAY_AFTER", NEVER)
    state, client_states, metrics = federation(*overrides)
    assert graphs() == [], "nothing was recorded"
    monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    replayed = federation(*overrides)
    assert graphs() and None not in graphs(), "all steps were recorded"
    assert same_tensors(replayed[0], state) and replayed[2] == metrics
    assert replayed[1].keys() == client_states.keys() and all(
        same_tensors(replayed[1][client], memory) for client, memory in client_states.items()
    )


CLIENTS_PER_VMAP = {name: 3 if name in LOCAL_TRAININGS else 1 for name in TRAININGS}
"""A loss that is recorded for three clients at a time can be recorded for one, which those of :data:`ALONE` show."""

ALONE = ("fedavg", "fedgen", "fedkd", "fedrep", "scaffold")
"""FedAvg; draws and an auxiliary network; two networks; two phases; control variates."""


@pytest.mark.parametrize(("name", "clients_per_vmap"), [*CLIENTS_PER_VMAP.items(), *((name, 1) for name in ALONE)])
def test_a_replayed_federation_has_the_same_bits(monkeypatch, name, clients_per_vmap):
    assert_replay_is_exact(monkeypatch, f"strategy={name}", *strategy_overrides(name), f"clients_per_vmap={clients_per_vmap}")


def test_replay_is_exact_where_clients_are_removed_and_optimizers_have_state(monkeypatch):
    """Clients with fewer steps are removed. Another number of clients is another kind of step."""
    assert_replay_is_exact(
        monkeypatch,
        "strategy=fedprox",
        "clients_per_vmap=3",
        "local_steps=null",
        "local_epochs=1",
        "drop_last=true",
        "optimizer.momentum=0.9",
        "model=mlp",
    )
    assert len(graphs()) > 1


@pytest.mark.parametrize("clients_per_vmap", [1, 3])
def test_replay_is_exact_in_bfloat16(monkeypatch, clients_per_vmap):
    assert_replay_is_exact(
        monkeypatch, "strategy=fedgen", *strategy_overrides("fedgen"), f"clients_per_vmap={clients_per_vmap}", "precision=bfloat16"
    )


def test_a_graph_is_recorded_after_many_steps_of_a_kind(monkeypatch):
    """Three clients with four steps each, and one step that finds the form of updates: the second training reaches the number of steps."""
    monkeypatch.setattr(step_program, "REPLAY_AFTER", 10)
    federation("strategy=fedavg", "rounds=1", "clients_per_round=2")
    assert graphs() == []
    federation("strategy=fedavg", "rounds=1", "clients_per_round=3")
    assert len(graphs()) == 1 and None not in graphs()


# ------------------------------------------------------------------------------------------------------------ one program
def step(fixed, changing):
    """A nested result with None, buffers updated in place, and an input that is returned unchanged."""
    weight = fixed["tensors"]["weight"].detach().requires_grad_()
    fixed["tensors"]["mean"].mul_(0.9).add_(changing["x"].mean(0), alpha=0.1)
    fixed["tensors"]["count"].add_(1)
    loss = ((changing["x"] - fixed["tensors"]["mean"]) @ weight).square().mean()
    gradients = (None, *torch.autograd.grad(loss, [weight]))
    return {
        "loss": loss.detach(),
        "nested": {"gradients": gradients, "none": None},
        "y": changing["y"],
        "count": fixed["tensors"]["count"] * 2,
    }


def fixed_inputs() -> dict:
    """Inputs that are the same in all steps."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 2, generator=random).requires_grad_()
    return {"tensors": {"weight": weight, "mean": torch.zeros(4), "count": torch.tensor(0)}, "none": None}


def step_inputs(number: int, size: int = 3) -> list[dict]:
    """Inputs of several steps."""
    random = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(size, 4, generator=random), "y": torch.arange(3)} for _ in range(number)]


def train_on(function, steps: list[dict], *, after: int, monkeypatch) -> tuple[list, dict, Program]:
    """All results, the fixed inputs at the end, and the program."""
    monkeypatch.setattr(step_program, "REPLAY_AFTER", after)
    program, fixed = Program(function), fixed_inputs()
    return list(program.steps(fixed, steps)), fixed, program


def equal_trees(left, right) -> bool:
    """Whether trees have the same form and bits."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(equal_trees(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and len(left) == len(right) and all(map(equal_trees, left, right))
    return left is right is None or torch.equal(left, right)


def test_a_replayed_step_gives_the_same_results_and_updates_the_same_buffers(monkeypatch):
    direct, before, _ = train_on(step, step_inputs(5), after=NEVER, monkeypatch=monkeypatch)
    replayed, after, program = train_on(step, step_inputs(5), after=ALWAYS, monkeypatch=monkeypatch)
    (graph,) = program._graphs.values()
    assert graph is not None and equal_trees(replayed, direct) and equal_trees(after, before)
    assert after["tensors"]["count"] == 5, "recording a step is not one"


def test_replayed_results_have_no_autograd_graph(monkeypatch):
    def attached(fixed, changing):
        return {"loss": (fixed["tensors"]["weight"] * changing["x"].sum()).sum()}

    ((direct,), _, _), ((replayed,), _, _) = (train_on(attached, step_inputs(1), after=n, monkeypatch=monkeypatch) for n in (NEVER, ALWAYS))
    assert direct["loss"].grad_fn is not None
    assert replayed["loss"].grad_fn is None and not replayed["loss"].requires_grad and torch.equal(direct["loss"], replayed["loss"])


def test_no_steps_give_no_results_and_other_shapes_are_another_kind(monkeypatch):
    monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    program, fixed = Program(step), fixed_inputs()
    assert list(program.steps(fixed, [])) == [] and program._graphs == {}
    sizes = [len(list(tree_leaves(result))) for size in (3, 2, 3) for result in program.steps(fixed, step_inputs(2, size))]
    assert sizes == [4] * 6 and len(program._graphs) == 2 and fixed["tensors"]["count"] == 6


def test_names_in_another_order_are_another_kind(monkeypatch):
    """A checkpoint that was read has such an order. A graph identifies its tensors by their positions."""
    monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    program, one, two = Program(lambda fixed, changing: {"difference": fixed["b"] - fixed["a"]}), torch.ones(2), torch.full((2,), 2.0)
    for fixed in ({"b": two, "a": one}, {"a": one, "b": two}):
        assert [result["difference"].tolist() for result in program.steps(fixed, step_inputs(2))] == [[1, 1], [1, 1]]


def test_integer_indices_are_recorded(monkeypatch):
    """A table that is indexed with labels has one shape for all labels."""

    def function(fixed, changing):
        return {"rows": fixed["tensors"]["weight"][changing["y"]]}

    assert None not in train_on(function, step_inputs(2), after=ALWAYS, monkeypatch=monkeypatch)[2]._graphs.values()


# ---------------------------------------------------------------------------------------------- what cannot be replayed is not
def branching(fixed, changing):
    """Branches on a value."""
    return {"loss": changing["x"].sum() if changing["x"].sum() > 0 else torch.zeros(())}


def reading(fixed, changing):
    """Converts a tensor to a number."""
    return {"loss": changing["x"] * changing["x"].max().item()}


def drawing(fixed, changing):
    """Draws random numbers."""
    return {"loss": changing["x"].sum() + torch.rand(())}


def listing(fixed, changing):
    """Reads values in a way that the recorder does not see."""
    return {"loss": changing["x"] * sum(changing["x"].flatten().tolist())}


def masking(fixed, changing):
    """The shape of the result is the number of positive entries."""
    weight = fixed["tensors"]["weight"].detach().requires_grad_()
    loss = (changing["x"] @ weight)[changing["x"][:, :2] > 0].square().mean()
    return {"loss": loss.detach(), "gradients": torch.autograd.grad(loss, [weight])}


def counting(fixed, changing):
    """The shape of the result is the number of different entries."""
    return {"loss": sum((changing["x"].round() == number).sum() * number for number in changing["x"].round().unique())}


@pytest.mark.parametrize("function", [branching, reading, listing, masking, counting])
def test_a_function_that_depends_on_values_is_not_replayed(monkeypatch, function):
    direct, _, _ = train_on(function, step_inputs(8), after=NEVER, monkeypatch=monkeypatch)
    found, _, program = train_on(function, step_inputs(8), after=ALWAYS, monkeypatch=monkeypatch)
    assert list(program._graphs.values()) == [None] and equal_trees(found, direct)


def test_a_frozen_copy_of_a_network_may_be_created_while_a_step_is_recorded(monkeypatch):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    tensors = snapshot(network)

    def teacher(fixed, changing):
        return {"logits": FunctionalModel(network).at(tensors)(changing["x"])}

    _, _, program = train_on(teacher, step_inputs(8), after=ALWAYS, monkeypatch=monkeypatch)
    assert None not in program._graphs.values()


@pytest.mark.parametrize("function", [branching, reading, masking, counting])
def test_a_function_that_depends_on_values_cannot_be_compiled(function):
    with pytest.raises(ValueError, match="^compile must be false for a loss that looks at its tensors' values, got true: "):
        next(Program(function, compile=True).steps(fixed_inputs(), step_inputs(1)))


def test_a_function_that_draws_is_not_replayed(monkeypatch):
    found, _, program = train_on(drawing, [step_inputs(1)[0]] * 3, after=ALWAYS, monkeypatch=monkeypatch)
    assert list(program._graphs.values()) == [None] and len({result["loss"].item() for result in found}) == 3


def test_a_network_with_dropout_is_not_replayed(monkeypatch):
    """The random numbers of two steps differ, and also those of a step and its recording."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    site = averaging().client(0, 1)
    loop.fit(model, snapshot(model), site.batches(), lambda m, b, s, o: (nn.functional.cross_entropy(m(b.x), b.y), {}), site.make_optimizer)
    assert graphs() == [None]


# ----------------------------------------------------------------------------------------------------------------- the cache
@lru_cache(maxsize=1)
def averaging() -> Simulation:
    """A simulation of federated averaging."""
    return small_simulation("strategy=fedavg")[0]


def parts(**changes) -> tuple:
    """The parts of a program."""
    simulation = averaging()
    program = {
        "module": simulation.model,
        "loss": simulation.strategy.loss,
        "data": simulation.train,
        "dtype": torch.float32,
        "execution": Execution(),
    }
    return tuple({**program, **changes}.values())


def test_the_32_programs_used_last_are_kept():
    programs = [object() for _ in range(34)]
    assert all(cached_program((one,), lambda one=one: one) is one for one in programs[:32]) and len(loop._programs) == 32
    assert cached_program((programs[0],), object) is programs[0], "kept, and now used last"
    for one in programs[32:]:
        cached_program((one,), lambda one=one: one)
    kept = [one for _, one in loop._programs.values()]
    assert len(kept) == 32 and kept == [*programs[3:32], programs[0], *programs[32:]]


def test_equal_parts_have_the_same_program():
    """Every access to a bound method is a new object, and so is every client's subset of the images."""
    simulation = averaging()
    first = cached_program(parts(), object)
    assert cached_program(parts(), object) is first
    assert (
        cached_program(
            parts(loss=simulation.strategy.loss, data=simulation.client(3, 2).data, dtype=torch.float32, execution=Execution()), object
        )
        is first
    )
    with_head = partial(simulation.strategy.loss, head=simulation.model.head)
    assert cached_program(parts(loss=with_head), object) is cached_program(
        parts(loss=partial(simulation.strategy.loss, head=simulation.model.head)), object
    )


def test_different_parts_have_different_programs():
    simulation = averaging()
    data, strategy, model = simulation.train, simulation.strategy, simulation.model
    variants = [
        {}, {"loss": replace(strategy).loss}, {"loss": strategy.initial_weights}, {"loss": partial(strategy.loss, head=model.head)},
        {"loss": partial(strategy.loss, head=model)}, {"loss": partial(strategy.loss, body=model.head)},
        {"module": model.head}, {"dtype": torch.float64}, {"execution": Execution(compile=True)},
        {"execution": Execution(autocast=True)}, {"data": None}, {"data": Examples(data.x, data.y, 255.0, data.mean, data.std)},
        {"data": Examples(data.x, data.y, data.scale, (0.1,), data.std)}, {"data": Examples(data.x, data.y, data.scale, data.mean, (0.2,))},
    ]  # fmt: skip
    programs = [cached_program(parts(**variant), object) for variant in variants]
    assert len(set(map(id, programs))) == len(variants) == len(loop._programs)
    assert [cached_program(parts(**variant), object) for variant in variants] == programs
    assert cached_program((*parts(), "together"), object) not in programs


def test_two_strategies_and_two_scalings_do_not_share_a_step(monkeypatch):
    """In fit, with the same network and shapes: each has its own graph."""
    monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    ran = small_run("strategy=fedprox")
    simulation, shared, site = ran.simulation, ran.state, ran.simulation.client(0, 2)
    strong, bright = replace(simulation.strategy, mu=100.0), replace(site.data, mean=(0.9,))
    results = []
    for strategy, data in ((simulation.strategy, site.data), (strong, site.data), (simulation.strategy, bright)):
        results.append(strategy.train(replace(site, data=data), shared, None, 2)[0].state)
        monkeypatch.setattr(step_program, "REPLAY_AFTER", NEVER)
        kept = dict(loop._programs)
        loop._programs.clear()
        assert same_tensors(strategy.train(replace(site, data=data), shared, None, 2)[0].state, results[-1])
        loop._programs.clear()
        loop._programs.update(kept)
        monkeypatch.setattr(step_program, "REPLAY_AFTER", ALWAYS)
    assert len(graphs()) == 3 and not same_tensors(results[0], results[1]) and not same_tensors(results[0], results[2])
