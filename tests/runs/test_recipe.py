import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.data import AUGMENTATIONS, MIXED
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.models.zoo import NETWORKS, build
from tensorpress.planning import SCHEMES
from tensorpress.ranks.rules import NAMES
from tensorpress.runs.recipe import EXAMPLE, Recipe, parse_recipe, read_recipe
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.recipe_plan import plan_recipe, try_plan
from tensorpress.schemes.registry import rank_schemes

FOLDER = Path(__file__).parents[2] / "recipes"
DEMO = Path(__file__).parents[2] / "src" / "tensorpress" / "runs" / "demo.yaml"
FILES = [*sorted(FOLDER.glob("**/*.yaml")), DEMO]


def changed(**sections: Any) -> str:
    """The example with sections replaced, or left out where None is given."""
    content = yaml.safe_load(EXAMPLE) | sections
    return yaml.safe_dump({key: value for key, value in content.items() if value is not None})


def mistakes_in(text: str) -> list[str]:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_recipe(text)
    first, *mistakes = str(caught.value).split("\n  ")
    assert first == "the recipe has mistakes:"
    return mistakes


def test_a_budget_out_of_reach_is_known_before_training() -> None:
    for press in (
        {"budget": "params=0.1%"},
        {"budget": "macs=0.1%", "scheme": ["tucker2", "channel_svd"]},
        {
            "budget": "params=0.5%",
            "overrides": {"ip1": {"scheme": "channel_svd", "ranks": "evbmf"}},
        },
    ):
        recipe = parse_recipe(changed(press=press))
        with pytest.raises(InvalidArgumentError, match="is out of reach: at the smallest"):
            try_plan(recipe_network(recipe), recipe)
    recipe = parse_recipe(changed(press={"budget": "params=10%"}))
    try_plan(recipe_network(recipe), recipe)


def test_the_example() -> None:
    recipe = parse_recipe(EXAMPLE)
    assert recipe.network == "lenet300100"
    assert recipe.dense is not None
    assert recipe.dense.lr == 0.001
    assert recipe.quantize.coder == "range"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_recipes_of_the_project(path: Path) -> None:
    recipe = read_recipe(path)
    assert parse_recipe(recipe.to_yaml()) == recipe
    if recipe.network not in NETWORKS:  # test_other_network_recipes.py
        return
    plan = plan_recipe(build(recipe.network), recipe)
    if recipe.press is None:
        assert not plan.layers
        return
    assert plan.params < plan.dense_params / (2.77 if path.stem == "nin-sparse" else 3)
    assert (
        not any("not named" in reason for reason in plan.unpressed.values())
        or "resnet" in path.stem
        or "wrn" in path.stem
    )


RANKS = "a list of positive numbers, one for all, a fraction, " + " or ".join(NAMES)

train = st.fixed_dictionaries(
    {"epochs": st.integers(1, 500), "lr": st.floats(1e-8, 10)},
    optional={
        "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "schedule": st.sampled_from(["constant", "cosine"]),
        "clip_norm": st.floats(1e-3, 1e3),
        "channels_last": st.booleans(),
        "distill": st.fixed_dictionaries({}, optional={"temperature": st.floats(0.5, 9)}),
    },
)
shape = st.fixed_dictionaries(
    {
        "modes": st.just("original") | st.lists(st.integers(1, 999), min_size=1),
        "ranks": st.integers(1, 99) | st.lists(st.integers(1, 99), min_size=1),
    },
    optional={"diagonal": st.booleans()},
)
ranks = (
    st.integers(1, 99)
    | st.floats(1e-6, 1)
    | st.sampled_from(["evbmf", "energy:0.9"])
    | st.lists(st.integers(1, 99), min_size=1)
)
entry = st.fixed_dictionaries(
    {}, optional={"ranks": ranks, "scheme": st.sampled_from(sorted(SCHEMES))}
)
# Without line breaks that only Unicode knows and no editor types.
letters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\ufeff")
name = st.text(letters, min_size=1)
recipes = st.fixed_dictionaries(
    {
        "title": st.text(letters),
        "network": st.sampled_from(sorted(NETWORKS)),
        "data": st.fixed_dictionaries(
            {"name": name, "validation": st.integers(0, 10**6)},
            optional={
                "root": st.just("some/folder"),
                "augment": st.sampled_from(sorted(set(AUGMENTATIONS) - MIXED)),
                "batch_size": st.integers(1, 4096),
            },
        ),
        "press": st.fixed_dictionaries(
            {"scheme": st.just("ada_tucker"), "budget": st.integers(1).map("params={}".format)},
            optional={"skip": st.lists(name)},
        )
        | st.fixed_dictionaries(
            {"scheme": st.sampled_from(sorted(rank_schemes())), "ranks": ranks},
            optional={"overrides": st.dictionaries(name, entry), "init": st.just("kaiming")},
        )
        | st.fixed_dictionaries(
            {
                "overrides": st.dictionaries(name, shape),
                "scheme": st.sampled_from(sorted(SCHEMES)),
            },
            optional={
                "init": st.sampled_from(["decompose", "glorot", "kaiming"]),
            },
        ),
        "quantize": st.fixed_dictionaries(
            {"step": st.floats(1e-6, 4)},
            optional={"coder": st.sampled_from(["range", "huffman"]), "finetune": train},
        )
        | st.fixed_dictionaries(
            {"levels": st.integers(1, 2**15).map(lambda n: 2 * n), "bound": st.floats(1e-6, 1e6)},
            optional={"rounding": st.sampled_from(["nearest", "floor"])},
        ),
    },
    optional={"train": train},
)


@settings(max_examples=60)
@given(content=recipes, dense=train, trained=st.booleans())
def test_what_is_written_is_read(content: dict[str, Any], dense: Any, trained: bool) -> None:
    source = {"dense": dense} if trained else {"weights": "folder/weights.safetensors"}
    recipe = Recipe.model_validate(content | source)
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_mixed_images_are_for_those_who_listen_to_a_teacher_alone() -> None:
    mixed = {"name": "cifar10", "validation": 0, "augment": "crop-flip-mix"}
    listening = {"epochs": 1, "lr": 0.1, "distill": {"weight": 1}}
    half = {"epochs": 1, "lr": 0.1, "distill": {"weight": 0.5}}
    content = {"title": "t", "network": "resnet20", "data": mixed, "weights": "w.safetensors"}
    rate = {"tradeoff": 0.1, "hard": listening}
    Recipe.model_validate(content | {"rate": rate})
    for wrong in (rate | {"noise": half}, rate | {"hard": {"epochs": 1, "lr": 0.1}}):
        with pytest.raises(ValueError, match="every training phase needs distill with weight 1"):
            Recipe.model_validate(content | {"rate": wrong})


def test_a_teacher_is_one_that_can_be_listened_to() -> None:
    content = {
        "title": "t",
        "network": "lenet5",
        "data": {"name": "digits", "validation": 10},
        "dense": {"epochs": 1, "lr": 0.1},
        "teacher": {"network": "lenet300100", "weights": "a.safetensors"},
        "train": {"epochs": 1, "lr": 0.1, "distill": {}},
        "quantize": {"step": 0.5},
    }
    assert parse_recipe(yaml.safe_dump(content)).teacher is not None
    for change, mistake in (
        ({"train": {"epochs": 1, "lr": 0.1}}, "teacher needs a training phase"),
        (
            {"teacher": {"network": "resnet56", "weights": "a"}},
            "resnet56 must take the same images",
        ),
        ({"teacher": {"network": "lenet6", "weights": "a"}}, "did you mean 'lenet5'"),
    ):
        with pytest.raises(InvalidArgumentError, match=mistake):
            parse_recipe(yaml.safe_dump(content | change))


def test_every_mistake_is_told_at_once_with_its_key() -> None:
    text = changed(
        titel="Two titles",
        network="lenet500",
        data={"name": "digits", "validaton": 3, "augment": "shift3"},
        dense={"epochs": 0, "lr": 0.1, "distill": {"temprature": 2}},
        press={"scheme": "ada_tuker", "budget": "many", "innit": "decompose"},
        quantize={"levels": 128, "bound": float("nan"), "coder": "zip"},
    )
    mistakes = mistakes_in(text)
    expected = [
        ("titel", "did you mean 'title'"),
        ("network", "unknown network 'lenet500': did you mean 'lenet5'"),
        ("data.validation", "required"),
        ("data.validaton", "did you mean 'validation'"),
        ("data.augment", "unknown augmentation 'shift3': did you mean 'shift"),
        ("dense.epochs", "greater than or equal to 1 (got 0)"),
        ("dense.distill.temprature", "did you mean 'temperature'"),
        ("press.scheme", "did you mean 'ada_tucker' or 'scada_tucker'"),
        ("press.budget", "KIND=AMOUNT"),
        ("press.innit", "did you mean 'init'"),
        ("quantize.bound", "(got nan)"),
        ("quantize.coder", "'range' or 'huffman' (got 'zip')"),
    ]
    for key, message in expected:
        told = [mistake for mistake in mistakes if mistake.startswith(f"{key}: ")]
        assert len(told) == 1, key
        assert message in told[0]
    assert len(mistakes) == len(expected)


def test_keys_that_are_near_to_nothing_come_with_the_known_ones() -> None:
    assert mistakes_in(changed(zzz=1)) == [
        "zzz: unknown key (known: title, network, input, data, weights, dense, teacher, press, "
        "train, quantize, rate)"
    ]


def test_mistakes_in_the_shapes_of_layers() -> None:
    layers = {
        "ip1": {"modes": [28, "x"], "ranks": "big"},
        "ip2": {"modes": "originl", "ranks": 0},
        "ip3": {"mode": 3},
    }
    assert mistakes_in(changed(press={"scheme": "ada_tucker", "overrides": layers})) == [
        "press.overrides.ip1.modes: expected a list of positive sizes, or original (got [28, 'x'])",
        f"press.overrides.ip1.ranks: expected {RANKS} (got 'big')",
        "press.overrides.ip2.modes: expected a list of positive sizes, or original (got 'originl')",
        f"press.overrides.ip2.ranks: expected {RANKS} (got 0)",
        "press.overrides.ip3: unknown key 'mode': did you mean 'modes' or 'row_modes'? "
        "(known: column_modes, diagonal, modes, positions, ranks, reduced, row_modes, scheme)",
    ]


def test_any_option_of_a_scheme_is_a_key() -> None:
    options = {"row_modes": (12, 25), "column_modes": (28, 28)}
    entry = {"scheme": "tt_weight", **{name: list(sizes) for name, sizes in options.items()}}
    press = {"scheme": "channel_svd", "ranks": 3, "overrides": {"ip1": entry}}
    parsed = parse_recipe(changed(press=press))
    assert parse_recipe(parsed.to_yaml()) == parsed
    assert plan_recipe(build("lenet300100"), parsed).layers[0].options == options
    [mistake] = mistakes_in(
        changed(press=press | {"overrides": {"ip1": entry | {"diagonal": True}}})
    )
    assert mistake.startswith("press.overrides.ip1: unknown key 'diagonal'")


LAYERS = {"ip1": {"modes": [784, 300], "ranks": 3}}
TRAIN = {"epochs": 1, "lr": 0.1}


@pytest.mark.parametrize(
    ("sections", "mistake"),
    [
        (
            {"press": {"scheme": "ada_tucker"}},
            "press: ada_tucker needs either a budget, or overrides",
        ),
        (
            {"press": {"scheme": "ada_tucker", "budget": "params=9", "overrides": LAYERS}},
            "press: ada_tucker needs either a budget, or overrides",
        ),
        ({"dense": None}, "recipe: needs weights (a file), dense"),
        ({"dense": None, "network": "timm:resnet18"}, "recipe: needs weights (a file), dense"),
        (
            {"network": "hf:a", "weights": "a.pt"},
            "recipe: weights must not be set for a Hugging Face model",
        ),
        (
            {"input": [1, 8, 8]},
            "recipe: input must not be set for a network of the zoo: lenet300100",
        ),
        ({"network": "torchvision:"}, "network: 'torchvision:' is not a model name"),
        ({"network": "a:b,c"}, "network: 'a:b,c': expected KEY=VALUE after the comma, got 'c'"),
        ({"quantize": {}}, "quantize: needs either levels and bound, or step"),
        ({"quantize": None}, "recipe: needs either quantize or rate"),
        (
            {"rate": {"tradeoff": 0.1, "hard": TRAIN}},
            "recipe: needs either quantize or rate",
        ),
        (
            {"quantize": None, "rate": {"tradeoff": 0, "hard": TRAIN}},
            "rate.tradeoff: Input should be greater than 0 (got 0)",
        ),
        (
            {"quantize": None, "rate": {"tradeoff": 0.1, "hard": {**TRAIN, "seed": 1}}},
            "recipe: the seed is an argument of the run, not part of the recipe",
        ),
        ({"quantize": {"levels": 64}}, "quantize: needs either levels and bound, or step"),
        ({"quantize": {"bound": 3}}, "quantize: needs either levels and bound, or step"),
        (
            {"quantize": {"levels": 64, "bound": 3, "step": 0.1}},
            "quantize: needs either levels and bound, or step",
        ),
        ({"quantize": {"levels": 63, "bound": 3}}, "quantize: levels must be an even number"),
        ({"quantize": {"step": float("nan")}}, "quantize.step: "),
        ({"quantize": {"step": 0}}, "quantize.step: "),
        ({"train": {**TRAIN, "seed": 3}}, "recipe: the seed is an argument of the run"),
        ({"dense": {**TRAIN, "seed": 0}}, "recipe: the seed is an argument of the run"),
        (
            {"quantize": {"step": 0.1, "finetune": {**TRAIN, "seed": 0}}},
            "recipe: the seed is an argument of the run",
        ),
        ({"train": {**TRAIN, "warmup_epochs": 2}}, "train: warmup_epochs must be below epochs"),
        ({"press": {"scheme": "ada_tucker", "budget": "params=0"}}, "press.budget: "),
        (
            {"press": {"scheme": "ada_tucker", "budget": "params=9", "init": "zeros"}},
            "press.init: ",
        ),
        ({"data": {"name": "digits", "validation": -1}}, "data.validation: "),
        ({"data": {"validation": 0}}, "data: needs either name (a dataset) or source"),
        (
            {"data": {"name": "digits", "source": "photos", "validation": 0}},
            "data: needs either name (a dataset) or source",
        ),
        ({"press": "all"}, "press: "),
        ({"press": {"scheme": "tucker2"}}, "press: give a budget, ranks for tucker2, or"),
        ({"press": {"budget": "macs=9", "ranks": 8}}, "press: give either ranks "),
        (
            {"press": {"budget": "macs=9", "ranks": "evbmf"}},
            "press: give either ranks ",
        ),
        (
            {"press": {"budget": "macs=9", "ranks": "uniform"}},
            f"press.ranks: expected {RANKS} (a rule that divides a budget is the",
        ),
        (
            {"press": {"budget": "macs=9", "allocation": "energy:0.5"}},
            "press.allocation: unknown allocation 'energy:0.5': did you mean 'energy'",
        ),
        (
            {"press": {"scheme": "cp", "ranks": 2, "start": "hooi"}},
            "press.start: unknown key, its name is now 'init'",
        ),
        (
            {"press": {"scheme": "cp", "layers": {}}},
            "press.layers: unknown key, its name is now 'overrides'",
        ),
        ({"press": {"ranks": "evbmf"}}, "press: ranks mean different things for auto"),
        (
            {"press": {"allocation": "energy"}},
            "press: allocation is the rule that divides a budget",
        ),
        (
            {"press": {"scheme": ["cp", "ada_tucker"], "ranks": 2}},
            "press.scheme: ada_tucker cannot be",
        ),
        ({"press": {"scheme": "ada_tucker", "ranks": 8}}, "press: ada_tucker takes no ranks for"),
        *(
            ({"press": {"scheme": "tucker2", "ranks": ranks}}, "press.ranks: expected a list of ")
            for ranks in (0, -1, 1.5, 0.0, True, "evbfm", "0.5", "energy:2", [0], [0.5], {}, ["8"])
        ),
        ({"title": ["a"] * 1000}, "title: Input should be a valid string (got ['a', 'a', "),
    ],
)
def test_what_does_not_go_together(sections: dict[str, Any], mistake: str) -> None:
    [told] = mistakes_in(changed(**sections))
    assert told.startswith(mistake)
    assert len(told) < 200


@pytest.mark.parametrize("text", ["", "- title\n- network\n", "lenet5", "3"])
def test_what_is_no_mapping(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="a recipe must be a mapping with keys"):
        parse_recipe(text)


def test_what_is_no_yaml() -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot be read as YAML(.|\n)*line 1"):
        parse_recipe("title: [")


def test_keys_that_are_no_text() -> None:
    assert mistakes_in(EXAMPLE + "1: 2\n") == ["1: Keys should be strings (got 1)"]


def test_numbers_may_be_written_as_people_do() -> None:
    recipe = parse_recipe(EXAMPLE.replace("lr: 0.01", "lr: 1e-2"))
    assert recipe.train is not None
    assert recipe.train.lr == 0.01


def test_aliases_that_would_fill_the_memory_do_no_harm() -> None:
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    start = time.perf_counter()
    title = EXAMPLE.replace("LeNet-300-100 on digits", "*x11")
    mistakes = mistakes_in("\n".join([*lines, title]))
    assert time.perf_counter() - start < 20  # not a hang, on any machine
    assert sum(map(len, mistakes)) < 100_000


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(DataNotFoundError, match=r"no recipe at .*a\.yaml"):
        read_recipe(path)
    path.write_text(EXAMPLE.replace("epochs", "epoch"))
    with pytest.raises(InvalidArgumentError, match=r"a\.yaml: the recipe has mistakes"):
        read_recipe(path)
    path.write_bytes(b"title: \xff\xfe")
    with pytest.raises(InvalidArgumentError, match=r"a\.yaml: .*utf-8"):
        read_recipe(path)
    path.write_text(EXAMPLE)
    assert read_recipe(str(path)) == parse_recipe(EXAMPLE)


def test_a_recipe_is_planned_as_it_says() -> None:
    recipe = parse_recipe(
        changed(press={"scheme": "ada_tucker", "budget": "params=9_000", "skip": ["ip3"]})
    )
    plan = plan_recipe(build("lenet300100"), recipe)
    assert plan.params <= 9_000
    assert plan.unpressed_weights == {"ip3": "skipped by 'ip3'"}


@pytest.mark.parametrize(
    ("ranks", "conv2"),
    [(8, (8, 8)), (0.5, (10, 25)), ([4, 9], (4, 9)), ("evbmf", (1, 1)), ("energy:1e-9", (1, 1))],
)
def test_ranks_for_all_layers(ranks: Any, conv2: tuple[int, ...]) -> None:
    text = changed(
        network="lenet5",
        press={"scheme": "tucker2", "ranks": ranks, "overrides": {"conv1": {"ranks": [1, 8]}}},
    )
    recipe = parse_recipe(text)
    assert parse_recipe(recipe.to_yaml()) == recipe
    torch.manual_seed(0)
    plan = plan_recipe(build("lenet5"), recipe)
    planned = {layer.name: layer.ranks for layer in plan.layers}
    assert (planned["conv1"], planned["conv2"]) == ((1, 8), conv2)


def test_the_initialization_is_that_of_the_scheme() -> None:
    for press, init in [
        ({"scheme": "tucker2", "ranks": 8}, "decompose"),
        ({"scheme": "tucker2", "ranks": 8, "init": "glorot"}, "glorot"),
        ({"scheme": "ada_tucker", "budget": "params=900"}, "kaiming"),
        ({"scheme": "ada_tucker", "budget": "params=900", "init": "decompose"}, "decompose"),
    ]:
        recipe = parse_recipe(changed(press=press))
        assert recipe.press.resolved_init == init
        assert ("init" in recipe.to_yaml()) == ("init" in press)


def test_ranks_by_responses_need_images_a_budget_and_a_scheme_of_theirs() -> None:
    press = {"scheme": "channel_svd", "allocation": "responses", "budget": "macs=30%"}
    press |= {"calibrate": 100}
    recipe = parse_recipe(changed(press=press))
    assert parse_recipe(recipe.to_yaml()) == recipe
    for missing in ("budget", "calibrate"):
        with pytest.raises(InvalidArgumentError, match="responses needs a budget and calibrate"):
            parse_recipe(changed(press={**press, missing: None}))
    with pytest.raises(InvalidArgumentError, match="for channel_svd and tucker1_out, not for tuck"):
        parse_recipe(changed(press=press | {"scheme": "tucker2"}))
    with pytest.raises(InvalidArgumentError, match=r"overrides\.ip1\.ranks"):
        parse_recipe(changed(press=press | {"overrides": {"ip1": {"ranks": "responses"}}}))


def test_norms_between_factors_need_drawn_factors_and_training() -> None:
    press = {"scheme": "channel_svd", "ranks": 8, "norms": True}
    with pytest.raises(InvalidArgumentError, match="norms needs random factors: set init"):
        parse_recipe(changed(press=press))
    press["init"] = "kaiming"
    assert parse_recipe(changed(press=press)).press.norms
    with pytest.raises(InvalidArgumentError, match=r"press\.norms needs train"):
        parse_recipe(changed(press=press, train=None))
