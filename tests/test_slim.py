"""slim-320: the authors' network, weight by weight, and what is made of its output."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltajax.models.slim import (
    FRAME_SIZE,
    MODEL,
    Slim320,
    anchors,
    decode,
    interpret,
    keep_best,
    load,
    params_from_state_dict,
)
from deltajax.video import open_source

needs_data = pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)


def data(path: str) -> Path:
    return Path(os.environ["DELTAJAX_DATA"]) / path


@pytest.fixture(scope="module")
def spec():
    return jax.eval_shape(Slim320().init, jax.random.key(0), jax.ShapeDtypeStruct((*FRAME_SIZE, 3), np.uint8))


@pytest.fixture
def state_dict(spec) -> dict[str, np.ndarray]:
    """Random weights under the authors' names and in their layout."""
    noise = np.random.default_rng(0)
    names = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
        "bias": "bias",
    }
    arrays = {}
    for modules in spec.values():
        for module, leaves in modules.items():
            for leaf, like in leaves.items():
                array = noise.uniform(0.1, 0.2, like.shape).astype(np.float32)
                arrays[f"{module}.{names[leaf]}"] = array.transpose(3, 2, 0, 1) if leaf == "kernel" else array
    return arrays | {"base_net.0.1.num_batches_tracked": np.array(9)}


def test_it_has_the_size_that_its_authors_publish(spec):
    assert sum(leaf.size for leaf in jax.tree.leaves(spec["params"])) == 260_188


def test_every_weight_arrives_where_it_belongs(spec, state_dict):
    params = params_from_state_dict(state_dict, "here")
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, spec)
    kernel = params["params"]["base_net.1.3"]["kernel"]
    assert kernel[0, 0, 5, 7] == state_dict["base_net.1.3.weight"][7, 5, 0, 0]
    assert params["batch_stats"]["base_net.1.4"]["var"][3] == state_dict["base_net.1.4.running_var"][3]


def test_safetensors_with_the_authors_names_are_taken(tmp_path, state_dict):
    arrays = {name: np.ascontiguousarray(array) for name, array in state_dict.items()}
    save_file(arrays, tmp_path / "slim.safetensors")
    params = load(tmp_path / "slim.safetensors")
    assert params["params"]["extras.0.0"]["bias"][1] == state_dict["extras.0.0.bias"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("extras.0.0.bias"), "extras.0.0.bias is missing"),
        (lambda w: w.update(fc=np.zeros(2)), "fc is not part of it"),
        (
            lambda w: w.update({"base_net.2.0.weight": np.zeros((32, 1, 5, 5))}),
            r"base_net.2.0.weight has shape \(32, 1, 5, 5\)",
        ),
        (lambda w: w.clear(), "base_net.0.1.running_mean is missing, .* and 156 more"),
    ],
)
def test_weights_that_do_not_fit_are_named(state_dict, change, message):
    change(state_dict)
    remedy = "; pass --weights version-slim-320.pth"
    with pytest.raises(ValueError, match=f"'here' holds no slim-320 weights: {message}{remedy}") as caught:
        params_from_state_dict(state_dict, "here")
    assert "\n" not in str(caught.value)


def test_without_a_path_the_error_says_which_file_and_where():
    with pytest.raises(
        ValueError, match=r"not in the package; pass --weights version-slim-320.pth, published in"
    ):
        MODEL.load(None)


def test_anchors_lie_in_the_authors_order():
    expected = [[0.5 / 40, 0.5 / 30, side / 320, side / 240] for side in (10, 16, 24)]
    np.testing.assert_allclose(anchors()[:3], expected, rtol=1e-6)
    assert anchors().shape == (30 * 40 * 3 + 15 * 20 * 2 + 8 * 10 * 2 + 4 * 5 * 3, 4)
    np.testing.assert_allclose(anchors()[-1], [4.5 / 5, 3.5 / 4, 256 / 320, 1], rtol=1e-6)


def test_no_offset_decodes_to_the_anchor():
    boxes = decode(np.zeros((4420, 4), np.float32))
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(np.hstack([centre, size]), anchors(), atol=1e-6)


def test_a_batch_is_its_frames(state_dict):
    params = params_from_state_dict(state_dict, "here")
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
    with open_source(str(data(f"video/static/asl/{clip}.mkv"))) as source:
        rgb = next(source.frames).rgb
    output = jax.tree.map(np.asarray, jax.jit(MODEL.apply)(params, MODEL.prepare(rgb)))
    faces = MODEL.interpret(output, rgb.shape[:2])
    assert len(faces.scores) == 1
    assert faces.scores[0] > 0.99
    if clip == "again":  # the check value of the data folder's README, found with the authors' own code
        best = output["boxes"][output["scores"][:, 1].argmax()]
        np.testing.assert_allclose(best, [0.455, 0.165, 0.556, 0.360], atol=0.02)


@needs_data
def test_its_sibling_with_other_layers_is_refused():
    with pytest.raises(ValueError, match=r"version-RFB-320.pth' holds no slim-320 weights"):
        MODEL.load(data("weights/version-RFB-320.pth"))
