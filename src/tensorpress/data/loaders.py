"""Batches of network inputs, whose order and augmentation depend only on seed and epoch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tensorpress.data.augment import AUGMENTATIONS
from tensorpress.data.images import ImageSet
from tensorpress.errors import InvalidArgumentError, unknown_name

Batch = tuple[Tensor, Tensor]


class BatchLoader(DataLoader[Batch]):
    """A `torch.utils.data.DataLoader` of whole batches, with an epoch that can be set.

    It is returned by `batches`. Every pass yields the batches of the current epoch, which is 0
    until `set_epoch` is called, as in PyTorch's ``DistributedSampler``. After Accelerate's
    ``prepare``, the epoch advances automatically.

    Examples
    --------
    >>> from tensorpress.data import load
    >>> loader = batches(load("digits").train, torch.Tensor.float, 64, shuffle=True)
    >>> loader.set_epoch(1)
    >>> first = [labels for _, labels in loader]
    >>> loader.set_epoch(2)
    >>> torch.equal(first[0], next(iter(loader))[1])
    False
    """

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, of the following passes."""
        dataset = self.dataset
        assert isinstance(dataset, _BatchDataset)
        dataset.set_epoch(epoch)


def batches(
    images: ImageSet,
    preprocess: Callable[[Tensor], Tensor],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    augment: str | None = None,
    variants: int | None = None,
) -> BatchLoader:
    """Return a loader of ``(inputs, labels)`` batches.

    Whole batches are indexed, augmented and preprocessed at once. Order and augmentation of an
    epoch depend only on ``seed`` and the epoch. They do not use the global random state, so a
    resumed run gets the same batches as an uninterrupted one, in one process or, through
    Accelerate, in several.

    Parameters
    ----------
    images : ImageSet
        The images; each appears once per epoch.
    preprocess : callable
        Function that turns a uint8 batch of shape ``(N, C, H, W)``, or ``(N, C, T, H, W)`` for
        clips, into network inputs, such as ``tensorpress.models.zoo.Network.preprocess``.
    batch_size : int
        Images per batch; the last batch may be smaller.
    shuffle : bool
        Whether each epoch has a different random order, or the order of ``images``.
    seed : int
        Seed of order and augmentation, not negative.
    augment : str, optional
        A name in `tensorpress.data.AUGMENTATIONS`, applied to pixels before ``preprocess``.
        All frames of a clip change in the same way.
    variants : int, optional
        Number of epochs after which the same batches are repeated, so that results for them can be
        cached.

    Returns
    -------
    BatchLoader
        Loader of float inputs and int64 labels.

    Raises
    ------
    InvalidArgumentError
        If the batch size or variants are below 1, the seed is negative, or the augmentation is
        unknown.

    Examples
    --------
    >>> from tensorpress.data import load
    >>> train = load("digits").train
    >>> loader = batches(train, lambda pixels: pixels / 256, 500, shuffle=True)
    >>> loader.set_epoch(3)
    >>> [tuple(inputs.shape) for inputs, labels in loader]
    [(500, 1, 8, 8), (500, 1, 8, 8), (201, 1, 8, 8)]
    """
    if batch_size < 1:
        raise InvalidArgumentError(f"batch_size must be at least 1, got {batch_size}")
    if variants is not None and variants < 1:
        raise InvalidArgumentError(f"variants must be at least 1, got {variants}")
    if seed < 0:
        raise InvalidArgumentError(f"seed must not be negative, got {seed}")
    if augment is not None and augment not in AUGMENTATIONS:
        raise unknown_name("augmentation", augment, AUGMENTATIONS)
    dataset = _BatchDataset(images, preprocess, augment, seed, variants)
    return BatchLoader(
        dataset,
        batch_size=batch_size,
        sampler=_EpochOrder(dataset, shuffle),
        collate_fn=_identity,
        # Without a generator, a DataLoader draws from the global one at every pass.
        generator=Generator(),
    )


class _BatchDataset(Dataset[Batch]):
    """Images that are fetched in batches, through PyTorch's ``__getitems__``.

    It has the epoch, because Accelerate passes ``set_epoch`` on to the dataset.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Callable[[Tensor], Tensor],
        augment: str | None,
        seed: int,
        variants: int | None,
    ) -> None:
        self.images = images
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self.variants = variants
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch if self.variants is None else epoch % self.variants

    def generator(self, stream: int) -> Generator:
        """Return the generator of one random stream of this epoch."""
        entropy = np.random.SeedSequence((self.seed, self.epoch, stream))
        return Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        pixels = self.images.images[index]
        if self.augment is not None:
            # The first image identifies the batch, so that augmentation does not depend on the
            # process or worker, nor on earlier batches.
            generator = self.generator(stream=1 + indices[0])
            # As channels of one image, all frames of a clip change in the same way.
            frames = AUGMENTATIONS[self.augment](pixels.flatten(1, -3), generator)
            pixels = frames.reshape(pixels.shape)
        return self.preprocess(pixels), self.images.labels[index]


class _EpochOrder(Sampler[int]):
    """The indices of a dataset in the order of its epoch."""

    def __init__(self, dataset: _BatchDataset, shuffle: bool) -> None:
        self.dataset = dataset
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(len(self)))
        order = torch.randperm(len(self), generator=self.dataset.generator(stream=0))
        return iter(order.tolist())


def _identity(batch: Any) -> Any:
    return batch
