import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.measure import count_macs, count_params
from tensorpress.measure.cost import evaluation_mode
from tensorpress.models.zoo import NETWORKS, build


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(30, 10), (30,), 30 * 10),
        (nn.Linear(30, 10, bias=False), (7, 30), 7 * 30 * 10),
        (nn.Conv1d(4, 6, 3), (4, 20), 18 * 6 * 4 * 3),
        (nn.Conv2d(3, 8, 3), (3, 10, 10), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 10, 10), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(6, 8, 3, dilation=2), (6, 10, 12), 6 * 8 * 8 * 6 * 9),
        (nn.Conv2d(6, 9, (1, 5), groups=3), (6, 10, 10), 10 * 6 * 9 * 2 * 5),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 5, 5), 3 * 3 * 8 * 9),
        (nn.Conv3d(2, 4, 2), (2, 4, 4, 4), 27 * 4 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 7), 5 * 7 * 4 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 7), 5 * 7 * 4 * 3 * 9),
        (nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()), (5,), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int, batch: int) -> None:
    assert count_macs(layer, [torch.zeros(batch, *shape)]) == macs


def test_macs_of_lenet5() -> None:
    conv1, conv2 = 24 * 24 * 20 * 25, 8 * 8 * 50 * 20 * 25
    expected = conv1 + conv2 + 800 * 500 + 500 * 10
    assert count_macs(build("lenet5"), [torch.zeros(4, 1, 28, 28)]) == expected == 2_293_000


@pytest.mark.parametrize("name", ["lenet5", "lenet300100", "resnet20"])
@pytest.mark.parametrize("scheme", ["ada_tucker", "scada_tucker"])
def test_a_weight_that_is_rebuilt_takes_the_same_macs(name: str, scheme: str) -> None:
    dense = build(name)
    params = count_params(dense) // 8
    pressed = tp.press(
        dense, tp.plan(dense, scheme=scheme, budget=f"params={params}"), init="kaiming"
    )
    inputs = [torch.zeros(2, *NETWORKS[name].input_shape)]
    macs = count_macs(dense, inputs)
    assert count_macs(pressed, inputs) == macs
    assert count_macs(tp.materialize(pressed), inputs) == macs
    assert count_params(pressed) <= params


def test_macs_of_attention() -> None:
    length, width, hidden = 10, 32, 64
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True)
    products = 2 * length * length * width
    linear = length * (4 * width * width + 2 * width * hidden)
    assert count_macs(layer, [torch.zeros(3, length, width)]) == products + linear
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("layer", "gates"),
    [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)],
)
def test_macs_of_recurrent_layers(layer: type[nn.RNNBase], gates: int) -> None:
    length, inputs, hidden = 7, 12, 20
    x = [torch.zeros(3, length, inputs)]
    one = gates * hidden * (inputs + hidden)
    assert count_macs(layer(inputs, hidden, batch_first=True), x) == length * one
    second = gates * hidden * (2 * hidden + hidden)
    deep = layer(inputs, hidden, 2, batch_first=True, bidirectional=True)
    assert count_macs(deep, x) == length * 2 * (one + second)
    assert torch.backends.mkldnn.enabled


def test_macs_of_projections_cells_and_bilinear() -> None:
    length, inputs, hidden, output = 7, 12, 20, 8
    x = torch.zeros(3, length, inputs)
    lstm = nn.LSTM(inputs, hidden, proj_size=output, batch_first=True)
    step = 4 * hidden * (inputs + output) + hidden * output
    assert count_macs(lstm, [x]) == length * step
    assert count_macs(nn.LSTMCell(inputs, hidden), [x[:, 0]]) == 4 * hidden * (inputs + hidden)
    assert count_macs(nn.GRUCell(inputs, hidden), [x[:, 0]]) == 3 * hidden * (inputs + hidden)
    bilinear = nn.Bilinear(inputs, 5, 9)
    pair = [x, torch.zeros(3, length, 5)]
    assert count_macs(bilinear, pair) == length * 9 * (inputs * 5 + 5)


def test_macs_of_several_inputs() -> None:
    class Product(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left @ right

    inputs = [torch.zeros(5, 3, 4), torch.zeros(5, 4, 6)]
    assert count_macs(Product(), inputs) == 3 * 4 * 6


def test_shared_parameters_count_once() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert count_params(tied) == 16 + 4 + 4
    assert count_params(nn.BatchNorm1d(7)) == 14
    assert count_params(nn.ReLU()) == 0


def test_modes_are_restored_one_by_one() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model.train()
    model[1].eval()
    model[1][1].train()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert [module.training for module in model.modules()] == before


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, [torch.randn(8, 3)])
    tp.measure(model, torch.randn(8, 3))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
