"""RFB-320: the authors' network, weight by weight, its block and the whole of it on tiles."""

import itertools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from law import changes, check_incremental
from safetensors.numpy import save_file

from deltajax.models.rfb import EPS, MODEL, branch, layers, load, params_from_state_dict, receptive_fields, shapes
from deltajax.video import open_source

needs_data = pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)


def data(path: str) -> Path:
    return Path(os.environ["DELTAJAX_DATA"]) / path


@pytest.fixture(scope="module")
def spec():
    return shapes()


@pytest.fixture
def state_dict(spec) -> dict[str, np.ndarray]:
    """Random weights under the authors' names and in their layout."""
    noise = np.random.default_rng(0)
    arrays = {}
    for name, layer in layers(spec).items():
        rows, columns, inner, outer = spec[name]["kernel"].shape
        arrays[layer.kernel] = noise.uniform(0.1, 0.2, (outer, inner, rows, columns)).astype(np.float32)
        for array in layer.per_channel:
            arrays[array] = noise.uniform(0.1, 0.2, outer).astype(np.float32)
    return arrays | {"base_net.0.1.num_batches_tracked": np.array(9)}


def test_it_has_the_size_of_the_authors_network(spec):
    """A convolution without a bias, but with the scale and shift of its batch norm, counts as two for each channel."""
    per_channel = {name: 2 if layer.norm else 1 for name, layer in layers(spec).items()}
    assert sum(leaf["kernel"].size + per_channel[name] * leaf["bias"].size for name, leaf in spec.items()) == 276_292


@pytest.mark.parametrize(
    ("conv", "norm"), [("base_net.3.3", "base_net.3.4"), ("base_net.7.branch2.3.conv", "base_net.7.branch2.3.bn")]
)
def test_every_batch_norm_is_folded_into_its_convolution(state_dict, conv, norm):
    layer = params_from_state_dict(state_dict, "here")["params"][conv]
    scale, shift, mean, variance = (
        state_dict[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    gain = scale / np.sqrt(variance + EPS)
    weight = state_dict[f"{conv}.weight"]
    assert layer["kernel"].shape == weight.shape[2:] + weight.shape[1::-1]
    np.testing.assert_allclose(layer["kernel"][0, 0, 5, 7], weight[7, 5, 0, 0] * gain[7], rtol=1e-5)
    np.testing.assert_allclose(layer["bias"], shift - mean * gain, rtol=1e-5, atol=1e-6)


def test_safetensors_with_the_authors_names_are_taken(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "rfb.safetensors")
    params = load(tmp_path / "rfb.safetensors")
    np.testing.assert_array_equal(params["params"]["extras.0.0"]["bias"], state_dict["extras.0.0.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("extras.0.0.bias"), "extras.0.0.bias is missing"),
        (lambda w: w.update(fc=np.zeros(2)), "fc is not part of it"),
        (
            lambda w: w.update({"base_net.7.shortcut.conv.weight": np.zeros((64, 32, 1, 1))}),
            r"base_net.7.shortcut.conv.weight is \(1, 1, 32, 64\) instead of \(1, 1, 64, 64\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(state_dict, change, message):
    change(state_dict)
    remedy = "; pass --weights version-RFB-320.pth"
    with pytest.raises(ValueError, match=f"'here' holds no rfb-320 weights: {message}{remedy}") as caught:
        params_from_state_dict(state_dict, "here")
    assert "\n" not in str(caught.value)


def test_without_a_path_the_error_says_which_file_and_where():
    with pytest.raises(ValueError, match=r"not in the package; pass --weights version-RFB-320.pth, published in"):
        MODEL.load(None)


class Branch(nn.Module):
    """The branch of the largest dilation alone."""

    @nn.compact
    def __call__(self, x):
        return branch("branch", x[None], (2, 3, 4), dilation=5)[0]


class Block(nn.Module):
    """The receptive field block alone."""

    @nn.compact
    def __call__(self, x):
        return receptive_fields("block", x[None])[0]


@pytest.mark.parametrize("part", [Branch(), pytest.param(Block(), marks=pytest.mark.slow)])
def test_the_block_runs_on_tiles(part):
    params = part.init(jax.random.key(0), np.zeros((8, 8, 16), np.float32))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # a bias of zero would hide wrong borders
    inc, caches = check_incremental(part.apply, params, changes((26, 30, 16)), hasty=True, tile=6)
    assert inc.explain(params, jax.ShapeDtypeStruct((26, 30, 16), np.float32)).fallback_share == 0
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[2] < issued[1] < issued[0]


def frames_of(clip: str, count: int) -> list[np.ndarray]:
    with open_source(str(data(f"video/static/asl/{clip}.mkv"))) as source:
        return [frame.rgb for frame in itertools.islice(source.frames, count)]


@needs_data
@pytest.mark.parametrize("clip", ["again", "book", "sister"])
def test_the_authors_weights_find_the_face(clip):
    params = MODEL.load(data("weights/version-RFB-320.pth"))
    (rgb,) = frames_of(clip, 1)
    output = jax.tree.map(np.asarray, jax.jit(MODEL.apply)(params, MODEL.prepare(rgb)))
    faces = MODEL.interpret(output, rgb.shape[:2])
    assert len(faces.scores) == 1
    assert faces.scores[0] > 0.99
    if clip == "again":  # the check values of the data folder's README, found with the authors' own code
        assert faces.scores[0] > 0.9995
        best = output["boxes"][output["scores"][:, 1].argmax()]
        np.testing.assert_allclose(best, [0.455, 0.165, 0.556, 0.360], atol=0.02)


@needs_data
@pytest.mark.slow  # compiles the whole detector
def test_a_clip_on_tiles_is_the_clip_dense():
    params = MODEL.load(data("weights/version-RFB-320.pth"))
    frames = [MODEL.prepare(rgb) for rgb in frames_of("again", 3)]
    patch = frames[-1].copy()
    patch[100:120, 40:70] = frames[0][:20, :30]
    inc, caches = check_incremental(MODEL.apply, params, [*frames, patch, patch, frames[-1]], hasty=True)
    assert inc.explain(params, frames[0]).fallback_share < 0.01
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[4] < issued[3] < issued[0]


@needs_data
def test_its_sibling_with_other_layers_is_refused():
    with pytest.raises(ValueError, match=r"version-slim-320.pth' holds no rfb-320 weights"):
        MODEL.load(data("weights/version-slim-320.pth"))
