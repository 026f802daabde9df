"""Libraries of others that results are compared with, where they are there: torch, torchvision, timm."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import pytest


def import_or_reason(name: str) -> ModuleType | str:
    """The module, or why there is none.

    A library that is there need not import: torchvision beside another build of torch raises RuntimeError, then
    AttributeError, and takes timm with it. What was wrong is theirs, whatever its type, and the reason names it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            return f"{name} does not import: {type(error).__name__}: {error}"


def import_or_skip(name: str) -> ModuleType:
    """The module, or a skipped test that says why there is none."""
    found = import_or_reason(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found
