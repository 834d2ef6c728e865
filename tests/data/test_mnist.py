import gzip

import pytest
import torch
from idx_files import idx_bytes, write_mnist

from tensorpress.data.mnist import IDX_FILES, read_idx, read_mnist
from tensorpress.errors import CorruptFileError, DataNotFoundError


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_what_was_written(tmp_path, suffix):
    write_mnist(tmp_path, suffix=suffix)
    train, test = read_mnist(tmp_path)
    assert train.images.shape == (6, 1, 5, 5)
    assert test.images.shape == (3, 1, 5, 5)
    assert train.images.flatten().tolist() == [i % 10 for i in range(150)]
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.labels.dtype == torch.int64


def test_one_missing_file_is_reported(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[3]).unlink()
    with pytest.raises(DataNotFoundError, match=IDX_FILES[3]):
        read_mnist(tmp_path)


GOOD = idx_bytes(torch.arange(8).reshape(2, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing"),
        (GOOD[:2], "must start with 00000803"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "got 00000d03"),
        (idx_bytes(torch.arange(8)), "got 00000801"),
        (GOOD[:10], "16-byte header"),
        (GOOD[:-1], "expected 8 bytes for the shape .* but it has 7"),
        (GOOD + b"\x00", "but it has more"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "but it has 8"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_wrong_header_or_length_is_named(tmp_path, content, message, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(CorruptFileError, match=message) as caught:
        read_idx(path, dims=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 20, -9, -1])
def test_a_truncated_gzip_is_named(tmp_path, keep):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD)[:keep])
    with pytest.raises(CorruptFileError, match=r"images\.gz"):
        read_idx(path, dims=3)


@pytest.mark.parametrize("position", [0, 12, -6])
def test_an_altered_gzip_is_named(tmp_path, position):
    path = tmp_path / "images.gz"
    content = bytearray(gzip.compress(GOOD))
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"images\.gz"):
        read_idx(path, dims=3)


def test_images_without_labels(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx_bytes(torch.arange(5)))
    with pytest.raises(CorruptFileError, match=r"6 images but .* 5 labels"):
        read_mnist(tmp_path)


def test_a_label_that_is_no_class(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx_bytes(torch.tensor([0, 1, 2, 3, 4, 10])))
    with pytest.raises(CorruptFileError, match="label 10"):
        read_mnist(tmp_path)


def test_no_images_at_all(tmp_path):
    write_mnist(tmp_path, train=0)
    with pytest.raises(CorruptFileError, match="no images"):
        read_mnist(tmp_path)
