import json
import logging
from pathlib import Path

import pytest
import torch
from libraries import needed
from safetensors.torch import load_file, save_file
from torch import nn

from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.models import load_model
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.zoo import build, save_weights

FUNCTIONS = """
from torch import nn

number = 3

def net(width=4):
    import neighbour
    return nn.Sequential(nn.Linear(3, width), neighbour.activation())

def failing():
    raise OSError("no disk")

def nothing():
    return None

def tied():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model

def looking():
    model = net()
    return model if model[0].weight.detach().sum().item() else None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_models.py").write_text(FUNCTIONS)
    (tmp_path / "neighbour.py").write_text("from torch.nn import ReLU as activation\n")
    (tmp_path / "broken_models.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_of_the_zoo() -> None:
    model = load_model("lenet5")
    assert sum(p.numel() for p in model.parameters()) == 431_080
    assert not model.training


def test_a_model_on_the_meta_device_holds_nothing() -> None:
    model = load_model("wrn28-10", meta=True)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    dense = build("wrn28-10").state_dict()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in dense.items()
    }


def test_a_function_of_the_current_folder_takes_keyword_arguments(folder: Path) -> None:
    assert load_model("own_models:net")[0].out_features == 4
    assert load_model("own_models:net,width=7")[0].out_features == 7


def test_tied_weights_are_tied_on_the_meta_device(folder: Path) -> None:
    model = load_model("own_models:tied", meta=True)
    assert model[0].weight.is_meta
    assert model[1].weight is model[0].weight


def test_a_model_that_looks_at_its_values_cannot_be_on_the_meta_device(folder: Path) -> None:
    assert load_model("own_models:looking")
    with pytest.raises(InvalidArgumentError, match="meta"):
        load_model("own_models:looking", meta=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_model:net", "the module 'own_model' cannot be imported: ModuleNotFoundError"),
        ("broken_models:net", "No module named 'nowhere_to_be_found'"),
        ("own_models:ned", "own_models has no function 'ned': did you mean 'net'"),
        ("own_models:number", "own_models:number is of type int: expected a function"),
        ("own_models:failing", "OSError: no disk .*own_models.py, line 11"),
        ("own_models:nothing", "own_models:nothing returns NoneType, not a torch.nn.Module"),
        ("own_models:net,depth=3", "unexpected keyword argument 'depth'"),
        ("resnet21", "unknown network 'resnet21': did you mean .*'resnet20'.*torchvision:NAME"),
        ("lenet5,classes=3", "takes no options"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81': did you mean 'resnet18'"),
        ("torchvision:resnet18,weights=DEFAULT", "reads with pickle"),
        ("timm:resnet81", "timm has no model 'resnet81': did you mean 'resnet18'"),
    ],
)
def test_what_cannot_be_built_is_said(folder: Path, name: str, message: str) -> None:
    for package in ("torchvision", "timm"):
        if name.startswith(package):
            needed("timm")
    with pytest.raises(TensorPressError, match=message):
        load_model(name)


@pytest.mark.parametrize("origin", ["torchvision", "timm", "hf"])
def test_a_package_that_is_missing_is_named(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorpress.models.optional_imports.find_spec", lambda _: None)
    package = "transformers" if origin == "hf" else origin
    with pytest.raises(TensorPressError, match=f"pip install {package}"):
        load_model(f"{origin}:resnet18")


def test_models_of_torchvision_and_timm() -> None:
    needed("timm")
    assert load_model("torchvision:squeezenet1_1,num_classes=7").num_classes == 7
    assert load_model("timm:test_resnet,num_classes=7", meta=True).num_classes == 7
    segmenter = load_model("torchvision:lraspp_mobilenet_v3_large", meta=True)
    assert next(segmenter.parameters()).is_meta


def test_weights_are_loaded_from_safetensors(tmp_path: Path) -> None:
    dense = build("lenet5")
    save_weights(dense, tmp_path / "w.safetensors")
    result = load_model("lenet5", weights=tmp_path / "w.safetensors")
    assert torch.equal(result.ip1.weight, dense.ip1.weight)
    with pytest.raises(InvalidArgumentError, match="meta device"):
        load_model("lenet5", weights=tmp_path / "w.safetensors", meta=True)


def test_weights_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataNotFoundError, match="no weight file"):
        load_model("lenet5", weights=path)
    state = {name: value.clone() for name, value in build("lenet5").state_dict().items()}
    save_file({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(ModelMismatchError, match=r"Names in the file start with 'module\.'"):
        load_model("lenet5", weights=path)
    save_file({name: value for name, value in state.items() if name != "ip1.bias"}, path)
    with pytest.raises(ModelMismatchError, match=r"'ip1\.bias' \(nearest") as refused:
        load_model("lenet5", weights=path)
    assert "in the model" not in str(refused.value)
    save_file(state | {"ip1.bias": torch.zeros(3)}, path)
    with pytest.raises(ModelMismatchError, match=r"'ip1\.bias' has shape \(3,\)"):
        load_model("lenet5", weights=path)


def test_a_file_may_lack_the_prefix_of_the_model(folder: Path) -> None:
    (folder / "wrapped.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.ModuleDict({'model': nn.Linear(3, 2)})\n"
    )
    save_file(nn.Linear(3, 2).state_dict(), folder / "w.safetensors")
    with pytest.raises(ModelMismatchError, match=r"Names in the model start with 'model\.'"):
        load_model("wrapped:net", weights=folder / "w.safetensors")


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_of_torch_is_read(tmp_path: Path, key: str | None) -> None:
    dense, path = build("lenet300100"), tmp_path / "w.pt"
    state = dense.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    result = load_model("lenet300100", weights=path)
    assert torch.equal(result.ip1.weight, dense.ip1.weight)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of the file ran",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pth"
    torch.save({"ip1.weight": Code()}, path)
    with pytest.raises(CorruptFileError, match="has more than tensors"):
        load_model("lenet300100", weights=path)
    assert not capsys.readouterr().out


def test_files_of_torch_that_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(DataNotFoundError, match="no weight file"):
        load_model("lenet300100", weights=path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CorruptFileError, match="is not a complete"):
        load_model("lenet300100", weights=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CorruptFileError, match="is not a state dict"):
        load_model("lenet300100", weights=path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed("transformers")
    transformers = transformers_library()
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def copied(saved: Path, target: Path, *files: str) -> Path:
    target.mkdir()
    for file in files:
        (target / file).write_bytes((saved / file).read_bytes())
    return target


def test_a_model_of_transformers_with_the_weights_of_its_folder(saved: Path) -> None:
    model = load_model(f"hf:{saved}")
    assert type(model).__name__ == "LlamaForCausalLM"
    stored = load_file(saved / "model.safetensors")
    for name, value in stored.items():
        assert torch.equal(model.state_dict()[name], value)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    empty = load_model(f"hf:{saved}", meta=True)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight


def test_a_folder_without_weights_is_built_from_its_config_and_that_is_said(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = copied(saved, tmp_path / "bare", "config.json")
    with caplog.at_level(logging.WARNING, "tensorpress"):
        model = load_model(f"hf:{bare},vocab_size=50")
    assert model.lm_head.out_features == 50
    assert "has no weights" in caplog.text


def test_folders_that_cannot_be_loaded(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"has no config\.json"):
        load_model(f"hf:{tmp_path}")
    with pytest.raises(DataNotFoundError, match="is neither a folder"):
        load_model(f"hf:{tmp_path / 'no' / 'where'}")
    with pytest.raises(InvalidArgumentError, match="has no 'colour'"):
        load_model(f"hf:{saved},colour=3")
    with pytest.raises(InvalidArgumentError, match="is loaded with the weights"):
        load_model(f"hf:{saved}", weights=saved / "model.safetensors")
    pickled = copied(saved, tmp_path / "pickled", "config.json")
    (pickled / "pytorch_model.bin").touch()
    with pytest.raises(InvalidArgumentError, match="is a pickle"):
        load_model(f"hf:{pickled}")
    strange = copied(saved, tmp_path / "strange", "config.json", "model.safetensors")
    config = json.loads((strange / "config.json").read_text())
    for name in ("LlamaForFun", "Trainer", "AutoTokenizer"):
        (strange / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        with pytest.raises(InvalidArgumentError, match=f"is a {name}"):
            load_model(f"hf:{strange}")


def test_weights_that_a_folder_lacks_are_not_made_up(saved: Path, tmp_path: Path) -> None:
    short = copied(saved, tmp_path / "short", "config.json")
    stored = load_file(saved / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelMismatchError, match=r"no weights for 'model\.norm\.weight'"):
        load_model(f"hf:{short}")
    (short / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelMismatchError, match="cannot be read"):
        load_model(f"hf:{short}")
