"""A heavy backbone that has learned something: torchvision's ResNet-50 on clips of people that it has not seen.

    python tests/heavy.py train --minutes 20 --file heavy.onnx      # both cores, nothing beside it
    python tests/heavy.py measure --file heavy.onnx --out heavy.json

Trained weights of such a network are not at hand, and random ones move their output by as much as a grey level of noise
does. So it is taught, from nothing, what Prisma-Net makes of ten of the twenty webcam clips: how much of each pixel is
a person's. Its features meet in a pyramid of 64 channels (Lin et al., arXiv 1612.03144, section 3), at a quarter of
256x256. Then its ONNX file, channels first, is tuned and measured like any other network (`tests/results.py`), on the
ten other clips and those of surveillance. Needs the folder that DELTAJAX_DATA names, torch, torchvision, onnx.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import results
import torch
import torch.nn.functional as F
import torchvision
import tyro
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import deltajax as dj
from deltajax.cli.network import load_network
from deltajax.models import VisionModel
from deltajax.models.prisma_net import MODEL as PRISMA
from deltajax.video import open_source

TAUGHT = results.SIGNS[:10]
UNSEEN = (*(f"asl/{sign}.mkv" for sign in results.SIGNS[10:]), *results.SURVEILLANCE)
NAME, WIDTH = "resnet50-person", 64
STAGES = ((128, 32, 0.3), (256, 16, 0.7))  # side, batch, share of the time
RATE = 1e-3
MEAN, DEVIATION = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)  # of ImageNet's pictures: torchvision's normalisation
OPTIONS = results.Options(kernels="native", trials=40, tuned=32, reported=120)


class Person(nn.Module):
    """How much of each position is a person's, `[n, 1, h, w]` in 0..1, from pictures `[n, 3, h, w]`."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet50(weights=None)
        del self.backbone.fc
        self.lateral = nn.ModuleList(nn.Conv2d(n, WIDTH, 1) for n in (256, 512, 1024, 2048))
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(4))
        self.head = nn.Conv2d(WIDTH, 1, 1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        net, found = self.backbone, []
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            found.append(x)
        y = self.lateral[3](found[3])
        for level in (2, 1, 0):
            y = F.relu(self.smooth[level + 1](y))
            y = F.interpolate(y, scale_factor=2.0, mode="nearest") + self.lateral[level](found[level])
        y = self.head(F.relu(self.smooth[0](y)))
        return F.interpolate(y, scale_factor=4.0, mode="bilinear", align_corners=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(x))


def lessons(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures `[n, 3, 256, 256]` of bytes, and what Prisma-Net makes of them, `[n, 1, 256, 256]`."""
    teacher = load_network("prisma-net", folder / "weights" / results.WEIGHTS["prisma-net"])
    apply = jax.jit(teacher.model.apply)
    pictures, masks = [], []
    for sign in TAUGHT:
        with open_source(str(folder / "video" / "static" / "asl" / f"{sign}.mkv")) as source:
            for frame in source.frames:
                pictures.append(teacher.model.prepare(frame.rgb))
                masks.append(np.asarray(apply(teacher.params, jnp.asarray(pictures[-1]))))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(masks))[:, None]


def batches(pictures: torch.Tensor, masks: torch.Tensor, side: int, count: int, seed: int) -> Iterator[Any]:
    """Parts of pictures without end: cut, mirrored, brighter or darker, with the noise of a camera."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(pictures), (count,), generator=draw)
        x = torch.cat([pictures[chosen].float(), 255 * masks[chosen]], 1)
        scale = 0.6 + 0.4 * torch.rand(count, generator=draw)
        shift = (1 - scale)[:, None] * (2 * torch.rand(count, 2, generator=draw) - 1)
        flip = torch.where(torch.rand(count, generator=draw) < 0.5, -1.0, 1.0)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
        x = F.grid_sample(x, F.affine_grid(theta, [count, 4, side, side], align_corners=False), align_corners=False)
        light = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=draw)
        noise = 4 * torch.rand(count, 1, 1, 1, generator=draw) * torch.randn(count, 3, side, side, generator=draw)
        yield normalised((x[:, :3] * light + noise).clamp(0, 255)), (x[:, 3:] / 255).clamp(0, 1)


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return ((x - mean) / deviation).contiguous(memory_format=torch.channels_last)


def train(file: Path, minutes: float = 20.0) -> None:
    """Teach it for so long, and write an ONNX file.

    Args:
        file: is written at the end of each stage.
        minutes: of the clock.
    """
    torch.manual_seed(0)
    pictures, masks = lessons(Path(os.environ["DELTAJAX_DATA"]))
    net = Person().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for number, (side, count, share) in enumerate(STAGES):
        rate = RATE if number == 0 else RATE / 2
        optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2)
        start, limit = time.monotonic(), 60 * minutes * share
        for step, (x, wanted) in enumerate(batches(pictures, masks, side, count, number)):
            done = (time.monotonic() - start) / limit
            if done > 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, 0.05 + 10 * done) * (1 - done)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net.logits(x).float()
            loss = F.binary_cross_entropy_with_logits(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                either = torch.maximum((logits > 0).float(), (wanted > 0.5).float()).sum()
                both = ((logits > 0) & (wanted > 0.5)).sum()
                print(f"{side}: step {step}, loss {loss:.3f}, IoU {both / either:.3f}", file=sys.stderr, flush=True)
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, 256, 256),), str(file), dynamo=False)
        net.train()


def model(file: Path) -> tuple[VisionModel, Any]:
    """The file as a network like Prisma-Net: ``(model, params)``."""
    fn, params = dj.onnx.load(file)

    def apply(params: Any, frame: Any) -> Any:
        x = (frame.astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
        return fn(params, x.transpose(2, 0, 1)[None])[0, 0]

    return dataclasses.replace(PRISMA, name=NAME, apply=apply), params


def of_frames(file: Path) -> onnx.ModelProto:
    """The file's graph, given frames `[256, 256, 3]` of bytes and without axes of length 1 around its result."""
    found = onnx.load(file)
    graph = found.graph
    (given,), (result,) = graph.input, graph.output
    first = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "mean"], ["shifted"]),
        helper.make_node("Div", ["shifted", "deviation"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=[2, 0, 1]),
        helper.make_node("Reshape", ["turned", "batch"], [given.name]),
    ]
    nodes = [*first, *graph.node, helper.make_node("Reshape", [result.name, "picture"], ["person"])]
    stored = {"mean": np.float32(MEAN), "deviation": np.float32(DEVIATION),
              "batch": np.array([1, 3, *PRISMA.frame_size]), "picture": np.array(PRISMA.frame_size)}
    made = helper.make_graph(
        nodes, graph.name, [helper.make_tensor_value_info("frame", TensorProto.UINT8, [*PRISMA.frame_size, 3])],
        [helper.make_tensor_value_info("person", TensorProto.FLOAT, PRISMA.frame_size)],
        [*graph.initializer, *(numpy_helper.from_array(x, name) for name, x in stored.items())],
    )
    return helper.make_model(made, opset_imports=found.opset_import, ir_version=found.ir_version)


def measure(
    file: Path, out: Path, clips: tuple[str, ...] = UNSEEN, options: results.Options = OPTIONS
) -> None:
    """As `results.main` does it.

    Args:
        file: that `train` wrote.
        out: the JSON file of finished pairs; they are not made again.
        clips: paths in video/static.
        options: of tuning and report.
    """
    (net, params), graph = model(file), of_frames(file)
    rows = {row["clip"]: row for row in results.load_rows(out)}
    contest = results.Contest(net.apply, params, options.passed_on)
    for clip in clips:
        if clip in rows:
            continue
        path = Path(os.environ["DELTAJAX_DATA"]) / "video" / "static" / clip
        found, report, task = results.pair(contest, net, path, options, graph=graph)
        rows[clip] = made = results.row(NAME, clip, options, found, report, task)
        results.save_rows(out, rows.values())
        print(f"{clip}: error {made['error']:.4f}, issued {made['issued']:.3f}", file=sys.stderr, flush=True)
    print(f"{results.table(list(rows.values()))}\n\n{results.summary(list(rows.values()))}")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "measure": measure})
