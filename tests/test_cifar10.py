"""CIFAR-10: both forms of the files are read, and what is not CIFAR-10 is refused by name."""

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltajax.datasets import read_cifar10, read_cifar10_binary, read_cifar10_pictures
from deltajax.datasets.cifar10 import CLASSES, RECORD

noise = np.random.default_rng(0)
IMAGES = noise.integers(0, 256, (6, 32, 32, 3), np.uint8)
LABELS = np.array([3, 9, 0, 1, 1, 8], np.uint8)


def records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The published format: label, then all red, all green and all blue values."""
    return b"".join(
        bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
        for image, label in zip(images, labels, strict=True)
    )


def assert_read(read, images=IMAGES, labels=LABELS) -> None:
    assert read.images.dtype == read.labels.dtype == np.uint8
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)


def pack(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, f"w:{mode}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


PICTURES = {f"{CLASSES[label]}/{number:04}.png": png(IMAGES[number]) for number, label in enumerate(LABELS)}
BY_CLASS = sorted(range(6), key=lambda number: (CLASSES[LABELS[number]], number))


@pytest.mark.parametrize("name", ["some.bin", "some.bin.gz"])
def test_a_record_file_is_read_whatever_its_name(tmp_path, name):
    content = records(IMAGES, LABELS)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert_read(read_cifar10_binary(tmp_path / name))
    assert_read(read_cifar10(tmp_path / name))


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_or_an_archive_of_record_files_has_two_splits(tmp_path, packed):
    files = {
        "data_batch_1.bin": records(IMAGES[:2], LABELS[:2]),
        "data_batch_2.bin": records(IMAGES[2:5], LABELS[2:5]),
        "test_batch.bin": records(IMAGES[5:], LABELS[5:]),
        "readme.html": b"no records",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    inside = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    path = pack(tmp_path / "own.tar.gz", inside, "gz") if packed else tmp_path
    assert_read(read_cifar10_binary(path, "train"), IMAGES[:5], LABELS[:5])
    assert_read(read_cifar10_binary(path, "test"), IMAGES[5:], LABELS[5:])


@pytest.mark.parametrize("mode", ["folder", "xz", "gz"])
def test_pictures_come_class_by_class(tmp_path, mode):
    if mode == "folder":
        for name, content in PICTURES.items():
            (tmp_path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "test" / name).write_bytes(content)
        path = tmp_path
    else:
        files = {f"test/{name}": content for name, content in PICTURES.items()}
        path = pack(tmp_path / f"p.tar.{mode}", files | {"train/cat/0.png": png(IMAGES[0])}, mode)
    assert_read(read_cifar10_pictures(path), IMAGES[BY_CLASS], LABELS[BY_CLASS])
    assert_read(read_cifar10(path), IMAGES[BY_CLASS], LABELS[BY_CLASS])


def test_a_sum_is_checked_where_one_is_known(tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(records(IMAGES, LABELS))
    assert_read(read_cifar10_binary(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(ValueError, match=r"some.bin` is damaged or another file: SHA-256 .*, expected 0000"):
        read_cifar10_binary(path, sha256="0" * 64)
    other = pack(tmp_path / "cifar-10-binary.tar.gz", {"test_batch.bin": path.read_bytes()}, "gz")
    with pytest.raises(ValueError, match=r"binary.tar.gz` is damaged or another file: SHA-256 .*, expected c4a38c"):
        read_cifar10(other)


GOOD = records(IMAGES, LABELS)
BAD_FILES = {
    "cut.bin": (GOOD[:-1], rf"holds {6 * RECORD - 1} bytes, no whole number of CIFAR-10 records of {RECORD}"),
    "empty.bin": (b"", "holds 0 bytes"),
    "label.bin": (GOOD + bytes([10]) + bytes(RECORD - 1), "record 6 has label 10, above 9"),
    "cut.bin.gz": (gzip.compress(GOOD)[:-9], "is no whole gzip file"),
    "plain.bin.gz": (GOOD, "is no whole gzip file"),
    "plain.tar.xz": (GOOD, "is no whole tar archive"),
    "text.tar.gz": (gzip.compress(b"text"), "is no whole tar archive"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_cifar10(tmp_path / name)
    assert name in str(caught.value) and "download it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path):
    path = pack(tmp_path / "p.tar.xz", {f"test/{name}": content for name, content in PICTURES.items()}, "xz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"p.tar.xz` is no whole tar archive"):
        read_cifar10_pictures(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cat/a.png", png(IMAGES[0])[:-900], r"a.png` is no whole picture"),
        ("cat/a.jpg", b"text", r"a.jpg` is no whole picture"),
        ("cat/a.png", png(IMAGES[0, :30]), r"a.png` is 32x30, expected 32x32"),
        ("lion/a.png", png(IMAGES[0]), r"the folder of `.*lion/a.png` is no class of CIFAR-10 \(airplane, "),
    ],
)
def test_a_picture_that_does_not_fit_is_named(tmp_path, name, content, message):
    (tmp_path / "test" / name).parent.mkdir(parents=True)
    (tmp_path / "test" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    for read in (read_cifar10_binary, read_cifar10_pictures):
        with pytest.raises(FileNotFoundError, match=r"nowhere`: no such file or folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no CIFAR-10 train files"):
        read_cifar10_binary(tmp_path, "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no pictures named test/<class>/<name>\.jpg or \.png"):
        read_cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"`split` \(='validation'\) must be one of 'train', 'test'"):
        read_cifar10_binary(tmp_path, "validation")


@pytest.mark.skipif("DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with cifar10/")
def test_the_real_files_hold_what_is_known_of_them():
    folder = Path(os.environ["DELTAJAX_DATA"]) / "cifar10"
    lossless = read_cifar10(folder / "data_batch_1_first4000.bin.gz")
    assert lossless.images.shape == (4000, 32, 32, 3)
    assert lossless.images[:3, 0, 0].tolist() == [[59, 62, 63], [154, 177, 187], [255, 255, 255]]
    assert lossless.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    pictures = read_cifar10(folder / "cifar10_test_jpg.tar.xz")
    assert np.bincount(pictures.labels).tolist() == [1000] * 10
