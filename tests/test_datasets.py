"""Datasets by TFDS: what was prepared comes back, from original files too; missing and damaged files are named."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltajax.datasets import (
    Cifar10,
    Mnist,
    prepare_cifar10,
    prepare_mnist,
    read_cifar10_tfds,
    read_mnist,
    read_mnist_tfds,
)

tfds = pytest.importorskip("tensorflow_datasets")
records = pytest.importorskip("array_record.python.array_record_module")

NO_TENSORFLOW = importlib.util.find_spec("tensorflow") is None
DATA = os.environ.get("DELTAJAX_DATA")
needs_tensorflow = pytest.mark.skipif(NO_TENSORFLOW, reason="TensorFlow is not installed")
needs_data = pytest.mark.skipif(not DATA, reason="DELTAJAX_DATA is not set")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def made_up_mnist() -> Mnist:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (18, 28, 28), np.uint8)
    labels = rng.integers(0, 10, 18).astype(np.uint8)
    return Mnist(images[:12], labels[:12], images[12:], labels[12:])


def made_up_cifar10() -> tuple[Cifar10, Cifar10]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (26, 32, 32, 3), np.uint8)
    labels = (np.arange(26) * 7 % 10).astype(np.uint8)
    return Cifar10(images[:20], labels[:20]), Cifar10(images[20:], labels[20:])


def png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file


def write_prepared(name: str, folder: Path, splits: dict[str, list[dict]]) -> Path:
    """What TFDS would have prepared, written without TensorFlow; the folder that it is in."""
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    place = Path(builder.data_dir)
    place.mkdir(parents=True)
    infos = []
    for split, rows in splits.items():
        path = place / f"{name}-{split}.array_record-00000-of-00001"
        writer = records.ArrayRecordWriter(str(path), "group_size:1")
        features = builder.info.features
        packed = [features.serialize_example(features.encode_example(row)) for row in rows]
        for row in packed:
            writer.write(row)
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=place, split=split, filetype_suffix="array_record"
        )
        size = sum(map(len, packed))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(rows)], num_bytes=size, filename_template=template
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(place)
    return place


def write_mnist(folder: Path) -> Path:
    made = made_up_mnist()
    parts = {"train": made[:2], "test": made[2:]}
    return write_prepared(
        "mnist",
        folder,
        {
            split: [{"image": png(image), "label": int(label)} for image, label in zip(*part, strict=True)]
            for split, part in parts.items()
        },
    )


def pack_cifar10(batches: dict[str, Cifar10]) -> bytes:
    """The archive of the binary version: a label and 3 x 1,024 bytes for each picture."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        contents = {"batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
        for name, (images, labels) in batches.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            contents[name] = np.concatenate([labels[:, None], planes], 1).tobytes()
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, contents: dict[str, bytes], folder: Path) -> None:
    """Writes `contents` to `folder` and has TFDS take their checksums for the published ones."""
    known = tfds.builder_cls(name).url_infos
    for url, info in list(known.items()):
        content = contents[info.filename]
        (folder / info.filename).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        ours = dataclasses.replace(info, size=tfds.core.utils.Size(len(content)), checksum=digest)
        monkeypatch.setitem(known, url, ours)


def archive_of(train: Cifar10, test: Cifar10) -> dict[str, bytes]:
    parts = zip(np.array_split(train.images, 5), np.array_split(train.labels, 5), strict=True)
    batches = {f"data_batch_{i}.bin": Cifar10(*part) for i, part in enumerate(parts, 1)}
    return {"cifar-10-binary.tar.gz": pack_cifar10({**batches, "test_batch.bin": test})}


# ---- reading


def test_prepared_mnist_comes_back(tmp_path: Path):
    write_mnist(tmp_path)
    for got, want in zip(read_mnist_tfds(tmp_path), made_up_mnist(), strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, want)


def test_prepared_cifar10_comes_back_in_the_original_order(tmp_path: Path):
    made = dict(zip(("train", "test"), made_up_cifar10(), strict=True))
    splits = {}
    for split, (images, labels) in made.items():
        rows = [
            {"id": f"{split}_{i:05d}", "image": png(image), "label": int(label)}
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        splits[split] = rows[::-1]  # TFDS shuffles
    write_prepared("cifar10", tmp_path, splits)
    for got, want in zip(read_cifar10_tfds(tmp_path), made.values(), strict=True):
        assert got.images.dtype == got.labels.dtype == np.uint8
        np.testing.assert_array_equal(got.images, want.images)
        np.testing.assert_array_equal(got.labels, want.labels)


@pytest.mark.parametrize(("read", "name"), [(read_mnist_tfds, "mnist"), (read_cifar10_tfds, "cifar10")])
def test_a_folder_with_nothing_prepared_says_how_to_prepare_it(read, name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=rf"no prepared `{name}`; .*prepare_{name}"):
        read(tmp_path)


def test_a_damaged_prepared_file_is_named(tmp_path: Path):
    path = write_mnist(tmp_path) / "mnist-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # of the first record; further on there is padding, which no checksum covers
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist/3\.0\.1` is damaged \(.*mismatch.*prepare_mnist") as caught:
        read_mnist_tfds(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_prepared_file_is_told(tmp_path: Path):
    (write_mnist(tmp_path) / "mnist-test.array_record-00000-of-00001").unlink()
    with pytest.raises(ValueError, match=r"damaged \(open\(\) failed: No such file"):
        read_mnist_tfds(tmp_path)


def test_a_folder_in_another_form_is_refused(tmp_path: Path):
    info = write_mnist(tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for use in (read_mnist_tfds, lambda folder: prepare_mnist(tmp_path, folder)):
        with pytest.raises(ValueError, match=r"holds `mnist` prepared in another form \(.*TFRECORD.*another folder"):
            use(tmp_path)


# ---- preparing


@pytest.mark.parametrize(("prepare", "first"), [(prepare_mnist, "t10k-images"), (prepare_cifar10, "cifar-10-binary")])
def test_original_files_must_be_there_and_whole(prepare, first: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=first):
        prepare(tmp_path, tmp_path / "out")
    for info in tfds.builder_cls(prepare.__name__.removeprefix("prepare_")).url_infos.values():
        (tmp_path / info.filename).write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match=rf"{first}.*is damaged or another file: SHA-256.*download it again") as caught:
        prepare(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.skipif(not NO_TENSORFLOW, reason="TensorFlow is installed")
def test_preparing_without_tensorflow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, "cifar10", archive_of(*made_up_cifar10()), tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"`cifar10` needs TensorFlow.*pip install tensorflow-cpu"):
        prepare_cifar10(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def check_prepared_cifar10(train: Cifar10, test: Cifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the archive to arrays: the same pictures in the same order, and nothing unpacked is left."""
    publish(monkeypatch, "cifar10", archive_of(train, test), tmp_path)
    prepare_cifar10(tmp_path, tmp_path / "out")
    for got, want in zip(read_cifar10_tfds(tmp_path / "out"), (train, test), strict=True):
        np.testing.assert_array_equal(got.images, want.images)
        np.testing.assert_array_equal(got.labels, want.labels)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cifar10"]


@needs_tensorflow
def test_cifar10_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_prepared_cifar10(*made_up_cifar10(), tmp_path, monkeypatch)


@needs_tensorflow
@needs_data
@pytest.mark.slow
def test_real_cifar10_pictures_from_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = Path(str(DATA), "cifar10", "data_batch_1_first4000.bin.gz").read_bytes()
    raw = np.frombuffer(gzip.decompress(packed), np.uint8).reshape(-1, 3073)
    images, labels = raw[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), raw[:, 0]
    parts = Cifar10(images[:3000], labels[:3000]), Cifar10(images[3000:], labels[3000:])
    check_prepared_cifar10(*parts, tmp_path, monkeypatch)


@needs_tensorflow
@needs_data
@pytest.mark.slow
def test_real_mnist_from_its_four_files(tmp_path: Path):
    """TFDS shuffles, so sets are compared: every digit with its name as often as in the files."""

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(bytes(row) for row in np.concatenate([images.reshape(len(images), -1), labels[:, None]], 1))

    files = Path(str(DATA), "mnist")
    prepare_mnist(files, tmp_path)
    got, want = read_mnist_tfds(tmp_path), read_mnist(files)
    assert rows(*got[:2]) == rows(*want[:2]) and rows(*got[2:]) == rows(*want[2:])
