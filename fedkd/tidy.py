"""Recorded graphs without what does nothing, and those that cannot be used because their shapes depend on values."""

import operator

import torch
from torch import fx

aten = torch.ops.aten
VIEWS = {
    aten.alias.default, aten.detach.default, aten.view.default, aten.permute.default, aten.expand.default, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip
CONSTANTS = {aten.arange.default, aten.scalar_tensor.default, aten.lift_fresh_copy.default, *VIEWS}
"""What gives the same in every step where no tensor, or a constant one, comes in."""
KEPT = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default}


def settled(module: fx.GraphModule) -> None:
    """Refuse a graph in which the numbers decide how many there are: it knows the sizes of one step alone.

    Raises:
        RuntimeError: naming the operation.
    """
    for node in module.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            where = [one.meta["val"].dtype for one in node.args[1] if one is not None] if node.target is aten.index.Tensor else [torch.bool]
            if torch.bool in where or torch.uint8 in where:
                raise RuntimeError(f"the shape of what {node.target} gives depends on values")


def tidy(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph without operations that do nothing: constants made anew in each step, views of a tensor that undo each other, and
    results that nobody uses."""
    for node in list(module.graph.nodes):
        if node.target in CONSTANTS and all(one.op == "get_attr" for one in node.all_input_nodes) and not written(node):
            remember(module, node)
        elif node.target in VIEWS and (source := origin(node)) is not node:
            node.replace_all_uses_with(source)
    for node in reversed(list(module.graph.nodes)):
        idle = node.op == "call_function" and not node.users
        if idle and (node.target is operator.getitem or not (node.target in KEPT or node.target._schema.is_mutable)):
            module.graph.erase_node(node)
    module.recompile()
    return module


def written(node: fx.Node) -> bool:
    """Some operation writes into this result, or into a view of it."""
    writes = any(one.op == "call_function" and one.target._schema.is_mutable and one.args[0] is node for one in node.users)
    return writes or any(written(one) for one in node.users if one.target in CONSTANTS)


def remember(module: fx.GraphModule, node: fx.Node) -> None:
    """Compute a constant now, and read it in every step."""
    inputs = {one: getattr(module, one.target) for one in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
    name = f"constant_{node.name}"
    module.register_buffer(name, node.target(*args, **kwargs))
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta.update(node.meta)
    node.replace_all_uses_with(constant)


def origin(node: fx.Node) -> fx.Node:
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
