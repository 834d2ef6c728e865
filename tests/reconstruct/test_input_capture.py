"""Forward passes that wait for each other."""

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import collect_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.input_capture import capture_inputs


class Net(nn.Module):
    """Layers inside contexts of torch, as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            x = torch.relu(self.second(x))
        assert before == (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        return self.third(x.float())


BATCHES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 3)]
NAMES = ["first", "second", "third"]


def seen(model: nn.Module, name: str) -> list[Tensor]:
    """What a layer is given in passes one after the other."""
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: found.append(*given)
    )
    with torch.no_grad():
        for x in BATCHES:
            model(x)
    hook.remove()
    return found


def test_inputs_are_those_of_passes_one_after_the_other() -> None:
    model = Net()
    stops = dict(capture_inputs(model, NAMES, collect_batches(BATCHES, model)))
    assert list(stops) == NAMES
    for name, inputs in stops.items():
        for found, expected in zip(inputs, seen(model, name), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_layer_that_was_replaced_is_seen_by_those_after_it() -> None:
    model = Net()
    for name, inputs in capture_inputs(model, NAMES, collect_batches(BATCHES, model)):
        for found, expected in zip(inputs, seen(model, name), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        if name != "third":
            setattr(model, name, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3)))


@pytest.mark.parametrize("stops", [1, 3])
def test_nothing_is_left_behind(stops: int) -> None:
    model = Net().train()
    layers = list(model.children())
    walk = capture_inputs(model, NAMES, collect_batches(BATCHES, model))
    with torch.autocast("cpu", dtype=torch.float16):
        for _ in range(stops):
            next(walk)
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") is torch.float16
        walk.close()
    assert model.training
    assert not torch.is_autocast_enabled("cpu")
    for layer in layers:
        assert "forward" not in layer.__dict__


def test_an_error_of_the_model_comes_through() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.first(x)
            raise RuntimeError("broken")

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        list(capture_inputs(model, ["first", "second"], collect_batches(BATCHES, model)))
    assert torch.is_grad_enabled()
    assert "forward" not in model.first.__dict__


def test_orders_that_differ_are_told() -> None:
    class Either(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(self.second(x)) if len(x) == 2 else self.second(self.first(x))

    model = Either()
    with pytest.raises(InvalidArgumentError, match=r"different orders \('first' and 'second'"):
        list(capture_inputs(model, ["first", "second"], collect_batches(BATCHES, model)))


def test_a_layer_that_is_called_no_more_is_told() -> None:
    class Sometimes(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) if bool((x != 0).any()) else x

    model = Sometimes()
    walk = capture_inputs(model, ["first", "second"], collect_batches(BATCHES, model))
    next(walk)
    for parameter in model.first.parameters():
        parameter.data.zero_()
    with pytest.raises(InvalidArgumentError, match="fewer layers once others are pressed"):
        next(walk)
