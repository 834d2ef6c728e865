"""Preprocessing of the pixels of images and clips."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class Preprocess:
    """Scale pixels, then normalize each channel: ``(pixels / scale - mean) / std``.

    Parameters
    ----------
    scale : float
        Divisor of pixels from 0 to 255.
    mean, std : tuple of float
        One value per channel, in units of the scaled pixels.

    Examples
    --------
    >>> halves = Preprocess(scale=256, mean=(0.0,), std=(1.0,))
    >>> halves(torch.full((1, 1, 1, 2), 128, dtype=torch.uint8))
    tensor([[[[0.5000, 0.5000]]]])
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or self.scale <= 0 or min(self.std, default=0) <= 0:
            raise InvalidArgumentError(
                "preprocessing needs a positive scale and, for every channel, a mean and a "
                f"positive std, got scale={self.scale}, mean={self.mean}, std={self.std}"
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the inputs for a batch of pixels.

        Parameters
        ----------
        pixels : Tensor
            uint8, shape ``(N, C, H, W)`` or ``(N, C, T, H, W)``, with as many channels as
            ``mean`` has values.

        Returns
        -------
        Tensor
            float32, of the same shape and on the same device.

        Raises
        ------
        InvalidArgumentError
            If the dtype, the number of dimensions or the number of channels is wrong.
        """
        channels = len(self.mean)
        fits = pixels.ndim in (4, 5) and pixels.shape[1] == channels
        if pixels.dtype != torch.uint8 or not fits:
            raise InvalidArgumentError(
                f"expected uint8 pixels of shape (N, {channels}, H, W) or "
                f"(N, {channels}, T, H, W), got {pixels.dtype} of shape {tuple(pixels.shape)}"
            )
        per_channel = (channels, *[1] * (pixels.ndim - 2))
        mean = torch.tensor(self.mean, device=pixels.device).reshape(per_channel)
        std = torch.tensor(self.std, device=pixels.device).reshape(per_channel)
        return pixels.float().div_(self.scale).sub_(mean).div_(std)
