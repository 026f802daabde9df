"""The notebooks: kept without outputs, begun by the install cell, and run from top to bottom with pictures."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
DATA = os.environ.get("DELTAJAX_DATA")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["train_mnist", "video"]


def test_nothing_of_a_run_is_kept(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_the_first_code_cell_installs_only_what_is_missing(notebook: nbformat.NotebookNode):
    first, *others = code_cells(notebook)
    lines = first.source.splitlines()
    assert any(line.startswith('DELTAJAX = "deltajax') and "#@param" in line for line in lines)
    guard = lines.index('if importlib.util.find_spec("deltajax") is None:')
    assert lines[guard + 1] == '    %pip install -q "{DELTAJAX}"'
    assert "%pip" not in "".join(cell.source for cell in others)


def run(name: str, folder: Path, **environment: str) -> tuple[str, list[Image.Image]]:
    """Runs a notebook in `folder` on this checkout; what it wrote, and its pictures.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    client.execute(env=env)
    texts, pictures = [], []
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        texts.append(output.get("text", ""))
        data = output.get("data", {})
        texts.append(data.get("text/plain", ""))
        if "image/png" in data:
            pictures.append(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("L"))
    return "\n".join(texts), pictures


def check_pictures(pictures: list[Image.Image], count: int) -> None:
    """As many as there should be, none of them an empty page."""
    assert len(pictures) == count
    for picture in pictures:
        assert picture.width > 600 and np.asarray(picture).std() > 10


@pytest.mark.slow
def test_video_runs_without_data(tmp_path: Path):
    told, pictures = run("video", tmp_path)
    check_pictures(pictures, 2)
    assert "100.0%: dense" in told and "MFLOP dense" in told
    assert (tmp_path / "clip.mp4").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="DELTAJAX_DATA is not set")
def test_training_reaches_97_percent(tmp_path: Path):
    told, pictures = run("train_mnist", tmp_path, DELTAJAX_MNIST=str(Path(str(DATA), "mnist")))
    check_pictures(pictures, 4)
    reached = float(told.split("in the centre: ")[1].split("%")[0])
    assert 97 <= reached <= 100
    assert len(list((tmp_path / "out").glob("*/weights.safetensors"))) == 1
