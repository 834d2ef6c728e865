"""Functions of data that fail, each in its own way: ``--data bad_batches:NAME``."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

X, Y = torch.rand(8, 1, 28, 28), torch.arange(8)


def used_up() -> Any:
    batches = iter([(X, Y)])
    list(batches)
    return batches


def nothing() -> Any:
    return []


def none() -> Any:
    return None


def words() -> Any:
    return ["one", "two"]


def raises() -> Any:
    raise RuntimeError("no\nnetwork")


def leaves() -> Any:
    raise SystemExit(3)


def raises_late() -> Iterator[Any]:
    yield X, Y
    raise KeyError("second batch")


class Damaged(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise OSError("unplugged")
        return X[index], int(Y[index])


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[0], 1


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], 3
        raise OSError("unplugged")


class Sizes(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.rand(1, 28 + index % 2, 28), index


def damaged() -> Any:
    return Damaged()


def endless() -> Any:
    return Endless()


def stream() -> Any:
    return Stream()


def sizes() -> Any:
    return Sizes()


def no_labels() -> Any:
    return [X, X]


def few_labels() -> Any:
    return [(X, Y[:5])]


def undefined() -> Any:
    return [(X * float("nan"), Y)]


def doubles() -> Any:
    return [(X.double(), Y)]


def far_labels() -> Any:
    return [(X, Y + 990)]


def tensor() -> Tensor:
    return X
