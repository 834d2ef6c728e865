"""Networks for MNIST: the two Caffe LeNets and the fully connected network of Novikov et al."""

from torch import Tensor, nn
from torch.nn import functional


class LeNet5(nn.Module):
    """LeNet-5 as Caffe defines it; 431,080 parameters.

    conv1 20@5x5, max-pool 2, conv2 50@5x5, max-pool 2, ip1 500, ReLU, ip2 10. Between the
    convolutions there is no nonlinearity except the pooling. Inputs are ``(N, 1, 28, 28)``.

    References
    ----------
    Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998, in the
    form of Caffe's ``examples/mnist/lenet.prototxt``, including its initialization.

    Examples
    --------
    >>> import torch
    >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(50 * 4 * 4, 500)
        self.ip2 = nn.Linear(500, 10)
        _initialize_as_caffe(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        x = functional.relu(self.ip1(x.flatten(1)))
        scores: Tensor = self.ip2(x)
        return scores


class LeNet300100(nn.Module):
    """LeNet-300-100, fully connected; 266,610 parameters.

    ip1 300, ReLU, ip2 100, ReLU, ip3 10. Inputs are ``(N, 1, 28, 28)``.

    References
    ----------
    Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998; layer
    names and initialization as in the Caffe nets of the compression literature.

    Examples
    --------
    >>> import torch
    >>> LeNet300100()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.ip1 = nn.Linear(28 * 28, 300)
        self.ip2 = nn.Linear(300, 100)
        self.ip3 = nn.Linear(100, 10)
        _initialize_as_caffe(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        x = functional.relu(self.ip1(x.flatten(1)))
        x = functional.relu(self.ip2(x))
        scores: Tensor = self.ip3(x)
        return scores


class FC1024(nn.Module):
    """The two-layer net on MNIST images resized to 32x32; 1,059,850 parameters.

    fc1 1024, ReLU, fc2 10. Inputs are ``(N, 1, 32, 32)``.

    References
    ----------
    A. Novikov et al., "Tensorizing neural networks", NIPS 2015, section 6.1; also the fully
    connected net of section 4.1 of "ADA-Tucker", Z. Zhong et al., 2019.

    Examples
    --------
    >>> import torch
    >>> FC1024()(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(32 * 32, 1024)
        self.fc2 = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of shape ``(N, 10)``."""
        scores: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return scores


def _initialize_as_caffe(model: nn.Module) -> None:
    """Initialize as Caffe's "xavier" filler: uniform, variance 1 / fan-in; zero biases."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
