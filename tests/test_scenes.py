"""Generated scenes: the same seed gives the same pixels, digits lie where they are said to lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deltajax import scenes


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    one, two, other = (list(scenes.glide(seed, frames=3, size=128)) for seed in (3, 3, 4))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.frame, b.frame)
        assert a.digits == b.digits
    assert (one[0].frame != other[0].frame).any()


def test_a_clip_shows_each_digit_once_in_every_frame():
    for scene in scenes.glide(0, frames=5, size=256):
        assert scene.frame.shape == (256, 256, 3) and scene.frame.dtype == np.uint8
        assert sorted(digit.name for digit in scene.digits) == list(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_digits_stay_inside_and_apart(seed: int):
    for scene in scenes.glide(seed, frames=24, size=256):
        boxes = np.array([digit[1:] for digit in scene.digits])
        assert boxes.min() >= 0 and boxes.max() <= 256
        for i, (top, left, bottom, right) in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            apart_y = np.maximum(others[:, 0] - bottom, top - others[:, 2])
            apart_x = np.maximum(others[:, 1] - right, left - others[:, 3])
            assert (np.maximum(apart_y, apart_x) > 0).all()


def test_without_noise_only_the_digits_change():
    for before, after in itertools.pairwise(scenes.glide(1, 40, 256, noise=0.0)):
        changed = (before.frame != after.frame).any(-1)
        assert changed.any()
        for digit in (*before.digits, *after.digits):
            margin = 4  # faint ink lies around the box
            top, left = max(int(digit.top) - margin, 0), max(int(digit.left) - margin, 0)
            changed[top : int(digit.bottom) + margin, left : int(digit.right) + margin] = False
        assert not changed.any()


def test_some_digits_move_and_some_rest():
    clip = list(scenes.glide(2, frames=60, size=256, noise=0.0))
    middles = np.array([[(d.top + d.left + d.bottom + d.right) / 4 for d in scene.digits] for scene in clip])
    moved = abs(np.diff(middles, axis=0)) > 0
    assert 0.05 < moved.mean() < 0.8
    assert moved.any(0).sum() >= 8


def test_noise_has_the_level_it_is_given_and_is_new_in_each_frame():
    clean, noisy = (list(scenes.glide(0, 2, 256, noise=noise)) for noise in (0.0, 1.5))
    apart = [n.frame.astype(float) - c.frame for n, c in zip(noisy, clean, strict=True)]
    assert np.std(apart[0]) == pytest.approx(1.5, rel=0.08)
    assert abs(np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1]) < 0.08  # rounding is common to both


@pytest.mark.parametrize("name", range(10))
def test_a_drawn_digit_fills_its_square_and_varies(name: int):
    rng = np.random.default_rng(0)
    drawn = [scenes.draw_digit(rng, name) for _ in range(4)]
    for ink in drawn:
        assert ink.shape == (64, 64) and ink.min() == 0 and ink.max() == 1
        rows, columns = np.nonzero(ink.max(1))[0], np.nonzero(ink.max(0))[0]
        assert max(np.ptp(rows), np.ptp(columns)) >= 55
        assert 0.02 < ink.mean() < 0.45
    assert all((a != b).any() for a, b in itertools.pairwise(drawn))


def test_paste_puts_ink_where_it_is_told_and_turns_it():
    ink = np.zeros((64, 64), np.float32)
    ink[:, 24:40] = 1  # an upright bar, a quarter as wide as it is high
    frame = np.zeros((100, 120, 3), np.float32)
    upright = scenes.paste(frame, ink, 1, (40.0, 70.0), 32.0, colour=(200.0, 100.0, 50.0))
    np.testing.assert_allclose(upright[1:], (24, 66, 56, 74), atol=1)
    np.testing.assert_allclose(frame[40, 70], (200, 100, 50), rtol=1e-5)
    lying = scenes.paste(np.zeros_like(frame), ink, 1, (40.0, 70.0), 32.0, angle=np.pi / 2)
    np.testing.assert_allclose(lying[1:], (36, 54, 44, 86), atol=1)
    half_out = np.zeros_like(frame)
    scenes.paste(half_out, ink, 1, (2.0, 70.0), 32.0)
    assert half_out[0, 70].max() > 200 and half_out[25:].max() == 0


def test_a_shift_of_part_of_a_pixel_moves_the_ink_by_that_part():
    ink = np.pad(np.ones((32, 32), np.float32), 16)
    middles = []
    for x in (50.0, 50.25, 50.5):
        frame = np.zeros((100, 100, 3), np.float32)
        scenes.paste(frame, ink, 0, (50.0, x), 64.0)
        middles.append((frame[50, :, 0] * np.arange(100)).sum() / frame[50, :, 0].sum())
    np.testing.assert_allclose(np.diff(middles), 0.25, atol=0.05)


def test_textures_are_dark_enough_for_the_ink():
    rng = np.random.default_rng(0)
    for _ in range(12):
        texture = scenes.draw_texture(rng, 96, 128)
        assert texture.shape == (96, 128, 3)
        assert texture.mean() < 130 and texture.std() > 2
