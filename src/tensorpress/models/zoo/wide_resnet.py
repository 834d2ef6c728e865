"""The wide residual networks of Zagoruyko and Komodakis for CIFAR."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError


class WideResNet(nn.Module):
    """WRN-depth-width without dropout; WRN-28-10 has 36,479,194 parameters.

    A 3x3 convolution, three groups of n pre-activation blocks with 16, 32 and 64 times
    ``width`` channels, batch norm, ReLU, global average pooling and a linear layer. If a block
    changes the shape, its shortcut is a 1x1 convolution. Inputs are ``(N, 3, 32, 32)``.

    Parameters
    ----------
    depth : int
        Number of layers with weights, 6n + 4: 16, 22, 28, 40, ...
    width : int
        The widening factor.

    Raises
    ------
    InvalidArgumentError
        If the depth is not 6n + 4 with n at least 1, or the width is below 1.

    References
    ----------
    S. Zagoruyko, N. Komodakis, "Wide residual networks", BMVC 2016, Table 1; initialization
    as in the authors' code.

    Examples
    --------
    >>> import torch
    >>> WideResNet(10, 1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 4, 6)
        if blocks < 1 or remainder:
            raise InvalidArgumentError(f"the depth of a wide ResNet must be 6n + 4, got {depth}")
        if width < 1:
            raise InvalidArgumentError(
                f"the width of a wide ResNet must be at least 1, got {width}"
            )
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _group(blocks, 16, 16 * width, stride=1)
        self.block2 = _group(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = _group(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = functional.relu(self.bn1(x))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


class _PreActivationBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same_shape = stride == 1 and in_channels == channels
        self.shortcut = (
            None if same_shape else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(x))
        # A convolutional shortcut starts from the activated input, an identity from the raw one.
        identity = x if self.shortcut is None else self.shortcut(y)
        y = functional.relu(self.bn2(self.conv1(y)))
        change: Tensor = self.conv2(y)
        return identity + change


def _group(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = _PreActivationBlock(in_channels, channels, stride)
    rest = [_PreActivationBlock(channels, channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))
