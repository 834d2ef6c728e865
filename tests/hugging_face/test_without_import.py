"""Processes of their own: what happens without `import tensorpress`, and in both orders with it."""

import subprocess
import sys

from tiny_transformers import llama, outputs, pressed

from tensorpress.checkpoints import press_checkpoint, save_checkpoint
from tensorpress.planning.plan_from_model import plan_from_model

# An installed torchvision may not fit torch, and takes long; transformers does without it.
PREPARE = "import sys; sys.modules['torchvision'] = sys.modules['torchao'] = None\n"

LOADS = """
import glob, sys, torch, transformers
from safetensors.torch import load_file

def by_hand(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    state = {}
    for file in glob.glob(f"{folder}/*.safetensors"):
        state |= load_file(file)
    model.load_state_dict(state)

auto = transformers.AutoModelForCausalLM
loads = {
    "auto": auto.from_pretrained,
    "base": transformers.AutoModel.from_pretrained,
    "class": transformers.LlamaForCausalLM.from_pretrained,
    "head": lambda folder: transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True
    ),
    "options": lambda folder: auto.from_pretrained(folder, device_map="cpu", dtype="bfloat16"),
    "config": lambda folder: auto.from_pretrained(
        folder, config=transformers.AutoConfig.from_pretrained(folder)
    ),
    "files": lambda folder: auto.from_pretrained(folder, use_safetensors=True),
    "pipeline": lambda folder: transformers.pipeline("text-generation", model=folder),
    "by hand": by_hand,
}
for folder in sys.argv[1:]:
    for name, load in loads.items():
        try:
            load(folder)
        except Exception as error:
            refused = "`import tensorpress` before you load it" in str(error)
            print("refused" if refused else repr(error))
        else:
            print("loaded", name)
"""

FAIL = """
sys.modules["safetensors"] = None
try:
    import transformers.modeling_utils
except ImportError:
    del sys.modules["safetensors"]
else:
    raise AssertionError("transformers was imported")
"""

LOAD = """
for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        print(model(torch.arange(3, 15).reshape(2, 6)).logits.double().sum().item())
"""


def run(code, *folders):
    """Run Python in a process of its own, which must end well; return the lines that it prints."""
    words = [sys.executable, "-c", PREPARE + code, *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_way_of_loading_says_what_to_do_until_it_is_done(tmp_path):
    model, dense = pressed(llama()), llama()
    save_checkpoint(model, tmp_path / "a")
    model.save_pretrained(tmp_path / "b", max_shard_size="12KB")
    dense.save_pretrained(tmp_path / "dense", max_shard_size="12KB")
    press_checkpoint(tmp_path / "dense", tmp_path / "c", plan_from_model(model))
    lines = run(LOADS + "import tensorpress" + LOAD, *(tmp_path / name for name in "abc"))
    refusals, sums = lines[:-3], lines[-3:]
    by_hand = [line for line in refusals if line != "refused"]
    assert (len(refusals), len(by_hand)) == (3 * 9, 3)
    assert all("Error(s) in loading state_dict" in line for line in by_hand)
    assert sums == [str(outputs(model).double().sum().item())] * 3


def test_tensorpress_can_be_imported_first_and_transformers_fail_once(tmp_path):
    model = pressed(llama())
    save_checkpoint(model, tmp_path / "out")
    code = "import tensorpress\nprint([x for x in ('torch', 'transformers') if x in sys.modules])\n"
    code += FAIL
    lines = run(code + "import torch, transformers" + LOAD, tmp_path / "out")
    assert lines == ["[]", str(outputs(model).double().sum().item())]
