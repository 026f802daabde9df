"""From the words of a command line to a network that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def load_network(name: str, weights: Path | None, tau: float = 0.0) -> Network:
    """Looks the model up, reads its weights and makes it incremental.

    Args:
        name: a model of the registry.
        weights: a weight file, `None` for the weights in the package.
        tau: threshold in grey levels.

    Raises:
        UserError: there is no such model, the weights are not its own, or `tau` is negative or not a number.
    """
    try:
        model = get_model(name)
        return Network(model, model.load(weights), dj.incremental(model.apply, tau=tau))
    except ValueError as error:
        raise UserError(error) from error
