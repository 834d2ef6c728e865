"""VGG-16 for CIFAR, at any width."""

from torch import Tensor, nn

DOUBLINGS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Channels of the convolutions in each stage, as multiples of those of the first."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with batch norm, pooling after each stage, and a linear layer.

    Inputs are ``(N, 3, 32, 32)``; five poolings leave one position.

    Parameters
    ----------
    channels : int
        Channels of the first convolution: 64 in the paper.

    References
    ----------
    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015, configuration D, with batch norm and one linear layer, as is usual for CIFAR.

    Examples
    --------
    >>> import torch
    >>> VGG16(8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage in DOUBLINGS:
            for multiple in stage:
                width = multiple * channels
                layers += [nn.Conv2d(before, width, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        scores: Tensor = self.linear(self.features(x).flatten(1))
        return scores
