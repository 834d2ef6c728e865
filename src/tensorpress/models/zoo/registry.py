"""The networks that can be built by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from tensorpress.errors import unknown_name
from tensorpress.models.zoo.cifar_cnn import CifarCNN
from tensorpress.models.zoo.clips import Clips3D
from tensorpress.models.zoo.conv_fc import ConvFC
from tensorpress.models.zoo.lenet import FC1024, LeNet5, LeNet300100
from tensorpress.models.zoo.nin import NIN
from tensorpress.models.zoo.preprocess import Preprocess
from tensorpress.models.zoo.resnet import ResNet
from tensorpress.models.zoo.vgg import VGG16
from tensorpress.models.zoo.wide_resnet import WideResNet


@dataclass(frozen=True)
class Network:
    """A network of the zoo, with its input shape and preprocessing.

    Parameters
    ----------
    name : str
        The name for `build`.
    build : callable
        Function that returns a freshly initialized module.
    input_shape : tuple of int
        Channels, height and width of the inputs; for clips, frames come second.
    classes : int
        Number of outputs.
    preprocess : Preprocess
        Function from uint8 pixels to inputs.
    description : str
        One line of text.
    source : str
        The paper of the network, or a similar one.

    Examples
    --------
    >>> lenet = NETWORKS["lenet5"]
    >>> lenet.input_shape, lenet.classes, lenet.preprocess.scale
    ((1, 28, 28), 10, 256)
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    classes: int
    preprocess: Preprocess
    description: str
    source: str


_GREY = Preprocess(scale=256, mean=(0.0,), std=(1.0,))
IMAGENET = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Preprocessing by the mean and standard deviation of ImageNet."""


_CLIPS = Preprocess(scale=255, mean=(0.108,), std=(0.234,))


def _grey(
    name: str, build: Callable[[], nn.Module], side: int, description: str, source: str
) -> Network:
    return Network(name, build, (1, side, side), 10, _GREY, description, source)


def _colour(name: str, build: Callable[[], nn.Module], description: str, source: str) -> Network:
    return Network(name, build, (3, 32, 32), 10, IMAGENET, description, source)


_LECUN = "LeCun et al., Gradient-based learning applied to document recognition, 1998 (Caffe)"
_NOVIKOV = "Novikov et al., Tensorizing neural networks, 2015"
_ZHONG = "Zhong et al., ADA-Tucker, 2019, Table 10"
_GARIPOV = "Garipov et al., Ultimate tensorization, 2016"
_HE = "He et al., Deep residual learning for image recognition, 2016"
_ZAGORUYKO = "Zagoruyko and Komodakis, Wide residual networks, 2016"
_SIMONYAN = "Simonyan and Zisserman, Very deep convolutional networks, 2015 (for CIFAR)"
_LIN = "Lin et al., Network in network, 2014"
_TRAN = "after Tran et al., Learning spatiotemporal features with 3D convolutional networks, 2015"

_KNOWN = (
    _grey("lenet5", LeNet5, 28, "2 convolutions and 2 linear layers, 431,080 params", _LECUN),
    _grey("lenet300100", LeNet300100, 28, "3 linear layers, 266,610 params", _LECUN),
    _grey("fc1024", FC1024, 32, "2 linear layers, 1,059,850 params", _NOVIKOV),
    _colour("cifar-cnn", CifarCNN, "5 convolutions 5x5 and 1 linear, 1,221,514 params", _ZHONG),
    _colour("conv-fc", ConvFC, "6 convolutions 3x3 and 3 linear, 13,934,538 params", _GARIPOV),
    _colour("nin", NIN, "9 convolutions, 6 of them 1x1, 966,986 params", _LIN),
    _colour("resnet20", partial(ResNet, 20), "CIFAR ResNet-20, 269,722 params", _HE),
    _colour("resnet32", partial(ResNet, 32), "CIFAR ResNet-32, 464,154 params", _HE),
    _colour("resnet56", partial(ResNet, 56), "CIFAR ResNet-56, 853,018 params", _HE),
    _colour("wrn28-10", partial(WideResNet, 28, 10), "WRN-28-10, 36,479,194 params", _ZAGORUYKO),
    _colour("vgg16", VGG16, "CIFAR VGG-16, 14,724,042 params", _SIMONYAN),
    _colour("vgg16-quarter", partial(VGG16, 16), "a quarter as wide, 923,130 params", _SIMONYAN),
    Network(
        "clips3d",
        Clips3D,
        (1, 8, 16, 16),
        20,
        _CLIPS,
        "2 convolutions 3x3x3 and 2 linear layers, for moving-digits, 585,940 params",
        _TRAN,
    ),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({net.name: net for net in _KNOWN})
"""The networks by name."""


def network(name: str) -> Network:
    """Return the entry of `NETWORKS` with this name.

    Raises
    ------
    InvalidArgumentError
        If there is none; the message suggests similar names.

    Examples
    --------
    >>> network("lenet5").input_shape
    (1, 28, 28)
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name]


def build(name: str) -> nn.Module:
    """Return a freshly initialized network of `NETWORKS`.

    Raises
    ------
    InvalidArgumentError
        If there is none; the message suggests similar names.

    Examples
    --------
    >>> sum(p.numel() for p in build("lenet5").parameters())
    431080
    """
    return network(name).build()
