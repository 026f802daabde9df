"""torchvision's networks: against torchvision itself, against a formula, and their incremental form."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from law import F32, changes, check_incremental
from others import import_or_skip
from weights import random_params, state_dict_from_params

import deltajax as dj
from deltajax.models import get_model
from deltajax.models._classifier import DEVIATION, MEAN, normalised
from deltajax.models._published import shapes
from deltajax.models.imagenet import SIDE, Block, EfficientNet, MobileNetV2, MobileNetV3, ResNet, Style, inverted

# Fifty layers with random weights, most of them depthwise: their taps are added in another order than XLA's.
DEEP = {"mobilenetv2": 2e-5, "mobilenetv3": 2e-5}
NETWORKS = {
    "efficientnet-b0": EfficientNet(),
    "mobilenetv2": MobileNetV2(),
    "mobilenetv3": MobileNetV3(),
    "resnet18": ResNet((2, 2, 2, 2), 1),
    "resnet50": ResNet((3, 4, 6, 3), 4),
}
TORCHVISION = {"mobilenetv2": "mobilenet_v2", "mobilenetv3": "mobilenet_v3_large", "efficientnet-b0": "efficientnet_b0"}


@functools.cache
def params_of(name: str):
    return random_params(shapes(NETWORKS[name], (SIDE, SIDE)))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("efficientnet-b0", {"6.3.block.2.fc1.weight": (48, 1152, 1, 1), "1.0.block.2.1.running_var": (16,)}),
        ("mobilenetv2", {"1.conv.1.weight": (16, 32, 1, 1), "17.conv.1.0.weight": (960, 1, 3, 3)}),
        ("mobilenetv3", {"4.block.2.fc1.bias": (24,), "15.block.3.0.weight": (160, 960, 1, 1)}),
        ("resnet18", {"layer4.0.downsample.0.weight": (512, 256, 1, 1), "layer4.1.bn2.weight": (512,)}),
        ("resnet50", {"layer1.0.downsample.1.running_mean": (256,), "layer4.2.conv2.weight": (512, 512, 3, 3)}),
    ],
)
def test_its_modules_carry_torchvisions_names(name, weights):
    arrays = state_dict_from_params(params_of(name))
    for weight, shape in weights.items():
        assert arrays[weight if name.startswith("resnet") else f"features.{weight}"].shape == shape


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("efficientnet-b0", (0.100287, -0.154280, -0.236057, -0.775596)),
        ("mobilenetv2", (-6.072149, -2.939787, -0.620021, 0.404430)),
        ("mobilenetv3", (-139.7561, 47.77726, 23.66021, 45.24320)),
        ("resnet18", (-117.9594, -117.8642, 139.3938, -40.88544)),
        ("resnet50", (2575.962, -1152.650, 4282.363, -3478.524)),
    ],
)
def test_it_gives_what_torchvision_gave_for_the_same_weights(name, logits):
    """Check values of classes 0, 1, 500 and 999, from torchvision 0.28 with the state dict of `params_of(name)`."""
    found = np.asarray(jax.jit(get_model(name).apply)(params_of(name), noise(75, 97, 3)))
    np.testing.assert_allclose(found[[0, 1, 500, 999]], logits, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(224, 224), (225, 321)])
def test_it_agrees_with_torchvision(name, size, tmp_path):
    torchvision = import_or_skip("torchvision")
    torch = import_or_skip("torch")
    theirs = getattr(torchvision.models, TORCHVISION.get(name, name))(weights=None).eval()
    weights = {key: torch.from_numpy(array.copy()) for key, array in state_dict_from_params(params_of(name)).items()}
    theirs.load_state_dict(theirs.state_dict() | weights)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    model = get_model(name)
    found = np.asarray(jax.jit(model.apply)(model.load(tmp_path / "net.pth"), noise(*size, 3)))
    frame = torch.from_numpy(noise(*size, 3)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = theirs(torchvision.transforms.functional.normalize(frame, MEAN, DEVIATION))[0].numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


class Inverted(nn.Module):
    """A block with all that a block can have."""

    block: Block = Block(3, 12, 6, 1, nn.hard_swish, 4)
    style: Style = Style(gate=nn.hard_sigmoid)

    @nn.compact
    def __call__(self, x):
        return inverted("b", x[None], self.block, self.style)[0]


def test_a_block_is_what_its_parts_say():
    x = np.random.default_rng(1).normal(size=(7, 9, 6))
    params = random_params(jax.eval_shape(Inverted().init, jax.random.key(0), x.astype(np.float32)))
    w = {name: array.astype(np.float64) for name, array in state_dict_from_params(params).items()}

    def normed(y, name):
        y = (y - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gate(y):
        return np.clip(y + 3, 0, 6) / 6

    y = normed(x @ w["b.0.0.weight"][:, :, 0, 0].T, "b.0.1")
    y = np.pad(y * gate(y), ((1, 1), (1, 1), (0, 0)))
    taps = [y[i : i + 7, j : j + 9] * w["b.1.0.weight"][:, 0, i, j] for i in range(3) for j in range(3)]
    y = normed(sum(taps), "b.1.1")
    y = y * gate(y)
    z = np.maximum(y.mean((0, 1)) @ w["b.2.fc1.weight"][:, :, 0, 0].T + w["b.2.fc1.bias"], 0)
    y = y * gate(z @ w["b.2.fc2.weight"][:, :, 0, 0].T + w["b.2.fc2.bias"])
    expected = x + normed(y @ w["b.3.0.weight"][:, :, 0, 0].T, "b.3.1")
    np.testing.assert_allclose(Inverted().apply(params, x.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)


def test_a_frame_is_normalised_as_torchvision_does_it():
    frame = noise(2, 3, 4, 5, 3)
    expected = (frame.reshape(6, 4, 5, 3) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalised(frame), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frame_may_be_large_and_a_batch_have_any_axes(name):
    frames = jax.ShapeDtypeStruct((2, 3, 720, 1280, 3), np.uint8)
    logits = jax.eval_shape(get_model(name).apply, params_of(name), frames)
    assert (logits.shape, logits.dtype) == ((2, 3, 1000), np.float32)


def test_a_batch_is_its_frames():
    network, frames = MobileNetV3((Block(3, 24, 16, 1, nn.relu, 8),)), noise(2, 33, 40, 3)
    params, run = random_params(shapes(network, (33, 40))), jax.jit(network.apply)
    both = run(params, frames)
    np.testing.assert_allclose(both[1], run(params, frames[1]), rtol=1e-4, atol=1e-4 * np.abs(both).max())


def test_the_answer_names_a_class_by_its_number():
    logits = np.zeros(1000, np.float32)
    logits[207] = 20
    assert get_model("resnet18").interpret(logits, (90, 120)).name == "class 207"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_stays_on_tiles(name):
    frame = jax.ShapeDtypeStruct((96, 128, 3), np.uint8)
    report = dj.incremental(get_model(name).apply).explain(params_of(name), frame)
    assert report.fallback_share == 0
    assert {segment.how for segment in report.segments} == {"tiles", "whole"}


@pytest.mark.parametrize("block", [Block(3, 12, 6, 1, nn.hard_swish, 4), Block(5, 6, 8, 2, nn.silu, 2)])
def test_a_block_runs_on_tiles(block):
    network = Inverted(block)
    frames = changes((26, 30, 6))
    params = random_params(jax.eval_shape(network.init, jax.random.key(0), frames[0]))
    inc, caches = check_incremental(network.apply, params, frames, hasty=True, tile=6)
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[2] < issued[1] <= issued[0]  # what excites reaches every tile


@pytest.mark.slow  # compiles whole networks
@pytest.mark.parametrize("name", NETWORKS)
def test_the_step_is_the_network(name):
    frames = changes((75, 97, 3), np.uint8, high=256)
    fn, rel = get_model(name).apply, DEEP.get(name, F32)
    inc, caches = check_incremental(fn, params_of(name), frames, rel=rel, hasty=True)
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[2] < issued[1] < issued[0]
