"""Prisma-Net: the authors' network, weight by weight, what is made of its output, and its incremental form."""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from law import changes, check_incremental
from safetensors.numpy import save_file
from weights import random_params, state_dict_from_params

import deltajax as dj
from deltajax.draw import GREEN
from deltajax.models.prisma_net import BEHIND, MODEL, SEPARABLE, PrismaNet, _doubled, _module_leaf, _separable
from deltajax.video import open_source

DEEP = 1e-5  # a hundred convolutions deep, rounding is more than that of one layer
WEIGHTS = "weights/prisma_net_256.onnx"
needs_data = pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)


def data(path: str) -> Path:
    return Path(os.environ["DELTAJAX_DATA"]) / path


def frames_of(clip: str, count: int, first: int = 0) -> list[np.ndarray]:
    with open_source(str(data(f"video/static/{clip}"))) as source:
        return [frame.rgb for frame in itertools.islice(source.frames, first, first + count)]


@pytest.fixture(scope="module")
def spec():
    return jax.eval_shape(PrismaNet().init, jax.random.key(0), jax.ShapeDtypeStruct((16, 16, 3), np.uint8))


def file_name(leaf: str) -> str:
    """The initialiser of the authors' file for a weight of the state dict's form."""
    module, _, kind = leaf.rpartition(".")
    if module.endswith(".pointwise"):
        number = int(module.removesuffix(".pointwise").rpartition("_")[2])
        return ("W" if kind == "weight" else "B") + next(name for name, n in SEPARABLE.items() if n == number)
    if module.endswith(".depthwise"):
        return module.removesuffix(".depthwise") + "/depthwise_kernel:0"
    return f"{module}/{'kernel' if kind == 'weight' else 'bias'}:0"


@pytest.fixture
def weights(spec) -> dict[str, np.ndarray]:
    return {file_name(leaf): array for leaf, array in state_dict_from_params(random_params(spec)).items()}


def test_it_has_the_size_of_the_authors_file(spec):
    assert sum(leaf.size for leaf in jax.tree.leaves(spec["params"])) == 923_057


def test_every_weight_arrives_where_it_belongs(tmp_path, weights):
    save_file(weights, tmp_path / "net.safetensors")
    params = MODEL.load(tmp_path / "net.safetensors")["params"]
    assert params["separable_conv2d_96.pointwise"]["kernel"][0, 0, 5, 7] == weights["W13"][7, 5, 0, 0]
    assert params["separable_conv2d_138.pointwise"]["bias"][4] == weights["B"][4]
    depthwise = params["separable_conv2d_120.depthwise"]["kernel"]
    assert depthwise[2, 1, 0, 9] == weights["separable_conv2d_120/depthwise_kernel:0"][9, 0, 2, 1]
    doubling = params["conv2d_transpose_12"]["kernel"]
    assert doubling[2, 1, 60, 100] == weights["conv2d_transpose_12/kernel:0"][100, 60, 2, 1]


def test_weights_that_do_not_fit_are_named(tmp_path, weights):
    del weights["W13"]
    save_file(weights, tmp_path / "net.safetensors")
    missing = "separable_conv2d_96.pointwise.weight is missing; pass"
    with pytest.raises(ValueError, match=rf"net.safetensors' holds no prisma-net weights: {missing}"):
        MODEL.load(tmp_path / "net.safetensors")


def test_names_of_other_networks_stay_as_they_are():
    assert [_module_leaf(name) for name in ("W46", "Wx", "stem.weight")] == ["W46", "Wx", "stem.weight"]


def test_without_a_path_the_error_says_which_file_and_where():
    with pytest.raises(ValueError, match=r"not in the package; pass --weights prisma_nchw.onnx, published in"):
        MODEL.load(None)


def test_a_frame_that_cannot_be_halved_four_times_is_refused():
    with pytest.raises(ValueError, match=r"`frame` has shape \(16, 24, 3\); .* multiples of 16"):
        jax.eval_shape(PrismaNet().init, jax.random.key(0), jax.ShapeDtypeStruct((16, 24, 3), np.uint8))


def test_a_batch_has_a_map_for_each_frame(spec):
    found = jax.eval_shape(MODEL.apply, spec, jax.ShapeDtypeStruct((3, 2, 16, 32, 3), np.uint8))
    assert (found.shape, found.dtype) == ((3, 2, 16, 32), np.float32)


class Parts(nn.Module):
    """One of each part that the network is made of, for the whole of it takes long to compile."""

    @nn.compact
    def __call__(self, frame):
        x = nn.Conv(4, (3, 3), padding=1, name="first")(frame[None].astype(jnp.float32) / 255)
        y = nn.Conv(6, (3, 3), 2, BEHIND, name="halved")(x)
        y = y + _separable("b", nn.relu(_separable("a", nn.relu(y))))
        y = _doubled("doubled", y, 4) + x
        return nn.sigmoid(nn.ConvTranspose(1, (1, 1), transpose_kernel=True, name="last")(y))[0, ..., 0]


def test_random_weights_on_random_frames_give_the_same_step_by_step():
    network = Parts()
    frames = changes((64, 80, 3), np.uint8, low=0, high=256)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0), frames[0]))
    inc, _ = check_incremental(network.apply, params, frames, rel=DEEP, hasty=True, bucket=4)
    assert inc.explain(params, frames[0]).fallback_share <= 0.02


def test_the_result_is_stretched_to_the_picture():
    found = np.array([[0, 1], [0, 1]], np.float32)
    person = MODEL.interpret(found, (4, 8))
    assert (person.shape, person.dtype) == ((4, 8), np.float32)
    np.testing.assert_allclose(person[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_drawing_cuts_the_person_out():
    rgb = np.full((2, 3, 3), 200, np.uint8)
    drawn = MODEL.draw(rgb, np.array([[0, 0.5, 1], [0, 0, 1]], np.float32))
    np.testing.assert_array_equal(drawn[0], [GREEN, (130, 210, 145), (200, 200, 200)])


@needs_data
def test_the_authors_weights_find_the_person():
    """The check values of the data folder's README, found with onnxruntime; and the file's own graph."""
    pytest.importorskip("onnx")
    params = MODEL.load(data(WEIGHTS))
    graph, initialisers = dj.onnx.load(data(WEIGHTS))
    for clip, first, share in (("asl/again.mkv", 0, 0.289), ("bottle-detection.mp4", 10, 0.014)):
        (rgb,) = frames_of(clip, 1, first)
        frame = MODEL.prepare(rgb)
        output = np.asarray(jax.jit(MODEL.apply)(params, frame))
        np.testing.assert_allclose(np.mean(output > 0.5), share, atol=5e-4, err_msg=clip)
        scaled = frame.astype(np.float32).transpose(2, 0, 1)[None] / 255
        np.testing.assert_allclose(output, jax.jit(graph)(initialisers, scaled)[0, 0], atol=1e-5, err_msg=clip)
        assert MODEL.interpret(output, rgb.shape[:2]).shape == rgb.shape[:2]


@needs_data
@pytest.mark.slow  # compiles the whole network
def test_the_authors_weights_on_a_clip_give_the_same_step_by_step():
    pytest.importorskip("onnx")
    params = MODEL.load(data(WEIGHTS))
    frames = [MODEL.prepare(rgb) for rgb in frames_of("asl/again.mkv", 3, 20)]
    frames.append(frames[-1].copy())
    frames[-1][200:210, 130:160] = 255
    inc, _ = check_incremental(MODEL.apply, params, frames, rel=DEEP)
    assert inc.explain(params, frames[0]).fallback_share <= 0.02


@needs_data
def test_another_networks_weights_are_refused():
    with pytest.raises(ValueError, match=r"fastestdet_coco.pth' holds no prisma-net weights"):
        MODEL.load(data("weights/fastestdet_coco.pth"))
