from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorpress.data import model_batches, open_source
from tensorpress.data.class_numbers import class_numbers
from tensorpress.data.source import Batches, Source
from tensorpress.data.tokens import token_blocks
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.torchvision import mend_torchvision

VECTORS = [(torch.full((3,), float(n)), n % 4) for n in range(10)]
NET = nn.Linear(3, 4)


def batches_of(source: Source, model: Any = NET, name: str | None = None, **options: Any) -> Any:
    return list(model_batches(source, source.test, model, name, **options).batches)


def test_tensors_are_taken_as_they_are() -> None:
    [(inputs, labels)] = batches_of(Source("vectors", VECTORS))
    assert inputs[:, 0].tolist() == [*range(10)]
    assert labels.tolist() == [n % 4 for n in range(10)]


def test_a_sample_is_random_but_always_the_same() -> None:
    source = Source("vectors", VECTORS)
    [(first, _)], [(again, _)] = (batches_of(source, sample=4) for _ in range(2))
    assert torch.equal(first, again)
    assert first[:, 0].tolist() != [0, 1, 2, 3]
    assert len(set(first[:, 0].tolist())) == 4


def test_no_labels_and_arguments_by_name() -> None:
    [inputs] = batches_of(Source("vectors", [(x, None) for x, _ in VECTORS]))
    assert inputs.shape == (10, 3)
    named = Source("named", [({"input": x}, label) for x, label in VECTORS])
    [batch] = batches_of(named)
    assert {key: len(value) for key, value in batch.items()} == {"input": 10, "labels": 10}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_get_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 4, dtype=dtype)
    [(inputs, _)] = batches_of(Source("vectors", VECTORS), model)
    assert inputs.dtype == dtype
    named = Source("named", [({"input": x}, label) for x, label in VECTORS])
    assert batches_of(named, model)[0]["input"].dtype == dtype
    tokens = Source("tokens", [(torch.tensor([1, 2]), 0)])
    [(inputs, _)] = batches_of(tokens, nn.Embedding(3, 4, dtype=dtype))
    assert inputs.dtype == torch.int64


def test_a_model_on_the_meta_device_is_not_tried() -> None:
    [(inputs, _)] = batches_of(Source("vectors", VECTORS), nn.Linear(7, 4, device="meta"))
    assert inputs.shape == (10, 3)


def test_batches_of_a_function_are_given_as_they_are() -> None:
    pairs = [(torch.zeros(4, 3), torch.zeros(4)), (torch.ones(4, 3), torch.zeros(4))] * 2
    data = model_batches(Source("f", Batches(pairs)), Batches(pairs), NET, None)
    assert list(data.batches) == pairs
    assert len(batches_of(Source("f", Batches(iter(pairs))), sample=6)) == 2


def test_nothing_of_the_random_numbers_of_others_is_used() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batches_of(Source("vectors", VECTORS), sample=5)
    assert torch.equal(torch.rand(1), expected)


def test_images_are_prepared_as_the_model_takes_them() -> None:
    digits = open_source("digits")
    data = model_batches(digits, digits.test, nn.Identity(), "lenet5", sample=70)
    sizes = [(tuple(inputs.shape), len(labels)) for inputs, labels in data.batches]
    assert sizes == [((64, 1, 28, 28), 64), ((6, 1, 28, 28), 6)]


def test_what_no_model_takes() -> None:
    with pytest.raises(InvalidArgumentError, match="has object: expected images, texts"):
        batches_of(Source("things", [(object(), 1)]))
    with pytest.raises(
        InvalidArgumentError, match=r"pairs: the model fails on the input input 1x2: .*1x2"
    ):
        batches_of(Source("pairs", [({"input": torch.zeros(2)}, 1)]))
    with pytest.raises(InvalidArgumentError, match="none has no examples"):
        batches_of(Source("none", []))
    with pytest.raises(InvalidArgumentError, match="needs the tokenizer of a Transformers"):
        batches_of(Source("texts", [("a", 1)]), name="lenet5")


def test_names_of_classes_are_those_of_the_model() -> None:
    source = Source("pets", VECTORS, classes=("Dog", "cat"))
    model = nn.Linear(3, 3)
    model.config = type("Config", (), {"id2label": {0: "bird", 1: "cat", 2: "dog"}})()
    assert class_numbers(source, None, model, 3) == (2, 1)
    [(_, labels)] = batches_of(Source("pets", VECTORS[:2], classes=("dog", "cat")), model)
    assert labels.tolist() == [2, 1]
    assert class_numbers(source, None, nn.Linear(3, 2), 2) == (0, 1)
    with pytest.raises(InvalidArgumentError, match=r"2 classes \(Dog, cat\), but the model has 7"):
        class_numbers(source, None, nn.Linear(3, 7), 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with a tokenizer of words and no model."""
    mend_torchvision()
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {word: number for number, word in enumerate(("?", "<end>", "a", "b", "c"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="?"
    )
    path = tmp_path_factory.mktemp("words")
    fast.save_pretrained(path)
    return path


class Language(nn.Module):
    """A model that says it predicts tokens, of four at most."""

    config = type("C", (), {"architectures": ["GPT2LMHeadModel"], "max_position_embeddings": 4})()


def test_texts_are_blocks_of_tokens_for_a_language_model(folder: Path) -> None:
    source = Source("texts", [("a b c", None), ("a a\n", None), ("b b c c", None)])
    [batch] = batches_of(source, Language(), f"hf:{folder}")
    # The line break goes on, and each of the other texts has an end.
    assert batch["input_ids"].tolist() == [[2, 3, 4, 1], [2, 2, 3, 3]]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert bool(batch["attention_mask"].all())
    [batch] = batches_of(source, Language(), f"hf:{folder}", sample=1)
    assert len(batch["input_ids"]) == 1
    with pytest.raises(InvalidArgumentError, match="has 3 tokens, expected at least a block of 4"):
        batches_of(Source("short", [("a b", None)]), Language(), f"hf:{folder}")


def test_texts_are_examples_for_other_models(folder: Path) -> None:
    source = Source("texts", [("a b", 1), ("  \n", 0), ("c", 0)])
    [batch] = batches_of(source, nn.Linear(1, 2), f"hf:{folder}")
    assert batch["input_ids"].tolist() == [[2, 3], [4, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_blocks_do_not_read_more_than_they_need(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = iter(["a b c a"] * 1000)
    assert len(token_blocks(texts, tokenizer, length=2, most=3)) == 3
    assert len(list(texts)) > 900
