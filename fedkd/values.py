"""Values held against what a signature says of them, and against what an optimizer takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError


def check_optimizer(target: type[torch.optim.Optimizer], arguments: Mapping[str, Any], key: str) -> None:
    """Refuse now what the optimizer would refuse at a client's first step."""
    try:
        target([torch.zeros(1, requires_grad=True)], **arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key} must be what {target.__name__} takes, got {dict(arguments)}: {error}") from error


def check_type(hint: Any, value: Any, key: str) -> None:
    """Refuse ``value`` where it is not what ``hint`` says; lists pass for tuples and for arrays, which YAML has not, integers for floats."""
    if hint is inspect.Parameter.empty or isinstance(hint, str) or (isinstance(value, list) and "ndarray" in str(hint)):
        return
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return
    try:
        adapter.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ValueError(f"{key} must be {rule}, got {value!r}") from None
