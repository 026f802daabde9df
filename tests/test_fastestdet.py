"""FastestDet: the authors' network, weight by weight, what is made of its output, and its incremental form."""

import jax
import numpy as np
import pytest
from law import changes, check_incremental
from real import data, needs_data, pictures
from weights import random_params

from deltajax.models._published import shapes
from deltajax.models.fastestdet import MODEL, NAMES, FastestDet, decode, interpret, prepare

# Sixty layers deep, then squashed: rounding is a larger share of the small probabilities that come out.
DEEP = 1e-5

def test_a_frame_that_cannot_be_halved_five_times_is_refused():
    with pytest.raises(ValueError, match=r"`frame` has shape \(64, 80, 3\); .* multiples of 32"):
        shapes(FastestDet(), (64, 80))


def test_no_offset_decodes_to_the_cells_corner_and_half_the_frame():
    boxes = np.asarray(decode(np.zeros((2, 3, 5, 4), np.float32)))
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    np.testing.assert_allclose(size, 0.5, rtol=1e-6)
    np.testing.assert_allclose(centre[1, 2, 4], [4 / 5, 2 / 3], rtol=1e-6)
    far = np.asarray(decode(np.full((3, 5, 4), 100, np.float32)))
    np.testing.assert_allclose(far[0, 0], [1 / 5 - 0.5, 1 / 3 - 0.5, 1 / 5 + 0.5, 1 / 3 + 0.5], rtol=1e-6)


def output(found: dict[tuple[int, int], tuple[float, str, float, tuple[float, ...]]]) -> dict[str, np.ndarray]:
    """What the network returns if it sees only these: cell -> (objectness, name, probability, box)."""
    rows = {"objectness": np.zeros((22, 22)), "classes": np.zeros((22, 22, 80)), "boxes": np.zeros((22, 22, 4))}
    for cell, (objectness, name, probability, box) in found.items():
        rows["objectness"][cell], rows["boxes"][cell] = objectness, box
        rows["classes"][(*cell, NAMES.index(name))] = probability
    return rows


def test_interpret_keeps_likely_objects_in_pixels_and_lets_classes_overlap():
    box = (0.1, 0.2, 0.3, 0.6)
    found = interpret(
        output({
            (3, 4): (0.8, "cat", 0.9, box),
            (3, 5): (0.7, "cat", 0.9, (0.1, 0.2, 0.3, 0.62)),  # the same cat again
            (9, 9): (0.9, "sofa", 0.9, box),
            (0, 21): (0.6, "dog", 0.6, (0, 0, 1, 1)),  # .6 is below the threshold
        }),
        (200, 400),
    )
    assert found.names == ["sofa", "cat"]
    np.testing.assert_allclose(found.scores, [0.9, 0.8**0.6 * 0.9**0.4])
    np.testing.assert_allclose(found.boxes, [[40, 40, 120, 120]] * 2)
    nothing = interpret(output({}), (200, 400))
    assert (nothing.boxes.shape, nothing.names) == ((0, 4), [])


def test_drawing_names_each_object():
    rgb = np.full((200, 400, 3), 90, np.uint8)
    found = interpret(output({(9, 9): (0.9, "sofa", 0.9, (0.1, 0.2, 0.3, 0.6))}), (200, 400))
    drawn = MODEL.draw(rgb, found)
    rows, columns = np.nonzero((drawn != rgb).any(axis=-1))
    assert (rows.max(), columns.min()) == (120, 40)
    assert rows.min() < 40 - 8  # the label stands above
    np.testing.assert_array_equal(MODEL.draw(rgb, interpret(output({}), (200, 400))), rgb)


def test_prepare_takes_the_four_nearest_pixels():
    ramp = np.repeat(np.arange(0, 176, dtype=np.uint8)[:, None, None], 704, 1).repeat(3, 2)
    frame = prepare(ramp)  # twice as high, half as wide
    assert frame.shape == (352, 352, 3)
    expected = np.clip((np.arange(352) + 0.5) / 2 - 0.5, 0, 175)
    assert np.abs(frame[:, 7, 0] - expected).max() <= 1
    assert prepare(frame) is frame


@pytest.fixture(scope="module")
def small():
    """The network almost without what it repeats, and random weights."""
    network = FastestDet(repeats=(2, 1, 1))
    return network.apply, random_params(shapes(network, (64, 64)))


def test_a_batch_is_its_frames(small):
    fn, params = small
    frames = np.random.default_rng(1).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    run = jax.jit(fn)
    both, alone = run(params, frames), run(params, frames[1])
    assert {name: array.shape[1:] for name, array in both.items()} == {
        "objectness": (2, 4), "classes": (2, 4, 80), "boxes": (2, 4, 4)
    }
    for name in both:
        np.testing.assert_allclose(both[name][1], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_random_weights_on_random_frames_give_the_same_step_by_step(small):
    fn, params = small
    frames = changes((64, 64, 3), np.uint8, low=0, high=256)
    inc, _ = check_incremental(fn, params, frames, rel=DEEP, hasty=True, bucket=4)
    assert {segment.how for segment in inc.explain(params, frames[0]).segments} == {"tiles"}


@needs_data
def test_the_authors_weights_find_what_is_there():
    """The check values of the data folder's README, found with the authors' own code."""
    params, run = MODEL.load(data("weights/fastestdet_coco.pth")), jax.jit(MODEL.apply)
    for clip, number, name, scores in [
        ("vtest.avi", 0, "person", (0.84, 0.83, 0.79)),
        ("bottle-detection.mp4", 10, "bottle", (0.83, 0.81, 0.69)),
        ("asl/again.mkv", 0, "person", (0.93,)),
    ]:
        (rgb,) = pictures(f"static/{clip}", number)
        found = MODEL.interpret(jax.tree.map(np.asarray, run(params, MODEL.prepare(rgb))), rgb.shape[:2])
        assert found.names == [name] * len(scores)
        np.testing.assert_allclose(found.scores, scores, atol=0.03)


@needs_data
@pytest.mark.slow  # compiles the whole network
def test_the_authors_weights_on_a_clip_give_the_same_step_by_step():
    params = MODEL.load(data("weights/fastestdet_coco.pth"))
    frames = [MODEL.prepare(rgb) for rgb in pictures("static/bottle-detection.mp4", 0, 1, 2, 100, 100)]
    inc, _ = check_incremental(MODEL.apply, params, frames, rel=DEEP)
    assert {segment.how for segment in inc.explain(params, frames[0]).segments} == {"tiles"}
