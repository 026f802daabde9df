"""From the words of a command line to a network that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

import deltajax as dj
from deltajax.models import VisionModel, get_model


class UserError(Exception):
    """Something that the user has to change; the message is one line that names it and says how."""


@dataclass(frozen=True)
class Network:
    """A model of the registry with its params, and its incremental form."""

    model: VisionModel
    params: PyTree
    incremental: dj.Incremental


def load_network(
    name: str, weights: Path | None, tau: float = 0.0, taus: Path | None = None, **options: Any
) -> Network:
    """Looks the model up, reads its weights and makes it incremental.

    Args:
        name: a model of the registry.
        weights: a weight file, `None` for the weights in the package.
        tau: threshold in grey levels.
        taus: what `deltajax tune` wrote; it takes the place of `tau`.
        options: others of `deltajax.incremental`.

    Raises:
        UserError: there is no such model, the weights are not its own, an option has a value outside its range, or
            `taus` holds no thresholds.
    """
    try:
        model = get_model(name)
        options |= {"tau": tau} if taus is None else dj.Tuning.load(taus).options
        if tau == 0 and taus is None and options.get("max_error") is not None:
            options["tau"] = "auto"
        return Network(model, model.load(weights), dj.incremental(model.apply, **options))
    except ValueError as error:
        raise UserError(error) from error


def check_segments(network: Network, taus: Path, frame: Any) -> None:
    """`UserError` if the thresholds are for segments that the network does not have on such frames."""
    try:
        network.incremental.explain(network.params, frame)
    except ValueError as error:
        raise UserError(f"the thresholds '{taus}' are another network's, or another frame size's: {error}") from error
