"""Classifiers by name get a head for the classes of the data."""

import logging
from pathlib import Path

import pytest
import torch
from libraries import needed
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models.classifier import build_classifier, check_classifier, default_preprocess
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.weights import load_weights


def scores(model: nn.Module, *shape: int) -> torch.Size:
    output = model.eval()(torch.zeros(2, *shape))
    assert isinstance(output, torch.Tensor)
    return output.shape


def test_heads_of_torchvision_and_timm() -> None:
    needed("timm")
    assert scores(build_classifier("torchvision:squeezenet1_1", 7), 3, 32, 32) == (2, 7)
    assert scores(build_classifier("timm:test_resnet", 7), 3, 32, 32) == (2, 7)
    assert scores(build_classifier("timm:test_resnet,num_classes=9", 7), 3, 32, 32) == (2, 9)


def test_a_function_gets_what_the_name_says() -> None:
    model = build_classifier("torch.nn:Linear,in_features=3,out_features=2", 7)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed("transformers")
    transformers = transformers_library()
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    path = tmp_path_factory.mktemp("vit")
    transformers.ViTForImageClassification(config).save_pretrained(path)
    return path


def test_a_head_of_transformers_is_replaced_where_that_is_allowed(folder: Path) -> None:
    same = build_classifier(f"hf:{folder}", 3)
    assert scores(same, 1, 8, 8) == (2, 3)
    with pytest.raises(ModelMismatchError, match="cannot be read"):
        build_classifier(f"hf:{folder}", 5)
    other = build_classifier(f"hf:{folder}", 5, new_head=True)
    assert scores(other, 1, 8, 8) == (2, 5)
    one, two = same.state_dict(), other.state_dict()
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten(), "expected scores 1×10 for an image 1×2×2, got 1×4"),
        (nn.Conv2d(1, 10, 1), "for an image 1×2×2, got 1×10×2×2"),
        (nn.Conv2d(3, 10, 1), "fails on the input 1x1x2x2: .* 3 channels"),
    ],
)
def test_what_is_no_classifier_of_the_images(model: nn.Module, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_classifier(model.train(), (1, 2, 2), 10)
    assert model.training


def test_weights_for_other_classes_leave_the_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def net(width: int, classes: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))

    path = tmp_path / "w.pt"
    trained, fresh = net(6, 100), net(6, 3)
    head = fresh[2].weight.clone()
    torch.save(trained.state_dict(), path)
    with pytest.raises(ModelMismatchError, match=r"'2\.weight' has shape \(100, 6\)"):
        load_weights(fresh, path)
    with caplog.at_level(logging.INFO, "tensorpress"):
        load_weights(fresh, path, new_head=3)
    assert "'2.weight', '2.bias' are freshly initialized" in caplog.text
    assert torch.equal(fresh[0].weight, trained[0].weight)
    assert torch.equal(fresh[2].weight, head)
    with pytest.raises(ModelMismatchError, match="has shape"):  # another body
        load_weights(net(7, 3), path, new_head=3)


def test_pixels_become_inputs_by_their_number_of_channels() -> None:
    assert default_preprocess(3).std == (0.229, 0.224, 0.225)
    grey = default_preprocess(1)(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
    assert grey.item() == 1
