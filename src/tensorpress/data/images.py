"""Labelled images or clips in memory, and their three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError

_RESIZE_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images or clips with class labels, in their original pixels.

    Parameters
    ----------
    images : Tensor
        uint8, values 0 to 255, shape ``(N, C, H, W)``, or ``(N, C, T, H, W)`` for clips of T
        frames.
    labels : Tensor
        int64, shape ``(N,)``, class numbers from 0.

    Raises
    ------
    InvalidArgumentError
        If a dtype or shape is wrong, or the lengths differ.

    Examples
    --------
    >>> images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    >>> digits = ImageSet(images, torch.arange(5))
    >>> len(digits), digits.resize(32, 32).images.shape
    (5, torch.Size([5, 1, 32, 32]))
    >>> digits.subset([3, 1]).labels
    tensor([3, 1])
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim not in (4, 5):
            raise InvalidArgumentError(
                "images must be uint8 of shape (N, C, H, W) or, for clips, (N, C, T, H, W), "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InvalidArgumentError(
                f"labels of {len(self.images)} images must be int64 of shape "
                f"({len(self.images)},), got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the pixels and the label of one image."""
        return self.images[index], int(self.labels[index])

    def resize(self, *size: int) -> ImageSet:
        """Return the images resized by bilinear interpolation with antialiasing.

        Parameters
        ----------
        *size : int
            New height and width in pixels. If they are the present ones, the set itself is
            returned. Clips cannot be resized.

        Returns
        -------
        ImageSet
            uint8 images of shape ``(N, C, height, width)``, with the same labels.

        Raises
        ------
        InvalidArgumentError
            If a side is below one pixel, or clips would be resized.
        """
        if min(size, default=0) < 1:
            raise InvalidArgumentError(
                f"an image size must be positive, got {' x '.join(map(str, size))}"
            )
        present = tuple(self.images.shape[2:])
        if present == size:
            return self
        if not len(present) == len(size) == 2:
            raise InvalidArgumentError(
                "clips (frames, height, width) cannot be resized, only images (height, width): "
                f"got {present} to {size}"
            )
        # In chunks, so that the float copy of a large set never exists as a whole.
        images = self.images.new_empty((*self.images.shape[:2], *size))
        for start in range(0, len(self), _RESIZE_CHUNK):
            part = functional.interpolate(
                self.images[start : start + _RESIZE_CHUNK].float(),
                size=size,
                mode="bilinear",
                antialias=True,
            )
            images[start : start + _RESIZE_CHUNK] = part.round_().clamp_(0, 255).to(torch.uint8)
        return ImageSet(images, self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of a dataset.

    Parameters
    ----------
    train : ImageSet
        Images for fitting weights.
    validation : ImageSet
        Images from the training data for choosing hyper-parameters and stopping; may be empty.
    test : ImageSet
        The official test images, only for final numbers.

    Examples
    --------
    >>> from tensorpress.data import load
    >>> splits = load("digits", validation=200)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1001, 200, 596)
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
