import pytest
import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan
from tensorpress.press.press import press
from tensorpress.sensitivity.kfac import kfac_scores


def test_the_score_of_a_last_layer_is_its_error() -> None:
    # The outputs are the responses, so that B = I and what is lost is known exactly.
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(12, 8)), torch.randn(4000, 12)
    scores = kfac_scores(net, [inputs])
    outputs = net(inputs).detach()
    centred = outputs - outputs.mean(0)
    values = torch.linalg.svdvals(centred).square()
    for choice in scores.layers["0"]:
        [rank] = choice.ranks
        assert choice.score == pytest.approx(float(values[rank:].sum() / values.sum()), rel=0.1)


def test_a_layer_that_the_outputs_do_not_depend_on_costs_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(10, 10), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0 * self.unused(x)

    scores = kfac_scores(Net(), [torch.randn(300, 10)])
    assert max(choice.score for choice in scores.layers["unused"]) < 1e-6
    assert max(choice.score for choice in scores.layers["used"]) > 1e-2


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (
            nn.Sequential(nn.Conv2d(4, 12, 3, bias=False), nn.BatchNorm2d(12), nn.Flatten()),
            (4, 6, 6),
        ),
        (nn.Sequential(nn.Conv1d(8, 12, 3, groups=2), nn.ReLU(inplace=True), nn.Flatten()), (8, 9)),
        (nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), (5, 8)),
    ],
)
def test_the_estimate_is_near_what_is_lost(net: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(600, *shape)
    net.eval()
    scores = kfac_scores(net, [inputs])
    choices = [c for c in scores.layers["0"] if c.score > 0]
    choice = choices[len(choices) // 2]
    entry = {"0": {"scheme": choice.scheme, "ranks": choice.ranks}}
    pressed = press(net, plan(net, overrides=entry), calibration=[inputs])
    with torch.no_grad():
        dense, outputs = net(inputs), pressed(inputs)
    lost = float((dense - outputs).square().sum() / (dense - dense.mean(0)).square().sum())
    assert lost / 3 < choice.score < 3 * lost


def test_gradients_are_asked_for_as_before() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 4))
    net[0].weight.requires_grad_(False)
    net.train()
    kfac_scores(net, [torch.randn(100, 10)], of="loss")
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_layers_called_many_times_add_up() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.tanh(self.step(x))
            return x

    scores = kfac_scores(Unrolled(), [torch.randn(200, 6)])
    assert scores.layers["step"]


def test_the_unit_of_an_output_does_not_decide() -> None:
    class TwoHeads(nn.Module):
        """A model whose second output is in another unit."""

        def __init__(self, unit: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(12, 8), nn.Linear(12, 8)
            self.unit = unit

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(x), self.unit * self.second(x)

    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    scores = [kfac_scores(TwoHeads(unit), [x]).layers for unit in (1.0, 1e4)]
    for name in ("first", "second"):
        one, other = ([choice.score for choice in layers[name]] for layers in scores)
        assert one == pytest.approx(other, rel=1e-3)


def test_padding_does_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return (self.layer(x) * attention_mask[..., None]).sum(1)

    torch.manual_seed(0)
    net, x, mask = Tokens(), torch.randn(40, 6, 8), torch.ones(40, 6, dtype=torch.long)
    mask[:, 4:] = 0
    loud = torch.where(mask.bool()[..., None], x, 100 * x)
    quiet, padded = (
        kfac_scores(net, [{"x": value, "attention_mask": mask}]) for value in (x, loud)
    )
    assert quiet.layers == padded.layers


def test_layers_that_are_not_scored_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.up = nn.Linear(16, 16), nn.ConvTranspose1d(16, 8, 3, stride=2)
            self.never = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.frozen(x)
            result: Tensor = self.up(x[..., None])
            return result

    scores = kfac_scores(Partly(), [torch.randn(50, 16)])
    assert set(scores.layers) == {"up"}
    assert "layer never is not scored: the calibration data do not reach it" in caplog.text
    assert "layer frozen is not scored: it is called without gradients" in caplog.text


def test_an_embedding_is_scored_by_the_vectors_of_the_tokens() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(40, 16), nn.Flatten(), nn.Linear(48, 8))
    tokens = torch.randint(40, (3000, 3))
    choices = [c for c in kfac_scores(net, [tokens]).layers["0"] if c.score > 0]
    choice = choices[len(choices) // 2]
    entry = {"0": {"scheme": choice.scheme, "ranks": choice.ranks}}
    pressed = press(net, plan(net, overrides=entry))
    with torch.no_grad():
        dense, outputs = net(tokens), pressed(tokens)
    lost = float((dense - outputs).square().sum() / (dense - dense.mean(0)).square().sum())
    assert lost / 2 < choice.score < 2 * lost


def test_what_has_no_curvature_is_refused() -> None:
    net, data = nn.Linear(6, 4), [torch.randn(20, 6)]
    with pytest.raises(InvalidArgumentError, match="'nonsense'"):
        kfac_scores(net, data, of="nonsense")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="needs logits"):
        kfac_scores(nn.Sequential(net, nn.Flatten(0)), data, of="loss")

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).detach()

    with pytest.raises(InvalidArgumentError, match="no gradient"):
        kfac_scores(Detached(), data)


def test_overflow_names_the_layer() -> None:
    net = nn.Linear(6, 4)
    net.weight.data *= 1e25
    with pytest.raises(InvalidArgumentError, match="layer '"):
        kfac_scores(nn.Sequential(net), [torch.randn(20, 6)])
