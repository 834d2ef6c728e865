"""The callback in the Trainer of Lightning."""

import doctest
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tensorpress as tp
from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.models.torchvision import mend_torchvision

mend_torchvision()
pl = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")

from tensorpress.callbacks import lightning  # noqa: E402
from tensorpress.callbacks.lightning import PressCallback, load_lightning_checkpoint  # noqa: E402

WAYS = {
    "layers": {"scheme": "channel_svd", "ranks": 4},
    "weights": {"scheme": "tt_weight", "ranks": 4},
}
KEY = "tensorpress_plan"


class Classifier(pl.LightningModule):  # type: ignore[name-defined]
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)
        self.loaded = []

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_load_checkpoint(self, checkpoint):
        self.loaded.append(checkpoint["global_step"])


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 32, generator=generator)
    # Four steps an epoch, all equal: Lightning resumes within an epoch at its first batch.
    return DataLoader(TensorDataset(x.repeat(4, 1), x[:, :4].argmax(1).repeat(4)), 8)


def train(module, folder, callback, epochs=2, resume=None):
    saver = pl.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver, callback],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader(), ckpt_path=resume)
    return module


def plan_of(way):
    return tp.plan(Classifier(), **WAYS[way], targets=["net.*"])


def saved(folder, step):
    return folder / f"step={step}.ckpt"


def same(left, right):
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_pressed_at_a_step_and_resumed_to_the_same_bits(tmp_path, way):
    whole = train(Classifier(), tmp_path, PressCallback(plan_of(way), step=3))
    for step in range(1, 9):
        assert (KEY in torch.load(saved(tmp_path, step), weights_only=True)) is (step >= 3)
    for step in (2, 3, 6):
        again = train(
            Classifier(),
            tmp_path / str(step),
            PressCallback(plan_of(way), step=3),
            resume=saved(tmp_path, step),
        )
        same(again, whole)
        assert again.loaded == [step]
        assert "on_load_checkpoint" not in vars(again)
    pickle.dumps(again.state_dict())


def test_a_checkpoint_becomes_a_folder(tmp_path):
    module = train(Classifier(), tmp_path, PressCallback(plan_of("layers"), step=3))
    loaded = load_lightning_checkpoint(saved(tmp_path, 8), Classifier())
    same(loaded, module)
    tp.save_checkpoint(loaded.net, tmp_path / "net")
    again = tp.load_checkpoint(tmp_path / "net", Classifier().net)
    same(again, module.net)


def test_pressed_after_an_epoch_by_the_weights_of_then(tmp_path):
    seen = []

    def plan(module):
        seen.append(module.head.weight.detach().clone())
        return plan_of("layers")

    module = train(Classifier(), tmp_path, PressCallback(plan, epoch=1))
    assert len(seen) == 1
    assert not torch.equal(seen[0], Classifier().head.weight)
    assert module.net[0].ranks == (4,)
    assert KEY not in torch.load(saved(tmp_path, 4), weights_only=True)
    assert KEY in torch.load(saved(tmp_path, 5), weights_only=True)


def test_pressed_before_training(tmp_path):
    plan = plan_of("layers")
    module = train(Classifier(), tmp_path / "a", PressCallback(plan))
    same(train(tp.press(Classifier(), plan), tmp_path / "b", PressCallback()), module)
    assert KEY in torch.load(saved(tmp_path / "b", 1), weights_only=True)
    resumed = train(Classifier(), tmp_path / "c", PressCallback(), resume=saved(tmp_path / "a", 3))
    same(resumed, module)


def test_a_dense_checkpoint_is_not_loaded_into_a_pressed_module(tmp_path):
    train(Classifier(), tmp_path, PressCallback(), epochs=1)
    pressed = tp.press(Classifier(), plan_of("layers"))
    with pytest.raises(ModelMismatchError, match="it has no plan"):
        load_lightning_checkpoint(saved(tmp_path, 4), pressed)


def test_damaged_files_and_other_modules(tmp_path):
    train(Classifier(), tmp_path, PressCallback(plan_of("layers")), epochs=1)
    path = saved(tmp_path, 4)
    other = Classifier()
    other.head = nn.Linear(32, 5)
    with pytest.raises(ModelMismatchError, match=r"is the checkpoint of another module: .*head"):
        load_lightning_checkpoint(path, other)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptFileError, match="not a checkpoint of Lightning"):
        load_lightning_checkpoint(path, Classifier())


def test_the_examples_run():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(lightning)
    assert result.attempted > 3
    assert result.failed == 0
