import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import TrainConfig
from tensorpress.train.optimizers import build_optimizer, learning_rate, set_learning_rate


def rates(config, steps_per_epoch):
    return [
        learning_rate(config, step, steps_per_epoch)
        for step in range(config.epochs * steps_per_epoch)
    ]


def torch_rates(make, n, lr):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    result = []
    for _ in range(n):
        result += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return result


@given(epochs=st.integers(1, 6), steps=st.integers(1, 7), lr=st.floats(1e-4, 1))
def test_cosine_is_that_of_torch(epochs, steps, lr):
    config = TrainConfig(epochs=epochs, lr=lr, schedule="cosine")
    total = epochs * steps
    expected = torch_rates(lambda o: CosineAnnealingLR(o, total), total, lr)
    assert rates(config, steps) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert learning_rate(config, total, steps) == pytest.approx(0, abs=1e-12)


@given(epochs=st.integers(1, 9), steps=st.integers(1, 7), every=st.integers(1, 4))
def test_step_is_that_of_torch(epochs, steps, every):
    config = TrainConfig(
        epochs=epochs, lr=0.3, schedule="step", step_epochs=every, step_factor=0.25
    )
    expected = torch_rates(lambda o: StepLR(o, every * steps, 0.25), epochs * steps, 0.3)
    assert rates(config, steps) == pytest.approx(expected, rel=1e-9)


@given(
    schedule=st.sampled_from(["constant", "cosine"]),
    warmup=st.floats(0, 2.9),
    steps=st.integers(1, 20),
)
def test_warm_up_rises_to_the_peak_and_never_above(schedule, warmup, steps):
    config = TrainConfig(epochs=3, lr=0.5, schedule=schedule, warmup_epochs=warmup)
    result = rates(config, steps)
    n = round(warmup * steps)
    assert result[:n] == pytest.approx([0.5 * (i + 1) / n for i in range(n)])
    assert result[n:] == sorted(result[n:], reverse=True)
    assert all(0 < rate <= 0.5 for rate in result)


def test_constant_without_warm_up():
    assert set(rates(TrainConfig(epochs=2, lr=0.1), 5)) == {0.1}


def test_only_matrices_and_kernels_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    optimizer = build_optimizer(model, TrainConfig(epochs=1, lr=0.1, weight_decay=0.01))
    decayed = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert {n: decayed[id(p)] for n, p in model.named_parameters()} == {
        "0.weight": 0.01,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.01,
        "3.bias": 0.0,
    }


def test_shared_and_frozen_parameters():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    optimizer = build_optimizer(nn.Sequential(first, second), TrainConfig(epochs=1, lr=0.1))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in parameters] == [id(first.weight), id(first.bias)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_parameters_are_grouped_by_their_names(name, kind):
    config = TrainConfig(epochs=1, lr=0.1, optimizer=name, momentum=0.5)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    assert optimizer.defaults.get("momentum", 0.5) == 0.5


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(InvalidArgumentError, match="Linear has nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainConfig(epochs=1, lr=0.1))


def test_biases_learn_at_their_share_of_the_rate():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainConfig(epochs=1, lr=0.01, bias_lr=0.1)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, config.lr)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # the first step of Adam is the learning rate, whatever the gradient
    for name, parameter in model.named_parameters():
        step = 0.001 if name.endswith("bias") else 0.01
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, step))
