"""A network for clips, with 3-D convolutions over time, height and width."""

from torch import Tensor, nn
from torch.nn import functional


class Clips3D(nn.Module):
    """Two 3x3x3 convolutions and two linear layers for clips; 585,940 parameters.

    conv1 32, ReLU, max-pool 2, conv2 64, ReLU, max-pool 2, fc1 256, ReLU, fc2 20. Pooling
    halves time as well as height and width. Inputs are ``(N, 1, 8, 16, 16)``.

    References
    ----------
    A small network in the style of D. Tran et al., "Learning spatiotemporal features with 3D
    convolutional networks", ICCV 2015.

    Examples
    --------
    >>> import torch
    >>> Clips3D()(torch.zeros(2, 1, 8, 16, 16)).shape
    torch.Size([2, 20])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv3d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 2 * 4 * 4, 256)
        self.fc2 = nn.Linear(256, 20)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 20)``."""
        x = functional.max_pool3d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool3d(functional.relu(self.conv2(x)), 2)
        scores: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return scores
