"""A network of ours as an ONNX file, for others to run: what its jaxpr says, operator by operator.

    model = to_onnx(fn, params, frame)      # frame: an array or a jax.ShapeDtypeStruct

The file computes what ``fn(params, frame)`` computes, from the same frame, in float32. It is written for speed: maps
are kept with their channels in front, as the convolutions of ONNX want them, and what depends on params alone is
computed here. Only what the networks of `deltajax.models` are made of is known; the rest is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from jaxtyping import PyTree
from onnx import helper, numpy_helper

OPSET = 17
SAME = {
    "abs": "Abs", "add": "Add", "div": "Div", "eq": "Equal", "exp": "Exp", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul",
    "neg": "Neg", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
FRONT = (0, 3, 1, 2)  # of a map with channels last


class Value(NamedTuple):
    """What a file computes for a value of the jaxpr.

    Attributes:
        name: in the file.
        order: axis k of it there is axis ``order[k]`` of the value.
        shape: of the value.
    """

    name: str
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def axis(self, axis: int) -> int:
        """Where an axis of the value is in the file."""
        return self.order.index(axis)


class Writer:
    """The nodes and weights of a file that is being written."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        # By a name in the file: primitive, operands and params.
        self.made_by: dict[str, tuple[str, list[Any], Mapping[str, Any]]] = {}

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def weight(self, array: Any) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ordered(self, value: Any, order: Sequence[int]) -> str:
        """The name of `value`, an array or a Value, with its axes in that order."""
        order = tuple(order)
        if not isinstance(value, Value):
            array = narrowed(value).transpose(order if value.ndim else ())
            # A bias of a dense layer is a vector: others fold and quantise it as one.
            return self.weight(array[0] if array.ndim == 2 and len(array) == 1 else array)
        if value.order == order:
            return value.name
        return self.node("Transpose", [value.name], perm=[value.axis(axis) for axis in order])

    def plain(self, value: Any) -> str:
        return self.ordered(value, range(value.ndim))


def narrowed(array: np.ndarray) -> np.ndarray:
    """With length 1 wherever it says the same along an axis: ONNX broadcasts by itself."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array


def to_onnx(fn: Callable[[PyTree, Any], PyTree], params: PyTree, frame: Any) -> onnx.ModelProto:
    """The file; its outputs are the leaves of what `fn` returns.

    Raises:
        NotImplementedError: a primitive, or one of its options, is not known; named.
    """
    closed = jax.make_jaxpr(lambda frame: fn(params, frame))(frame)
    writer = Writer()
    taken = Value("frame", tuple(range(len(frame.shape))), tuple(frame.shape))
    found = run(writer, closed.jaxpr, closed.consts, [taken])
    outputs = []
    for number, (value, variable) in enumerate(zip(found, closed.jaxpr.outvars, strict=True)):
        writer.nodes.append(helper.make_node("Identity", [writer.plain(value)], [f"output{number}"]))
        outputs.append(helper.make_tensor_value_info(f"output{number}", kind(variable.aval.dtype), variable.aval.shape))
    given = helper.make_tensor_value_info("frame", kind(frame.dtype), frame.shape)
    nodes, used = needed(writer.nodes, {output.name for output in outputs})
    weights = [weight for weight in writer.weights if weight.name in used]
    graph = helper.make_graph(nodes, "network", [given], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def needed(nodes: Sequence[onnx.NodeProto], names: set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that have a part in the values of those names, and the names of all that have one."""
    found, used = [], set(names)
    for node in reversed(nodes):
        if used.intersection(node.output):
            found.append(node)
            used.update(node.input)
    return found[::-1], used


def kind(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def run(writer: Writer, jaxpr: core.Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """Of each outcome an array, if it depends on params alone, or a Value."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True))

    def of(variable: Any) -> Any:
        value = variable.val if isinstance(variable, core.Literal) else values[variable]
        return value if isinstance(value, Value) else np.asarray(value, variable.aval.dtype)

    for equation in jaxpr.eqns:
        given, name = [of(variable) for variable in equation.invars], equation.primitive.name
        inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
        if not any(isinstance(value, Value) for value in given):
            found = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
            results = found if equation.primitive.multiple_results else [found]
        elif inner is not None:
            results = run(writer, inner.jaxpr, inner.consts, given)
        else:
            shape = equation.outvars[0].aval.shape
            written = write(writer, name, given, equation.params, shape)
            writer.made_by[written.name] = name, given, equation.params
            results = [written]
        values |= zip(equation.outvars, results, strict=True)
    return [of(variable) for variable in jaxpr.outvars]


def write(writer: Writer, name: str, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    """One equation."""
    if name in SAME or name == "select_n":
        return elementwise(writer, name, given, shape)
    if name in RULES:
        return RULES[name](writer, given, params, shape)
    raise NotImplementedError(f"there is no rule for `{name}`")


def elementwise(writer: Writer, name: str, given: list[Any], shape: tuple[int, ...]) -> Value:
    """In the order of the first operand that is no weight and has another than the value's own."""
    orders = [value.order for value in given if isinstance(value, Value) and value.ndim == len(shape)]
    plain = tuple(range(len(shape)))
    order = next((order for order in orders if order != plain), plain)

    def named(value: Any) -> str:
        return writer.ordered(value, order if value.ndim else ())

    if name == "select_n":
        return Value(select(writer, given, order, named), order, shape)
    number = None if len(given) < 2 or isinstance(given[1], Value) else narrowed(given[1])
    if name in ("max", "min") and number is not None and number.size == 1:
        limit = number.reshape(())
        if name == "max" and limit == 0:
            return Value(writer.node("Relu", [named(given[0])]), order, shape)
        limits = [writer.weight(limit)] if name == "max" else ["", writer.weight(limit)]
        return Value(writer.node("Clip", [named(given[0]), *limits]), order, shape)
    if name == "sub" and number is not None:  # so that a batch norm is folded into the convolution before it
        name, given = "add", [given[0], -number]
    return Value(writer.node(SAME[name], [named(value) for value in given]), order, shape)


def select(writer: Writer, given: list[Any], order: tuple[int, ...], named: Callable[[Any], str]) -> str:
    """`Where`, or `PRelu` where it is one: ``where(x > 0, x, slope * x)``."""
    chosen, no, yes = given
    made, (x, limit), _ = writer.made_by.get(chosen.name, ("", [None, None], {}))
    if made == "gt" and x is yes and not isinstance(limit, Value) and not np.any(limit) and isinstance(no, Value):
        made, factors, _ = writer.made_by.get(no.name, ("", [], {}))
        slopes = [factor for factor in factors if not isinstance(factor, Value)]
        if made == "mul" and len(slopes) == 1 and any(factor is x for factor in factors):
            slope = narrowed(slopes[0]).transpose(order)
            return writer.node("PRelu", [named(x), writer.weight(slope[0])])
    return writer.node("Where", [named(chosen), named(yes), named(no)])


def convolution(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    """Also transposed: where the frame is dilated, the kernel is turned round and the padding counted from outside."""
    x, kernel = given
    sizes, groups, dilated = params["dimension_numbers"], params["feature_group_count"], params["lhs_dilation"]
    if isinstance(kernel, Value) or params["batch_group_count"] != 1:
        raise NotImplementedError("a convolution by a kernel that depends on the frame, or with groups of the batch")
    kernel = kernel.transpose(sizes.rhs_spec)
    spans = [(n - 1) * step for n, step in zip(kernel.shape[2:], params["rhs_dilation"], strict=True)]
    common = {"group": groups, "dilations": params["rhs_dilation"]}
    if all(step == 1 for step in dilated):
        operator, strides, padding = "Conv", params["window_strides"], params["padding"]
    else:
        operator, strides = "ConvTranspose", dilated
        padding = [(n - low, n - high) for n, (low, high) in zip(spans, params["padding"], strict=True)]
        kernel = np.flip(kernel, tuple(range(2, kernel.ndim)))
        out, channels, *rest = kernel.shape
        kernel = kernel.reshape(groups, out // groups, channels, *rest).swapaxes(1, 2)
        kernel = kernel.reshape(groups * channels, out // groups, *rest)
        if any(step != 1 for step in params["window_strides"]):
            raise NotImplementedError("a convolution with strides of a frame that is dilated")
    if min(min(pair) for pair in padding) < 0:
        raise NotImplementedError(f"a convolution with padding {params['padding']}")
    name = writer.node(operator, [writer.ordered(x, sizes.lhs_spec), writer.weight(kernel)], strides=strides,
                       pads=[low for low, _ in padding] + [high for _, high in padding], **common)
    return Value(name, tuple(sizes.out_spec), shape)


def pool(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...], mean: bool) -> Value:
    """The largest, or, with `mean`, the sum of a window: its mean by its size."""
    window, strides, padding = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
    if len(shape) != 4 or window[0] != 1 or window[3] != 1 or {*params["base_dilation"]} != {1}:
        raise NotImplementedError(f"a window of {window}")
    if {*params["window_dilation"]} != {1}:
        raise NotImplementedError(f"a window with dilation {params['window_dilation']}")
    shared = {"kernel_shape": window[1:3], "strides": strides[1:3],
              "pads": [padding[1][0], padding[2][0], padding[1][1], padding[2][1]]}
    x = [writer.ordered(given[0], FRONT)]
    if not mean:
        return Value(writer.node("MaxPool", x, **shared), FRONT, shape)
    found = writer.node("AveragePool", x, count_include_pad=1, **shared)
    return Value(writer.node("Mul", [found, writer.weight(np.float32(math.prod(window)))]), FRONT, shape)


def reduction(operator: str) -> Callable[..., Value]:
    def write(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
        (x,) = given
        axes = [x.axis(axis) for axis in params["axes"]]
        if operator == "ReduceSum":
            name = writer.node(operator, [x.name, writer.weight(np.array(axes, np.int64))], keepdims=0)
        elif operator == "ArgMax":
            name = writer.node(operator, [x.name], axis=axes[0], keepdims=0)
            name = writer.node("Cast", [name], to=kind(params["index_dtype"]))
        else:
            name = writer.node(operator, [x.name], axes=axes, keepdims=0)
        left = [axis for axis in x.order if axis not in params["axes"]]
        return Value(name, tuple(sorted(left).index(axis) for axis in left), shape)

    return write


def join(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    orders = [value.order for value in given if isinstance(value, Value)]
    order = max(orders)  # with the channels in front, if one has them so
    names = [
        writer.ordered(value, order) if isinstance(value, Value) else writer.weight(value.transpose(order))
        for value in given
    ]
    return Value(writer.node("Concat", names, axis=order.index(params["dimension"])), order, shape)


def cut(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    (x,) = given
    strides = params["strides"] or [1] * len(shape)
    limits = zip(params["start_indices"], params["limit_indices"], strides, x.shape, strict=True)
    cuts = {axis: (start, stop, step) for axis, (start, stop, step, n) in enumerate(limits)
            if (start, stop, step) != (0, n, 1)}
    return sliced(writer, x, cuts, shape)


def turn(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    return sliced(writer, given[0], {axis: (-1, -(2**31), -1) for axis in params["dimensions"]}, shape)


def sliced(writer: Writer, x: Value, cuts: Mapping[int, tuple[int, int, int]], shape: tuple[int, ...]) -> Value:
    starts, stops, steps = (np.array(column, np.int64) for column in zip(*cuts.values(), strict=True))
    axes = np.array([x.axis(axis) for axis in cuts], np.int64)
    return Value(writer.node("Slice", [x.name, *map(writer.weight, (starts, stops, axes, steps))]), x.order, shape)


def pad(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    x, value = given
    config = [params["padding_config"][axis] for axis in x.order]
    if any(inner or min(low, high) < 0 for low, high, inner in config):
        raise NotImplementedError(f"padding of {params['padding_config']}")
    pads = np.array([low for low, _, _ in config] + [high for _, high, _ in config], np.int64)
    return Value(writer.node("Pad", [x.name, writer.weight(pads), writer.weight(value)]), x.order, shape)


def shaped(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    """`reshape`, `squeeze`, `expand_dims`: the numbers in their order; `jnp.repeat` is one after a broadcast."""
    made, (source, *_), options = writer.made_by.get(given[0].name, ("", [None], {}))
    if made == "broadcast_in_dim" and source.ndim == len(shape):
        left = set(range(given[0].ndim)).difference(options["broadcast_dimensions"])
        axis = min(left) - 1 if len(left) == 1 else -1
        if axis >= 0 and all(n == m or k == axis for k, (n, m) in enumerate(zip(shape, source.shape, strict=True))):
            scales = np.array([shape[k] / source.shape[k] for k in source.order], np.float32)
            options = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
            return source._replace(
                name=writer.node("Resize", [source.name, "", writer.weight(scales)], **options), shape=shape
            )
    name = writer.node("Reshape", [writer.plain(given[0]), writer.weight(np.array(shape, np.int64))])
    return Value(name, tuple(range(len(shape))), shape)


def spread(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    lengths = [1] * len(shape)
    for axis, length in zip(params["broadcast_dimensions"], given[0].shape, strict=True):
        lengths[axis] = length
    narrow = shaped(writer, given, {}, tuple(lengths))
    if narrow.shape == shape:
        return narrow
    name = writer.node("Expand", [narrow.name, writer.weight(np.array(shape, np.int64))])
    return narrow._replace(name=name, shape=shape)


def product(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    x, kernel = given
    if params["dimension_numbers"] != (((x.ndim - 1,), (0,)), ((), ())) or isinstance(kernel, Value):
        raise NotImplementedError(f"a product with dimensions {params['dimension_numbers']}")
    name = writer.node("MatMul", [writer.plain(x), writer.weight(kernel)])
    return Value(name, tuple(range(len(shape))), shape)


def cast(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    return given[0]._replace(name=writer.node("Cast", [given[0].name], to=kind(params["new_dtype"])))


def as_it_is(writer: Writer, given: list[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
    if params.get("mantissa_bits", 23) < 23:
        raise NotImplementedError(f"`reduce_precision` to {params['mantissa_bits']} bits")
    return given[0]._replace(name=writer.node("Identity", [given[0].name]))


RULES: dict[str, Callable[..., Value]] = {
    "argmax": reduction("ArgMax"),
    "broadcast_in_dim": spread,
    "concatenate": join,
    "conv_general_dilated": convolution,
    "convert_element_type": cast,
    "copy": as_it_is,
    "dot_general": product,
    "expand_dims": shaped,
    "pad": pad,
    "reduce_max": reduction("ReduceMax"),
    "reduce_precision": as_it_is,
    "reduce_sum": reduction("ReduceSum"),
    "reduce_window_max": lambda *given: pool(*given, mean=False),
    "reduce_window_sum": lambda *given: pool(*given, mean=True),
    "reshape": shaped,
    "rev": turn,
    "slice": cut,
    "squeeze": shaped,
    "stop_gradient": as_it_is,
    "transpose": lambda writer, given, params, shape: Value(
        writer.ordered(given[0], params["permutation"]), tuple(range(len(shape))), shape
    ),
}
