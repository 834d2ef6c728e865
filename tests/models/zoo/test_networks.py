import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tensorpress import data
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import zoo

PARAMETERS = {
    "lenet5": 431_080,
    "lenet300100": 266_610,
    "fc1024": 1_059_850,
    "cifar-cnn": 1_221_514,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "wrn28-10": 36_479_194,
    "clips3d": 585_940,
    "vgg16": 14_724_042,
    "vgg16-quarter": 923_130,
    "conv-fc": 13_934_538,
    "nin": 966_986,
}
SMALL = sorted(set(PARAMETERS) - {"wrn28-10"})


def test_every_network_is_registered():
    assert set(zoo.NETWORKS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    with torch.device("meta"):
        model = zoo.build(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,}" in zoo.network(name).description


@pytest.mark.parametrize("name", PARAMETERS)
def test_output_shape(name):
    entry = zoo.network(name)
    with torch.device("meta"):
        scores = entry.build()(torch.zeros(2, *entry.input_shape))
    assert scores.shape == (2, entry.classes)


@pytest.mark.parametrize("name", SMALL)
def test_preprocessed_pixels_give_finite_scores_and_gradients(name):
    entry = zoo.network(name)
    model = entry.build()
    pixels = torch.randint(0, 256, (2, *entry.input_shape), dtype=torch.uint8)
    scores = model(entry.preprocess(pixels))
    nn.functional.cross_entropy(scores, torch.tensor([0, 1])).backward()
    assert scores.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_cifar_cnn_has_the_layers_of_the_table():
    weights = [5 * 5 * 3 * 32, 51_200, 102_400, 204_800, 819_200, 40_960]
    model = zoo.CifarCNN()
    layers = [model.conv1, model.conv2, model.conv3, model.conv4, model.conv5, model.fc]
    assert [layer.weight.numel() for layer in layers] == weights


def test_wide_resnet_parameter_names():
    with torch.device("meta"):
        names = zoo.WideResNet(16, 2).state_dict().keys()
    assert "block1.layer.0.shortcut.weight" in names
    assert "block1.layer.1.conv2.weight" in names
    assert "block1.layer.1.shortcut.weight" not in names
    assert {"conv1.weight", "bn1.weight", "fc.bias"} <= names


def test_resnet_shortcut_subsamples_and_pads_channels_on_both_sides():
    model = zoo.ResNet(20).eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("name", ["lenet5", "lenet300100"])
def test_caffe_initialization(name):
    for layer in zoo.build(name).children():
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max() <= (3 / fan_in) ** 0.5
        assert layer.weight.var().item() == pytest.approx(1 / fan_in, rel=0.2)
        assert not layer.bias.any()


@pytest.mark.parametrize("name", SMALL)
def test_networks_export(name):
    entry = zoo.network(name)
    model = entry.build().eval()
    x = torch.rand(2, *entry.input_shape)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_networks_survive_torch_save():
    buffer = io.BytesIO()
    torch.save(zoo.build("resnet20").state_dict(), buffer)
    buffer.seek(0)
    zoo.build("resnet20").load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zoo.ResNet(21), "6n \\+ 2, got 21"),
        (lambda: zoo.ResNet(2), "got 2"),
        (lambda: zoo.WideResNet(20, 1), "6n \\+ 4, got 20"),
        (lambda: zoo.WideResNet(16, 0), "at least 1, got 0"),
        (lambda: zoo.build("lenet"), "did you mean 'lenet5'"),
        (lambda: zoo.network("resnet-20"), "did you mean 'resnet20'"),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@given(
    pixel=st.integers(0, 255),
    scale=st.sampled_from([1.0, 255.0, 256.0]),
    mean=st.floats(-1, 1),
    std=st.floats(0.1, 2),
)
def test_preprocess_is_the_affine_map_it_says(pixel, scale, mean, std):
    preprocess = zoo.Preprocess(scale, (0.0, mean), (1.0, std))
    inputs = preprocess(torch.full((1, 2, 1, 1), pixel, dtype=torch.uint8)).flatten()
    assert inputs.dtype == torch.float32
    assert inputs[0].item() == pytest.approx(pixel / scale, rel=1e-6)
    assert inputs[1].item() == pytest.approx((pixel / scale - mean) / std, rel=1e-4, abs=1e-4)


@given(st.lists(st.integers(0, 255), min_size=2, max_size=2))
def test_clips_are_preprocessed_as_their_frames_are(values):
    preprocess = zoo.Preprocess(255, (0.0, 0.4), (1.0, 0.2))
    clip = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(3, 2, 2, 4, 5)
    inputs = preprocess(clip)
    assert inputs.shape == clip.shape
    for frame in range(2):
        assert torch.equal(inputs[:, :, frame], preprocess(clip[:, :, frame]))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 1, 4, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 1, 1, 2, 4, 4, dtype=torch.uint8),
    ],
)
def test_preprocess_refuses_what_are_not_its_pixels(pixels):
    with pytest.raises(InvalidArgumentError, match=r"\(N, 1, H, W\)"):
        zoo.network("lenet5").preprocess(pixels)


@pytest.mark.parametrize(
    ("scale", "mean", "std"), [(0, (0,), (1,)), (1, (0,), (0,)), (1, (0,), ())]
)
def test_preprocess_refuses_constants_it_cannot_divide_by(scale, mean, std):
    with pytest.raises(InvalidArgumentError, match="positive"):
        zoo.Preprocess(scale, mean, std)


@pytest.mark.parametrize(
    ("name", "folder", "data_set", "images", "wrong"),
    [
        ("lenet5", "lenet_caffe", "mnist", 10_000, 91),
        ("lenet300100", "lenet_caffe", "mnist", 10_000, 228),
        ("resnet20", "cifar10_resnet", "cifar10", 1000, 85),  # 827 of all 10,000
        ("resnet56", "cifar10_resnet", "cifar10", 1000, 74),  # 661 of all 10,000
    ],
)
def test_published_weights_make_the_stated_number_of_errors(
    data_root, name, folder, data_set, images, wrong
):
    weights = data_root / folder / f"{name}.safetensors"
    if not weights.is_file():
        pytest.skip(f"needs the trained weights {folder}/{name}.safetensors")
    entry = zoo.network(name)
    # Twice as fast as the default layout on a CPU.
    model = entry.build().eval().to(memory_format=torch.channels_last)
    zoo.load_weights(model, weights)
    test = data.load(data_set, data_root).test.subset(range(images))
    with torch.inference_mode():
        errors = sum(
            int((model(inputs.to(memory_format=torch.channels_last)).argmax(1) != labels).sum())
            for inputs, labels in data.batches(test, entry.preprocess, 500, shuffle=False)
        )
    assert errors == wrong
