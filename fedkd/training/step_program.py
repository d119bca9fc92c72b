"""A training step recorded as a graph of tensor operations, simplified, replayed, and captured as a CUDA graph.

The first steps run as written. After :data:`REPLAY_AFTER` equal steps the recorded graph runs instead.
"""

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fedkd.errors import ConfigError

aten = torch.ops.aten

VIEWS = {
    aten.alias.default, aten.detach.default, aten.view.default, aten.permute.default, aten.expand.default, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip

CONSTANTS = {aten.arange.default, aten.scalar_tensor.default, aten.lift_fresh_copy.default, *VIEWS}
"""What gives the same in every step where no tensor, or a constant one, comes in."""

BATCHNORMS = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default}


def check_static_shapes(module: fx.GraphModule) -> None:
    """Refuse a graph in which the numbers decide how many there are: it knows the sizes of one step alone.

    Raises:
        RuntimeError: naming the operation.
    """
    for node in module.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            where = [one.meta["val"].dtype for one in node.args[1] if one is not None] if node.target is aten.index.Tensor else [torch.bool]
            if torch.bool in where or torch.uint8 in where:
                raise RuntimeError(f"the shape of what {node.target} gives depends on values")


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph without operations that do nothing: constants made anew in each step, views of a tensor that undo each other, and
    results that nobody uses."""
    for node in list(module.graph.nodes):
        if node.target in CONSTANTS and all(one.op == "get_attr" for one in node.all_input_nodes) and not is_written(node):
            fold_constant(module, node)
        elif node.target in VIEWS and (source := view_source(node)) is not node:
            node.replace_all_uses_with(source)
    for node in reversed(list(module.graph.nodes)):
        idle = node.op == "call_function" and not node.users
        if idle and (node.target is operator.getitem or not (node.target in BATCHNORMS or node.target._schema.is_mutable)):
            module.graph.erase_node(node)
    module.recompile()
    return module


def is_written(node: fx.Node) -> bool:
    """Some operation writes into this result, or into a view of it."""
    writes = any(one.op == "call_function" and one.target._schema.is_mutable and one.args[0] is node for one in node.users)
    return writes or any(is_written(one) for one in node.users if one.target in CONSTANTS)


def fold_constant(module: fx.GraphModule, node: fx.Node) -> None:
    """Compute a constant now, and read it in every step."""
    inputs = {one: getattr(module, one.target) for one in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
    name = f"constant_{node.name}"
    module.register_buffer(name, node.target(*args, **kwargs))
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta.update(node.meta)
    node.replace_all_uses_with(constant)


def view_source(node: fx.Node) -> fx.Node:
    """The first of the tensors that ``node`` is a view of, through other views, with the same shape and strides; itself if none has."""
    found = source = node
    while source.target in VIEWS:
        source = source.args[0]
        if same_layout(node, source):
            found = source
    return found


def same_layout(left: fx.Node, right: fx.Node) -> bool:
    """Two results of a graph have the same shape and strides."""
    a, b = left.meta.get("val"), right.meta.get("val")
    return a is not None and b is not None and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def can_capture(static: Sequence[Tensor]) -> bool:
    """Steps on these tensors are captured: they lie on a GPU."""
    return bool(static) and static[0].is_cuda


def capture(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """``work`` as one launch, and where its result is after each."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are chosen and workspaces made before the capture
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


Tree = Any
"""Nested dictionaries and sequences of tensors; None stands for one that is not there."""


REPLAY_AFTER = 100
"""Steps of one kind until a graph is worth the quarter of a second that it takes to record."""


def tree_leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from tree_leaves(branch)


def rebuild_tree(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """A tree of the same form with other tensors."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: rebuild_tree(branch, tensors) for key, branch in tree.items()}
    return tuple(rebuild_tree(branch, tensors) for branch in tree)


def tree_signature(tree: Tree) -> Hashable:
    """What a graph depends on: names in their order, shapes, layouts, types; not the numbers."""
    if isinstance(tree, Tensor):
        return (tuple(tree.shape), tree.stride(), tree.dtype, tree.device)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return tuple((key, tree_signature(branch)) for key, branch in tree.items())
    return tuple(map(tree_signature, tree))


class Program:
    """``function(fixed, changing) -> tree``, pure but for buffers of ``fixed`` that it updates in place.

    On a GPU a step is captured as a CUDA graph besides: one launch for all of it. What a captured step reads and writes has a fixed
    place, so :meth:`placed` comes before :meth:`steps`, and results hold until the next step only.

    Args:
        function: of two trees of tensors: those that last for many steps, and those of one step.
        compile: hand the graph to ``torch.compile``, from the first step on.
    """

    def __init__(self, function: Callable[[Tree, Tree], Tree], *, compile: bool = False) -> None:
        self._function, self._compile = function, compile
        self._steps: dict[tuple, int] = {}
        self._graphs: dict[tuple, Callable[..., Any] | None] = {}
        self._captured: dict[tuple, CapturedStep] = {}

    def placed(self, fixed: Tree, changing: Sequence[Tree]) -> Tree:
        """``fixed`` where captured steps find it, or as it is where these steps are not captured."""
        if not changing or not can_capture(list(tree_leaves(fixed))):
            return fixed
        form = changing[0]
        kind = (tree_signature(fixed), tree_signature(form))
        if kind not in self._captured:
            self._graphs[kind] = self._record(fixed, form, changing[-1])
            if self._graphs[kind] is None:
                return fixed
            self._captured[kind] = CapturedStep(self._graphs[kind], fixed, form)
        return self._captured[kind].hold(fixed)

    def steps(self, fixed: Tree, changing: Sequence[Tree]) -> Iterator[Tree]:
        """The result of each step, one after the other; steps are alike in all but their numbers."""
        if not changing:
            return
        form = changing[0]
        run = self._runner(fixed, form, changing)
        for number in range(len(changing)):
            yield run(changing[number] if number else form)

    def _runner(self, fixed: Tree, form: Tree, changing: Sequence[Tree]) -> Callable[[Tree], Tree]:
        """How steps are done of which ``form`` is the first."""
        static = list(tree_leaves(fixed))
        kind = (tree_signature(fixed), tree_signature(form))
        if kind in self._captured and self._captured[kind].holds(static):
            return self._captured[kind].replay
        seen = self._steps.get(kind, 0)
        self._steps[kind] = seen + len(changing)
        if kind not in self._graphs and (self._compile or seen >= REPLAY_AFTER):
            self._graphs[kind] = self._record(fixed, form, changing[-1])
        graph = self._graphs.get(kind)
        return partial(self._function, fixed) if graph is None else partial(graph, static)

    def _record(self, fixed: Tree, form: Tree, other: Tree) -> Callable[..., Any] | None:
        """The graph of a step, as a function of the same two trees.

        None where the function looks at its tensors' values and cannot be recorded, or the graph does not give its bits in this step and
        an ``other``: it then goes on being run as it is written.

        Raises:
            ConfigError: it cannot be recorded, and was to be compiled.
        """
        shape: list[Tree] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            them = iter(tensors)
            result = self._function(rebuild_tree(fixed, them), rebuild_tree(form, them))
            shape[:] = [result]
            return list(tree_leaves(result))

        try:
            graph = simplify(make_fx(flat)(*copy_leaves(fixed), *copy_leaves(form)))
            check_static_shapes(graph)
            usable = self._compile or all(same_bits(flat, graph, [*copy_leaves(fixed), *copy_leaves(step)]) for step in (form, other))
        except RuntimeError as error:
            if self._compile:
                raise ConfigError(f"compile must be false for a loss that looks at its tensors' values, got true: {error}") from error
            return None
        if not usable:
            return None
        run = torch.compile(graph) if self._compile else graph.forward  # past the hooks that modules have
        tree = shape[0]

        def replay(static: list[Tensor], step: Tree) -> Tree:
            with torch.no_grad():
                return rebuild_tree(tree, iter(run(*static, *tree_leaves(step))))

        return replay


class CapturedStep:
    """A recorded step as a CUDA graph: it reads from places of its own, and writes to places of its own.

    Args:
        graph: the step, of two trees' tensors.
        fixed: what it reads, of which it keeps copies.
        form: one step's material, likewise.
    """

    def __init__(self, graph: Callable[[list[Tensor], Tree], Tree], fixed: Tree, form: Tree) -> None:
        self._fixed, self._material = copy_leaves(fixed), copy_leaves(form)
        self._tree, material = rebuild_tree(fixed, iter(self._fixed)), rebuild_tree(form, iter(self._material))
        self._run, self._result = capture(lambda: graph(self._fixed, material), self._fixed[0].device)

    def hold(self, fixed: Tree) -> Tree:
        """``fixed``, copied to where the step reads it."""
        with torch.no_grad():
            for place, tensor in zip(self._fixed, tree_leaves(fixed)):
                place.copy_(tensor)
        return self._tree

    def holds(self, static: Sequence[Tensor]) -> bool:
        """These are the places."""
        return all(mine is given for mine, given in zip(self._fixed, static, strict=True))

    def replay(self, step: Tree) -> Tree:
        """One step. What it gives is overwritten by the next."""
        for place, tensor in zip(self._material, tree_leaves(step)):
            place.copy_(tensor)
        self._run()
        return self._result


def copy_leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree as new ones that hold the same, in the same layout."""
    return [t.detach().clone().requires_grad_(t.requires_grad) if t.is_contiguous() else copy_with_strides(t) for t in tree_leaves(tree)]


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy with the same strides, gaps and repetitions included."""
    new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return new.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def same_bits(function: Callable[..., Any], graph: fx.GraphModule, tensors: list[Tensor]) -> bool:
    """A graph gives the bits of the function, in its results and in the buffers it updates."""
    mine, theirs = copy_leaves(tensors), copy_leaves(tensors)
    results = zip([*function(*mine), *mine], [*graph(*theirs), *theirs], strict=True)
    return all(torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach())) for a, b in results)
