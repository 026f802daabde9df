"""Networks of torchvision and timm as they come, by ONNX: the step of the file against jitted JAX, torch and engines.

    python tests/of_torch.py --frames 6                                   # NETWORKS
    python tests/of_torch.py --only darknet53 ghostnet_100 --density .02 1

Weights are random, frames 512x384 of float32, the step exact; measured as `tests/baselines.py` does it. Needs torch,
torchvision and onnx, for other names timm; onnxruntime and openvino where they are there.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import tyro
from baselines import PATTERNS, Dense, cores, measure, table
from rich.console import Console

from deltajax._bench import STACK15_SIZE, subject
from deltajax._incremental import Kernels

NETWORKS = (
    "resnet50", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf", "densenet121",
    "convnext_tiny", "lraspp_mobilenet_v3_large", "fcn_resnet50",
)


def module_of(name: str) -> Any:
    """A network of torchvision, or else of timm, with random weights; those of segmentation give their map alone."""
    import torch
    import torchvision

    torch.manual_seed(0)
    there = torchvision.models
    if hasattr(there.segmentation, name):
        net = getattr(there.segmentation, name)(weights=None, weights_backbone=None)

        class Map(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net(x)["out"]

        return Map().eval()
    if hasattr(there, name):
        return getattr(there, name)(weights=None).eval()
    import timm

    return timm.create_model(name, pretrained=False, exportable=True).eval()


def write(module: Any, size: tuple[int, int], path: Path) -> None:
    """The module as an ONNX file for pictures of (height, width)."""
    import torch

    torch.onnx.export(module, (torch.zeros(1, 3, *size),), str(path), dynamo=False)


def engines(module: Any, path: Path, size: tuple[int, int]) -> Iterator[Dense | tuple[str, str]]:
    """Other libraries, on the same file or the module itself, in float32."""
    source = PATTERNS["square"](size, np.float32, 1.0)
    frames = [np.ascontiguousarray(next(source).transpose(2, 0, 1)[None]) for _ in range(4)]
    files = {"f32": path, "int8": path.with_suffix(".int8.onnx")}  # the latter is not there
    for made in baselines.torch_baselines(module, frames, cores()):
        yield made if isinstance(made, tuple) else Dense(made.name, made.frames, made.run, np.asarray)
    for library in (baselines.onnxruntime_baselines, baselines.openvino_baselines):
        for made in library(files, frames, cores()):
            if isinstance(made, tuple):
                yield made
            elif made.precision == "f32":
                yield Dense(made.name, frames, made.run, lambda outputs: np.array(outputs[0]))


def main(
    only: tuple[str, ...] = NETWORKS,
    density: tuple[float, ...] = (0.005, 0.02, 0.08, 0.3, 1.0),
    frames: int = baselines.FRAMES,
    kernels: tuple[Kernels, ...] = ("native",),
    size: tuple[int, int] = STACK15_SIZE,
) -> int:
    """Measure and print a table for each network.

    Args:
        only: names of torchvision's or timm's networks.
        density: shares of the frame that a moving square changes, in 0..1.
        frames: that count of each baseline and each density.
        kernels: what `deltajax.incremental` is given; each has its rows.
        size: (height, width) of a frame.
    """
    console, disagreed = Console(width=140), 0
    console.print(", ".join(f"{name} {version}" for name, version in baselines.versions().items()), highlight=False)
    for name in only:
        with tempfile.TemporaryDirectory() as folder:
            path, module = Path(folder) / f"{name}.onnx", module_of(name)
            write(module, size, path)
            found = measure(subject(str(path), None), ("square",), density, frames, kernels,
                            lambda module=module, path=path: engines(module, path, size))
        console.print(table(found))
        for baseline, reason in found.left_out.items():
            console.print(f"left out: {baseline}: {reason}", highlight=False, soft_wrap=True)
        disagreed += len(found.disagreed)
    return 1 if disagreed else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
