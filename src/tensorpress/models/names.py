"""Names of models: an origin, a name and keyword arguments."""

from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.config_parsing import parse_yaml

LIBRARIES = ("torchvision", "timm", "hf")
"""Origins before the colon, besides modules of functions."""

FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID or package.module:function"
"""The formats of names outside the zoo, for messages."""


@dataclass(frozen=True)
class ModelName:
    """The parts of a model's name.

    Attributes
    ----------
    origin : str
        One of `LIBRARIES`, the module of a function, or "" for the zoo.
    name : str
        The name of the model or function.
    options : dict
        Keyword arguments of the function that builds the model.
    """

    origin: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the name without its options."""
        return f"{self.origin}:{self.name}" if self.origin else self.name


def parse_name(text: str) -> ModelName:
    """Parse a model name, ``[ORIGIN:]NAME[,KEY=VALUE]...``.

    Values are parsed as YAML: numbers, true, false, null, or else text.

    Raises
    ------
    InvalidArgumentError
        If a part is empty, or an option has no value.

    Examples
    --------
    >>> parse_name("torchvision:resnet18,num_classes=10")
    ModelName(origin='torchvision', name='resnet18', options={'num_classes': 10})
    >>> parse_name("resnet20")
    ModelName(origin='', name='resnet20', options={})
    """
    path, *pairs = text.split(",")
    origin, colon, name = path.rpartition(":")
    if not name or (colon and not origin):
        raise InvalidArgumentError(
            f"{text!r} is not a model name: expected a network of the zoo, {FORMS}"
        )
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals):
            raise InvalidArgumentError(
                f"{text!r}: expected KEY=VALUE after the comma, got {pair!r}"
            )
        options[key] = parse_yaml(value)
    return ModelName(origin, name, options)


def unknown_choice(
    owner: str, kind: str, name: str, known: Collection[str]
) -> InvalidArgumentError:
    """Return the error for an unknown name, which suggests similar names out of very many.

    Parameters
    ----------
    owner : str
        The package or module that lacks the name.
    kind : str
        The kind of object, such as "model".
    name : str
        The unknown name.
    known : collection of str
        All names of the owner.

    Examples
    --------
    >>> str(unknown_choice("timm", "model", "resnet81", ["resnet18", "vit_b"]))
    "timm has no model 'resnet81': did you mean 'resnet18'?"
    """
    near = get_close_matches(name, known, n=4)
    hint = f": did you mean {', '.join(map(repr, near))}?" if near else ""
    return InvalidArgumentError(f"{owner} has no {kind} {name!r}{hint}")
