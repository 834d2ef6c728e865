"""A plan as data, as a file and as a table."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress import Plan, plan, press
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.measure.cost import count_macs
from tensorpress.models import zoo
from tensorpress.planning import LayerPlan
from tensorpress.schemes.layer_spec import weight_spec
from tensorpress.schemes.registry import rank_schemes

IMAGE = torch.zeros(1, 1, 28, 28)


def made_of(**options):
    return plan(zoo.build("lenet5"), IMAGE, **options)


@pytest.fixture(scope="module")
def mixed():
    overrides = {
        "conv1": {"scheme": "ada_tucker", "modes": [25, 20], "ranks": 3},
        "ip2": {"scheme": "tt_weight", "ranks": 2},
    }
    return made_of(scheme="tucker2", ranks=0.3, overrides=overrides, skip=["ip1"])


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_plan_is_the_same_after_writing_and_reading(mixed, tmp_path, suffix):
    path = tmp_path / f"plan.{suffix}"
    mixed.save(path)
    read = Plan.read(path)
    assert read == mixed
    assert (read.id, str(read), read.macs) == (mixed.id, str(mixed), mixed.macs)
    assert read.bytes == mixed.bytes < mixed.dense_bytes


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_names_of_any_script_can_be_read_in_a_file(tmp_path, suffix):
    path = tmp_path / f"plan.{suffix}"
    made = plan(nn.ModuleDict({"größe_大": nn.Linear(9, 8)}), scheme="channel_svd", ranks=2)
    made.save(path)
    assert "größe_大" in path.read_text(encoding="utf-8")
    assert Plan.read(path) == made


@settings(max_examples=25)
@given(
    scheme=st.sampled_from(sorted(rank_schemes())),
    fraction=st.floats(0.05, 0.3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_layer_is_read_back(scheme, fraction, dtype):
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
            "plain": nn.Conv2d(16, 16, 5, padding="same"),
            "up": nn.ConvTranspose1d(16, 8, 4, stride=2, output_padding=1),
            "table": nn.Embedding(60, 16, padding_idx=0),
            "fc": nn.Linear(40, 30, bias=False),
        }
    ).to(dtype)
    made = plan(net, scheme=scheme, ranks=fraction)
    read = Plan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read == made
    assert read.bytes == made.bytes
    assert [layer.itemsize for layer in read.layers] == [dtype.itemsize] * len(made.layers)


def test_a_plan_made_elsewhere_is_applied_here(tmp_path):
    script = (
        "from tensorpress import plan\nfrom tensorpress.models import zoo\n"
        f"plan(zoo.build('lenet5'), scheme='tucker2', ranks=0.3).save({str(tmp_path / 'p.yaml')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    there, here = (
        Plan.read(tmp_path / "p.yaml"),
        plan(zoo.build("lenet5"), scheme="tucker2", ranks=0.3),
    )
    assert there.id == here.id
    pressed = press(zoo.build("lenet5"), there)
    assert pressed(IMAGE).shape == (1, 10)


def test_the_id_tells_what_is_done_and_nothing_else(mixed):
    same = plan(zoo.build("lenet5"), scheme="tucker2", ranks=0.3)
    assert same.id == made_of(scheme="tucker2", ranks=0.3).id
    assert len(same.id) == 12
    assert same.id != made_of(scheme="tucker2", ranks=0.31).id
    assert same.id != made_of(scheme="tucker2", ranks=0.3, skip=["conv2"]).id
    assert mixed.id == Plan.from_dict(mixed.to_dict()).id


def test_a_plan_is_plain_data():
    layer = LayerPlan("a", "ada_tucker", weight_spec((4, 6)), (2, 2), {"modes": (6, 4)})
    made = Plan("ada_tucker", (layer,), {"b": "tied"}, 10, 40)
    assert made.to_dict() == {
        "format": "tensorpress-plan 3",
        "id": made.id,
        "scheme": "ada_tucker",
        "params": 10 + 4 + 20,
        "dense_params": 34,
        "other": {"params": 10, "bytes": 40},
        "layers": {
            "a": {
                "scheme": "ada_tucker",
                "ranks": [2, 2],
                "weight": {"kind": "weight", "inputs": 6, "outputs": 4},
                "options": {"modes": [6, 4]},
            }
        },
        "unpressed": {"b": "tied"},
    }


@pytest.mark.parametrize(
    ("core", "scheme", "flags"),
    [
        ("own", "ada_tucker", {}),
        ("shared", "scada_tucker", {}),
        ("diagonal", "ada_tucker", {"diagonal": True}),
        ("reduced", "ada_tucker", {"reduced": True}),
    ],
)
def test_files_of_format_1_are_read(core, scheme, flags):
    old = {"scheme": scheme, "shape": [4, 6], "modes": [6, 4], "ranks": [2, 2], "core": core}
    read = Plan.from_dict({"format": "tensorpress-plan 1", "layers": {"a": old}})
    options = {"modes": (6, 4), **flags}
    assert read.layers == (LayerPlan("a", scheme, weight_spec((4, 6)), (2, 2), options),)
    assert Plan.from_dict(read.to_dict()).layers == read.layers


@pytest.mark.parametrize("version", [1, 2])
def test_files_before_format_3_call_unpressed_layers_kept(version):
    old = {"format": f"tensorpress-plan {version}", "layers": {}, "kept": {"b": "tied"}}
    read = Plan.from_dict(old)
    assert read.unpressed == {"b": "tied"}
    assert "kept" not in read.to_dict()
    with pytest.raises(InvalidArgumentError, match="kept: unknown key"):
        Plan.from_dict(old | {"unpressed": {}})


def test_a_plan_written_by_hand_needs_only_layers():
    text = """
    layers:
      "0": {scheme: channel_svd, ranks: [2], weight: {kind: Linear, inputs: 8, outputs: 6}}
    """
    net = nn.Sequential(nn.Linear(8, 6, bias=False))
    assert press(net, Plan.from_dict(yaml.safe_load(text)))(torch.zeros(1, 8)).shape == (1, 6)


def changed(made, **layer):
    content = json.loads(json.dumps(made.to_dict()))
    content["layers"]["conv2"] |= layer
    return content


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"scheme": "tuker2"}, "layers.conv2.scheme: unknown scheme 'tuker2': did you mean"),
        ({"rank": [3]}, "layers.conv2.rank: unknown key, did you mean 'ranks'"),
        ({"ranks": [0, 3]}, r"layers.conv2.ranks.0: .*greater than or equal to 1"),
        ({"ranks": [21, 3]}, "layer 'conv2': rank 1 of .21, 3. must be from 1 to 20"),
        ({"ranks": [3]}, "layer 'conv2': expected 2 ranks"),
        ({"weight": None}, "layers.conv2.weight: "),
        ({"options": {"modes": [9]}}, "layer 'conv2': unknown key 'modes'"),
        ({"weight": {"kind": "Conv2d", "inputs": 3}}, "layers.conv2.weight.outputs: .*required"),
        ({"scheme": "ada_tucker"}, "layer 'conv2': .* it needs modes"),
        (
            {"scheme": "ada_tucker", "options": {"modes": [9, 9]}},
            "layer 'conv2': .*81 entries",
        ),
        (
            {"scheme": "ada_tucker", "options": {"modes": [50, 500], "diagonal": 1}},
            "layer 'conv2': diagonal must be a bool",
        ),
    ],
)
def test_mistakes_in_a_file_name_the_key(mixed, tmp_path, layer, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(mixed, **layer)))
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        Plan.read(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_no_plan(tmp_path):
    with pytest.raises(DataNotFoundError, match="no plan at"):
        Plan.read(tmp_path / "none.yaml")
    for text, message in [
        ("[1]", "a plan must be a mapping"),
        ("a: 1", "layers: Field required"),
        ("{layers: {}, format: tensorpress-plan 9}", "format: "),
        ("layers: [", "line 1"),
        ("\x00", "not allowed"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InvalidArgumentError, match=message):
            Plan.read(tmp_path / "bad.yaml")


def test_the_table_counts_macs_where_inputs_are_given(mixed):
    lines = str(mixed).splitlines()
    assert lines[0].split() == [
        *("layer", "scheme", "weight", "modes", "ranks", "dense", "stored", "dense", "MACs", "MACs")
    ]
    total = next(line for line in lines if line.startswith("total"))
    net = zoo.build("lenet5")
    assert f"{count_macs(net, [IMAGE]):,}" in total
    assert f"{count_macs(press(net, mixed, init='glorot'), [IMAGE]):,}" in total
    assert lines[-1] == "kept dense: ip1 (skipped by 'ip1')"
    without = plan(net, scheme="channel_svd", ranks=0.2)
    assert without.macs is None
    assert "MACs" not in str(without)
    assert "error" in str(plan(net, scheme="channel_svd", budget="params=50%"))


def test_reasons_are_told_once_for_many_layers():
    net = nn.ModuleList([nn.Linear(3, 3) for _ in range(20)] + [nn.Linear(50, 50)])
    text = str(plan(net, scheme="channel_svd", ranks=3))
    assert "and 8 more (ranks (3,) give 18 parameters instead of 9: not smaller)" in text
