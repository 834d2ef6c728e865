import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import Distillation, TrainConfig, train_config


@given(
    epochs=st.integers(1, 500),
    lr=st.floats(1e-8, 10),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    weight=st.floats(0, 1),
    temperature=st.floats(0.1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_json_round_trip(epochs, lr, optimizer, weight, temperature, seed):
    config = TrainConfig(
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        distill=Distillation(weight=weight, temperature=temperature),
        seed=seed,
    )
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig(epochs=1, lr=0.1).lr = 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "training option epochs: .*greater than or equal to 1.*got 0"),
        ({"lr": 0.0}, "training option lr: .*greater than 0"),
        ({"lr": float("nan")}, "training option lr: .*finite"),
        ({"lr": float("inf")}, "training option lr: .*finite"),
        ({"optimizer": "lion"}, "training option optimizer: .*'adam', 'adamw' or 'sgd'"),
        ({"precision": "fp8"}, "training option precision: .*'no', 'bf16' or 'fp16'"),
        ({"momentum": 1.0}, "training option momentum: .*less than 1"),
        ({"weight_decay": -1.0}, "training option weight_decay"),
        ({"clip_norm": 0.0}, "training option clip_norm"),
        ({"label_smoothing": 1.0}, "training option label_smoothing"),
        ({"distill": {"weight": 1.5}}, r"training option distill\.weight: .*less than or equal"),
        ({"distill": {"temperature": 0}}, r"training option distill\.temperature"),
        ({"distill": {"temp": 3}}, r"training option distill\.temp"),
        ({"seed": -1}, "training option seed"),
        ({"schedule": "step"}, "needs step_epochs"),
        ({"schedule": "cosine", "step_epochs": 2}, "step_epochs applies to schedule 'step'"),
        ({"warmup_epochs": 5.0}, r"warmup_epochs must be below epochs \(5\), got 5"),
        ({"epoch": 3}, "unknown training option 'epoch': did you mean 'epochs'"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        train_config(**{"epochs": 5, "lr": 0.1, **options})


def test_missing_option_is_named():
    with pytest.raises(InvalidArgumentError, match=r"training option lr: Field required$"):
        train_config(epochs=3)
