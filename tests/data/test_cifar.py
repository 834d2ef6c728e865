import os
import pickle

import numpy as np
import pytest
import torch

from tensorpress.data.cifar import (
    BATCHES,
    BINARY_FOLDER,
    PYTHON_FOLDER,
    read_binary_batch,
    read_cifar10,
    read_python_batch,
)
from tensorpress.errors import CorruptFileError, DataNotFoundError


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and names as Python 2 did for the official files."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    def save_str(self, value):
        self.save_bytes(value.encode("ascii"))

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__qualname__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str
    dispatch[type] = save_global
    dispatch[type(len)] = save_global
    dispatch[type(pickle.dumps)] = save_global


def random_batch(number, count=4):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()


def write_binary(folder, count=4):
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = random_batch(number, count)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        records.tofile(folder / f"{name}.bin")


def write_python(folder, count=4):
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = random_batch(number, count)
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": pixels}
        batch[b"filenames"] = [b"s_%d.png" % i for i in range(count)]
        with (folder / name).open("wb") as stream:
            Python2Pickler(stream, protocol=2).dump(batch)


def dump(path, value):
    path.write_bytes(pickle.dumps(value, protocol=4))
    return path


def test_binary_and_python_versions_agree(tmp_path):
    write_binary(tmp_path / "a" / BINARY_FOLDER)
    write_python(tmp_path / "b" / PYTHON_FOLDER)
    for binary, python in zip(
        read_cifar10(tmp_path / "a"), read_cifar10(tmp_path / "b"), strict=True
    ):
        assert torch.equal(binary.images, python.images)
        assert torch.equal(binary.labels, python.labels)


def test_pixels_and_labels_are_where_they_belong(tmp_path):
    write_binary(tmp_path / BINARY_FOLDER)
    train, test = read_cifar10(tmp_path)
    assert train.images.shape == (20, 3, 32, 32)
    pixels, labels = random_batch(1)
    assert train.labels[4:8].tolist() == labels
    assert train.images[5, 2, 7, 9] == pixels[1, 2 * 1024 + 7 * 32 + 9]
    assert test.labels.tolist() == random_batch(5)[1]


def test_a_synthetic_python_file_names_what_the_official_ones_do(tmp_path):
    write_python(tmp_path / PYTHON_FOLDER)
    content = (tmp_path / PYTHON_FOLDER / "test_batch").read_bytes()
    assert content.startswith(b"\x80\x02")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content


def test_neither_version(tmp_path):
    (tmp_path / BINARY_FOLDER).mkdir()
    with pytest.raises(DataNotFoundError, match=f"neither {BINARY_FOLDER} nor {PYTHON_FOLDER}"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 3072, -1])
def test_a_truncated_binary_batch_is_named(tmp_path, keep):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(3073 * 2)[:keep])
    with pytest.raises(CorruptFileError, match=r"data_batch_1\.bin .* multiple of 3073"):
        read_binary_batch(path)


def test_a_batch_cut_between_records_is_named(tmp_path):
    folder = tmp_path / BINARY_FOLDER
    write_binary(folder)
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(CorruptFileError, match=r"data_batch_3\.bin has 1 images"):
        read_cifar10(tmp_path)


def test_a_label_that_is_no_class(tmp_path):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(CorruptFileError, match="label 10"):
        read_binary_batch(path)


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_executed(tmp_path):
    made = tmp_path / "made-by-the-pickle"
    path = dump(tmp_path / "test_batch", {b"data": Command(made), b"labels": []})
    with pytest.raises(CorruptFileError, match=r"test_batch .* refers to (posix|nt)\.mkdir"):
        read_python_batch(path)
    assert not made.exists()


@pytest.mark.parametrize("value", [eval, getattr, np.load, np.float64])
def test_other_globals_are_refused(tmp_path, value):
    with pytest.raises(CorruptFileError, match="is not allowed"):
        read_python_batch(dump(tmp_path / "test_batch", value))


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"hello", b"\xff" * 100])
def test_a_damaged_pickle_is_named(tmp_path, content):
    path = tmp_path / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="data_batch_2 is not a CIFAR-10 Python batch"):
        read_python_batch(path)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"labels": [0, 1]},
        {b"data": PIXELS.astype(np.float32), b"labels": [0, 1]},
        {b"data": PIXELS[:, 1:], b"labels": [0, 1]},
        {b"data": PIXELS[:0], b"labels": []},
        {b"data": PIXELS},
        {b"data": PIXELS, b"labels": [0]},
        {b"data": PIXELS, b"labels": [0, 10]},
        {b"data": PIXELS, b"labels": [0, -1]},
        {b"data": PIXELS, b"labels": [0, 1.0]},
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, batch):
    with pytest.raises(CorruptFileError, match=r"under '(data|labels)'"):
        read_python_batch(dump(tmp_path / "test_batch", batch))
