from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tpz_models import LENET5, assert_holds, expected, lenet5, press_network, save_model

import tensorpress as tp
from tensorpress.codec.model_tensors import quantized_names, stored_tensors
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models.zoo import build
from tensorpress.schemes.parametrization import stored_factors

Q = tp.UniformQuantizer(128, 3.0)
SHARED = {
    "ip1": {"modes": [28, 28, 20, 15], "ranks": [4, 4, 3, 3]},
    "ip2": {"modes": [20, 15, 10, 10], "ranks": [4, 4, 3, 3]},
    "ip3": {"modes": [10, 10, 10, 1], "ranks": [4, 4, 3, 3]},
}
DIAGONAL = {"ip?": {"modes": "original", "ranks": 4, "diagonal": True}}


@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize(
    ("network", "scheme", "target"),
    [
        ("lenet5", "ada_tucker", {"overrides": LENET5}),
        ("lenet300100", "scada_tucker", {"overrides": SHARED}),
        ("lenet300100", "ada_tucker", {"overrides": DIAGONAL}),
        ("fc1024", "ada_tucker", {"budget": "params=9_000"}),
        ("cifar-cnn", "ada_tucker", {"budget": "params=20_000"}),
        ("resnet20", "scada_tucker", {"budget": "params=40_000"}),
    ],
)
def test_zoo_networks_load_as_quantized(
    tmp_path: Path, network: str, scheme: str, target: Any, coder: str
) -> None:
    model = press_network(network, scheme, **target)
    path = save_model(model, tmp_path, network=network, coder=coder)
    loaded = tp.load(path)
    assert_holds(loaded, expected(model))
    assert type(loaded) is type(model)
    assert not loaded.training


@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_dense_models_load_as_quantized(tmp_path: Path, coder: str) -> None:
    model = build("lenet300100")
    path = save_model(model, tmp_path, network="lenet300100", quantizer=Q, coder=coder)
    assert_holds(tp.load(path), expected(model, Q))


def test_a_loaded_model_predicts_as_the_quantized_one(tmp_path: Path) -> None:
    model = lenet5()
    path = save_model(model, tmp_path, network="lenet5", quantizer=Q)
    with torch.no_grad():
        for name in quantized_names(model):
            parameter = stored_tensors(model)[name]
            parameter.copy_(Q(parameter))
    inputs = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(tp.load(path)(inputs), model.eval()(inputs))


def overhead(path: Path) -> int:
    return sum(size for part, size in tp.inspect(path).parts.items() if part != "values")


def test_all_but_the_values_of_lenet5_takes_less_than_40_bytes(tmp_path: Path) -> None:
    model = lenet5()
    assert overhead(save_model(model, tmp_path, network="lenet5", quantizer=Q)) < 40
    steps = {
        name: StepQuantizer.nearest(float(tensor.detach().square().mean().sqrt()) / 4 + 1e-3)
        for name, tensor in stored_tensors(model).items()
    }
    assert overhead(save_model(model, tmp_path, network="lenet5", quantizer=steps)) < 40


def test_steps_for_norms_and_buffers(tmp_path: Path) -> None:
    model = norms()
    steps = {
        name: StepQuantizer(-43 - i)
        for i, (name, tensor) in enumerate(stored_tensors(model).items())
        if tensor.is_floating_point()
    }
    loaded = tp.load(save_model(model, tmp_path, quantizer=steps), norms())
    assert_holds(loaded, expected(model, steps))
    with pytest.raises(InvalidArgumentError, match=r"unknown tensor to quantize '1\.num_batches"):
        tp.save(model, tmp_path / "a.tpz", quantizer=steps | {"1.num_batches_tracked": Q})


def test_folded_norms_take_next_to_nothing(tmp_path: Path) -> None:
    dense, model = nn.Conv2d(4, 400, 1), nn.Sequential(nn.Conv2d(4, 400, 1), nn.BatchNorm2d(400))
    model.load_state_dict({f"0.{k}": v for k, v in dense.state_dict().items()}, strict=False)
    sizes = []
    for each in (dense, model):
        path = save_model(each, tmp_path, norms="float32")
        sizes.append(tp.inspect(path).size)
    assert_holds(tp.load(path, model), expected(model))
    assert sizes[1] - sizes[0] < 90  # the names and shapes of five more tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.out = nn.Linear(8, 30, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.table(tokens))
        return out


class Odds(nn.Module):
    """Tensors of every kind a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.whole = nn.Parameter(torch.arange(5), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        for name, tensor in {
            "mask": torch.tensor([[True, False, True]]),
            "steps": torch.arange(-3, 400),
            "small": torch.tensor([200, 3], dtype=torch.uint8),
            "position": torch.linspace(0, 1, 5),
            "precise": torch.linspace(0, 1, 5, dtype=torch.float64),
            "phases": torch.tensor([1 + 2j, 0.1j]),
            "nothing": torch.zeros(0, dtype=torch.int32),
        }.items():
            self.register_buffer(name, tensor)
        self.register_buffer("fleeting", torch.ones(2), persistent=False)


def norms() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.LayerNorm(48))
    for _ in range(300):
        model(torch.randn(4, 3, 8))
    return model


def channels_last() -> nn.Module:
    return nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)


OWN = {
    "conv1d": lambda: nn.Conv1d(6, 8, 3),
    "conv3d": lambda: nn.Conv3d(2, 4, (1, 2, 3), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "norms": norms,
    "embedding": lambda: nn.Embedding(40, 5, padding_idx=0),
    "tied": Tied,
    "odds": Odds,
    "channels last": channels_last,
    "bfloat16": lambda: nn.Linear(20, 10).bfloat16(),
    "float16": lambda: nn.Sequential(nn.Linear(20, 10), nn.LayerNorm(10)).half(),
    "float64": lambda: nn.Sequential(nn.Linear(20, 10), nn.BatchNorm1d(10)).double(),
    "no tensors": nn.ReLU,
    "zeros": lambda: nn.utils.skip_init(nn.Linear, 3, 2).apply(lambda m: nn.init.zeros_(m.weight)),
}


@pytest.mark.parametrize("stored", ["half", "float32"])
@pytest.mark.parametrize("kind", OWN)
def test_models_of_any_kind_load_as_quantized(tmp_path: Path, kind: str, stored: Any) -> None:
    torch.manual_seed(0)
    model = OWN[kind]()
    if kind == "zeros":
        nn.init.zeros_(model.bias)
    path = save_model(model, tmp_path, norms=stored)
    torch.manual_seed(1)
    dense = OWN[kind]()
    before = deepcopy(dense.state_dict())
    loaded = tp.load(path, dense)
    assert_holds(loaded, expected(model, norms=stored))
    for name, tensor in before.items():
        assert torch.equal(tensor, dense.state_dict()[name])


def test_custom_models_with_every_core_load_as_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv1d(8, 16, 3), nn.Conv3d(4, 6, 3), nn.Embedding(60, 10))
    layers: dict[str, dict[str, Any]] = {
        "0": {"modes": [24, 16], "ranks": [5, 4]},
        "1": {"modes": "original", "ranks": 3, "diagonal": True},
        "2": {"modes": [20, 30], "ranks": 6},
    }
    model = tp.press(dense, tp.plan(dense, scheme="ada_tucker", overrides=layers))
    loaded = tp.load(save_model(model, tmp_path), dense)
    assert_holds(loaded, expected(model))
    assert tp.planning.plan_from_model(loaded).layers == tp.planning.plan_from_model(model).layers


def test_a_model_that_is_a_single_pressed_layer(tmp_path: Path) -> None:
    dense = nn.Linear(30, 20)
    model = tp.press(dense, tp.plan(dense, scheme="ada_tucker", budget="params=250"))
    assert_holds(tp.load(save_model(model, tmp_path), dense), expected(model))


def test_counters_of_batch_norms_are_exact(tmp_path: Path) -> None:
    model = norms()
    loaded = tp.load(save_model(model, tmp_path), norms())
    assert loaded[1].num_batches_tracked.item() == 300
    assert loaded[1].num_batches_tracked.dtype == torch.int64


def test_shared_cores_and_tied_weights_stay_shared(tmp_path: Path) -> None:
    model = press_network("lenet300100", "scada_tucker", overrides=SHARED)
    loaded = tp.load(save_model(model, tmp_path, network="lenet300100"))
    cores = {id(stored_factors(m).original0) for m in (loaded.ip1, loaded.ip2, loaded.ip3)}
    assert len(cores) == 1
    assert tp.planning.plan_from_model(loaded).params == tp.planning.plan_from_model(model).params
    tied = tp.load(save_model(Tied(), tmp_path), Tied())
    assert tied.out.weight is tied.table.weight


def test_a_file_of_a_zoo_network_loads_into_a_model(tmp_path: Path) -> None:
    model = lenet5()
    path = save_model(model, tmp_path, network="lenet5")
    dense = build("lenet5")
    before = dense.conv1.weight.clone()
    assert_holds(tp.load(path, dense), expected(model))
    assert torch.equal(dense.conv1.weight, before)
    with pytest.raises(ModelMismatchError, match=r"model\.tpz"):
        tp.load(path, build("lenet300100"))
    with pytest.raises(ModelMismatchError, match=r"has .*float32.* where the model has .*float64"):
        tp.load(path, dense.double())


def test_the_weights_of_the_dense_model_do_not_matter(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(30, 20))
    model = tp.press(dense, tp.plan(dense, scheme="ada_tucker", budget="params=250"))
    path = save_model(model, tmp_path)
    nn.init.constant_(dense[0].weight, float("nan"))
    assert_holds(tp.load(path, dense), expected(model))


def test_a_loaded_model_can_be_trained_and_copied(tmp_path: Path) -> None:
    loaded = tp.load(save_model(lenet5(), tmp_path, network="lenet5"))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded.train()
    loaded(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    copy = deepcopy(loaded)
    assert torch.equal(copy.ip1.weight, loaded.ip1.weight)
    path = tmp_path / "again.tpz"
    tp.save(copy, path, network="lenet5")
    assert_holds(tp.load(path), expected(copy))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_model(lenet5(), tmp_path, network="lenet5").read_bytes()
    torch.manual_seed(7)
    second = save_model(lenet5(), tmp_path, network="lenet5").read_bytes()
    assert first == second


def test_saving_leaves_the_model_and_the_random_numbers_alone(tmp_path: Path) -> None:
    model = lenet5().train()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    save_model(model, tmp_path, network="lenet5")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_quantized_model_is_saved_without_change(tmp_path: Path) -> None:
    path = save_model(lenet5(), tmp_path, network="lenet5", quantizer=Q)
    first, loaded = path.read_bytes(), tp.load(path)
    assert save_model(loaded, tmp_path, network="lenet5", quantizer=Q).read_bytes() == first


def test_quantizers_by_name(tmp_path: Path) -> None:
    model = nn.Linear(20, 10)
    quantizers = {
        "weight": tp.UniformQuantizer(8, 0.2),
        "bias": tp.UniformQuantizer(64, 1.0, rounding="floor"),
    }
    path = save_model(model, tmp_path, quantizer=quantizers)
    assert_holds(tp.load(path, nn.Linear(20, 10)), expected(model, quantizers))
    with pytest.raises(InvalidArgumentError, match="no quantizer for 'bias'"):
        tp.save(model, path, quantizer={"weight": quantizers["weight"]})
    with pytest.raises(InvalidArgumentError, match="'wieght': did you mean 'weight'"):
        tp.save(model, path, quantizer={"wieght": quantizers["weight"]})


def test_default_quantizers_add_one_per_cent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 10))
    nn.init.normal_(model[0].weight, std=1e-4)
    nn.init.normal_(model[1].weight, std=1e4)
    loaded = tp.load(save_model(model, tmp_path), model)
    for name, tensor in stored_tensors(model).items():
        error = (stored_tensors(loaded)[name] - tensor).norm() / tensor.norm()
        assert error < 0.0097, name  # 1/32/√12 = 0.0090, and a step is at most 4.5 % larger


def test_norms_are_precise(tmp_path: Path) -> None:
    model = norms()
    sizes = {stored: tp.save(model, tmp_path / "a.tpz", norms=stored) for stored in ("half",)}
    half = tp.load(tmp_path / "a.tpz", norms())
    assert torch.allclose(half[1].running_mean, model[1].running_mean, rtol=1e-3, atol=1e-7)
    sizes["float32"] = tp.save(model, tmp_path / "a.tpz", norms="float32")
    exact = tp.load(tmp_path / "a.tpz", norms())
    assert torch.equal(exact[1].running_mean, model[1].running_mean)
    assert sizes["half"] < sizes["float32"]


def test_a_class_in_place_of_a_model_is_named(tmp_path: Path) -> None:
    tp.save(nn.Linear(3, 2), tmp_path / "a.tpz")
    with pytest.raises(InvalidArgumentError, match=r"got the class Linear: pass Linear\(\)"):
        tp.load(tmp_path / "a.tpz", nn.Linear)  # type: ignore[arg-type]
