"""Files of our networks, written by `to_onnx`, computed by ONNX Runtime: the same values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import linen as nn
from jax import lax
from to_onnx import to_onnx

from deltajax.models import get_model
from deltajax.models._random import random_params

onnxruntime = pytest.importorskip("onnxruntime")
HEAVY = ("espnet", "fastestdet", "hrnet-w32", "mobilenetv2", "prisma-net", "resnet50", "unet")


def computed(model: onnx.ModelProto, frame: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"frame": frame})


def check(fn, params, frame: np.ndarray) -> onnx.ModelProto:
    """The law: what the file computes is what the function computes; returns the file."""
    model = to_onnx(fn, params, frame)
    outputs = computed(model, frame)
    for expected, output in zip(jax.tree.leaves(jax.jit(fn)(params, frame)), outputs, strict=True):
        assert (expected.shape, expected.dtype) == (output.shape, output.dtype)
        expected = np.asarray(expected)
        tolerance = 2e-4 * np.abs(expected).max() if np.issubdtype(expected.dtype, np.floating) else 0
        # One pixel in thousands may be another where two classes, or both sides of a steep sigmoid, are as likely.
        assert (np.abs(output.astype(np.float64) - expected) > tolerance).mean() < 1e-3
    return model


@pytest.mark.parametrize(
    "name",
    ["blazeface", "mobilenet-vww", "resnet18", "rfb-320", "slim-320",
     *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)],
)
def test_networks(name):
    network = get_model(name)
    frame = np.random.default_rng(0).integers(0, 256, (*(network.frame_size or (96, 128)), 3), np.uint8)
    check(network.apply, random_params(network.shapes()), frame)


def kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def conv(frame, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), **options):
    sizes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(frame[None], kernel, strides, padding, dimension_numbers=sizes, **options)


KERNEL = kernel(3, 3, 3, 4)
FUNCTIONS = {
    "transposed": (functools.partial(conv, lhs_dilation=(2, 3), padding=((1, 0), (2, 1))), kernel(3, 4, 3, 2)),
    "transposed, grouped": (functools.partial(conv, lhs_dilation=(2, 2), feature_group_count=3), kernel(3, 3, 1, 6)),
    "dilated, padded on one side": (
        functools.partial(conv, rhs_dilation=(2, 1), strides=(2, 1), padding=((0, 3), (1, 0))), kernel(3, 2, 3, 4)
    ),
    "averages at the border": (lambda x, k: nn.avg_pool(conv(x, k), (3, 3), (2, 2), ((1, 0), (1, 1))), KERNEL),
    "largest at the border": (lambda x, k: nn.max_pool(conv(x, k), (2, 3), (1, 2), ((1, 0), (1, 1))), KERNEL),
    "a slope of each channel": (
        lambda x, k: jnp.where(conv(x, k) > 0, conv(x, k), k[0, 0, 0] * conv(x, k)), KERNEL
    ),
    "prelu": (lambda x, k: (lambda y: jnp.where(y > 0, y, k[0, 0, 0] * y))(conv(x, k)), KERNEL),
    "means over rows and a softmax": (lambda x, k: jax.nn.softmax(conv(x, k).mean(1)), KERNEL),
    "largest channel": (lambda x, k: jnp.argmax(conv(x, k), axis=-1), KERNEL),
    "channels turned round and joined": (
        lambda x, k: jnp.concatenate([conv(x[..., ::-1], k), x[None]], axis=-1)[:, 1:-1:2, :, 2:], KERNEL
    ),
    "twice as large, padded": (
        lambda x, k: jnp.pad(jnp.repeat(jnp.repeat(conv(x, k), 2, 1), 2, 2), ((0, 0), (1, 2), (0, 1), (0, 0))),
        KERNEL,
    ),
    "between limits": (lambda x, k: jnp.clip(conv(x, k), -0.5, 2) - jnp.minimum(k[0, 0, 0], 1), KERNEL),
    "a picture of params added": (lambda x, k: conv(x, k) - k[0, 0].sum() * jnp.arange(9.0)[:, None], KERNEL),
    "params alone": (lambda x, k: (x.sum(), k[0]), KERNEL),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    fn, weights = FUNCTIONS[name]
    frame = np.random.default_rng(0).normal(size=(7, 9, 3)).astype(np.float32)
    model = check(lambda weights, frame: fn(frame, weights), weights, frame)
    kinds = {node.op_type for node in model.graph.node}
    assert ("PRelu" in kinds) == (name == "prelu")
    assert ("Resize" in kinds) == (name == "twice as large, padded")
    assert "Expand" not in kinds or name == "means over rows and a softmax"


def test_what_is_not_known_is_named():
    frame = jax.ShapeDtypeStruct((4, 4, 3), jnp.float32)
    with pytest.raises(NotImplementedError, match="there is no rule for `sort`"):
        to_onnx(lambda params, x: jnp.sort(x), (), frame)
    with pytest.raises(NotImplementedError, match="padding of"):
        to_onnx(lambda params, x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0), (0, 0, 0))), (), frame)
