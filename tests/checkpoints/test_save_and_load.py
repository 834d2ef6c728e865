import json
from errno import ENOSPC

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import MODELS, contents, llama, logits
from torch import nn

from tensorpress.checkpoints import load_checkpoint, save, save_checkpoint
from tensorpress.checkpoints.safetensors_writer import ShardWriter
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
)
from tensorpress.planning import Plan, plan
from tensorpress.press.press import press


class Net(nn.Module):
    """A layer used twice, tied weights, buffers of both kinds, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.same = nn.ModuleList([nn.Linear(12, 12)] * 2)
        self.table, self.head = nn.Embedding(12, 12), nn.Linear(12, 12, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((), 3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.head(self.same[1](self.same[0](x)).relu()) * self.scale


def net(**to) -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 6, 6))
    return model.to(**to).eval()


SCHEMES = {
    "channel_svd": {"ranks": 0.4},
    "spatial_svd": {"ranks": 0.4},
    "tensor_train": {"ranks": 3},
    "tt_weight": {"ranks": 3},
    "ada_tucker": {"budget": "params=60%"},
    "scada_tucker": {"budget": "params=60%"},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_loaded_is_what_was_saved(tmp_path, scheme):
    dense = net()
    chosen = plan(dense, scheme=scheme, **SCHEMES[scheme])
    pressed = press(dense, chosen)
    save_checkpoint(pressed, tmp_path / "out")
    assert Plan.read(tmp_path / "out" / "plan.json").id == chosen.id
    loaded = load_checkpoint(tmp_path / "out", net())
    result, expected = loaded.state_dict(), pressed.state_dict()
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], values) for name, values in expected.items())
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(loaded(x), pressed(x), atol=1e-5)
    assert loaded.head.weight is loaded.table.weight
    assert loaded.same[0] is loaded.same[1]
    assert not loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [True] * len(
        list(pressed.parameters())
    )


def test_tied_weights_are_stored_once(tmp_path):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    save_checkpoint(press(net(), chosen), tmp_path / "out", chosen)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {"table.weight", "head.weight"} & names == {"table.weight"}
    assert not [name for name in names if name.startswith("same.1")]


def test_the_model_given_stays_as_it_is_and_its_weights_do_not_matter(tmp_path):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    pressed = press(net(), chosen)
    save_checkpoint(pressed, tmp_path / "out", chosen)
    given = Net()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    loaded = load_checkpoint(tmp_path / "out", given)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(loaded(x), pressed(x))
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_meta_model_without_other_buffers_is_enough(tmp_path):
    dense = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    chosen = plan(dense, scheme="channel_svd", ranks=2)
    pressed = press(dense, chosen).eval()
    save_checkpoint(pressed, tmp_path / "out", chosen)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    x = torch.randn(4, 20)
    assert torch.equal(load_checkpoint(tmp_path / "out", empty)(x), pressed(x))


def test_a_buffer_that_has_no_values_anywhere_is_named(tmp_path):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    save_checkpoint(press(net(), chosen), tmp_path / "out", chosen)
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(ModelMismatchError, match="'scale'"):
        load_checkpoint(tmp_path / "out", empty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay_as_they_are_stored(tmp_path, dtype):
    dense = net(dtype=dtype)
    chosen = plan(dense, scheme="channel_svd", ranks=2)
    save_checkpoint(press(dense, chosen), tmp_path / "out", chosen)
    loaded = load_checkpoint(tmp_path / "out", net())
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.norm.num_batches_tracked.dtype == torch.int64


def test_shards_above_a_size_are_indexed_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 700)
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    pressed = press(net(), chosen)
    save_checkpoint(pressed, tmp_path / "out", chosen)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(load_checkpoint(tmp_path / "out", net())(x), pressed(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_comes_back_from_its_folder_alone(tmp_path, name):
    dense = MODELS[name]()
    chosen = plan(dense, scheme="channel_svd", ranks=0.3, skip=["re:.*emb.*|.*wpe|.*wte"])
    pressed = press(dense, chosen)
    save_checkpoint(pressed, tmp_path / "out", chosen)
    loaded = load_checkpoint(tmp_path / "out")
    assert type(loaded) is type(dense)
    assert torch.equal(logits(loaded), logits(pressed))
    tied = dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    again = loaded.get_output_embeddings().weight if tied else None
    assert again is (loaded.get_input_embeddings().weight if tied else None)


def test_how_text_is_generated_is_kept(tmp_path):
    dense = llama()
    dense.generation_config.max_new_tokens = 7
    chosen = plan(dense, scheme="channel_svd", ranks=2, targets=["*mlp*"])
    save_checkpoint(press(dense, chosen), tmp_path / "out", chosen)
    assert load_checkpoint(tmp_path / "out").generation_config.max_new_tokens == 7


@pytest.fixture
def folder(tmp_path):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    save_checkpoint(press(net(), chosen), tmp_path / "out", chosen)
    return tmp_path / "out"


def test_a_folder_with_files_is_not_touched(folder):
    before = contents(folder)
    chosen = plan(net(), scheme="channel_svd", ranks=3)
    with pytest.raises(InvalidArgumentError, match="already"):
        save_checkpoint(press(net(), chosen), folder, chosen)
    assert contents(folder) == before


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    pressed = press(net(), chosen)
    pressed.norm.weight = nn.Parameter(torch.empty(12, device="meta"))
    with pytest.raises(InvalidArgumentError, match=r"'norm\.weight' has no values"):
        save_checkpoint(pressed, tmp_path / "out", chosen)
    pressed = press(net(), chosen)

    def full(*_: object) -> None:
        raise OSError(ENOSPC, "no space left")

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(InvalidArgumentError, match="no space left"):
        save_checkpoint(pressed, tmp_path / "out", chosen)
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_pressing_is_refused(tmp_path):
    chosen = plan(net(), scheme="channel_svd", ranks=2)
    other = plan(net(), scheme="channel_svd", ranks=3)
    with pytest.raises(ModelMismatchError, match="'conv' of the model does not match the plan"):
        save_checkpoint(press(net(), chosen), tmp_path / "out", other)
    with pytest.raises(ModelMismatchError, match="'conv' of the model does not match the plan"):
        save_checkpoint(net(), tmp_path / "out", chosen)


def test_missing_files_are_named(folder):
    with pytest.raises(DataNotFoundError, match=r"no config\.json"):
        load_checkpoint(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"no plan\.json"):
        load_checkpoint(folder, net())


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is truncated"):
        load_checkpoint(folder, net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"has no 'norm\.weight', which the model needs"),
        (lambda t: t.update(extra=torch.ones(1)), "has 'extra', but the model does not"),
        (lambda t: t.update({"norm.weight": torch.ones(3)}), r"'norm\.weight' has shape \(3,\)"),
        (
            lambda t: t.update({"norm.weight": torch.ones(12).int()}),
            r"'norm\.weight' is torch\.int",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelMismatchError, match=message):
        load_checkpoint(folder, net())


def test_another_model_is_refused(folder):
    with pytest.raises(ModelMismatchError, match="'conv'"):
        load_checkpoint(folder, nn.Sequential(nn.Linear(2, 2)))
    pressed = load_checkpoint(folder, net())
    with pytest.raises(ModelMismatchError, match="expected a dense model"):
        load_checkpoint(folder, pressed)
