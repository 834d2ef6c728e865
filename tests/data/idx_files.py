"""Small files of MNIST form for tests."""

import gzip

import torch

from tensorpress.data.mnist import IDX_FILES


def idx_bytes(tensor):
    header = bytes([0, 0, 8, tensor.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return header + sizes + tensor.to(torch.uint8).numpy().tobytes()


def write_mnist(folder, train=6, test=3, side=5, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    counts = [train, train, test, test]
    for name, count in zip(IDX_FILES, counts, strict=True):
        shape = (count, side, side) if "idx3" in name else (count,)
        content = idx_bytes(torch.arange(torch.Size(shape).numel()).reshape(shape) % 10)
        path = folder / f"{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
