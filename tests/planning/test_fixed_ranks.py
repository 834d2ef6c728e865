import pytest
from torch import nn

from tensorpress import plan
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import zoo
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import weight_spec


@pytest.fixture
def lenet():
    return zoo.build("lenet5")


def only(made):
    [layer] = made.layers
    return layer


def test_modes_and_ranks_are_taken(lenet):
    made = plan(
        lenet, scheme="ada_tucker", overrides={"conv2": {"modes": [50, 25, 20], "ranks": [5, 4, 3]}}
    )
    assert only(made) == LayerPlan(
        "conv2", "ada_tucker", weight_spec((50, 20, 5, 5)), (5, 4, 3), {"modes": (50, 25, 20)}
    )
    assert made.unpressed_weights == dict.fromkeys(
        ["conv1", "ip1", "ip2"], "not named in overrides"
    )


def test_modes_are_aligned_with_the_axes_and_ranks_follow(lenet):
    made = plan(
        lenet,
        scheme="ada_tucker",
        overrides={"ip1": {"modes": [40, 25, 20, 20], "ranks": [6, 5, 4, 4]}},
    )
    assert only(made).modes == (40, 20, 25, 20)
    assert only(made).ranks == (6, 4, 5, 4)


def test_one_number_is_a_rank_for_every_mode(lenet):
    made = plan(lenet, scheme="ada_tucker", overrides={"ip2": {"modes": [25, 20, 10], "ranks": 4}})
    assert only(made).ranks == (4, 4, 4)


def test_original_modes_are_the_weights_axes(lenet):
    made = plan(
        lenet,
        scheme="ada_tucker",
        overrides={"conv2": {"modes": "original", "ranks": [8, 8, 3, 3]}},
    )
    assert only(made).modes == (50, 20, 5, 5)
    assert only(made).ranks == (8, 8, 3, 3)


def test_a_diagonal_core(lenet):
    made = plan(
        lenet,
        scheme="ada_tucker",
        overrides={"conv2": {"modes": "original", "ranks": 30, "diagonal": True}},
    )
    assert only(made).options == {"modes": (50, 20, 5, 5), "diagonal": True}
    assert only(made).factor_params == 30 * (1 + 50 + 20 + 5 + 5)


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_goes_before_a_pattern_in_any_order(order, caplog):
    entries = {
        "layer1.*.conv*": {"modes": [16, 16, 9], "ranks": [12, 12, 6]},
        "layer1.2.conv2": {"modes": [48, 48], "ranks": 5},
    }
    overrides = dict(list(entries.items())[::order])
    made = plan(zoo.build("resnet20"), scheme="ada_tucker", overrides=overrides)
    assert [layer.name for layer in made.layers] == [
        f"layer1.{block}.conv{conv}" for block in range(3) for conv in (1, 2)
    ]
    assert made.layers[-1].modes == (48, 48)
    assert {layer.factor_params for layer in made.layers[:-1]} == {1302}
    assert not caplog.messages


def test_of_two_patterns_the_later_one_counts_and_a_dead_one_is_named(lenet, caplog):
    entries = {"ip1": {"ranks": 3}, "re:ip1": {"ranks": 4}, "ip*": {"ranks": 5}, "*": {"ranks": 2}}
    made = plan(lenet, scheme="channel_svd", overrides=entries)
    assert {layer.name: layer.ranks for layer in made.layers} == {
        **dict.fromkeys(["conv1", "conv2", "ip2"], (2,)),
        "ip1": (3,),
    }
    assert caplog.messages == [
        f"override {pattern!r} has no effect: other overrides apply to all of its layers"
        for pattern in ("re:ip1", "ip*")
    ]


def test_layers_of_lower_order_share_a_core_through_modes_of_one(lenet):
    layers = {
        "conv1": {"modes": [25, 20], "ranks": [6, 5, 4]},
        "conv2": {"modes": [50, 25, 20], "ranks": [6, 5, 4]},
    }
    made = plan(lenet, scheme="scada_tucker", overrides=layers)
    first, second = made.layers
    assert first.modes == (25, 20, 1)
    assert first.ranks == second.ranks == made.shared_core == (6, 5, 4)
    assert first.factor_params == 25 * 6 + 20 * 5 + 4
    assert made.params == made.other_params + 120 + first.factor_params + second.factor_params


def test_a_shared_core_may_exceed_a_mode(lenet):
    layers = {
        "conv1": {"modes": [20, 5, 5], "ranks": 7},
        "ip2": {"modes": [25, 20, 10], "ranks": 7},
    }
    assert plan(lenet, scheme="scada_tucker", overrides=layers).shared_core == (7, 7, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modes": [26, 20], "ranks": 5}, "520 entries, but the weight 20×1×5×5 has 500"),
        ({"modes": [25, 20], "ranks": [5, 21]}, "rank 2 of .5, 21. must be from 1 to 20"),
        ({"modes": [25, 20], "ranks": 0}, "at least 1"),
        ({"modes": [25, 20], "ranks": [5, 5, 5]}, "expected 2 ranks"),
        ({"modes": [25, 20], "ranks": [4, 5], "diagonal": True}, "equal ranks"),
        ({"modes": [25.0, 20], "ranks": 5}, "modes must be whole numbers of at least 1"),
        ({"modes": [25, 20], "ranks": "5"}, "unknown rank rule '5'"),
        ({"modes": 500, "ranks": 5}, "modes must be whole numbers of at least 1, not 500"),
        ({"modes": "orignal", "ranks": 5}, "did you mean 'original'"),
        ({"modes": [25, 20], "rank": 5}, "unknown key 'rank': did you mean 'ranks'"),
        ({"modes": [25, 20]}, "the override needs ranks"),
        ({"ranks": 5}, ".* it needs modes"),
    ],
)
def test_what_does_not_fit_names_the_layer(lenet, given, message):
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        plan(lenet, scheme="ada_tucker", overrides={"conv1": given})
    assert str(caught.value).startswith("layer 'conv1': ")


def test_two_shapes_of_one_shared_core_are_refused(lenet):
    layers = {"conv1": {"modes": [25, 20], "ranks": 4}, "ip2": {"modes": [100, 50], "ranks": 5}}
    with pytest.raises(InvalidArgumentError, match="must have equal ranks, not 4×4, 5×5"):
        plan(lenet, scheme="scada_tucker", overrides=layers)


def test_a_pattern_that_matches_nothing_names_the_nearest(lenet):
    given = {"modes": [25, 20], "ranks": 5}
    with pytest.raises(InvalidArgumentError, match="'conv3': did you mean 'conv"):
        plan(lenet, scheme="ada_tucker", overrides={"conv3": given})
    with pytest.raises(InvalidArgumentError, match=r"'fc\*'"):
        plan(lenet, scheme="ada_tucker", budget="params=3000", skip=["fc*"])


def test_a_layer_that_cannot_be_pressed_is_refused_with_the_reason():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    with pytest.raises(InvalidArgumentError, match="'1' cannot be pressed: its weight is tied"):
        plan(net, scheme="ada_tucker", overrides={"1": {"modes": [6, 6], "ranks": 2}})
