"""What the entry points do first: the output folder, the indices, the net, the threads."""

import json
import math
import os
import platform
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from pipeline.config import DataConfig, FinetuneConfig, RunConfig, RuntimeConfig
from pipeline.data import demo, index
from pipeline.data.index import Index
from pipeline.errors import UserError, brief
from pipeline.models import build
from pipeline.models.trial import check_net
from pipeline.models.weight_classes import check_indices, check_weights
from pipeline.runtime import files, lock
from pipeline.runtime.distributed import Ranks
from pipeline.runtime.reproducibility import use_reproducible_kernels

# A name in the folder of each kind of run, which no other kind of run writes.
_MARKERS = {"training": "checkpoints", "evaluation": "results", "adversarial": "manifest.json"}

Kind = Literal["training", "evaluation", "adversarial"]
ConfigT = TypeVar("ConfigT", bound=RunConfig)


def check_folder(config: RunConfig, kind: Kind) -> Path:
    """The output folder, which need not exist yet.

    Raises:
        UserError: it belongs to another kind of run, or cannot be looked at.
    """
    folder = Path(config.output)
    try:
        others = [k for k, marker in _MARKERS.items() if k != kind and (folder / marker).exists()]
    except OSError as error:
        raise UserError(_unusable(folder, error)) from None
    if others:
        raise UserError(
            f"output: {folder} holds another kind of run ({others[0]}); give another --output"
        )
    return folder


def open_folder(config: RunConfig, ranks: Ranks, kind: Kind, alone: bool = False) -> Path:
    """Make the output folder, see that it can be written, and remove what killed runs left in it.

    Args:
        config: names the folder.
        ranks: the first looks for all.
        kind: of this run.
        alone: keep other runs out of it until this one ends.

    Raises:
        UserError: it cannot be written, or belongs to another kind of run or to a running one.
    """
    folder = check_folder(config, kind)
    if ranks.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a name of its own: other shards try too
                pass
        except (OSError, ValueError) as error:
            raise UserError(_unusable(folder, error)) from None
        if alone:
            lock.hold(folder)
        shards = folder.glob("results/*")
        for part in (folder, folder / "checkpoints", *shards, *folder.glob("results/*/examples")):
            files.sweep(part)
    ranks.barrier()
    return folder


def _unusable(folder: Path, error: OSError | ValueError) -> str:
    name = str(folder) if len(str(folder)) < 100 else f"{str(folder)[:60]}..."
    reason = getattr(error, "strerror", None) or brief(error)
    return f"output: {name} cannot be written ({reason}); give another --output"


def resolve_reference(config: ConfigT) -> ConfigT:
    """The configuration with evaluation.fgs.reference as a number, read where it names a folder.

    Raises:
        UserError: the folder holds no evaluation that searched for eps_ref.
    """
    fgs = config.evaluation.fgs
    if not isinstance(fgs.reference, str):
        return config
    path = Path(fgs.reference) / "summary.json"
    try:
        eps_ref = json.loads(path.read_text())["fgs"]["eps_ref"]
    except (OSError, ValueError, KeyError, TypeError):
        eps_ref = None
    if not isinstance(eps_ref, int | float) or not 0 < eps_ref < math.inf:
        raise UserError(
            f"evaluation.fgs.reference: {path} holds no eps_ref; evaluate that model with "
            "--evaluation.fgs.search true, or give a number"
        )
    return replace(
        config, evaluation=replace(config.evaluation, fgs=replace(fgs, reference=float(eps_ref)))
    )


def open_index(config: RunConfig, part: str) -> Index:
    """The index of ``data.train`` or ``data.val``; the embedded digits for ``demo``.

    Raises:
        UserError: there is none, or its arrays cannot be evaluated in the space asked for.
    """
    path = getattr(config.data, part)
    root = config.data.root
    if path == demo.NAME:
        path, root = str(demo.prepare()[part]), None
    found = index.read(path, root, option=f"data.{part}")
    if part == "val" and found.arrays.any() and config.evaluation.space != "input":
        raise UserError(
            f"evaluation.space: the arrays of {path} are in the net's input space, where alone "
            "they can be evaluated: input"
        )
    return found


def num_classes_of(config: RunConfig, first: Index) -> int:
    """Outputs of the net: as many as asked for, or as the first index has classes."""
    asked = config.model.num_classes
    return first.num_classes if asked is None else asked


def build_net(config: RunConfig, *indices: Index) -> nn.Module:
    """The net with `num_classes` outputs.

    Raises:
        UserError: no such net, weights that do not fit, labels outside its classes, or a net that
            cannot be attacked; the indices or the weights are of different classes.
    """
    use_reproducible_kernels()  # for launchers, whose --cluster debug runs a job in this process
    num_classes = num_classes_of(config, indices[0])
    if num_classes < 2:
        raise UserError(
            f"{indices[0].path} has one class, and a classifier needs two; set model.num_classes"
        )
    for each in indices:
        index.check_labels(each, num_classes)
    model = config.model
    if not isinstance(config, FinetuneConfig):  # evaluation measures the head that the weights have
        model = replace(model, new_head=False)
    for other in indices[1:]:
        check_indices(config, indices[0], other)
    if not model.new_head:
        check_weights(config, indices[0])
    net = build.build(model, num_classes)
    check_net(net, config, num_classes)
    return net


def memory_format(runtime: RuntimeConfig, device: torch.device) -> torch.memory_format:
    """Layout of the net's weights, which that of its input follows."""
    last = runtime.channels_last
    if last == "auto":
        last = device.type == "cpu" or runtime.precision != "fp32"
    return torch.channels_last if last else torch.preserve_format


def decoding_threads(config: DataConfig, local_size: int = 1) -> int:
    """DALI's threads for this rank: as asked for, or one more than its share of the cores, so that
    small operators of one batch do not wait for the decoder of another."""
    if config.threads is not None:
        return config.threads
    return max(1, cores() // local_size) + 1


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "deep-defense-pipeline")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # DALI has other names for other CUDA versions
            continue
    return found
