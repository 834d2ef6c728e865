import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tensorpress as tp


class Tagger(nn.Module):
    """A network around a recurrent layer whose inputs have few directions."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer
        width = layer.hidden_size * (1 + layer.bidirectional)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0]


MODELS = {
    "lstm": lambda: Tagger(nn.LSTM(24, 24, num_layers=2, batch_first=True)),
    "gru": lambda: Tagger(nn.GRU(24, 24, bidirectional=True, batch_first=True)),
    "cell": Decoder,
}


RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell)


def narrow_inputs() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(160, 6, 6, generator=random) @ torch.randn(6, 24, generator=random)


def error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_recurrent_weights_are_fitted_to_their_inputs(make):
    torch.manual_seed(0)
    dense, x = make().eval(), narrow_inputs()
    plan = tp.plan(
        dense, x[:1], scheme="svd_weight", ranks=7, skip=["head"] * hasattr(dense, "head")
    )
    plain = tp.press(dense, plan)
    fitted = tp.press(dense, plan, calibration=[x[:120]])
    assert error(fitted, dense, x[120:]) < 0.6 * error(plain, dense, x[120:])
    assert list(fitted.state_dict()) == list(plain.state_dict())
    [kind] = [type(m).__bases__[0] for m in fitted.modules() if isinstance(m, RECURRENT)]
    assert kind in RECURRENT
    assert not [name for name, m in fitted.named_modules() if getattr(m, "unfitted", None)]


def test_weights_that_stay_dense_are_those_of_the_model_again():
    model = nn.Sequential(nn.LSTM(24, 24))
    plan = tp.plan(
        model,
        scheme="svd_weight",
        overrides={"0.weight_ih_l0": {"ranks": 20}},
        ranks=4,
        skip=["0.weight_hh_l0"],
    )
    pressed = tp.press(model, plan, calibration=[narrow_inputs().transpose(0, 1)], inplace=True)
    assert pressed is model
    assert isinstance(model[0].weight_hh_l0, nn.Parameter)
    x = torch.randn(5, 2, 24)
    before = model(x)[0]
    with torch.no_grad():
        model[0].weight_hh_l0.mul_(2)
        model[0].bias_hh_l0.add_(1)
    assert not torch.allclose(model(x)[0], before)


def test_what_fails_midway_leaves_the_layer_of_torch():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            if type(self.rnn) is not nn.GRU:
                raise ValueError("no")
            return self.rnn(x)[0]

    model = Odd()
    plan = tp.plan(model, scheme="svd_weight", ranks=4)
    with pytest.raises(ValueError, match="no"):
        tp.press(model, plan, calibration=[torch.randn(5, 40, 24)], inplace=True)
    assert type(model.rnn) is nn.GRU
    assert len(tree_leaves(model.rnn(torch.randn(5, 2, 24)))) == 2
