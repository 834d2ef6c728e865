"""Sweep files, and the variants of their recipe."""

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tensorpress.errors import DataNotFoundError, InvalidArgumentError, TensorPressError
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.recipe_plan import try_plan
from tensorpress.utils.config_parsing import parse_yaml, validate
from tensorpress.utils.paths import read_file

Settings = Mapping[str, Any]
"""Values that a variant changes in the recipe, by dotted key."""

_LONGEST = 60
_NAME = "name"  # key of a point that is not part of the recipe


class Reference(BaseModel):
    """A published result to compare with: its bytes, and its error in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    error: Annotated[float, Field(ge=0, le=100)]


class SweepFile(BaseModel):
    """A recipe and the settings that vary in it.

    ``recipe`` is a mapping, or the path of a file relative to this one. ``vary`` maps dotted keys
    to lists of values, and every combination of values is a variant. Each of ``points`` is one more
    variant, with an optional ``name``. A value may be a whole section, and null removes a section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Any
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    points: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    references: list[Reference] = Field(default_factory=list)

    @field_validator("recipe")
    @classmethod
    def _check_recipe(cls, recipe: Any) -> Any:
        if not isinstance(recipe, str | dict):
            raise ValueError("expected a recipe or the path of one")
        return recipe

    @field_validator("points")
    @classmethod
    def _check_names(cls, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for point in points:
            if _NAME in point and not (isinstance(point[_NAME], str) and point[_NAME].strip()):
                raise ValueError(f"the name of a point must be text, got {point[_NAME]!r}")
        return points

    @model_validator(mode="after")
    def _check_settings(self) -> "SweepFile":
        if not (self.vary or self.points):
            raise ValueError("needs vary, points or both")
        return self

    def settings(self) -> Iterator[tuple[str | None, Settings]]:
        """Yield the name of each variant, or None, and its settings."""
        if self.vary:
            for values in product(*self.vary.values()):
                yield None, dict(zip(self.vary, values, strict=True))
        for point in self.points:
            yield point.get(_NAME), {key: value for key, value in point.items() if key != _NAME}


@dataclass(frozen=True)
class Variant:
    """One recipe of a sweep, and the settings in which it differs from the others."""

    name: str
    settings: Settings
    recipe: Recipe

    @property
    def id(self) -> str:
        """A hash of the recipe, which does not change when a sweep gets more variants."""
        return sha256(self.recipe.to_yaml().encode()).hexdigest()[:12]


def read_sweep(path: str | os.PathLike[str]) -> tuple[SweepFile, list[Variant]]:
    """Read a sweep file and check every variant.

    Raises
    ------
    DataNotFoundError
        If the file, or that of its recipe, does not exist.
    InvalidArgumentError
        If a file is not YAML, or a variant is not a valid recipe; the message names the variant and
        the key.
    """
    file = Path(path)
    content = _read_yaml(file, "sweep")
    try:
        sweep = validate(SweepFile, content, "sweep")
        if isinstance(sweep.recipe, str):
            base = _read_yaml(file.parent / sweep.recipe, "recipe")
        else:
            base = sweep.recipe
        return sweep, make_variants(base, sweep)
    except DataNotFoundError:
        raise
    except TensorPressError as error:
        raise InvalidArgumentError(f"{file}: {error}") from None


def make_variants(base: Any, sweep: SweepFile) -> list[Variant]:
    """Return the variants of a recipe, which may be incomplete without their settings.

    Raises
    ------
    InvalidArgumentError
        If a variant is not a valid recipe; the message names the variant and the error.

    Examples
    --------
    >>> from tensorpress.runs.recipe import EXAMPLE
    >>> sweep = SweepFile(recipe={}, vary={"press.budget": ["params=4000", "params=3000"]})
    >>> [variant.name for variant in make_variants(parse_yaml(EXAMPLE), sweep)]
    ['budget=params=4000', 'budget=params=3000']
    """
    if not isinstance(base, dict):
        raise InvalidArgumentError("a recipe must be a mapping with keys such as title and network")
    variants: dict[str, Variant] = {}
    tried: set[str] = set()
    points = list(sweep.settings())
    for (_, settings), name in zip(points, _make_names(points), strict=True):
        try:
            recipe = validate(Recipe, apply_settings(base, settings), "recipe")
            if not recipe.data.validation:
                raise InvalidArgumentError("data.validation must be above 0, to compare variants")
            plan = f"{recipe.network} {recipe.input} {recipe.data.name} {recipe.press}"
            if plan not in tried:
                try_plan(recipe_network(recipe), recipe)
                tried.add(plan)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"variant {name}: {error}") from None
        variant = Variant(name, settings, recipe)
        first = variants.setdefault(variant.id, variant)
        if first is not variant:
            raise InvalidArgumentError(f"variants {first.name} and {name} are the same recipe")
    return list(variants.values())


def apply_settings(content: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a copy of nested dictionaries with new values at dotted keys.

    Keys of the content may have dots themselves, as names of layers do.

    Raises
    ------
    InvalidArgumentError
        If a key goes through a value that is not a dictionary.

    Examples
    --------
    >>> content = {"press": {"overrides": {"layer1.0": {"ranks": 4}}}}
    >>> apply_settings(content, {"press.overrides.layer1.0.ranks": 3, "seed": 1})
    {'press': {'overrides': {'layer1.0': {'ranks': 3}}}, 'seed': 1}
    """
    changed = deepcopy(dict(content))
    for key, value in settings.items():
        section, parts = changed, key.split(".")
        while parts:
            name = _first_key(section, parts)
            parts = parts[name.count(".") + 1 :]
            if not parts:
                section[name] = deepcopy(value)
                break
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise InvalidArgumentError(f"{key}: {name} is not a mapping and has no keys")
    return changed


def _first_key(section: Mapping[str, Any], parts: list[str]) -> str:
    """Return the longest key in a section that is a prefix of a dotted key, or its first part."""
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in section:
            return ".".join(parts[:end])
    return parts[0]


def _make_names(points: list[tuple[str | None, Settings]]) -> list[str]:
    """Return explicit names, or values with the ends of keys that tell variants apart."""
    keys = list(dict.fromkeys(key for _, settings in points for key in settings))
    names: list[str] = []
    for explicit, settings in points:
        parts = [
            f"{_shorten_key(key, keys)}={_format_value(value)}" for key, value in settings.items()
        ]
        name = explicit or " ".join(parts)
        duplicates = sum(other.partition(" #")[0] == name for other in names)
        names.append(f"{name} #{duplicates + 1}" if duplicates else name)
    return names


def _shorten_key(key: str, keys: list[str]) -> str:
    parts = key.split(".")
    for start in range(len(parts) - 1, 0, -1):
        ending = ".".join(parts[start:])
        if sum(f".{other}".endswith(f".{ending}") for other in keys) == 1:
            return ending
    return key


def _format_value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    text = text.strip().removesuffix("\n...").strip()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _read_yaml(file: Path, kind: str) -> Any:
    content = read_file(file, kind)
    try:
        return parse_yaml(content)
    except TensorPressError as error:
        raise InvalidArgumentError(f"{file}: {error}") from None
