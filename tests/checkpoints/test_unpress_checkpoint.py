import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import MODELS, contents, llama, logits, transformers
from torch import nn

from tensorpress.checkpoints import save, save_checkpoint, unpress_checkpoint
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.planning import plan
from tensorpress.press.press import press
from tensorpress.press.unpress import unpress

SKIP = ["re:.*emb.*|.*wpe|.*wte"]


def scheme_options(scheme):
    return {"budget": "params=70%"} if "ada" in scheme else {"ranks": 3}


@pytest.mark.parametrize("scheme", ["channel_svd", "tt_weight", "ada_tucker", "scada_tucker"])
@pytest.mark.parametrize("name", MODELS)
def test_stock_transformers_loads_the_dense_model(tmp_path, monkeypatch, name, scheme):
    monkeypatch.setattr(save, "SHARD_BYTES", 12_000)
    dense = MODELS[name]()
    model = press(dense, plan(dense, scheme=scheme, skip=SKIP, **scheme_options(scheme)))
    save_checkpoint(model, tmp_path / "pressed")
    (tmp_path / "pressed" / "tokenizer.json").write_text("{}")
    unpress_checkpoint(tmp_path / "pressed", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    assert not (tmp_path / "out" / "plan.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    loaded, info = type(dense).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    state, expected = loaded.state_dict(), unpress(model).state_dict()
    assert state.keys() == expected.keys() == dense.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


def test_types_stay_as_they_are(tmp_path):
    dense = llama().bfloat16()
    save_checkpoint(press(dense, plan(dense, scheme="channel_svd", ranks=3)), tmp_path / "pressed")
    unpress_checkpoint(tmp_path / "pressed", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_model_of_your_own(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.LSTM(4, 40))
    model = press(net, plan(net, scheme="tt_weight", ranks=3))
    save_checkpoint(model, tmp_path / "pressed")
    unpress_checkpoint(tmp_path / "pressed", tmp_path / "out", model=net)
    state, expected = load_file(tmp_path / "out" / "model.safetensors"), unpress(model).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_a_dense_folder_and_a_folder_with_files_are_refused(tmp_path):
    transformers()
    llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(DataNotFoundError, match="of a pressed model"):
        unpress_checkpoint(tmp_path / "dense", tmp_path / "out")
    dense = llama()
    save_checkpoint(press(dense, plan(dense, scheme="channel_svd", ranks=3)), tmp_path / "pressed")
    before = contents(tmp_path / "dense")
    with pytest.raises(InvalidArgumentError, match="already"):
        unpress_checkpoint(tmp_path / "pressed", tmp_path / "dense")
    assert contents(tmp_path / "dense") == before
