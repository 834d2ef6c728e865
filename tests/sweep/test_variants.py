from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_sweeps import RECIPE, sweep_text

from tensorpress.errors import DataNotFoundError, InvalidArgumentError, TensorPressError
from tensorpress.sweep import SweepFile, Variant, read_sweep
from tensorpress.sweep.variants import apply_settings, make_variants

OURS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_project(path: Path) -> None:
    assert len(read_sweep(path)[1]) > 1


def read(folder: Path, **sections: Any) -> list[Variant]:
    path = folder / "sweep.yaml"
    path.write_text(sweep_text(**sections))
    return read_sweep(path)[1]


def test_values_are_combined_and_points_come_after_them(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        vary={"press.ranks": [2, 8], "quantize.step": [0.25, 0.5]},
        points=[{"press": {"scheme": "tucker2", "ranks": [3, 3]}, "quantize.step": 1}],
    )
    assert [variant.name for variant in found] == [
        "ranks=2 step=0.25",
        "ranks=2 step=0.5",
        "ranks=8 step=0.25",
        "ranks=8 step=0.5",
        "press={scheme: tucker2, ranks: [3, 3]} step=1",
    ]
    assert [variant.recipe.press.ranks for variant in found] == [2, 2, 8, 8, (3, 3)]
    assert [variant.recipe.quantize.step for variant in found] == [0.25, 0.5, 0.25, 0.5, 1]


def test_a_recipe_is_found_beside_the_file_and_need_not_be_complete(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    content = {key: value for key, value in RECIPE.items() if key != "quantize"}
    (tmp_path / "recipes" / "base.yaml").write_text(yaml.safe_dump(content))
    found = read(tmp_path, recipe="recipes/base.yaml", vary={"quantize.step": [1, 2]})
    assert [variant.recipe.quantize.step for variant in found] == [1, 2]


def test_null_leaves_a_section_out(tmp_path: Path) -> None:
    points = [{"quantize": None, "rate": {"tradeoff": 0.1, "hard": {"epochs": 1, "lr": 0.1}}}]
    [variant] = read(tmp_path, vary={}, points=points)
    assert variant.recipe.quantize is None
    assert variant.recipe.rate.tradeoff == 0.1


def test_names_tell_keys_with_the_same_ending_apart(tmp_path: Path) -> None:
    vary = {"press.ranks": [4], "press.overrides.ip1.ranks": [2, 3], "dense.lr": [0.1]}
    names = [variant.name for variant in read(tmp_path, vary=vary)]
    assert names == [f"press.ranks=4 ip1.ranks={rank} lr=0.1" for rank in (2, 3)]


def test_long_values_are_shortened_and_their_names_stay_different(tmp_path: Path) -> None:
    overrides = [{"ip1": {"ranks": 4}, "ip2": {"ranks": 3}, "ip3": {"ranks": r}} for r in (1, 2)]
    for one in overrides:
        one["ip1"]["scheme"] = "channel_svd"
    names = [v.name for v in read(tmp_path, vary={"press.overrides": overrides})]
    assert len(set(names)) == 2
    assert all(len(name) < 80 for name in names)


def test_a_point_may_say_its_name(tmp_path: Path) -> None:
    points = [{"name": "fine", "quantize.step": 0.1}, {"quantize.step": 0.2}, {"name": "as it is"}]
    found = read(tmp_path, vary={}, points=points)
    assert [variant.name for variant in found] == ["fine", "step=0.2", "as it is"]
    assert found[0].settings == {"quantize.step": 0.1}
    unnamed = read(tmp_path, vary={}, points=[{"quantize.step": 0.1}])
    assert found[0].id == unnamed[0].id


def test_an_id_is_of_the_recipe_alone(tmp_path: Path) -> None:
    small = read(tmp_path)
    large = read(tmp_path, vary={"press.ranks": [2, 4, 8], "quantize.step": [0.5]})
    assert [v.id for v in small] == [large[0].id, large[2].id]
    assert len({v.id for v in large}) == 3


def test_keys_with_dots_in_them_are_found() -> None:
    content = {"overrides": {"a.b": {"ranks": 1}, "a": {"b": {"ranks": 2}}}}
    changed = apply_settings(content, {"overrides.a.b.ranks": 5, "overrides.c.d": 6})
    assert changed == {"overrides": {"a.b": {"ranks": 5}, "a": {"b": {"ranks": 2}}, "c": {"d": 6}}}
    assert content["overrides"]["a.b"] == {"ranks": 1}


BAD = [
    ({"vary": {"press.rank": [2]}}, r"variant rank=2: .*press\.rank: unknown key.*'ranks'"),
    ({"vary": {"pres.ranks": [2]}}, r"variant ranks=2: .*pres: unknown key.*'press'"),
    ({"vary": {"press.ranks": [2, -1]}}, r"variant ranks=-1: .*press\.ranks: expected"),
    (
        {"vary": {"press.ranks.first": [2]}},
        r"press\.ranks\.first: ranks is not a mapping and has no keys",
    ),
    ({"vary": {"press.ranks": [10000]}}, r"variant ranks=10000: "),
    ({"vary": {"press.targets": [["nothing"]]}}, r"variant targets=\[nothing\]: .*'nothing'"),
    ({"vary": {"network": ["lenet6"]}}, r"variant network=lenet6: .*did you mean 'lenet5'"),
    ({"vary": {"data.validation": [0]}}, r"variant validation=0: data\.validation must be above 0"),
    ({"vary": {"press.ranks": [2, 2]}}, r"variants ranks=2 and ranks=2 #2 are the same recipe"),
    ({"points": [{"press.ranks": 8}]}, r"are the same recipe"),
    ({"vary": {}}, r"vary, points or both"),
    ({"vary": {"press.ranks": []}}, r"vary\.press\.ranks: .*at least 1 item"),
    ({"vary": {"press.ranks": 2}}, r"vary\.press\.ranks: .*list"),
    ({"points": [{}]}, r"points\.0: .*at least 1"),
    ({"points": [{"name": 3, "press.ranks": 1}]}, r"points: .*the name of a point must be text"),
    ({"varies": {}}, r"varies: unknown key, did you mean 'vary'"),
    ({"recipe": 3}, r"recipe: expected a recipe or the path of one"),
    ({"references": [{"name": "x", "bytes": 0, "error": 1}]}, r"references\.0\.bytes"),
]


@pytest.mark.parametrize(("sections", "message"), BAD, ids=lambda x: str(x)[:40])
def test_mistakes_name_the_variant_and_the_key(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"(?s)sweep.yaml: .*{message}"):
        read(tmp_path, **sections)


@pytest.mark.parametrize(
    ("text", "message"), [("- 1\n", "mapping with keys"), ("a: [", "cannot be read as YAML")]
)
def test_what_is_no_sweep_at_all(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(TensorPressError, match=message):
        read_sweep(tmp_path / "sweep.yaml")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no sweep at .*none\.yaml"):
        read_sweep(tmp_path / "none.yaml")
    with pytest.raises(DataNotFoundError, match=r"no recipe at .*none\.yaml"):
        read(tmp_path, recipe="none.yaml")


def test_the_example_of_the_page_can_be_run() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "sweeps.md").read_text(encoding="utf-8")
    asked = SweepFile.model_validate(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]))
    base = yaml.safe_load((root / asked.recipe).read_text(encoding="utf-8"))
    assert len(make_variants(base, asked)) == 8
