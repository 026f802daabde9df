"""The measured networks as others run them, with the weights of ours: torch modules and ONNX files.

ResNets and MobileNetV2 are torchvision's own, HRNet is timm's; U-Net, of which there is no package, and the fifteen
convolutions are written here. torch is imported only when one of them is asked for.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from others import import_or_reason
from weights import state_dict_from_params

from deltajax._bench import STACK15

TORCHVISION = {"resnet18": "resnet18", "resnet50": "resnet50", "mobilenetv2": "mobilenet_v2"}
TIMM = {"hrnet-w32": "hrnet_w32"}
OPSET = 17


def torch_module(name: str, params: Any) -> Any | str:
    """The network in torch, in eval mode, from frames `[1, 3, h, w]` (normalised); or why there is none."""
    torch = import_or_reason("torch")
    if isinstance(torch, str):
        return torch
    if name == "stack15":
        return stack15_module(params)
    if name == "unet":
        module = unet_module()
    else:
        library = torchvision_or_reason() if name in TORCHVISION else timm_or_reason()
        if isinstance(library, str):
            return library
        if name in TORCHVISION:
            module = getattr(library.models, TORCHVISION[name])(weights=None)
        else:
            module = library.create_model(TIMM[name])
    weights = {key: torch.from_numpy(array.copy()) for key, array in state_dict_from_params(params).items()}
    module.load_state_dict(module.state_dict() | weights)  # counts of batches are theirs alone
    return module.eval()


def torchvision_or_reason() -> types.ModuleType | str:
    """torchvision, also one that was built for another torch than is there.

    Then its compiled operators cannot be loaded, and its import fails where it describes them (in
    `_meta_registrations`). The networks use none of them: it is imported again without that description.
    """
    found = import_or_reason("torchvision")
    if not isinstance(found, str) or "operator torchvision::" not in found:
        return found
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    described = "torchvision._meta_registrations"
    sys.modules[described] = types.ModuleType(described)
    return import_or_reason("torchvision")


def timm_or_reason() -> types.ModuleType | str:
    """timm, which imports torchvision."""
    found = torchvision_or_reason()
    return found if isinstance(found, str) else import_or_reason("timm")


def stack15_module(params: Any) -> Any:
    """The fifteen convolutions."""
    import torch

    layers = []
    for (kernel, bias), (channels, width, stride) in zip(params, STACK15, strict=True):
        layer = torch.nn.Conv2d(channels, width, 3, stride, padding=1)
        layer.load_state_dict({
            "weight": torch.from_numpy(np.array(kernel).transpose(3, 2, 0, 1).copy()),
            "bias": torch.from_numpy(np.array(bias)),
        })
        layers += [layer, torch.nn.ReLU(inplace=True)]
    return torch.nn.Sequential(*layers).eval()


def unet_module(classes: int = 2, width: int = 64) -> Any:
    """U-Net with transposed convolutions and its author's names, for sides that can be halved four times."""
    import torch
    from torch import nn

    def double(channels: int, width: int) -> nn.Sequential:
        layers = []
        for before in (channels, width):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    class DoubleConv(nn.Module):
        def __init__(self, channels: int, width: int):
            super().__init__()
            self.double_conv = double(channels, width)

        def forward(self, x):
            return self.double_conv(x)

    class Down(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels, 2 * channels))

        def forward(self, x):
            return self.maxpool_conv(x)

    class Up(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
            self.conv = DoubleConv(channels, channels // 2)

        def forward(self, x, skip):
            return self.conv(torch.cat([skip, self.up(x)], dim=1))

    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(width, classes, 1)

        def forward(self, x):
            return self.conv(x)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.inc = DoubleConv(3, width)
            self.down1, self.down2, self.down3, self.down4 = (Down(width << level) for level in range(4))
            self.up1, self.up2, self.up3, self.up4 = (Up(width << level) for level in (4, 3, 2, 1))
            self.outc = Out()

        def forward(self, x):
            maps = [self.inc(x)]
            for down in (self.down1, self.down2, self.down3, self.down4):
                maps.append(down(maps[-1]))
            x = maps.pop()
            for up in (self.up1, self.up2, self.up3, self.up4):
                x = up(x, maps.pop())
            return self.outc(x)

    return UNet()


def write_onnx(name: str, params: Any, module: Any | str, size: tuple[int, int], path: Path) -> str | None:
    """Write the network as an ONNX file, from frame `[1, 3, h, w]` to output; or say why not.

    Args:
        name, params: of the network.
        module: of `torch_module`, which torch exports; the fifteen convolutions need none.
        size: (height, width) of a frame.
        path: of the file.
    """
    if name == "stack15":
        onnx.save(stack15_onnx(params, size), path)
        return None
    if isinstance(module, str):
        return f"an ONNX file comes from torch: {module}"
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a newer exporter, which needs one package more
        torch.onnx.export(module, (torch.zeros(1, 3, *size),), str(path), dynamo=False, opset_version=OPSET)
    return None


def write_int8(path: Path, frames: Sequence[np.ndarray], to: Path) -> str | None:
    """Write what an ONNX file computes in float32 as one that computes in int8, with QDQ pairs; or say why not.

    Args:
        path: of the file.
        frames: `[1, 3, h, w]`, that the ranges of its values are taken from.
        to: path of the new one.
    """
    found = import_or_reason("onnxruntime.quantization")
    if isinstance(found, str):
        return found
    name = onnx.load(path).graph.input[0].name
    prepared = to.with_suffix(".prepared.onnx")
    # Without the inference of shapes as formulas, which needs one package more: those of these files are numbers.
    found.quant_pre_process(path, prepared, skip_symbolic_shape=True)

    class Frames(found.CalibrationDataReader):
        def __init__(self):
            self.frames = iter(frames)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({name: frame} for frame in self.frames), None)

    found.quantize_static(
        prepared, to, Frames(), quant_format=found.QuantFormat.QDQ, per_channel=True,
        activation_type=found.QuantType.QUInt8, weight_type=found.QuantType.QInt8,
    )
    return None


def stack15_onnx(params: Any, size: tuple[int, int]) -> onnx.ModelProto:
    """The fifteen convolutions."""
    nodes, weights, name = [], [], "frame"
    for number, ((kernel, bias), (_, _, stride)) in enumerate(zip(params, STACK15, strict=True)):
        of_this = {"kernel": np.asarray(kernel).transpose(3, 2, 0, 1), "bias": np.asarray(bias)}
        weights += [numpy_helper.from_array(array.copy(), f"{key}{number}") for key, array in of_this.items()]
        inputs = [name, f"kernel{number}", f"bias{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{number}"], pads=[1] * 4, strides=[stride] * 2))
        name = f"relu{number}"
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [name]))
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT, [1, 3, *size])
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "stack15", [frame], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
