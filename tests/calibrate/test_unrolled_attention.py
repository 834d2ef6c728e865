import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.calibrate.unrolled import unroll, unrolled_inplace
from tensorpress.reconstruct.unfitted import unfitted_layers
from tensorpress.sensitivity.kfac import kfac_scores
from tensorpress.sensitivity.response_energy import response_energies

OPTIONS = {
    "packed": {},
    "batch first": {"batch_first": True},
    "without biases": {"bias": False},
    "other widths": {"kdim": 6, "vdim": 10},
    "other widths without biases": {"kdim": 6, "vdim": 10, "bias": False},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "one example"])
@torch.no_grad()
def test_outputs_and_weights_are_those_of_torch(options, batch):
    layer = nn.MultiheadAttention(8, 2, **options).eval()
    sizes = [(5, 8), (7, options.get("kdim", 8)), (7, options.get("vdim", 8))]
    x = [torch.randn(n, *batch, width) for n, width in sizes]
    if batch and layer.batch_first:
        x = [part.transpose(0, 1) for part in x]
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[0, 3] = True
    padding = torch.zeros(*batch, 7, dtype=torch.bool)
    padding[..., -1] = True
    unrolled, names = unroll(layer)
    packed = "kdim" not in options
    assert names == (["in_proj_weight"] if packed else [f"{c}_proj_weight" for c in "qkv"])
    torch.testing.assert_close(unrolled(*x), layer(*x))
    how = {"attn_mask": mask, "key_padding_mask": padding, "average_attn_weights": False}
    torch.testing.assert_close(unrolled(*x, **how), layer(*x, **how))
    torch.testing.assert_close(unrolled(*x, need_weights=False), layer(*x, need_weights=False))
    if packed:
        torch.testing.assert_close(unrolled(x[0], x[0], x[0]), layer(x[0], x[0], x[0]))


@torch.no_grad()
def test_a_transformer_computes_the_same_and_is_torchs_again():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model, x = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
        torch.randn(3, 5, 16),
    )
    state, expected = {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    seen = []
    with unrolled_inplace(model) as names:
        assert names == [f"layers.{place}.self_attn.in_proj_weight" for place in range(2)]
        hook = model.get_submodule(names[1]).register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(model(x), expected)
        hook.remove()
    assert seen == [1]
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model(x), expected)


class Attends(nn.Module):
    """Attention whose inputs have four directions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def data(seed):
    torch.manual_seed(seed)
    examples = torch.randn(60, 6, 4)
    return examples @ torch.randn(4, 24, generator=torch.Generator().manual_seed(9))


def test_attention_is_scored_and_fitted_by_its_inputs():
    model = Attends().eval()
    x, other = data(0), data(1)
    scores = [kfac_scores(model, [x], scheme="auto"), response_energies(model, [x])]
    for layers in (score.layers for score in scores):
        by_rank = {choice.ranks: choice.score for choice in layers["attention.in_proj_weight"]}
        assert by_rank[(5,)] < 1e-3 * by_rank[(3,)]  # of four directions
        assert "attention.out_proj" in layers
    names = ["attention.in_proj_weight", "attention.out_proj"]
    plan = tp.plan(model, scheme="svd_weight", ranks=5, targets=names)
    assert [layer.name for layer in plan.layers] == names
    fitted, plain = tp.press(model, plan, calibration=[x]), tp.press(model, plan)
    assert unfitted_layers(fitted) == {}
    errors = [tp.fidelity(model, pressed, [other]).error for pressed in (fitted, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert tp.compress(model, "params=60%", [x], refine=False).fidelity.error < 0.5


def test_coding_knows_the_inputs_of_attention(tmp_path):
    model, x, other = Attends().eval(), data(0), data(1)
    errors = []
    for calibration in ([x], None):
        tp.encode(model, tmp_path / "a.tpz", bits=3.5, calibration=calibration)
        decoded = Attends().eval()
        decoded.load_state_dict(tp.decode(tmp_path / "a.tpz"))
        errors.append(tp.fidelity(model, decoded, [other]).error)
    assert errors[0] < 0.7 * errors[1]
