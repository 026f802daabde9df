"""Training: the readers, the loop (resumed equals never interrupted), what a run writes, bad input."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from deltajax import scenes
from deltajax.datasets.mnist import SHA256, Mnist, read_idx, read_mnist
from deltajax.models import digits as finder
from deltajax.models import simple_cnn
from deltajax.models._weight_files import read_weights
from train import digits, loop, mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = SHA256


def pack_idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def small_mnist() -> Mnist:
    """Each digit a bright row of its own: learnt within a few steps."""

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.zeros((n, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] = 255
        return images, labels

    return Mnist(*part(160), *part(20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name, array in zip(SHA256, small_mnist(), strict=True):
        (data / name).write_bytes(pack_idx(array))
    return data


# ---- readers


def test_the_four_files_come_back_as_they_were(folder: Path):
    for got, expected in zip(read_mnist(folder, verify=False), small_mnist(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_file_with_another_sum_is_refused_unless_told_otherwise(folder: Path):
    with pytest.raises(ValueError, match=rf"{TRAIN_IMAGES}.*SHA-256.*--no-verify"):
        read_mnist(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pack_idx(np.zeros((3, 28, 28)))[:-20], "no whole gzip file"),
        (b"", "no idx file"),
        (b"plain text", "no whole gzip file"),
        (gzip.compress(b"\x89PNG....."), "no idx file of bytes"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01abcd"), "no idx file of bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), r"holds 3 values, its header says \(5,\)"),
    ],
    ids=["cut off", "empty", "text", "png", "floats", "too short"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_images_and_labels_must_belong_together(folder: Path):
    (folder / TEST_LABELS).write_bytes(pack_idx(np.zeros(7)))
    with pytest.raises(ValueError, match=r"t10k images are \(20, 28, 28\) and labels \(7,\)"):
        read_mnist(folder, verify=False)


def test_a_missing_file_is_named(folder: Path):
    (folder / TRAIN_LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=TRAIN_LABELS):
        read_mnist(folder, verify=False)


# ---- the loop


def line_task(interrupt_in: int = 0) -> loop.Task:
    """Fits a line to noisy points; Ctrl-C comes in the middle of epoch `interrupt_in`."""

    def batches(epoch: int):
        rng = np.random.default_rng(epoch)
        for i in range(20):
            if epoch == interrupt_in and i == 10:
                raise KeyboardInterrupt
            x = rng.standard_normal((8, 3), np.float32)
            yield x, x @ np.array([1.0, -2.0, 0.5], np.float32)

    def loss(params, batch, key):
        x, y = batch
        x = x + 0.01 * jax.random.normal(key, x.shape)
        return ((x @ params["line"]["slope"] - y) ** 2).mean()

    def init(key):
        return {"line": {"slope": jax.random.normal(key, (3,))}}

    def evaluate(params):
        return {"slope found": float(1 - abs(params["line"]["slope"][1] + 2))}

    return loop.Task("line", init, loss, batches, 20, evaluate)


def fit(task: loop.Task, out: Path, *, resume: bool = False, epochs: int = 3, batch: int = 8):
    settings = {"batch": batch}
    return loop.fit(
        task, out=out, epochs=epochs, rate=0.3, decay=1e-4, seed=5, resume=resume, settings=settings
    )


def test_interrupted_then_resumed_equals_never_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = fit(line_task(), tmp_path / "whole")
    parts = tmp_path / "parts"
    assert loop.command(lambda: fit(line_task(interrupt_in=3), parts), parts) == 130
    assert "--resume" in capsys.readouterr().err
    kept = {path.name for path in parts.iterdir()}
    assert kept == {"checkpoints", "curve.png", "weights.safetensors"}
    resumed = fit(line_task(), parts, resume=True)
    np.testing.assert_array_equal(whole["line"]["slope"], resumed["line"]["slope"])
    for name in ("weights.safetensors", "curve.png"):
        assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_line_is_found(tmp_path: Path):
    slope = fit(line_task(), tmp_path, epochs=8)["line"]["slope"]
    np.testing.assert_allclose(slope, [1.0, -2.0, 0.5], atol=0.02)
    stored = read_weights(tmp_path / "weights.safetensors")
    assert stored["line/slope"].dtype == np.float16
    np.testing.assert_array_equal(stored["line/slope"], np.asarray(slope, np.float16))
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size[0] > 600
        assert len(set(curve.convert("L").tobytes())) > 20  # not an empty page


def test_a_folder_of_another_run_is_never_overwritten(tmp_path: Path):
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        fit(line_task(), tmp_path, resume=True)
    fit(line_task(), tmp_path, epochs=1)
    before = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a run \(epoch 1\); add --resume"):
        fit(line_task(), tmp_path, epochs=1)
    with pytest.raises(ValueError, match="batch was 8, is 4"):
        fit(line_task(), tmp_path, epochs=1, resume=True, batch=4)
    assert (tmp_path / "weights.safetensors").read_bytes() == before


# ---- mnist


def test_place_puts_the_digit_where_it_is_told():
    digit = np.full((1, 28, 28), 255, np.uint8)
    for down, right in ((0, 0), (-18, -18), (18, 18), (3, -7)):
        (frame,) = mnist.place(jnp.asarray(digit), np.array([[down, right]]))
        rows, columns = np.nonzero(frame[..., 0])
        assert (rows.min(), columns.min()) == (18 + down, 18 + right)
        assert (rows.max(), columns.max()) == (45 + down, 45 + right)
        assert frame.sum() == 28 * 28


def test_both_ways_to_pool_agree():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    np.testing.assert_array_equal(mnist.max_by_reshape(x), simple_cnn.max_pool(x))


def test_mnist_trains_resumes_and_names_its_digits(folder: Path, tmp_path: Path):
    common = ["--data", str(folder), "--no-verify", "--batch", "16", "--shift", "0", "--epochs", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mnist.main([*common, "--out", str(whole)]) == 0
    params = simple_cnn.load_params(whole / "weights.safetensors")
    data = small_mnist()
    assert mnist.accuracy(params, data.test_images, data.test_labels, batch=8) == 1.0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "2")
    (parts / "weights.safetensors").unlink()
    assert mnist.main([*common, "--out", str(parts), "--resume"]) == 0
    assert (parts / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either `--data`"),
        (["--data", "DATA", "--tfds", "DATA"], "either `--data`"),
        (["--data", "DATA"], "--no-verify"),
        (["--data", "NOWHERE"], "no such file"),
        (["--tfds", "NOWHERE"], "prepare_mnist"),
        (["--data", "DATA", "--no-verify", "--shift", "19"], "`--shift` (=19)"),
        (["--data", "DATA", "--no-verify", "--batch", "161"], "`--batch` (=161)"),
        (["--data", "DATA", "--no-verify", "--epochs", "0"], "`--epochs` (=0)"),
        (["--data", "DATA", "--no-verify", "--resume"], "no checkpoint to resume from"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"DATA": str(folder), "NOWHERE": str(tmp_path / "nowhere")}
    given = [places.get(argument, argument) for argument in arguments]
    assert mnist.main([*given, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


# ---- digits


def test_targets_lie_where_the_digits_lie():
    placed = [scenes.Digit(7, 40.0, 56.0, 88.0, 104.0)]
    names, boxes = digits.aim(placed, 128, 160)
    assert names.shape == (16, 20) and boxes.shape == (16, 20, 4)
    assert names[8, 10] == 7  # pixel (64, 80), the middle
    np.testing.assert_array_equal(boxes[8, 10], [24, 24, 24, 24])
    assert names[5, 10] == -1 and names[1, 10] == finder.BACKGROUND
    assert set(np.unique(names)) == {-1, 7, finder.BACKGROUND}


def test_score_counts_names_and_places():
    placed = [scenes.Digit(3, 0, 0, 40, 40), scenes.Digit(5, 0, 100, 40, 140)]
    right = finder.Found(3, 0.9, 2, 2, 42, 42)
    misnamed = finder.Found(6, 0.9, 0, 100, 40, 140)
    misplaced = finder.Found(5, 0.9, 0, 120, 40, 160)
    assert finder.rightly_named([right, misnamed, misplaced], placed) == 1
    assert finder.rightly_named([right, right], placed) == 1
    assert finder.rightly_named([], placed) == 0
    assert digits.Score(4, 2, 1).recall == 0.25 and digits.Score(4, 2, 1).precision == 0.5


def test_composed_digits_are_apart_and_named():
    rng = np.random.default_rng(0)
    data = small_mnist()
    inks = digits.draw_inks(rng, data.train_images, data.train_labels, 30)
    frame, placed = digits.compose(rng, scenes.draw_texture(rng, 256, 256), inks, 10)
    assert frame.shape == (256, 256, 3) and len(placed) >= 2
    middles = np.array([((d.top + d.bottom) / 2, (d.left + d.right) / 2) for d in placed])
    gaps = np.hypot(*(middles[:, None] - middles).T)[~np.eye(len(placed), dtype=bool)]
    assert gaps.min() > 20


@pytest.mark.slow
def test_the_digit_loss_falls_and_ignores_what_is_not_asked():
    rng = np.random.default_rng(1)
    data = small_mnist()
    inks = digits.draw_inks(rng, data.train_images, data.train_labels, 10)
    made = []
    for _ in range(2):
        frame, placed = digits.compose(rng, scenes.draw_texture(rng, 128, 128), inks, 4)
        made.append((frame, *digits.aim(placed, 128, 128)))
    batch = tuple(np.stack(part) for part in zip(*made, strict=True))
    params, key = finder.init_params(jax.random.key(0)), jax.random.key(1)
    optimiser = optax.adam(3e-3)
    memory = optimiser.init(params)
    step = jax.jit(jax.value_and_grad(digits.loss))
    losses: list[float] = []
    for _ in range(12):
        value, gradient = step(params, batch, key)
        updates, memory = optimiser.update(gradient, memory)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    frames, names, boxes = batch
    unasked = np.where(names == -1, 1e3, 0.0)[..., None]
    as_asked, otherwise = (digits.loss(params, (frames, names, b), key) for b in (boxes, boxes + unasked))
    assert as_asked == otherwise


@pytest.mark.slow
def test_digits_command_trains_and_refuses(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digits, "SIDE", 128)
    monkeypatch.setattr(digits, "DRAWN", 20)
    monkeypatch.setattr(digits, "HELD_OUT", 1)
    monkeypatch.setattr(digits, "TEXTURES", 2)
    common = ["--data", str(folder), "--no-verify", "--out", str(tmp_path / "out"), "--batch", "2"]
    assert digits.main([*common, "--steps", "0"]) == 2
    assert digits.main([*common, "--steps", "2", "--epochs", "1"]) == 0
    assert set(finder.load(tmp_path / "out" / "weights.safetensors")) >= {"conv1", "head"}
