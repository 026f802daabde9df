"""docs/ways_in.md: each block of code runs, and the step that it makes is the network that it makes."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from law import changes, check_incremental

import deltajax as dj

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
PAGE = Path(__file__).parent.parent / "docs" / "ways_in.md"
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
NEEDED = {
    "linen": [], "nnx": [], "equinox": ["equinox"], "keras": ["keras"], "onnx": ["onnx"], "torch": ["torch", "onnx"],
    "torchax": ["torch", "torchax"],
}  # fmt: skip
SLOW = {way: pytest.mark.slow for way in ("keras", "torch", "torchax")}  # to import
FRAMES = changes((40, 48, 3))


def needs(library: str) -> None:
    """Skips where the library is not installed, or where torchax cannot be imported beside this torch."""
    try:
        pytest.importorskip(library)
    except AttributeError as error:
        if library != "torchax" or "has no overload name" not in str(error):
            raise
        pytest.skip("torchax 0.0.13 cannot be imported beside torch 2.13 (google/torchax#101)")


def write_network(path: Path) -> None:
    """An ONNX file for the block that only reads one."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "rows", "columns"])
    graph = helper.make_graph(nodes, "net", [x], [y], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    path.write_bytes(model.SerializeToString())


def test_every_block_is_run():
    assert BLOCKS.keys() == NEEDED.keys()
    assert PAGE.read_text().count("```python") == len(BLOCKS)


@pytest.mark.parametrize("way", [pytest.param(way, marks=SLOW.get(way, ())) for way in NEEDED])
def test_a_network_of_each_library_runs_on_tiles(tmp_path, monkeypatch, way):
    for library in NEEDED[way]:
        needs(library)
    if way == "onnx":
        write_network(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    names = {"dj": dj, "frame": FRAMES[0]}
    with warnings.catch_warnings():
        if way in ("torch", "torchax"):
            warnings.simplefilter("ignore")  # their own, about themselves
        exec(BLOCKS[way], names)
        inc, params = names["inc"], names["params"]
        assert isinstance(inc, dj.Incremental)
        checked, _ = check_incremental(inc.fn, params, FRAMES, hasty=True)
    report = checked.explain(params, FRAMES[0])
    assert {segment.how for segment in report.segments} == {"tiles"}
