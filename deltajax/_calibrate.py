"""`deltajax bench --calibrate`: convolutions of some widths, on tiles and whole, and the rates that explain them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _rates
from ._bench import moving_square
from ._breakdown import breakdown
from ._incremental import incremental
from ._plan import TileSegment

WIDTHS = (8, 32, 64, 128)  # channels
SIZE, TILE, DENSITY = (128, 192), 16, 0.05


def calibrate(tick: Callable[[], None] = lambda: None) -> _rates.Rates:
    """Measures; some half a minute on two cores."""
    tiles, pictures = [], []
    for width in WIDTHS:
        keys = jax.random.split(jax.random.key(width), 2)
        params = [jax.random.normal(key, (3, 3, i, width)) / 10 for key, i in zip(keys, (3, width), strict=True)]

        def network(params, frame):
            x = frame[None]
            for kernel in params:
                x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                x = jax.nn.relu(x)
            return x[0]

        inc = incremental(network, tile=TILE, dense_share=1.0)
        frames = moving_square(SIZE, np.float32, DENSITY)
        segment = inc.plan(params, jax.ShapeDtypeStruct((*SIZE, 3), jnp.float32)).segments[1]
        assert isinstance(segment, TileSegment)
        row = breakdown(inc, params, frames)[1]
        issued = row.issued * segment.flops / segment.flops_per_tile
        tiles.append((segment.flops_per_tile, row.step_ms / 1e3 / issued))
        pictures.append((segment.flops, row.dense_ms / 1e3))
        tick()
    return _rates.fit(tiles, pictures)
