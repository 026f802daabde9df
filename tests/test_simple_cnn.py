"""SimpleCNN: shapes, the shipped weights, what they reach, weights that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltajax.datasets import read_mnist
from deltajax.models import digits, simple_cnn
from deltajax.models._weights import flatten, nest, write_params
from train import mnist

SHAPES = {
    "conv1/bias": (32,),
    "conv1/kernel": (3, 3, 1, 32),
    "conv2/bias": (64,),
    "conv2/kernel": (3, 3, 32, 64),
    "fc1/bias": (128,),
    "fc1/kernel": (16384, 128),
    "fc2/bias": (10,),
    "fc2/kernel": (128, 10),
}


def test_shipped_weights_have_the_shapes_of_the_paper():
    flat = flatten(simple_cnn.load_params())
    assert {name: leaf.shape for name, leaf in flat.items()} == SHAPES
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in flat.values())


def test_flax_gives_what_the_layers_say():
    params = simple_cnn.init_params(jax.random.key(1))
    x = jax.random.uniform(jax.random.key(2), (64, 64, 1))
    y = x
    for name in ("conv1", "conv2"):
        padded = jnp.pad(y, ((1, 1), (1, 1), (0, 0)))
        h, w, _ = y.shape
        kernel = params[name]["kernel"]
        y = sum(padded[i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
        y = jnp.maximum(y + params[name]["bias"], 0)
        y = y.reshape(h // 2, 2, w // 2, 2, -1).max((1, 3))
    y = jnp.maximum(y.reshape(-1) @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    y = y @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(simple_cnn.apply(params, x), y, rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_frames():
    params = simple_cnn.init_params(jax.random.key(1))
    frames = jax.random.uniform(jax.random.key(2), (3, 64, 64, 1))
    batch = simple_cnn.apply(params, frames)
    assert batch.shape == (3, 10)
    np.testing.assert_allclose(batch[1], simple_cnn.apply(params, frames[1]), rtol=1e-4, atol=1e-5)


def test_weights_come_back_rounded_to_half(tmp_path: Path):
    params = simple_cnn.init_params(jax.random.key(0))
    write_params(tmp_path / "w.safetensors", params)
    read = simple_cnn.load_params(tmp_path / "w.safetensors")
    for leaf, back in zip(jax.tree.leaves(params), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(back, np.asarray(leaf, np.float16).astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_names_nest_and_flatten():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(tree) == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert nest(flatten(tree)) == tree


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "digits.safetensors"
    write_params(path, digits.init_params(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"digits\.safetensors.*another model.*`conv1/bias` is \(16,\)"):
        simple_cnn.load_params(path)


def test_a_missing_leaf_is_named(tmp_path: Path):
    flat = {name: np.zeros(shape, np.float16) for name, shape in SHAPES.items() if name != "fc2/bias"}
    save_file(flat, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="`fc2/bias` is missing there"):
        simple_cnn.load_params(tmp_path / "w.safetensors")


def test_a_missing_or_cut_off_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        simple_cnn.load_params(tmp_path / "nowhere.safetensors")
    path = tmp_path / "cut.safetensors"
    write_params(path, simple_cnn.init_params(jax.random.key(0)))
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        simple_cnn.load_params(path)


@pytest.mark.skipif("DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with mnist/")
def test_the_shipped_weights_name_985_of_1000_test_digits():
    data = read_mnist(Path(os.environ["DELTAJAX_DATA"]) / "mnist")
    assert len(data.test_labels) == 10_000
    assert mnist.accuracy(simple_cnn.load_params(), data.test_images, data.test_labels) >= 0.985
