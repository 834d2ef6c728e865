import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import bert, gpt2, llama, logits, save_sharded

from tensorpress.checkpoints import save_checkpoint, unpress_checkpoint
from tensorpress.checkpoints.lora_adapter import write_adapter
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning import plan
from tensorpress.press.press import press
from tensorpress.press.unpress import unpress

SKIP = ["re:.*emb.*|.*wpe|.*wte|lm_head"]


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request, tmp_path):
    """A dense model, with its checkpoint, and the folder of the pressed one."""
    dense = request.param()
    save_sharded(dense, tmp_path / "base")
    pressed = press(dense, plan(dense, scheme="channel_svd", ranks=3, skip=SKIP))
    save_checkpoint(pressed, tmp_path / "pressed")
    return dense, pressed


def test_an_adapter_of_a_rank_is_the_best_of_that_rank(tmp_path, model):
    dense, pressed = model
    write_adapter(tmp_path / "pressed", tmp_path / "base", tmp_path / "out", rank=4)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    composed = unpress(pressed).state_dict()
    names = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in adapter}
    assert len(adapter) == 2 * len(names) > 0
    for name in names:
        loss = dense.state_dict()[f"{name}.weight"] - composed[f"{name}.weight"]
        loss = loss.mT if hasattr(dense.get_submodule(name), "nf") else loss
        parts = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
        product = torch.linalg.multi_dot(list(parts))
        tail = torch.linalg.svdvals(loss)[4:].square().sum().sqrt()
        assert torch.allclose((loss - product).norm(), tail, rtol=1e-3)


def test_peft_puts_it_on_the_pressed_and_on_the_dense_model(tmp_path, model):
    peft = pytest.importorskip("peft")
    dense, pressed = model
    errors = []
    for rank in (2, 8, 64):
        out = tmp_path / f"rank {rank}"
        write_adapter(tmp_path / "pressed", tmp_path / "base", out, rank=rank)
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(out)
        errors.append((logits(adapted) - logits(dense)).norm())
    assert (logits(pressed) - logits(dense)).norm() > errors[0] > errors[1] > errors[2]
    assert torch.allclose(logits(adapted), logits(dense), atol=1e-4)
    unpress_checkpoint(tmp_path / "pressed", tmp_path / "again")
    again = peft.PeftModel.from_pretrained(type(dense).from_pretrained(tmp_path / "again"), out)
    assert torch.allclose(logits(again.merge_and_unload()), logits(dense), atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    dense = llama()
    save_sharded(dense, tmp_path / "base")
    save_checkpoint(press(dense, plan(dense, scheme="channel_svd", ranks=3)), tmp_path / "pressed")
    with pytest.raises(InvalidArgumentError, match="must be at least 1, got 0"):
        write_adapter(tmp_path / "pressed", tmp_path / "base", tmp_path / "out", rank=0)
    save_sharded(bert(), tmp_path / "other")
    with pytest.raises(ModelMismatchError, match="is not a LlamaForCausalLM"):
        write_adapter(tmp_path / "pressed", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
