"""Inputs of layers, one after the other, while layers are replaced."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tensorpress.calibrate.batches import collect_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.input_capture import capture_inputs

WIDTH = 24
BATCHES = [torch.randn(n, 16, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 3)]


class Net(nn.Module):
    """Four layers, called as a function says."""

    def __init__(self, call: Callable[[list[nn.Module], Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("passes", torch.zeros(1000))
        self.call = call

    def forward(self, x: Tensor) -> Any:
        self.passes.add_(1)
        return self.call(list(self.layers), x)


def in_a_row(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = torch.relu(layer(x))
    return x


def skipping(layers: list[nn.Module], x: Tensor) -> Tensor:
    a = layers[0](x)
    b = layers[1](a)
    c = layers[2](b) + a
    return layers[3](torch.cat([c, b], 1))


def in_place(layers: list[nn.Module], x: Tensor) -> Tensor:
    a = skip = layers[0](x)
    a.relu_()
    b = layers[1](a)
    rows = len(b)
    b.add_(skip).unsqueeze_(0)
    c = layers[2](b) * rows * b.ndim
    c.squeeze_(0).mul_(2)
    return layers[3](c)


def through_views(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[0](x).clone()
    flat, turned = y.view(-1), y.transpose(1, 2)
    layers[1](y)
    flat.add_(1)
    y = layers[2](turned.transpose(1, 2))
    y[:, 0] = 3.0
    return layers[3](y)


def by_values(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[0](x)
    y = y + 1 if y.mean() > 0 else y * y.std().item()
    y = layers[1](y) * sum(y.sum((1, 2)).tolist())
    y = layers[2](y) * (1 + len(y[y > 0]) % 3)
    return layers[3](y)


def by_many_values(layers: list[nn.Module], x: Tensor) -> Tensor:
    x = layers[1](layers[0](x))
    return layers[3](layers[2](x) * sum(x.flatten().tolist()))


def into_other_storage(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[0](x)
    y.set_(torch.ones_like(y))
    return layers[3](layers[2](layers[1](y)))


def in_inference_mode(layers: list[nn.Module], x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = layers[0](x)
        assert y.relu_() is y
        y = layers[2](layers[1](y))
    return layers[3](y)


def through_numpy(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[1](layers[0](x))
    y = torch.from_numpy(2 * y.numpy())
    return layers[3](layers[2](y))


def with_gradients(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[0](x)
    with torch.enable_grad():
        z = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad((layers[1](z) ** 3).sum(), z)
    return layers[3](layers[2](y + slope))


def with_autocast(layers: list[nn.Module], x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = layers[2](torch.relu(layers[1](layers[0](x))))
    return layers[3](x.float())


def attending(layers: list[nn.Module], x: Tensor) -> Tensor:
    q, k, v = (layer(x)[:, None] for layer in layers[:3])
    return layers[3](x + functional.scaled_dot_product_attention(q, k, v)[:, 0])


def trying(layers: list[nn.Module], x: Tensor) -> Tensor:
    y = layers[0](x)
    try:
        y = y @ y
    except RuntimeError:
        y = y * 2
    return layers[3](layers[2](layers[1](y)))


def catching_everything(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        try:
            x = layer(x)
        except BaseException:
            x = x * 2
    return x


def computing_at_the_end(layers: list[nn.Module], x: Tensor) -> Tensor:
    @contextmanager
    def context() -> Iterator[None]:
        try:
            yield
        finally:
            torch.ones(5).add_(x.mean())

    with context():
        x = layers[1](layers[0](x))
    return layers[3](layers[2](x))


def into_containers(layers: list[nn.Module], x: Tensor) -> dict[str, Any]:
    both = {"a": layers[0](x), "b": (layers[1](x), None)}
    return {"c": layers[2](both["a"]), "d": [layers[3](both["b"][0])]}


ONCE = [
    *(in_a_row, skipping, in_place, through_views, by_values, in_inference_mode, with_autocast),
    *(attending, computing_at_the_end, into_containers),
]
"""Models whose passes go on from a tape."""

CALLS = [
    *(*ONCE, by_many_values, into_other_storage, through_numpy, with_gradients, trying),
    catching_everything,
]
NAMES = [f"layers.{place}" for place in range(4)]


def inputs_of(model: nn.Module, name: str) -> list[Tensor]:
    """What a layer is given in passes from the start to the end."""
    inputs: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, arguments: inputs.append(arguments[0].clone())
    )
    with torch.no_grad():
        for x in BATCHES:
            model(x.clone())
    hook.remove()
    return inputs


@pytest.mark.parametrize("call", CALLS)
def test_inputs_are_those_of_passes_from_the_start(call: Callable[..., Any]) -> None:
    model = Net(call)
    names = []
    for name, inputs in capture_inputs(model, NAMES, collect_batches(BATCHES, model)):
        names.append(name)
        for result, expected in zip(inputs, inputs_of(model, name), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)
        new = nn.Sequential(nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH))
        model.layers[NAMES.index(name)] = new
    assert sorted(names) == NAMES


class Operations(TorchDispatchMode):
    """Counts what is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        self.counts[operation.name()] += 1
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize("call", ONCE)
def test_operations_are_carried_out_once(call: Callable[..., Any]) -> None:
    model, operations = Net(call), Operations()
    with operations:
        for _ in capture_inputs(model, NAMES, collect_batches(BATCHES, model)):
            pass
    assert model.passes.tolist() == [len(BATCHES)] * 1000
    matrices = operations.counts["aten::addmm"] + operations.counts["aten::linear"]
    assert matrices == 3 * len(BATCHES)  # the pass ends at the fourth


class Block(nn.Module):
    """Two layers, called as a function says."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.call, self.runs = call, 0

    def forward(self, x: Tensor, seen: list[Tensor]) -> Any:
        self.runs += 1
        return self.call(self, x, seen)


def plainly(block: Block, x: Tensor, seen: list[Tensor]) -> Tensor:
    return x + block.second(torch.relu(block.first(x)))


def noting(block: Block, x: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(block.first(x))
    return x + block.second(torch.stack(seen).sum(0))


def turning_the_input(block: Block, x: Tensor, seen: list[Tensor]) -> Tensor:
    y = block.second(block.first(x))
    x.transpose_(0, 1)
    return y


def changing_the_input(block: Block, x: Tensor, seen: list[Tensor]) -> Tensor:
    x.mul_(block.second(block.first(x)))
    return x


def showing_a_part(block: Block, x: Tensor, seen: list[Tensor]) -> Any:
    y = block.second(block.first(x))
    return y[:, :5], (y, None)


class Blocks(nn.Module):
    """Blocks, one after the other, and what they share."""

    def __init__(self, call: Callable[..., Any], count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(call) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for block in self.blocks:
            y = x = x + 1
            x = block(x, seen)
            if isinstance(x, tuple):
                x = x[1][0] + x[0].mean()
            if y.shape != x.shape:
                x = x.transpose(0, 1).contiguous() * y
        return x


@pytest.mark.parametrize(
    "call", [plainly, noting, turning_the_input, changing_the_input, showing_a_part]
)
def test_inputs_of_blocks_are_those_of_passes_from_the_start(call: Callable[..., Any]) -> None:
    model, operations = Blocks(call, 3), Operations()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with operations:
        captured = []
        for name, inputs in capture_inputs(model, names, collect_batches(BATCHES, model)):
            captured.append((name, [x.clone() for x in inputs]))
    if call is not turning_the_input:  # a tape cannot turn a tensor whose values are gone
        assert operations.counts["aten::addmm"] == (len(names) - 1) * len(BATCHES)
    assert [name for name, _ in captured] == names
    for name, inputs in captured:
        for result, expected in zip(inputs, inputs_of(model, name), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_blocks_that_are_done_are_not_run_again() -> None:
    model = Blocks(plainly, 12)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for _ in capture_inputs(model, names, collect_batches(BATCHES[:1], model)):
        pass
    assert all(block.runs <= 3 for block in model.modules() if isinstance(block, Block))


def test_a_pass_that_calls_other_operations_is_run_from_the_start() -> None:
    calls = []

    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        calls.append(torch.sin if len(calls) % 2 else torch.cos)
        return layers[2](layers[1](calls[-1](layers[0](x))))

    model = Net(call)
    [batch] = collect_batches(BATCHES[:1], model)
    last = dict(capture_inputs(model, NAMES[:3], [batch]))["layers.2"]
    assert model.passes[0] == 2
    with torch.no_grad():
        y = calls[-1](model.layers[0](*batch.inputs))
        torch.testing.assert_close(last, [model.layers[1](y)])


def test_what_is_random_is_drawn_once() -> None:
    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        x = functional.dropout(layers[0](x), training=True)
        return layers[1](x) + layers[2](x)

    model = Net(call)
    inputs = dict(capture_inputs(model, NAMES[:3], collect_batches(BATCHES, model)))
    for left, right in zip(inputs["layers.1"], inputs["layers.2"], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_only_what_is_still_used_is_held() -> None:
    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(6)))
    walk = capture_inputs(model, list("012345"), collect_batches([torch.zeros(500, 1000)], model))
    live = []
    for _, inputs in walk:
        live.append(sum(t.numel() for t in _tensors() if t.shape == inputs[0].shape))
        del inputs
    assert max(live[2:]) <= live[1]


def _tensors() -> Iterator[Tensor]:
    storages = set()
    for x in gc.get_objects():
        dense = type(x) is Tensor and x.layout is torch.strided
        if dense and x.untyped_storage().data_ptr() not in storages:
            storages.add(x.untyped_storage().data_ptr())
            yield x


def test_a_layer_that_is_called_twice_is_between_those_that_are_called_once() -> None:
    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        return layers[2](layers[1](layers[0](layers[1](x))))

    model = Net(call)
    names = ["layers.0", "layers.2"]
    for name, inputs in capture_inputs(model, names, collect_batches(BATCHES, model)):
        for result, expected in zip(inputs, inputs_of(model, name), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)
        model.layers[0] = nn.Linear(WIDTH, WIDTH)


def test_layers_with_one_weight() -> None:
    model = Net(in_a_row)
    model.layers[3].weight = model.layers[1].weight
    for name, inputs in capture_inputs(model, NAMES, collect_batches(BATCHES, model)):
        for result, expected in zip(inputs, inputs_of(model, name), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_stock_modules_that_take_another_path_without_hooks() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    names = [f"layers.{n}.{linear}" for n in (0, 1) for linear in ("linear1", "linear2")]
    walk = capture_inputs(model, names, collect_batches(BATCHES, model))
    assert [name for name, _ in walk] == names


@pytest.mark.parametrize("stops", [1, 3])
def test_nothing_is_left_behind(stops: int) -> None:
    model = Net(with_autocast).train()
    walk = capture_inputs(model, NAMES, collect_batches(BATCHES, model))
    with torch.autocast("cpu", dtype=torch.float16):
        for _ in range(stops):
            next(walk)
            assert model.training
            assert torch.is_grad_enabled()
            assert torch.get_autocast_dtype("cpu") is torch.float16
            assert not any(layer._forward_pre_hooks for layer in model.layers)
            deepcopy(model)
        walk.close()  # type: ignore[attr-defined]
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_of_the_model_is_quoted() -> None:
    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        layers[0](x)
        raise RuntimeError("broken")

    model = Net(call)
    with pytest.raises(InvalidArgumentError, match=r"fails on a batch of .*broken"):
        list(capture_inputs(model, NAMES[:2], collect_batches(BATCHES, model)))
    assert torch.is_grad_enabled()
    assert not model.layers[0]._forward_pre_hooks


def test_orders_that_differ_are_told() -> None:
    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        first, second = layers[:2] if len(x) == 2 else layers[1::-1]
        return first(second(x))

    model = Net(call)
    with pytest.raises(InvalidArgumentError, match=r"different orders \('layers.0' and 'layers.1'"):
        list(capture_inputs(model, NAMES[:2], collect_batches(BATCHES, model)))


def test_a_layer_that_is_called_no_more_is_told() -> None:
    def call(layers: list[nn.Module], x: Tensor) -> Tensor:
        x = layers[0](x)
        return layers[1](x) if bool((x != 0).any()) else x

    model = Net(call)
    walk = capture_inputs(model, NAMES[:2], collect_batches(BATCHES, model))
    next(walk)
    for parameter in model.layers[0].parameters():
        parameter.data.zero_()
    with pytest.raises(InvalidArgumentError, match="fewer layers after others were pressed"):
        next(walk)
