"""Reader of the idx files of MNIST and its drop-in replacements."""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tensorpress.data.images import ImageSet
from tensorpress.errors import CorruptFileError, DataNotFoundError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CLASSES = 10
_PIECE = 1 << 24


def find_idx(folder: Path) -> list[Path] | None:
    """Return the four files of a folder in the order of `IDX_FILES`, or None if any is missing.

    Each may be compressed (``.gz``).
    """
    files = []
    for name in IDX_FILES:
        present = [p for p in (folder / name, folder / f"{name}.gz") if p.is_file()]
        if not present:
            return None
        files.append(present[0])
    return files


def read_mnist(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Read a folder in MNIST's format.

    Parameters
    ----------
    folder : Path
        Folder with the files in `IDX_FILES`, which may be gzip-compressed.

    Returns
    -------
    train, test : ImageSet
        One-channel images in their official order.

    Raises
    ------
    DataNotFoundError
        If a file is missing.
    CorruptFileError
        If a file is not what its name says, or images and labels do not match.
    """
    files = find_idx(folder)
    if files is None:
        raise DataNotFoundError(f"{folder} does not have all of: {', '.join(IDX_FILES)} (or .gz)")
    train_images, train_labels, test_images, test_labels = files
    return _read_pair(train_images, train_labels), _read_pair(test_images, test_labels)


def read_idx(path: Path, dims: int) -> Tensor:
    """Read one idx file of unsigned bytes.

    Parameters
    ----------
    path : Path
        The file; it is decompressed if its name ends with ``.gz``.
    dims : int
        The expected number of dimensions: 3 for images, 1 for labels.

    Returns
    -------
    Tensor
        uint8, of the shape in the header.

    Raises
    ------
    CorruptFileError
        If the magic number, the length or the compression is wrong.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits",
    section "File formats".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path, dims=1)
    tensor([7, 2, 1], dtype=torch.uint8)
    """
    open_file = gzip.open if path.suffix == ".gz" else Path.open
    header_bytes = 4 + 4 * dims
    try:
        with open_file(path, "rb") as stream:
            header = stream.read(header_bytes)
            _check_magic(path, header, dims)
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4")[1:])
            size = math.prod(shape)
            content = _read_at_most(stream, size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptFileError(f"{path} is not a complete gzip file: {error}") from error
    if len(content) != size:
        has = "more" if len(content) > size else f"{len(content)}"
        raise CorruptFileError(
            f"{path}: expected {size} bytes for the shape {shape} in its header, but it has {has}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8)).reshape(shape)


def _read_at_most(stream: BufferedIOBase, size: int) -> bytearray:
    # In pieces, because read(size) would allocate whatever size a damaged header has.
    content = bytearray()
    while piece := stream.read(min(size - len(content), _PIECE)):
        content += piece
    return content


def _check_magic(path: Path, header: bytes, dims: int) -> None:
    expected = bytes([0, 0, 8, dims])
    if header[:4] != expected:
        raise CorruptFileError(
            f"{path} is not an idx file of {dims}-dimensional unsigned bytes: it must start "
            f"with {expected.hex()}, got {header[:4].hex() or 'nothing'}"
        )
    if len(header) != 4 + 4 * dims:
        raise CorruptFileError(f"{path} ends inside its {4 + 4 * dims}-byte header")


def _read_pair(image_path: Path, label_path: Path) -> ImageSet:
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise CorruptFileError(
            f"{image_path} has {len(images)} images but {label_path} has {len(labels)} labels"
        )
    if images.numel() == 0:
        raise CorruptFileError(f"{image_path} has no images")
    if labels.max() >= _CLASSES:
        raise CorruptFileError(
            f"{label_path} has the label {int(labels.max())}, expected 0 to {_CLASSES - 1}"
        )
    return ImageSet(images[:, None], labels.long())
