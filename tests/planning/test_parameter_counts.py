"""The parameter counts printed in the tables of ADA-Tucker (Zhong et al. 2019, appendix A).

They are counted on the pressed networks. Where a printed number does not follow from the shapes
printed beside it, the case has both and says so. Some cores there exceed a mode of their layer,
which a plan made by hand may do although `plan` refuses it; hence the plans made by hand.
"""

import pytest

from tensorpress import LayerPlan, Plan, press
from tensorpress.decompose import tucker_params
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.models import zoo
from tensorpress.planning import plan_from_model
from tensorpress.schemes.layer_spec import weight_spec

USUAL = {
    "conv1": ((25, 20), (5, 5)),
    "conv2": ((50, 25, 20), (5, 5, 5)),
    "ip1": ((40, 25, 20, 20), (5, 5, 5, 5)),
    "ip2": ((25, 20, 10), (5, 5, 5)),
}
SMALLER = USUAL | {
    "conv2": ((50, 25, 20), (4, 4, 4)),
    "ip1": ((40, 25, 20, 20), (4, 4, 4, 4)),
    "ip2": ((25, 20, 10), (4, 4, 4)),
}


def pressed(name, layers, scheme="ada_tucker", **flags):
    """Press a network without decomposing its weights; the plan must count as the model does."""
    model = zoo.build(name)
    shapes = {key: tuple(model.get_submodule(key).weight.shape) for key in layers}
    plans = tuple(
        LayerPlan(key, scheme, weight_spec(shapes[key]), ranks, {"modes": modes, **flags})
        for key, (modes, ranks) in layers.items()
    )
    dense = count_params(model)
    plan = Plan(scheme, plans, {}, dense - sum(layer.dense_params for layer in plans))
    press(model, plan, init="glorot", inplace=True)
    assert count_params(model) == plan.params
    assert plan_from_model(model).layers == plans
    return model, plan


def lenet5_params(layers, **changed):
    """Count LeNet-5, with its 580 biases, as Tables 4 to 9 do; None keeps a layer dense."""
    layers = {name: given for name, given in (layers | changed).items() if given}
    return count_params(pressed("lenet5", layers)[0])


@pytest.mark.parametrize(
    ("conv1", "printed"),
    [
        (None, 3230),
        (((25, 20), (5, 5)), 2980),
        (((20, 5, 5), (4, 4, 4)), 2914),
        (((20, 1, 5, 5), (3, 3, 3, 3)), 2904),
        (((5, 5, 5, 2, 2, 1), (2, 2, 2, 2, 2, 2)), 2834),
    ],
)
def test_table_4(conv1, printed):
    assert lenet5_params(USUAL, conv1=conv1) == printed


def test_table_4_fifth_order_is_misprinted():
    """Printed is 2810; 2⁵ + 2·(5 + 5 + 5 + 2 + 2) = 70 makes it 2800."""
    assert lenet5_params(USUAL, conv1=((5, 5, 5, 2, 2), (2, 2, 2, 2, 2))) == 2800


@pytest.mark.parametrize(
    ("conv2", "printed"),
    [
        (None, 27380),
        (((250, 100), (20, 10)), 8580),
        (((50, 25, 20), (5, 5, 5)), 2980),
        (((50, 20, 5, 5), (4, 4, 4, 4)), 2956),
        (((10, 10, 10, 5, 5), (3, 3, 3, 3, 3)), 2743),
        (((10, 10, 5, 5, 5, 2), (2, 2, 2, 2, 2, 2)), 2518),
    ],
)
def test_table_5(conv2, printed):
    assert lenet5_params(USUAL, conv2=conv2) == printed


@pytest.mark.parametrize(
    ("fc1", "printed"),
    [
        (((800, 500), (10, 10)), 14930),
        (None, 401_830),  # printed as 402K
        (((40, 25, 20, 20), (5, 5, 5, 5)), 2980),
        (((25, 16, 10, 10, 10), (4, 4, 4, 4, 4)), 3138),
        # The core is printed with five entries; the number is that of six.
        (((25, 10, 8, 8, 5, 5), (3, 3, 3, 3, 3, 3)), 2742),
    ],
)
def test_table_6(fc1, printed):
    assert lenet5_params(USUAL, ip1=fc1) == printed


def test_table_6_third_order_is_misprinted():
    """500×25×20 are 250,000 entries and FC1 has 400,000; 4680 counts the sizes as printed."""
    assert 1830 + tucker_params((500, 25, 20), (5, 5, 5)) == 4680
    with pytest.raises(InvalidArgumentError, match="250,000 entries"):
        lenet5_params(USUAL, ip1=((500, 25, 20), (5, 5, 5)))
    assert lenet5_params(USUAL, ip1=((500, 40, 20), (5, 5, 5))) == 4755


@pytest.mark.parametrize(
    ("fc2", "printed"),
    [
        (None, 7580),
        (((500, 10), (6, 6)), 5676),
        (((25, 20, 10), (5, 5, 5)), 2980),
        (((8, 5, 5, 5, 5), (3, 3, 3, 3, 3)), 2907),
    ],
)
def test_table_7(fc2, printed):
    """Its row for FC1 repeats FC2's original layer; the numbers are those of FC1 as in Table 4."""
    assert lenet5_params(USUAL, ip2=fc2) == printed


def test_table_7_fourth_order_is_misprinted():
    """20×10×10×5 are 10,000 entries and FC2 has 5,000; 3016 counts the sizes as printed."""
    assert 2580 + tucker_params((20, 10, 10, 5), (4, 4, 4, 4)) == 3016
    with pytest.raises(InvalidArgumentError, match="10,000 entries"):
        lenet5_params(USUAL, ip2=((20, 10, 10, 5), (4, 4, 4, 4)))
    assert lenet5_params(USUAL, ip2=((10, 10, 10, 5), (4, 4, 4, 4))) == 2976


def test_table_7_sixth_order_is_misprinted():
    """Printed is 2700; 2⁶ + 2·(5 + 5 + 5 + 5 + 4 + 2) = 116 makes it 2696."""
    assert lenet5_params(USUAL, ip2=((5, 5, 5, 5, 4, 2), (2, 2, 2, 2, 2, 2))) == 2696


@pytest.mark.parametrize(
    ("ranks", "printed"),
    [((1, 9), 2198), ((2, 8), 2210), ((4, 4), 2180), ((6, 2), 2186), ((8, 1), 2212)],
)
def test_table_8(ranks, printed):
    assert lenet5_params(SMALLER, conv1=((25, 20), ranks)) == printed


def test_table_8_core_3x5_is_misprinted():
    """Printed is 2175; 3·5 + 25·3 + 20·5 = 190 makes it 2174."""
    assert lenet5_params(SMALLER, conv1=((25, 20), (3, 5))) == 2174


@pytest.mark.parametrize("c", [3, 4, 5, 6, 7])
def test_table_9(c):
    modes = {
        "conv1": (20, 1, 5, 5),
        "conv2": (50, 20, 5, 5),
        "ip1": (40, 25, 20, 20),
        "ip2": (25, 20, 5, 2),
    }
    layers = {name: (sizes, (c,) * 4) for name, sizes in modes.items()}
    ada, plan = pressed("lenet5", layers)
    totals = {"conv1": 31 * c, "conv2": 80 * c, "ip1": 105 * c, "ip2": 52 * c}
    assert {p.name: p.factor_params - c**4 for p in plan.layers} == totals
    assert count_params(ada) == 4 * c**4 + 268 * c + 580
    scada, plan = pressed("lenet5", layers, "scada_tucker")
    assert {p.name: p.factor_params for p in plan.layers} == totals
    assert count_params(scada) == c**4 + 268 * c + 580


def test_table_11():
    """Its rows count the biases; without them four of six round to other numbers."""
    layers = {
        "conv1": ((96, 25), (12, 12)),
        "conv2": ((64, 32, 25), (9, 9, 9)),
        "conv3": ((64, 64, 25), (11, 11, 11)),
        "conv4": ((128, 64, 25), (11, 11, 11)),
        "conv5": ((256, 128, 25), (11, 11, 11)),
        "fc": ((64, 64, 10), (9, 9, 9)),
    }
    printed = ["1.6K", "1.9K", "3.1K", "3.8K", "6.1K", "2.0K"]
    model, plan = pressed("cifar-cnn", layers)
    biases = [model.get_submodule(name).bias.numel() for name in layers]
    rows = [p.factor_params + bias for p, bias in zip(plan.layers, biases, strict=True)]
    assert [f"{row / 1000:.1f}K" for row in rows] == printed
    weights = sum(p.factor_params for p in plan.layers)
    assert weights == 17_947
    assert sum(p.dense_params for p in plan.layers) / weights == pytest.approx(68, abs=0.5)
    assert plan.dense_params / plan.params == pytest.approx(66, abs=0.5)


RESNET_20 = [
    *[((16, 16, 9), (12, 12, 6), 2304, 1302)] * 6,
    ((18, 16, 16), (12, 10, 10), 4608, 1736),
    *[((12, 12, 8, 8), (8, 8, 6, 6), 9216, 2592)] * 5,
    ((32, 24, 24), (24, 16, 16), 18432, 7680),
    *[((9, 8, 8, 8, 8), (6, 6, 6, 6, 6), 36864, 8022)] * 5,
]


def test_table_12():
    """The convolutions of the blocks; the first convolution and the linear layer stay dense."""
    names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    layers = {name: row[:2] for name, row in zip(names, RESNET_20, strict=True)}
    _, plan = pressed("resnet20", layers)
    counted = [(p.dense_params, p.factor_params) for p in plan.layers]
    assert counted == [row[2:] for row in RESNET_20]
    dense, stored = map(sum, zip(*counted, strict=True))
    assert dense / stored == pytest.approx(3.80, abs=0.005)


# What is printed in thousands is cut off in some rows and rounded in others.
WIDE_RESNET = [
    ((16, 16, 10, 9), (10, 10, 6, 6), 23_040, "23K", 4_034, "4K"),
    *[((24, 24, 20, 20), (12, 12, 12, 12), 230_400, "230K", 21_792, "22K")] * 7,
    ((80, 80, 72), (36, 36, 36), 460_800, "460K", 55_008, "55K"),
    *[((32, 32, 30, 30), (16, 16, 16, 16), 921_600, "921K", 67_520, "67K")] * 7,
    ((40, 40, 36, 32), (18, 18, 18, 18), 1_843_200, "1843K", 107_640, "108K"),
    *[((48, 48, 40, 40), (20, 20, 20, 20), 3_686_400, "3686K", 163_520, "163K")] * 7,
]


def test_table_13():
    """The 24 convolutions of the 12 blocks.

    Not in the table: the first convolution, the three 1×1 convolutions of the shortcuts and the
    linear layer. Their 0.2 million parameters are what lies between the ratio of the rows, 18.7,
    and that of the whole network's parameters to the rows' cores and matrices, 18.8.
    """
    names = [f"block{g}.layer.{b}.conv{c}" for g in (1, 2, 3) for b in range(4) for c in (1, 2)]
    layers = {name: row[:2] for name, row in zip(names, WIDE_RESNET, strict=True)}
    _, plan = pressed("wrn28-10", layers)
    assert [(p.dense_params, p.factor_params) for p in plan.layers] == [
        (row[2], row[4]) for row in WIDE_RESNET
    ]
    for _, _, *counts in WIDE_RESNET:
        for count, printed in zip(counts[::2], counts[1::2], strict=True):
            assert printed in (f"{count // 1000}K", f"{round(count / 1000)}K")
    dense, stored = (sum(row[i] for row in WIDE_RESNET) for i in (2, 4))
    assert dense / stored == pytest.approx(18.69, abs=0.005)
    assert plan.dense_params / stored == pytest.approx(18.84, abs=0.005)
