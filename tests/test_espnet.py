"""ESPNet: the authors' network, weight by weight, what is made of its output, and its incremental form."""

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

from deltajax.models.espnet import CLASSES, MODEL, EspNet, _doubled, _norm_act
from deltajax.video import open_source

DEEP = 1e-5  # twenty pyramids deep, rounding is more than that of one layer
needs_data = pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)


def data(path: str) -> Path:
    return Path(os.environ["DELTAJAX_DATA"]) / path


def street(count: int) -> list[np.ndarray]:
    """The first frames of a dash-cam clip, uint8 RGB, 720x1280."""
    with open_source(str(data("video/moving/udacity_test_small1.mp4"))) as source:
        return [frame.rgb for frame in itertools.islice(source.frames, count)]


def spec_of(network: EspNet):
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((8, 8, 3), np.uint8))


@pytest.fixture(scope="module")
def spec():
    return spec_of(EspNet())


@pytest.fixture
def state_dict(spec) -> dict[str, np.ndarray]:
    return state_dict_from_params(random_params(spec))


def test_it_has_the_size_that_its_authors_publish(spec):
    assert sum(leaf.size for leaf in jax.tree.leaves(spec["params"])) == 364_569


def test_every_weight_arrives_where_it_belongs(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "net.safetensors")
    loaded = MODEL.load(tmp_path / "net.safetensors")
    params, name = loaded["params"], "encoder.level3.7.d16.conv"
    assert params[name]["kernel"][2, 0, 5, 7] == state_dict[f"{name}.weight"][7, 5, 2, 0]
    assert params["up_l2.1.act"]["slope"][4] == state_dict["up_l2.1.act.weight"][4]
    assert loaded["batch_stats"]["br"]["mean"][3] == state_dict["br.running_mean"][3]


def test_weights_that_do_not_fit_are_named(tmp_path, state_dict):
    del state_dict["up_l3.0.weight"]
    save_file(state_dict, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net.safetensors' holds no espnet weights: up_l3.0.weight is missing; pass"):
        MODEL.load(tmp_path / "net.safetensors")


def test_without_a_path_the_error_says_which_file_and_where():
    with pytest.raises(ValueError, match=r"not in the package; pass --weights espnet_p_2_q_8.pth, published in"):
        MODEL.load(None)


def test_a_frame_that_cannot_be_halved_three_times_is_refused():
    with pytest.raises(ValueError, match=r"`frame` has shape \(16, 20, 3\); .* multiples of 8"):
        jax.eval_shape(EspNet().init, jax.random.key(0), jax.ShapeDtypeStruct((16, 20, 3), np.uint8))


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


@pytest.fixture(scope="module")
def small():
    """The network without what it repeats, and random weights."""
    network = EspNet(shallow=0, deep=0)
    return network.apply, random_params(spec_of(network))


def test_a_batch_has_a_map_for_each_frame(spec):
    classes = jax.eval_shape(MODEL.apply, spec, jax.ShapeDtypeStruct((3, 2, 16, 24, 3), np.uint8))
    assert (classes.shape, classes.dtype) == ((3, 2, 16, 24), np.uint8)


def test_random_weights_on_random_frames_give_the_same_step_by_step(small):
    fn, params = small
    frames = changes((64, 72, 3), np.uint8, low=0, high=256)
    inc, _ = check_incremental(fn, params, frames, rel=DEEP, hasty=True, bucket=4)
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
    (rgb,) = street(1)
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
    frames = [MODEL.prepare(rgb)[128:384, 256:768] for rgb in street(3)]
    frames.append(frames[-1].copy())
    frames[-1][200:210, 300:330] = 255
    inc, _ = check_incremental(EspNet().apply, params, frames, rel=DEEP)
    assert {segment.how for segment in inc.explain(params, frames[0]).segments} == {"tiles"}


@needs_data
def test_another_networks_weights_are_refused():
    with pytest.raises(ValueError, match=r"fastestdet_coco.pth' holds no espnet weights"):
        MODEL.load(data("weights/fastestdet_coco.pth"))
