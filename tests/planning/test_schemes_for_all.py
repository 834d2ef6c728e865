"""Plans of the schemes that take ranks: one scheme for all layers, entries for some."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress import LayerPlan, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.models import zoo
from tensorpress.planning import SCHEMES
from tensorpress.planning.layers import PRESSED
from tensorpress.schemes.channel_svd import ChannelSVD
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.registry import rank_schemes, scheme


@pytest.fixture
def lenet():
    return zoo.build("lenet5")


def ranks_of(made):
    return {layer.name: layer.ranks for layer in made.layers}


def test_every_scheme_can_be_named():
    assert set(SCHEMES) == {"ada_tucker", "scada_tucker", *rank_schemes()}
    assert all(scheme.summary for scheme in SCHEMES.values())


def test_a_fraction_of_the_largest_ranks(lenet):
    made = plan(lenet, scheme="tucker2", ranks=0.4)
    assert ranks_of(made) == {"conv1": (1, 8), "conv2": (8, 20), "ip1": (200, 200), "ip2": (4, 4)}
    assert made.layers[1] == LayerPlan("conv2", "tucker2", describe_layer(lenet.conv2), (8, 20))
    assert made.layers[1].shape == (50, 20, 5, 5)
    assert made.layers[1].dense_params == 25_000
    assert made.layers[1].factor_params == 20 * 8 + 8 * 20 * 25 + 20 * 50
    assert (made.dense_params, made.unpressed_weights) == (431_080, {})


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(rank_schemes())),
    fraction=st.floats(0.01, 1.0),
    channels=st.integers(1, 12),
    data=st.data(),
)
def test_parameters_are_those_of_the_pressed_model(name, fraction, channels, data):
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    net = nn.ModuleList(
        [
            nn.Conv2d(channels, 2 * channels, 3, groups=groups),
            nn.Linear(30, 40, bias=data.draw(st.booleans())),
            nn.Embedding(50, 12),
            nn.ConvTranspose1d(6, channels, 4),
            nn.LayerNorm(30),
        ]
    )
    made = plan(net, scheme=name, ranks=fraction, overrides={"1": {"scheme": "channel_svd"}})
    assert made.dense_params == count_params(net)
    for layer in made.layers:
        if layer.name != "1":
            assert layer.factor_params < layer.dense_params
    assert {layer.name for layer in made.layers} | set(made.unpressed_weights) == {
        "0",
        "1",
        "2",
        "3",
    }
    assert count_params(press(net, made, init="glorot")) == made.params


def test_layers_that_stay_dense_say_why(lenet):
    whole = plan(lenet, scheme="channel_svd", ranks=1.0, overrides={"conv2": {"ranks": 3}})
    assert ranks_of(whole) == {"conv2": (3,)}
    assert (
        whole.unpressed["ip2"] == "ranks (10,) give 5,100 parameters instead of 5,000: not smaller"
    )
    one = plan(lenet, scheme="spatial_svd", ranks=5)
    assert "spatial_svd cannot take it" in one.unpressed["ip1"]
    many = plan(lenet, scheme="tucker2", ranks=8)
    assert ranks_of(many) == {"conv2": (8, 8), "ip1": (8, 8), "ip2": (8, 8)}
    assert many.unpressed_weights == {"conv1": "rank 1 of (8, 8) must be from 1 to 1, got 8"}
    some = plan(lenet, scheme="tucker2", ranks=0.1, skip=["ip*"])
    assert some.unpressed_weights == dict.fromkeys(["ip1", "ip2"], "skipped by 'ip*'")


def test_ranks_are_those_a_train_can_have():
    net = nn.Sequential(nn.Linear(64, 64))
    made = plan(net, scheme="tensor_train", overrides={"0": {"ranks": 1.0}})
    [layer] = made.layers
    assert layer.ranks == scheme("tensor_train").largest_ranks(describe_layer(net[0]))


def noisy(rank, rows=60, columns=80):
    layer = nn.Linear(columns, rows)
    noise = torch.Generator().manual_seed(rank)
    low = torch.randn(rows, rank, generator=noise) @ torch.randn(rank, columns, generator=noise)
    layer.weight.data = low + 0.1 * torch.randn(rows, columns, generator=noise)
    return layer


def test_rules_look_at_the_weights_once_a_layer(monkeypatch):
    net = nn.Sequential(noisy(3), nn.ReLU(), noisy(7, 40, 60))
    looked = []
    spectra = ChannelSVD.spectra

    def counted(self, spec, kernel):
        looked.append(spec.outputs)
        return spectra(self, spec, kernel)

    monkeypatch.setattr(ChannelSVD, "spectra", counted)
    made = plan(net, scheme="channel_svd", ranks="evbmf")
    assert ranks_of(made) == {"0": (3,), "2": (7,)}
    assert looked == [60, 40]
    assert ranks_of(plan(net, scheme="channel_svd", ranks="energy:0.99")) == ranks_of(made)


def test_no_rule_without_a_need_looks_at_the_weights():
    with torch.device("meta"):
        net = zoo.build("resnet20")
    assert len(plan(net, scheme="tucker2", ranks=0.3).layers) == 20
    with pytest.raises(InvalidArgumentError, match=r"layer 'conv1': .*no values"):
        plan(net, scheme="tucker2", ranks="evbmf")


def test_entries_say_more_about_some_layers(lenet):
    layers = {
        "ip*": {"scheme": "channel_svd"},
        "ip2": {"scheme": "tt_weight", "ranks": 3},
        "conv2": {"ranks": [2, 3]},
    }
    made = plan(lenet, scheme="tucker2", ranks=0.2, overrides=layers)
    assert [(p.name, p.scheme, p.ranks) for p in made.layers] == [
        ("conv1", "tucker2", (1, 4)),
        ("conv2", "tucker2", (2, 3)),
        ("ip1", "channel_svd", (100,)),
        ("ip2", "tt_weight", (3, 3, 3)),
    ]
    assert count_params(press(lenet, made)) == made.params


def test_layers_of_both_kinds(lenet):
    given = {
        "conv2": {"ranks": 5},
        "ip1": {"scheme": "ada_tucker", "modes": [500, 800], "ranks": 9},
    }
    made = plan(lenet, scheme="tucker2", overrides=given)
    assert [layer.scheme for layer in made.layers] == ["tucker2", "ada_tucker"]
    assert made.unpressed_weights == dict.fromkeys(["conv1", "ip2"], "not named in overrides")
    pressed = press(lenet, made)
    assert count_params(pressed) == made.params
    assert pressed(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    text = str(made)
    for word in ("tucker2", "ada_tucker", "500×800", "9×9", "5×5", f"{made.params:,}"):
        assert word in text


def test_an_entry_is_done_even_where_it_makes_a_layer_larger():
    net = nn.Sequential(nn.Linear(10, 10))
    made = plan(net, scheme="channel_svd", overrides={"0": {"ranks": 10}})
    assert made.params == 210 > made.dense_params


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv1": {"ranks": 8}}, "layer 'conv1': rank 1 of .8, 8. must be from 1 to 1"),
        ({"conv1": {"ranks": [1, 2, 3]}}, "layer 'conv1': expected 2 ranks"),
        ({"conv1": {"ranks": 0}}, "layer 'conv1': ranks must be at least 1"),
        ({"conv1": {"ranks": "evbfm"}}, "layer 'conv1': unknown rank rule 'evbfm': did you mean"),
        ({"conv1": {}}, "layer 'conv1': the override needs ranks"),
        ({"conv1": {"rank": 8}}, "layer 'conv1': unknown key 'rank': did you mean 'ranks'"),
        ({"conv1": {"ranks": 2, "modes": [9]}}, "layer 'conv1': unknown key 'modes'"),
        ({"conv1": 8}, "layer 'conv1': expected a mapping such as .*, got 8"),
        ({"ip1": {"scheme": "spatial_svd", "ranks": 2}}, "layer 'ip1': spatial_svd cannot take"),
        ({"ip1": {"scheme": "cp", "ranks": "evbmf"}}, "layer 'ip1': "),
        ({"conv2": {"scheme": "cp", "ranks": "evbmf"}}, "layer 'conv2': .*needs the spectra"),
        ({"ip1": {"scheme": "tuker2", "ranks": 2}}, "layer 'ip1': unknown scheme 'tuker2'"),
        ({"ip1": {"scheme": "ada_tucker", "ranks": 2}}, "layer 'ip1': .* it needs modes"),
        (
            {
                "ip1": {
                    "scheme": "tensor_train",
                    "row_modes": [9, 9],
                    "column_modes": [9],
                    "ranks": 2,
                }
            },
            "layer 'ip1': .*do not fit its weight 500×800",
        ),
        ({"ip3": {"ranks": 2}}, "unknown layer or pattern 'ip3': did you mean"),
    ],
)
def test_entries_that_cannot_be_done(lenet, layers, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plan(lenet, scheme="tucker2", overrides=layers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": "tucker2"}, "give a budget, ranks for tucker2, or overrides"),
        ({"scheme": "ada_tucker", "ranks": 8}, "ada_tucker takes no ranks .*: give a budget of"),
        ({"scheme": "scada_tucker", "ranks": 8, "budget": "params=9"}, "scada_tucker takes no ra"),
        ({"scheme": "tucker2", "ranks": 0}, "ranks must be at least 1"),
        ({"scheme": "tucker2", "ranks": 1.5}, "1.5"),
        ({"scheme": "tucker2", "ranks": "all"}, "unknown rank rule 'all'"),
        ({"scheme": "tucker2", "ranks": 600}, "no layer that can be pressed; 'conv1': rank 1 of"),
        ({"scheme": "cp", "ranks": "evbmf"}, "layer 'conv1': .*needs the spectra"),
        ({"scheme": "tucker2", "ranks": 0.5, "skip": ["conv7"]}, "unknown layer or pattern"),
    ],
)
def test_what_does_not_say_how_far_to_press(lenet, given, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plan(lenet, **given)


def test_weights_that_are_not_finite_name_the_layer(lenet):
    lenet.ip1.weight.data[0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match=r"layer 'ip1': .*NaN or infinite"):
        plan(lenet, scheme="tucker2", ranks="evbmf")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.b.weight = self.a.weight
        self.c.bias = nn.Parameter(torch.zeros(20))
        self.again = self.c.bias
        self.free = nn.Linear(20, 20)


def test_ties_stay_dense():
    net = Tied()
    made = plan(net, scheme="channel_svd", ranks=3)
    assert ranks_of(made) == {"free": (3,)}
    assert made.unpressed_weights == {
        "a": "its weight is tied to 'b.weight'",
        "b": "its weight is tied to 'a.weight'",
        "c": "its bias is tied to 'again'",
    }
    with pytest.raises(
        InvalidArgumentError, match=r"layer 'c': .*by channel_svd: its bias is tied"
    ):
        plan(net, scheme="channel_svd", overrides={"c": {"ranks": 3}})


def test_what_other_modules_read_stays_dense():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    net = nn.Sequential(nn.Linear(16, 16), layer)
    made = plan(net, scheme="channel_svd", ranks=2)
    assert ranks_of(made) == {"0": (2,)}
    assert made.unpressed["1.linear1"] == "nn.TransformerEncoderLayer reads its weight directly"
    assert "MultiheadAttention" in made.unpressed["1.self_attn.out_proj"]
    x = torch.randn(2, 3, 16)
    rebuilt = plan(net, scheme="tt_weight", ranks=0.5)
    assert "1.linear1" in ranks_of(rebuilt)
    for one in (made, rebuilt):
        with torch.no_grad():  # the fast path
            assert press(net, one)(x).isfinite().all()


def test_hooks_and_own_forward_passes_stay_dense():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.weight.sum()

    hooked = nn.Linear(20, 20)
    hooked.register_forward_hook(lambda *_: None)
    net = nn.Sequential(hooked, Odd(20, 20), nn.Bilinear(9, 9, 9), nn.Linear(20, 20))
    made = plan(net, scheme="channel_svd", ranks=3)
    assert ranks_of(made) == {"3": (3,)}
    assert "hooks" in made.unpressed["0"]
    assert "overridden forward pass" in made.unpressed["1"]
    assert "only layers of these classes" in made.unpressed["2"]


def test_what_is_pressed_is_not_pressed_again(lenet):
    once = press(lenet, plan(lenet, scheme="tucker2", overrides={"conv2": {"ranks": 5}}))
    again = plan(once, scheme="channel_svd", ranks=0.2)
    assert ranks_of(again).keys() == {"conv1", "ip1", "ip2"}
    assert again.unpressed_weights == {"conv2": PRESSED}
    assert count_params(press(once, again)) == again.params


def test_a_module_used_twice_is_planned_once():
    layer = nn.Linear(40, 40)
    made = plan(nn.Sequential(layer, nn.ReLU(), layer), scheme="channel_svd", ranks=4)
    assert ranks_of(made) == {"0": (4,)}
