"""Which layers calibration data reach: called often, transposed, in models that return anything."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate import input_moments
from tensorpress.calibrate.batches import collect_batches
from tensorpress.calibrate.patches import unfold_inputs
from tensorpress.planning.fixed_ranks import Entry
from tensorpress.reconstruct import layerwise, samples
from tensorpress.reconstruct.layerwise import Reconstruct
from tensorpress.reconstruct.samples import Positions, inputs_in_order, sample_responses
from tensorpress.reconstruct.unfitted import unfitted_layers


class Stream(nn.Module):
    """A network that is run a frame after the other, with a state between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 3, padding=1)
        self.cell = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(len(frames), 16)
        for frame in frames.unbind(1):  # (examples, channels, samples)
            seen = torch.relu(self.conv(frame)).mean(-1)
            state = torch.tanh(self.cell(torch.cat([seen, state], 1)))
        result: Tensor = self.head(state)
        return result


def frames(count: int, seed: int, steps: int = 5) -> Tensor:
    """Frames of few patterns, so that responses matter other than weights."""
    patterns = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(99))
    weights = torch.randn(count, steps, 3, generator=torch.Generator().manual_seed(seed))
    return torch.einsum("ntp,pcs->ntcs", weights, patterns)


@pytest.fixture
def stream() -> Stream:
    torch.manual_seed(0)
    return Stream().eval()


def test_many_calls_share_the_rows() -> None:
    """As many rows of each call, in random order, and never more than two shares at a time."""
    calls = samples._Calls(Positions(100, seed=0), 100, batch=3)
    for call in range(37):
        calls.add(torch.arange(100.0)[:, None] + 1000 * call)
        assert sum(map(len, calls._parts)) <= 200
    rows = calls.merge()[:, 0]
    assert len(rows) == 37 * 2
    assert (rows // 1000).long().bincount().tolist() == [2] * 37
    assert float((rows % 1000).max()) > 80


@torch.no_grad()
def distance(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    return float((model(x) - dense(x)).square().mean() / dense(x).var())


@pytest.mark.parametrize("kind", ["refit", "inputs", "linear", "nonlinear"])
def test_layers_called_at_every_step_are_fitted(stream: Stream, kind: Reconstruct) -> None:
    plan = tp.plan(stream, scheme="channel_svd", ranks=3, skip=["head"])
    batches = [frames(40, seed) for seed in (1, 2)]
    pressed = tp.press(stream, plan, calibration=batches, reconstruct=kind)
    assert unfitted_layers(pressed) == {}
    by_weights = distance(tp.press(stream, plan), stream, frames(100, 7))
    assert distance(pressed, stream, frames(100, 7)) < 0.6 * by_weights


def test_calls_of_different_numbers_are_gathered_at_the_same_positions(stream: Stream) -> None:
    """Rows and responses of the same model belong together, however many calls a batch has."""
    batches = collect_batches([frames(4, 1, steps=5), frames(4, 2, steps=3)], stream)
    names, positions = ["conv", "cell", "head"], Positions(100, seed=1)
    responses = sample_responses(stream, names, batches, positions)
    assert responses.calls == {"conv": [5, 3], "cell": [5, 3], "head": [1, 1]}
    assert responses.once == ["head"]
    assert len(responses.rows["conv"]) == 20 * 5 + 32 * 3  # of 32 positions a call 100 // 5
    assert len(responses.rows["cell"]) == 4 * 5 + 4 * 3
    walk = inputs_in_order(stream, list(responses.rows), batches, positions, responses)
    for name, inputs in walk:
        layer = stream.get_submodule(name)
        y = inputs[:, 0] @ layer.weight.flatten(1).T + layer.bias
        torch.testing.assert_close(y, responses.rows[name][:, 0], rtol=1e-4, atol=1e-5)


def test_inputs_of_later_calls_come_from_the_model_as_it_then_is(stream: Stream) -> None:
    batches = collect_batches([frames(4, 1)], stream)
    names, positions = ["conv", "cell", "head"], Positions(10_000, seed=1)
    dense = sample_responses(stream, names, batches, positions)
    for name, inputs in inputs_in_order(stream, names, batches, positions, dense):
        if name == "conv":
            nn.init.zeros_(stream.conv.weight)
            nn.init.constant_(stream.conv.bias, 2.0)
        elif name == "cell":
            torch.testing.assert_close(inputs[..., :16], torch.full((20, 1, 16), 2.0))
            assert bool((inputs[:4, :, 16:] == 0).all())
            assert bool((inputs[4:, :, 16:] != 0).all())
            nn.init.zeros_(stream.cell.weight)
            nn.init.zeros_(stream.cell.bias)
        else:
            torch.testing.assert_close(inputs, torch.zeros(4, 1, 16))


def test_batches_that_call_layers_in_different_orders_are_fitted() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            first, second = (self.one, self.two) if len(x) > 50 else (self.two, self.one)
            result: Tensor = second(torch.relu(first(x)))
            return result

    torch.manual_seed(0)
    net, mix = Either(), torch.randn(2, 8)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    batches = [torch.randn(count, 2) @ mix for count in (60, 40, 60)]
    pressed = tp.press(net, plan, calibration=batches)
    assert unfitted_layers(pressed) == {}
    x = torch.randn(100, 2) @ mix
    assert distance(pressed, net, x) < distance(tp.press(net, plan), net, x)


def test_a_layer_that_some_batches_do_not_call_is_fitted_to_the_others() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rare, self.never = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.always(x)
            return self.rare(y) if len(x) > 50 else y

    torch.manual_seed(0)
    net = Sometimes()
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    pressed = tp.press(net, plan, calibration=[torch.randn(40, 8), torch.randn(60, 8)])
    assert unfitted_layers(pressed) == {"never": "the calibration data do not reach it"}


TRANSPOSED = [
    nn.ConvTranspose1d(6, 8, 5, stride=2, padding=1),
    nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1, output_padding=1, groups=2),
    nn.ConvTranspose2d(6, 8, 3, stride=3, bias=False),
    nn.ConvTranspose3d(6, 8, 2, stride=(1, 2, 1)),
]


@pytest.mark.parametrize("layer", TRANSPOSED, ids=str)
@pytest.mark.parametrize("kind", ["refit", "inputs", "linear"])
def test_transposed_convolutions_are_fitted(layer: nn.Module, kind: Reconstruct) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    net, sizes = nn.Sequential(layer), (5,) * (layer.weight.ndim - 2)
    patterns = torch.randn(2, 6, *sizes)

    def inputs(count: int) -> Tensor:
        return torch.einsum("np,p...->n...", torch.randn(count, 2), patterns) + 1

    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    pressed = tp.press(net, plan, calibration=[inputs(100)], reconstruct=kind)
    x = inputs(100)
    most = 1 if kind == "refit" else 0.95
    assert distance(pressed, net, x) < most * distance(tp.press(net, plan), net, x)


@torch.no_grad()
def test_a_transposed_fit_is_the_best_of_its_rank() -> None:
    """Against brute force: the principal components of all responses, and the bias exactly."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
    x = torch.randn(30, 4, 4, 4) + 1
    plan = tp.plan(net := nn.Sequential(layer), scheme="channel_svd", ranks=3)
    pressed = tp.press(net, plan, calibration=[x])
    y = layer(x).movedim(1, -1).reshape(-1, 6)
    energies = torch.linalg.svdvals((y - y.mean(0)).double()).square()
    error = float((pressed(x) - layer(x)).double().square().sum())
    assert error == pytest.approx(float(energies[3:].sum()), rel=1e-2)
    residual = (pressed(x) - layer(x)).mean((0, 2, 3))
    torch.testing.assert_close(residual, torch.zeros(6), atol=1e-5, rtol=0)
    rows = unfold_inputs(layer, x)
    assert rows.shape == (len(y), 1, 36)


def blobs(count: int, seed: int) -> Tensor:
    """Inputs of 128 numbers that vary in 20 directions and a little in all."""
    mix = torch.randn(20, 128, generator=torch.Generator().manual_seed(98))
    generator = torch.Generator().manual_seed(seed)
    part = torch.randn(count, 20, generator=generator) @ mix
    return part + torch.randn(count, 128, generator=generator)


@pytest.mark.parametrize("kind", ["refit", "linear", "nonlinear"])
def test_wide_layers_are_fitted_by_fewer_rows_than_columns(
    kind: Reconstruct, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 4))
    plan = tp.plan(net, scheme="channel_svd", ranks=6, skip=["2"])
    batches = [blobs(500, seed) for seed in (1, 2)]
    full = tp.press(net, plan, calibration=batches, reconstruct=kind)
    monkeypatch.setattr(samples, "WIDE", 100)
    monkeypatch.setattr(layerwise, "WIDE", 100)
    monkeypatch.setattr(samples, "WIDE_VALUES", 64 * 128)
    caplog.set_level(logging.INFO, "tensorpress.press")
    wide = tp.press(net, plan, calibration=batches, reconstruct=kind)
    assert "layer 0: fitted to a sample of 64 inputs, because each has 128 numbers" in caplog.text
    assert "follows their noise" not in caplog.text
    models = wide, full, tp.press(net, plan)
    by_rows, best, by_weights = (distance(m, net, blobs(500, 3)) for m in models)
    assert best < by_rows < by_weights - (by_weights - best) / 3


def test_moments_in_blocks_fit_wide_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 24))
    plan = tp.plan(net, scheme="channel_svd", ranks=6)
    monkeypatch.setattr(input_moments, "MAX_COLUMNS", 48)
    calibration = tp.Calibration.collect(net, [blobs(500, 1)])
    assert [len(block[0]) for block in calibration.moments["0"].blocks] == [48, 48, 32]
    pressed = tp.press(net, plan, calibration=calibration)
    assert unfitted_layers(pressed) == {}
    x = blobs(500, 2)
    assert distance(pressed, net, x) < distance(tp.press(net, plan), net, x)


@dataclass
class Outcome:
    value: Tensor


class Returning(nn.Module):
    """Three layers, of which the last two are called once the output is taken, or not at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "generator":
            return self.parts(x)
        y = self.second(torch.relu(self.first(x)))
        return {"tuple": (y, None), "dict": {"y": [y]}, "none": None, "dataclass": Outcome(y)}[
            self.kind
        ]

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        for part in x.split(20):
            yield self.second(torch.relu(self.first(part)))


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass", "none", "generator"])
@pytest.mark.parametrize("how", ["norms", "inputs", "nonlinear"])
def test_models_that_return_anything_are_run(kind: str, how: Reconstruct) -> None:
    torch.manual_seed(0)
    net, mix = Returning(kind), torch.randn(2, 8)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    pressed = tp.press(net, plan, calibration=[torch.randn(60, 2) @ mix], reconstruct=how)
    assert unfitted_layers(pressed) == {}
    if how != "norms":
        first = net.first, pressed.first, tp.press(net, plan).first
        x = torch.randn(50, 2) @ mix
        dense, fitted, plain = (layer(x).detach() for layer in first)
        assert float((fitted - dense).norm()) < 0.5 * float((plain - dense).norm())


def test_what_is_not_fitted_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    overrides: dict[str, Entry] = {"2": {"scheme": "tt_weight", "ranks": 2}}
    plan = tp.plan(net, scheme="channel_svd", ranks=4, overrides=overrides)
    pressed = tp.press(net, plan, calibration=[torch.randint(30, (8, 20))])
    reasons = {
        "2": "tt_weight rebuilds its weight from factors that are not fitted",
    }
    assert unfitted_layers(pressed) == reasons
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for name, reason in reasons.items():
        assert f"layer {name}: decomposed by its weight alone, because {reason}" in warnings
    assert unfitted_layers(tp.press(net, plan)) == {}
