"""Augmentation: random changes of training images, vectorized over the batch.

An augmentation takes a batch of shape ``(N, C, H, W)`` of any dtype and a generator on the CPU,
and returns a new batch of the same shape and dtype. Pixels from outside the image are zero, so
augmentation belongs before the preprocessing of a network.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import radians
from types import MappingProxyType

import torch
from torch import Generator, Tensor
from torch.nn import functional


def shift(images: Tensor, generator: Generator, *, pixels: int) -> Tensor:
    """Move every image by a random offset, vertically and horizontally.

    Parameters
    ----------
    images : Tensor
        Shape ``(N, C, H, W)``.
    generator : Generator
        Generator of the offsets.
    pixels : int
        The largest offset; all offsets from ``-pixels`` to ``pixels`` are equally likely.

    Returns
    -------
    Tensor
        The moved images, of the same shape and zero outside the originals. This equals a random
        crop of the original size from images padded by ``pixels``.

    Examples
    --------
    >>> shift(torch.ones(1, 1, 2, 2), torch.Generator().manual_seed(3), pixels=1).shape
    torch.Size([1, 1, 2, 2])
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)
    return windows[torch.arange(count), :, top, left]


def crop_flip(images: Tensor, generator: Generator) -> Tensor:
    """Pad by 4 pixels, crop to the original size at random, and mirror half of the images.

    Parameters
    ----------
    images : Tensor
        Shape ``(N, C, H, W)``.
    generator : Generator
        Generator of positions and mirrorings.

    Returns
    -------
    Tensor
        The changed images, of the same shape.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    Examples
    --------
    >>> crop_flip(torch.ones(2, 3, 32, 32), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    cropped = shift(images, generator, pixels=4)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(-1), cropped)


def distort(
    images: Tensor, generator: Generator, *, degrees: float, stretch: float, pixels: float
) -> Tensor:
    """Rotate, stretch, slant and move every image a little.

    Parameters
    ----------
    images : Tensor
        Shape ``(N, C, H, W)``.
    generator : Generator
        Generator of the distortions, which are uniform up to the maximum.
    degrees : float
        Largest rotation.
    stretch : float
        Largest relative change of width and of height, and largest slant.
    pixels : float
        Largest shift in both directions, which may be a fraction of a pixel.

    Returns
    -------
    Tensor
        The distorted images, of the same shape and dtype, zero outside. Interpolation is cubic,
        because linear interpolation would make images smoother than the originals.

    References
    ----------
    LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998,
    section III.B.

    Examples
    --------
    >>> still = distort(torch.ones(1, 1, 4, 4), Generator(), degrees=0, stretch=0, pixels=0)
    >>> bool((still == 1).all())
    True
    """
    count, _, height, width = images.shape
    # Each row of ``maps`` is (x, y, 1) → x or y in the source, in units of half the image.
    turn, wide, high, slant, right, down = 2 * torch.rand(6, count, generator=generator) - 1
    cosine, sine = torch.cos(turn * radians(degrees)), torch.sin(turn * radians(degrees))
    wide, high, slant = 1 + stretch * wide, 1 + stretch * high, stretch * slant
    maps = torch.stack(
        [
            torch.stack([cosine * wide, slant - sine, 2 * pixels * right / width], dim=1),
            torch.stack([sine, cosine * high, 2 * pixels * down / height], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    result = functional.grid_sample(images.float(), grid, mode="bicubic", align_corners=False)
    least, most = images.aminmax()
    result = result.clamp(least.clamp(max=0), most)  # cubics overshoot
    return (result if images.is_floating_point() else result.round()).to(images.dtype)


def mix(images: Tensor, generator: Generator) -> Tensor:
    """Mix every image with another image of the batch, in a random proportion from 0 to 1.

    Labels do not fit mixed images, so this is for distillation, where a teacher's outputs replace
    the labels.

    Parameters
    ----------
    images : Tensor
        Shape ``(N, C, H, W)``.
    generator : Generator
        Generator of partners and proportions.

    Returns
    -------
    Tensor
        The mixed images, of the same shape and dtype.

    References
    ----------
    Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022;
    Zhang et al., "mixup", ICLR 2018.

    Examples
    --------
    >>> mix(torch.full((2, 1, 1, 1), 7, dtype=torch.uint8), torch.Generator()).flatten().tolist()
    [7, 7]
    """
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    partners = images[torch.randperm(len(images), generator=generator)]
    mixed = torch.lerp(partners.float(), images.float(), share)
    return (mixed if images.is_floating_point() else mixed.round()).to(images.dtype)


def crop_flip_mix(images: Tensor, generator: Generator) -> Tensor:
    """Crop and mirror images as `crop_flip` does, then `mix` them."""
    return mix(crop_flip(images, generator), generator)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = MappingProxyType(
    {
        "shift1": partial(shift, pixels=1),
        "shift2": partial(shift, pixels=2),
        "distort": partial(distort, degrees=4, stretch=0.05, pixels=1),
        "crop-flip": crop_flip,
        "crop-flip-mix": crop_flip_mix,
    }
)
"""The augmentations by name."""

MIXED = frozenset({"crop-flip-mix"})
"""The augmentations after which labels no longer fit the images."""
