import math

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.measure.generation_speed import measure_generation
from tensorpress.measure.perplexity import perplexity
from tensorpress.models.torchvision import mend_torchvision


class Bigrams(nn.Module):
    """Scores of the next token that depend on the last one alone."""

    def __init__(self, vocabulary: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(vocabulary, vocabulary)
        self.drop = nn.Dropout()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.drop(self.table(tokens))


TEXT = torch.randint(0, 12, (1300,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("window", [5, 16, 600])
def test_it_is_the_mean_over_predicted_tokens_of_whole_windows(window):
    model = Bigrams().train()
    result = perplexity(model, TEXT, window=window)
    table = log_softmax(model.table.weight.detach().double(), -1)
    count = len(TEXT) // window
    rows = TEXT[: count * window].reshape(count, window)
    nll = -table[rows[:, :-1], rows[:, 1:]].mean().item()
    assert math.isclose(result.nll, nll, rel_tol=1e-6)
    assert math.isclose(result.perplexity, math.exp(nll), rel_tol=1e-6)
    assert (result.windows, result.window) == (count, window)
    assert result.tokens == count * (window - 1)
    assert model.training


def test_some_windows_are_those_at_the_start():
    model = Bigrams()
    assert perplexity(model, TEXT, window=16, windows=3) == perplexity(model, TEXT[:50], window=16)


def test_the_hash_is_of_the_tokens_that_are_used_and_of_nothing_else():
    model = Bigrams()
    first = perplexity(model, TEXT, window=16, windows=2).token_hash
    assert perplexity(model, TEXT.int(), window=32, windows=1).token_hash == first
    other = TEXT.clone()
    other[40] += 1
    assert perplexity(model, other, window=16, windows=2).token_hash == first
    other[20] = (other[20] + 1) % 12
    assert perplexity(model, other, window=16, windows=2).token_hash != first


def test_a_short_text_is_one_window():
    result = perplexity(Bigrams(), TEXT[:7])
    assert (result.windows, result.window, result.tokens) == (1, 7, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": TEXT[None]}, "two or more integers"),
        ({"tokens": TEXT.float()}, "two or more integers"),
        ({"tokens": TEXT[:1]}, "two or more integers"),
        ({"window": 2000}, "a window must have from 2 to 1300 tokens"),
        ({"window": 1}, "a window must have from 2 to 1300 tokens"),
        ({"window": 600, "windows": 3}, "windows must be from 1 to 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        perplexity(Bigrams(), **{"tokens": TEXT, **options})


def test_other_models_are_refused():
    model = nn.Sequential(nn.Embedding(12, 4), nn.Flatten())
    with pytest.raises(ModelMismatchError, match="one per token"):
        perplexity(model, TEXT, window=8)


def llama():
    mend_torchvision()
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return library.LlamaForCausalLM(config).eval()


def test_a_model_of_transformers_sees_at_most_what_it_takes():
    model = llama()
    result = perplexity(model, TEXT)
    assert (result.windows, result.window) == (20, 64)
    rows = TEXT[: 20 * 64].reshape(20, 64)
    with torch.no_grad():
        assert math.isclose(result.nll, model(rows, labels=rows).loss.item(), rel_tol=1e-5)


def gpt2(positions):
    mend_torchvision()
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return library.GPT2LMHeadModel(library.GPT2Config(**sizes, n_positions=positions)).eval()


@pytest.mark.parametrize("make", [gpt2, lambda positions: llama()], ids=["gpt2", "llama"])
def test_a_window_beyond_the_longest_context_is_refused(make):
    model = make(64)
    assert perplexity(model, TEXT, window=64).window == 64
    for window in (65, 1300):
        message = f"a window of {window} tokens is too long: the longest context of the model is 64"
        with pytest.raises(InvalidArgumentError, match=message):
            perplexity(model, TEXT, window=window)
    assert perplexity(gpt2(2), TEXT).window == 2


@pytest.mark.parametrize("token", [12, 4000, -1])
def test_tokens_of_another_vocabulary_are_refused(token):
    tokens = TEXT.clone()
    tokens[1000] = token
    with pytest.raises(
        InvalidArgumentError, match=f"the token {token}, but the model's vocabulary is 0 to 11"
    ):
        perplexity(gpt2(16), tokens)


def test_speed_is_the_median_of_rounds():
    model = llama()
    times = iter(range(10_000))
    speed = measure_generation(model, TEXT[:8], written=4, repeats=3, clock=lambda: next(times))
    assert (speed.prefill, speed.decode) == (8.0, 1.0)
    assert (speed.prompt, speed.written) == (8, 4)


def test_what_is_written_is_what_generate_writes():
    model = llama()
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, options: seen.append(options["input_ids"]), with_kwargs=True
    )
    measure_generation(model, TEXT[:8], written=4, repeats=1)
    rounds = torch.cat(seen[:5], 1), torch.cat(seen[5:], 1)
    expected = model.generate(TEXT[None, :8], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(rounds[0], expected)
    assert torch.equal(rounds[1], expected)
