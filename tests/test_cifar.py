"""The CIFAR-10 experiments: their clips, their figures, and that they run to the end."""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from rich.console import Console

from deltajax.cifar import CHANGES, SEQUENCES, cifar, experiments, name_weights
from deltajax.cifar.figures import growth_figure, growth_table, tau_figure, tau_table
from deltajax.cifar.measurements import Course, Growth, Subject
from deltajax.cifar.sequences import FRAMES, NOISE, changed_square, moving_patch, noisy, shifted, still
from deltajax.datasets import Cifar10, read_cifar10
from deltajax.models._classifier import classifier

noise = np.random.default_rng(0)
PICTURE = noise.integers(0, 256, (32, 32, 3), np.uint8)
IMAGES = Cifar10(noise.integers(0, 256, (2, 32, 32, 3), np.uint8), np.array([4, 7], np.uint8))
FILES = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet8": "mlperf_tiny_resnet8_cifar10.h5",
    "mobilenet-vww": "mlperf_tiny_vww_mobilenetv1_025_96.h5",
}


class Tiny(nn.Module):
    """A convolution, another one at half the size, and ten means."""

    @nn.compact
    def __call__(self, frame):
        x = nn.relu(nn.Conv(4, (3, 3))(frame[None].astype(jnp.float32) / 255))
        return nn.Conv(10, (3, 3), 2)(x).mean((0, 1, 2))


def tiny(name: str, labelled: bool) -> Subject:
    network = Tiny()
    model = classifier(name, "", 32, tuple("0123456789"), network.apply, dict, lambda path: {})
    return Subject(model, network.init(jax.random.key(0), PICTURE), labelled)


@pytest.fixture(scope="module")
def course() -> Course:
    return Course(tiny("tiny", labelled=True), 0.0, 4)


@pytest.mark.parametrize("made", [*SEQUENCES, *CHANGES], ids=lambda made: made.name)
@pytest.mark.parametrize("side", [32, 96])
def test_a_clip_starts_from_the_picture_and_leaves_it_as_it_was(made, side):
    picture = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    before = picture.copy()
    clip = made.make(picture, 3)
    assert clip.shape == (FRAMES, side, side, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, made.make(picture, 3))
    np.testing.assert_array_equal(picture, before)
    if made.name not in ("moving patch", "noisy"):
        np.testing.assert_array_equal(clip[0], picture)


def test_nothing_moves_in_a_still_clip():
    assert (still(PICTURE) == PICTURE).all()


def test_noise_is_new_in_each_frame_and_stays_in_range():
    clip = noisy(np.full((64, 64, 3), 128, np.uint8))
    assert clip.std() == pytest.approx(NOISE, rel=0.05)
    assert np.diff(clip.astype(int), axis=0).std() == pytest.approx(NOISE * 2**0.5, rel=0.05)
    assert noisy(PICTURE // 255 * 255).min() == 0 and noisy(255 - PICTURE // 255).max() == 255


def test_a_shifted_picture_moves_by_a_pixel_and_repeats_its_edge():
    clip = shifted(PICTURE)
    for number in range(1, FRAMES):
        np.testing.assert_array_equal(clip[number, :, 1:], clip[number - 1, :, :-1])
        np.testing.assert_array_equal(clip[number, :, 0], PICTURE[:, 0])


def test_the_patch_covers_6x6_and_goes_two_pixels_a_frame():
    clip = moving_patch(np.zeros((32, 32, 3), np.uint8), 5)
    for number, frame in enumerate(clip):
        rows, columns = np.nonzero(frame.any(-1))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 18, 2 * number, 2 * number + 5)
    np.testing.assert_array_equal(clip[4, 13:19, 8:14], clip[0, 13:19, :6])


@pytest.mark.parametrize("side", [1, 4])
def test_a_square_changes_from_frame_to_frame(side):
    clip = changed_square(PICTURE, 0, side)
    for before, after in itertools.pairwise(clip):
        rows, columns = np.nonzero((before != after).all(-1))
        assert len(rows) == side * side
        assert np.ptp(rows) == np.ptp(columns) == side - 1


def test_figures_of_one_clip_are_those_of_its_steps(course):
    clip = moving_patch(PICTURE)
    found = course.watch(clip)
    cache, _ = course.inc.init(course.params, clip[0])
    step = jax.jit(lambda cache, frame: course.inc.step(course.params, cache, None, frame)[1::-1])
    cache, _ = step(cache, clip[0])
    measure = jax.jit(course.inc.stats)
    for number, frame in enumerate(clip[1:]):
        cache, logits = step(cache, frame)
        stats = measure(cache)
        np.testing.assert_allclose(found.issued[number].sum(), stats.flops_issued, rtol=1e-5)
        np.testing.assert_allclose(found.useful[number].sum(), stats.flops_useful, rtol=1e-5)
        assert found.answers[number] == logits.argmax()
        assert found.expected[number] == course.subject.model.apply(course.params, frame).argmax()
    assert 0 < found.useful.sum() < found.issued.sum() < course.flops.sum() * (FRAMES - 1)
    assert found.difference < 1e-5 and found.step_ms > 0 and found.dense_ms > 0


def test_a_still_clip_costs_nothing_and_a_shift_nearly_everything(course):
    quiet, moved = (course.row("s", [course.watch(make(PICTURE))], [4]) for make in (still, shifted))
    assert quiet.issued_mean == quiet.useful_mean == 0 and quiet.agreement == 1
    assert moved.issued_median == 1 and moved.useful_median > 0.9


def test_rows_count_right_answers_over_all_pictures(course):
    clips = [course.watch(still(image)) for image in IMAGES.images]
    answers = [int(clip.expected[0]) for clip in clips]
    row = course.row("still", clips, [answers[0], (answers[1] + 1) % 10])
    assert row.accuracy == row.dense_accuracy == 0.5 and row.agreement == 1


def test_a_pixel_reaches_what_the_convolutions_read_of_it(course):
    clip = still(PICTURE)
    for number in range(1, FRAMES):
        clip[number, 10, 20] = number
    growth = course.growth("one pixel", [course.watch(clip)])
    # Rows 9..11 and columns 19..21; then those whose windows 2i..2i+2 meet them: rows 4 and 5, columns 9 and 10.
    np.testing.assert_allclose(growth.reached[:2], [9 / 1024, 4 / 256], rtol=1e-5)
    assert (growth.issued >= growth.reached).all()


def test_depth_and_savings_are_shares_of_the_flops():
    growth = Growth("n", "c", np.array([10.0, 30, 60]), np.array([0.1, 0.5, 1.0]), np.array([0.2, 1.0, 1.0]))
    np.testing.assert_allclose(growth.depth, [0.1, 0.4, 1])
    np.testing.assert_allclose(growth.saved(growth.reached), [0.9, 0.6, 0.24])
    np.testing.assert_allclose(growth.saved(growth.issued)[-1], 0.08)
    assert [growth.reached_at(depth) for depth in (0.05, 0.25, 0.9, 1.0)] == [0.1, 0.5, 1.0, 1.0]


@pytest.mark.slow
def test_experiments_print_their_tables_and_write_their_pictures(tmp_path, capsys):
    subjects = [tiny("first", labelled=True), tiny("second", labelled=False)]
    results = experiments(IMAGES, subjects, tmp_path / "out", [0.0, 16.0], 4)
    assert len(results.rows) == 2 * len(SEQUENCES) * 2 and len(results.growths) == 2 * len(CHANGES)
    assert [row.tau for row in results.rows[:2]] == [0, 16]
    assert all((row.accuracy is None) == (row.network == "second") for row in results.rows)
    assert all(row.difference < 1e-5 and row.agreement == 1 for row in results.rows if row.tau == 0)
    out = capsys.readouterr().out
    assert "how far a change has spread" in out and "compiled in" in out and "…" not in out
    for file in results.files:
        with Image.open(file) as image:
            assert min(image.size) > 300 and len(image.convert("L").getcolors(256) or []) > 10
    for make, found in ((tau_table, results.rows[: 2 * len(SEQUENCES)]), (growth_table, results.growths)):
        table = make(found)
        assert table.row_count == len(found)
        assert Console(width=500).measure(table).maximum <= 80
    assert len(tau_figure(results.rows).axes) == 4 and len(growth_figure(results.growths).axes) == len(CHANGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {}}, r"`weights` \(of \[\]\) must name one or more of resnet8, resnet20, resnet56, mobilenet-vww"),
        ({"weights": {"vgg": Path("a")}}, r"`weights` \(of \['vgg'\]\) must name"),
        ({"count": 3}, r"`count` \(=3\) must lie in 1..2"),
        ({"count": 0}, r"`count` \(=0\) must lie in 1..2"),
        ({"taus": ()}, "`taus` is empty; give at least one"),
        ({}, r"the weight file 'nowhere\.h5' does not exist"),
    ],
)
def test_bad_input_is_named(tmp_path, arguments, message):
    usual = {"images": IMAGES, "weights": {"resnet8": Path("nowhere.h5")}, "out": tmp_path, "count": 1}
    with pytest.raises(ValueError, match=message) as caught:
        cifar(**usual | arguments)
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_files_that_are_no_weights_of_ours_are_named(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(ValueError, match=r"the weight file 'nowhere\.h5' does not exist"):
        name_weights([Path("nowhere.h5")])
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors' holds weights of none of resnet8, resnet20, "):
        name_weights([tmp_path / "other.safetensors"])


@pytest.mark.slow
@pytest.mark.skipif("DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with real data")
def test_the_real_networks_keep_their_answers(tmp_path):
    folder = Path(os.environ["DELTAJAX_DATA"])
    weights = name_weights(folder / "weights" / file for file in FILES.values())
    assert weights.keys() == FILES.keys()
    with pytest.raises(ValueError, match="both hold weights of resnet20; leave one out"):
        name_weights([weights["resnet20"], weights["resnet20"]])
    images = read_cifar10(folder / "cifar10" / "data_batch_1_first4000.bin.gz")
    results = cifar(images, weights, tmp_path, count=4, taus=(0,))
    for row in results.rows:
        assert row.agreement == 1 and row.difference < 1e-5
        assert row.useful_mean <= row.issued_mean <= 1
    growth = {(g.network, g.change): g for g in results.growths}
    for change in ("one pixel", "4x4 patch"):  # the deeper a network, the less of it a small change leaves alone
        shallow, deep = (growth[name, change] for name in ("resnet8", "resnet20"))
        assert shallow.saved(shallow.reached)[-1] > deep.saved(deep.reached)[-1] > 0.2
