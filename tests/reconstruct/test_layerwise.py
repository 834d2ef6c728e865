"""Pressing by responses: through `tensorpress.press`."""

import logging

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.fixed_ranks import Entry
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.batch_norm import norm_statistics
from tensorpress.reconstruct.layerwise import Reconstruct


class Block(nn.Module):
    """A residual block: one convolution before a ReLU, one before a sum."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 12, 3, padding=1, bias=not norms)
        self.norm = nn.BatchNorm2d(12) if norms else nn.Identity()
        self.second = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.second(torch.relu(self.norm(self.first(x))))
        found: Tensor = self.head((x + y).mean((2, 3)))
        return found


@pytest.fixture(params=[False, True], ids=["plain", "norms"])
def block(request: pytest.FixtureRequest) -> Block:
    torch.manual_seed(0)
    model = Block(request.param)
    if request.param:
        with torch.no_grad():
            model.train()
            model(images(64, seed=9))
            nn.init.normal_(model.norm.weight)
            nn.init.normal_(model.norm.bias)
    return model.eval()


def images(count: int, seed: int) -> Tensor:
    """Images with few patterns, so that responses matter other than weights."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    weights = torch.randn(count, 4, generator=generator)
    return torch.einsum("np,pchw->nchw", weights, patterns)


def loss(model: nn.Module, dense: nn.Module) -> float:
    x = images(200, seed=5)
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean() / dense(x).square().mean())


def planned(block: nn.Module, scheme: str = "channel_svd") -> Plan:
    targets = ("first", "second", "stem")
    return tp.plan(block, scheme=scheme, ranks=PARTS[scheme], targets=targets)


PARTS = {
    "channel_svd": 0.3,
    "spatial_svd": 0.3,
    "tucker2": 0.3,
    "cp": 0.08,
    "low_rank_sparse": 0.2,
}


BATCHES = [images(50, seed=1), images(50, seed=2), images(50, seed=3)]


@pytest.mark.parametrize("scheme", PARTS)
def test_responses_are_kept_better_than_by_weights(block: Block, scheme: str) -> None:
    plan = planned(block, scheme)
    by_weights = loss(tp.press(block, plan), block)
    for kind in ("refit", "inputs", "linear", "nonlinear"):
        pressed = tp.press(block, plan, calibration=BATCHES, reconstruct=kind)
        most = 0.7 if kind == "nonlinear" else 0.98
        assert loss(pressed, block) < most * by_weights, kind


def test_full_rank_changes_nothing(block: Block) -> None:
    full: dict[str, Entry] = {name: {"ranks": 1.0} for name in ("first", "second")}
    plan = tp.plan(block, scheme="channel_svd", overrides=full)
    for kind in ("norms", "refit", "inputs", "linear", "nonlinear"):
        pressed = tp.press(block, plan, calibration=BATCHES, reconstruct=kind)
        assert loss(pressed, block) < 1e-6, kind


def _moved(dense: nn.Module, model: nn.Module, x: Tensor) -> tuple[float, float]:
    """How far means and logarithms of deviations of the channels of outputs are apart."""
    with torch.no_grad():
        ys = [m.eval()(x).movedim(1, 0).flatten(1) for m in (dense, model)]
    dense.train()
    means, stds = [y.mean(1) for y in ys], [y.std(1).log() for y in ys]
    return float((means[0] - means[1]).norm()), float((stds[0] - stds[1]).norm())


def test_norms_alone_have_the_statistics_of_the_pressed_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    for _ in range(30):
        net(images(64, seed=9))
    plan = tp.plan(net, scheme="tt_weight", overrides={"3": {"ranks": 2}})
    pressed = tp.press(net, plan, calibration=[images(500, seed=1)], reconstruct="norms")
    plain = tp.press(net, plan)
    torch.testing.assert_close(pressed[3].weight, plain[3].weight)
    x = images(500, seed=5)
    means, ratios = zip(*(_moved(net, m, x) for m in (pressed, plain)), strict=True)
    assert means[0] < 0.2 * means[1]
    assert ratios[0] < 0.2 * ratios[1]
    assert net.training


def test_a_pass_that_fails_leaves_the_statistics_of_norms() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net(torch.randn(50, 4) + 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held = collect_batches([torch.randn(20, 4), torch.randn(20, 5)], net)
    with pytest.raises(InvalidArgumentError):
        norm_statistics(net, held)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert net[1].momentum == 0.1


def test_the_model_given_stays_as_it_is(block: Block) -> None:
    before = {name: value.clone() for name, value in block.state_dict().items()}
    tp.press(block, planned(block), calibration=BATCHES, reconstruct="nonlinear")
    for name, value in block.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not block.training


def test_in_place_gives_the_same(block: Block) -> None:
    plan = planned(block)
    copy = tp.press(block, plan, calibration=BATCHES, reconstruct="nonlinear")
    tp.press(block, plan, calibration=BATCHES, reconstruct="nonlinear", inplace=True)
    for found, expected in zip(block.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_linear_layers_and_layers_that_are_not_fitted(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16, bias=False), nn.Flatten(), nn.Linear(48, 4)
    )
    mix = torch.randn(5, 16)
    batches = [torch.randn(40, 3, 5) @ mix for _ in range(4)]
    plan = tp.plan(
        net, scheme="channel_svd", ranks=4, overrides={"4": {"scheme": "tt_weight", "ranks": 2}}
    )
    caplog.set_level(logging.INFO, "tensorpress.press")
    pressed = tp.press(net, plan, calibration=batches, reconstruct="nonlinear")
    assert "layer 4: decomposed by its weight alone" in caplog.text
    assert "layer 0: fitted linearly, because gelu follows" in caplog.text
    assert "layer 2: fitted linearly, because flatten follows" in caplog.text
    x = torch.randn(100, 3, 5) @ mix
    plain = tp.press(net, plan)
    with torch.no_grad():
        errors = [float((m[:3](x) - net[:3](x)).square().mean()) for m in (pressed, plain)]
    assert errors[0] < errors[1]


def test_a_train_of_a_linear_layer_starts_from_its_weight() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    plan = tp.plan(net, scheme="tensor_train", ranks=3, skip=["2"])
    pressed = tp.press(net, plan, calibration=[torch.randn(300, 64)])
    for found, expected in zip(pressed.parameters(), tp.press(net, plan).parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_weight_of_zeros_is_fitted() -> None:
    net = nn.Sequential(nn.Linear(8, 8))
    nn.init.zeros_(net[0].weight)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    pressed = tp.press(net, plan, calibration=[torch.randn(100, 8)])
    assert torch.isfinite(torch.tensor(pressed[0].relative_error))
    x = torch.randn(3, 8)
    torch.testing.assert_close(pressed(x), net(x), atol=1e-6, rtol=0)


def test_few_rows_are_told_with_numbers(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(50, 20))
    plan = tp.plan(net, scheme="channel_svd", ranks=4)
    pressed = tp.press(net, plan, calibration=[torch.randn(30, 50)])
    assert "layer 0: each response has 50 inputs, and calibration data have 30 rows" in caplog.text
    assert "fewer than 200" in caplog.text
    for parameter in pressed.parameters():
        assert bool(torch.isfinite(parameter).all())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["inputs", "linear"])
def test_rank_deficient_inputs_are_fine(
    kind: Reconstruct, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10))
    x = torch.randn(3000, 2) @ torch.randn(2, 12)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    pressed = tp.press(net, plan, calibration=[x], reconstruct=kind)
    torch.testing.assert_close(pressed(x), net(x), atol=1e-2, rtol=1e-2)
    assert "layer 0: calibration data vary in only 2 of the 12 directions" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("kind", ["inputs", "linear"])
@pytest.mark.parametrize("alike", [False, True])
def test_data_that_say_little_do_no_harm(kind: Reconstruct, alike: bool) -> None:
    """Of few rows, or of many that are all alike, on inputs that were not among them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 48))
    inputs = torch.randn(2000, 64) @ (torch.randn(64, 64) * torch.logspace(0, -1.5, 64))
    given = inputs[:1].expand(800, -1) if alike else inputs[:20]
    plan = tp.plan(net, scheme="channel_svd", ranks=12)
    models = tp.press(net, plan, calibration=[given], reconstruct=kind), tp.press(net, plan)
    losses = [float((model(inputs) - net(inputs)).norm()) for model in models]
    most = 0.9 if not alike else 1.05 if kind == "inputs" else 1.4  # a bias that suits one input
    assert losses[0] < most * losses[1]


def test_what_does_not_go_together_is_told(block: Block) -> None:
    plan = planned(block)
    with pytest.raises(InvalidArgumentError, match="reconstruct='linear' needs calibration data"):
        tp.press(block, plan, reconstruct="linear")
    with pytest.raises(InvalidArgumentError, match=r"'nonlinaer'.*nonlinear"):
        tp.press(block, plan, calibration=BATCHES, reconstruct="nonlinaer")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="draws factors at random"):
        tp.press(block, plan, calibration=BATCHES, init="kaiming")
    with pytest.raises(InvalidArgumentError, match="in one process"):
        tp.press(block, plan, calibration=BATCHES, processes=2)
    with pytest.raises(InvalidArgumentError, match="batches is empty"):
        tp.press(block, plan, calibration=[])
    with pytest.raises(InvalidArgumentError, match="an input of layer 'stem' is NaN"):
        tp.press(block, plan, calibration=[torch.full((2, 3, 8, 8), torch.nan)])
