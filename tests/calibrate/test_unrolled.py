import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

from tensorpress.calibrate.unrolled import unroll

LAYERS = {
    "lstm": lambda: nn.LSTM(5, 7),
    "two layers, both directions": lambda: nn.LSTM(
        5, 7, num_layers=2, bidirectional=True, batch_first=True
    ),
    "projections": lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3),
    "gru": lambda: nn.GRU(5, 7, num_layers=2, bidirectional=True),
    "gru without biases": lambda: nn.GRU(5, 7, bias=False, batch_first=True),
    "rnn": lambda: nn.RNN(5, 7, bidirectional=True),
    "rnn with relu": lambda: nn.RNN(5, 7, nonlinearity="relu"),
}

INPUTS = {
    "batch": torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0)),
    "one example": torch.randn(6, 5, generator=torch.Generator().manual_seed(1)),
    "packed": pack_sequence(
        [torch.linspace(-1, 1, 5 * n).reshape(n, 5) for n in (2, 5, 3)], enforce_sorted=False
    ),
}

CELLS = {
    "lstm": lambda: nn.LSTMCell(5, 7),
    "gru": lambda: nn.GRUCell(5, 7),
    "rnn": lambda: nn.RNNCell(5, 7, nonlinearity="relu"),
}


def tensors(output: object) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]


def assert_equal(one: object, other: object) -> None:
    pairs = zip(tensors(one), tensors(other), strict=True)
    for x, y in pairs:
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@torch.no_grad()
def test_outputs_and_states_are_those_of_torch(make, x):
    layer = make().eval()
    unrolled, _ = unroll(layer)
    expected, last = layer(x)
    output, state = unrolled(x)
    assert_equal((output, state), (expected, last))
    initial = tuple(s + 0.5 for s in last) if isinstance(last, tuple) else last + 0.5
    assert_equal(unrolled(x, initial), layer(x, initial))


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
@torch.no_grad()
def test_cells_step_as_those_of_torch(make):
    cell = make()
    unrolled, names = unroll(cell)
    assert names == ["weight_ih", "weight_hh"]
    for x in (torch.randn(4, 5), torch.randn(5)):
        state = cell(x)
        assert_equal(unrolled(x), state)
        assert_equal(unrolled(x, state), cell(x, state))


def test_weights_are_layers_that_hooks_see_at_every_step():
    model = nn.ModuleDict({"rnn": nn.GRU(5, 7)})
    unrolled, names = unroll(model)
    assert names == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    seen = []
    hidden = unrolled.get_submodule("rnn.weight_hh_l0")
    hidden.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    output, _ = unrolled["rnn"](torch.randn(6, 4, 5))
    assert len(seen) == 6
    assert not seen[0].any()
    torch.testing.assert_close(torch.stack(seen[1:]), output[:-1])


def test_tensors_are_those_of_the_model_which_stays_as_it_is():
    model = nn.Sequential(nn.LSTM(5, 7), nn.Identity())
    unrolled, _ = unroll(model)
    assert type(model[0]) is nn.LSTM
    assert isinstance(unrolled[0], nn.LSTM)
    with torch.no_grad():
        unrolled.get_submodule("0.weight_hh_l0").weight.zero_()
    assert not model[0].weight_hh_l0.any()
    assert unrolled[0].weight_hh_l0.device == model[0].weight_hh_l0.device


def test_layers_with_a_forward_pass_of_their_own_stay():
    class Twice(nn.LSTM):
        def forward(self, x, hx=None):
            return super().forward(2 * x, hx)

    model = nn.Sequential(Twice(5, 7))
    assert unroll(model) == (model, [])
