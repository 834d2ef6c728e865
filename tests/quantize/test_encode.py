from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.state_dict import load_tensors, save_tensors
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.quantize.file_search import FileSearch
from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.rounded_model import RoundedModel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tpz"


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(30, 25),
        "a.bias": torch.randn(30),
        "b.weight": 0.1 * torch.randn(20, 8, 3, 3),
        "b.count": torch.tensor(7),
        "half": torch.randn(15, 20).half(),
    }


def trained() -> nn.Sequential:
    """A network whose channels and norms differ, and whose inputs are correlated."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, groups=2), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)),
    )
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.2, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return net.eval()


def images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=random)
    images: Tensor = nn.functional.interpolate(coarse, size=12, mode="bilinear")
    return images


def distance(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = net(x)
        return float((other(x) - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize("size", [900, 1_500])
def test_a_size_is_used_and_never_exceeded(path: Path, size: int) -> None:
    result = tp.encode(state(), path, size=size)
    assert 0.98 * size <= result.bytes <= size
    assert path.stat().st_size == result.bytes


@pytest.mark.parametrize("bits", [6, 12, 20])
def test_few_values_fill_sizes_at_which_all_of_them_differ(path: Path, bits: int) -> None:
    weight = torch.randn(15, 20, generator=torch.Generator().manual_seed(0))
    size = weight.numel() * bits // 8 + 50
    assert 0.97 * size <= tp.encode({"weight": weight}, path, size=size).bytes <= size


def test_no_file_is_written_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    write = FileSearch._write_data

    def record(self: FileSearch, rounded: RoundedModel) -> None:
        attempts.append((rounded.base, rounded.cost))
        write(self, rounded)

    monkeypatch.setattr(FileSearch, "_write_data", record)
    signs = torch.randn(40, 25, generator=torch.Generator().manual_seed(0)).sign()
    assert tp.encode({"weight": signs}, path, size=130).bytes < 100  # a bit a value, or nothing
    assert len(set(attempts)) == len(attempts) <= 2


@pytest.mark.parametrize("budget", [{"bits": 3}, {"target_error": 0.1}])
def test_budgets_hold_where_the_search_sees_a_sample(path: Path, budget: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(600, 500), "b": 0.2 * torch.randn(300, 50) ** 3}
    result = tp.encode(tensors, path, **budget)
    decoded = tp.decode(path)
    errors = sum(float((decoded[n] - tensors[n]).square().sum()) for n in tensors)
    norm = sum(float(value.square().sum()) for value in tensors.values())
    assert (errors / norm) ** 0.5 == pytest.approx(result.error, rel=1e-4)
    used = result.bits_per_value / 3 if "bits" in budget else result.error / 0.1
    assert 0.9 < used <= 1


@pytest.mark.parametrize("bits", [3, 6])
def test_bits_are_those_of_the_whole_file(path: Path, bits: float) -> None:
    tensors = state()
    result = tp.encode(tensors, path, bits=bits)
    count = sum(tensor.numel() for tensor in tensors.values())
    assert result.bits_per_value == pytest.approx(8 * path.stat().st_size / count)
    assert 0.98 * bits <= result.bits_per_value <= bits


@pytest.mark.parametrize("target", [0.3, 0.01])
def test_the_error_is_that_of_the_decoded_weights(path: Path, target: float) -> None:
    tensors = state()
    result = tp.encode(tensors, path, target_error=target)
    decoded = tp.decode(path)
    names = [t.name for t in result.tensors]
    assert names == ["a.weight", "b.weight", "half"]
    errors = sum(float((decoded[n].double() - tensors[n].double()).square().sum()) for n in names)
    norm = sum(float(tensors[n].double().square().sum()) for n in names)
    assert (errors / norm) ** 0.5 == pytest.approx(result.error, rel=0.05)
    assert 0.8 * target <= result.error <= target


def test_what_is_not_a_weight_is_kept(path: Path) -> None:
    tensors = state()
    tp.encode(tensors, path, bits=3)
    decoded = tp.decode(path)
    assert list(decoded) == list(tensors)
    for name, tensor in tensors.items():
        assert decoded[name].dtype == tensor.dtype
        assert decoded[name].shape == tensor.shape
    torch.testing.assert_close(decoded["a.bias"], tensors["a.bias"], rtol=1e-3, atol=1e-3)
    assert int(decoded["b.count"]) == 7


def test_a_model_is_left_alone_and_loads_again(path: Path) -> None:
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = tp.encode(net, path, size=1_600)
    assert result.bytes <= 1_600
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    loaded = tp.load(path, trained())
    for name, value in tp.decode(path).items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert distance(net, loaded, images(20, 1)) < 0.01


def test_calibration_keeps_more_of_the_outputs(path: Path) -> None:
    net, seen, unseen = trained(), images(64, 0), images(64, 1)
    errors = {}
    for kind, batches in (("plain", None), ("calibrated", [seen[:32], seen[32:]])):
        result = tp.encode(net, path, size=800, calibration=batches)
        assert 770 <= result.bytes <= 800
        errors[kind] = distance(net, tp.load(path, trained()), unseen)
    assert errors["calibrated"] < 0.5 * errors["plain"]


def test_calibration_meets_an_error_of_the_responses(path: Path) -> None:
    result = tp.encode(trained(), path, target_error=0.1, calibration=[images(32, 0)])
    assert 0.09 <= result.error <= 0.1
    assert result.error == pytest.approx(
        (sum(t.error**2 for t in result.tensors) / len(result.tensors)) ** 0.5
    )


def test_a_network_of_the_zoo_needs_no_table(path: Path) -> None:
    net = tp.load_model("lenet300100")
    with torch.no_grad():
        net.ip1.weight.zero_()  # its coding would take a second
    size = tp.encode(net, path, target_error=0.2, network="lenet300100").bytes
    assert type(tp.load(path)) is type(net)
    assert set(tp.decode(path)) == set(net.state_dict())
    assert tp.encode(net, path, target_error=0.2).bytes > size + 20


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        scores: Tensor = self.head(self.q(x) * self.k(x))
        return scores


def test_shared_and_unseen_weights_are_coded_too(path: Path) -> None:
    torch.manual_seed(0)
    net = Attention()
    tokens = torch.randint(20, (16, 6))
    result = tp.encode(net, path, bits=6, calibration=[tokens])
    assert {t.name for t in result.tensors} == {
        "embed.weight",
        "q.weight",
        "k.weight",
        "unused.weight",
    }
    loaded = tp.load(path, Attention())
    assert distance(net, loaded, tokens) < 0.05


def test_statistics_are_merged_without_a_change() -> None:
    net, x = trained(), images(5, 0)
    with torch.no_grad():
        expected = net(x)
        weight = net[0].weight.clone()
        assert merge_statistics(net) == ["1", "4"]
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(net[0].weight, weight)
    assert net[1].running_mean.abs().max() == 0
    assert net[1].running_var.unique().tolist() == [1.0]


def test_norms_that_share_what_they_hold_are_left() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    net[1].weight = net[0].weight
    assert merge_statistics(net) == []


def test_a_norm_that_is_not_finite_is_named(path: Path) -> None:
    net = trained()
    net[4].running_var[3] = -1.0
    with pytest.raises(InvalidArgumentError, match="'4'"):
        tp.encode(net, path, bits=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one budget"),
        ({"bits": 2, "size": 100}, "give exactly one budget"),
        ({"bits": -1}, "bits must be positive"),
        ({"bits": float("nan")}, "bits must be positive"),
        ({"target_error": 1.5}, "between 0 and 1"),
        ({"size": 60}, "too few"),
        ({"bits": 3, "calibration": [torch.zeros(1, 2)]}, "need a model as source"),
        ({"bits": 3, "network": "lenet5"}, "need a model as source"),
    ],
)
def test_budgets_that_cannot_be_met(path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        tp.encode(state(), path, **arguments)
    assert not path.exists()


def test_tensors_that_cannot_be_stored_are_named(path: Path) -> None:
    for bad in (torch.full((2, 2), torch.nan), torch.zeros(2, 2, device="meta"), [1.0]):
        with pytest.raises(InvalidArgumentError, match="'bad'"):
            tp.encode({"good": torch.ones(3, 3), "bad": bad}, path, bits=8)  # type: ignore[dict-item]
    with pytest.raises(InvalidArgumentError, match="not list"):
        tp.encode([1, 2], path, bits=8)  # type: ignore[arg-type]


def test_a_missing_folder_is_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written: No such file"):
        tp.encode(state(), tmp_path / "no" / "a.tpz", bits=3)


def test_no_weights_and_zeros_can_be_coded(path: Path) -> None:
    tensors = {"zeros": torch.zeros(20, 20), "none": torch.zeros(0, 3), "bias": torch.ones(2)}
    assert tp.encode(tensors, path, size=1_000).bytes < 200
    assert all(torch.equal(tp.decode(path)[name], value) for name, value in tensors.items())


def test_files_that_are_missing_or_damaged(path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        tp.decode(path)
    tp.encode(state(), path, bits=3)
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(CorruptFileError):
        tp.decode(path)


def test_a_quantizer_of_no_tensor_is_an_error(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'b'"):
        save_tensors({"a": torch.ones(2)}, path, {"b": StepQuantizer(0)})


def test_values_that_float16_cannot_hold_are_exact(path: Path) -> None:
    tensors = {"a": torch.tensor([1e6, 1.0 + 2**-20]), "b": torch.tensor([1.0, 2**-30])}
    save_tensors(tensors, path, {})
    assert torch.equal(load_tensors(path)["a"], tensors["a"])
    assert not torch.equal(load_tensors(path)["b"], tensors["b"])


def test_tensors_rounded_to_zeros_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {f"{n}.weight": 10.0**-n * torch.randn(40, 50) for n in range(6)}
    tensors["zeros.weight"] = torch.zeros(30, 30)
    result = tp.encode(tensors, path, size=2000)
    names = [t.name for t in result.tensors if t.zeros == 1 and t.name != "zeros.weight"]
    [warned] = caplog.messages
    assert f"all values of {len(names)} of 7 tensors" in warned
    assert f"{', '.join(names[:3])}, …;" in warned
    assert "zeros.weight" not in warned
    caplog.clear()
    tp.encode({"a.weight": tensors["0.weight"]}, path, bits=8)
    assert not caplog.messages


def bits_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {
        n: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for n, t in tensors.items()
    }


def test_lossless_files_keep_every_bit_of_tensors(path: Path) -> None:
    tensors = state() | {"large": torch.randn(90, 80).bfloat16(), "flag": torch.tensor([True])}
    tensors["a.bias"][:3] = torch.tensor([torch.nan, torch.inf, -0.0])
    tensors["infinite"] = torch.full((4,), torch.inf)
    result = tp.encode(tensors, path, lossless=True)
    assert (result.bytes, result.error) == (path.stat().st_size, 0.0)
    assert bits_of(tp.decode(path)) == bits_of(tensors)
    assert result.bytes < sum(tensor.nbytes for tensor in tensors.values())
    assert {t.name: t.storage for t in tp.inspect(path).tensors}["large"] == "exact, coded"


def test_lossless_files_keep_every_bit_of_a_model(path: Path) -> None:
    net = trained()
    tp.encode(net, path, lossless=True)
    assert bits_of(tp.load(path, trained()).state_dict()) == bits_of(net.state_dict())
    zoo = tp.load_model("lenet5")
    tp.encode(zoo, path, lossless=True, network="lenet5")
    assert bits_of(tp.load(path).state_dict()) == bits_of(zoo.state_dict())


def test_lossless_is_no_budget(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="give exactly one budget"):
        tp.encode(state(), path, lossless=True, bits=3)
    with pytest.raises(InvalidArgumentError, match="takes no calibration"):
        tp.encode(trained(), path, lossless=True, calibration=[images(2, 0)])
    with pytest.raises(InvalidArgumentError, match="takes no quantizer"):
        tp.save(trained(), path, lossless=True, quantizer=StepQuantizer(0))


def test_vectors_are_trained_where_that_brings_outputs_nearer(tmp_path: Path) -> None:
    class Bare(nn.Module):
        """A layer of parameters whose bias no layer with known inputs has."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(60, 12))
            self.shift = nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.shift

    torch.manual_seed(0)
    net, x = Bare(), 3 + torch.randn(300, 60)
    errors, symbols = [], []
    for passes in (0, 60):
        path = tmp_path / str(passes)
        tp.encode(net, path, target_error=0.02, calibration=x[:240].split(30), passes=passes)
        coded = deepcopy(net)
        coded.load_state_dict(tp.decode(path))
        symbols.append(coded.weight)
        with torch.no_grad():
            errors.append(float((coded(x[240:]) - net(x[240:])).norm()))
    assert torch.equal(*symbols)
    assert errors[1] < 0.9 * errors[0]
