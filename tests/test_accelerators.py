"""The measurement of accelerators, on a CPU and in small: it is run on what it is for by hand."""

from __future__ import annotations

import json

import accelerators
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines import network


def test_each_stream_has_a_square_of_its_own():
    what = network("stack15", (32, 48))
    frames = np.stack(accelerators.clip(3, what, 0.1))
    assert frames.shape == (accelerators.FRAMES, 3, 32, 48, 3) and frames.dtype == np.float32
    moved = (frames[1:] != frames[:-1]).any(axis=-1).mean(axis=(2, 3))
    assert (moved > 0.05).all() and (moved < 0.25).all()
    assert (frames[:, 0] != frames[:, 1]).any(axis=-1).mean() > 0.9
    assert (np.stack(accelerators.clip(2, what, 0.0)) == accelerators.clip(2, what, 0.0)[0]).all()
    assert (frames[0] != np.stack(accelerators.clip(3, what, 1.0))[1]).any(axis=-1).mean() > 0.9


def test_in_bfloat16_nothing_is_computed_in_float32():
    what = accelerators.in_bfloat16(network("unet", (32, 32)))
    frame = jax.ShapeDtypeStruct((32, 32, 3), jnp.uint8)
    jaxpr = str(jax.make_jaxpr(what.fn)(what.params, frame))
    kinds = {line.split(":")[1].split("[")[0] for line in jaxpr.splitlines() if "conv_general_dilated[" in line}
    assert kinds == {"bf16"}


@pytest.mark.parametrize(("workers", "scan"), [(1, False), (1, True), (2, False)])
def test_found_and_printed(tmp_path, capsys, workers, scan):
    dtypes = ("f32", "bf16")[:workers]
    status = accelerators.main(("stack15",), (2,), dtypes, (0.0, 0.05), (32, 48), platform="gpu", workers=workers,
                               scan=scan, rounds=1, json=tmp_path / "found.json")
    assert status == 0
    founds = json.loads((tmp_path / "found.json").read_text())
    assert [found["dtype"] for found in founds] == list(dtypes)
    found = founds[0]
    still, moving = found["rows"]
    assert found["streams"] == 2 and found["dense_ms"] > 0 and isinstance(found["torch_ms"], (str, float))
    assert still["issued"] == 0 < moving["useful"] <= moving["issued"] <= 1
    assert max(still["difference"], moving["difference"]) < 2e-6
    assert "x best" in capsys.readouterr().out


def test_compiled_only(capsys):
    assert accelerators.main(("stack15",), (2,), ("f32",), size=(32, 48), platform="gpu", compile_only=True) == 0
    assert "stack15 f32, 2 streams: compiled in" in capsys.readouterr().out


def test_an_unknown_network():
    with pytest.raises(ValueError, match="`only` names 'vgg'"):
        accelerators.main(("vgg",))
