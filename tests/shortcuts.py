"""Work of other libraries that a test process does once where tests would repeat it, or leaves out. Results are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from typing import Any

import omegaconf.omegaconf
import torch._subclasses.fake_tensor as fake_tensor
import yaml
from matplotlib.backends import _backend_pdf_ps as pdf_fonts
from matplotlib.backends import backend_pdf

from simulations.reports.figures import drawing

ALL = 1000
"""Figures of a report that are drawn in the test process, one by one: its parallel processes share the cores already."""


class RememberedYAML:
    """The module ``yaml``, which parses each text once. OmegaConf copies what it reads."""

    def __init__(self) -> None:
        self._parsed: dict[str, Any] = {}

    def load(self, stream: Any, Loader: type) -> Any:
        """See ``yaml.load``."""
        text = stream if isinstance(stream, str) else stream.read()
        if text not in self._parsed:
            if text is not stream:
                stream.seek(0)  # parsed from the file, which messages name
            self._parsed[text] = yaml.load(stream, Loader)
        return deepcopy(self._parsed[text])

    def __getattr__(self, name: str) -> Any:
        return getattr(yaml, name)


class NoStack:
    """The module ``traceback`` for FakeTensorMode, which keeps the stack of its creation for messages. Stacks of tests are deep."""

    def extract_stack(self) -> list:
        """No frames."""
        return []

    def __getattr__(self, name: str) -> Any:
        import traceback

        return getattr(traceback, name)


class RememberedSubsets:
    """The module of Matplotlib that embeds fonts. It takes each set of glyphs from a font once, and writes each such font once."""

    @staticmethod
    @lru_cache(maxsize=1000)
    def _subset(fontfile: Any, glyphs: frozenset) -> Any:
        return pdf_fonts.get_glyphs_subset(fontfile, set(glyphs)).__enter__()  # stays open

    @staticmethod
    @lru_cache(maxsize=1000)
    def _content(font: Any) -> bytes:
        return pdf_fonts.font_as_file(font).getvalue()

    @contextmanager
    def get_glyphs_subset(self, fontfile: Any, glyphs: Any) -> Iterator[Any]:
        """A font with these glyphs alone, in a block."""
        yield self._subset(fontfile, frozenset(glyphs))

    def font_as_file(self, font: Any) -> BytesIO:
        """A font as a file in memory."""
        return BytesIO(self._content(font))

    def __getattr__(self, name: str) -> Any:
        return getattr(pdf_fonts, name)


def take_shortcuts() -> None:
    """Take all of them in this process. Commands in other processes are not affected."""
    omegaconf.omegaconf.yaml = RememberedYAML()
    fake_tensor.traceback = NoStack()
    backend_pdf._backend_pdf_ps = RememberedSubsets()
    drawing.FEW = ALL
