"""Recipes and sweeps that come with the package, found by name."""

from pathlib import Path

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.runs.library import find_in_library, list_library

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["recipe", "sweep"])
def test_every_file_has_a_name_of_its_own(kind) -> None:
    files = list((ROOT / f"{kind}s").glob("**/*.yaml"))
    assert sorted(list_library(kind).values()) == sorted(files)


def test_files_in_the_package_go_before_those_of_a_checkout(tmp_path, monkeypatch) -> None:
    package = tmp_path / "src" / "tensorpress"
    for place in (package / "recipes" / "mnist", tmp_path / "recipes"):
        place.mkdir(parents=True)
        (place / f"{place.name}.yaml").touch()
    monkeypatch.setattr("tensorpress.runs.library.resources.files", lambda _: package)
    assert list(list_library("recipe")) == ["mnist"]
    assert list_library("sweep") == {}


@pytest.mark.parametrize("path", ["lenet5-adda.yaml", "my/lenet5-ada", "x.yml"])
def test_paths_stay_paths(path: str) -> None:
    assert find_in_library("recipe", path) == Path(path)


def test_a_file_without_a_suffix_goes_before_a_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_in_library("recipe", "lenet5-ada").is_absolute()
    Path("lenet5-ada").touch()
    assert find_in_library("recipe", "lenet5-ada") == Path("lenet5-ada")


def test_an_unknown_name_says_which_are_near() -> None:
    with pytest.raises(InvalidArgumentError, match="'lenet5-adda': did you mean 'lenet5-"):
        find_in_library("recipe", "lenet5-adda")
