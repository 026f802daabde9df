"""How old what is remembered may become: in `max_age` frames every tile has its turn.

In its turn a tile is computed from what it reads, and nothing is held back. Turns go through each picture tile by tile,
row by row, on all of a network's pictures alike: so what a tile reads has mostly had its turn in the same frame, and no
frame has more than its share of the work.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ._tiles import Grid

# Where a count of frames begins again: far below what int32 holds, far above any `max_age`.
LONGEST = 2**30


def older(age: jax.Array) -> jax.Array:
    """One frame on. It never becomes 0 again, which is a fresh cache, nor 1, which was one."""
    return jnp.where(age >= LONGEST, 2, age + 1)


@dataclasses.dataclass(frozen=True)
class Turn:
    """Whose turn it is in this frame.

    Attributes:
        max_age: in how many frames everyone has it once.
        age: `[S]`, frames since everything was computed.
    """

    max_age: int
    age: jax.Array

    def _of_tiles(self, grid: Grid) -> np.ndarray:
        """In which of `max_age` frames each tile has its turn, evenly spread."""
        return (np.arange(grid.per_stream) * self.max_age // grid.per_stream).astype(np.int32)

    def tiles(self, grid: Grid) -> jax.Array:
        """`[S, ny, nx]`: the tiles that have it."""
        has = self._of_tiles(grid)[None] == (self.age % self.max_age)[:, None]
        return has.reshape(-1, grid.rows.count, grid.cols.count)

    def has(self, grid: Grid, number: jax.Array, stream: jax.Array) -> jax.Array:
        """Whether the tile of that number in the flat list does."""
        return jnp.asarray(self._of_tiles(grid))[number % grid.per_stream] == self.age[stream] % self.max_age

    def positions(self, grid: Grid) -> jax.Array:
        """`[S, H, W]`: the positions of the tiles that have it."""
        rows, cols = grid.rows, grid.cols
        wide = jnp.repeat(jnp.repeat(self.tiles(grid), rows.tile, axis=1), cols.tile, axis=2)
        return wide[:, : rows.extent, : cols.extent]
