"""Pressing of a checkpoint tensor by tensor, without loading the model."""

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches, digest
from tensorpress.checkpoints.block_scores import block_scores
from tensorpress.checkpoints.load import model_from_config
from tensorpress.checkpoints.meta_model import fill_parameters, to_meta
from tensorpress.checkpoints.other_files import copy_others
from tensorpress.checkpoints.press_blocks import open_states, press_blocks
from tensorpress.checkpoints.press_shard import ShardPress, press_shard
from tensorpress.checkpoints.safetensors_reader import INDEX, TensorFiles
from tensorpress.checkpoints.safetensors_writer import write_index
from tensorpress.checkpoints.streamed_model import StreamedModel
from tensorpress.checkpoints.tensor_names import match_tensor_names, route_tensors
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.hugging_face.pressed_config import PLAN, mark_config
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.planning import Plan
from tensorpress.planning import plan as make_plan
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.planner import PlanOptions
from tensorpress.reconstruct.layerwise import check_reconstruction
from tensorpress.utils.atomic_files import remove_leftovers
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import SUBJECT, JobFolder
from tensorpress.utils.module_tree import parameter_name
from tensorpress.utils.progress import ByteProgress

JOBS = ".press"
"""The folder inside the output from which an interrupted call continues."""

SHARDS = "shards"
"""The subfolder of completed shards, all of the same plan."""


def press_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    model: nn.Module | None = None,
    example_inputs: ExampleInputs | None = None,
    calibration: Iterable[CalibrationBatch] | None = None,
    processes: int = 1,
    executor: Executor | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Press a checkpoint of a model that may be larger than memory.

    The model is built on the meta device, and weights are read, pressed and written one at a time,
    so that memory holds a few times the largest weight. Every shard becomes a pressed shard with
    the same name and dtypes; `load_checkpoint` loads the result. After an interruption, the same
    call continues with the remaining shards.

    Parameters
    ----------
    source : path
        A folder in Hugging Face's layout: safetensors, in one file or in shards with an index, and
        ``config.json``.
    out : path
        A new or empty folder, or the folder of an interrupted call. Files other than weights are
        copied to it.
    plan : Plan, optional
        The plan; by default `tensorpress.plan` makes one from the options.
    model : nn.Module, optional
        A dense model of the same architecture, which may be on the meta device. Not needed if
        ``config.json`` is that of a Transformers model.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of one forward pass, as in `tensorpress.plan`; only without a plan.
    calibration : iterable, optional
        Batches as in `tensorpress.press`. The model then runs block by block, with one block and
        the hidden states of one batch in memory. Each Linear is fitted to the responses of the
        dense layer, with inputs from the pressed layers before it. A budget without an allocation
        is divided by the loss that lost responses of each layer cost.
    processes : int
        Number of shards that are pressed at a time, each by a process with one thread. A script
        that asks for several must start under ``if __name__ == "__main__":``.
    executor : Executor, optional
        Workers to use instead of processes: any `concurrent.futures.Executor`, such as that of a
        Dask client; they must see both folders.
    **options
        Other options of `tensorpress.plan`, only without a plan: ``scheme``, ``ranks``, ``budget``
        and so on. Rules that need weights read them one at a time.

    Returns
    -------
    Plan
        The plan of the pressed checkpoint, which is also written to ``plan.json``.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        If files are missing, truncated or damaged.
    ModelMismatchError
        If the checkpoint or the plan does not fit the model.
    InvalidArgumentError
        If weights are NaN or infinite (the message names shard and layer), the options make no plan
        or are passed together with a plan, ``out`` has other files, or the model cannot be
        calibrated block by block.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> from tensorpress.checkpoints import load_checkpoint
    >>> net = nn.Sequential(nn.Linear(80, 50), nn.Linear(50, 10))
    >>> source, out = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    >>> save_file(net.state_dict(), source / "model.safetensors")
    >>> press_checkpoint(source, out, model=net, scheme="channel_svd", ranks=0.1).params
    770
    >>> load_checkpoint(out, net)[0].ranks
    (5,)
    """
    if plan is not None and (options or example_inputs is not None):
        raise InvalidArgumentError(
            "pass either a plan, or example inputs and options to make one from"
        )
    files, folder = TensorFiles(source), Path(out)
    _check_folders(files.folder, folder)
    remove_leftovers(folder)
    with _work_folder(folder, shared=executor is not None):
        runner = model_from_config(files.folder) if model is None else to_meta(model)
        dense = deepcopy(runner).to("meta")
        names = match_tensor_names(dense, files)
        stored = {name: stored_name for stored_name, name in reversed(names.items())}
        fill_parameters(dense, stored, lambda name: files.tensors[name].empty())
        streamed = None
        if calibration is not None:
            check_reconstruction(None, True, "decompose", processes != 1 or executor is not None)
            batches = collect_batches(calibration, nn.Identity())
            streamed = StreamedModel(runner, files, stored, batches)
        if plan is None:
            plan = _make_plan(files, folder, dense, stored, example_inputs, options, streamed)
        work = ShardPress(files, folder, dense, names, stored, route_tensors(dense, plan))
        subject = {"source": files.fingerprint, "plan": plan.id}
        if streamed is not None:
            subject["data"] = digest(streamed.batches)
        jobs = JobFolder(folder / JOBS / SHARDS, subject)
        if streamed is not None and not files.files.keys() <= jobs.results().keys():
            fitted = press_blocks(
                streamed, plan, work.routes, dense, folder / JOBS, files.fingerprint
            )
            work = replace(work, fitted=fitted)
        with open_executor(processes, executor) as workers:
            _press_shards(work, jobs, workers)
        _write_others(work, plan, jobs.results())
    remove_leftovers(folder)
    return plan


@contextmanager
def _work_folder(out: Path, *, shared: bool) -> Iterator[None]:
    """Remove the folder of intermediate results, unless a later call can continue from it.

    A folder that machines share stays, because another process may still read it.
    """
    is_new, folder = not out.exists(), out / JOBS
    try:
        yield
    except BaseException:
        if all(path.name == SUBJECT for path in folder.rglob("*") if path.is_file()):
            shutil.rmtree(folder, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # it is not there
                    out.rmdir()
        raise
    if not shared:
        shutil.rmtree(folder, ignore_errors=True)


def _press_shards(work: ShardPress, jobs: JobFolder, executor: Executor | None) -> None:
    """Press the remaining shards."""
    sizes = {
        shard: sum(work.files.tensors[name].bytes for name in names)
        for shard, names in work.files.files.items()
    }
    done = jobs.results()
    with ByteProgress(sum(sizes.values())) as progress:
        for shard in done:
            progress.end(shard, sizes[shard])
        shards = [shard for shard in sizes if shard not in done]
        if executor is None:
            results = jobs.iterate({shard: (shard, progress) for shard in shards}, work.press)
        else:
            data = pickle.dumps(work)
            arguments = {shard: (data, shard) for shard in shards}
            results = jobs.iterate(arguments, press_shard, executor)
        for shard, _ in results:
            progress.end(shard, sizes[shard])


def _check_folders(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise InvalidArgumentError(f"{out} is inside {source}: choose another output folder")
    if out.exists() and not out.is_dir():
        raise InvalidArgumentError(f"{out} is not a folder")
    if out.exists() and any(out.iterdir()) and not (out / JOBS).exists():
        holds = "a pressed model" if (out / PLAN).is_file() else "other files"
        raise InvalidArgumentError(f"{out} already has {holds}: choose a new or empty folder")


def _make_plan(
    files: TensorFiles,
    out: Path,
    dense: nn.Module,
    stored: Mapping[str, str],
    example_inputs: ExampleInputs | None,
    options: PlanOptions,
    streamed: StreamedModel | None,
) -> Plan:
    """Return the plan for these options, or read it if an earlier call made it."""
    inputs = None
    if example_inputs is not None:
        inputs = ModelInputs.parse(example_inputs).map(lambda x: x.to("meta"))
    subject = {"source": files.fingerprint, **{name: repr(x) for name, x in options.items()}}
    subject["inputs"] = str(inputs)
    if streamed is not None:
        subject["data"] = digest(streamed.batches)
    key = sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:12]
    # One folder for each set of options, so that other options can be tried if planning fails.
    jobs = JobFolder(out / JOBS / f"plan-{key}", subject)

    def weight(layer: str) -> Tensor:
        return files.read(stored[parameter_name(dense, layer)])

    def compute() -> dict[str, Any]:
        limited = options.get("budget") is not None and options.get("allocation") is None
        if streamed is not None and limited:
            planned = any(jobs.folder.glob("plan.*.json"))  # it may be damaged
            if not planned and (out / JOBS / SHARDS / SUBJECT).exists():
                raise InvalidArgumentError(
                    f"{out} has shards pressed with other options or other calibration data: "
                    "pass those again, or choose another folder"
                )
            layers = DenseModel.from_module(dense, None, weight)
            states = open_states(streamed, out / JOBS, files.fingerprint)
            which = {key: options[key] for key in ("scheme", "targets", "skip") if key in options}
            scores = block_scores(streamed, layers, states, jobs.folder, **which)
            options["allocation"] = scores
        return make_plan(dense, inputs, **options, weights=weight).to_dict()

    return Plan.from_dict(jobs.run({"plan": ()}, compute, title="planning")["plan"])


def _write_others(work: ShardPress, plan: Plan, sizes: Mapping[str, int]) -> None:
    """Check that all shards are complete, and write the other files, the index last."""
    for shard, size in sizes.items():
        path = work.out / shard
        if not path.is_file() or path.stat().st_size != size:
            raise CorruptFileError(
                f"{path} has changed since it was written: delete {work.out} and press again"
            )
    copy_others(work.files.folder, work.out)
    plan.save(work.out / PLAN)
    mark_config(work.out, plan)
    if (work.files.folder / INDEX).is_file():
        write_index(work.out, {shard: work.outputs(shard) for shard in sizes})
