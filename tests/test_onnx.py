"""ONNX files as JAX functions: against onnxruntime, against ONNX's own node tests, and torch's exports."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import changes, check_incremental

import deltajax as dj
from deltajax.cli import main
from deltajax.onnx._model import OPERATORS, OPSETS, _node, _read_by_shapes

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NOISE = np.random.default_rng(0)
CLOSE = 2e-6  # of the largest value


def noise(*shape: int) -> np.ndarray:
    return NOISE.normal(size=shape).astype(np.float32)


def model_of(nodes: list[Any], inputs: dict[str, np.ndarray], stored: dict[str, np.ndarray], outputs: list[str],
             opset: int, free: bool = False) -> Any:
    """A model whose inputs have the given arrays' shapes, or of any shape (`free`)."""
    take = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim if free else x.shape
        )
        for name, x in inputs.items()
    ]
    give = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "net", take, give, [numpy_helper.from_array(x, k) for k, x in stored.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(8, 3 + opset // 3))
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    del model.graph.output[:]
    for name in outputs:
        found = types[name].type.tensor_type
        if not found.HasField("shape"):  # that cannot be inferred, but the checker asks for one
            types[name] = helper.make_tensor_value_info(name, found.elem_type or TensorProto.FLOAT, [None])
        model.graph.output.append(types[name])
    return model


def saved(tmp_path: Path, model: Any) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


def check_against_runtime(path: Path, inputs: dict[str, np.ndarray], rel: float = CLOSE):
    """Law: `fn` gives what onnxruntime gives, under jit. Returns `(fn, params)`."""
    fn, params = dj.onnx.load(path)
    found = jax.jit(fn)(params, *inputs.values())
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, inputs)
    found = found if isinstance(found, tuple) else (found,)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        assert got.dtype == jax.dtypes.canonicalize_dtype(want.dtype)
        np.testing.assert_allclose(got, want, rtol=0, atol=rel * max(np.abs(want).max(), 1e-30))
    return fn, params


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


X = noise(1, 4, 9, 11)
WINDOW = {"kernel_shape": [3, 2], "strides": [2, 3]}
# operator, opset, operands (the first is the input), attributes: what torch and Keras export, and the old forms
CASES = [
    ("Conv", 7, [X, noise(6, 4, 3, 3), noise(6)], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", 11, [X, noise(8, 1, 3, 3)], {"group": 4, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", 11, [noise(2, 4, 15), noise(6, 2, 4), noise(6)], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [3]}),
    ("ConvTranspose", 11, [X, noise(4, 6, 3, 3), noise(6)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", 11, [X, noise(4, 3, 3, 2)], {"strides": [2, 3], "group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", 11, [X, noise(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", 11, [noise(1, 4, 9), noise(4, 3, 4)], {"strides": [2], "output_shape": [17]}),
    ("MaxPool", 12, [X], WINDOW | {"pads": [1, 0, 1, 1], "ceil_mode": 1}),
    ("MaxPool", 12, [X], WINDOW | {"dilations": [2, 2], "auto_pad": "VALID"}),
    ("AveragePool", 11, [X], WINDOW | {"pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", 11, [X], WINDOW | {"pads": [1, 0, 1, 1], "ceil_mode": 1}),
    ("AveragePool", 11, [X], WINDOW | {"auto_pad": "SAME_UPPER"}),
    ("LRN", 13, [X], {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}),
    ("BatchNormalization", 9, [X, noise(4), noise(4), noise(4), np.abs(noise(4))], {"epsilon": 1e-3}),
    ("InstanceNormalization", 7, [X, noise(4), noise(4)], {}),
    ("LayerNormalization", 17, [X, noise(11), noise(11)], {}),
    ("GroupNormalization", 21, [X, noise(4), noise(4)], {"num_groups": 2}),
    ("Gemm", 11, [noise(3, 5), noise(4, 5), noise(4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("PRelu", 9, [X, noise(4, 1, 1)], {}),
    ("Clip", 7, [X], {"min": 0.0, "max": 0.5}),
    ("Clip", 11, [X, np.float32(-0.5)], {}),
    ("HardSwish", 14, [X], {}),
    ("Gelu", 20, [X], {"approximate": "tanh"}),
    ("Softmax", 11, [X], {"axis": 2}),
    ("Softmax", 13, [X], {"axis": 2}),
    ("LogSoftmax", 11, [X], {}),
    ("Slice", 9, [X], {"starts": [1, -5], "ends": [3, 2**63 - 1], "axes": [1, 3]}),
    ("Slice", 13, [X, ints(-1, 2), ints(-(2**63), 9), ints(2, 3), ints(-2, 3)], {}),
    ("Pad", 10, [X], {"pads": [0, 0, 1, -1, 0, 0, 2, 0], "value": 1.5}),
    ("Pad", 18, [X, ints(2, 1, 1, 3), floats(), ints(3, -2)], {"mode": "reflect"}),
    ("Pad", 13, [X, ints(0, 0, 1, 2, 0, 0, 0, 3)], {"mode": "edge"}),
    ("Split", 11, [X], {"axis": 3, "split": [4, 7]}),
    ("Split", 18, [X], {"axis": 2, "num_outputs": 2}),
    ("Unsqueeze", 11, [X], {"axes": [0, 3]}),
    ("Squeeze", 13, [X, ints(0)], {}),
    ("Flatten", 11, [X], {"axis": -2}),
    ("Reshape", 13, [X, ints(0, -1, 11)], {}),
    ("Gather", 13, [X, np.array([[-1, 0], [2, 3]])], {"axis": 1}),
    ("Gather", 13, [X, np.array(-2)], {"axis": 3}),
    ("TopK", 11, [X, ints(3)], {"axis": 2, "largest": 0}),
    ("ReduceMean", 11, [X], {"axes": [2, -1], "keepdims": 0}),
    ("ReduceSum", 13, [X, ints(1)], {}),
    ("ReduceL2", 18, [X, ints(2, 3)], {}),
    ("ArgMax", 13, [X], {"axis": 1, "keepdims": 0}),
    ("Einsum", 12, [noise(2, 3, 4), noise(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    ("DepthToSpace", 13, [X], {"blocksize": 2, "mode": "CRD"}),
    ("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", 9, [X, floats(1, 1, 2, 2)], {"mode": "linear"}),
    ("Resize", 10, [X, floats(1, 1, 2, 0.5)], {}),
    ("Resize", 13, [X, floats(), floats(), ints(1, 4, 18, 23)],
     {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ("Resize", 13, [X, floats(), floats(), ints(1, 4, 17, 21)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", 13, [X, floats(), floats(1, 1, 2, 1.5)], {"mode": "cubic", "cubic_coeff_a": -0.75}),
    ("Resize", 13, [X, floats(), floats(1, 1, 2, 2)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", 18, [X, floats(), floats(0.6, 0.5)], {"mode": "linear", "antialias": 1, "axes": [2, 3]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "opset", "operands", "attributes"), CASES, ids=[f"{c[0]}-{c[1]}-{n}" for n, c in enumerate(CASES)]
)
def test_an_operator_gives_what_onnxruntime_gives(tmp_path, kind, opset, operands, attributes):
    names = [f"operand{number}" if x.size else "" for number, x in enumerate(operands)]
    results = ["a", "b"] if kind in ("TopK", "Split") else ["a"]
    node = helper.make_node(kind, names, results, **attributes)
    stored = {name: x for name, x in zip(names[1:], operands[1:], strict=True) if name}
    path = saved(tmp_path, model_of([node], {"operand0": operands[0]}, stored, results, opset))
    _, params = check_against_runtime(path, {"operand0": operands[0]})
    kernels = {name for name, x in stored.items() if x.dtype == np.float32 and kind not in ("Resize", "Upsample")}
    assert params.keys() == kernels


def u_net(seed: int = 0) -> tuple[list[Any], dict[str, np.ndarray]]:
    """What torch's exporter makes of a small U-Net on frames of any size, arithmetic on shapes included."""
    rng = np.random.default_rng(seed)

    def weight(*shape):
        return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)

    stored = {
        "stem": weight(8, 3, 3, 3), "gain": weight(8, 1)[:, 0], "shift": weight(8, 1)[:, 0],
        "mean": weight(8, 1)[:, 0], "variance": floats(*[1.5] * 8), "deep": weight(8, 1, 3, 3),
        "up": weight(8, 8, 2, 2),
        "last": weight(2, 16, 1, 1), "two": ints(2), "three": ints(3), "zero": ints(0), "none": floats(),
        "pads": ints(0, 0, 1, 1, 0, 0, 1, 1),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Pad", ["half", "pads"], ["padded"], mode="reflect"),
        node("Conv", ["padded", "deep"], ["d"], group=8),
        node("Sigmoid", ["d"], ["gate"]),
        node("Mul", ["d", "gate"], ["silu"]),
        node("ConvTranspose", ["silu", "up"], ["doubled"], strides=[2, 2]),
        node("Shape", ["r"], ["shape"]),
        node("Slice", ["shape", "zero", "two"], ["channels"]),
        node("Constant", [], ["end"], value=numpy_helper.from_array(ints(2**63 - 1))),
        node("Slice", ["shape", "two", "end"], ["sides"]),
        node("Concat", ["channels", "sides"], ["size"], axis=0),
        node("Resize", ["silu", "none", "none", "size"], ["stretched"], mode="linear",
             coordinate_transformation_mode="half_pixel"),
        node("Add", ["doubled", "stretched"], ["sum"]),
        node("Concat", ["sum", "r"], ["joined"], axis=1),
        node("Conv", ["joined", "last"], ["logits"]),
        node("Softmax", ["logits"], ["classes"], axis=1),
    ]  # fmt: skip
    return nodes, stored


@pytest.mark.parametrize("stepped", [False, pytest.param(True, marks=pytest.mark.slow)])  # 30 s of compiling
def test_a_u_net_of_any_size_runs_on_tiles(tmp_path, stepped):
    nodes, stored = u_net()
    x = noise(1, 3, 44, 52)
    path = saved(tmp_path, model_of(nodes, {"x": x}, stored, ["classes"], 17, free=True))
    fn, params = check_against_runtime(path, {"x": x})
    assert params.keys() == {name for name, array in stored.items() if array.dtype == np.float32} - {"none"}
    frames = changes((44, 52, 3))

    def classes(params, frame):
        return fn(params, frame.transpose(2, 0, 1)[None])[0]

    if stepped:
        check_incremental(classes, params, frames, rel=5e-6, hasty=True, bucket=4)
    assert dj.incremental(classes).explain(params, frames[0]).fallback_share == 0


def test_params_can_be_changed_and_differentiated(tmp_path):
    x, kernel = noise(1, 2, 5, 5), noise(3, 2, 3, 3)
    path = saved(tmp_path, model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": x}, {"w": kernel}, ["y"], 13))
    fn, params = dj.onnx.load(path)
    np.testing.assert_allclose(fn({"w": 2 * params["w"]}, x), 2 * fn(params, x), rtol=1e-6)
    gradient = jax.grad(lambda params: fn(params, x).sum())(params)
    np.testing.assert_allclose(gradient["w"][0, 1, 2, 0], x[0, 1, 2:, :3].sum(), rtol=1e-5)


def test_explain_names_the_node_of_the_file(tmp_path, monkeypatch):
    """Installed, deltajax is a library like others, whose frames are no source."""
    monkeypatch.setattr(dj._jaxpr, "_is_library", lambda file: file != "net.onnx")
    x, node = noise(1, 3, 8, 8), helper.make_node("Conv", ["x", "w"], ["y"], name="/stem/Conv")
    fn, params = dj.onnx.load(saved(tmp_path, model_of([node], {"x": x}, {"w": noise(2, 3, 3, 3)}, ["y"], 13)))
    report = dj.incremental(lambda params, frame: fn(params, frame[None])).explain(params, x[0])
    assert report.segments[-1].source == "net.onnx:1 (Conv '/stem/Conv')"


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    nodes = [
        helper.make_node("Det", ["x"], ["a"]),
        helper.make_node("FusedConv", ["x"], ["b"], domain="com.microsoft"),
        helper.make_node("Relu", ["x"], ["c"], consumed_inputs=[0]),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.STRING, [2, 2])],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx.checker, "check_model", lambda model: None)  # it stops at the attribute
        with pytest.raises(
            ValueError,
            match=r"net.onnx' needs what deltajax has not: Det, com.microsoft.FusedConv, "
            r"Relu's attribute `consumed_inputs`, the type STRING; export",
        ):
            dj.onnx.load(tmp_path / "net.onnx")


def test_a_missing_a_damaged_and_an_old_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the ONNX file '.*none.onnx' does not exist"):
        dj.onnx.load(tmp_path / "none.onnx")
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X}, {}, ["y"], 13)
    for content in (b"", b"not a network", model.SerializeToString()[:-9]):
        (tmp_path / "net.onnx").write_bytes(content)
        wanted = r"net.onnx' is not a valid ONNX file \(.*\); export or download"
        with pytest.raises(ValueError, match=wanted) as caught:
            dj.onnx.load(tmp_path / "net.onnx")
        assert "\n" not in str(caught.value)
    model.opset_import[0].version = 6
    with pytest.raises(ValueError, match=r"has opset 6; supported are 7 to 28: convert it with"):
        dj.onnx.load(saved(tmp_path, model))


def test_without_the_package_onnx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ValueError, match=r"needs the package onnx to be read; .* pip install 'deltajax\[onnx\]'"):
        dj.onnx.load(tmp_path / "net.onnx")


def test_other_inputs_than_the_graphs_are_refused(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    fn, params = dj.onnx.load(saved(tmp_path, model_of(nodes, {"x": X}, {"w": noise(2, 4, 1, 1)}, ["y"], 13)))
    with pytest.raises(ValueError, match=r"input `x` is float32\[4, 9, 11\]; the graph takes float32\[1, 4, 9, 11\]"):
        fn(params, X[0])
    with pytest.raises(ValueError, match=r"input `x` is uint8"):
        fn(params, X.astype(np.uint8))
    with pytest.raises(ValueError, match=r"2 inputs given; the graph takes 1: x"):
        fn(params, X, X)
    with pytest.raises(ValueError, match=r"`params` lacks w; give what `load` returned"):
        fn({}, X)


def test_a_shape_that_depends_on_values_is_refused(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="view")]
    path = saved(tmp_path, model_of(nodes, {"x": X, "shape": ints(4, 99)}, {}, ["y"], 13))
    fn, params = dj.onnx.load(path)
    with pytest.raises(ValueError, match=r"Reshape 'view': its operand `shape` depends on the values of the inputs"):
        fn(params, X, jnp.array([4, 99]))


def test_an_error_within_a_node_tells_which(tmp_path):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="plus")]
    fn, _ = dj.onnx.load(saved(tmp_path, model_of(nodes, {"x": X}, {"w": noise(4, 1, 1)}, ["y"], 13)))
    with pytest.raises((TypeError, ValueError), match=r"[Ii]ncompatible shapes") as caught:
        fn({"w": noise(5, 1, 1)}, X)
    assert "in the ONNX node Add 'plus'" in caught.value.__notes__


NARROW = r"FLOAT8|FLOAT4|FLOAT6|INT4|INT2|STRING"
# Node tests that are not passed: by name, with the error that refuses them.
REFUSED = {
    rf"(cast|castlike)_.*({NARROW})|equal_string|constant_of_shape_int4": rf"the type \w*({NARROW})",
    r"batchnorm_.*_training_mode|training_dropout": r"export the network in eval mode",
    r"maxpool_with_argmax": r"MaxPool .* is not supported with the positions of the maxima",
    r"identity_(opt|sequence)": r"which is no tensor",
    r"not_\dd": r"has opset 1; supported are",
}
DIFFERENT = {
    r"resize_downsample_scales_(linear|cubic)_align_corners": "the specification's corner is that of a fractional "
    "output, 2.4 pixels wide; here, in onnxruntime and in torch it is that of the output itself",
    r"attention_.*_bf16_expanded": "rounded to bfloat16 in another order",
}


def named_in(table: dict[str, str], name: str) -> str | None:
    return next((found for pattern, found in table.items() if re.match(rf"test_({pattern})", name)), None)


@pytest.fixture(scope="module")
def node_tests() -> dict[str, list[Any]]:
    """ONNX's own, by operator; those of functions that are written as several operators under "functions"."""
    from onnx.backend.test.loader import load_model_tests

    cases: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute with infinities
        for case in load_model_tests(kind="node"):
            kinds = {node.op_type if node.domain in ("", "ai.onnx") else "?" for node in case.model.graph.node}
            if kinds <= OPERATORS.keys():
                cases.setdefault(kinds.pop() if len(kinds) == 1 else "functions", []).append(case)
    return cases


@pytest.mark.slow  # 1,260 functions are compiled
@pytest.mark.parametrize("kind", [*sorted(OPERATORS), "functions"])
def test_onnx_own_node_tests(tmp_path, node_tests, kind):
    assert kind in node_tests
    for case in node_tests[kind]:
        if named_in(DIFFERENT, case.name):
            continue
        model, (operands, wanted) = case.model, case.data_sets[0]
        operands, wanted = (
            [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in arrays]
            for arrays in (operands, wanted)
        )
        fixed = _read_by_shapes([_node(node, 1, OPSETS.stop - 1, "", {}) for node in model.graph.node])
        given = []
        for info, x in zip(model.graph.input, operands, strict=True):
            if info.name in fixed:
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(x), info.name))
            else:
                given.append(x)
        if refusal := named_in(REFUSED, case.name):
            with pytest.raises(ValueError, match=refusal):
                fn, params = dj.onnx.load(saved(tmp_path, model))
                fn(params, *map(np.asarray, given))
            continue
        fn, params = dj.onnx.load(saved(tmp_path, model))
        found = jax.jit(fn)(params, *given)
        for got, want in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
            want = np.asarray(want)
            assert got.dtype == jax.dtypes.canonicalize_dtype(want.dtype), case.name
            np.testing.assert_allclose(
                np.asarray(got, np.float64), want.astype(np.float64), rtol=case.rtol, atol=1e-6, err_msg=case.name
            )


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_what_torch_exports_gives_what_torch_gives(tmp_path, exporter):
    torch = pytest.importorskip("torch")
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
            deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
            self.deep = nn.Sequential(deep, nn.GroupNorm(2, 8), nn.GELU())
            self.up, self.last = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            y = self.down(x)
            z = self.deep(nn.functional.max_pool2d(y, 2))
            z = nn.functional.interpolate(z, size=y.shape[-2:], mode="bilinear", align_corners=False)
            z = self.last(torch.cat([self.up(y), nn.functional.interpolate(z, scale_factor=2)], 1))
            return z.softmax(1), nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)

    torch.manual_seed(0)
    net, x = Net().eval(), torch.rand(1, 3, 40, 48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=exporter == "dynamo")
    fn, params = dj.onnx.load(tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = net(x)
    for got, want in zip(jax.jit(fn)(params, x.numpy()), wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=CLOSE)


# ---------------------------------------------------------------------------------------------------- of one picture


def a_file(tmp_path: Path, *shape: int | str, dtype=TensorProto.FLOAT, last: bool = False) -> Path:
    """A convolution of a picture; with its channels last, turned first."""
    nodes = [helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])] if last else []
    nodes.append(helper.make_node("Conv", ["first" if last else "x", "w"], ["y"], pads=[1, 1, 1, 1]))
    x = helper.make_tensor_value_info("x", dtype, shape)
    y = helper.make_tensor_value_info("y", dtype, [None] * 4)
    stored = [numpy_helper.from_array(noise(8, 3, 3, 3), "w")]
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    return saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


@pytest.mark.parametrize(("shape", "last", "size"), [
    ((1, 3, 12, 10), False, (12, 10)), (("n", 3, "h", "w"), False, None), ((1, 12, 10, 3), True, (12, 10)),
])
def test_a_network_of_one_picture_is_given_frames(tmp_path, shape, last, size):
    path = a_file(tmp_path, *shape, last=last)
    fn, params, declared = dj.onnx.load_of_picture(path)
    assert declared == size
    frame = noise(12, 10, 3)
    wanted = dj.onnx.load(path)[0](params, (frame if last else frame.transpose(2, 0, 1))[None])
    np.testing.assert_array_equal(fn(params, frame), wanted)


def test_a_network_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"takes x float32\[1, 4, 12, 10\], not one float32 picture"):
        dj.onnx.load_of_picture(a_file(tmp_path, 1, 4, 12, 10))
    with pytest.raises(ValueError, match=r"takes x float64\['n', 3, 12, 10\]"):
        dj.onnx.load_of_picture(a_file(tmp_path, "n", 3, 12, 10, dtype=TensorProto.DOUBLE))


def test_the_command_line_takes_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, 1, 3, 24, 32)
    assert main(["explain", "--model", "net.onnx"]) == 0
    assert "net.onnx:1" in capsys.readouterr().out
    assert main(["bench", "--model", "net.onnx", "--density", "0.1"]) == 0
    assert "net, 32x24" in capsys.readouterr().out and Path("bench-net.png").exists()
    for command in ("explain", "bench"):
        for more, told in (
            (["--size", "24", "30"], "takes frames of 24 32, not 24 30"), (["--weights", "a.pth"], "leave it out"),
        ):
            assert main([command, "--model", "net.onnx", *more]) == 2
            assert told in capsys.readouterr().err
        assert main([command, "--model", "no.onnx"]) == 2
        assert "'no.onnx' does not exist" in capsys.readouterr().err
