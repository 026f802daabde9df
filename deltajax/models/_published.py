"""Weights that the authors of a network publish and the package does not hold: from a file to checked params.

Networks that keep the authors' batch norms are read by `_state_dict`, those that fold them by `_folding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ._weight_files import read_weights

Params = dict[str, dict[str, Any]]


class Published(NamedTuple):
    """Whose weights are wanted, and where they are.

    Attributes:
        network: its name, as the command line calls it.
        hint: which file to give, and where it is published.
    """

    network: str
    hint: str

    def read(self, path: Path | None) -> dict[str, np.ndarray]:
        """The arrays of the authors' file, or of a .safetensors file with the same names.

        Raises:
            ValueError: no path is given; or as `read_weights` has it.
        """
        if path is None:
            raise ValueError(f"the weights of {self.network} are not in the package; {self.hint}")
        return read_weights(path)

    def check(self, origin: str, faults: Sequence[str]) -> None:
        """Refuses weights for what is wrong with them.

        Args:
            origin: what to call the weights: their file.
            faults: one phrase for each array that is missing, left over, or has another shape.

        Raises:
            ValueError: there are faults; the first three are named.
        """
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise ValueError(f"'{origin}' holds no {self.network} weights: {', '.join(faults[:3])}{more}; {self.hint}")


def shapes(network: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """The network's collections of modules of leaves, as shapes and dtypes.

    Args:
        network: takes uint8 RGB frames.
        size: (height, width) of a frame that it takes.
    """
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((*size, 3), jnp.uint8))
