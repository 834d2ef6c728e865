import json

import pytest

from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.planning.scores import Scored, Scores

SCORES = Scores(
    "loss",
    0.25,
    {
        "conv": (
            Scored("tucker2", (3, 4), 0.5, True, 0.5),
            Scored("tucker2", (6, 8), 0.1, True, -1e-3),
        ),
        "fc": (Scored("channel_svd", (2,), 0.125, False),),
    },
    "worst",
)


def test_a_file_gives_the_scores_back(tmp_path):
    SCORES.save(tmp_path / "scores.json")
    assert Scores.read(tmp_path / "scores.json") == SCORES


def test_scores_of_an_unknown_layer_are_none_at_all():
    assert [choice.ranks for choice in SCORES.choices("conv")] == [(3, 4), (6, 8)]
    assert SCORES.choices("other") == ()


def test_an_unknown_rule_is_an_error():
    with pytest.raises(InvalidArgumentError, match="did you mean 'worst'"):
        Scores("loss", 0.0, {}, "wurst")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": []}', '{"metric": 1'])
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"scores\.json"):
        Scores.read(tmp_path / "scores.json")


@pytest.mark.parametrize("key", ["metric", "dense", "layers"])
def test_a_file_without_one_key_is_named(tmp_path, key):
    content = SCORES.to_dict()
    del content[key]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=key):
        Scores.read(tmp_path / "scores.json")


def test_no_file_is_told(tmp_path):
    with pytest.raises(DataNotFoundError, match="no scores file at"):
        Scores.read(tmp_path / "scores.json")
