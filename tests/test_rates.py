"""The machine's rates: measured, kept, read again, and what they decide."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import deltajax as dj
from deltajax import _rates
from deltajax._rates import dense_above
from deltajax.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A file of the tests' own."""
    monkeypatch.setattr(_rates, "place", lambda: tmp_path / "deep" / "rates.json")
    _rates.rates.cache_clear()
    yield
    _rates.rates.cache_clear()


def test_a_line_through_the_tiles_and_the_median_picture():
    tiles = [(flops, 5e-6 + flops / 100e9) for flops in (1e5, 2e6, 8e6)]
    found = _rates.fit(tiles, [(1e9, 0.01), (2e9, 0.01), (8e9, 0.01)])
    assert (found.tile_overhead, found.tile_rate, found.dense_rate) == pytest.approx((5e-6, 100e9, 200e9))


@pytest.mark.parametrize("tiles", [[(1e6, 9e-6), (2e6, 8e-6), (3e6, 7e-6)], [(1e6, 1e-6), (2e6, 9e-6), (3e6, 2e-5)]])
def test_no_rate_is_negative_however_noisy(tiles):
    found = _rates.fit(tiles, [(1e9, 0.01)])
    assert found.tile_overhead >= 0 and found.tile_rate > 0


def test_kept_beside_those_of_other_machines():
    assert _rates.rates(True) == _rates.DEFAULT
    file = _rates.place()
    file.parent.mkdir()
    file.write_text(json.dumps({"another machine": {"tile_overhead": 1, "tile_rate": 1, "dense_rate": 1}}))
    _rates.rates.cache_clear()
    assert _rates.rates(True) == _rates.DEFAULT
    measured = _rates.Rates(1e-6, 2e9, 3e9)
    assert _rates.keep(measured) == file
    assert _rates.rates(True) == measured
    assert set(json.loads(file.read_text())) == {"another machine", _rates.machine()}
    assert _rates.rates(False) == _rates.ACCELERATOR  # there is none here


@pytest.mark.parametrize("text", ["{", '{"%s": {"speed": 1}}'])
def test_a_damaged_file_is_named(text):
    _rates.place().parent.mkdir()
    _rates.place().write_text(text.replace("%s", _rates.machine()))
    with pytest.raises(ValueError, match=r"rates.json' holds no rates .* or run `deltajax bench --calibrate`"):
        _rates.rates(True)
    _rates.keep(_rates.DEFAULT)
    assert _rates.rates(True) == _rates.DEFAULT


def test_a_machine_whose_tiles_are_dear_turns_to_the_dense_path_sooner():
    def network(kernel, frame):
        form = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(frame[None], kernel, (1, 1), "SAME", dimension_numbers=form)[0]

    shape = jax.ShapeDtypeStruct((128, 128, 16), jnp.float32)
    plan = dj.incremental(network, tile=16).plan(jnp.zeros((3, 3, 16, 16)), shape)
    (segment,) = plan.segments
    above = []
    for overhead in (1e-7, 1e-4):
        _rates.keep(_rates.Rates(overhead, 150e9, 200e9))
        above.append(dense_above(segment, 1, plan.program, None))
    assert above[0] > above[1]


def test_data_movement_has_tiles_on_accelerators_too():
    """Where a tile costs nothing but its FLOPs, and has none."""
    plan = dj.incremental(lambda _, x: x.transpose(1, 0, 2), tile=4, platform="gpu").plan(
        {}, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    assert [dense_above(s, 1, plan.program, None) for s in plan.segments] == [38] * len(plan.segments)


@pytest.mark.slow
def test_calibrate_on_the_command_line(capsys):
    assert main(["bench", "--calibrate"]) == 0
    assert "GFLOP/s; a whole picture" in capsys.readouterr().out
    found = _rates.rates(True)
    assert found != _rates.DEFAULT
    assert 1e8 < found.tile_rate < 1e14 and 1e8 < found.dense_rate < 1e14
