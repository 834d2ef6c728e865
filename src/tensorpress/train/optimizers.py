"""Optimizers, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.train.config import TrainConfig

_SHARE = "share"  # key of a parameter group's factor of the learning rate


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that require a gradient.

    Weight decay applies only to parameters with two or more axes, because it lowers the accuracy if
    it applies to biases and scales of normalization layers.

    Parameters
    ----------
    model : nn.Module
        The model, on its final device. A parameter that several modules share counts once.
    config : TrainConfig
        The configuration, with the optimizer and its hyperparameters.

    Raises
    ------
    InvalidArgumentError
        If no parameter requires a gradient.

    References
    ----------
    He et al., "Bag of tricks for image classification with convolutional neural networks", CVPR
    2019, section 3.1.

    Examples
    --------
    >>> config = TrainConfig(epochs=1, lr=0.1, optimizer="sgd", weight_decay=1e-4)
    >>> groups = build_optimizer(nn.Linear(3, 2), config).param_groups
    >>> [(tuple(p.shape), g["weight_decay"]) for g in groups for p in g["params"]]
    [((2, 3), 0.0001), ((2,), 0.0)]
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise InvalidArgumentError(
            f"{type(model).__name__} has nothing to train: no parameter has requires_grad=True"
        )
    biases = [p for name, p in trainable.items() if p.ndim < 2 and _is_bias(name)]
    vectors = [p for name, p in trainable.items() if p.ndim < 2 and not _is_bias(name)]
    matrices = [p for p in trainable.values() if p.ndim >= 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, _SHARE: 1.0},
        {"params": vectors, "weight_decay": 0.0, _SHARE: 1.0},
        {"params": biases, "weight_decay": 0.0, _SHARE: config.bias_lr},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimizer step.

    It depends only on the step, so that a resumed run needs no scheduler state. During warm-up it
    rises linearly to its peak. The schedule ``"cosine"`` falls from the end of warm-up to zero at
    the end of the run; ``"step"`` counts epochs from the start of the run.

    Parameters
    ----------
    config : TrainConfig
        The configuration, with schedule and length of the run.
    step : int
        The number of optimizer steps before this one.
    steps_per_epoch : int
        The number of optimizer steps in an epoch.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, eq. 5,
    for cosine annealing, here without restarts.

    Examples
    --------
    >>> config = TrainConfig(epochs=30, lr=0.9, schedule="step", step_epochs=10)
    >>> [round(learning_rate(config, epoch * 100, 100), 3) for epoch in (0, 9, 10, 29)]
    [0.9, 0.9, 0.3, 0.1]
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rate = config.lr * min(1.0, (step + 1) / warmup) if warmup else config.lr
    # lr (1 + cos(π t)) / 2, with t from 0 to 1 after warm-up
    if config.schedule == "cosine":
        progress = max(0, step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
        return rate * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if config.schedule == "step" and config.step_epochs is not None:
        return rate * float(config.step_factor ** (step // (config.step_epochs * steps_per_epoch)))
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to its multiple of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_SHARE]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
