import copy

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.reconstruct.block_refinement import find_blocks, refine_blocks


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + scale * self.down(self.up(x).relu_())


class Residual(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.blocks = nn.ModuleList(Block(12) for _ in range(blocks))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


@pytest.fixture
def dense() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(32, 6) for _ in range(10)]


def pressed_by(dense: nn.Module, batches: list[Tensor], ranks: float = 0.5) -> nn.Module:
    plan = tp.plan(dense, scheme="channel_svd", ranks=ranks)
    return tp.press(dense, plan, calibration=batches)


def test_blocks_are_the_smallest_modules_around_pressed_layers(
    dense: Residual, batches: list[Tensor]
) -> None:
    pressed = pressed_by(dense, batches)
    [batch] = collect_batches(batches[:1], pressed)
    assert find_blocks(pressed, batch) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_block_that_is_called_twice_is_none(batches: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = Residual()
    net.blocks[1] = net.blocks[0]
    pressed = pressed_by(net, batches)
    [batch] = collect_batches(batches[:1], pressed)
    assert find_blocks(pressed, batch) == ["blocks.2"]


def test_outputs_come_nearer(dense: Residual, batches: list[Tensor]) -> None:
    pressed = pressed_by(dense, batches)
    held_out = [torch.randn(200, 6)]
    before = tp.fidelity(dense, pressed, held_out).error
    state = copy.deepcopy(dense.state_dict())
    results = refine_blocks(pressed, dense, collect_batches(batches, pressed), epochs=30)
    assert [result.name for result in results] == ["blocks.0", "blocks.1", "blocks.2", ""]
    assert all(result.after <= result.before for result in results)
    assert tp.fidelity(dense, pressed, held_out).error < 0.95 * before
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("frozen", [4, 5])
def test_blocks_are_given_up_where_the_first_bring_outputs_no_nearer(
    frozen: int, batches: list[Tensor]
) -> None:
    torch.manual_seed(0)
    net = Residual(blocks=6).eval()
    pressed = pressed_by(net, batches)
    pressed.blocks[:frozen].requires_grad_(False)
    results = refine_blocks(pressed, net, collect_batches(batches, pressed), epochs=30)
    assert [result.name for result in results] == [*(f"blocks.{n}" for n in range(4)), ""]
    assert all(result.after == result.before for result in results[:4])
    assert results[-1].after < 0.95 * results[-1].before


def test_a_block_that_makes_little_progress_is_given_up(batches: list[Tensor]) -> None:
    class Faint(nn.Module):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.linear, self.bias = nn.Linear(6, 6), nn.Parameter(torch.full((6,), bias))
            self.linear.requires_grad_(False)
            self.passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += torch.is_grad_enabled()
            result: Tensor = self.linear(x) + 0.01 * self.bias
            return result

    torch.manual_seed(0)
    net, dense = Faint(1.0), Faint(100.0)
    [result] = refine_blocks(net, dense, collect_batches(batches, net), epochs=20)
    assert 0.99 * result.before < result.after < result.before
    # Two passes over 8 batches to train on are a tenth; one more call looks for a gradient.
    assert net.passes == 17


def test_a_model_that_is_exact_stays_as_it_is(dense: Residual, batches: list[Tensor]) -> None:
    pressed = copy.deepcopy(dense)
    before = copy.deepcopy(pressed.state_dict())
    refine_blocks(pressed, dense, collect_batches(batches, pressed))
    for name, value in pressed.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_and_gradients_are_as_before(dense: Residual, batches: list[Tensor]) -> None:
    pressed = pressed_by(dense, batches)
    pressed.train()
    pressed.stem.requires_grad_(False)
    required = {name: p.requires_grad for name, p in pressed.named_parameters()}
    refine_blocks(pressed, dense, collect_batches(batches, pressed), epochs=1)
    assert pressed.training
    assert {name: p.requires_grad for name, p in pressed.named_parameters()} == required
    assert all(p.grad is None for p in pressed.parameters())


def test_one_batch_is_too_few(dense: Residual, batches: list[Tensor]) -> None:
    pressed = pressed_by(dense, batches)
    assert refine_blocks(pressed, dense, collect_batches(batches[:1], pressed)) == []


def test_frozen_parameters_stay(dense: Residual, batches: list[Tensor]) -> None:
    pressed = pressed_by(dense, batches)
    pressed.head.requires_grad_(False)
    before = pressed.head.weight.clone()
    refine_blocks(pressed, dense, collect_batches(batches, pressed), epochs=2)
    assert torch.equal(pressed.head.weight, before)


def test_no_passes_change_nothing(dense: Residual, batches: list[Tensor]) -> None:
    pressed = pressed_by(dense, batches)
    assert refine_blocks(pressed, dense, collect_batches(batches, pressed), epochs=0) == []


def test_models_without_gradients_stay_as_they_are(batches: list[Tensor]) -> None:
    class NoGradient(Residual):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    net = NoGradient().eval()
    pressed = pressed_by(net, batches)
    state = copy.deepcopy(pressed.head.state_dict())
    results = refine_blocks(pressed, net, collect_batches(batches, pressed), epochs=2)
    assert results[-1].after == results[-1].before
    assert all(torch.equal(state[name], x) for name, x in pressed.head.state_dict().items())


def test_blocks_that_some_batches_do_not_call(batches: list[Tensor]) -> None:
    class Branch(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.blocks[0](self.stem(x))
            return self.head(self.blocks[1](y) if x[0, 0] > 0 else y)

    torch.manual_seed(0)
    net = Branch().eval()
    signed = [
        x.index_fill(1, torch.tensor([0]), 1.0 if i % 2 else -1.0)
        for i, x in enumerate(reversed(batches), start=1)
    ]
    pressed = pressed_by(net, signed)
    results = refine_blocks(pressed, net, collect_batches(signed, pressed), epochs=2)
    assert results[0].name == "blocks.0"
    assert results[-1].name == ""


def test_a_cache_of_keys_and_values_does_not_grow_from_run_to_run() -> None:
    mend_torchvision()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(vocab_size=60, num_attention_heads=2, **sizes)
    dense = transformers.LlamaModel(config).eval()
    tokens = torch.randint(60, (60, 12))
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in tokens.split(4)]
    model = tp.press(dense, tp.plan(dense, scheme="channel_svd", budget="params=60%"))
    refined = refine_blocks(model, dense, collect_batches(batches, dense))
    assert len(refined) == 5  # attention and feed-forward of two layers, and the model
    assert all(one.after <= one.before for one in refined)
    assert refined[-1].after < refined[-1].before
    assert dense.config.use_cache
    assert model.config.use_cache
