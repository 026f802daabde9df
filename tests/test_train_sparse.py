"""The penalty on change: clips, its form, its gradient through the step in scan, the command, what it saves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from test_train import pack_idx, small_mnist

from deltajax.datasets.mnist import SHA256
from deltajax.models import simple_cnn
from train import sparse

PRESSURE = jnp.array([0.8, 0.1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name, array in zip(SHA256, small_mnist(), strict=True):
        (data / name).write_bytes(pack_idx(array))
    return data


@pytest.fixture(scope="module")
def batch():
    """Two clips of two frames, and their names."""
    data = small_mnist()
    clips = sparse.make_clips(jax.random.key(0), jnp.asarray(data.train_images[:2]), 2, 0.05)
    return clips, jnp.asarray(data.train_labels[:2], jnp.int32)


@pytest.fixture(scope="module")
def through_the_step():
    """The compiled loss with its gradient, at tau 0."""
    inc = sparse.thresholded([], 0.0)
    return jax.jit(jax.value_and_grad(lambda p, pressure, *b: sparse.loss(inc, pressure, p, *b), has_aux=True))


def dense_loss(params, pressure, clips, labels):
    """The same without deltajax, frame by frame."""
    logits, activations = jax.vmap(jax.vmap(lambda frame: sparse.watched(params, frame)))(clips)
    entropy = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), :, labels].mean()
    return entropy + pressure @ jnp.stack([sparse.change(a) for a in activations])


def test_clips_move_by_a_pixel_or_stand_still_under_noise():
    digits, make = jnp.full((40, 28, 28), 255, jnp.uint8), jax.jit(sparse.make_clips, static_argnums=2)
    still = np.asarray(make(jax.random.key(3), digits, 6, 0.0))
    corners = np.array([[np.argwhere(frame[..., 0])[0] for frame in clip] for clip in still])
    moves = np.abs(np.diff(corners, axis=1)).sum(-1)
    assert set(np.unique(moves)) == {0, 1}
    assert 0.35 < moves.mean() < 0.65
    assert (still.sum((2, 3, 4)) == 28 * 28).all()  # never out of the frame
    noisy = np.asarray(make(jax.random.key(3), digits, 6, 0.1))
    assert noisy.min() == 0 and noisy.max() == 1
    black = noisy[still == 0]
    assert abs(black[black > 0].std() - 0.1 * (1 - 2 / np.pi) ** 0.5) < 0.002  # half of a Gaussian


def test_the_pool_is_the_models_with_a_derivative_of_its_own():
    x, by = jax.random.normal(jax.random.key(0), (2, 3, 6, 8, 5))
    for ours, theirs in zip(
        jax.jvp(sparse.max_pool, (x,), (by,)), jax.jvp(simple_cnn.max_pool, (x,), (by,)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_watched_names_the_digit_as_the_model_does():
    params = simple_cnn.load_params()
    frame = jax.random.uniform(jax.random.key(1), simple_cnn.FRAME_SHAPE)
    logits, activations = sparse.watched(params, frame)
    np.testing.assert_array_equal(logits, simple_cnn.apply(params, frame))
    assert [a.shape for a in activations] == [(32, 32, 32), (16, 16, 64)]


def test_change_is_the_largest_of_each_tile_in_spreads():
    still = jax.random.normal(jax.random.key(0), (1, 1, 8, 8, 3)).repeat(3, 1)
    assert sparse.change(still) == 0
    moved = still.at[0, 1:, 0, 0, 0].add(2.0).at[0, 1:, 3, 3, 1].add(-5.0)  # both in the first of four tiles
    assert sparse.change(moved) == pytest.approx(5 / (2 * 4) / float(sparse.spread(moved)), rel=1e-5)
    assert sparse.change(7 * moved) == pytest.approx(float(sparse.change(moved)), rel=1e-5)
    assert sparse.spread(moved + 100.0) == pytest.approx(float(sparse.spread(moved)), rel=1e-4)
    dead = moved.at[..., 2].set(0)
    assert np.isfinite(jax.grad(sparse.change)(dead)).all()


def test_layers_are_weighed_by_what_reads_them():
    params = simple_cnn.load_params()
    first, second = sparse.layers(params, jax.random.uniform(jax.random.key(0), (1, 2, *simple_cnn.FRAME_SHAPE)))
    assert first.name.startswith("conv") and second.name.startswith("conv") and first.name != second.name
    conv2, fc1 = 2 * 32 * 32 * 64 * 9 * 32, 2 * 16384 * 128
    assert first.weight / second.weight == pytest.approx(conv2 / fc1, rel=0.02)
    inc = sparse.thresholded((first, second), 0.5)
    assert inc.options.taus == {layer.name: 0.5 * layer.spread for layer in (first, second)}


@pytest.mark.slow
def test_the_gradient_through_the_step_is_the_dense_one(batch, through_the_step):
    params = simple_cnn.load_params()
    (value, _), gradient = through_the_step(params, PRESSURE, *batch)
    want, expected = jax.jit(jax.value_and_grad(dense_loss))(params, PRESSURE, *batch)
    assert value == pytest.approx(float(want), rel=1e-5)
    for got, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert float(abs(right).max()) > 0
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-4 * float(abs(right).max()))


def test_the_penalty_lowers_the_change(batch, through_the_step):
    def tuned(pressure):
        params = simple_cnn.load_params()
        optimiser = optax.adam(5e-3)
        memory = optimiser.init(params)
        for _ in range(8):
            (_, changes), gradient = through_the_step(params, pressure, *batch)
            updates, memory = optimiser.update(gradient, memory)
            params = optax.apply_updates(params, updates)
        return np.asarray(changes)

    without, pressed = tuned(0 * PRESSURE), tuned(PRESSURE)
    assert (pressed < 0.95 * without).all(), (pressed, without)


def test_the_cheapest_of_equals():
    points = [sparse.Point(0.98, 1.0), sparse.Point(0.976, 0.5), sparse.Point(0.97, 0.2)]
    assert sparse.cheapest(points, 0.98) == points[1]
    assert sparse.cheapest(points, 0.99) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--penalty", "-1"], "`--penalty` (=-1.0) must be a number >= 0"),
        (["--penalty", "nan"], "`--penalty` (=nan)"),
        (["--frames", "1"], "`--frames` (=1) must be 2..10"),
        (["--frames", "11"], "`--frames` (=11)"),
        (["--noise", "-0.1"], "`--noise` (=-0.1)"),
        (["--hold", "inf"], "`--hold` (=inf)"),
        (["--holds", "0.5", "-2"], "`--holds` (=-2.0)"),
        (["--holds"], "`--holds`"),
        (["--clips", "161"], "`--clips` (=161) must be 1..160"),
        (["--clips", "10", "--batch", "11"], "`--batch` (=11) must be 1..10"),
        (["--test", "21"], "`--test` (=21) must be 1..20"),
        (["--epochs", "0"], "`--epochs` (=0) must be at least 1"),
        (["--rate", "0"], "`--rate` (=0.0)"),
        (["--control", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fits = ["--clips", "16", "--batch", "8", "--test", "4"]
    given = ["--data", str(folder), "--no-verify", "--out", str(tmp_path / "out"), *fits, *arguments]
    assert sparse.main(given) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_resumes_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["--clips", "8", "--batch", "4", "--frames", "2", "--epochs", "2", "--test", "2", "--holds", "0.5"]
    common = ["--data", str(folder), "--no-verify", *small]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sparse.main([*common, "--out", str(whole)]) == 0
    told = capsys.readouterr().out
    assert "untuned: within 0.5 points" in told and "% rightly named" in told
    with Image.open(whole / "sparse.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "2")
    (parts / "weights.safetensors").unlink()
    assert sparse.main([*common, "--out", str(parts), "--resume"]) == 0
    assert (parts / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert sparse.main([*common, "--out", str(parts), "--resume", "--penalty", "2"]) == 2
    assert "penalty was 1.0, is 2.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with mnist/")
def test_a_short_run_on_mnist_issues_fewer_flops_at_equal_accuracy(tmp_path: Path):
    data = Path(os.environ["DELTAJAX_DATA"]) / "mnist"
    args = sparse.Args(data, tmp_path, clips=1200, frames=3, epochs=1, test=80, holds=(0.8,))
    (untuned,), (tuned,) = sparse.train(args)[0].points.values()
    assert tuned.issued < untuned.issued - 0.1
    assert tuned.accuracy >= untuned.accuracy - 0.005
