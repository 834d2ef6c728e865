"""Moments in files, and summed over processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import tensorpress as tp
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
)


class Attention(nn.Module):
    """Two layers with one input, and a convolution with groups."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(width, 6), nn.Linear(width, 6)
        self.mix = nn.Conv1d(6, 8, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        calibration: Tensor = self.mix((self.query(x) * self.key(x)).mT)
        return calibration


def batches(seed: int = 0, count: int = 4) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, 8, generator=random) for _ in range(count)]


def test_files_round_trip_with_shared_moments_stored_once(tmp_path: Path) -> None:
    calibration = tp.Calibration.collect(Attention(), batches())
    calibration.save(tmp_path / "a.calibration")
    loaded = tp.Calibration.load(tmp_path / "a.calibration")
    assert list(loaded.moments) == ["query", "key", "mix"]
    assert loaded.moments["query"] is loaded.moments["key"]
    for name, moments in calibration.moments.items():
        assert loaded.moments[name].rows == moments.rows
        for one, other in zip(loaded.moments[name].blocks, moments.blocks, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    numbers = 8 * 8 + 2 * 9 * 9
    assert (tmp_path / "a.calibration").stat().st_size < 8 * numbers + 1000


def test_pressing_by_a_calibration_equals_pressing_by_its_batches() -> None:
    model = Attention()
    plan = tp.plan(model, scheme="channel_svd", ranks=2)
    pressed = tp.press(model, plan, calibration=tp.Calibration.collect(model, batches()))
    direct = tp.press(model, plan, calibration=batches(), reconstruct="inputs")
    for one, other in zip(pressed.parameters(), direct.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_calibration_that_does_not_fit_is_refused() -> None:
    model = Attention()
    plan = tp.plan(model, scheme="channel_svd", ranks=2)
    calibration = tp.Calibration.collect(model, batches())
    with pytest.raises(InvalidArgumentError, match="'nonlinear' needs batches"):
        tp.press(model, plan, calibration=calibration, reconstruct="nonlinear")
    wide = Attention(width=9)
    with pytest.raises(ModelMismatchError, match=r"'query' has 9 inputs .* calibration has 8"):
        tp.press(wide, tp.plan(wide, scheme="channel_svd", ranks=2), calibration=calibration)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CorruptFileError, match="is not a calibration file"):
        tp.Calibration.load(tmp_path / "a")
    with pytest.raises(DataNotFoundError, match="no file at"):
        tp.Calibration.load(tmp_path / "b")


def test_processes_add_their_sums_up(tmp_path: Path) -> None:
    multiprocessing.spawn(_collect, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call, attr-defined]
    whole = tp.Calibration.collect(Attention(), batches(0) + batches(1))
    for rank in range(2):
        calibration = tp.Calibration.load(tmp_path / str(rank))
        for name, moments in whole.moments.items():
            assert calibration.moments[name].rows == moments.rows
            for one, other in zip(calibration.moments[name].blocks, moments.blocks, strict=True):
                torch.testing.assert_close(one, other)


def _collect(rank: int, folder: str) -> Any:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    tp.Calibration.collect(Attention(), batches(rank)).save(f"{folder}/{rank}")
    distributed.destroy_process_group()
