"""From a file to a function: what is checked when it is read, and how its graph is run.

Shapes are static in JAX. So whatever depends on neither the params nor the inputs is computed in numpy's types while
the function is traced, with 64-bit numbers: the arithmetic on shapes that exporters write (Shape, Gather, Concat,
Reshape), with the same operators as the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from . import _elementwise, _reduce, _resize, _shape, _window
from ._operator import Operator

OPERATORS: Mapping[str, Operator] = {
    **_elementwise.OPERATORS,
    **_window.OPERATORS,
    **_reduce.OPERATORS,
    **_resize.OPERATORS,
    **_shape.OPERATORS,
}
OPSETS = range(7, 29)
_SHAPE_ONLY = ("Shape", "Size")  # their results depend on no value of their operand
_NO_ATTRIBUTES = frozenset({"opset", "outputs"})  # of `Operator.apply`: told to it, not stored in the file


class _Input(NamedTuple):
    """What the graph takes; a length that is free is its name, or None."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]

    def check(self, given: Any) -> None:
        dtype = jax.dtypes.canonicalize_dtype(self.dtype)
        fits = len(given.shape) == len(self.shape) and all(
            n == want or not isinstance(want, int) for n, want in zip(given.shape, self.shape, strict=True)
        )
        if not fits or given.dtype != dtype:
            lengths = ", ".join("?" if n is None else str(n) for n in self.shape)
            raise ValueError(
                f"input `{self.name}` is {given.dtype}{list(given.shape)}; the graph takes {dtype}[{lengths}]"
            )


class _Node(NamedTuple):
    """One step: `call` runs its operator in a frame that tracebacks and `explain` show under the node's own name."""

    title: str
    operator: Operator
    call: Callable[..., Any]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    keywords: dict[str, Any]

    def run(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        operands = [values[name] if name else None for name in self.operands]
        for position in self.operator.static:
            if position < len(operands) and not isinstance(operands[position], np.ndarray | None):
                raise ValueError(
                    f"{self.title}: its operand `{self.operands[position]}` depends on the values of the inputs, "
                    "and shapes in JAX are static; export the network for inputs of a fixed shape"
                )
        known = all(isinstance(operand, np.ndarray | None) for operand in operands)
        try:
            if known:
                with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                    for position, array in enumerate(operands):
                        if position not in self.operator.static and array is not None:
                            operands[position] = jnp.asarray(array)
                    found = self.call(self.operator.apply, *operands, **self.keywords)
                    results = tuple(map(np.asarray, found if isinstance(found, tuple) else (found,)))
            else:
                found = self.call(self.operator.apply, *operands, **self.keywords)
                results = found if isinstance(found, tuple) else (found,)
        except NotImplementedError as error:
            raise ValueError(f"{self.title} is not supported with {error}") from error
        except Exception as error:
            error.add_note(f"in the ONNX node {self.title}")
            raise
        if len(results) < len(self.results):
            raise ValueError(f"{self.title} is not supported with {len(self.results)} results")
        return results


def load(path: str | Path) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """Reads an ONNX file as ``(fn, params)``: ``fn(params, *inputs)`` is the graph, in pure JAX.

    Law: `fn` computes what the ONNX specification says, for inputs of the shapes and dtypes that the graph declares;
    64-bit numbers are 32-bit ones unless `jax_enable_x64` is set. Networks run as in inference: dropout does nothing,
    batch norm uses its stored statistics.

    Args:
        path: an .onnx file of opset 7 to 28; weights in separate files are looked for beside it.

    Returns:
        fn: takes the params and the graph's inputs in their order, layouts as in the file (pictures are mostly
            [batch, channels, height, width]); returns the output, or a tuple of the outputs in their order
            if there are several.
        params: the graph's floating-point initialisers by name, but for those on which a shape depends. They may be
            changed, trained or cast.

    Raises:
        ValueError: no such file, a damaged one, operators, attributes or types that are not supported (all are
            named); `onnx` is not installed. From `fn`: inputs of another number, shape or dtype than the graph's;
            params that are missing; a shape that depends on values.
    """
    fn, params, _ = _loaded(Path(path))
    return fn, params


def _loaded(path: Path) -> tuple[Callable[..., Any], dict[str, jax.Array], list[_Input]]:
    """And what the graph takes."""
    model = _read(path)
    graph = model.graph
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        raise ValueError(
            f"'{path}' has opset {opset}; supported are {OPSETS.start} to {OPSETS.stop - 1}: "
            "convert it with onnx.version_converter.convert_version, or export it again"
        )
    faults: dict[str, None] = {}
    nodes = [_node(node, number, opset, path.name, faults) for number, node in enumerate(graph.node, start=1)]
    stored = _initialisers(graph, faults)
    inputs = [_input(value, faults) for value in graph.input if value.name not in stored]
    if faults:
        raise ValueError(
            f"'{path}' needs what deltajax has not: {', '.join(faults)}; export the network with other operators "
            "(in eval mode, or with another opset), or write the missing ones in JAX"
        )
    fixed = _read_by_shapes(nodes)
    params = {
        name: jnp.asarray(array)
        for name, array in stored.items()
        if jnp.issubdtype(array.dtype, jnp.floating) and name not in fixed
    }
    constants = {name: array for name, array in stored.items() if name not in params}
    fn = _function(nodes, constants, frozenset(params), inputs, [value.name for value in graph.output])
    return fn, params, inputs


def load_of_picture(path: str | Path) -> tuple[Callable[[Any, Any], Any], dict[str, jax.Array], tuple[int, int] | None]:
    """``(fn, params, size)`` of a network that takes one picture: ``fn(params, frame)`` with a frame `[h, w, 3]` of
    float32, and the height and width that the file declares, None if it leaves them open.

    Raises:
        ValueError: as `load`, or the graph takes something else.
    """
    fn, params, inputs = _loaded(Path(path))
    shape = inputs[0].shape if inputs else ()
    first, last = len(shape) == 4 and shape[1] == 3, len(shape) == 4 and shape[3] == 3
    if len(inputs) != 1 or inputs[0].dtype != np.float32 or not (first or last):
        told = ", ".join(f"{i.name} {i.dtype}{[n or '?' for n in i.shape]}" for i in inputs)
        raise ValueError(
            f"'{path}' takes {told}, not one float32 picture [1, 3, height, width] or [1, height, width, 3]; "
            "give it what it takes in Python, by dj.onnx.load"
        )
    size = tuple(n for n in (shape[2:] if first else shape[1:3]) if isinstance(n, int))

    def of_frame(params: Mapping[str, Any], frame: Any) -> Any:
        return fn(params, (frame.transpose(2, 0, 1) if first else frame)[None])

    return of_frame, params, (size[0], size[1]) if len(size) == 2 else None


def read_initialisers(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays that the file stores, by name: the weights alone, whatever its operators.

    Raises:
        ValueError: no such file, a damaged one, types that numpy has not; `onnx` is not installed.
    """
    faults: dict[str, None] = {}
    arrays = _initialisers(_read(Path(path)).graph, faults)
    if faults:
        raise ValueError(f"'{path}' holds what numpy has not: {', '.join(faults)}; export it in float32")
    return arrays


def _function(
    nodes: list[_Node], constants: dict[str, np.ndarray], names: frozenset[str], inputs: list[_Input],
    outputs: list[str],
) -> Callable[..., Any]:
    def fn(params: Mapping[str, Any], *given: Any) -> Any:
        if missing := sorted(names - params.keys()):
            raise ValueError(f"`params` lacks {', '.join(missing[:3])}; give what `load` returned, changed or not")
        if len(given) != len(inputs):
            wanted = ", ".join(i.name for i in inputs)
            raise ValueError(f"{len(given)} inputs given; the graph takes {len(inputs)}: {wanted}")
        values: dict[str, Any] = {**constants, **{name: params[name] for name in names}}
        for wanted, value in zip(inputs, map(jnp.asarray, given), strict=True):
            wanted.check(value)
            values[wanted.name] = value
        with jax.numpy_rank_promotion("allow"):  # ONNX broadcasts as numpy does, whatever the caller's setting
            for node in nodes:
                values.update(zip(node.results, node.run(values), strict=False))
        found = [jnp.asarray(values[name]) for name in outputs]
        return tuple(found) if len(found) > 1 else found[0]

    return fn


def _read(path: Path) -> Any:
    try:
        import onnx
        import onnx.inliner
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ValueError(
            f"'{path}' needs the package onnx to be read; install it with: pip install 'deltajax[onnx]'"
        ) from error
    if not path.is_file():
        raise ValueError(f"the ONNX file '{path}' does not exist")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"'{path}' is not a valid ONNX file ({reason}); export or download it again") from error
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _node(node: Any, line: int, opset: int, file: str, faults: dict[str, None]) -> _Node:
    """Checks the operator and its attributes against the table; what is missing goes to `faults`."""
    import onnx

    kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    operator = OPERATORS.get(kind)
    keywords = {}
    if operator is None:
        faults[kind] = None
        operator = Operator(lambda *_: None)
    else:
        for attribute in node.attribute:
            if attribute.name not in operator.keywords - _NO_ATTRIBUTES:
                faults[f"{kind}'s attribute `{attribute.name}`"] = None
                continue
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, onnx.TensorProto):
                value = _array(value, faults)
            elif kind == "Cast" and attribute.name == "to":
                value = _dtype(value, faults)
            keywords[attribute.name] = value.decode() if isinstance(value, bytes) else value
    results = list(node.output)
    while results and not results[-1]:
        results.pop()
    facts = {"opset": opset, "outputs": len(results)}
    keywords |= {name: value for name, value in facts.items() if name in operator.keywords}
    title = f"{kind} '{node.name or node.output[0]}'"
    return _Node(title, operator, _framed(file, line, title), tuple(node.input), tuple(results), keywords)


def _framed(file: str, line: int, title: str) -> Callable[..., Any]:
    """A function that calls another; JAX takes its frame for the source of the operations made within."""
    call = lambda function, /, *operands, **keywords: function(*operands, **keywords)  # noqa: E731
    code: CodeType = call.__code__.replace(co_filename=file, co_name=title, co_qualname=title, co_firstlineno=line)
    return FunctionType(code, {}, title)


def _dtype(number: int, faults: dict[str, None]) -> np.dtype:
    """numpy's dtype of an ONNX element type; strings, complex numbers and those of 4 and 8 bits are faults."""
    import onnx

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    if (dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16) or number > onnx.TensorProto.BFLOAT16:
        faults[f"the type {onnx.TensorProto.DataType.Name(number)}"] = None
        return np.dtype(np.float32)
    return dtype


def _array(tensor: Any, faults: dict[str, None]) -> np.ndarray:
    import onnx

    _dtype(tensor.data_type, faults)
    return np.array(onnx.numpy_helper.to_array(tensor))


def _initialisers(graph: Any, faults: dict[str, None]) -> dict[str, np.ndarray]:
    if graph.sparse_initializer:
        faults["sparse initialisers"] = None
    return {tensor.name: _array(tensor, faults) for tensor in graph.initializer}


def _input(value: Any, faults: dict[str, None]) -> _Input:
    if not value.type.HasField("tensor_type"):
        faults[f"the input `{value.name}`, which is no tensor"] = None
        return _Input(value.name, np.dtype(np.float32), ())
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value or d.dim_param or None for d in tensor.shape.dim)
    return _Input(value.name, _dtype(tensor.elem_type, faults), shape)


def _read_by_shapes(nodes: list[_Node]) -> set[str]:
    """The values on which a static operand depends: they have to be known when the function is traced."""
    found: set[str] = set()
    for node in reversed(nodes):
        kind = node.title.split()[0]
        through = kind not in _SHAPE_ONLY and not found.isdisjoint(node.results)
        found.update(
            name for at, name in enumerate(node.operands) if name and (through or at in node.operator.static)
        )
    return found
