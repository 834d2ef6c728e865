"""A network that reads digits, with one layer that hardly matters."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.data import load

Batches = list[tuple[Tensor, Tensor]]


class Digits(nn.Module):
    """Two convolutions, a layer whose result is nearly multiplied away, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.idle = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = self.norm(functional.relu(self.second(x)))
        x = x + 1e-3 * self.idle(x)
        return self.classifier(x.flatten(1))


def digits(examples: int = 90) -> Batches:
    """Return digits in two batches of different sizes."""
    train = load("digits").train
    images, labels = train.images[:examples].float() / 255, train.labels[:examples]
    cut = examples // 3
    return [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]


def trained() -> Digits:
    """Return the network after a few seconds of training, in training mode."""
    torch.manual_seed(0)
    net, data = Digits(), digits(300)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(25):
        for images, labels in data:
            optimizer.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return net
