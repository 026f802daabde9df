"""Segments done by kernels of our own, on CPUs: optional, and equal to XLA's within rounding.

XLA's convolutions of a few tiles use one core, its depthwise ones hardly any of it, and around them every tile passes
through memory three times. `kernels.cc` does segments through `jax.ffi`, those that follow each other in one call:
which tiles the masks reach, the segment's operations on each, the comparison with what is stored and the write, tile
by tile on all cores. A whole picture is nothing but all of its tiles. Kernels of 3x3 take four ninths of the
products, a quarter where results are held within a threshold, strided and transposed ones 25 in 36 (`winograd.h`).
What only they touch lies in two arrays (`_tiles.Pool`), and the frame is compared with the held one in one pass
(`detect.h`). With ``kernels="native-bf16"`` factors of products, and maps that only they touch, are in bfloat16, two
numbers in the place of one float (`pairs.h`). Segments with something that is not done there stay with XLA.
"""

from ._encode import Native as Native
from ._encode import Part as Part
from ._frame import detect as detect
from ._frame import detects as detects
from ._library import build as build
from ._segment import attach as attach
from ._segment import cost as cost
from ._segment import run as run
from ._slots import Unsupported as Unsupported
