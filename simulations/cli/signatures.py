"""Docstrings and parameters of classes and functions, read from source by ``ast``: nothing is imported."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass
class Parameter:
    """A parameter of a class or function.

    Args:
        name: of the parameter.
        annotation: as the source has it; empty where there is none.
        default: as the source has it; None where there is none.
        meaning: from the section ``Args`` of the docstring; empty where it says nothing.
    """

    name: str
    annotation: str = ""
    default: str | None = None
    meaning: str = ""


@dataclass
class Signature:
    """A class or function as its source describes it.

    Args:
        docstring: the whole, without indentation.
        parameters: by name, those of base classes first.
        path: the source file.
        line: of the definition, from 1.
    """

    docstring: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    path: Path | None = None
    line: int = 0


def signature(target: str, roots: Sequence[Path]) -> Signature | None:
    """The class or function that ``package.module.Name`` names, looked for below ``roots``; None where its source is elsewhere."""
    module, _, name = target.rpartition(".")
    path = _source(module, roots)
    node = None if path is None else _definition(path, name)
    if path is None or node is None:
        return None
    docstring = ast.get_docstring(node) or ""
    found = Signature(docstring, path=path, line=node.lineno)
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            if (above := _inherited(base, path, roots)) is not None:
                found.parameters |= above.parameters
        found.parameters |= _of_class(node)
    else:
        found.parameters |= _of_function(node, skip=0)
    for key, text in arguments(docstring).items():
        if key in found.parameters:
            found.parameters[key].meaning = text
    return found


def arguments(docstring: str) -> dict[str, str]:
    """The section ``Args`` of a docstring: the text of each parameter in one line."""
    found: dict[str, str] = {}
    lines = docstring.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == "Args:"), None)
    if start is None:
        return found
    depth, name = None, ""
    for line in lines[start + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if indent <= len(lines[start]) - len(lines[start].lstrip()):
            break
        depth = indent if depth is None else depth
        match = re.match(r"([\w., *]+?):\s+(.*)", line.strip())
        if indent == depth and match:
            for name in (one.strip(" *") for one in match[1].split(",")):
                found[name] = match[2]
            name = match[1].split(",")[0].strip(" *")
        elif name:
            found[name] += f" {line.strip()}"
    return found


def first_line(path: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    return (ast.get_docstring(_tree(path)) or "").partition("\n")[0]


def defines_main(path: Path) -> bool:
    """A module has a function ``main``."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in _tree(path).body)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _source(module: str, roots: Sequence[Path]) -> Path | None:
    """The file of a module below one of ``roots``."""
    parts = module.split(".")
    for root in roots:
        for path in (root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts, "__init__.py")):
            if module and path.is_file():
                return path
    return None


def _definition(path: Path, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next((node for node in _tree(path).body if isinstance(node, kinds) and node.name == name), None)


def _inherited(base: ast.expr, path: Path, roots: Sequence[Path]) -> Signature | None:
    """The signature of a base class that stands in the same file or is imported by name."""
    name = ast.unparse(base).partition("[")[0]
    if _definition(path, name) is not None:
        relative = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), None)
        return None if relative is None else signature(".".join([*relative.with_suffix("").parts, name]), roots)
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return signature(f"{node.module}.{alias.name}", roots)
    return None


def _of_class(node: ast.ClassDef) -> dict[str, Parameter]:
    """Those of ``__init__``, or the fields of a dataclass."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return _of_function(one, skip=1)
    if not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        return {}
    found = {}
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            name, annotation = one.target.id, ast.unparse(one.annotation)
            default = None if one.value is None else ast.unparse(one.value)
            if not annotation.startswith("ClassVar") and not name.startswith("_") and "init=False" not in (default or ""):
                found[name] = Parameter(name, annotation, default)
    return found


def _of_function(node: ast.FunctionDef, skip: int) -> dict[str, Parameter]:
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*list(zip(plain, defaults))[skip:], *zip(node.args.kwonlyargs, node.args.kw_defaults)]
    return {
        one.arg: Parameter(
            one.arg, "" if one.annotation is None else ast.unparse(one.annotation), None if value is None else ast.unparse(value)
        )
        for one, value in pairs
    }
