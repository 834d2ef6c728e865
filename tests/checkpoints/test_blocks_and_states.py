"""The blocks of models, and the files of the states between them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress.checkpoints.blocks import find_blocks
from tensorpress.checkpoints.state_files import StateFiles
from tensorpress.errors import CorruptFileError, InvalidArgumentError


class Block(nn.Module):
    def __init__(self, experts: int, size: int = 4) -> None:
        super().__init__()
        self.attention = nn.Linear(size, size)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(size, size)) for _ in range(experts))


class Net(nn.Module):
    def __init__(self, layers: int, others: int = 0, size: int = 4) -> None:
        super().__init__()
        self.stem = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.layers = nn.ModuleList(Block(experts=5) for _ in range(layers))
        self.more = nn.ModuleList(Block(experts=5, size=size) for _ in range(others))


def test_experts_within_blocks_are_no_blocks() -> None:
    assert find_blocks(Net(3)) == ["layers.0", "layers.1", "layers.2"]


def test_a_small_list_beside_the_blocks_is_a_detail() -> None:
    assert find_blocks(Net(6, others=1)) == [f"layers.{i}" for i in range(6)]
    with pytest.raises(InvalidArgumentError, match="blocks in 'layers' and in 'more'"):
        find_blocks(Net(6, others=4))


def test_single_layers_are_no_blocks() -> None:
    with pytest.raises(InvalidArgumentError, match="Net has no ModuleList of blocks of one class"):
        find_blocks(Net(0))


def test_states_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    states = StateFiles(tmp_path / "states", [torch.Size([3]), torch.Size([2])])
    states.write(4, [torch.ones(3), torch.zeros(2)])
    assert 4 in states
    assert states.read(4, 1).tolist() == [0, 0]
    file = tmp_path / "states" / "0004.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"0004\.safetensors cannot be read"):
        states.read(4, 0)
    states.remove(4)
    assert 4 not in states
    with pytest.raises(CorruptFileError, match=r"0004\.safetensors cannot be read"):
        states.read(4, 0)
