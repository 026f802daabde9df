"""CNN3, the source paper's incremental network, written by hand from layers; `SimpleCNN` is its dense twin.

Law: with ``tau=0`` the logits are those of `simple_cnn.apply` for the same params. Each layer recomputes what
the mask of the layer before reaches, and says in its own what changed (Borji, arXiv 2407.01782, figures 2 and
3).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import layers
from ..layers import Layer
from .simple_cnn import FRAME_SHAPE


class CNN3:
    """The network. It has the form of `Incremental` and of each of its layers, and holds options only.

    Args:
        tau: threshold on the frame, in its units (0 to 1); 0 is exact. The paper's `diff_thresh`.
        norm: ``"l1"``, ``"l2"`` or ``"linf"`` over the 3x3 pixels that the first convolution reads, as in the
            paper.
        reference: what a frame is compared with: ``"held"``, or the paper's ``"previous"``, which misses slow
            change.

    Attributes:
        layers: by name, in their order; ``layers[name].change_map(cache[name])`` is the map of figure 5.
    """

    def __init__(self, tau: float = 0.0, norm: str = "linf", reference: str = "held") -> None:
        field = 1 if tau == 0 else 3  # at 0 the convolution's window finds just the fields that changed
        relu = jax.nn.relu
        self.layers: dict[str, Layer] = {
            "frame": layers.detect(tau, norm=norm, field=field, reference=reference),
            "conv1": layers.conv(padding=1, activation=relu),
            "pool1": layers.max_pool(2),
            "conv2": layers.conv(padding=1, activation=relu),
            "pool2": layers.max_pool(2),
            "fc1": layers.dense(activation=relu),
            "fc2": layers.dense(),
        }

    def init(self, params: dict[str, Any]) -> tuple[dict[str, Any], Bool[Array, "64 64"]]:
        """A fresh cache, one part for each layer, and the paper's initial change map: all ones."""
        cache, x = {}, jax.ShapeDtypeStruct(FRAME_SHAPE, jnp.float32)
        for name, layer in self.layers.items():
            cache[name] = layer.init(params.get(name), x)
            x = layer.shape(params.get(name), x)
        return cache, jnp.ones(FRAME_SHAPE[:2], bool)

    def step(
        self, params: dict[str, Any], cache: dict[str, Any], mask: Bool[Array, "64 64"] | None,
        frame: Float[Array, "64 64 1"],
    ) -> tuple[Float[Array, " 10"], dict[str, Any], Bool[Array, ""]]:
        """One frame: ``(logits, cache, mask)``; the mask says whether the logits changed."""
        at, p, c = self.layers, params, cache
        x, held, m = at["frame"](None, c["frame"], mask, frame)
        x, conv1, m = at["conv1"](p["conv1"], c["conv1"], m, x)
        x, pool1, m = at["pool1"](None, c["pool1"], m, x)
        x, conv2, m = at["conv2"](p["conv2"], c["conv2"], m, x)
        x, pool2, m = at["pool2"](None, c["pool2"], m, x)
        x, fc1, m = at["fc1"](p["fc1"], c["fc1"], m, x)
        x, fc2, m = at["fc2"](p["fc2"], c["fc2"], m, x)
        parts = (held, conv1, pool1, conv2, pool2, fc1, fc2)
        return x, dict(zip(self.layers, parts, strict=True)), m
