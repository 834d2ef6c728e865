"""The residual networks of He et al. for CIFAR."""

from torch import Tensor, nn
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2, with shortcuts without parameters (option A).

    A 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels, global average
    pooling and a linear layer. Inputs are ``(N, 3, 32, 32)``.

    Parameters
    ----------
    depth : int
        Number of layers with weights: 20, 32, 44, 56, ...

    Raises
    ------
    InvalidArgumentError
        If the depth is not 6n + 2 with n at least 1.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2;
    initialization of "Delving deep into rectifiers", ICCV 2015, Eq. 10.

    Examples
    --------
    >>> import torch
    >>> ResNet(20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise InvalidArgumentError(f"the depth of a CIFAR ResNet must be 6n + 2, got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Half of the new channels come before the old ones, half after.
        self.new_channels = (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.new_channels, self.new_channels))


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(in_channels, channels, stride)
    rest = [_BasicBlock(channels, channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
