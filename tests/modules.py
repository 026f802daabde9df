"""What a step would have a GPU do: from the module that XLA compiles for one, on a machine that has none.

    pip install "jax[cuda13]"
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 CUDA_VISIBLE_DEVICES=-1 python tests/modules.py --only stack15 --streams 1 16 64
    ... --tau .05  # with a threshold in every segment that can have one

Networks, frames and weights are those of `accelerators`. Counted are, in a still frame, in one that takes the smallest
rung of every ladder, and in one that changes everywhere: kernels that are launched, copies of a megabyte or more among
them, and questions, for each of which the host waits until the device has an answer. Times are not: what cuDNN would
choose is not known here either. The device is described by TARGET, an H200.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
import time
from typing import Any, Literal

import jax
import tyro
from accelerators import in_bfloat16, mapped
from baselines import NETWORKS, network
from rich.console import Console
from rich.table import Table

import deltajax as dj
from deltajax._bench import STACK15_SIZE
from deltajax._plan import thresholded

TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
# Nothing can be tried out.
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0")

NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant"}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8}
LARGE = 1e6
STILL, SMALLEST, EVERYTHING = 0, 1, -1


@dataclasses.dataclass(frozen=True)
class Count:
    """Of one way through a module."""

    kernels: int = 0
    copies: int = 0
    questions: int = 0

    def __add__(self, other: Count) -> Count:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Count(*(a + b for a, b in pairs))


class Module:
    """An optimised module, as text."""

    def __init__(self, text: str):
        self._parts: dict[str, list[str]] = {}
        part: list[str] = []
        for line in text.splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
                part = self._parts[found[2]] = []
                if found[1]:
                    self._entry = found[2]
            elif " = " in line:
                part.append(line)

    def count(self, path: int) -> Count:
        """Of the way that takes this branch of every choice, and the last one where there are not so many."""
        return self._count(self._entry, path)

    def _count(self, name: str, path: int) -> Count:
        total = Count()
        for line in self._parts[name]:
            found = re.match(r"\s*(?:ROOT )?%[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
            if found is None or found[2] in NO_KERNEL:
                continue
            if found[2] == "conditional":
                branches = _branches(line)
                taken = branches[min(path, len(branches) - 1)]
                total += Count(questions=1) + self._count(taken, path)
            else:
                total += Count(1, found[2] == "copy" and _size(found[1]) >= LARGE)
        return total


def _branches(line: str) -> list[str]:
    """Of a choice, the branch for nothing first."""
    if found := re.search(r"branch_computations=\{([^}]*)\}", line):
        return re.findall(r"%([\w.\-]+)", found[1])
    no, yes = (re.search(rf"{name}_computation=%([\w.\-]+)", line) for name in ("false", "true"))
    assert no is not None and yes is not None, line
    return [no[1], yes[1]]


def _size(kind: str) -> int:
    """Bytes of an array or of a tuple of them."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return sum(BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in arrays)


def compiled(what: Any, streams: int, inc: dj.Incremental) -> tuple[Any, float]:
    """The mapped step, compiled for the device of TARGET; and the seconds that it took."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1").devices[0]
    there = jax.sharding.SingleDeviceSharding(device)
    step, arguments = mapped(what, streams, inc)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    start = time.perf_counter()
    made = step.lower(*arguments).compile()
    return made, time.perf_counter() - start


def main(
    only: tuple[str, ...] = ("stack15",),
    streams: tuple[int, ...] = (1, 16, 64),
    dtype: Literal["f32", "bf16"] = "f32",
    size: tuple[int, int] = STACK15_SIZE,
    tau: float = 0.0,
) -> int:
    """Compile and print.

    Args:
        only: names of networks.
        streams: how many; each number is a module.
        dtype: precision.
        size: (height, width) of a frame.
        tau: threshold of the frame and of every segment that can have one.
    """
    unknown = [name for name in only if name not in NETWORKS]
    if unknown:
        raise ValueError(f"`only` names {unknown[0]!r}; the networks are {', '.join(NETWORKS)}")
    shown = Table(title="a frame of all streams on a GPU: kernels, large copies, questions")
    for heading in ("network", "streams", "still", "smallest rungs", "everything", "temporary GB", "compiled in s"):
        shown.add_column(heading, justify="left" if heading == "network" else "right")
    for name in only:
        what = network(name, size) if dtype == "f32" else in_bfloat16(network(name, size))
        frame = jax.ShapeDtypeStruct((*size, 3), what.dtype)
        plan = dj.incremental(what.fn, platform="gpu").plan(what.params, frame)
        taus = {segment.name: tau for segment in thresholded(plan)} if tau else {}
        for number in streams:
            made, seconds = compiled(what, number, dj.incremental(what.fn, platform="gpu", tau=tau, taus=taus))
            module = Module(made.as_text())
            counts = (module.count(path) for path in (STILL, SMALLEST, EVERYTHING))
            shown.add_row(f"{name} {dtype}", str(number), *map(_shown, counts),
                          f"{made.memory_analysis().temp_size_in_bytes / 1e9:.2f}", f"{seconds:.0f}")
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
    return 0


def _shown(count: Count) -> str:
    return f"{count.kernels}, {count.copies}, {count.questions}"


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
