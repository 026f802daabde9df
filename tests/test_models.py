"""The registry, and weight files: torch's formats without torch, and no program run that a pickle names."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from others import import_or_skip
from safetensors.numpy import save_file

from deltajax.models import VisionModel, get_model, model_names
from deltajax.models._weight_files import read_weights

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv.bias": np.array([-1.5, 0.25], np.float16),
    "half": np.array([[1, -2, 3]], ml_dtypes.bfloat16),
    "steps": np.array(7, np.int64),
    "flags": np.array([True, False]),
}
STORAGES = {"f4": "Float", "f2": "Half", "V2": "BFloat16", "i8": "Long", "b1": "Bool"}


def atom(value) -> bytes:
    """The opcodes that push a plain value: a pickle without its first two and its last byte."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key: str, array: np.ndarray, shape=None, strides=None, ending: bytes = b"") -> bytes:
    """How torch.save describes a tensor: the opcodes of a rebuilding function and a storage's key."""
    storage = b"ctorch\n%sStorage\n" % STORAGES[array.dtype.str[1:]].encode()
    persistent = (
        b"(" + atom("storage") + storage + atom(key) + atom("cpu") + atom(array.size) + ending + b"tQ"
    )
    shape = array.shape if shape is None else shape
    strides = tuple(s // array.itemsize for s in array.strides) if strides is None else strides
    arguments = persistent + atom(0) + atom(shape) + atom(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state_dict(tensors: dict[str, bytes]) -> bytes:
    items = b"".join(atom(name) + description + b"s" for name, description in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R" + items + b"."


def zip_file(content: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", content)
        archive.writestr("net/byteorder", "little")
        for key, array in arrays.items():
            archive.writestr(f"net/data/{key}", array.tobytes())
    return file.getvalue()


def legacy_file(content: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in head] + [content, pickle.dumps(list(arrays), 2)]
    return b"".join(parts + [struct.pack("<q", array.size) + array.tobytes() for array in arrays.values()])


def torch_file(form: str) -> bytes:
    ending, make = (b"", zip_file) if form == "zip" else (b"N", legacy_file)
    content = {name: tensor(name, array, ending=ending) for name, array in ARRAYS.items()}
    return make(state_dict(content), ARRAYS)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_both_torch_formats_are_read_without_torch(tmp_path, form):
    path = tmp_path / "net.pth"
    path.write_bytes(torch_file(form))
    read = read_weights(path)
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_reader_agrees_with_torch(tmp_path, zipped):
    torch = import_or_skip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    module[0].weight.data = module[0].weight.data.transpose(2, 3)  # a view with strides of its own
    path = tmp_path / "net.pth"
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    read = read_weights(path)
    assert list(read) == list(module.state_dict())
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(read[name], expected.numpy())


def test_a_library_that_does_not_import_skips_and_says_why(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match="half_installed does not import: RuntimeError: operator"):
        import_or_skip("half_installed")
    with pytest.raises(pytest.skip.Exception, match="not_there does not import: ModuleNotFoundError"):
        import_or_skip("not_there")


def test_safetensors_are_read(tmp_path):
    save_file(ARRAYS, tmp_path / "net.safetensors")
    read = read_weights(tmp_path / "net.safetensors")
    assert read.keys() == ARRAYS.keys()
    np.testing.assert_array_equal(read["conv.weight"], ARRAYS["conv.weight"])


ONE = ARRAYS["conv.weight"]
BAD_FILES = {
    "empty": b"",
    "text": b"not weights at all",
    "cut legacy pickle": torch_file("legacy")[:150],
    "cut legacy storage": torch_file("legacy")[:-5],
    "cut zip": torch_file("zip")[:-40],
    "zip without weights": zip_file(b".", {}).replace(b"data.pkl", b"data.txt"),
    "storage missing": zip_file(state_dict({"a": tensor("a", ONE)}), {}),
    "storage too short": zip_file(state_dict({"a": tensor("a", ONE)}), {"a": ONE[:1]}),
    "shape outside": zip_file(state_dict({"a": tensor("a", ONE, shape=(2, 3, 5))}), {"a": ONE}),
    "negative stride": zip_file(state_dict({"a": tensor("a", ONE, strides=(-12, 4, 1))}), {"a": ONE}),
    "plain pickle": pickle.dumps({"a": 1}),
    "no arrays": zip_file(b"\x80\x02" + atom({"a": 1}) + b".", {}),
    "a list": zip_file(b"\x80\x02" + atom([1, 2]) + b".", {}),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, fault):
    path = tmp_path / "net.pth"
    path.write_bytes(BAD_FILES[fault])
    with pytest.raises(
        ValueError, match=r"the weight file '.*net.pth' (is not one|holds no state dict)"
    ) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [zip_file, legacy_file])
def test_a_pickle_cannot_run_anything(tmp_path, make):
    trap = tmp_path / "trap"
    (tmp_path / "net.pth").write_bytes(make(b"\x80\x02cos\nmkdir\n(" + atom(str(trap)) + b"tR.", {}))
    with pytest.raises(ValueError, match=r"it wants to use os.mkdir"):
        read_weights(tmp_path / "net.pth")
    assert not trap.exists()


def test_a_missing_or_damaged_safetensors_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the weight file '.*net.safetensors' does not exist"):
        read_weights(tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"is not a safetensors file"):
        read_weights(tmp_path / "net.safetensors")


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"there is no model 'resnet'; the models are .*digits, .*slim-320"):
        get_model("resnet")


@pytest.mark.parametrize("name", model_names())
def test_each_registered_model_goes_by_its_name_and_prepares_any_size(name):
    model = get_model(name)
    assert isinstance(model, VisionModel)
    assert model.name == name
    frame = model.prepare(np.zeros((90, 120, 3), np.uint8))
    assert frame.dtype == np.uint8
    assert frame.shape == (*(model.frame_size or (90, 120)), 3)


def test_the_shapes_of_shipped_weights_are_theirs():
    model = get_model("digits")
    found = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.load(None))
    assert found == model.shapes()


@pytest.mark.parametrize("name", model_names())
def test_the_weights_of_another_model_are_refused(tmp_path: Path, name):
    save_file(ARRAYS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors"):
        get_model(name).load(tmp_path / "other.safetensors")
