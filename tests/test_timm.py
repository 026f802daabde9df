"""ConvNeXt-T, HRNet-W32 and ViT-S/16: timm's networks, weight by weight, and their incremental form."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from law import changes, check_incremental
from others import import_or_skip
from safetensors.numpy import save_file
from weights import random_params, state_dict_from_params

import deltajax as dj
from deltajax.models import get_model
from deltajax.models._published import Published, shapes
from deltajax.models._state_dict import params_from_state_dict
from deltajax.models._weights import flatten
from deltajax.models.convnext import ConvNeXt
from deltajax.models.hrnet import HRNet
from deltajax.models.vit import GRID, ViT, positions


class Case(NamedTuple):
    """A network of the registry, what timm calls it, and the same in small.

    Attributes:
        timm, options: for `timm.create_model`.
        mean, std: of the frames that timm's network takes, in 0..1.
        parameters: as published.
        small: of few and narrow blocks.
        frame: (height, width), as odd as the network takes it.
        logits: the first four that timm 1.0.31 gives for that in float64, with `random_params` and the frame below.
        weights: a name in the state dict of `small` for each kind of weight, and what it is called in Flax.
    """

    network: nn.Module
    timm: str
    options: dict[str, bool]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    parameters: int
    small: nn.Module
    frame: tuple[int, int]
    logits: tuple[float, float, float, float]
    weights: dict[str, str]


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = {
    "convnext-t": Case(
        ConvNeXt(),
        "convnext_tiny",
        {},
        *IMAGENET,
        28_589_128,
        ConvNeXt(depths=(1, 1, 1, 1), widths=(8, 12, 16, 24)),
        (67, 99),
        (0.765978, -2.04715, 0.130588, 0.68771),
        {
            "stages.1.downsample.1.weight": "params/stages.1.downsample.1/kernel",
            "stages.0.blocks.0.conv_dw.weight": "params/stages.0.blocks.0/conv_dw/kernel",
            "stages.0.blocks.0.mlp.fc1.weight": "params/stages.0.blocks.0/mlp.fc1/kernel",
            "stages.3.blocks.0.norm.weight": "params/stages.3.blocks.0/norm/scale",
            "stages.3.blocks.0.gamma": "params/stages.3.blocks.0/gamma",
        },
    ),
    "hrnet-w32": Case(
        HRNet(),
        "hrnet_w32",
        {},
        *IMAGENET,
        41_232_680,
        HRNet(widths=(8, 12, 16, 24), exchanges=(1, 1, 1), blocks=1),
        (64, 96),
        (181.113, -130.357, 85.813, -15.2714),
        {
            "stage4.0.fuse_layers.3.1.0.0.weight": "params/stage4.0/fuse_layers.3.1.0.0/kernel",
            "transition1.0.1.running_var": "batch_stats/transition1.0.1/var",
            "downsamp_modules.2.0.bias": "params/downsamp_modules.2.0/bias",
        },
    ),
    "vit-s": Case(
        ViT(),
        "vit_small_patch16_224",
        {"dynamic_img_size": True},
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        22_050_664,
        ViT(width=24, depth=2, heads=3),
        (48, 80),
        (-1.70008, -2.14742, 0.749993, 0.13085),
        {
            "blocks.1.attn.qkv.weight": "params/blocks.1/attn/qkv/kernel",
            "blocks.1.norm2.bias": "params/blocks.1/norm2/bias",
            "cls_token": "params/cls_token",
            "pos_embed": "params/pos_embed",
        },
    ),
}


@pytest.fixture(params=CASES)
def name(request) -> str:
    return request.param


@functools.cache
def spec_of(network: nn.Module):
    return shapes(network, (224, 224))


def test_it_has_the_size_that_its_authors_publish(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(spec_of(CASES[name].network)["params"])) == CASES[name].parameters


def test_every_weight_arrives_where_it_belongs(name):
    spec = spec_of(CASES[name].small)
    weights = state_dict_from_params(random_params(spec))
    params = flatten(params_from_state_dict(weights, spec, Published(name, ""), "here"))
    assert len(params) == len(weights)
    for torch, flax in CASES[name].weights.items():
        got = np.asarray(params[flax])
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}[got.ndim] if flax.endswith("kernel") else range(got.ndim)
        np.testing.assert_array_equal(got.transpose(*axes), weights[torch])


@pytest.mark.slow  # up to 165 MB
def test_a_file_becomes_params_and_the_params_that_file(name, tmp_path):
    weights = state_dict_from_params(random_params(spec_of(CASES[name].network)))
    save_file(weights | {"bn1.num_batches_tracked": np.array(9)}, tmp_path / "net.safetensors")
    again = state_dict_from_params(get_model(name).load(tmp_path / "net.safetensors"))
    assert again.keys() == weights.keys()
    for weight, array in weights.items():
        np.testing.assert_array_equal(again[weight], array, err_msg=weight)


def test_weights_that_do_not_fit_are_named(name):
    case = CASES[name]
    spec = spec_of(case.small)
    first, second, *_ = case.weights
    weights = state_dict_from_params(random_params(spec))
    del weights[first]
    weights[second] = np.zeros((9, 1), np.float32)
    weights["head.extra"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=rf"'here' holds no {name} weights: .*; give this") as caught:
        params_from_state_dict(weights, spec, Published(name, "give this"), "here")
    assert f"{first} is missing" in str(caught.value)
    assert f"{second} has shape (9, 1)" in str(caught.value)
    assert "head.extra is not part of it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_path_the_error_says_which_file_and_where(name):
    with pytest.raises(ValueError, match=rf"the weights of {name} are not in the package; pass --weights .*https"):
        get_model(name).load(None)


def test_in_small_it_gives_what_timm_gave(name):
    case = CASES[name]
    frame = np.random.default_rng(1).integers(0, 256, (*case.frame, 3), np.uint8)
    run = jax.jit(case.small.apply)
    logits = np.asarray(run(random_params(spec_of(case.small)), frame))
    np.testing.assert_allclose(logits[:4], case.logits, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize(("name", "side"), [("hrnet-w32", 32), ("vit-s", 16)])
def test_a_frame_that_does_not_divide_is_refused(name, side):
    with pytest.raises(ValueError, match=rf"`frame` has shape \(64, 72, 3\); .* multiples of {side}"):
        jax.eval_shape(CASES[name].network.init, jax.random.key(0), jax.ShapeDtypeStruct((64, 72, 3), np.uint8))


def test_a_batch_has_logits_for_each_frame(name):
    network = CASES[name].small
    spec = jax.ShapeDtypeStruct((3, 2, 64, 96, 3), np.uint8)
    logits = jax.eval_shape(network.apply, spec_of(network), spec)
    assert (logits.shape, logits.dtype) == ((3, 2, 1000), np.float32)


def test_positions_of_the_learned_size_stay_and_others_are_between_them():
    learned = jnp.arange(1 + GRID * GRID, dtype=jnp.float32)[None, :, None]
    assert positions(learned, GRID, GRID) is learned
    resized = np.asarray(positions(learned, 2 * GRID, GRID))[0, :, 0]
    assert resized[0] == 0
    grid = resized[1:].reshape(2 * GRID, GRID)
    # A cubic goes through a straight line: four rows of a border's reach are left out.
    rows = 1 + GRID * (np.arange(4, 2 * GRID - 4) / 2 - 0.25)
    np.testing.assert_allclose(grid[4:-4], rows[:, None] + np.arange(GRID), rtol=1e-5)


def test_what_is_found_goes_by_the_number_of_its_class(name):
    model = get_model(name)
    found = model.interpret(np.eye(1000, dtype=np.float32)[281] * 20, (48, 64))
    assert found.name == "class 281"
    assert found.probability > 0.99


@pytest.mark.parametrize("name", ["convnext-t", pytest.param("hrnet-w32", marks=pytest.mark.slow), "vit-s"])
def test_next_to_nothing_falls_back_to_dense(name):
    frame = jax.ShapeDtypeStruct((224, 224, 3), np.uint8)
    network = CASES[name].network
    assert dj.incremental(network.apply).explain(spec_of(network), frame).fallback_share <= 0.02


@pytest.mark.slow
def test_random_weights_on_random_frames_give_the_same_step_by_step(name):
    network, frames = CASES[name].small, changes((*CASES[name].frame, 3), np.uint8, low=0, high=256)
    check_incremental(network.apply, random_params(spec_of(network)), frames, rel=1e-5, hasty=True, bucket=4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
def test_it_gives_what_timm_gives(name, size, tmp_path):
    timm, torch = import_or_skip("timm"), import_or_skip("torch")
    case = CASES[name]
    model = timm.create_model(case.timm, **case.options)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight, array in model.state_dict().items():
            if array.ndim == 1 and not weight.endswith("running_var"):  # layer scales of 1e-6 would hide their blocks
                low = 0.8 if weight.endswith("weight") else -0.2
                array.copy_(low + 0.4 * torch.rand(array.shape, generator=noise))
        frames = torch.randint(0, 256, (2, *size, 3), generator=noise, dtype=torch.uint8)
        pictures = (frames / 255 - torch.tensor(case.mean)) / torch.tensor(case.std)
        # Running statistics of the pictures themselves keep the values of a deep network at their size.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(pictures.permute(0, 3, 1, 2))
        expected = model.eval()(pictures.permute(0, 3, 1, 2)).numpy()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    params = get_model(name).load(tmp_path / "net.pth")
    logits = np.asarray(jax.jit(get_model(name).apply)(params, frames.numpy()))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
