"""The CIFAR-10 network on which tensor trains of convolutions were first tried."""

from torch import Tensor, nn


class ConvFC(nn.Module):
    """Six 3x3 convolutions and three linear layers, with batch norm after all but the last.

    64 - 64, pool - 128 - 128, pool - 128 - 128 - 1536 - 512 - 10 outputs; 13,934,538 parameters,
    nine tenths of them in the first linear layer. Inputs are ``(N, 3, 32, 32)``.

    References
    ----------
    T. Garipov, D. Podoprikhin, A. Novikov, D. Vetrov, "Ultimate tensorization: compressing
    convolutional and FC layers alike", 2016, the network in the table with fully connected layers.

    Examples
    --------
    >>> import torch
    >>> ConvFC()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_convolution(128, 128),
            *_convolution(128, 128),
        )
        self.classifier = nn.Sequential(
            *_linear(128 * 8 * 8, 1536), *_linear(1536, 512), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def _linear(inputs: int, outputs: int) -> list[nn.Module]:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return [layer, nn.BatchNorm1d(outputs), nn.ReLU()]
