"""Compositions of the configuration that are remembered within a test process, as Hydra takes a tenth of a second for each."""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from simulations.config import CONF

SOURCES = {("file", str(CONF)), ("pkg", "hydra.conf"), ("structured", "")}
"""Schemes and paths of the sources of the project's own configuration, whose files do not change during the tests."""


parse = config_loader_impl.ConfigLoaderImpl._parse_overrides_and_create_caching_repo
create = config_loader_impl.create_defaults_list
compose = config_loader_impl.ConfigLoaderImpl._compose_config_from_defaults_list


def compose_each_time() -> None:
    """Undo :func:`remember_compositions`."""
    config_loader_impl.ConfigLoaderImpl._parse_overrides_and_create_caching_repo = parse  # type: ignore[method-assign]
    config_loader_impl.create_defaults_list = create
    config_loader_impl.ConfigLoaderImpl._compose_config_from_defaults_list = compose  # type: ignore[method-assign]


def known(repo: Any) -> bool:
    """Whether all sources are those of the project's own configuration."""
    return {(source.scheme(), source.path) for source in repo.get_sources()} <= SOURCES


def remember_compositions() -> None:
    """Let Hydra parse each word, and compose each choice of options once in this process.

    Values of single keys are set as always.

    Nothing is remembered if the configuration has other sources, such as files of a test. Commands in other processes are not affected.
    """
    lists: dict[tuple, Any] = {}
    composed: dict[int, DictConfig] = {}
    parsed: dict[str, Override] = {}
    repositories: dict[str | None, CachingConfigRepository] = {}

    def parse_words(self: Any, config_name: str | None, overrides: list[str]) -> tuple[list[Override], CachingConfigRepository]:
        if not known(self.repository) or any("searchpath" in word for word in overrides):
            return parse(self, config_name, overrides)
        parser = OverridesParser.create()
        for word in overrides:
            if word not in parsed:
                (parsed[word],) = parser.parse_overrides([word])
        if config_name not in repositories:
            repositories[config_name] = parse(self, config_name, [])[1]
        fresh = copy(repositories[config_name])
        fresh.cache = {}  # Hydra changes what it has read
        return [parsed[word] for word in overrides], fresh

    def create_defaults_list(repo: Any, config_name: str, overrides_list: Sequence[Any], prepend_hydra: bool, skip_missing: bool) -> Any:
        if not known(repo):
            return create(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        values = [word for word in overrides_list if not repo.group_exists(word.key_or_group) or isinstance(word.value(), dict)]
        options = [word for word in overrides_list if word not in values]
        key = (config_name, prepend_hydra, skip_missing, *(word.input_line for word in options))
        if key not in lists:
            lists[key] = create(repo, config_name, options, prepend_hydra, skip_missing)
        return replace(lists[key], config_overrides=[word for word in values if not word.is_sweep_override()])

    def compose_config(self: Any, defaults: list, repo: Any) -> DictConfig:
        if not any(each.defaults is defaults for each in lists.values()):
            return compose(self, defaults, repo)
        if id(defaults) not in composed:
            composed[id(defaults)] = compose(self, defaults, repo)
        return deepcopy(composed[id(defaults)])

    config_loader_impl.ConfigLoaderImpl._parse_overrides_and_create_caching_repo = parse_words  # type: ignore[method-assign]
    config_loader_impl.create_defaults_list = create_defaults_list
    config_loader_impl.ConfigLoaderImpl._compose_config_from_defaults_list = compose_config  # type: ignore[method-assign]
