"""What follows a layer, seen in a forward pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import collect_batches
from tensorpress.reconstruct.next_op import Following, find_next_ops


class Net(nn.Module):
    """Calls its parts as a given function says."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm = norm if norm is not None else nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x))


class Relu(Net):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.one(x)), inplace=True)


class Sum(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.one(x)) + x)


class Skip(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return torch.relu(y) + y


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.two(torch.relu(self.norm(self.one(x))))))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.one(torch.relu(self.one(x))))


def seen(model: nn.Module) -> Following:
    batch = collect_batches([torch.randn(2, 2, 3, 3)], model)[0]
    return find_next_ops(model, ["one"], batch)["one"]


def test_a_relu_behind_a_norm_is_seen() -> None:
    model = Relu()
    assert seen(model) == Following(model.norm, "relu", relu=True)


@pytest.mark.parametrize(
    ("model", "found"), [(Net, "no single function"), (Sum, "add"), (Skip, "no single function")]
)
def test_what_is_no_relu_is_named(model: type[Net], found: str) -> None:
    following = seen(model())
    assert not following.relu
    assert str(following) == found


def test_a_norm_without_statistics_is_an_activation_like_any_other() -> None:
    following = seen(Relu(nn.BatchNorm2d(2, track_running_stats=False)))
    assert following == Following(None, "batch_norm", relu=False)


def test_a_norm_of_two_layers_takes_no_bias_of_one() -> None:
    assert seen(Shared()).norm is None
    assert not seen(Shared()).relu


def test_a_norm_by_function_is_not_the_module_before() -> None:
    class ByFunction(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            mean, variance = torch.zeros(2), torch.ones(2)
            return torch.relu(functional.batch_norm(self.one(y), mean, variance))

    assert seen(ByFunction()) == Following(None, "batch_norm", relu=False)


def test_a_layer_called_twice_has_a_follower_where_both_calls_have_it() -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.one(torch.relu(self.one(x))))

    assert seen(Twice()) == Following(None, "relu", relu=True)
    assert seen(Other()) == Following()
