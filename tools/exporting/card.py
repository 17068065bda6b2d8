"""README.md of an export: a model card of the Hugging Face hub.

The head has the metadata that the hub shows: library, licence, base model, and the metrics as
``model-index``.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporting import facts, net_files
from exporting.onnx_file import OnnxCheck
from exporting.packages import optional_package
from exporting.source import ExportedNet
from pipeline.reports.runs import Run
from pipeline.runtime import machine
from pipeline.runtime.files import atomic_write

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")

_LOADING = {
    "torchvision": """\
import json, torchvision
from safetensors.torch import load_file
config = json.load(open("config.json"))
net = torchvision.models.get_model(
    config["architecture"], num_classes=config["num_classes"], **config["model_args"])
net.load_state_dict(load_file("model.safetensors"))
net.eval()""",
    "timm": """\
import timm
net = timm.create_model("local-dir:.", pretrained=True).eval()
# from the hub: timm.create_model("hf-hub:USER/NAME", pretrained=True)""",
    "deep-defense-pipeline": """\
from pipeline.models.paper_nets import {architecture}
from safetensors.torch import load_file
net = {architecture}({num_classes})
net.load_state_dict(load_file("model.safetensors"))
net.eval()""",
    "own": """\
from {module} import {architecture}
from safetensors.torch import load_file
net = {architecture}()  # with the arguments of the run, such as num_classes={num_classes}
net.load_state_dict(load_file("model.safetensors"))
net.eval()""",
}


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the user says of the weights.

    Attributes:
        name: title of the card and name of the model.
        license: the licence's identifier on the hub; unknown: to be filled in.
        base_model: the model on the hub that the training started from; None: not stated.
        command: the options of tools/export.py, without folders.
    """

    name: str
    license: str = "unknown"
    base_model: str | None = None
    command: Sequence[str] = ()


def write_card(
    exported: ExportedNet,
    run: Run,
    evaluations: Mapping[str, Run],
    options: CardOptions,
    onnx: OnnxCheck | None,
    folder: Path,
) -> None:
    """Write README.md.

    Args:
        exported: the net.
        run: the run that is exported.
        evaluations: evaluations of the net, by their folder in the export.
        options: what the user says of the weights.
        onnx: the check of model.onnx, if there is one.
        folder: the export.

    Raises:
        UserError: huggingface_hub is missing.
    """
    hub = _hub()
    library = net_files.library_of(exported)
    training = exported.training and facts.training_facts(run, exported.training)
    values = {
        "name": options.name,
        "license": options.license,
        "architecture": net_files.architecture(exported),
        "library": library,
        "num_classes": exported.num_classes,
        "channels": exported.data.channels,
        "evaluations": [facts.evaluation_facts(name, e) for name, e in evaluations.items()],
        "training": training,
        "base": options.base_model or (training or {}).get("base"),
        "loading": loading_code(exported),
        "own_module": library if facts.loading(exported) == "own" else "",
        "preprocessing": preprocessing_code(exported),
        "onnx": onnx,
        "command": shlex.join(["python", "tools/export.py", run.folder.name, *options.command]),
        "version": machine.versions().get("deep-defense-pipeline", ""),
        "commit": machine.commit(),
    }
    card = hub.ModelCard.from_template(
        metadata(exported, evaluations, options), template_path=str(_TEMPLATE), **values
    )
    with atomic_write(folder / CARD) as partial:
        partial.write_text(re.sub(r"\n{3,}", "\n\n", str(card)))


def metadata(exported: ExportedNet, evaluations: Mapping[str, Run], options: CardOptions) -> Any:
    """The head of the card, a ``ModelCardData``."""
    library = net_files.library_of(exported)
    results = [
        result for name, evaluation in evaluations.items() for result in _results(name, evaluation)
    ]
    return _hub().ModelCardData(
        model_name=options.name,
        eval_results=results or None,
        license=options.license,
        library_name=library if library == "timm" else None,
        base_model=options.base_model,
        pipeline_tag="image-classification",
        tags=["image-classification", "adversarial-robustness", "deep-defense"],
    )


def _results(name: str, evaluation: Run) -> list[Any]:
    """The metrics of an evaluation, each an ``EvalResult``; ``name`` is its folder."""
    data_set, summary = facts.data_set(evaluation), evaluation.evaluation
    return [
        _hub().EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data_set,
            dataset_name=data_set,
            dataset_revision=summary.identity.index,
            metric_type=metric.partition(" ")[0].rstrip(","),
            metric_name=metric,
            metric_value=value,
            metric_config=name,
        )
        for metric, value in facts.metrics(summary).items()
    ]


def loading_code(exported: ExportedNet) -> str:
    """The lines that load the net in the folder of the export, without this project if possible."""
    return _LOADING[facts.loading(exported)].format_map(
        {
            "architecture": net_files.architecture(exported),
            "num_classes": exported.num_classes,
            "module": net_files.library_of(exported),
        }
    )


def preprocessing_code(exported: ExportedNet) -> str:
    """The lines that turn a PIL image into the net's input, by torchvision."""
    data = exported.data
    grey = "transforms.Grayscale(), " if data.channels == 1 else ""
    if isinstance(data.mean, str):
        std = [[[value]] for value in data.std]
        last = (
            "    # mean.npy is the mean image, for pixels in [0, 1]\n"
            f"    lambda x: (x - torch.from_numpy(np.load({net_files.MEAN!r}))) / "
            f"torch.tensor({std}),\n"
        )
        imports = "import numpy as np, torch\n"
    else:
        last = f"    transforms.Normalize({data.mean}, {data.std}),\n"
        imports = ""
    return (
        f"{imports}from torchvision import transforms\n"
        "preprocess = transforms.Compose([\n"
        f"    {grey}transforms.Resize({data.resize_size}, "
        f"transforms.InterpolationMode.{data.interpolation.upper()}),\n"
        f"    transforms.CenterCrop({data.crop_size}), transforms.ToTensor(),\n"
        f"{last}])"
    )


def _hub() -> Any:
    """The package huggingface_hub, which writes the head of the card.

    Raises:
        UserError: it is not installed.
    """
    return optional_package("huggingface_hub", "the card")
