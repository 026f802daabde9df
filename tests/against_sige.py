"""SIGE's CPU backend on the fifteen convolutions: its whole frame against dense torch and the step, all in one run.

    python tests/against_sige.py --json sige.json                        # some minutes, on a quiet machine
    python tests/against_sige.py --density .02 --pattern square --kernels native

SIGE (Li et al., "Efficient Spatially Sparse Inference for Conditional GANs and Diffusion Models", NeurIPS 2022)
computes blocks of a convolution's output that a mask names and scatters them into what it holds of the frame before.
Its frame here is exact: the mask of changed pixels, grown from layer to layer by what each convolution reaches, the
indices, the forward and the write-back. All of it is SIGE's own (`Gather`, `SIGEConv2d`, `Scatter` with
`sparse_update`) but the growing, a max-pooling by torch. Blocks of several sizes are measured, and the fastest at each
density counts.

Needs torch, and SIGE 0.3.0 from its source (https://github.com/lmxyy/sige). Its setup.py takes `build_ext` from a
module of torch that has it no longer; it builds with that import from `setuptools.command.build_ext` instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import baselines
import jax
import numpy as np
import originals
import tyro
from others import import_or_reason
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import deltajax as dj
from deltajax._bench import PATTERNS, STACK15, Bench, Subject, subject
from deltajax._incremental import Kernels

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.25)
TILES = (4, 8, 16)  # side of a block of outputs


@dataclasses.dataclass(frozen=True)
class Row:
    """One density of one pattern; medians in milliseconds.

    Attributes:
        sige: by side of a block.
        step: by what `incremental` was given as `kernels`; empty if nothing.
        difference: of SIGE's outputs from dense torch, by the largest.
    """

    pattern: str
    asked: float
    changed: float
    sige: dict[str, float]
    step: dict[str, float]
    difference: float

    @property
    def best(self) -> float:
        return min(self.sige.values())


def sige_stack(sige_nn: Any, params: Any, tile: int) -> Any:
    """The fifteen convolutions, each between a gather and a scatter, in tiles of `tile` x `tile` outputs."""
    import torch

    class Stack(sige_nn.SIGEModel):
        def __init__(self):
            super().__init__()
            self.convs = torch.nn.ModuleList(
                sige_nn.SIGEConv2d(channels, width, 3, stride, padding=1) for channels, width, stride in STACK15
            )
            self.gathers = torch.nn.ModuleList(
                sige_nn.Gather(conv, (tile - 1) * conv.stride[0] + 3) for conv in self.convs
            )
            self.scatters = torch.nn.ModuleList(map(sige_nn.Scatter, self.gathers))

        def forward(self, x):
            for gather, conv, scatter in zip(self.gathers, self.convs, self.scatters, strict=True):
                x = scatter(torch.relu(conv(gather(x))))
            return x

        def set_exact_masks(self, mask) -> None:
            """Of what each convolution reads; `set_masks` has one for all maps of a size, which is more."""
            self.timestamp += 1
            for gather, conv in zip(self.gathers, self.convs, strict=True):
                gather.set_mask({tuple(mask.shape): mask}, {}, self.timestamp)
                mask = torch.nn.functional.max_pool2d(mask.float()[None], 3, conv.stride[0], padding=1)[0] > 0

    stack = Stack()
    for conv, (kernel, bias) in zip(stack.convs, params, strict=True):
        conv.weight.data = torch.from_numpy(np.array(kernel).transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.from_numpy(np.array(bias))
    stack.set_sparse_update(True)
    return stack.eval()


class Sige(baselines.Contestant):
    """One that holds the frame before; those of one size of blocks share `stack`, and so what it holds.

    Args:
        stack: of `sige_stack`.
        held: the frame that `stack` holds, in a list of one.
    """

    def __init__(self, stack: Any, held: list[Any], what: Subject, pattern: str, density: float):
        super().__init__()
        self.stack, self.held, self.pattern, self.density = stack, held, pattern, density
        self.frames = PATTERNS[pattern](what.size, what.dtype, density)
        self.shares: list[float] = []
        self.last: Any = None

    def frame(self) -> Any:
        import torch

        return torch.from_numpy(next(self.frames).transpose(2, 0, 1)[None].copy())

    def run(self, frame: Any) -> Any:
        import torch
        from sige.utils import compute_difference_mask

        with torch.inference_mode():
            self.mask = compute_difference_mask(self.held[0], frame, eps=0.0)
            self.stack.set_exact_masks(self.mask)
            self.held[0] = frame
            return self.stack(frame)

    def note(self, frame: Any, output: Any) -> None:
        self.shares.append(float(self.mask.float().mean()))
        self.last = frame, output


@dataclasses.dataclass(frozen=True)
class Found:
    """All that was measured; milliseconds."""

    size: tuple[int, int]
    cores: int
    torch_ms: float
    rows: list[Row]


def table(found: Found) -> Table:
    """A row for each density; what SIGE takes with its best block, over dense torch and over the step."""
    shown = Table(title=f"stack15, {found.size[1]}x{found.size[0]}, exact, cores: {found.cores}; dense torch "
                        f"{found.torch_ms:.2f} ms; milliseconds")
    first = found.rows[0]
    blocks, kernels = list(first.sige), list(first.step)
    steps = [f"step, {name}" if name else "step" for name in kernels]
    for heading in ("", "changed", *(f"SIGE {side}x{side}" for side in blocks), "SIGE x torch",
                    *itertools.chain.from_iterable((step, f"{step} x SIGE") for step in steps), "max diff"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        ours = itertools.chain.from_iterable((f"{ms:.2f}", f"{row.best / ms:.2f}") for ms in row.step.values())
        shown.add_row(
            f"{row.pattern} {100 * row.asked:g} %", f"{100 * row.changed:.2f} %",
            *(f"{ms:.2f}" for ms in row.sige.values()), f"{found.torch_ms / row.best:.2f}", *ours,
            f"{row.difference:.1e}",
        )
    return shown


def measure(
    sige_nn: Any, what: Subject, patterns: Sequence[str], densities: Sequence[float], tiles: Sequence[int],
    kernels: Sequence[str], frames: int,
) -> Found:
    """Dense torch, SIGE with each size of its blocks and the step with each of `kernels`, in turns."""
    import torch

    source = PATTERNS["square"](what.size, what.dtype, 1.0)
    pictures = baselines.pictures(what.name, [next(source) for _ in range(4)])
    module = originals.stack15_module(what.params)
    dense = next(baselines.torch_baselines(module, pictures, baselines.cores()))
    assert isinstance(dense, baselines.Dense)
    stacks = {}
    for tile in tiles:
        stack, held = sige_stack(sige_nn, what.params, tile), [torch.from_numpy(pictures[0])]
        with torch.inference_mode():
            stack.set_mode("full")
            stack(held[0])
        stack.set_mode("sparse")
        stacks[tile] = stack, held
    benches = {name: Bench(what, dj.incremental(what.fn, **{"kernels": name} if name else {})) for name in kernels}
    cases = []
    for pattern, density in itertools.product(patterns, densities):
        blocks = {str(tile): Sige(*stacks[tile], what, pattern, density) for tile in tiles}
        steps = {name: baselines.Step(bench, pattern, density, name) for name, bench in benches.items()}
        cases.append((blocks, steps))
    contestants = [dense, *(one for case in cases for part in case for one in part.values())]
    turns = -(-frames // baselines.TURN)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("stack15", total=turns * len(contestants))
        baselines.in_turns(contestants, turns, lambda: bar.advance(task))
    rows = []
    for blocks, steps in cases:
        apart = []
        for one in blocks.values():
            frame, output = one.last
            with torch.inference_mode():
                expected = module(frame)
            apart.append(baselines.difference(expected.numpy(), output.numpy()))
        one = next(iter(blocks.values()))
        rows.append(Row(one.pattern, one.density, float(np.median(one.shares)),
                        {side: one.median for side, one in blocks.items()},
                        {name: step.median for name, step in steps.items()}, max(apart)))
    return Found(what.size, baselines.cores(), dense.median, rows)


def main(
    density: tuple[float, ...] = DENSITIES,
    pattern: tuple[Literal["square", "scattered"], ...] = ("square", "scattered"),
    tile: tuple[int, ...] = TILES,
    frames: int = baselines.FRAMES,
    kernels: tuple[Kernels, ...] = (),
    size: tuple[int, int] = baselines.STACK15_SIZE,
    json: Path | None = None,
) -> int:
    """Measure and print a table; the exit status is 1 if SIGE is not there or gives other outputs than dense torch.

    Args:
        density: shares of the frame that change, above 0 and up to 1.
        pattern: a square of noise that moves, or 16x16 blocks at random places.
        tile: sides of SIGE's blocks of outputs.
        frames: that count of each, to the next multiple of three.
        kernels: as in baselines.py.
        size: (height, width) of a frame.
        json: file for all that was found.
    """
    for name in ("torch", "sige.cpu", "sige.nn"):  # in this order: the extension needs torch's libraries
        found = import_or_reason(name)
        if isinstance(found, str):
            print(f"{found}; this script says in its first lines where SIGE is to be had", file=sys.stderr)
            return 1
    outside = [share for share in density if not 0 < share <= 1]
    if outside:
        raise ValueError(f"`density` (={outside[0]}) must be a share of the frame, above 0 and up to 1")
    what = subject("stack15", None, size)
    made = measure(import_or_reason("sige.nn"), what, pattern, density, tile, kernels or ("",), frames)
    Console(width=None if sys.stdout.isatty() else 160).print(table(made))
    if json is not None:
        json.write_text(json_format.dumps({"jax": jax.__version__, **dataclasses.asdict(made)}, indent=1))
    return int(max(row.difference for row in made.rows) > baselines.AGREED["f32"])


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
