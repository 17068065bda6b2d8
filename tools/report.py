"""Merge the shards of an evaluation; make tables and figures of runs; compare two evaluations.

    python tools/report.py merge runs/r18    # summary.json, samples.parquet, ...
    python tools/report.py table "ResNet-18:Reference=runs/ref" "ResNet-18:Deep Defense=runs/dd"
    python tools/report.py figures epochs "Deep Defense=runs/ft" "clean=runs/ft0" --out fig2
    python tools/report.py figures sweep runs/c5 runs/c10 runs/c15 --by regularizer.lam --out fig3
    python tools/report.py figures ratios before=runs/ref after=runs/dd --out ratios
    python tools/report.py figures curves before=runs/ref after=runs/dd --out curves
    python tools/report.py figures sheet runs/dd --out sheet
    python tools/report.py compare runs/ref runs/dd    # intervals, tests, images that got worse
    python tools/report.py compare runs/ref runs/dd --method deepfool    # of several methods
    python tools/report.py chain runs/r18    # tables and figures of a run of launchers/chain.py

A run is a folder that pipeline/finetune.py or pipeline/evaluate.py wrote; its label is optional.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.config import arguments, messages
from pipeline.config.checks import Range
from pipeline.errors import UserError, exit_on_user_error
from pipeline.evaluation import merge
from pipeline.evaluation.summary import format_summary, write_outputs
from pipeline.reports import (
    chain_report,
    compare,
    figures,
    pairs,
    runs,
    sweep_figure,
    table,
    table_formats,
)
from pipeline.reports.resampling_options import add_resampling, resampling_of
from pipeline.runtime.files import atomic_write, check_writable, writable

FIGURES = ("epochs", "sweep", "ratios", "curves", "sheet")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    merge_parser = commands.add_parser("merge", help="merge the shards of an evaluation")
    merge_parser.add_argument("folder", type=Path, help="OUTPUT of the shards")
    merge_parser.add_argument(
        "--partial",
        action="store_true",
        help="merge also if images are missing; the summary states their number",
    )
    table_parser = commands.add_parser("table", help="a table like the paper's Table 1")
    table_parser.add_argument("runs", nargs="+", metavar="[NETWORK:METHOD=]FOLDER")
    table_parser.add_argument(
        "--format", choices=table_formats.FORMATS, default="markdown", help="(%(default)s)"
    )
    table_parser.add_argument(
        "--eps-ref",
        type=arguments.Number(float, Range(above=0)),
        help="eps_ref of every row (default: evaluation.fgs.reference of a network's runs, or "
        "eps_ref of its last run that searched for one; so put the Deep Defense model last)",
    )
    table_parser.add_argument("--out", type=Path, help="file to write (default: print)")
    figures_parser = commands.add_parser("figures", help="figures as PNG and SVG")
    figures_parser.add_argument(
        "kind",
        choices=FIGURES,
        help="epochs: accuracy and rho2 by epoch (Figure 2); sweep: accuracy against rho2 "
        "(Figures 3 and 4; the mean and spread of runs with equal --by and --along); ratios: "
        "distribution of per-image ratios; curves: accuracy under every budget of the "
        "perturbation; sheet: images, perturbations and perturbed images",
    )
    figures_parser.add_argument("runs", nargs="+", metavar="[LABEL=]FOLDER")
    figures_parser.add_argument(
        "--out", type=Path, required=True, help="path without .png and .svg"
    )
    figures_parser.add_argument(
        "--by",
        default="regularizer.lam",
        help="sweep: option with a line for each of its values, or label (%(default)s)",
    )
    figures_parser.add_argument(
        "--along",
        default="regularizer.c",
        help="sweep: option whose values are the points of a line (%(default)s)",
    )
    _add_compare(commands)
    chain_parser = commands.add_parser(
        "chain", help="tables and figures of a run, before and after"
    )
    chain_parser.add_argument("folder", type=Path, help="the OUTPUT of launchers/chain.py")
    return top


def _add_compare(commands: Any) -> None:
    compare_parser = commands.add_parser(
        "compare", help="two evaluations of the same images, image by image"
    )
    compare_parser.add_argument("a", metavar="A", help="[LABEL=]FOLDER of the reference")
    compare_parser.add_argument("b", metavar="B", help="[LABEL=]FOLDER that is compared with it")
    compare_parser.add_argument(
        "--method",
        help="compare the distances by this one of the methods that both evaluations ran, such as "
        "deepfool (default: the smallest distance by the methods of evaluation.attack.method)",
    )
    add_resampling(compare_parser)
    compare_parser.add_argument(
        "--worst",
        type=arguments.Number(int, Range(minimum=0)),
        default=10,
        help="number of images to list whose distance decreased most (%(default)s)",
    )
    compare_parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    compare_parser.add_argument("--out", type=Path, help="CSV file of all images to write")


def merge_shards(options: argparse.Namespace) -> None:
    """The command ``merge``."""
    with merge.merging(options.folder) as merged:
        if not merged.complete and not options.partial:
            raise UserError(
                f"{options.folder}: {merged.missing_message()}; run the shards again with the "
                "same command, or merge the results so far with --partial"
            )
        print(format_summary(write_outputs(options.folder, merged)))
    print(messages.after_evaluation(options.folder))


def tabulate(options: argparse.Namespace) -> None:
    """The command ``table``."""
    selected = [runs.run_of_argument(argument) for argument in options.runs]
    table.warn_of_differences(selected)
    text = table_formats.FORMATS[options.format](table.rows_of(selected, options.eps_ref))
    if options.out is None:
        sys.stdout.write(text)
    else:
        _write(options.out, text)


def draw(options: argparse.Namespace) -> None:
    """The command ``figures``."""
    selected = [runs.run_of_argument(argument) for argument in options.runs]
    if options.kind != "sheet":
        table.warn_of_differences(selected)
    if options.kind == "sheet":
        if len(selected) > 1:
            raise UserError("a sheet shows one run")
        figure = figures.sheet(selected[0])
    elif options.kind == "sweep":
        figure = sweep_figure.sweep(selected, options.by, options.along)
    elif options.kind == "epochs":
        figure = figures.epochs(selected)
    elif options.kind == "curves":
        figure = figures.curves(selected)
    else:
        figure = figures.ratios(selected)
    print(*figures.save(figure, options.out), sep="\n")


def compare_evaluations(options: argparse.Namespace) -> None:
    """The command ``compare``."""
    a, b = (pairs.read(runs.run_of_argument(folder)) for folder in (options.a, options.b))
    resampling = resampling_of(options)
    if options.out is not None:
        check_writable(options.out)
    common = pairs.pair(a, b, options.method)
    result = compare.compare(common, resampling, options.worst)
    if options.out is not None:
        _write(options.out, pairs.as_csv(common))
    print(json.dumps(result.to_dict(), indent=2) if options.json else compare.as_text(result))


def _write(path: Path, text: str) -> None:
    with writable(path), atomic_write(path) as partial:
        partial.write_text(text)


def report(options: argparse.Namespace) -> None:
    """The command ``chain``."""
    page = chain_report.write(options.folder)
    print((page.parent / "table.md").read_text())
    print(page)


COMMANDS = {
    "merge": merge_shards,
    "table": tabulate,
    "figures": draw,
    "compare": compare_evaluations,
    "chain": report,
}

if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        COMMANDS[args.command](args)
