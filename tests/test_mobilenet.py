"""MobileNetV1 of the visual wake words: the authors' network against a formula and against known probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import changes, check_incremental
from real import data, needs_data, pictures
from safetensors.numpy import save_file
from weights import random_layers

import deltajax as dj
from deltajax.models import get_model
from deltajax.models._classifier import probabilities
from deltajax.models._published import shapes
from deltajax.models.mobilenet import MODEL, PAIRS, SIDE, MobileNet, apply, layers, load


@pytest.fixture(scope="module")
def spec():
    return shapes(MobileNet(), (SIDE, SIDE))["params"]


@pytest.fixture(scope="module")
def checkpoint(spec) -> dict[str, np.ndarray]:
    """Random arrays under Keras' names and in Keras' layout."""
    arrays = random_layers(layers(), spec)
    return {n: np.ascontiguousarray(a.swapaxes(2, 3)) if "depthwise_k" in n else a for n, a in arrays.items()}


@pytest.fixture(scope="module")
def params(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vww.safetensors"
    save_file(checkpoint, path)
    return load(path)


def test_it_has_the_size_that_its_authors_publish(spec):
    widths = [8, *(width for width, _ in PAIRS)]
    normed = widths[0] + sum(widths[:-1]) + sum(widths[1:])  # each with a bias, a scale and a shift: two folded away
    assert sum(leaf.size for leaf in jax.tree.leaves(spec)) == 216_322 - 2 * normed


def test_it_gives_what_its_layers_say_with_batch_norm_of_its_own(checkpoint, params):
    frame = np.random.default_rng(1).integers(0, 256, (64, 32, 3), np.uint8)

    def normed(y, kind, number, norm):
        suffix, norm = f"_{number}" if number else "", f"batch_normalization{f'_{norm}' if norm else ''}"
        y = y + checkpoint[f"{kind}{suffix}/bias"] - checkpoint[f"{norm}/moving_mean"]
        y = y / np.sqrt(checkpoint[f"{norm}/moving_variance"] + 1e-3)
        return np.maximum(y * checkpoint[f"{norm}/gamma"] + checkpoint[f"{norm}/beta"], 0)

    def taps(x, stride):
        """Each of the nine shifted pictures; "same" padding puts what is left over to the end."""
        rows, columns = x.shape[0] // stride, x.shape[1] // stride
        padded = np.pad(x, ((2 - stride, 1), (2 - stride, 1), (0, 0)))
        for i in range(3):
            for j in range(3):
                yield i, j, padded[i : i + stride * rows : stride, j : j + stride * columns : stride]

    x = sum(tap @ checkpoint["conv2d/kernel"][i, j] for i, j, tap in taps(frame / 255, 2))
    x = normed(x, "conv2d", 0, 0)
    for pair, (_, stride) in enumerate(PAIRS):
        kernel = checkpoint[f"depthwise_conv2d{f'_{pair}' if pair else ''}/depthwise_kernel"][..., 0]
        x = normed(sum(tap * kernel[i, j] for i, j, tap in taps(x, stride)), "depthwise_conv2d", pair, 2 * pair + 1)
        x = normed(x @ checkpoint[f"conv2d_{pair + 1}/kernel"][0, 0], "conv2d", pair + 1, 2 * pair + 2)
    expected = x.mean((0, 1)) @ checkpoint["dense/kernel"] + checkpoint["dense/bias"]
    np.testing.assert_allclose(apply(params, frame), expected, rtol=1e-4)


def test_every_layer_stays_on_tiles(spec):
    frame = jax.ShapeDtypeStruct((96, 96, 3), jnp.uint8)
    report = dj.incremental(apply).explain({"params": spec}, frame)
    assert report.fallback_share == 0
    assert [segment.name for segment in report.segments if segment.how != "tiles"] == ["whole1"]


@pytest.mark.slow
def test_the_step_is_the_network(params):
    check_incremental(apply, params, changes((96, 96, 3), np.uint8, high=256))


def test_weights_of_another_network_are_refused(tmp_path, checkpoint):
    other = {name: array for name, array in checkpoint.items() if name != "conv2d_7/bias"}
    other["depthwise_conv2d_3/depthwise_kernel"] = np.zeros((5, 5, 32, 1), np.float32)
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors' holds no mobilenet-vww weights: ") as caught:
        load(tmp_path / "other.safetensors")
    assert "conv2d_7/bias is missing" in str(caught.value)
    assert "depthwise_kernel is (5, 5, 1, 32) instead of (3, 3, 1, 32)" in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_data
@pytest.mark.parametrize(
    ("clip", "number", "person"),
    [("asl/again.mkv", 40, 0.877), ("car-detection.mp4", 60, 0.079), ("bottle-detection.mp4", 10, 0.178)],
)
def test_the_authors_weights_see_who_is_there(clip, number, person):
    (rgb,) = pictures(f"static/{clip}", number)
    # The known values are of pictures that OpenCV resized: between the nearest four pixels, in fixed-point numbers.
    frame = jax.image.resize(jnp.asarray(rgb, jnp.float32), (96, 96, 3), "bilinear", antialias=False)
    params = load(data("weights/mlperf_tiny_vww_mobilenetv1_025_96.h5"))
    found = probabilities(apply(params, frame.round().astype(jnp.uint8)))[1]
    assert found == pytest.approx(person, abs=0.008)
    smoothed = probabilities(apply(params, MODEL.prepare(rgb)))[1]
    assert (smoothed > 0.5) == (person > 0.5)


def test_it_goes_by_its_name():
    assert get_model("mobilenet-vww") is MODEL
