"""Networks whose weights the package does not hold: their files, array by array, and what is said of wrong ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import linen as nn
from real import data, needs_data
from safetensors.numpy import save_file
from weights import random_layers, random_params, state_dict_from_params, to_torch

from deltajax.models import get_model, imagenet, mobilenet, rfb
from deltajax.models._folding import Layer
from deltajax.models._published import shapes
from deltajax.models.blazeface import BlazeFace
from deltajax.models.espnet import EspNet
from deltajax.models.fastestdet import FastestDet
from deltajax.models.resnet import ResNet, ResNet8
from deltajax.models.slim import Slim320


class Case(NamedTuple):
    """A network and its file.

    Attributes:
        network: the modules.
        file: its name in the data folder; empty where that has none.
        remedy: what an error tells to do.
        weight: one of its kernels.
        layers: for a network that folds its batch norms: from the names of the modules to what `fold_layers` takes.
        layout: from Flax's layout to that of the file.
    """

    network: nn.Module
    file: str
    remedy: str
    weight: str
    layers: Callable[[Any], dict[str, Layer]] | None = None
    layout: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = to_torch


def keras_layout(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Depthwise kernels as [rows, columns, channels, 1]."""
    return {name: a.swapaxes(2, 3).copy() if "depthwise_k" in name else a for name, a in arrays.items()}


CASES = {
    "blazeface": Case(
        BlazeFace(), "blazeface.pth", "blazeface.pth, published in https://", "classifier_8.weight",
        lambda names: {name: Layer(f"{name}.weight", f"{name}.bias") for name in names},
    ),
    "espnet": Case(
        EspNet(), "espnet_p2_q8_cityscapes.pth", "espnet_p_2_q_8.pth, published in pretrained/decoder of https://",
        "up_l3.0.weight",
    ),
    "fastestdet": Case(
        FastestDet(), "fastestdet_coco.pth", "weight_AP05:0.253207_280-epoch.pth, published in weights of https://",
        "SPP.S1.0.weight",
    ),
    "efficientnet-b0": Case(
        imagenet.EfficientNet(), "", "efficientnet_b0_rwightman-7f5810bc.pth, published at https://",
        "features.3.1.block.1.0.weight",
    ),
    "mobilenetv2": Case(
        imagenet.MobileNetV2(), "", "mobilenet_v2-b0353104.pth, published at https://",
        "features.2.conv.1.0.weight",
    ),
    "mobilenetv3": Case(
        imagenet.MobileNetV3(), "", "mobilenet_v3_large-8738ca79.pth, published at https://",
        "features.7.block.1.0.weight",
    ),
    "mobilenet-vww": Case(
        mobilenet.MobileNet(), "mlperf_tiny_vww_mobilenetv1_025_96.h5", "vww_96.h5, published in benchmark/",
        "conv2d_7/kernel", lambda _: mobilenet.layers(), keras_layout,
    ),
    "resnet18": Case(
        imagenet.ResNet((2, 2, 2, 2), 1), "", "resnet18-f37072fd.pth, published at https://",
        "layer2.0.conv1.weight",
    ),
    "resnet50": Case(
        imagenet.ResNet((3, 4, 6, 3), 4), "", "resnet50-0676ba61.pth, published at https://",
        "layer2.0.conv2.weight",
    ),
    "resnet20": Case(
        ResNet(3), "resnet20-12fca82f.th", "resnet20-12fca82f.th, published in pretrained_models of https://",
        "layer2.0.conv1.weight", lambda _: ResNet(3).layers(),
    ),
    "resnet56": Case(
        ResNet(9), "resnet56-4bfd9763.th", "resnet56-4bfd9763.th, published in pretrained_models of https://",
        "layer2.8.conv1.weight", lambda _: ResNet(9).layers(),
    ),
    "resnet8": Case(
        ResNet8(), "mlperf_tiny_resnet8_cifar10.h5", "pretrainedResnet.h5, published in benchmark/",
        "conv2d_5/kernel", lambda _: ResNet8().layers(), dict,
    ),
    "rfb-320": Case(
        rfb.RFB320(), "version-RFB-320.pth", "version-RFB-320.pth, published in models/pretrained of https://",
        "base_net.7.shortcut.conv.weight", rfb.layers,
    ),
    "slim-320": Case(
        Slim320(), "version-slim-320.pth", "version-slim-320.pth, published in models/pretrained of https://",
        "base_net.2.0.weight",
    ),
}  # fmt: skip
FILES = [name for name, case in CASES.items() if case.file]
KEPT = sorted(name for name, case in CASES.items() if case.layers is None)


@functools.cache
def spec(name: str) -> Any:
    return shapes(CASES[name].network, get_model(name).frame_size)


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    """Random weights under the authors' names and in their layout."""
    case = CASES[name]
    if case.layers is None:
        return state_dict_from_params(random_params(spec(name)))
    return case.layout(random_layers(case.layers(spec(name)["params"]), spec(name)["params"]))


def load(name: str, arrays: dict[str, np.ndarray], folder) -> Any:
    save_file(arrays, folder / "net.safetensors")
    return get_model(name).load(folder / "net.safetensors")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("blazeface", 101_390),
        ("efficientnet-b0", 5_288_548),
        ("espnet", 364_569),
        ("fastestdet", 244_490),
        ("mobilenetv2", 3_504_872),
        ("mobilenetv3", 5_483_032),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("slim-320", 260_188),
    ],
)
def test_it_has_the_size_that_its_authors_publish(name, published):
    """Those whose batch norms are folded are counted in their own tests."""
    assert sum(leaf.size for leaf in jax.tree.leaves(spec(name)["params"])) == published


@pytest.mark.parametrize("name", CASES)
def test_a_file_with_the_authors_names_is_taken(name, tmp_path):
    params = load(name, weights(name), tmp_path)
    assert jax.tree.map(jax.typeof, params) == jax.tree.map(jax.typeof, get_model(name).shapes())


@pytest.mark.parametrize("name", KEPT)
def test_every_weight_arrives_where_it_belongs(name, tmp_path):
    arrays = weights(name)
    params = load(name, arrays | {"a.1.num_batches_tracked": np.array(9)}, tmp_path)
    kernel, weight = params["params"][CASES[name].weight.removesuffix(".weight")]["kernel"], arrays[CASES[name].weight]
    assert kernel.shape == weight.shape[2:] + weight.shape[1::-1]
    assert kernel[1, 0, 0, 7] == weight[7, 0, 1, 0]
    back = state_dict_from_params(params)
    assert back.keys() == arrays.keys()
    for array in arrays:
        np.testing.assert_array_equal(back[array], arrays[array])


@pytest.mark.parametrize("name", CASES)
def test_weights_that_do_not_fit_are_named(name, tmp_path):
    case, right = CASES[name], weights(name)
    others = {array: leaf for array, leaf in right.items() if array != case.weight}
    shape = r"has shape \(9, 1\)" if case.layers is None else r"is \((9, 1|1, 9)\) instead of \(.*\)"
    for arrays, message in [
        (others | {"fc": np.zeros(2)}, f"{case.weight} is missing, fc is not part of it"),
        (right | {case.weight: np.zeros((9, 1))}, f"{case.weight} {shape}"),
    ]:
        expected = rf"net.safetensors' holds no {name} weights: {message}; pass --weights {case.remedy}"
        with pytest.raises(ValueError, match=expected) as caught:
            load(name, arrays, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["blazeface", "slim-320"])
def test_of_many_faults_three_are_named(name, tmp_path):
    more = len(weights(name)) - 2
    with pytest.raises(ValueError, match=f": [^,]* is missing, [^,]* is missing, [^,]* is missing and {more} more; "):
        load(name, {"fc": np.zeros(2)}, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_without_a_path_the_error_says_which_file_and_where(name):
    expected = f"the weights of {name} are not in the package; pass --weights {CASES[name].remedy}"
    with pytest.raises(ValueError, match=expected):
        get_model(name).load(None)


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_the_authors_file_is_for_this_network_alone(name):
    get_model(name).load(data(f"weights/{CASES[name].file}"))
    for other in FILES:
        if other != name:
            with pytest.raises(ValueError, match=f"{CASES[other].file}' holds no {name} weights"):
                get_model(name).load(data(f"weights/{CASES[other].file}"))
