from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate import input_moments as moments_file
from tensorpress.calibrate.batches import collect_batches
from tensorpress.calibrate.input_moments import input_moments
from tensorpress.calibrate.patches import can_unfold, output_rows, unfold_inputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.layer_spec import describe_layer

LAYERS = [
    (nn.Linear(6, 4, bias=False), (3, 6)),
    (nn.Linear(6, 4, bias=False), (3, 5, 6)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False), (2, 4, 11)),
    (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2, bias=False), (2, 4, 7, 6)),
    (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect", bias=False), (2, 3, 6, 6)),
    (nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False), (2, 4, 5, 5)),
    (nn.Conv3d(2, 4, 2, stride=(1, 2, 1), bias=False), (2, 2, 4, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False), (2, 4, 11)),
    (
        nn.ConvTranspose2d(
            4, 6, (5, 2), (3, 1), padding=(2, 1), output_padding=(1, 0), groups=2, bias=False
        ),
        (2, 4, 4, 5),
    ),
    (nn.ConvTranspose2d(2, 3, 2, stride=3, padding=1, output_padding=2, bias=False), (2, 4, 4)),
    (nn.ConvTranspose3d(2, 4, 2, stride=(1, 2, 1), bias=False), (2, 2, 3, 4, 3)),
]


def canonical(layer: nn.Module) -> Tensor:
    """Return the kernel of a layer as (groups, out, columns)."""
    return layer_kernel(layer, describe_layer(layer)).flatten(2)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_rows_times_the_weight_are_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    result = torch.einsum("pgc,goc->pgo", unfold_inputs(layer, x), canonical(layer))
    torch.testing.assert_close(result, output_rows(layer, layer(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_moments_give_the_mean_squared_response(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net, x = nn.Sequential(layer), torch.randn(shape)
    result = input_moments(net, collect_batches([x, x], net))["0"]
    [second] = result.means()
    kernel = canonical(layer).double()
    rows = unfold_inputs(layer, x)
    assert result.rows == 2 * len(rows)
    mean_square = layer(x).detach().double().square().sum() / len(rows)
    assert float((kernel @ second * kernel).sum()) == pytest.approx(float(mean_square), rel=1e-5)


def test_other_modules_have_no_rows() -> None:
    for module in (nn.Embedding(4, 2), nn.BatchNorm1d(3), nn.ReLU()):
        assert not can_unfold(module)


def test_a_choice_of_positions_is_drawn_from_all() -> None:
    conv, x = nn.Conv2d(1, 1, 1), torch.arange(400.0).reshape(1, 1, 20, 20)
    rows = unfold_inputs(conv, x, max_rows=200, random=torch.Generator().manual_seed(0))
    assert rows.shape == (200, 1, 1)
    assert rows.min() < 40
    assert rows.max() > 360


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.q(x) * self.k(x))
        return scores


def test_layers_with_the_same_input_share_their_moments() -> None:
    net = Attention()
    x = torch.randn(8, 6)
    result = input_moments(net, collect_batches([x], net))
    assert result["q"] is result["k"]
    assert result["q"] is not result["out"]
    torch.testing.assert_close(result["k"].means()[0][0], (x.T @ x / 8).double())


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.repeated, self.never = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.repeated(self.first(x)) + self.repeated(x)
        return result


def test_a_layer_that_is_called_twice_sums_both_inputs() -> None:
    net, x = Repeated(), torch.randn(5, 3)
    result = input_moments(net, collect_batches([x], net))
    assert (result["first"].rows, result["repeated"].rows) == (5, 10)
    assert "never" not in result


def test_wide_layers_have_moments_within_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_file, "MAX_COLUMNS", 4)
    net, x = nn.Sequential(nn.Linear(10, 2)), torch.randn(7, 10)
    blocks = input_moments(net, collect_batches([x], net))["0"].means()
    assert [block.shape for block in blocks] == [(1, 4, 4), (1, 4, 4), (1, 2, 2)]
    torch.testing.assert_close(blocks[1][0], (x[:, 4:8].T @ x[:, 4:8] / 7).double())


@pytest.mark.parametrize("columns", [8192, 65_536])
def test_moments_and_rows_of_wide_layers_are_bounded(columns: int) -> None:
    net = nn.Sequential(nn.Conv1d(columns // 64, 2, 64))
    [batch] = collect_batches([torch.randn(1, columns // 64, 63 + 5000)], net)
    sums = input_moments(net, [batch])["0"]
    assert sum(block.numel() for block in sums.blocks) <= moments_file.WIDE_MOMENTS
    assert sums.rows == min(5000, moments_file.MAX_VALUES // columns)


def test_an_infinite_input_names_the_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match="layer '0'"):
        input_moments(net, collect_batches([torch.full((1, 2), torch.inf)], net))


def test_inputs_whose_squares_are_infinite_name_the_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match=r"'0' are too large: their squares"):
        input_moments(net, collect_batches([torch.full((4, 2), 1e30)], net))


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    input_moments(net, collect_batches([torch.randn(4, 1, 5, 5)], net))
    assert net.training
    assert not net[0]._forward_pre_hooks
    assert int(net[1].num_batches_tracked) == 0


@pytest.mark.parametrize("context", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_contexts_of_the_model_do_not_reach_the_sums(context: Any) -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            with context:
                return super().forward(x)

    net, x = Net(nn.Linear(3, 2)), torch.randn(9, 3)
    moments = input_moments(net, collect_batches([x, x], net))["0"]
    # The sums are those of single precision, whatever precision the model computes in.
    torch.testing.assert_close(moments.blocks[0][0].float(), 2 * (x.T @ x))
    assert not moments.blocks[0].is_inference()
