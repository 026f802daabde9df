"""ESPNet: the authors' network, weight by weight, what is made of its output, and its incremental form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from law import changes, check_incremental
from real import data, needs_data, pictures
from weights import random_params

import deltajax as dj
from deltajax.models._published import shapes
from deltajax.models.espnet import CLASSES, MODEL, EspNet, _doubled, _halved, _norm_act, _pyramid, _residual

STREET = "moving/udacity_test_small1.mp4"  # a dash-cam, 720x1280
DEEP = 1e-5  # twenty pyramids deep, rounding is more than that of one layer

def test_a_frame_that_cannot_be_halved_three_times_is_refused():
    with pytest.raises(ValueError, match=r"`frame` has shape \(16, 20, 3\); .* multiples of 8"):
        shapes(EspNet(), (16, 20))


class Doubled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return _doubled("up", x)


def test_a_position_is_doubled_as_torch_does_it():
    """ConvTranspose2d with stride = kernel size: ``y[2i + a, 2j + b, o] = sum_c x[i, j, c] w[c, o, a, b]``."""
    noise = np.random.default_rng(0)
    x, w = noise.normal(size=(1, 3, 4, 5)).astype(np.float32), noise.normal(size=(5, 5, 2, 2)).astype(np.float32)
    y = Doubled().apply({"params": {"up": {"kernel": w.transpose(2, 3, 1, 0)}}}, x)
    expected = np.einsum("nijc,coab->niajbo", x, w).reshape(1, 6, 8, 5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


class Activated(nn.Module):
    @nn.compact
    def __call__(self, x):
        return _norm_act("b", x)


def test_each_channel_has_its_norm_and_its_slope():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    spec = jax.eval_shape(Activated().init, jax.random.key(0), x)
    given = random_params(spec)
    y = Activated().apply(given, x)
    norm, run = given["params"]["b.bn"], given["batch_stats"]["b.bn"]
    z = (x - run["mean"]) / np.sqrt(run["var"] + 1e-3) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(y, np.where(z > 0, z, z * given["params"]["b.act"]["slope"]), rtol=1e-5, atol=1e-5)


class Parts(nn.Module):
    """One of each part that the network is made of, for the whole of it takes long to compile."""

    @nn.compact
    def __call__(self, frame):
        x = frame[None].astype(jnp.float32) / 255
        half = _halved(x)
        x = jnp.concatenate([_pyramid("down", x, 20, stride=2), half], axis=-1)
        return _doubled("up", _residual("same", _norm_act("down", x)))[0]


def test_a_batch_has_a_map_for_each_frame():
    classes = jax.eval_shape(MODEL.apply, shapes(EspNet(), (8, 8)), jax.ShapeDtypeStruct((3, 2, 16, 24, 3), np.uint8))
    assert (classes.shape, classes.dtype) == ((3, 2, 16, 24), np.uint8)


@pytest.mark.parametrize(
    "network", [Parts(), pytest.param(EspNet(shallow=1, deep=1), marks=pytest.mark.slow)], ids=["parts", "whole"]
)
def test_random_weights_on_random_frames_give_the_same_step_by_step(network):
    frames = changes((64, 72, 3), np.uint8, low=0, high=256)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0), frames[0]))
    inc, _ = check_incremental(network.apply, params, frames, rel=DEEP, hasty=True, bucket=4)
    assert {segment.how for segment in inc.explain(params, frames[0]).segments} == {"tiles"}


def test_interpret_gives_each_pixel_the_class_of_the_nearest_position():
    found = np.array([[0, 10], [13, 8]], np.uint8)
    np.testing.assert_array_equal(MODEL.interpret(jnp.asarray(found), (6, 4)), found.repeat(3, 0).repeat(2, 1))


def test_drawing_tints_and_lists_the_classes():
    rgb = np.full((120, 160, 3), 90, np.uint8)
    drawn = MODEL.draw(rgb, np.full((120, 160), list(CLASSES).index("sky"), np.uint8))
    np.testing.assert_array_equal(drawn[119, 159], [80, 110, 135])
    assert tuple(drawn[0, 0]) == CLASSES["sky"]


@needs_data
def test_the_authors_weights_see_the_street():
    """The check values of the data folder's README, found with the authors' own code."""
    params = MODEL.load(data("weights/espnet_p2_q8_cityscapes.pth"))
    (rgb,) = pictures(STREET, 0)
    output = np.asarray(jax.jit(MODEL.apply)(params, MODEL.prepare(rgb)))
    classes = MODEL.interpret(output, rgb.shape[:2])
    assert classes.shape == rgb.shape[:2]
    shares = {name: np.mean(classes == number) for number, name in enumerate(CLASSES)}
    for name, share in {"road": 0.21, "sky": 0.25, "vegetation": 0.25, "building": 0.14, "car": 0.007}.items():
        np.testing.assert_allclose(shares[name], share, atol=0.02, err_msg=name)


@needs_data
@pytest.mark.slow  # compiles the whole network
def test_the_authors_weights_on_a_clip_give_the_same_step_by_step():
    params = MODEL.load(data("weights/espnet_p2_q8_cityscapes.pth"))
    frames = [MODEL.prepare(rgb)[128:384, 256:768] for rgb in pictures(STREET, 0, 1, 2)]
    frames.append(frames[-1].copy())
    frames[-1][200:210, 300:330] = 255
    check_incremental(EspNet().apply, params, frames, rel=DEEP)
    report = dj.incremental(MODEL.apply).explain(params, frames[0])
    assert {segment.how for segment in report.segments} == {"tiles"}
