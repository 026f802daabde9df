"""The noise check: what each kind of noise does to a frame, what a held frame withstands, tables and picture."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deltajax import scenes
from deltajax.datasets import read_mnist
from deltajax.models import simple_cnn
from deltajax.paper import _noise as noise


@pytest.fixture(scope="module")
def digits():
    """Eight drawn digits in MNIST's form."""
    rng = np.random.default_rng(0)
    names = np.array([1, 1, 0, 7, 4, 2, 3, 1], np.uint8)
    images = np.zeros((len(names), 28, 28), np.uint8)
    for image, name in zip(images, names, strict=True):
        ink = Image.fromarray((255 * scenes.draw_digit(rng, int(name))).astype(np.uint8))
        image[4:24, 4:24] = np.asarray(ink.resize((20, 20), Image.Resampling.BOX))
    return images, names


@pytest.fixture(scope="module")
def clips(digits):
    frames = simple_cnn.place(jnp.asarray(digits[0]), np.zeros((len(digits[0]), 2), int))
    return jnp.repeat(frames[:, None], 3, 1)


def test_gaussian_noise_has_its_width_and_stays_in_range(clips):
    grey = jnp.full_like(clips, 0.5)
    noisy = noise.gaussian(jax.random.key(0), grey, 0.1)
    assert abs(float((noisy - grey).std()) - 0.1) < 0.002
    assert abs(float((noisy[:, 1] - noisy[:, 2]).std()) - 0.1 * 2**0.5) < 0.003  # afresh in each frame
    loud = noise.gaussian(jax.random.key(0), clips, 0.5)
    assert float(loud.min()) == 0 and float(loud.max()) == 1
    np.testing.assert_array_equal(noise.gaussian(jax.random.key(0), clips, 0.0), clips)


def test_salt_and_pepper_hits_its_share_with_both(clips):
    grey = jnp.full_like(clips, 0.5)
    noisy = noise.salt_and_pepper(jax.random.key(0), grey, 0.1)
    assert abs(float((noisy != 0.5).mean()) - 0.1) < 0.01
    assert set(np.unique(noisy)) == {0.0, 0.5, 1.0}
    assert abs(float(noisy[noisy != 0.5].mean()) - 0.5) < 0.02


def test_fgsm_raises_the_loss_more_than_noise_of_its_size(digits, clips):
    params, names = simple_cnn.load_params(), jnp.asarray(digits[1][3:6], jnp.int32)
    epsilon = 0.05

    frames = clips[3:6, 0]

    def loss(frames):
        logits = simple_cnn.apply(params, frames)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(names)), names].mean()

    attacked = jax.jit(noise.fgsm)(params, frames, names, epsilon)
    flips = epsilon * jnp.sign(jax.random.normal(jax.random.key(0), frames.shape))
    assert float(abs(attacked - frames).max()) <= epsilon + 1e-6
    assert float(attacked.min()) == 0 and float(attacked.max()) == 1
    assert loss(attacked) > 3 * loss(jnp.clip(frames + flips, 0, 1))


def test_another_digit_has_another_name(digits):
    names = digits[1]
    others = noise.other_digits(names)
    assert (names[others] != names).all()
    assert others.tolist() == [2, 2, 3, 4, 5, 6, 7, 2]
    with pytest.raises(ValueError, match="`labels` are all 3"):
        noise.other_digits(np.full(4, 3, np.uint8))


def test_sequences_differ_in_their_first_frame_alone(digits, clips):
    noisy = noise.gaussian(jax.random.key(1), clips, 0.3)
    others = noise.other_digits(digits[1])
    made = {name: noise.sequence(name, clips[:, 0], noisy, others) for name in noise.SEQUENCES}
    for sequence in made.values():
        np.testing.assert_array_equal(sequence[:, 1:], noisy[:, 1:])
    np.testing.assert_array_equal(made["clean first"][:, 0], clips[:, 0])
    np.testing.assert_array_equal(made["noisy first"], noisy)
    np.testing.assert_array_equal(made["cut"][0, 0], clips[2, 0])


@pytest.mark.slow
def test_results_tables_and_picture(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(noise, "LEVELS", {"Gaussian": (0.0, 0.5), "salt, pepper": (0.1,), "FGSM": (0.05, 0.15)})
    monkeypatch.setattr(noise, "TAUS", (0.0, 0.1))
    results = noise.noise(*digits, tmp_path, count=6)
    assert len(results) == 3 * 5
    assert {r.sequence for r in results} == set(noise.SEQUENCES)
    for r in results:
        assert r.accuracy[0.0] == r.dense  # exact
        assert r.changed[0.1] <= r.changed[0.0]
    held = {(r.kind, r.level): r for r in results if r.sequence == "clean first"}
    clean = held["Gaussian", 0.0].dense
    assert held["Gaussian", 0.0].changed[0.1] == 0 and clean >= 0.5
    # An attack within tau is never seen; one beyond it is seen in full, where no pixel is cut off at 0 or 1.
    assert held["FGSM", 0.05].changed[0.1] == 0 and held["FGSM", 0.05].accuracy[0.1] == clean
    assert held["FGSM", 0.15].changed[0.1] > 0.05
    told = capsys.readouterr().out
    assert all(name in told for name in noise.SEQUENCES)
    assert "noisy first, FGSM: a threshold changes nothing" in told  # the attack never moves
    with Image.open(tmp_path / "noise.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20


@pytest.mark.parametrize("count", [0, 1, 9])
def test_a_count_out_of_range_is_named(digits, tmp_path: Path, count: int):
    with pytest.raises(ValueError, match=rf"`count` \(={count}\) must be 2..8"):
        noise.noise(*digits, tmp_path, count=count)


@pytest.mark.slow
@pytest.mark.skipif("DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with mnist/")
def test_on_mnist_it_is_the_held_frame_that_withstands(tmp_path: Path):
    data = read_mnist(Path(os.environ["DELTAJAX_DATA"]) / "mnist")
    found = {(r.sequence, r.kind, r.level): r for r in noise.noise(data.test_images, data.test_labels, tmp_path)}
    helped, not_helped = (found[name, "Gaussian", 0.3] for name in ("clean first", "noisy first"))
    assert helped.gains[0.4] > 0.2
    assert not_helped.gains[0.4] < 0.05
