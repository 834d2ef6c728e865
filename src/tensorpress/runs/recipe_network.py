"""The network of a recipe: from the zoo, or any other with a head for the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from tensorpress.codec.save_load import load
from tensorpress.data.splits import describe_images, find_weights
from tensorpress.errors import TensorPressError
from tensorpress.models.classifier import (
    build_classifier,
    check_classifier,
    check_trainable,
    default_preprocess,
)
from tensorpress.models.weights import load_weights
from tensorpress.models.zoo import NETWORKS, Network
from tensorpress.models.zoo.weights import fill_model
from tensorpress.press.unpress import unpress
from tensorpress.runs.recipe import Recipe

_OR_TRAIN = ", or let the recipe train it (with dense instead of weights)"


def recipe_network(recipe: Recipe) -> Network:
    """Return the network of a recipe, without building it yet.

    Examples
    --------
    >>> from tensorpress.runs.recipe import EXAMPLE, parse_recipe
    >>> recipe_network(parse_recipe(EXAMPLE)).input_shape
    (1, 28, 28)
    >>> recipe_network(parse_recipe(EXAMPLE.replace("lenet300100", "timm:resnet18"))).input_shape
    (1, 8, 8)
    """
    return NETWORKS.get(recipe.network) or _other_network(recipe, recipe.network, "network")


def teacher_network(recipe: Recipe, name: str) -> Network:
    """Return the teacher's network, which takes the images of the recipe's network."""
    return NETWORKS.get(name) or _other_network(recipe, name, "teacher.network")


def _other_network(recipe: Recipe, name: str, key: str) -> Network:
    """Return a network from outside the zoo."""
    shape, classes = describe_images(recipe.data.origin, recipe.data.root)
    student = NETWORKS.get(recipe.network)
    shape = student.input_shape if student else recipe.input or shape
    preprocess = student.preprocess if student else default_preprocess(shape[0])
    new_head = key == "network" and recipe.dense is not None
    phases = (recipe.dense, recipe.train, recipe.quantize, recipe.rate)
    trained = key == "network" and any(phase is not None for phase in phases)
    build = partial(_build, key, name, shape, classes, new_head=new_head, trained=trained)
    return Network(name, build, shape, classes, preprocess, description="", source="")


def _build(
    key: str, name: str, shape: tuple[int, ...], classes: int, *, new_head: bool, trained: bool
) -> nn.Module:
    """Build a network and check that it fits the data; errors name the key of the recipe."""
    with _name_key(key):
        model = build_classifier(name, classes, new_head=new_head)
        check_classifier(model, shape, classes)
        if trained:
            check_trainable(model, shape)
    return model


def load_dense_weights(model: nn.Module, recipe: Recipe, net: Network) -> None:
    """Load the recipe's weights into the dense network.

    If the recipe also trains the network, the weights may be for other classes: the head is then
    new.

    Raises
    ------
    TensorPressError
        If the file is missing, damaged or does not fit the network.
    """
    assert recipe.weights is not None
    path = find_weights(recipe.weights, recipe.data.root, _OR_TRAIN)
    new_head = net.classes if recipe.dense is not None else None
    with _name_key("weights"):
        if path.suffix == ".tpz":
            fill_model(model, unpress(load(path, model)).state_dict(), path)
        else:
            load_weights(model, path, new_head=new_head)


@contextmanager
def _name_key(key: str) -> Iterator[None]:
    try:
        yield
    except TensorPressError as error:
        raise type(error)(f"{key}: {error}") from error
