"""What an entry of the operator tables is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple


class Operator(NamedTuple):
    """One ONNX operator as a JAX function.

    Attributes:
        apply: takes the operands by position (None where an optional one is left out) and the attributes by their
            names; returns the result, or a tuple of them. Keywords without a default are attributes that a node must
            have, but for two that are no attributes: `opset`, the version of the node's operator set, and `outputs`,
            how many results the node names.
        static: positions of the operands that shapes depend on. They come as numpy arrays.
    """

    apply: Callable[..., Any]
    static: tuple[int, ...] = ()

    @property
    def keywords(self) -> frozenset[str]:
        """The attributes it knows, and which of `opset` and `outputs` it wants."""
        parameters = inspect.signature(self.apply).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
