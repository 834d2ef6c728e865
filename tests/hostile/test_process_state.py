"""A public call leaves the process as it was, also when it fails."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from readers import net
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.errors import TensorPressError

INPUTS = torch.ones(4, 6)


class Failing(nn.Module):
    """A network that fails in its second forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise KeyError("in the middle")
        output: Tensor = self.inner(x)
        return output


def state() -> list[Any]:
    return [
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    ]


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def call_save(model: nn.Module, folder: Path) -> None:
    tp.save(model, folder / "a.tpz")
    tp.load(folder / "a.tpz", model)
    tp.inspect(folder / "a.tpz")
    tp.decode(folder / "a.tpz")


def call_load_of_the_zoo(model: nn.Module, folder: Path) -> None:
    file = Path(__file__).parents[1] / "codec" / "golden" / "v2-zoo.tpz"
    tp.load(file)


CALLS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "plan": lambda model, _: tp.plan(model, scheme="channel_svd", budget="params=60%"),
    "plan by inputs": lambda model, _: tp.plan(
        model, INPUTS, scheme="channel_svd", budget="macs=60%"
    ),
    "press": lambda model, _: tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2)),
    "press, drawn": lambda model, _: tp.press(
        model, tp.plan(model, scheme="channel_svd", ranks=2), init="kaiming"
    ),
    "press, fitted": lambda model, _: tp.press(
        model, tp.plan(model, scheme="channel_svd", ranks=2), calibration=[INPUTS] * 3
    ),
    "save": call_save,
    "load": call_load_of_the_zoo,
    "encode": lambda model, folder: tp.encode(model, folder / "a.tpz", size=300),
    "encode by data": lambda model, folder: tp.encode(
        model, folder / "a.tpz", size=300, calibration=[INPUTS] * 3
    ),
    "compress": lambda model, _: tp.compress(model, "params=60%", [INPUTS] * 6),
    "save_checkpoint": lambda model, folder: tp.save_checkpoint(model, folder / "c"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [net, Failing])
def test_the_process_is_as_before(tmp_path: Path, name: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    model.train()
    modes = [module.training for module in model.modules()]
    before, hooked = state(), hooks(model)
    try:
        CALLS[name](model, tmp_path)
    except (TensorPressError, KeyError):
        assert kind is Failing
    assert state() == before
    assert hooks(model) == hooked
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
