import math

import pytest
import torch
from tiny_transformers import gpt2, llama, outputs, pressed, save_tokenizer, transformers

from tensorpress.checkpoints import save_checkpoint
from tensorpress.errors import InvalidArgumentError
from tensorpress.press.unpress import unpress
from tensorpress.train import finetune


def examples():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 96, (16, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def train(model, folder, steps, **options):
    library = transformers()
    arguments = library.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    trainer = library.Trainer(model=model, args=arguments, train_dataset=examples())
    trainer.train(**options)
    return trainer.model


def test_the_trainer_trains_saves_and_goes_on(tmp_path):
    auto = transformers().AutoModelForCausalLM
    save_checkpoint(pressed(llama()), tmp_path / "out")
    straight = train(auto.from_pretrained(tmp_path / "out"), tmp_path / "runs", 4)
    assert not torch.equal(outputs(straight.eval()), outputs(pressed(llama())))
    resumed = train(
        auto.from_pretrained(tmp_path / "out"),
        *(tmp_path / "again", 4),
        resume_from_checkpoint=str(tmp_path / "runs" / "checkpoint-2"),
    )
    assert torch.equal(outputs(resumed.eval()), outputs(straight))
    saved = auto.from_pretrained(tmp_path / "runs" / "checkpoint-4")
    assert torch.equal(outputs(saved), outputs(straight))


@pytest.mark.parametrize("scheme", ["channel_svd", "tt_weight"])
def test_finetune_trains_by_the_models_loss_and_by_its_teacher(scheme):
    dense = llama()
    rows = torch.stack([one["input_ids"] for one in examples()])
    mask = torch.ones_like(rows)
    mask[::2, 5:] = 0
    batches = [
        {"input_ids": x, "attention_mask": m, "labels": torch.where(m > 0, x, -100)}
        for x, m in zip(rows.split(4), mask.split(4), strict=True)
    ]
    options = {"validation": batches, "lr": 1e-2}
    by_labels, by_teacher = pressed(llama(), scheme), pressed(llama(), scheme)
    history = finetune(by_labels, batches, epochs=5, **options)
    first, last = history.epochs[0], history.epochs[-1]
    assert last.validation_loss < first.validation_loss < math.log(96) + 0.5
    assert last.validation_error is None  # labels of tokens are those of the next one
    distill = {"weight": 1.0, "temperature": 2.0}
    history = finetune(by_teacher, batches, teacher=dense, distill=distill, epochs=10, **options)
    assert history.epochs[-1].train_loss < 0.3 * history.epochs[0].train_loss


@pytest.mark.parametrize("scheme", ["channel_svd", "tt_weight"])
@pytest.mark.parametrize(("make", "targets"), [(llama, ["q_proj", "v_proj"]), (gpt2, ["c_attn"])])
def test_lora_finds_pressed_layers_by_the_names_of_the_dense_ones(tmp_path, make, targets, scheme):
    peft = pytest.importorskip("peft")
    save_checkpoint(pressed(make(), scheme), tmp_path / "out")
    auto = transformers().AutoModelForCausalLM
    base = auto.from_pretrained(tmp_path / "out")
    before = outputs(base)
    config = peft.LoraConfig(r=2, target_modules=targets)
    model = peft.get_peft_model(base, config)
    assert torch.equal(outputs(model), before)
    adapted = {
        name.rpartition(".lora_A")[0] for name, _ in model.named_modules() if ".lora_A." in name
    }
    assert {name.rpartition(".")[2] for name in adapted} == set(targets)
    assert len(adapted) == 2 * len(targets)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    tokens = torch.arange(3, 15).reshape(2, 6)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = outputs(model)
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        auto.from_pretrained(tmp_path / "out"), tmp_path / "adapter"
    )
    assert torch.equal(outputs(again), after)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(outputs(again), after)
    with pytest.raises(InvalidArgumentError, match="cannot be merged into the factors"):
        model.merge_and_unload()
    dense = peft.PeftModel.from_pretrained(unpress(pressed(make(), scheme)), tmp_path / "adapter")
    merged = dense.merge_and_unload()
    assert torch.allclose(outputs(merged), after, atol=1e-5)


def test_a_pipeline_generates_text(tmp_path):
    library = transformers()
    model = pressed(llama())
    save_checkpoint(model, tmp_path / "out")
    tokenizer = save_tokenizer(tmp_path / "out")
    pipe = library.pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    [result] = pipe("abc", max_new_tokens=4, do_sample=False, return_tensors=True)
    tokens = tokenizer("abc", return_tensors="pt").input_ids
    expected = model.generate(tokens, max_new_tokens=4, do_sample=False)
    assert result["generated_token_ids"] == expected[0].tolist()
