"""The paper's networks, sequences and accounts, on digits that deltajax draws."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import assert_close

import deltajax as dj
from deltajax.cli import main
from deltajax.datasets import read_mnist
from deltajax.models import simple_cnn
from deltajax.paper import PARTS, _accounts, _figures, _sequences, _sequential, _table, _threshold, paper


@pytest.fixture(scope="module")
def params():
    return simple_cnn.load_params()


@pytest.fixture(scope="module")
def digits():
    return _sequences.drawn_digits(12)


@pytest.fixture(scope="module")
def video(digits):
    """Two digits, four frames each, moving."""
    few = digits._replace(images=digits.images[:2], labels=digits.labels[:2])
    return _table.joined(_sequences.shifted(few, 4))[0]


def run(network, params, frames):
    return jax.jit(functools.partial(_table.skipping, network))(params, frames)


def test_cnn2_and_cnn3_are_the_dense_network(params, video):
    want = jax.jit(_table.dense)(params, video)
    assert_close(jax.jit(_table.sequential)(params, video), want, 4e-6)
    for held in (False, True):
        assert_close(run(_sequential.Cnn3(held=held), params, video), want, 4e-6)


def one_pixel(network, params):
    """The first convolution of `network` after one pixel changed, its right value, and its change map."""
    frame = jnp.asarray(np.random.default_rng(0).random((64, 64, 1)), jnp.float32)
    later = frame.at[30, 30].add(1.0)
    step = jax.jit(network.step)
    _, cache, _ = step(params, network.init(), frame)
    _, cache, maps = step(params, cache, later)
    fresh = step(params, network.init(), later)[1]
    return np.asarray(cache["conv1"] != fresh["conv1"]).any(-1), maps


def test_a_change_map_without_padding_leaves_five_of_nine_stale(params):
    stale, maps = one_pixel(_sequential.Cnn3(), params)
    assert not stale.any() and maps["conv1"].sum() == 9
    stale, maps = one_pixel(_sequential.Cnn3(map_not_padded=True), params)
    assert stale.sum() == 5 and stale[29:32, 29:32].sum() == 5
    assert maps["conv1"].sum() == 9


def test_a_threshold_in_depth_counts_units_and_stops_single_ones():
    """Deeper maps are of zeros and ones: more than `tau` of them must have changed."""
    kernel, x = {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}, jnp.ones((6, 6, 1))
    change = jnp.zeros((6, 6)).at[3, 3].set(1.0)
    for tau, found in ((0.0, 9), (1.0, 0)):
        _, maps = _sequential.conv(kernel, x, jnp.zeros((6, 6, 1)), change, tau)
        assert maps.sum() == found


def test_cnn3_at_tau_computes_on_what_it_holds(params):
    """By the held reference small steps add up to a change; by the previous one they never do."""
    rise = jnp.linspace(0, 2.0, 41)[:, None, None, None] * jnp.ones((64, 64, 1)).at[:, 20:].set(0)
    network = _sequential.Cnn3(tau=0.5, held=True)
    cache, step = network.init(), jax.jit(network.step)
    for frame in rise:
        logits, cache, _ = step(params, cache, frame)
        assert jnp.abs(frame - cache["frame"]).max() <= network.tau
        assert_close(logits, simple_cnn.apply(params, cache["frame"]), 4e-6)
    assert cache["frame"].max() > 1.5
    previous = run(_sequential.Cnn3(tau=0.5), params, rise)[-1]
    assert_close(previous, simple_cnn.apply(params, rise[0]), 4e-6)


def test_the_sequences_are_the_papers(digits):
    one, two = _sequences.repeated(digits), _sequences.shifted(digits)
    assert one.frames.shape == two.frames.shape == (12, 10, 64, 64, 1)
    np.testing.assert_array_equal(one.frames[:, 0], one.frames[:, 9])
    np.testing.assert_array_equal(two.frames[:, 3, :, 3:], two.frames[:, 0, :, :-3])
    np.testing.assert_array_equal(one.labels[:, 0], digits.labels)


def test_drawn_digits_have_mnists_form_and_are_read(digits, params):
    inked = digits.images > 64
    assert all(max(np.ptp(np.flatnonzero(x.any(axis))) for axis in (0, 1)) in (18, 19) for x in inked)
    named = simple_cnn.apply(params, _sequences.repeated(digits, 1).frames[:, 0])
    assert _table.accuracy(named, digits.labels) >= 11 / 12


def test_a_crossfade_moves_by_a_grey_level_a_frame(digits):
    frames = 255 * np.asarray(_sequences.crossfade(digits.images[0], digits.images[1], 60, 60))
    assert np.abs(np.diff(frames, axis=0)).max() <= 1.01 and frames.max() <= 60.01
    assert frames.shape == (61, 64, 64, 1)


def test_slow_change_passes_the_previous_frame_unseen(params, digits):
    fade = _threshold.fade(params, digits)
    assert fade.named["dense"][0] == fade.first and fade.named["dense"][-1] == fade.last
    assert fade.named["held"][-1] == fade.last
    assert fade.named["previous"][-1] == fade.first
    assert fade.behind["held"].max() <= fade.tau + 1e-4
    assert fade.behind["previous"][-1] > 50
    _figures.slow_change(fade)


def test_no_pair_that_can_be_read_is_an_error(params, digits):
    same = digits._replace(images=digits.images[[0, 0]], labels=digits.labels[[0, 0]])
    with pytest.raises(ValueError, match=r"`digits`.*give more"):
        _threshold.fade(params, same)


def test_the_papers_formula_counts_what_the_step_counts(params, video):
    """`K x K x C` for each skipped position and filter: what a convolution alone saves, to the last operation."""
    kernel = params["conv2"]["kernel"]

    def fn(kernel, x):
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]

    x = jnp.asarray(np.random.default_rng(0).random((32, 32, 32)), jnp.float32)
    inc = dj.incremental(fn)
    cache, _ = inc.init(kernel, x)
    step = jax.jit(inc.step)
    _, cache, _ = step(kernel, cache, None, x)
    _, cache, mask = step(kernel, cache, None, x.at[4:6, 7].add(1.0))
    stats, skipped = inc.stats(cache), int((~mask).sum())
    assert skipped == 32 * 32 - 4 * 3
    saved = 2 * skipped * 3 * 3 * 32 * 64
    assert float(stats.flops_dense - stats.flops_useful) == pytest.approx(saved, rel=1e-6)


def test_the_accounts(params, digits):
    few = digits._replace(images=digits.images[:2], labels=digits.labels[:2])
    for saving in _accounts.savings(params, _sequences.shifted(few, 3)):
        assert saving.formula == pytest.approx(2 * saving.skipped * saving.operations * saving.filters)
        assert 0 < saving.issued <= saving.useful < saving.dense
    layers, segments = _accounts.memory(params)
    cache, _ = dj.incremental(simple_cnn.apply).init(params, jnp.zeros((64, 64, 1)))
    told = sum(s.cache + s.mask + s.kept for s in segments)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert 0 <= held - told < 100  # ages, flags and counts
    assert sum(row.params for row in layers) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert next(row for row in layers if row.layer == "conv2").activation == 32 * 32 * 64 * 4


def test_change_maps_follow_the_receptive_field(params, digits):
    frames = _sequences.shifted(digits, 3).frames[0]
    difference, maps = _figures.change_maps(params, frames)
    grown = np.pad(difference[2] > 0, 1)
    grown = np.any([grown[i: i + 64, j: j + 64] for i in range(3) for j in range(3)], axis=0)
    assert maps["conv1"][2].any() and not (maps["conv1"][2] & ~grown).any()
    assert [maps[name].shape[1:] for name in ("conv1", "pool1", "conv2", "pool2")] == [
        (64, 64), (32, 32), (32, 32), (16, 16)
    ]


@pytest.mark.slow
def test_held_beats_previous_where_change_is_slow(params, digits):
    few = digits._replace(images=digits.images[:4], labels=digits.labels[:4])
    experiments = [_sequences.turning(few, 40)]
    (sweep,) = _threshold.sweep(params, experiments, (0.0, 0.1), lambda: None, rounds=1, norms=("linf",))
    exact, held, previous = sweep.points
    assert (held.reference, previous.reference) == ("held", "previous")
    assert held.agreement > previous.agreement + 0.2
    assert exact.tau == 0 and exact.agreement == 1 and exact.accuracy == sweep.dense_accuracy


@pytest.mark.slow
def test_parts_write_what_they_say(tmp_path, capsys):
    paper(None, tmp_path, ("table", "figures"), count=2)
    told = (tmp_path / "paper.txt").read_text()
    assert "Table 1" in told and "Ratios" in told and "figure5.png" in told
    for name in ("figure4.png", "figure5.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"parts": ("tables",)}, "`parts` names 'tables'"), ({"count": 1}, "`count` \\(=1\\) must be 2..200")],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        paper(None, tmp_path, **arguments)


def test_the_command_names_what_is_missing(tmp_path, capsys):
    assert main(["paper", "--mnist", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["paper", "--out", str(tmp_path / "file")]) == 2
    assert "give another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_table_1_on_mnist(params):
    """The ratios that were asked for: five times CNN1's speed where nothing moves, no slower where a digit moves."""
    if not os.environ.get("DELTAJAX_DATA"):
        pytest.skip("needs MNIST in $DELTAJAX_DATA/mnist")
    data = read_mnist(Path(os.environ["DELTAJAX_DATA"]) / "mnist")
    eleven = _sequences.Digits(data.test_images[:11], data.test_labels[:11], "MNIST")
    for make, faster, skips in ((_sequences.repeated, 5, 3), (_sequences.shifted, 1, 1.5)):
        found = _table.experiment(params, make(eleven))
        assert len({row.accuracy for row in found.rows}) == 1
        assert found.seconds(_table.DENSE) > faster * found.seconds(_table.INCREMENTAL)
        assert found.seconds(_table.SEQUENTIAL) > skips * found.seconds(_table.SKIPPING)


@pytest.mark.slow
def test_every_part(tmp_path):
    """All of `deltajax paper` with digits of its own, few thresholds."""
    paper(None, tmp_path, count=3, taus=(0.0, 0.1))
    told = (tmp_path / "paper.txt").read_text()
    assert "Slow change" in told and "2,000 frames" in told
    assert {path.name for path in tmp_path.iterdir()} >= {
        "figure4.png", "figure5.png", "figure6.png", "slow_change.png", "paper.txt"
    }
    assert set(PARTS) >= {"table", "whole", "threshold"}
