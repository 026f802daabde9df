"""U-Net: the author's network, weight by weight, what is made of its output, and its incremental form."""

import jax
import numpy as np
import pytest
from law import changes, check_incremental
from others import import_or_skip
from safetensors.numpy import save_file
from weights import random_params, state_dict_from_params

import deltajax as dj
from deltajax.models import get_model
from deltajax.models.unet import CLASSES, MODEL, UNet, apply, doubled

DEEP = 1e-5  # twenty layers deep, rounding is more than that of one layer
BOTH = pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])


def spec_of(network: UNet, height: int = 16, width: int = 16):
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [(UNet(classes=1), 31_037_633), (UNet(), 31_037_698), (UNet(bilinear=True), 17_263_042)],
)
def test_it_has_the_size_that_its_author_gets(network, parameters):
    assert sum(leaf.size for leaf in jax.tree.leaves(spec_of(network)["params"])) == parameters


@pytest.mark.slow  # 125 MB
@BOTH
def test_a_file_becomes_params_and_the_params_that_file(bilinear, tmp_path):
    weights = state_dict_from_params(random_params(spec_of(UNet(bilinear=bilinear))))
    save_file(weights | {"inc.double_conv.1.num_batches_tracked": np.array(9)}, tmp_path / "net.safetensors")
    params = MODEL.load(tmp_path / "net.safetensors")
    kernel = params["params"]["up4"]["conv.double_conv"]["3"]["kernel"]
    assert kernel[2, 0, 5, 7] == weights["up4.conv.double_conv.3.weight"][7, 5, 2, 0]
    again = state_dict_from_params(params)
    assert again.keys() == weights.keys()
    for weight, array in weights.items():
        np.testing.assert_array_equal(again[weight], array, err_msg=weight)
    frame = np.random.default_rng(1).integers(0, 256, (17, 40, 3), np.uint8)
    classes = np.asarray(jax.jit(apply)(params, frame))
    logits = np.asarray(jax.jit(UNet(bilinear=bilinear).apply)(params, frame))
    np.testing.assert_array_equal(classes, logits.argmax(axis=-1))
    assert classes.dtype == np.uint8


def test_weights_that_do_not_fit_are_named(tmp_path):
    weights = state_dict_from_params(random_params(spec_of(UNet(width=4))))
    del weights["up1.up.bias"]
    save_file(weights, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net.safetensors' holds no unet weights: .* has shape .*; pass") as caught:
        MODEL.load(tmp_path / "net.safetensors")
    assert "\n" not in str(caught.value)


def test_without_a_path_the_error_says_which_file_and_where():
    with pytest.raises(ValueError, match=r"not in the package; pass --weights unet_carvana.*published in"):
        MODEL.load(None)


def test_a_frame_that_cannot_be_halved_four_times_is_refused():
    with pytest.raises(ValueError, match=r"`frame` has shape \(64, 15, 3\); .* at least 16"):
        spec_of(UNet(), 64, 15)


def of_torch(weights: dict[str, np.ndarray], frames: np.ndarray) -> np.ndarray:
    """Logits [n, height, width, classes], by torch's functions, read off the names in the state dict."""
    torch = import_or_skip("torch")
    given, f = {name: torch.tensor(array) for name, array in weights.items()}, torch.nn.functional

    def convolved(x, name):
        for conv, norm in ((0, 1), (3, 4)):
            x = f.conv2d(x, given[f"{name}.double_conv.{conv}.weight"], padding=1)
            scale, bias, mean, var = (
                given[f"{name}.double_conv.{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            x = f.relu(f.batch_norm(x, mean, var, scale, bias))
        return x

    maps = [convolved(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255, "inc")]
    for level in (1, 2, 3, 4):
        maps.append(convolved(f.max_pool2d(maps[-1], 2), f"down{level}.maxpool_conv.1"))
    x = maps.pop()
    for level in (1, 2, 3, 4):
        name, skip = f"up{level}", maps.pop()
        if f"{name}.up.weight" in given:
            x = f.conv_transpose2d(x, given[f"{name}.up.weight"], given[f"{name}.up.bias"], stride=2)
        else:
            x = f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = f.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = convolved(torch.cat([skip, x], dim=1), f"{name}.conv")
    return f.conv2d(x, given["outc.conv.weight"], given["outc.conv.bias"]).permute(0, 2, 3, 1).numpy()


@BOTH
@pytest.mark.parametrize("size", [(32, 48), (31, 21)])
def test_it_gives_what_torch_gives(bilinear, size):
    import_or_skip("torch")
    network = UNet(bilinear=bilinear, width=4)
    frames = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    params = random_params(spec_of(network))
    expected = of_torch(state_dict_from_params(params), frames)
    logits = np.asarray(jax.jit(network.apply)(params, frames))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("bilinear", "known"),
    [
        (False, [[0.396919, -0.402246], [0.228468, -0.0431799], [-0.0809971, 0.206186]]),
        (True, [[-0.0260606, 0.158566], [0.0760073, 0.209197], [-0.297202, -0.198706]]),
    ],
)
def test_it_gives_what_torch_gave(bilinear, known):
    """Logits at two corners and inside, which `of_torch` found in float64."""
    network, frame = UNet(bilinear=bilinear, width=4), np.random.default_rng(1).integers(0, 256, (31, 21, 3), np.uint8)
    run = jax.jit(network.apply)
    logits = np.asarray(run(random_params(spec_of(network)), frame))
    np.testing.assert_allclose(logits[[0, 16, 30], [0, 11, 20]], known, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 7), (1, 4)])
def test_a_map_is_doubled_with_its_corners_in_place(shape):
    x = np.random.default_rng(0).normal(size=(1, *shape, 3)).astype(np.float32)
    expected = x.astype(np.float64)
    for axis, side in zip((1, 2), shape, strict=True):
        where = np.linspace(0, side - 1, 2 * side)
        expected = np.apply_along_axis(lambda line, at=where: np.interp(at, np.arange(len(line)), line), axis, expected)
    np.testing.assert_allclose(jax.jit(doubled)(x), expected, atol=1e-5)


@pytest.mark.parametrize("bilinear", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_falls_back_to_dense(bilinear):
    network = UNet(bilinear=bilinear)
    report = dj.incremental(apply).explain(spec_of(network), jax.ShapeDtypeStruct((83, 61, 3), np.uint8))
    assert {segment.how for segment in report.segments} == {"tiles"}


@pytest.mark.slow
@BOTH
def test_random_weights_on_random_frames_give_the_same_step_by_step(bilinear):
    network, frames = UNet(bilinear=bilinear, width=4), changes((45, 67, 3), np.uint8, low=0, high=256)
    check_incremental(network.apply, random_params(spec_of(network)), frames, rel=DEEP, hasty=True, bucket=4)


def test_a_picture_is_its_own_frame_and_its_classes_are_drawn():
    rgb = np.full((120, 160, 3), 90, np.uint8)
    assert MODEL.prepare(rgb) is rgb
    output = np.full((120, 160), list(CLASSES).index("car"), np.uint8)
    classes = MODEL.interpret(output, (120, 160))
    np.testing.assert_array_equal(classes, output)
    np.testing.assert_array_equal(MODEL.draw(rgb, classes)[119, 159], [45, 45, 116])


def test_it_goes_by_its_name():
    assert get_model("unet") is MODEL
