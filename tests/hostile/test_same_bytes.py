"""The same seed gives the same bytes, with one thread and two, compiled and not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.codec import adaptive_coder
from tensorpress.codec.state_dict import load_tensors, save_tensors
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import rank_schemes, scheme


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_threads(make: Callable[[], Any]) -> list[Any]:
    """What a function returns with one thread, and with two."""
    results = []
    for number in (1, 2):
        with threads(number):
            torch.manual_seed(0)
            results.append(make())
    return results


@pytest.mark.parametrize("name", rank_schemes())
@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(8, 12, 3)], ids=["linear", "conv"])
def test_every_scheme_gives_the_same_factors(name: str, layer: nn.Module) -> None:
    if scheme(name).refusal(describe_layer(layer)) is not None:
        pytest.skip("the scheme does not take it")
    ranks = 2 if name.startswith("cp") else 0.4
    one, two = with_threads(lambda: press_layer(layer, name, ranks).state_dict())
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("name", "layer"), [
    ("spatial_svd", nn.Conv2d(128, 128, 3)),
    ("tucker2", nn.Conv2d(128, 128, 3)),
    ("tucker1_in", nn.Linear(512, 512)),
    ("tt_weight", nn.Linear(512, 512)),
])  # fmt: skip
def test_layers_that_lapack_divides_among_threads(name: str, layer: nn.Module) -> None:
    def pressed() -> Any:
        # Ranks by error read spectra, and a plan keeps errors.
        plan = tp.plan(layer, scheme=name, ranks="energy:0.5")
        budget = tp.plan(layer, scheme=name, budget="params=50%")
        return plan.to_dict(), budget.to_dict(), tp.press(layer, plan).state_dict()

    (plan, budget, factors), (others, other_budget, other_factors) = with_threads(pressed)
    assert (plan, budget) == (others, other_budget)
    assert all(torch.equal(factors[key], other_factors[key]) for key in factors)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))


IMAGES = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


FEATURES = torch.randn(32, 24, generator=torch.Generator().manual_seed(1))


def bytes_of(folder: Path, write: Callable[[Path], Any]) -> bytes:
    write(folder / "a.tpz")
    return (folder / "a.tpz").read_bytes()


def press_by_data() -> nn.Module:
    plan = tp.plan(net(), scheme="channel_svd", ranks=0.4)
    return tp.press(net(), plan, calibration=[IMAGES])


WRITERS: dict[str, Callable[[Path], Any]] = {
    "encode by data": lambda path: tp.encode(
        nn.Linear(24, 10), path, size=220, calibration=[FEATURES]
    ),
    "press by data": lambda path: tp.save(press_by_data(), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_the_same_with_one_thread_and_two(tmp_path: Path, name: str) -> None:
    one, two = with_threads(lambda: bytes_of(tmp_path, WRITERS[name]))
    assert one == two


def test_files_are_the_same_compiled_and_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"weight": torch.randn(40, 40, generator=torch.Generator().manual_seed(0))}

    def write(path: Path) -> None:
        save_tensors(tensors, path, {"weight": tp.StepQuantizer(-8)})

    files = []
    for many in (1, 1 << 62):  # values from which on code is compiled
        monkeypatch.setattr(adaptive_coder, "_MANY", many)
        files.append(bytes_of(tmp_path, write))
        files.append(load_tensors(tmp_path / "a.tpz")["weight"].numpy().tobytes())
    assert files[:2] == files[2:]
