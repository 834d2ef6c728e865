"""The convolutional network for CIFAR-10 from the tables of ADA-Tucker."""

from torch import Tensor, nn
from torch.nn import functional


class CifarCNN(nn.Module):
    """Five 5x5 convolutions and one fully connected layer; 1,221,514 parameters.

    32 - 64, pool - 64 - 128, pool - 256, pool - 10 outputs. In a layer with pooling, that comes
    first, then dropout (rate 0.25), then ReLU. Inputs are ``(N, 3, 32, 32)``.

    References
    ----------
    Z. Zhong et al., "ADA-Tucker: compressing deep neural networks via adaptive dimension
    adjustment Tucker decomposition", 2019, Table 10. The dropout rate is not stated there.

    Examples
    --------
    >>> import torch
    >>> CifarCNN()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.conv3 = nn.Conv2d(64, 64, 5, padding=2)
        self.conv4 = nn.Conv2d(64, 128, 5, padding=2)
        self.conv5 = nn.Conv2d(128, 256, 5, padding=2)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(256 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        x = functional.relu(self.conv1(x))
        x = self._pool_drop_rectify(self.conv2(x))
        x = functional.relu(self.conv3(x))
        x = self._pool_drop_rectify(self.conv4(x))
        x = self._pool_drop_rectify(self.conv5(x))
        scores: Tensor = self.fc(x.flatten(1))
        return scores

    def _pool_drop_rectify(self, x: Tensor) -> Tensor:
        return functional.relu(self.dropout(functional.max_pool2d(x, 2)))
