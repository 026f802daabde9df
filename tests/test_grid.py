"""Every network of the registry under every transformation of JAX: `grid.py` as tests, one small network in CI."""

import jax
import pytest
from grid import COLUMNS, case, compiling

from deltajax.models import model_names

IN_CI = ("resnet8",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.exhaustive)
            for name in model_names()],
)
def network(request):
    yield case(request.param)
    jax.clear_caches()


@pytest.mark.parametrize("column", COLUMNS)
def test_the_step_is_the_network(network, column):
    with compiling(column):
        COLUMNS[column](network)
