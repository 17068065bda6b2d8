"""The table of distances by several attacks (--attack).

In: the evaluations in `DISTANCES`. Out: a Markdown table and the rows of a CSV file.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.reports import runs
from pipeline.runtime.text_tables import markdown_table
from reproduction.cells import mean_and_spread, with_seeds
from reproduction.experiments import DISTANCES

BEST, OVER_BEST = "best", "deepfool_over_best"

# By method of training and seed: rho2 by each attack, of the best, and DeepFool's over the best.
Distances = dict[str, dict[int, dict[str, float]]]


def distances_by_method(
    methods: Sequence[str], output: Path, names: Container[str], seeds: Sequence[int]
) -> Distances:
    """The numbers of the evaluations that have ended.

    Args:
        methods: names of the methods of training, in the table's order.
        output: folder of all runs.
        names: names of the runs that count, in ``output``.
        seeds: seeds of the runs.

    Raises:
        UserError: a summary cannot be read.
    """
    distances: Distances = {}
    for method in methods:
        for seed in seeds:
            name = f"seed{seed}/{method}/{DISTANCES}"
            if name in names:
                distances.setdefault(method, {})[seed] = _numbers(output / name)
    return distances


def _numbers(folder: Path) -> dict[str, float]:
    statistics = runs.read(folder).evaluation.statistics
    diagnostics = statistics.diagnostics
    if diagnostics is None:
        raise UserError(f"{folder} has no diagnostics; remove it and run the same command")
    numbers = {name: values["mean"] for name, values in diagnostics.methods.items()}
    numbers[BEST] = statistics.rho
    numbers[OVER_BEST] = diagnostics.deepfool_over_best
    return {name: number for name, number in numbers.items() if number is not None}


def columns(distances: Distances) -> list[str]:
    """The names of all numbers, in the order of the columns."""
    names = {
        name: None
        for by_seed in distances.values()
        for numbers in by_seed.values()
        for name in numbers
    }
    last = [name for name in (BEST, OVER_BEST) if name in names]
    return [name for name in names if name not in last] + last


def rows(distances: Distances) -> list[list[str | int | float | None]]:
    """A row for each net: method of training, seed, the numbers in the order of `columns`."""
    names = columns(distances)
    return [
        [method, seed, *(numbers.get(name) for name in names)]
        for method, by_seed in distances.items()
        for seed, numbers in by_seed.items()
    ]


def markdown(distances: Distances, titles: Mapping[str, str]) -> str:
    """The mean over the seeds and the standard deviation, a row for each method of training."""
    names = columns(distances)
    lines: list[list[str]] = []
    for method, by_seed in distances.items():
        line = [titles[method]]
        for name in names:
            values = [numbers[name] for numbers in by_seed.values() if name in numbers]
            line.append(mean_and_spread(values, "{:#.4g}", "{:.1g}"))
        lines.append(line)
    heads = {BEST: "best", OVER_BEST: "DeepFool / best"}
    head = ["Method", *(heads.get(name, f"by {name}") for name in names)]
    return markdown_table(*with_seeds(head, lines, list(distances.values())))
