"""How a plan is run: what `incremental` was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from ._detect import Detection, Threshold


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """How a plan is run; see `incremental`.

    Attributes:
        platform: that steps are laid out for; None for JAX's default.
        native: whether kernels of deltajax's own do what they can.
        bfloat16: whether their products are of bfloat16, where the processor has it.
        pool: whether maps that only they touch lie in one array; else every map has one of its own.
    """

    how: Detection
    taus: Mapping[str, Threshold]
    bucket: int | None
    dense_share: float | None
    max_age: int | None
    platform: str | None
    native: bool
    bfloat16: bool
    pool: bool

    def tau(self, segment: str) -> Threshold:
        """The threshold of the segment of this name."""
        return self.taus.get(segment, 0.0)

    @property
    def at_once(self) -> bool:
        """Whether all tiles of a frame are done at once."""
        return (self.platform or jax.default_backend()) != "cpu"
