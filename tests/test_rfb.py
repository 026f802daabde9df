"""RFB-320: the authors' network, weight by weight, its block and the whole of it on tiles."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from law import changes, check_incremental
from real import data, needs_data, pictures
from safetensors.numpy import save_file
from weights import random_layers, to_torch

from deltajax.models._published import shapes
from deltajax.models.rfb import EPS, FRAME_SIZE, MODEL, RFB320, branch, layers, load, receptive_fields


@pytest.fixture(scope="module")
def spec():
    return shapes(RFB320(), FRAME_SIZE)["params"]


def test_it_has_the_size_of_the_authors_network(spec):
    """A convolution without a bias, but with the scale and shift of its batch norm, counts as two for each channel."""
    per_channel = {name: 2 if layer.norm else 1 for name, layer in layers(spec).items()}
    assert sum(leaf["kernel"].size + per_channel[name] * leaf["bias"].size for name, leaf in spec.items()) == 276_292


@pytest.mark.parametrize(
    ("conv", "norm"), [("base_net.3.3", "base_net.3.4"), ("base_net.7.branch2.3.conv", "base_net.7.branch2.3.bn")]
)
def test_every_batch_norm_is_folded_into_its_convolution(spec, tmp_path, conv, norm):
    state_dict = to_torch(random_layers(layers(spec), spec))
    save_file(state_dict, tmp_path / "rfb.safetensors")
    layer = load(tmp_path / "rfb.safetensors")["params"][conv]
    scale, shift, mean, variance = (
        state_dict[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    gain = scale / np.sqrt(variance + EPS)
    weight = state_dict[f"{conv}.weight"]
    assert layer["kernel"].shape == weight.shape[2:] + weight.shape[1::-1]
    np.testing.assert_allclose(layer["kernel"][0, 0, 5, 7], weight[7, 5, 0, 0] * gain[7], rtol=1e-5)
    np.testing.assert_allclose(layer["bias"], shift - mean * gain, rtol=1e-5, atol=1e-6)


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


@needs_data
@pytest.mark.parametrize("clip", ["again", "book", "sister"])
def test_the_authors_weights_find_the_face(clip):
    params = MODEL.load(data("weights/version-RFB-320.pth"))
    (rgb,) = pictures(f"static/asl/{clip}.mkv", 0)
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
    frames = [MODEL.prepare(rgb) for rgb in pictures("static/asl/again.mkv", 0, 1, 2)]
    patch = frames[-1].copy()
    patch[100:120, 40:70] = frames[0][:20, :30]
    inc, caches = check_incremental(MODEL.apply, params, [*frames, patch, patch, frames[-1]], hasty=True)
    assert inc.explain(params, frames[0]).fallback_share < 0.01
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[4] < issued[3] < issued[0]
