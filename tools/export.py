r"""Export a run as files that others can use: weights, a model card, evaluations, ONNX.

    python tools/export.py runs/demo --out exports/demo
    python tools/export.py runs/demo --evaluation runs/demo-evaluation --onnx --out exports/demo
    python tools/export.py runs/r18 --out exports/r18 --license bsd-3-clause --push USER/NAME
    python tools/export.py runs/r18 --out exports/r18 --push USER/NAME --dry-run

RUN is a folder that pipeline/finetune.py or pipeline/evaluate.py wrote. Written are
model.safetensors and config.json (in the names of torchvision or timm, which load them without this
project), README.md (a card of the Hugging Face hub, with the metrics as model-index), evaluations/
(per-image results, summaries and curves; no photos), training.yaml, and with --onnx model.onnx,
which takes decoded images of any size. Needs the extra export: pip install -e ".[export]".
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from exporting import hub
from exporting.card import CardOptions, write_card
from exporting.contents import check_replaceable, files_of, with_files
from exporting.evaluation_files import write_evaluations, write_options
from exporting.images import images_for_check
from exporting.net_files import MEAN, NET_CONFIG_FILE, config_of, write_weights
from exporting.onnx_file import write_onnx
from exporting.source import (
    RUN_OPTIONS_FILE,
    ExportedNet,
    evaluations_of,
    exported_net,
    options_of,
    read_run,
)
from pipeline.config import EvaluateConfig, arguments
from pipeline.data.mean_image import mean_of
from pipeline.errors import UserError, exit_on_user_error
from pipeline.reports.runs import Run
from pipeline.runtime.files import atomic_write, check_writable, report_unwritable, write_json


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    top.add_argument("run", type=Path, metavar="RUN", help="folder of a fine-tuning or evaluation")
    top.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    top.add_argument(
        "--replace",
        action="store_true",
        help="replace an earlier export in --out when the new one is complete (default: off)",
    )
    top.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="an evaluation of the same weights to publish with them; may be repeated (default: "
        "RUN if it is an evaluation, else the evaluations in RUN's folder)",
    )
    top.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the weights of RUN, if they have been moved (default: RUN/weights.pth, or "
        "model.weights of an evaluation)",
    )
    top.add_argument(
        "--onnx",
        action="store_true",
        help="also write model.onnx, checked against torch with ten images (default: off)",
    )
    top.add_argument("--name", help="title of the card (default: the name of --out)")
    top.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="the licence's identifier on the hub, such as apache-2.0 (%(default)s: to fill in)",
    )
    top.add_argument(
        "--base-model",
        metavar="USER/NAME",
        help="the model on the hub that the training started from (default: not stated)",
    )
    top.add_argument(
        "--push", metavar="USER/NAME", help="send the export to this repository of the hub"
    )
    top.add_argument(
        "--private", action="store_true", help="--push creates a private repository (default: off)"
    )
    top.add_argument(
        "--dry-run",
        action="store_true",
        help="write and send nothing; list the files that would be (default: off)",
    )
    return top


def export(options: argparse.Namespace) -> None:
    """Write the export, and send it if asked to."""
    check(options)
    run = read_run(options.run)
    exported = exported_net(run, options.weights)
    evaluations = evaluations_of(run, exported, options.evaluation)
    out: Path = options.out
    parent = Path(tempfile.gettempdir()) if options.dry_run else out.absolute().parent
    with report_unwritable(out, "give another --out"):
        parent.mkdir(parents=True, exist_ok=True)
        # The folder gets its name when it is complete.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.tmp-", dir=parent) as name:
            partial = Path(name) / out.name
            partial.mkdir()
            write_files(exported, run, evaluations, options, partial)
            describe(partial, options)
            if options.dry_run:
                return
            if out.exists():  # it is deleted with the temporary folder
                out.rename(Path(name) / "replaced")
            partial.rename(out)
    if options.push is not None:
        print(f"sent: {hub.push(out, options.push, private=options.private)}")


def check(options: argparse.Namespace) -> None:
    """Refuse what would fail after the work.

    Raises:
        UserError: --out exists, or --push cannot work.
    """
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; give a folder")
    if not options.dry_run:
        check_writable(out / NET_CONFIG_FILE)
    if out.exists() and any(out.iterdir()):
        check_replaceable(out)
        if not options.replace:
            raise UserError(f"--out: {out} holds an export; --replace replaces it")
    if options.push is not None:
        hub.check_repository(options.push)
        if not options.dry_run:
            hub.check_token()


def write_files(
    exported: ExportedNet,
    run: Run,
    evaluations: dict[str, Run],
    options: argparse.Namespace,
    folder: Path,
) -> None:
    """Write all files of the export into an empty folder."""
    onnx = None
    if options.onnx:
        images = images_for_check(options_of(run, EvaluateConfig))
        onnx = write_onnx(exported, images, folder)
    write_weights(exported, folder)
    if isinstance(exported.data.mean, str):
        with atomic_write(folder / MEAN) as partial, partial.open("wb") as file:
            np.save(file, mean_of(exported.data))
    if exported.training is not None:
        write_options(run.folder / RUN_OPTIONS_FILE, folder / "training.yaml")
    write_evaluations(evaluations, folder)
    card = CardOptions(
        name=options.name or options.out.name,
        license=options.license,
        base_model=options.base_model,
        command=command_options(options),
    )
    write_card(exported, run, evaluations, card, onnx, folder)
    write_json(folder / NET_CONFIG_FILE, with_files(config_of(exported), folder))


def command_options(options: argparse.Namespace) -> list[str]:
    """The options that make the same files again, with the names of folders alone."""
    words = [w for path in options.evaluation for w in ("--evaluation", path.resolve().name)]
    words += ["--onnx"] if options.onnx else []
    for name in ("name", "license", "base_model"):
        value = getattr(options, name)
        words += [f"--{name}", value] if value not in (None, "unknown") else []
    return [*words, "--out", options.out.name]


def describe(folder: Path, options: argparse.Namespace) -> None:
    """Print the files, and what becomes of them."""
    sizes = {path.relative_to(folder): path.stat().st_size for path in files_of(folder)}
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")
    total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"
    target = options.out if options.push is None else f"{options.out}, then to {options.push}"
    if options.dry_run:
        print(f"{total}, would be written to {target}")
        if options.push is not None and not hub.has_token():
            print("this machine has no token for --push: hf auth login, or set HF_TOKEN")
        return
    print(f"{total}, in {target}")
    if options.license == "unknown":
        print(f"fill in the licence: {options.out / 'README.md'}")


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        export(args)
