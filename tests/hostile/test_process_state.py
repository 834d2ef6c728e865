"""A public call leaves the process as it was, also when it fails or is interrupted."""

import inspect
import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from readers import net
from safetensors.torch import save_file
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
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    ]


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def call_save(model: nn.Module, folder: Path) -> None:
    tp.save(model, folder / "a.tpz")
    tp.load(folder / "a.tpz", model)
    tp.inspect(folder / "a.tpz")
    tp.decode(folder / "a.tpz")


def call_press(model: nn.Module) -> nn.Module:
    return tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2))


def call_encode_checkpoint(model: nn.Module, folder: Path) -> None:
    place = folder / str(len(list(folder.iterdir())))
    dense, coded, back = (place / name for name in ("dense", "coded", "back"))
    dense.mkdir(parents=True)
    save_file(model.state_dict(), dense / "model.safetensors")
    tp.encode_checkpoint(dense, coded, lossless=True)
    tp.load_checkpoint(coded, model)
    tp.decode_checkpoint(coded, back)


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
    "finetune": lambda model, folder: tp.finetune(
        tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2)),
        [(INPUTS, torch.zeros(4).long())] * 3,
        epochs=1,
        checkpoint=folder / f"{len(list(folder.iterdir()))}.pt",
    ),
    "report": lambda model, folder: tp.report(
        model, call_press(model), folder / "a.html", batches=[INPUTS] * 2
    ),
    "compare": lambda model, _: tp.compare(
        model, {"a": call_press(model)}, batches=[INPUTS] * 2, example_inputs=INPUTS
    ),
    "encode, trained": lambda model, folder: tp.encode(
        model, folder / "a.tpz", size=400, calibration=[INPUTS] * 6, passes=1
    ),
    "compress to bytes": lambda model, folder: tp.compress(
        model, "bytes=70%", [INPUTS] * 6, out=folder / "a.tpz"
    ),
    "encode_checkpoint": call_encode_checkpoint,
    "sensitivity": lambda model, _: tp.sensitivity(model, [(INPUTS, torch.zeros(4).long())] * 3),
    "save_checkpoint": lambda model, folder: tp.save_checkpoint(
        model, folder / str(len(list(folder.iterdir())))
    ),
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


PACKAGE = str(Path(tp.__file__).parent)


class Interrupter:
    """Raises a KeyboardInterrupt at one of the calls of functions of the package.

    It raises at no generator, because these leave contexts: Ctrl-C within the very lines that
    restore a state can leave it.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.calls = moment, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            if code.co_flags & inspect.CO_GENERATOR or code.co_name.startswith("__"):
                return
            self.calls += 1
            if self.calls == self.moment:
                sys.setprofile(None)
                raise KeyboardInterrupt

    @contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"compress to bytes"}))  # of parts above
def test_an_interrupted_call_leaves_the_process_as_before(tmp_path: Path, name: str) -> None:
    model = net()
    CALLS[name](model, tmp_path)  # imports are no part of the calls that are counted
    count = Interrupter(0)
    with count.watching():
        CALLS[name](model, tmp_path)
    values = [value.clone() for value in model.state_dict().values()]
    for part in range(1, 8):
        torch.manual_seed(0)
        before, hooked = state(), hooks(model)
        with pytest.raises(KeyboardInterrupt), Interrupter(count.calls * part // 8).watching():
            CALLS[name](model, tmp_path)
        assert state() == before
        assert hooks(model) == hooked
        assert all(map(torch.equal, model.state_dict().values(), values))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not list(tmp_path.rglob("*.tmp"))


def test_pressing_in_place_says_where_it_was_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 5))
    plan = tp.plan(model, scheme="channel_svd", ranks=2)
    for moment in range(50, 5000, 25):
        log = caplog.at_level(logging.WARNING)
        with log, Interrupter(moment).watching(), suppress(KeyboardInterrupt):
            tp.press(model, plan, inplace=True)
        pressed = [key for key, layer in model.named_children() if not isinstance(layer, nn.Linear)]
        if pressed:
            break
    assert 0 < len(pressed) < 3
    done = f"{len(pressed)} of the 3 layers are already pressed, {', '.join(pressed)}"
    assert done in caplog.text
