"""Recipes with networks that are not in the zoo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tensorpress.codec.save_load import save
from tensorpress.data import load as load_data
from tensorpress.data.splits import load_splits
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, TensorPressError
from tensorpress.models.classifier import default_preprocess
from tensorpress.models.zoo import build, network
from tensorpress.planning import plan
from tensorpress.press.press import press
from tensorpress.press.unpress import unpress
from tensorpress.runs.recipe import EXAMPLE, Recipe, parse_recipe
from tensorpress.runs.recipe_network import load_dense_weights, recipe_network, teacher_network
from tensorpress.runs.recipe_plan import try_plan

FUNCTIONS = """
import torch
from torch import nn


def net(channels=1, side=8, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 20), nn.ReLU(),
                         nn.Linear(20, classes))


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body, self.end = net(), end

    def forward(self, x):
        scores = self.body(x)
        return scores.long() if self.end == "integers" else scores.detach()


def scripted():
    return torch.jit.script(net())


def partly_scripted():
    return nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(64, 10)))


def bare():
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module of networks, as the current one."""
    (tmp_path / "recipe_nets.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


def recipe(network: str, **sections: Any) -> Recipe:
    content = yaml.safe_load(EXAMPLE) | {"network": network} | sections
    return parse_recipe(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    )


def test_a_network_takes_the_images_of_the_data() -> None:
    net = recipe_network(recipe("recipe_nets:net"))
    assert (net.input_shape, net.classes) == ((1, 8, 8), 10)
    images = load_splits(net, "digits").test.images
    assert net.build()(net.preprocess(images[:2])).shape == (2, 10)


def test_grey_images_become_colours_of_the_size_that_is_asked_for() -> None:
    net = recipe_network(recipe("recipe_nets:net,channels=3,side=12", input=[3, 12, 12]))
    images = load_splits(net, "digits").test.images
    assert images.shape[1:] == (3, 12, 12)
    assert torch.equal(images[:, 0], images[:, 2])
    grey = load_data("digits").test.resize(12, 12)
    assert torch.equal(images[:, :1], grey.images)
    assert net.preprocess == default_preprocess(3)
    with pytest.raises(InvalidArgumentError, match="does not fit resnet20"):
        load_splits(network("resnet20"), "digits")


def test_a_network_that_does_not_fit_is_said_with_the_key() -> None:
    for name, message in (
        ("recipe_nets:net,side=9", r"^network: the model fails on the input 1x1x8x8: layer"),
        (
            "recipe_nets:net,classes=9",
            r"^network: expected scores 1×10 for an image 1×8×8, got 1×9",
        ),
        ("recipe_nets:ned", r"^network: recipe_nets has no function 'ned'"),
        ("torchvision:resnet81", r"^network: torchvision has no model 'resnet81': did you mean"),
        ("recipe_nets:bare", "^network: Sequential has no parameters to train or press"),
        (
            "recipe_nets:Ends,end=integers",
            r"^network: expected scores of a floating-point dtype, got torch\.int64",
        ),
        ("recipe_nets:Ends,end=detached", "^network: the scores have no gradients"),
        ("recipe_nets:scripted", r"^network: the model is compiled by torch\.jit"),
        ("recipe_nets:partly_scripted", r"^network: layer '1' is compiled by torch\.jit"),
    ):
        wrong = recipe(name)
        with pytest.raises(TensorPressError, match=message):
            try_plan(recipe_network(wrong), wrong)
        dense = wrong.model_copy(update={"press": None})
        with pytest.raises(TensorPressError, match=message):
            try_plan(recipe_network(dense), dense)


def test_a_teacher_gets_the_images_of_the_network() -> None:
    student = recipe("recipe_nets:net,side=28", input=[1, 28, 28])
    assert teacher_network(student, "recipe_nets:net,side=28").input_shape == (1, 28, 28)
    zoo = teacher_network(recipe("lenet5"), "recipe_nets:net,side=28")
    assert zoo.input_shape == (1, 28, 28)
    assert zoo.preprocess == network("lenet5").preprocess
    assert teacher_network(student, "lenet5") is network("lenet5")


@pytest.mark.parametrize("pressed", [False, True])
def test_weights_of_a_tpz(tmp_path: Path, pressed: bool) -> None:
    model = build("lenet300100")
    if pressed:
        model = press(model, plan(model, scheme="channel_svd", ranks=5))
    save(model, tmp_path / "a.tpz", network="lenet300100", norms="float32")
    one = recipe("lenet300100", weights="a.tpz", dense=None)
    filled = build("lenet300100")
    load_dense_weights(filled, one, recipe_network(one))
    expected = unpress(model).ip2.weight.detach()
    assert float((filled.ip2.weight.detach() - expected).norm() / expected.norm()) < 0.05
    with pytest.raises(ModelMismatchError, match=r"^weights: a\.tpz"):
        load_dense_weights(build("lenet5"), one, recipe_network(one))


def test_weights_for_other_classes_are_for_those_that_are_trained(tmp_path: Path) -> None:
    from recipe_nets import net

    torch.save(net(classes=100).state_dict(), tmp_path / "a.pt")
    model: nn.Module = net()
    trained = recipe("recipe_nets:net", weights="a.pt")
    load_dense_weights(model, trained, recipe_network(trained))
    assert model[3].weight.shape == (10, 20)
    fixed = recipe("recipe_nets:net", weights="a.pt", dense=None)
    with pytest.raises(ModelMismatchError, match=r"^weights: a\.pt: '3\.weight' has shape"):
        load_dense_weights(model, fixed, recipe_network(fixed))
