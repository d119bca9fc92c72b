"""A training step that is recorded as a graph of tensor operations, simplified, replayed, and captured as a CUDA graph.

The first steps run the Python function. After :data:`REPLAY_AFTER` steps of one kind the recorded graph runs instead, if it gives the same
bits. On a GPU the graph is captured as a CUDA graph before the first step.
"""

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fedkd.errors import ConfigError

Tree = Any
"""Nested dictionaries and sequences of tensors; None stands for a missing tensor."""

REPLAY_AFTER = 100
"""Steps of one kind before a graph is recorded, which takes a quarter of a second."""

aten = torch.ops.aten

VIEWS = {
    aten.alias.default, aten.detach.default, aten.view.default, aten.permute.default, aten.expand.default, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip
"""Operations that return a view of their first argument."""

CONSTANTS = {aten.arange.default, aten.scalar_tensor.default, aten.lift_fresh_copy.default, *VIEWS}
"""Operations that return the same tensor in every step if their arguments are constant."""

BATCHNORMS = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default}
"""Operations that update running statistics although their schema does not say so."""


class Steps(Protocol):
    """The inputs of several steps, one tree per step. All have the same names, shapes, and layouts."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> Tree: ...


# ------------------------------------------------------------------------------------------------------------------- trees
def tree_leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from tree_leaves(branch)


def rebuild_tree(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """A tree of the same form with other tensors, in order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: rebuild_tree(branch, tensors) for key, branch in tree.items()}
    return tuple(rebuild_tree(branch, tensors) for branch in tree)


def tree_signature(tree: Tree) -> Hashable:
    """Everything that a graph depends on except the numbers: names in order, shapes, strides, types, and devices."""
    if isinstance(tree, Tensor):
        return (tuple(tree.shape), tree.stride(), tree.dtype, tree.device)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return tuple((key, tree_signature(branch)) for key, branch in tree.items())
    return tuple(map(tree_signature, tree))


def copy_leaves(tree: Tree) -> list[Tensor]:
    """Copies of the tensors of a tree, in order, with the same layout."""
    return [t.detach().clone().requires_grad_(t.requires_grad) if t.is_contiguous() else copy_with_strides(t) for t in tree_leaves(tree)]


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy with the same strides, also where elements have gaps between them or share memory."""
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copied.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


# ------------------------------------------------------------------------------------------------- graphs of a recorded step
def check_static_shapes(module: fx.GraphModule) -> None:
    """Refuse a graph in which the shape of a result depends on values. Such a graph is valid for its own step only.

    Raises:
        RuntimeError: naming the operation.
    """
    for node in module.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            is_index = node.target is aten.index.Tensor
            dtypes = [arg.meta["val"].dtype for arg in node.args[1] if arg is not None] if is_index else [torch.bool]
            if torch.bool in dtypes or torch.uint8 in dtypes:
                raise RuntimeError(f"the shape of what {node.target} gives depends on values")


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """Remove operations without effect: constants that are created in each step, chains of views that cancel, and unused results.

    Returns:
        ``module``, changed in place.
    """
    for node in list(module.graph.nodes):
        if node.target in CONSTANTS and all(arg.op == "get_attr" for arg in node.all_input_nodes) and not is_written(node):
            fold_constant(module, node)
        elif node.target in VIEWS and (source := view_source(node)) is not node:
            node.replace_all_uses_with(source)
    for node in reversed(list(module.graph.nodes)):
        unused = node.op == "call_function" and not node.users
        if unused and (node.target is operator.getitem or not (node.target in BATCHNORMS or is_mutable(node))):
            module.graph.erase_node(node)
    module.recompile()
    return module


def is_mutable(node: fx.Node) -> bool:
    """Whether the schema of the node's operation says that it changes an argument."""
    target: Any = node.target
    return bool(target._schema.is_mutable)


def is_written(node: fx.Node) -> bool:
    """Whether an operation writes into the node's result, or into a view of it."""
    writes = any(user.op == "call_function" and is_mutable(user) and user.args[0] is node for user in node.users)
    return writes or any(is_written(user) for user in node.users if user.target in CONSTANTS)


def fold_constant(module: fx.GraphModule, node: fx.Node) -> None:
    """Compute a constant now, and replace its node by the result."""
    function: Any = node.target
    inputs: dict[fx.Node, Any] = {arg: getattr(module, str(arg.target)) for arg in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
    name = f"constant_{node.name}"
    module.register_buffer(name, function(*args, **kwargs))
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta.update(node.meta)
    node.replace_all_uses_with(constant)


def view_source(node: fx.Node) -> fx.Node:
    """The first tensor in the chain of views of ``node`` that has the same shape and strides; ``node`` if there is none."""
    found = source = node
    while source.target in VIEWS:
        argument = source.args[0]
        assert isinstance(argument, fx.Node), "a view has a tensor as its first argument"
        source = argument
        if same_layout(node, source):
            found = source
    return found


def same_layout(left: fx.Node, right: fx.Node) -> bool:
    """Whether two results have the same shape, strides, and type."""
    a, b = left.meta.get("val"), right.meta.get("val")
    return a is not None and b is not None and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def same_bits(function: Callable[..., Any], graph: fx.GraphModule, tensors: list[Tensor]) -> bool:
    """Whether a graph gives the same bits as the function, in its results and in the buffers that it updates.

    The graph runs without gradients, as it does when it is replayed. Some kernels, such as that of an LSTM, then keep nothing for backward.
    """
    left, right = copy_leaves(tensors), copy_leaves(tensors)
    with torch.no_grad():
        replayed = graph(*right)
    results = zip([*function(*left), *left], [*replayed, *right], strict=True)
    return all(torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach())) for a, b in results)


# ----------------------------------------------------------------------------------------------------------------- programs
class Program:
    """The function of a training step, ``function(fixed, changing) -> tree``.

    On a GPU a step is captured as a CUDA graph: one launch for all operations. A captured step reads and writes tensors at fixed
    addresses. Therefore call :meth:`placed` before :meth:`steps`, and use the result of a step before the next step.

    Args:
        function: its inputs are two trees: tensors that are the same objects in all steps, and tensors of one step. It is pure, except
            that it may update buffers of ``fixed`` in place.
        compile: compile the graph with ``torch.compile`` before the first step.
    """

    def __init__(self, function: Callable[[Tree, Tree], Tree], *, compile: bool = False) -> None:
        self._function, self._compile = function, compile
        self._num_steps: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Callable[..., Any] | None] = {}
        self._captured: dict[Hashable, CapturedStep] = {}

    def placed(self, fixed: Tree, changing: Steps) -> Tree:
        """The tree to pass to :meth:`steps`: ``fixed`` copied to the addresses of a captured step, or ``fixed`` itself without capture."""
        if not len(changing) or not can_capture(list(tree_leaves(fixed))):
            return fixed
        form = changing[0]
        kind = (tree_signature(fixed), tree_signature(form))
        if kind not in self._captured:
            graph = self._graphs[kind] = self._record(fixed, form, changing[len(changing) - 1])
            if graph is None:
                return fixed
            self._captured[kind] = CapturedStep(graph, fixed, form)
        return self._captured[kind].hold(fixed)

    def steps(self, fixed: Tree, changing: Steps) -> Iterator[Tree]:
        """The results of all steps, one after the other.

        Raises:
            ConfigError: the function must be compiled and cannot be recorded.
        """
        if not len(changing):
            return
        form = changing[0]
        run = self._runner(fixed, form, changing)
        for number in range(len(changing)):
            yield run(changing[number] if number else form)

    def _runner(self, fixed: Tree, form: Tree, changing: Steps) -> Callable[[Tree], Tree]:
        """The function that computes these steps, of which ``form`` is the first."""
        static = list(tree_leaves(fixed))
        kind = (tree_signature(fixed), tree_signature(form))
        if kind in self._captured and self._captured[kind].holds(static):
            return self._captured[kind].replay
        num_before = self._num_steps.get(kind, 0)
        self._num_steps[kind] = num_before + len(changing)
        if kind not in self._graphs and (self._compile or num_before >= REPLAY_AFTER):
            self._graphs[kind] = self._record(fixed, form, changing[len(changing) - 1])
        graph = self._graphs.get(kind)
        return partial(self._function, fixed) if graph is None else partial(graph, static)

    def _record(self, fixed: Tree, form: Tree, other: Tree) -> Callable[[list[Tensor], Tree], Tree] | None:
        """Record a step as ``graph(tensors of fixed, changing) -> tree``.

        Returns:
            None if the function depends on the values of tensors, or the graph does not give the same bits for ``form`` and ``other``.
            The function then runs in all steps.

        Raises:
            ConfigError: the function must be compiled and cannot be recorded.
        """
        result_form: list[Tree] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            remaining = iter(tensors)
            result = self._function(rebuild_tree(fixed, remaining), rebuild_tree(form, remaining))
            result_form[:] = [result]
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
        run = torch.compile(graph) if self._compile else graph.forward  # forward skips the hooks of modules
        tree = result_form[0]

        def replay(static: list[Tensor], step: Tree) -> Tree:
            with torch.no_grad():
                return rebuild_tree(tree, iter(run(*static, *tree_leaves(step))))

        return replay


# -------------------------------------------------------------------------------------------------------------- CUDA graphs
def can_capture(static: Sequence[Tensor]) -> bool:
    """Whether steps on these tensors can be captured: they are on a GPU."""
    return bool(static) and static[0].is_cuda


def capture(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Capture a function as a CUDA graph.

    Args:
        work: launches kernels on tensors at fixed addresses.
        device: the GPU.

    Returns:
        A function that launches the graph, and the result of ``work``, which each launch overwrites.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are selected and workspaces allocated before the capture
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class CapturedStep:
    """A recorded step as a CUDA graph, with its own copies of inputs and results at fixed addresses.

    Args:
        graph: the recorded step, ``graph(tensors of fixed, changing) -> tree``.
        fixed: inputs that are the same in all steps.
        form: inputs of one step.
    """

    def __init__(self, graph: Callable[[list[Tensor], Tree], Tree], fixed: Tree, form: Tree) -> None:
        self._fixed, self._changing = copy_leaves(fixed), copy_leaves(form)
        self._tree, changing = rebuild_tree(fixed, iter(self._fixed)), rebuild_tree(form, iter(self._changing))
        self._launch, self._result = capture(lambda: graph(self._fixed, changing), self._fixed[0].device)

    def hold(self, fixed: Tree) -> Tree:
        """Copy ``fixed`` to the addresses of the step.

        Returns:
            The tree of the tensors at these addresses.
        """
        with torch.no_grad():
            for target, tensor in zip(self._fixed, tree_leaves(fixed)):
                target.copy_(tensor)
        return self._tree

    def holds(self, static: Sequence[Tensor]) -> bool:
        """Whether ``static`` are the tensors at the addresses of the step."""
        return all(own is tensor for own, tensor in zip(self._fixed, static, strict=True))

    def replay(self, step: Tree) -> Tree:
        """Compute one step. The next step overwrites the result."""
        for target, tensor in zip(self._changing, tree_leaves(step)):
            target.copy_(tensor)
        self._launch()
        return self._result
