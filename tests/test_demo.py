"""`deltajax demo`: it measures what it says, writes what it says, and needs no training library."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deltajax import _demo, scenes
from deltajax.models import digits, get_model

FRAMES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, _demo.Measured]:
    out = tmp_path_factory.mktemp("demo") / "made by it"
    return out, _demo.demo(out, frames=FRAMES)


@pytest.mark.slow
def test_it_writes_a_picture_and_a_film(made: tuple[Path, _demo.Measured]):
    out, _ = made
    assert {path.name for path in out.iterdir()} == {"demo.png", "demo.mp4"}
    with Image.open(out / "demo.png") as strip:
        assert min(strip.size) > 1000
    with av.open(str(out / "demo.mp4")) as film:
        pictures = [picture.to_ndarray(format="rgb24") for picture in film.decode(video=0)]
    assert len(pictures) == FRAMES
    assert pictures[0].shape == (512 + _demo.CAPTION, 3 * 512, 3)
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50


@pytest.mark.slow
def test_tau_0_is_exact_and_a_still_frame_costs_nothing(made: tuple[Path, _demo.Measured]):
    _, measured = made
    assert measured.exact.difference.max() <= 2e-6
    assert measured.still.difference.max() <= 2e-6
    assert measured.still.flops[1:].max() == 0 and measured.still.density[1:].max() == 0
    assert measured.exact.density[1:].min() > 0.5  # the noise


@pytest.mark.slow
def test_with_tau_above_the_noise_less_is_computed_and_as_much_is_found(made: tuple[Path, _demo.Measured]):
    _, measured = made
    assert 0 < measured.moving.density[1:].max() < 0.2
    assert measured.moving.flops[1:].max() < 0.8 * measured.dense.flops[0]
    assert measured.moving.flops[0] == measured.dense.flops[0]
    assert measured.dense.right.sum() >= 0.9 * FRAMES * 10
    assert measured.moving.right.sum() >= measured.dense.right.sum() - FRAMES


@pytest.mark.slow
def test_the_table_says_what_was_measured(made: tuple[Path, _demo.Measured]):
    _, measured = made
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_demo.table(measured))
    text = console.export_text()
    for course in measured[:4]:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{course.name} ")]
        assert f"{np.median(course.ms[1:]):.2f}" in line
        assert f"{np.median(course.flops[1:]) / 1e9:.3f}" in line
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text


@pytest.mark.slow
def test_what_changed_is_marked_and_nothing_else(made: tuple[Path, _demo.Measured]):
    _, measured = made
    shown = measured.shown[-1]
    picture = _demo.change_map(shown)
    coloured = np.ptp(picture.astype(int), axis=-1) > 40
    share = measured.moving.density[-1]
    assert coloured.mean() == pytest.approx(share, rel=0.05)


def test_bad_arguments_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`frames` \(=5\)"):
        _demo.demo(tmp_path, frames=5)
    with pytest.raises(ValueError, match=r"`size` \(=100\)"):
        _demo.demo(tmp_path, size=100)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file.*--out"):
        _demo.demo(tmp_path / "file", frames=6)
    assert (tmp_path / "file").read_bytes() == b""


def test_it_needs_nothing_of_the_train_extra():
    absent = ("optax", "orbax", "orbax.checkpoint", "tensorflow_datasets", "train")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import deltajax._demo"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# ---- the digit finder


def test_the_model_is_registered_and_loads_its_weights():
    model = get_model("digits")
    params = model.load(None)
    assert model is digits.MODEL
    assert {name: layer["kernel"].shape[-1] for name, layer in params.items()} == {
        **{f"conv{i}": features for i, (features, _) in enumerate(digits.LAYERS, 1)},
        "head": 15,
    }


def test_any_size_goes_in_and_a_position_comes_out_for_every_8_pixels():
    params = digits.load()
    for height, width in ((64, 64), (72, 200), (65, 130)):
        output = digits.apply(params, np.zeros((height, width, 3), np.uint8))
        assert output.shape == (-(-height // 8), -(-width // 8), 15)


@pytest.mark.parametrize("seed", [100, 101, 102])
def test_it_names_digits_it_never_saw(seed: int):
    (scene,) = scenes.glide(seed, frames=1, size=512)
    output = np.asarray(digits.apply(digits.load(), scene.frame))
    found = digits.interpret(output, (512, 512))
    right = digits.rightly_named(found, scene.digits)
    assert right >= 9 and len(found) - right <= 1


def test_it_finds_nothing_where_there_is_nothing():
    rng = np.random.default_rng(5)
    frame = scenes.expose(rng, scenes.draw_texture(rng, 512, 512), 1.5)
    assert len(digits.interpret(np.asarray(digits.apply(digits.load(), frame)), (512, 512))) <= 1


def test_drawing_leaves_the_picture_itself_alone():
    (scene,) = scenes.glide(0, frames=1, size=512)
    before = scene.frame.copy()
    drawn = digits.draw(scene.frame, [digits.Found(4, 0.97, 200.0, 210.0, 260.0, 250.0)])
    np.testing.assert_array_equal(scene.frame, before)
    changed = (drawn != before).any(-1)
    assert changed[195, 230] and not changed[300:].any() and not changed[:, :190].any()
