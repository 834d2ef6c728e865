"""What was pressed by images before is read, not pressed again."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.planning import Plan, plan
from tensorpress.runs.training import press_once


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(6, 12, 3), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(192, 10)).eval()


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(4)]


def mixed(net: nn.Module) -> Plan:
    """Chains, channels chosen by images, and a weight that is rebuilt from factors."""
    sums = {"3": {"scheme": "low_rank_sparse", "ranks": (4, 4)}}
    rebuilt = {"5": {"scheme": "ada_tucker", "modes": [12, 16, 10], "ranks": 4}}
    return plan(
        net, torch.zeros(1, 6, 8, 8), scheme="channel_svd", ranks=4, overrides=sums | rebuilt
    )


@pytest.mark.parametrize("kind", ["inputs", "nonlinear"])
def test_the_second_time_it_is_the_same_without_images(
    net: nn.Module, images: list[Tensor], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "folder" / "pressed.pt"
    first = press_once(net, mixed(net), path, calibration=images, reconstruct=kind)
    again = press_once(net, mixed(net), path)
    x = images[0]
    assert torch.equal(again(x), first(x))
    assert [*again.state_dict()] == [*first.state_dict()]
    for (name, one), (_, other) in zip(first.named_modules(), again.named_modules(), strict=True):
        assert repr(one) == repr(other)
        assert getattr(one, "relative_error", None) == getattr(other, "relative_error", None), name


def test_another_plan_and_damage_are_told(
    net: nn.Module, images: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "pressed.pt"
    press_once(net, mixed(net), path, calibration=images)
    example = torch.zeros(1, 6, 8, 8)
    other = plan(net, example, scheme="channel_svd", ranks=3)
    with pytest.raises(ModelMismatchError, match="checkpoint of another model"):
        press_once(net, other, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="damaged"):
        press_once(net, mixed(net), path)
