"""Two networks of torchvision adapted to images of 32x32.

Their stem or classifier is made for larger images. All other networks of torchvision take such
images unchanged.
"""

from torch import nn

from tensorpress.models.torchvision import torchvision_models


def alexnet(num_classes: int = 10) -> nn.Module:
    """Return torchvision's AlexNet with a 5x5 first convolution of stride 2.

    The original 11x11 convolution of stride 4 reduces a 32x32 image to 7x7 positions, and three
    poolings to none. Here they leave one, which is the input of the first linear layer. Inputs are
    ``(N, 3, 32, 32)``.

    References
    ----------
    A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.

    Examples
    --------
    >>> import torch
    >>> alexnet()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    net: nn.Module = torchvision_models().alexnet(num_classes=num_classes)
    features, classifier = net.get_submodule("features"), net.get_submodule("classifier")
    features.register_module("0", nn.Conv2d(3, 64, 5, stride=2, padding=2))
    net.register_module("avgpool", nn.Identity())
    classifier.register_module("1", nn.Linear(256, 4096))
    return net


def vgg16(num_classes: int = 10) -> nn.Module:
    """Return torchvision's VGG-16 with batch norm and a smaller first linear layer.

    Five poolings reduce a 32x32 image to one position, which torchvision would copy 49 times for a
    linear layer of 102,760,448 weights. Inputs are ``(N, 3, 32, 32)``.

    References
    ----------
    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015.

    Examples
    --------
    >>> import torch
    >>> vgg16()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    net: nn.Module = torchvision_models().vgg16_bn(num_classes=num_classes)
    net.register_module("avgpool", nn.Identity())
    net.get_submodule("classifier").register_module("0", nn.Linear(512, 4096))
    return net
