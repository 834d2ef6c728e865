"""Errors are those of the factors that are stored, not of the fit before the cast."""

import pytest
import torch
from torch import Tensor, nn

from tensorpress import press_layer
from tensorpress.errors import InvalidArgumentError


def border_rank_weight() -> Tensor:
    """Tensors of rank 2 come as near to this one as one likes, with factors that grow."""
    torch.manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(n, 2))[0].T for n in (8, 8, 3)]
    terms = ([bases[m][1 if m == term else 0] for m in range(3)] for term in range(3))
    return sum(torch.einsum("i,j,k->ijk", *term) for term in terms)


def conv(weight: Tensor, dtype: torch.dtype) -> nn.Conv1d:
    layer = nn.Conv1d(8, 8, 3, bias=False).to(dtype)
    layer.weight.data = weight.to(dtype)
    return layer


@pytest.mark.parametrize("name", ["cp", "cp_nls"])
def test_the_error_of_a_degenerate_fit_is_that_of_its_rounded_factors(name: str) -> None:
    weight = border_rank_weight()
    assert press_layer(conv(weight, torch.float32), name, ranks=(2,)).relative_error < 1e-4
    layer = conv(weight, torch.bfloat16)
    pressed = press_layer(layer, name, ranks=(2,))
    exact = layer.weight.detach().double()
    rebuilt = pressed.double().dense_weight().detach()
    error = float((exact - rebuilt).norm() / exact.norm())
    assert error > 0.02
    assert pressed.relative_error == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("name", ["channel_svd", "svd_weight", "tt_weight", "tucker2"])
def test_errors_in_half_precision_are_those_of_the_weight(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3).half() if name == "tucker2" else nn.Linear(8, 6).half()
    exact = layer.weight.detach().double()
    pressed = press_layer(layer, name, ranks=0.5).double()
    weight = pressed.weight if name.endswith("weight") else pressed.dense_weight()
    error = float((exact - weight.detach()).norm() / exact.norm())
    form = pressed.parametrizations.weight[0] if name.endswith("weight") else pressed
    assert form.relative_error == pytest.approx(error, rel=1e-4)


def test_factors_that_are_worse_than_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorpress.schemes.cast_error.WORST", 0.05)
    with pytest.raises(InvalidArgumentError, match=r"factors cancel.*bfloat16.*cp_corrected"):
        press_layer(conv(border_rank_weight(), torch.bfloat16), "cp", ranks=(2,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["channel_svd", "svd_weight", "tt_weight", "ada_tucker"])
def test_the_largest_weights_of_a_type_give_finite_factors(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30).to(dtype)
    layer.weight.data = torch.rand(30, 40).add(1).div(2).mul(torch.finfo(dtype).max).to(dtype)
    ranks = (3, 3, 3) if name == "ada_tucker" else 0.5
    try:
        pressed = press_layer(layer, name, ranks=ranks)
    except InvalidArgumentError as error:
        assert "infinite" in str(error) or name == "ada_tucker"  # noqa: PT017
        return
    assert all(bool(torch.isfinite(parameter).all()) for parameter in pressed.parameters())
