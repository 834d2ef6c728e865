"""The networks of the published tables and of the examples, as plain modules; their weights."""

from tensorpress.zoo.cifar_cnn import CifarCNN
from tensorpress.zoo.clips import Clips3D
from tensorpress.zoo.lenet import FC1024, LeNet5, LeNet300100
from tensorpress.zoo.preprocess import Preprocess
from tensorpress.zoo.registry import NETWORKS, Network, build, network
from tensorpress.zoo.resnet import ResNet
from tensorpress.zoo.vgg import VGG16
from tensorpress.zoo.weights import load_weights, save_weights
from tensorpress.zoo.wide_resnet import WideResNet

__all__ = [
    "FC1024",
    "NETWORKS",
    "VGG16",
    "CifarCNN",
    "Clips3D",
    "LeNet5",
    "LeNet300100",
    "Network",
    "Preprocess",
    "ResNet",
    "WideResNet",
    "build",
    "load_weights",
    "network",
    "save_weights",
]
