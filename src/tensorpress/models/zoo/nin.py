"""Network in Network for CIFAR."""

from torch import Tensor, nn


class NIN(nn.Module):
    """Three convolutions, each followed by two of 1x1, without linear layers; 966,986 parameters.

    192@5x5 - 160 - 96, max-pool 3, dropout, 192@5x5 - 192 - 192, average-pool 3, dropout, 192@3x3 -
    192 - 10, average over all positions, with a ReLU after every convolution. Inputs are
    ``(N, 3, 32, 32)``.

    References
    ----------
    M. Lin, Q. Chen, S. Yan, "Network in network", ICLR 2014, in the sizes of the authors' Caffe
    network for CIFAR-10.

    Examples
    --------
    >>> import torch
    >>> NIN()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 5, (192, 160, 96)),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(0.5),
            *_block(96, 5, (192, 192, 192)),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(0.5),
            *_block(192, 3, (192, 192, 10)),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        scores: Tensor = self.features(x).mean((2, 3))
        return scores


def _block(inputs: int, size: int, outputs: tuple[int, ...]) -> list[nn.Module]:
    """Return a convolution followed by 1x1 convolutions, with a ReLU after each."""
    layers: list[nn.Module] = []
    for number, channels in enumerate(outputs):
        kernel = size if number == 0 else 1
        layers += [nn.Conv2d(inputs, channels, kernel, padding=kernel // 2), nn.ReLU()]
        inputs = channels
    return layers
