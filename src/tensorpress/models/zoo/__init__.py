"""The networks of recipes and examples, and their weights."""

from tensorpress.models.zoo.cifar_cnn import CifarCNN
from tensorpress.models.zoo.clips import Clips3D
from tensorpress.models.zoo.lenet import FC1024, LeNet5, LeNet300100
from tensorpress.models.zoo.nin import NIN
from tensorpress.models.zoo.preprocess import Preprocess
from tensorpress.models.zoo.registry import NETWORKS, Network, build, network
from tensorpress.models.zoo.resnet import ResNet
from tensorpress.models.zoo.vgg import VGG16
from tensorpress.models.zoo.weights import load_weights, save_weights
from tensorpress.models.zoo.wide_resnet import WideResNet

__all__ = [
    "FC1024",
    "NETWORKS",
    "NIN",
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
