"""Calibration of models whose forward changes the state of torch for a while."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.errors import ModelRunError
from tensorpress.quantize.gptaq import round_in_order
from tensorpress.reconstruct.layerwise import Reconstruct

WIDTH = 16


class Doubling(TorchFunctionMode):
    """Doubles what linear layers put out."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        return 2 * result if function is functional.linear else result


@contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "sdpa_kernel": partial(sdpa_kernel, SDPBackend.MATH),
    "inference_mode": torch.inference_mode,
    "default_dtype": default_dtype,
    "matmul_precision": matmul_precision,
    "function_mode": Doubling,
    "default_device": partial(torch.device, "cpu"),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
}


class Block(nn.Module):
    """Attention and two layers, in a context."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.context = context
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out, self.up, self.down = (
            nn.Linear(WIDTH, WIDTH) for _ in range(6)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.context():
            y = self.norm(x)
            q, k, v = (part(y)[:, None] for part in (self.query, self.key, self.value))
            x = x + self.out(functional.scaled_dot_product_attention(q, k, v)[:, 0])
            y = torch.relu(self.up(x) + torch.ones(WIDTH, dtype=x.dtype))
            return x + self.down(y), {"up": y}


class Net(nn.Module):
    def __init__(self, context: Callable[[], AbstractContextManager[Any]], blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(context) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        scores: Tensor = self.head(x.float().clone())
        return scores


def state() -> tuple[Any, ...]:
    """What torch holds for a process or a thread, and contexts change."""
    return (
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        *(torch.get_default_dtype(), torch.get_default_device()),
        torch.get_float32_matmul_precision(),
        *(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        *(torch.is_autocast_cache_enabled(), torch.are_deterministic_algorithms_enabled()),
        *(torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        *(torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()),
        *(torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
    )


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 8, WIDTH, generator=generator) for n in (6, 4, 8)]


def pressed(net: nn.Module, calibration: list[Tensor], kind: Reconstruct) -> nn.Module:
    plan = tp.plan(net, scheme="channel_svd", ranks=4)
    return tp.press(net, plan, calibration=calibration, reconstruct=kind)


@pytest.mark.parametrize("kind", ["inputs", "linear", "nonlinear"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_press(name: str, kind: Reconstruct) -> None:
    net, before = Net(CONTEXTS[name]), state()
    model = pressed(net, batches(), kind)
    assert state() == before
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert not parameter.is_inference()
        assert parameter.dtype is torch.float32
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    factor = model.blocks[0].up[0].weight
    before_training = factor.detach().clone()
    model(batches()[0]).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(factor, before_training) or name in ("inference_mode", "no_grad")


@pytest.mark.parametrize("kind", ["inputs", "linear"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_batches_one_by_one_or_together(name: str, kind: Reconstruct) -> None:
    """Equal but for the order of sums: products of matrices of other sizes round differently."""
    net = Net(CONTEXTS[name])
    one_by_one = pressed(net, batches(), kind)
    together = pressed(net, [torch.cat(batches())], kind)
    x = batches()[0]
    with torch.no_grad():
        distance = (one_by_one(x) - together(x)).norm() / together(x).norm()
    assert distance < (0.05 if name == "autocast" else 1e-4)


@pytest.mark.parametrize("name", list(CONTEXTS)[:5])
def test_encode(name: str, tmp_path: Path) -> None:
    net, other = (Net(CONTEXTS[name], blocks=1) for _ in range(2))
    before = state()
    tp.encode(net, tmp_path / "a.tpz", bits=8, calibration=batches())
    assert state() == before
    assert all(parameter.requires_grad for parameter in net.parameters())
    other.load_state_dict(tp.decode(tmp_path / "a.tpz"))
    [x] = batches()[:1]
    with torch.no_grad():
        assert (other(x) - net(x)).norm() < 0.05 * net(x).norm()


@torch.no_grad()
@pytest.mark.parametrize("name", CONTEXTS)
def test_rounding_by_batches_one_by_one_or_together(name: str) -> None:
    """Equal but for symbols that are next to the middle of two."""
    losses = []
    for calibration in (batches(), [torch.cat(batches())]):
        dense, model = (Net(CONTEXTS[name]) for _ in range(2))
        quantizers = {
            layer: StepQuantizer.nearest(0.1)
            for layer, module in dense.named_modules()
            if isinstance(module, nn.Linear)
        }
        rounded = round_in_order(
            model, dense, quantizers, collect_batches(calibration, dense), seed=0
        )
        assert list(rounded) == list(quantizers)
        losses.append([one.squared_error / one.squared_norm for one in rounded.values()])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_model_that_fails_leaves_the_state() -> None:
    class Failing(Net):
        def forward(self, x: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH), default_dtype(), Doubling():
                if len(x) == 4:
                    raise RuntimeError("four are too few")
                return super().forward(x)

    net, before = Failing(torch.inference_mode), state()
    with pytest.raises(ModelRunError, match="four are too few"):
        pressed(net, batches(), "linear")
    assert state() == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_model_may_return_what_it_likes() -> None:
    class Detecting(Net):
        def forward(self, x: Tensor) -> Any:
            return {"scores": super().forward(x), "boxes": [x]}

    model = pressed(Detecting(torch.no_grad), batches(), "linear")
    expected = pressed(Net(torch.no_grad), batches(), "linear")
    for result, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(result, other, rtol=0, atol=0)
