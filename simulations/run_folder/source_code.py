"""The code that computes a run: a digest of every module, and the packages that the modules belong to. This module needs no torch.

The modules are those that a configuration names with ``_target_``, those of fedkd that compute, and all modules that these import from
the user's own packages and from fedkd. A digest is that of a module's syntax tree, without docstrings: comments, docstrings and line
breaks do not count.
"""

import ast
import hashlib
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from omegaconf import DictConfig

from fedkd.config.build import OWN_PACKAGES, to_dict
from fedkd.config.targets import targets
from fedkd.errors import ConfigError, RunFolderError

COMPUTING = (
    "fedkd.data", "fedkd.distillation", "fedkd.federation", "fedkd.losses", "fedkd.metrics", "fedkd.models", "fedkd.partition",
    "fedkd.training", "fedkd.seed", "fedkd.prototype_sharing", "fedkd.server_distillation", "fedkd.strategy", "fedkd.tensor_ops",
    "fedkd.two_networks", "fedkd.types", "strategies",
    "simulations.setup", "simulations.engine", "simulations.federation", "simulations.distillation",
)  # fmt: skip
"""Modules and folders of fedkd that compute. The others check, store, and show."""

SEPARATE = ("simulations.federation.final_distillation",)
"""Modules that start another run, whose own folder records its code."""

FEDERATED_ROOTS = ("simulations.federation.runner", "simulations.engine.client_work")
DISTILLATION_ROOTS = ("simulations.distillation.runner",)

LIBRARIES = ("torch", "torchvision", "flwr", "flwr_datasets", "sklearn", "numpy")
"""Libraries of which only the module that a configuration names counts, and not what it imports."""

UNKNOWN = "unknown"
"""The digest of code that cannot be read. It counts as changed."""

Packages = dict[str, dict[str, Any]]
"""By the name of a package: ``path``, ``version``, ``commit``, ``uncommitted_changes``, ``digest``, and ``modules``, a digest by name."""


# ------------------------------------------------------------------------------------------------------- code of a run
def packages_of(config: DictConfig) -> Packages:
    """All packages that the run of ``config`` computes with.

    A module whose source cannot be read, as a class that was typed into an interpreter, has the digest :data:`UNKNOWN`.
    """
    parts = {key: node for key, node in to_dict(config).items() if key not in ("engine", "tracker")}
    named = sorted({path for _, path in targets(parts) if isinstance(path, str)})
    roots = DISTILLATION_ROOTS if "distiller" in config else FEDERATED_ROOTS
    packages: Packages = {}
    for name, digest in sorted(module_digests(roots, named).items()):
        packages.setdefault(name.partition(".")[0], {"modules": {}})["modules"][name] = digest
    return {
        name: {**describe_package(name), "digest": combined(package["modules"].items()), **package} for name, package in packages.items()
    }


def module_digests(roots: Iterable[str], targets: Sequence[str]) -> dict[str, str]:
    """The digest of every module that counts, by its name.

    Args:
        roots: names of fedkd's own modules.
        targets: dotted names of the objects that a configuration builds.
    """
    found: dict[str, str] = {}
    waiting = [*roots]
    for target in targets:
        module = defining_module(target)
        if module == "__main__":
            found[target] = main_digest(target)
        elif module.partition(".")[0] in LIBRARIES:
            path = module_path(module)
            found[module] = UNKNOWN if path is None else read_module(path)[0]
        else:
            waiting.append(module)
    installed = {name.partition(".")[0] for name in waiting}  # a package that a part comes from counts wherever it is installed
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if name in found or path is None or not counts(name, path, installed):
            continue
        found[name], imported = read_module(path)
        waiting += absolute_names(imported, name, path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs the __init__ of its package
    return found


def defining_module(target: str) -> str:
    """The module in which an object is defined; the longest prefix of ``target`` that is a module where it cannot be imported."""
    try:
        module = getattr(locate(target), "__module__", None)
    except ErrorDuringImport:
        module = None
    if isinstance(module, str):
        return module
    prefix = target.rpartition(".")[0]
    while "." in prefix and module_path(prefix) is None:
        prefix = prefix.rpartition(".")[0]
    return prefix


def counts(name: str, path: Path, installed: set[str]) -> bool:
    """A module is the user's own, or one of fedkd's that compute."""
    top = name.partition(".")[0]
    if top in OWN_PACKAGES:
        inside = any(name == one or name.startswith(f"{one}.") for one in COMPUTING)
        return inside and name not in SEPARATE
    if top in sys.stdlib_module_names or top in LIBRARIES:
        return False
    return top in installed or not is_installed(path)


def is_installed(path: Path) -> bool:
    """The file lies in a folder of installed packages, and not among the user's own files."""
    return any(part in ("site-packages", "dist-packages") for part in path.parts)


def changed_modules(then: Packages, now: Packages) -> list[str]:
    """The modules that both hold with different code, or whose code is unknown."""
    before, after = modules_of(then), modules_of(now)
    return [name for name in sorted(before.keys() & after.keys()) if before[name] != after[name] or after[name] == UNKNOWN]


def changed_files(folder: Path, config: DictConfig) -> list[str]:
    """The files whose code is not that of the run in ``folder``; ``environment.json`` where it does not record the code."""
    try:
        then = read_packages(folder)[0]
    except RunFolderError:
        return [str(folder / "environment.json")]
    return [str(module_path(name) or f"{name} (whose source cannot be read)") for name in changed_modules(then, packages_of(config))]


def check_code(folder: Path, config: DictConfig) -> list[str]:
    """The files whose code is not that of the run in ``folder``.

    Raises:
        ConfigError: there are such files, and ``config`` sets neither ``accept_code`` nor ``force``.
    """
    files = changed_files(folder, config)
    if files and not (config.accept_code or config.force):
        remedy = "force=true runs it again, accept_code=true keeps it"
        raise ConfigError(f"code must be that of the run in {folder}, got changes in {listed(files)}; {remedy}")
    return files


def listed(files: Sequence[str]) -> str:
    """Up to three files, and the number of the others."""
    here = f"{Path.cwd()}/"
    names = [name.removeprefix(here) for name in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def modules_of(packages: Packages) -> dict[str, str]:
    """The digests of all modules by name."""
    return {name: digest for package in packages.values() for name, digest in package["modules"].items()}


# ------------------------------------------------------------------------------------------------------ records of runs
def read_packages(folder: Path) -> list[Packages]:
    """The packages that made the run in ``folder``: first those of the last start, then those of earlier starts with other code.

    Raises:
        RunFolderError: ``environment.json`` does not say.
    """
    try:
        content = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        found = [content["packages"], *content.get("earlier_packages", [])]
        for packages in found:
            modules_of(packages)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"environment.json must record the code of the run, got {type(error).__name__} in {folder}") from error
    return found


def earlier_packages(folder: Path, config: DictConfig) -> list[Packages]:
    """The packages of earlier starts of the run in ``folder``, as far as their code is not the present one."""
    try:
        recorded = read_packages(folder)
    except RunFolderError:
        return []
    now = packages_of(config)
    return [packages for packages in recorded if changed_modules(packages, now)]


def unlike_code(folders: Iterable[Path]) -> dict[str, int]:
    """The modules that differ between runs, or within one, with the number of versions; ``unknown`` counts the runs without a record."""
    versions: dict[str, set[str]] = {}
    unknown = 0
    for folder in folders:
        try:
            recorded = read_packages(folder)
        except RunFolderError:
            unknown += 1
            continue
        for packages in recorded:
            for name, digest in modules_of(packages).items():
                versions.setdefault(name, set()).add(digest)
    found = {name: len(digests) for name, digests in sorted(versions.items()) if len(digests) > 1}
    return found | ({"unknown": unknown} if unknown else {})


# -------------------------------------------------------------------------------------------------------------- modules
@lru_cache(maxsize=4096)
def module_path(name: str) -> Path | None:
    """The source file of a module, which is not imported; None if there is none."""
    top, _, rest = name.partition(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    for part in rest.split(".") if rest else []:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def read_module(path: Path) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    """The digest of a module and its imports: level, module and names of each. A file is read once in a process, unless it changes."""
    stat = path.stat()
    return _read_module(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _read_module(path: Path, modified: int, size: int) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest()[:16], ()
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return tree_digest(tree), tuple(imports)


def absolute_names(imports: Iterable[tuple[int, str, tuple[str, ...]]], module: str, path: Path) -> Iterator[str]:
    """The modules that the imports of ``module`` may name. A name that is no module has no source file and is passed over later."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for level, name, inner in imports:
        base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        full = ".".join([*base, *([name] if name else [])])
        yield full
        yield from (f"{full}.{one}" for one in inner if one != "*")


def tree_digest(tree: ast.AST) -> str:
    """Sixteen hexadecimal digits of a syntax tree without docstrings. They are the same in every version of Python that has its nodes."""
    words: list[str] = []
    _describe(tree, words)
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _describe(node: object, words: list[str]) -> None:
    """Append the types and values of a node and of all nodes in it."""
    if isinstance(node, ast.AST):
        words.append(type(node).__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if field == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                value = _without_docstring(value)
            if value is not None and value != []:  # newer versions of Python have more fields, which are empty
                words.append(field)
                _describe(value, words)
    elif isinstance(node, list):
        words.append(f"[{len(node)}")
        for one in node:
            _describe(one, words)
    else:
        words.append(repr(node))


def _without_docstring(body: Any) -> list[ast.stmt]:
    """The statements of a module, class or function without its docstring."""
    first = body[0] if body else None
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if has_docstring else body


def main_digest(target: str) -> str:
    """The digest of an object of ``__main__``.

    Of a script that defines it count imports, functions and classes, and not what the script calls. Of a notebook counts the text of the
    object alone.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    try:
        tree = ast.parse(Path(file).read_bytes() if file else b"")
        kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        tree.body = [node for node in tree.body if isinstance(node, kept)]
        if not any(getattr(node, "name", None) == target.split(".")[1] for node in tree.body):
            tree = ast.parse(textwrap.dedent(inspect.getsource(locate(target))))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError, ValueError):
        return UNKNOWN
    return tree_digest(tree)


def combined(digests: Iterable[tuple[str, str]]) -> str:
    """One digest of several."""
    return hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- packages
@lru_cache(maxsize=256)
def _described(name: str) -> tuple[tuple[str, Any], ...]:
    file = getattr(sys.modules.get("__main__"), "__file__", None) if name == "__main__" else module_path(name)
    path = None if file is None else Path(file).resolve()
    where = path.parent if path is not None and path.name == "__init__.py" else path
    own_commit = (None, False) if path is None or is_installed(path) else commit_of(path.parent)
    facts = {"path": None if where is None else str(where), "version": installed_version(name)}
    return tuple({**facts, "commit": own_commit[0], "uncommitted_changes": own_commit[1]}.items())


def describe_package(name: str) -> dict[str, Any]:
    """Path, version, commit, and whether there are uncommitted changes, of a package. What is not known is None."""
    return dict(_described(name))


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version({"strategies": "fedkd", "simulations": "fedkd"}.get(name, name))
    except (PackageNotFoundError, ValueError):
        return None


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """The commit of the checkout that ``folder`` lies in, and whether there are uncommitted changes below it; (None, False) elsewhere."""
    try:
        head = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
        if head.returncode:
            return None, False
        changes = ["git", "-C", str(folder), "status", "--porcelain", "--", "."]
        dirty = subprocess.run(changes, check=False, capture_output=True, text=True)
    except OSError:
        return None, False
    return head.stdout.strip() or None, bool(dirty.stdout.strip())
