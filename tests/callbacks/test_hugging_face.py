"""The callback in the Trainer of Transformers."""

import doctest
import json
from pathlib import Path

import pytest
import torch

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models.torchvision import mend_torchvision

mend_torchvision()
transformers = pytest.importorskip("transformers", reason="needs the Trainer of Transformers")

from tensorpress.callbacks import hugging_face  # noqa: E402
from tensorpress.callbacks.hugging_face import PressCallback  # noqa: E402

WAYS = {
    "layers": {"scheme": "channel_svd", "ranks": 8, "targets": ["*_proj"]},
    "weights": {"scheme": "tt_weight", "ranks": 8, "targets": ["*_proj"]},
}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def examples():
    tokens = torch.randint(3, 64, (16, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(model, folder, callback, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **{"max_steps": 8, "save_steps": 2, **options},
    )
    return transformers.Trainer(
        model, arguments, train_dataset=examples(), callbacks=[callback] if callback else None
    )


def outputs(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 11)[None]).logits


def pressed_layers(folder: Path) -> int:
    path = folder / "plan.json"
    return len(json.loads(path.read_text())["layers"]) if path.exists() else 0


@pytest.mark.parametrize("way", WAYS)
def test_pressed_at_a_step_and_resumed_to_the_same_bits(tmp_path, way):
    plan = tp.plan(llama(), **WAYS[way])
    assert len(plan.layers) == 14
    whole = trainer(llama(), tmp_path / "whole", PressCallback(plan, step=4))
    whole.train()
    folders = {step: tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    assert [pressed_layers(folder) for folder in folders.values()] == [0, 14, 14, 14]
    assert [entry for entry in whole.state.log_history if "pressed_layers" in entry] == [
        {"pressed_layers": 14, "epoch": 1.0, "step": 4}
    ]
    last = tp.load_checkpoint(folders[8])
    assert torch.equal(outputs(last), outputs(whole.model))
    for step in (2, 4, 6):
        model = llama() if step == 2 else tp.load_checkpoint(folders[step])
        again = trainer(model, tmp_path / f"again{step}", PressCallback(plan, step=4))
        again.train(resume_from_checkpoint=str(folders[step]))
        assert torch.equal(outputs(again.model), outputs(whole.model)), step


@pytest.mark.parametrize("before", [False, True])
def test_factors_never_go_into_a_dense_model(tmp_path, before):
    plan = tp.plan(llama(), **WAYS["layers"])
    options = {"max_steps": 4, "save_only_model": True}
    model = tp.press(llama(), plan) if before else llama()
    trainer(model, tmp_path / "whole", PressCallback(plan, step=1), **options).train()
    for callback in (PressCallback(plan, step=1), PressCallback()):
        again = trainer(llama(), tmp_path / "again", callback, **options)
        with pytest.raises(ModelMismatchError, match=r"resumes at step 2 .* the model is dense"):
            again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_pressed_after_an_epoch_by_the_weights_of_then(tmp_path):
    seen = []

    def plan(model):
        seen.append(model.lm_head.weight.detach().clone())
        return tp.plan(model, **WAYS["layers"])

    run = trainer(llama(), tmp_path, PressCallback(plan, epoch=1), max_steps=-1, num_train_epochs=2)
    run.train()
    assert len(seen) == 1
    assert not torch.equal(seen[0], llama().lm_head.weight)
    assert [pressed_layers(tmp_path / f"checkpoint-{step}") for step in (2, 4, 6)] == [0, 14, 14]
    assert [entry["step"] for entry in run.state.log_history if "pressed_layers" in entry] == [4]


def test_pressed_before_training(tmp_path):
    plan = tp.plan(llama(), **WAYS["layers"])
    run = trainer(llama(), tmp_path / "a", PressCallback(plan), max_steps=4)
    run.train()
    by_hand = trainer(tp.press(llama(), plan), tmp_path / "b", PressCallback(), max_steps=4)
    by_hand.train()
    assert torch.equal(outputs(run.model), outputs(by_hand.model))
    for folder in ("a", "b"):
        assert pressed_layers(tmp_path / folder / "checkpoint-2") == 14
    again = trainer(llama(), tmp_path / "c", PressCallback(plan), max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert torch.equal(outputs(again.model), outputs(run.model))


def test_added_to_a_trainer_that_is_built_already(tmp_path):
    plan = tp.plan(llama(), **WAYS["layers"])
    run = trainer(llama(), tmp_path, None, max_steps=2)
    run.add_callback(PressCallback(plan))
    run.train()
    assert pressed_layers(tmp_path / "checkpoint-2") == 14


def test_a_dense_model_leaves_no_plan(tmp_path):
    run = trainer(llama(), tmp_path, PressCallback(), max_steps=2)
    run.train()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert not (tmp_path / "checkpoint-2" / "plan.json").exists()


def test_a_moment_without_a_plan_is_refused():
    with pytest.raises(InvalidArgumentError, match="needs a plan"):
        PressCallback(step=3)


def test_the_examples_run():
    result = doctest.testmod(hugging_face)
    assert result.attempted > 5
    assert result.failed == 0
