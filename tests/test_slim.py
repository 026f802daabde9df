"""slim-320: the authors' network, weight by weight, and what is made of its output."""

import jax
import numpy as np
import pytest
from real import data, needs_data, pictures
from weights import random_params

from deltajax.models._published import shapes
from deltajax.models.slim import FRAME_SIZE, MODEL, Slim320, anchors, decode, interpret, keep_best


def test_anchors_lie_in_the_authors_order():
    expected = [[0.5 / 40, 0.5 / 30, side / 320, side / 240] for side in (10, 16, 24)]
    np.testing.assert_allclose(anchors()[:3], expected, rtol=1e-6)
    assert anchors().shape == (30 * 40 * 3 + 15 * 20 * 2 + 8 * 10 * 2 + 4 * 5 * 3, 4)
    np.testing.assert_allclose(anchors()[-1], [4.5 / 5, 3.5 / 4, 256 / 320, 1], rtol=1e-6)


def test_no_offset_decodes_to_the_anchor():
    boxes = decode(np.zeros((4420, 4), np.float32))
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(np.hstack([centre, size]), anchors(), atol=1e-6)


def test_a_batch_is_its_frames():
    params = random_params(shapes(Slim320(), FRAME_SIZE))
    frames = np.random.default_rng(1).integers(0, 256, (2, *FRAME_SIZE, 3), dtype=np.uint8)
    apply = jax.jit(MODEL.apply)
    both = apply(params, frames)
    assert both["scores"].shape == (2, 4420, 2)
    for number, frame in enumerate(frames):
        alone = apply(params, frame)
        for name in ("scores", "boxes"):
            np.testing.assert_allclose(both[name][number], alone[name], rtol=1e-5, atol=1e-6)


def greedy(boxes: np.ndarray, scores: np.ndarray, max_overlap: float) -> list[int]:
    """The definition of greedy suppression, one pair at a time."""
    kept: list[int] = []
    for this in sorted(range(len(boxes)), key=lambda number: -scores[number]):
        overlaps = []
        for other in kept:
            low, high = (
                np.maximum(boxes[this, :2], boxes[other, :2]),
                np.minimum(boxes[this, 2:], boxes[other, 2:]),
            )
            shared = np.prod(np.maximum(high - low, 0))
            areas = sum(np.prod(boxes[number, 2:] - boxes[number, :2]) for number in (this, other))
            overlaps.append(shared / (areas - shared))
        if all(overlap <= max_overlap for overlap in overlaps):
            kept.append(this)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_suppression_is_the_greedy_one(count):
    noise = np.random.default_rng(count)
    corners = noise.uniform(0, 50, (count, 2))
    boxes = np.hstack([corners, corners + noise.uniform(5, 30, (count, 2))])
    scores = noise.uniform(size=count)
    assert keep_best(boxes, scores, 0.3) == greedy(boxes, scores, 0.3)


def test_boxes_without_area_do_no_harm():
    boxes = np.array([[5.0, 5, 5, 5], [0, 0, 10, 10], [9, 9, 2, 2]])
    assert keep_best(boxes, np.array([0.9, 0.8, 0.7]), 0.3) == [0, 1, 2]


def test_interpret_keeps_likely_faces_in_pixels_of_the_picture():
    scores = np.tile(np.array([1, 0], np.float32), (4420, 1))
    boxes = np.zeros((4420, 4), np.float32)
    for number, score, box in [
        (7, 0.8, (0.1, 0.2, 0.3, 0.6)),
        (9, 0.95, (0.5, 0.5, 0.75, 1)),
        (11, 0.69, (0, 0, 1, 1)),
    ]:
        scores[number], boxes[number] = (1 - score, score), box
    faces = interpret({"scores": scores, "boxes": boxes}, (200, 400))
    np.testing.assert_allclose(faces.scores, [0.95, 0.8], rtol=1e-6)
    np.testing.assert_allclose(faces.boxes, [[200, 100, 300, 200], [40, 40, 120, 120]], rtol=1e-5)


@needs_data
@pytest.mark.parametrize("clip", ["again", "book", "sister"])
def test_the_authors_weights_find_the_face(clip):
    params = MODEL.load(data("weights/version-slim-320.pth"))
    (rgb,) = pictures(f"static/asl/{clip}.mkv", 0)
    output = jax.tree.map(np.asarray, jax.jit(MODEL.apply)(params, MODEL.prepare(rgb)))
    faces = MODEL.interpret(output, rgb.shape[:2])
    assert len(faces.scores) == 1
    assert faces.scores[0] > 0.99
    if clip == "again":  # the check value of the data folder's README, found with the authors' own code
        best = output["boxes"][output["scores"][:, 1].argmax()]
        np.testing.assert_allclose(best, [0.455, 0.165, 0.556, 0.360], atol=0.02)
