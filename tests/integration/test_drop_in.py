"""A pressed layer in the place of its dense one: attributes, calls, and the tools of torch."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import tensorpress as tp
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.registry import rank_schemes, scheme

SCHEMES = tuple(rank_schemes())
CHAINS = tuple(name for name in SCHEMES if scheme(name).form == "layer")
LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (5, 12)),
    "embedding": (lambda: nn.Embedding(10, 6, padding_idx=1, sparse=False), None),
    "conv1d": (lambda: nn.Conv1d(6, 8, 5, stride=2, groups=2, padding_mode="circular"), (2, 6, 19)),
    "conv2d": (lambda: nn.Conv2d(6, 8, (3, 4), stride=(1, 2), padding=(2, 1)), (2, 6, 7, 8)),
    "conv2d same": (lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2), (2, 6, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, bias=False), (1, 4, 5, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3), (2, 4, 7)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=1, output_padding=1),
        (2, 4, 5, 6),
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, dilation=2), (1, 4, 3, 3, 3)),
}
LIMITED = (  # trains of matrices, and weights that are rebuilt, are no TorchScript
    *(("tensor_train", kind) for kind in ("linear", "embedding")),
    *(("tt_conv", kind) for kind in LAYERS),
)


def make(kind):
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    return build(), torch.tensor([[1, 9, 0]]) if shape is None else torch.randn(shape)


def takes(name, kind):
    return scheme(name).refusal(describe_layer(make(kind)[0])) is None


PAIRS = [(name, kind) for name in CHAINS for kind in LAYERS if takes(name, kind)]
every_pair = pytest.mark.parametrize(("name", "kind"), PAIRS)
TRANSPOSED = [(name, kind) for name, kind in PAIRS if kind.startswith("transposed")]


def public(layer):
    return {
        key: value
        for key, value in vars(layer).items()
        if not key.startswith("_") and key != "training"
    }


class Around(nn.Module):
    """Reads the layer as the front of a speech network does, and gives its input by name."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=x)


@every_pair
def test_it_answers_what_the_dense_layer_does(name, kind):
    layer, _ = make(kind)
    pressed = tp.press_layer(layer, name, 0.5)
    for copy in (pressed, deepcopy(pressed)):
        for key, value in public(layer).items():
            assert getattr(copy, key) == value, key
    assert len(public(layer)) >= 2


def test_every_kind_of_layer_is_answered_for():
    kinds = {type(make(kind)[0]) for kind in LAYERS}
    assert len(kinds) == 8


def test_a_network_that_reads_its_layers_runs():
    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv1d(8, 16, 3, padding=1)
            self.conv2 = nn.Conv1d(16, 16, 3, stride=2, padding=1)
            self.table = nn.Embedding(20, 16, padding_idx=0)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            steps = x.shape[-1] // self.conv1.stride[0] // self.conv2.stride[0]
            positions = torch.arange(steps) % self.table.num_embeddings
            y = self.conv2(self.conv1(x)).mT + self.table(positions)
            return self.head(y.reshape(-1, self.head.in_features))

    torch.manual_seed(0)
    net, x = Front(), torch.randn(2, 8, 12)
    pressed = tp.press(
        net,
        tp.plan(
            net,
            scheme="channel_svd",
            ranks=1.0,
            overrides={key: {"ranks": 1.0} for key in ("conv1", "conv2", "table", "head")},
        ),
    )
    torch.testing.assert_close(pressed(x), net(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.jit.script(pressed)(x), pressed(x))


@every_pair
def test_it_is_called_by_name(name, kind):
    layer, x = make(kind)
    pressed = tp.press_layer(layer, name, 0.5)
    assert torch.equal(pressed(input=x), pressed(x))


@pytest.mark.parametrize(("name", "kind"), TRANSPOSED)
def test_a_transposed_convolution_makes_every_size_that_the_dense_one_makes(name, kind):
    layer, x = make(kind)
    pressed, order = tp.press_layer(layer, name, 0.5), len(layer.kernel_size)
    dense = tp.unpress_layer(pressed)
    # Without output padding, and with the most that the stride allows.
    least = layer(
        x,
        [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                x.shape[2:],
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.kernel_size,
                strict=True,
            )
        ],
    ).shape[2:]
    most = [size + step - 1 for size, step in zip(least, layer.stride, strict=True)]
    for sizes in (list(least), most, [*x.shape[:2], *most], torch.Size(most)):
        expected = dense(x, output_size=sizes)
        result = pressed(x, output_size=sizes)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        assert list(result.shape[-order:]) == list(sizes)[-order:]
    for sizes in ([size + step for size, step in zip(most, layer.stride, strict=True)], most[1:]):
        with pytest.raises(ValueError, match="output"):
            dense(x, output_size=sizes)
        with pytest.raises(ValueError, match="output"):
            pressed(x, output_size=sizes)


def test_output_size_in_torchscript():
    class Up(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.up = layer

        def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
            return self.up(x, size)

    layer, x = make("transposed2d")
    pressed = Up(tp.press_layer(layer, "tucker2", 0.5))
    scripted = torch.jit.script(pressed)
    for size in ([9, 10], [10, 11]):
        torch.testing.assert_close(scripted(x, size), pressed(x, size))


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair not in LIMITED])
def test_torchscript(name, kind, tmp_path):
    layer, x = make(kind)
    net = Around(tp.press_layer(layer, name, 0.5)).eval()
    torch.jit.script(net).save(tmp_path / "net.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), net(x))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", LAYERS)
def test_tracing(name, kind):
    if not takes(name, kind):
        return
    layer, x = make(kind)
    net = Around(tp.press_layer(layer, name, 0.5)).eval()
    graph = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(graph(x), net(x))
    torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x))


def norm(channels, order):
    torch.manual_seed(1)
    result = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[order](channels)
    for tensor in (result.weight, result.bias, result.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(result.running_var, 0.5, 2)
    return result.eval()


FOLDED = [pair for pair in PAIRS if pair[1] != "embedding" and pair not in LIMITED]


@pytest.mark.parametrize(("name", "kind"), FOLDED)
def test_a_batch_norm_is_folded_into_it(name, kind):
    layer, x = make(kind)
    pressed = tp.press_layer(layer, name, 0.5).eval()
    after = norm(pressed(x).shape[1], x.ndim - 2)
    fold: Any = fuse_linear_bn_eval if kind == "linear" else fuse_conv_bn_eval
    options = {"transpose": True} if kind.startswith("transposed") else {}
    folded = fold(pressed, after, **options)
    torch.testing.assert_close(folded(x), after(pressed(x)), atol=2e-3, rtol=2e-3)
    assert folded.ranks == pressed.ranks
    # Its file and its dense layer have the bias that came with the norm.
    assert folded.spec.bias
    dense = tp.unpress_layer(folded)
    torch.testing.assert_close(dense(x), folded(x), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("name", "kind"), [("tensor_train", "linear"), ("tt_conv", "conv2d")])
def test_a_batch_norm_that_a_train_cannot_take_is_refused(name, kind):
    layer, x = make(kind)
    pressed = tp.press_layer(layer, name, 0.5).eval()
    after = norm(pressed(x).shape[1], x.ndim - 2)
    fold: Any = fuse_linear_bn_eval if kind == "linear" else fuse_conv_bn_eval
    with pytest.raises(tp.InvalidArgumentError, match="fold batch norms into it, before pressing"):
        fold(pressed, after)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed2d"])
def test_a_batch_norm_is_not_folded_into_a_weight_that_is_rebuilt(kind):
    layer, x = make(kind)
    pressed = tp.press_layer(layer, "tt_weight", 2).eval()
    expected, after = pressed(x), norm(pressed(x).shape[1], x.ndim - 2)
    fold: Any = fuse_linear_bn_eval if kind == "linear" else fuse_conv_bn_eval
    options = {"transpose": True} if kind.startswith("transposed") else {}
    with pytest.raises(tp.InvalidArgumentError, match=r"by tt_weight is rebuilt .*materialize"):
        fold(pressed, after, **options)
    assert torch.equal(pressed(x), expected)
    folded = fold(tp.materialize(pressed), after, **options)
    torch.testing.assert_close(folded(x), after(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["channel_svd", "channel_pruning", "tensor_train"])
def test_a_bias_is_assigned(name):
    layer, x = nn.Linear(12, 8, bias=False), torch.randn(5, 12)
    pressed = tp.press_layer(layer, name, 0.5)
    before = pressed(x)
    pressed.bias = nn.Parameter(torch.arange(8.0))
    torch.testing.assert_close(pressed(x), before + torch.arange(8.0))
    assert pressed.spec.bias
    pressed.bias = None
    assert torch.equal(pressed(x), before)
    with pytest.raises(tp.InvalidArgumentError, match=r"a bias of shape \(8,\), got \(12,\)"):
        pressed.bias = nn.Parameter(torch.zeros(12))


def test_dynamic_quantization():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(64, 32)
    for name in ("channel_svd", "channel_pruning", "low_rank_sparse", "tensor_train"):
        pressed = tp.press(net, tp.plan(net, scheme=name, ranks=0.25)).eval()
        quantized = torch.ao.quantization.quantize_dynamic(pressed, {nn.Linear})
        expected = pressed(x)
        assert (quantized(x) - expected).norm() < 0.05 * expected.norm()
        weight = quantized[0].weight
        assert weight.dtype == torch.float32
        assert (weight - pressed[0].weight).norm() < 0.05 * pressed[0].weight.norm()


class Nested(nn.Module):
    """Takes a dict, a list and a number, and returns a dataclass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, streams, others, scale=1.0):
        y = torch.relu(self.first(streams["a"] + others[0])) * scale
        return Outputs(self.second(y + others[1]["b"]), [y, None])


@dataclass
class Outputs:
    scores: torch.Tensor
    others: list


def nested(batch=6):
    return {"a": torch.randn(batch, 8)}, [torch.randn(batch, 8), {"b": torch.randn(batch, 16)}]


def named(batch=6):
    return dict(zip(("streams", "others"), nested(batch), strict=True))


@pytest.mark.parametrize(
    "make_inputs",
    [nested, lambda batch=6: (*nested(batch), 0.5), lambda batch=6: {**named(batch), "scale": 2}],
    ids=["nested", "a number", "by name"],
)
def test_inputs_of_any_structure(make_inputs):
    net, inputs = Nested(), make_inputs()
    for budget in ("macs=60%", "params=60%"):
        plan = tp.plan(net, inputs, scheme="channel_svd", budget=budget)
        assert plan.macs < plan.dense_macs == 8 * 16 + 16 * 4
    assert tp.measure(net, inputs).macs == 8 * 16 + 16 * 4
    batches = [make_inputs(4), make_inputs(5)]
    if not isinstance(inputs, dict):
        batches = [(batch, None) for batch in batches]
    pressed = tp.press(net, plan, example_inputs=inputs, calibration=batches)
    assert plan.params == sum(p.numel() for p in pressed.parameters())
    # What is fitted to batches does not depend on how they are put together.
    assert len(tp.Calibration.collect(net, batches).moments) == 2


def test_inputs_that_cannot_be_are_refused():
    net = nn.Linear(8, 4)
    for inputs, message in (
        (torch.zeros(0, 8), r"no examples: \(0, 8\) torch.float32"),
        ({"input": torch.zeros(0, 8)}, r"no examples: input=\(0, 8\)"),
        (({"x": [torch.zeros(2, 0, 8), torch.zeros(0)]},), "no examples"),
        ((), "have no Tensor"),
        ((1.5, "x"), "have no Tensor"),
        (3.0, "got float"),
    ):
        with pytest.raises(tp.InvalidArgumentError, match=message):
            tp.plan(net, inputs, scheme="channel_svd", ranks=2)
        with pytest.raises(tp.InvalidArgumentError, match=message):
            tp.measure(net, inputs)
    with pytest.raises(tp.InvalidArgumentError, match=r"fails on .*\[input=\(2, 9\) torch"):
        tp.plan(net, {"input": torch.zeros(2, 9)}, scheme="channel_svd", ranks=2)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    for batch, message in (
        (torch.zeros(0, 8), "a batch must be a Tensor of inputs, .* no examples"),
        ((torch.zeros(2, 8), 0.5), "got tuple of Tensor, float"),
        ((torch.zeros(2, 8),), "got tuple of Tensor"),
        (((), None), "have no Tensor"),
    ):
        with pytest.raises(tp.InvalidArgumentError, match=message):
            tp.press(net, plan, calibration=[batch])


def test_labels_of_any_structure_are_ignored():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(20, 8)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    expected = tp.press(net, plan, calibration=[x])
    for labels in ([{"boxes": torch.zeros(3, 4)}], {"class": 3}, torch.zeros(20), None):
        result = tp.press(net, plan, calibration=[(x, labels)])
        for one, other in zip(result.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def compiled(net) -> Any:
    return torch.compile(net, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(compiled(net)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_planned_under_its_names(wrap):
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(20, 8)
    wrapped = wrap(net)
    plan = tp.plan(wrapped, x, scheme="channel_svd", ranks=2)
    assert plan == tp.plan(net, x, scheme="channel_svd", ranks=2)
    assert [layer.name for layer in plan.layers] == ["0", "2"]
    calibration = tp.Calibration.collect(wrapped, [x])
    pressed = tp.press(wrapped, plan, calibration=calibration)
    assert pressed.state_dict().keys() == tp.press(net, plan).state_dict().keys()
    assert type(net[0]) is nn.Linear
    assert wrap(pressed)(x).shape == (20, 4)
    scores = tp.sensitivity(wrapped, [x], scheme="channel_svd", candidates=2)
    assert list(scores.layers) == ["0", "2"]


def test_a_wrapped_model_is_pressed_in_place():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(20, 8)
    wrapped = torch.compile(net, backend="eager")
    wrapped(x)
    pressed = tp.press(wrapped, tp.plan(net, scheme="channel_svd", ranks=2), inplace=True)
    assert pressed is net
    torch.testing.assert_close(wrapped(x), pressed(x))


def test_a_pressed_model_that_does_not_run_names_the_layer():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 16)

        def forward(self, x):
            assert self.up.weight.shape == (16, 8)
            return self.up(x) if isinstance(self.up, nn.Linear) else self.up.missing

    net, x = nn.Sequential(nn.Linear(8, 8), Inner()), torch.randn(3, 8)
    plan = tp.plan(net, scheme="channel_svd", ranks=2)
    assert tp.press(net, plan)[1].up.in_features == 8  # nothing is known to run it on
    for known in ({"example_inputs": x}, {"calibration": [x]}):
        with pytest.raises(
            tp.InvalidArgumentError,
            match=r"fails on .*\(3, 8\).*layer '1.up' \(PressedLayer\): .*'missing'",
        ):
            tp.press(net, plan, **known)
    with pytest.raises(tp.InvalidArgumentError, match=r"layer '0.0' \(Linear\): mat1 and mat2"):
        tp.press(net, plan, example_inputs=torch.randn(3, 9))


def test_adapters_on_the_factors():
    peft = pytest.importorskip("peft")
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(6, 32)
    plan = tp.plan(net, scheme="channel_svd", ranks=4)
    pressed = tp.press(net, plan).eval()
    expected = pressed(x)
    config = peft.LoraConfig(r=2, target_modules=["0.1", "2.0"], init_lora_weights=False)
    adapted = peft.get_peft_model(deepcopy(pressed), config)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(names) == 4
    result = adapted(x)
    assert not torch.allclose(result, expected)
    torch.testing.assert_close(adapted.merge_and_unload()(x), result)
