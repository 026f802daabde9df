"""Everything that touches jaxprs' insides and differs between JAX versions (`jax>=0.10,<0.12`)."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

Literal = jex.Literal
Var = jex.Var
Tracer = jax.core.Tracer  # pyright: ignore[reportAttributeAccessIssue]
Eqn = Any  # jax.extend.core.JaxprEqn, whose abstract values have no shape for a type checker

# Primitives that only wrap a jaxpr: the parameter that holds it.
_WRAPPERS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}


def opened(closed: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, whether it comes open, closed, or (from jax 0.11) as both in one."""
    return getattr(closed, "jaxpr", closed), tuple(getattr(closed, "consts", ()))


def wrapped(eqn: Eqn) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr that `eqn` merely wraps (jit, custom derivatives, remat) with its constants, or None."""
    parameter = _WRAPPERS.get(eqn.primitive.name)
    if parameter is None or parameter not in eqn.params:
        return None
    return opened(eqn.params[parameter])


def scan_counts(eqn: Eqn) -> tuple[int, int]:
    """How many of a scan's operands are the same in every turn, and how many are carried; the rest is sliced."""
    if "ft_in" in eqn.params:  # from jax 0.11.2
        same, carried, _ = (len(list(part)) for part in eqn.params["ft_in"].unpack())
        return same, carried
    return eqn.params["num_consts"], eqn.params["num_carry"]


def value(literal: Any) -> np.ndarray:
    """What a literal stands for, in its own dtype."""
    return np.asarray(literal.val, literal.aval.dtype)


def trace(function, *args) -> tuple[Any, Sequence[Any], Any]:
    """``(jaxpr, constants, structure of the output)`` of `function` at arguments of these shapes."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr, constants = opened(closed)
    return jaxpr, constants, jax.tree.structure(shape)


def bind(eqn: Eqn, *operands, **changes) -> tuple[Any, ...]:
    """Apply the equation's primitive to other operands, with some of its parameters changed."""
    subfuns, params = _bind_params(eqn, changes)
    result = eqn.primitive.bind(*subfuns, *operands, **params)
    return tuple(result) if eqn.primitive.multiple_results else (result,)


def _bind_params(eqn: Eqn, changes: dict[str, Any]):
    params = {**eqn.params, **changes}
    found = eqn.primitive.get_bind_params(params)
    return ((), found) if isinstance(found, dict) else found


_OPERATORS = os.path.join(os.path.dirname(__file__), "onnx")  # called by lines that stand for a file's nodes
_LIBRARIES = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), _OPERATORS}
)


def plain(eqn: Eqn) -> Eqn:
    """The equation with Python's integers for numpy's, which the batching rules of `vmap` leave in parameters."""

    def one(x):
        if type(x) in (tuple, list):
            return type(x)(map(one, x))
        if isinstance(x, tuple) and hasattr(x, "_replace"):
            return x._replace(**{name: one(value) for name, value in x._asdict().items()})  # type: ignore[attr-defined]
        return int(x) if isinstance(x, np.integer) else x

    return eqn.replace(params={name: one(value) for name, value in eqn.params.items()})


def traceback(eqn: Eqn, around: Any = None) -> Any:
    """Where the equation was made; `around`, of the equation that wraps it, where no line of that is the user's."""
    own = eqn.source_info.traceback
    return own if around is None or _users(own) else around


def from_line(traceback: Any) -> Any:
    """A context in which equations are made as if there."""
    return source_info_util.user_context(traceback, name_stack=source_info_util.current_name_stack())


def _users(traceback: Any) -> Any:
    """The innermost frame that is in no library; None if there is none."""
    frames = () if traceback is None else traceback.frames
    return next((frame for frame in frames if not _is_library(frame.file_name)), None)


@functools.cache
def _is_library(file: str) -> bool:
    return file[:1] == "<" or os.path.realpath(file).startswith(_LIBRARIES)


def source(eqn: Eqn, around: str = "") -> str:
    """``file:line (function)`` of the user's own line that made the equation, or the nearest library line.

    Inside a library function that is jitted itself, no frame is the user's: then it is `around`, the source of the
    equation that wraps it.
    """
    frame = _users(eqn.source_info.traceback)
    if frame is not None:
        return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return around or source_info_util.summarize(eqn.source_info)
