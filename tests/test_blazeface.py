"""BlazeFace: the authors' network, weight by weight, on tiles, and what is made of its output."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from law import assert_close, changes, check_incremental
from real import data, needs_data, pictures
from weights import random_params

from deltajax.models._published import shapes
from deltajax.models.blazeface import (
    ANCHORS,
    MODEL,
    SIDE,
    BlazeFace,
    Place,
    anchors,
    blend,
    block,
    decode,
    interpret,
    place,
    prepare,
)


def test_no_offset_decodes_to_the_anchor():
    corners = decode(np.zeros((ANCHORS, 16), np.float32))
    np.testing.assert_array_equal(corners, np.tile(anchors(), 8))
    np.testing.assert_array_equal(anchors()[[0, 1, 2]], np.array([[1, 1], [1, 1], [3, 1]]) / 32)
    np.testing.assert_array_equal(anchors()[[512, 517, 518, 895]], np.array([[1, 1], [1, 1], [3, 1], [15, 15]]) / 16)


def test_offsets_are_pixels_of_the_frame():
    offsets = np.zeros((ANCHORS, 16), np.float32)
    offsets[3] = [8, -4, 32, 16, *range(12)]
    corners = decode(offsets)[3] * SIDE - np.tile(anchors()[3], 8) * SIDE
    np.testing.assert_allclose(corners, [-8, -12, 24, 4, *range(12)], atol=1e-4)


class Blocks(nn.Module):
    """Blocks that add channels, the last of which halves the picture as well."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for number, width in enumerate(self.widths):
            x = block(f"block{number}", x[None], width, stride=2 if width == self.widths[-1] else 1)[0]
        return x


def blocks(channels: int, widths: tuple[int, ...]) -> tuple[Blocks, dict]:
    network = Blocks(widths)
    params = network.init(jax.random.key(0), np.zeros((8, 8, channels), np.float32))
    return network, jax.tree.map(lambda leaf: leaf + 0.1, params)  # a bias of zero would hide wrong borders


def test_compiled_blocks_are_what_they_are_step_by_step():
    """The law that XLA:CPU broke, by a fifth of the largest value, while the block had a plain `nn.max_pool`."""
    network, params = blocks(24, (24, 28, 32))
    x = np.random.default_rng(1).normal(size=(64, 64, 24)).astype(np.float32)
    compiled = jax.jit(network.apply)(params, x)
    with jax.disable_jit():
        assert_close(compiled, network.apply(params, x), 2e-6)


def test_blocks_run_on_tiles():
    network, params = blocks(6, (8, 12))
    inc, caches = check_incremental(network.apply, params, changes((26, 30, 6)), hasty=True, tile=6)
    assert inc.explain(params, jax.ShapeDtypeStruct((26, 30, 6), np.float32)).fallback_share == 0
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[2] < issued[1] < issued[0]


@pytest.mark.slow  # compiles the whole detector
def test_random_frames_on_tiles():
    params = random_params(shapes(BlazeFace(), (SIDE, SIDE)))
    noise = np.random.default_rng(2)
    first = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    patch = first.copy()
    patch[40:52, 90:99] = noise.integers(0, 256, (12, 9, 3))
    patch[-1, -1] ^= 255
    inc, caches = check_incremental(MODEL.apply, params, [first, patch, patch, 255 - patch], hasty=True)
    assert inc.explain(params, first).fallback_share < 0.01
    issued = [int(inc.stats(cache).tiles_issued) for cache in caches]
    assert 0 == issued[2] < issued[1] < issued[0] == issued[3]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), Place(16, 0, 96, 128)),
        ((640, 480), Place(0, 16, 128, 96)),
        ((128, 128), Place(0, 0, 128, 128)),
        ((2, 4000), Place(63, 0, 1, 128)),
    ],
)
def test_a_picture_lies_in_the_middle_of_the_frame(size, expected):
    assert place(size) == expected
    frame = prepare(np.full((*size, 3), 200, np.uint8))
    inside = np.zeros((SIDE, SIDE), bool)
    inside[expected.top :, expected.left :][: expected.rows, : expected.columns] = True
    np.testing.assert_array_equal(frame, np.where(inside, 200, 0)[..., None].repeat(3, axis=-1))
    assert frame[MODEL.place(size)].shape == (expected.rows, expected.columns, 3)
    assert (frame[MODEL.place(size)] == 200).all()


def test_a_picture_of_the_frames_size_stays_as_it_is():
    rgb = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(rgb), rgb)


def test_overlapping_faces_are_blended_by_their_scores():
    faces = np.array([[0.0, 0, 10, 10, 1], [50, 50, 60, 60, 5], [0, 2, 10, 12, 3], [9, 9, 19, 19, 7]])
    scores = np.array([0.75, 0.8, 0.25, 0.5])
    blended, means = blend(faces, scores, 0.3)
    np.testing.assert_allclose(blended, [faces[1], [0, 0.5, 10, 10.5, 1.5], faces[3]])
    np.testing.assert_allclose(means, [0.8, 0.5, 0.5])


@pytest.mark.parametrize("count", [0, 1])
def test_few_faces_and_boxes_without_area_do_no_harm(count):
    blended, means = blend(np.full((count, 16), 5.0), np.full(count, 0.9), 0.3)
    assert blended.shape == (count, 16)
    np.testing.assert_array_equal(means, np.full(count, 0.9))


def test_interpret_keeps_likely_faces_in_pixels_of_the_picture():
    scores, corners = np.zeros(ANCHORS, np.float32), np.zeros((ANCHORS, 16), np.float32)
    scores[[7, 9]] = 0.8, 0.74
    corners[7] = [0.25, 0.5, 0.5, 0.75, *[0.375, 0.625] * 6]
    corners[9] = [0, 0, 0.1, 0.1, *[0.1] * 12]
    faces = interpret({"scores": scores, "corners": corners}, (320, 640))  # bars of 32 rows above and below
    np.testing.assert_allclose(faces.scores, [0.8], rtol=1e-6)
    np.testing.assert_allclose(faces.boxes, [[160, 160, 320, 320]], rtol=1e-6)
    np.testing.assert_allclose(faces.points, [[[240, 240]] * 6], rtol=1e-6)


def test_a_face_is_drawn_with_its_points():
    rgb = np.zeros((90, 120, 3), np.uint8)
    scores, corners = np.zeros(ANCHORS, np.float32), np.zeros((ANCHORS, 16), np.float32)
    scores[0], corners[0] = 1, [0.25, 0.25, 0.75, 0.75, *[0.5] * 12]
    drawn = MODEL.draw(rgb, MODEL.interpret({"scores": scores, "corners": corners}, rgb.shape[:2])).any(axis=-1)
    assert drawn[44, 59:62].all()  # a point
    assert drawn[20:76, 30].all()  # the box's left side, below the label
    assert not drawn[45, 45]
    assert not rgb.any()


@needs_data
def test_the_anchors_are_the_authors():
    theirs = np.load(data("weights/blazeface_anchors.npy"))
    np.testing.assert_array_equal(anchors(), theirs[:, :2])
    np.testing.assert_array_equal(theirs[:, 2:], 1)  # which is why `decode` needs no size


@needs_data
def test_the_authors_weights_find_the_face():
    params = MODEL.load(data("weights/blazeface.pth"))
    find = jax.jit(MODEL.apply)
    for clip in ("again", "brother", "sister"):
        (rgb,) = pictures(f"static/asl/{clip}.mkv", 0)
        faces = interpret(jax.tree.map(np.asarray, find(params, prepare(rgb))), rgb.shape[:2])
        assert len(faces.scores) == 1
        eyes = faces.points[0, :2]
        assert (faces.boxes[0, :2] < eyes).all() and (eyes < faces.boxes[0, 2:]).all()
    # The check value of the data folder's README, found with the authors' own code.
    right = pictures("static/asl/again.mkv", 0)[0][:, 160:]
    faces = interpret(jax.tree.map(np.asarray, find(params, prepare(right))), right.shape[:2])
    np.testing.assert_allclose(faces.scores, [0.998], atol=0.001)


@needs_data
@pytest.mark.slow  # compiles the whole detector
def test_a_clip_on_tiles_is_the_clip_dense():
    params = MODEL.load(data("weights/blazeface.pth"))
    frames = [prepare(rgb) for rgb in pictures("static/asl/again.mkv", 0, 1, 2)]
    patch = frames[-1].copy()
    patch[60:70, 20:30] = frames[0][30:40, 60:70]
    check_incremental(MODEL.apply, params, [*frames, patch, patch, frames[-1]], hasty=True)
