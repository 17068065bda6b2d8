"""The columns of the board's table and of its CSV file.

In: the rows of a page. Out: `Column`s, which state a row's value and its text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from board_page.rows import Row
from pipeline.reports.paired_statistics import Interval

Value = float | str | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    key: str  # its name in the CSV file
    head: str
    help: str  # definition, with the unit
    value: Callable[[Row], Value]  # by which rows are sorted; None: not measured
    text: Callable[[Row], str]
    is_text: bool = False


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns of rows that were measured alike, without those that no row has a value of; the
    best rho, by which pages are sorted first, is always one."""
    rho = rows[0].statistics.rho_name
    best, *distances = _distances(rows, rho)
    columns = [*_accuracies(), best, *_comparisons(rho), *distances, *_costs()]
    return [c for c in columns if c is best or any(c.value(row) is not None for row in rows)]


def _accuracies() -> list[Column]:
    return [
        Column(
            key="model",
            head="net",
            help="Name of the net (model.name).",
            value=lambda row: row.identity.model,
            text=lambda row: row.identity.model,
            is_text=True,
        ),
        _number(
            "accuracy",
            "accuracy, %",
            "Share of the images that are classified correctly.",
            lambda row: row.statistics.accuracy,
            _percent,
        ),
        _number(
            "top5_accuracy",
            "top 5, %",
            "Share of the images whose label is one of the five classes with the highest logits.",
            lambda row: row.statistics.top5_accuracy,
            _percent,
        ),
    ]


def _distances(rows: Sequence[Row], rho: str) -> list[Column]:
    attacks = list(dict.fromkeys(name for row in rows for name in row.by_attack.rho))
    ratio = "||dx|| / ||x||"
    columns = [
        _number(
            f"{rho}_best",
            f"{rho}, best",
            f"Mean of {ratio} over the images, by the smallest known perturbation of each: of all "
            "attacks, or on the line to an image of another class. Larger is more robust. An upper "
            "bound of the true distance.",
            lambda row: row.best_rho,
            _distance,
        )
    ]
    columns += [
        _number(
            f"{rho}_{name}",
            f"{rho}, {name}",
            f"Mean of {ratio} by {name} alone, over the images whose class it changes.",
            lambda row, name=name: row.by_attack.rho.get(name),
            _distance,
        )
        for name in attacks
    ]
    columns += [
        _number(
            "deepfool_over_best",
            "DeepFool / best",
            "DeepFool's mean over the best. Above 1.25 the gradients may be masked.",
            _deepfool_over_best,
            "{:.3f}".format,
        ),
        _number(
            "ratio_median",
            f"median {ratio}",
            f"Median of {ratio} by the smallest perturbation of the attacks.",
            lambda row: row.statistics.ratio_median,
            _distance,
        ),
        _number(
            "num_unflipped",
            "never flipped",
            "Images whose class no attack changed, with those that had no gradient to follow. They "
            "count as robust at every budget, which proves nothing about the net.",
            lambda row: row.statistics.num_unflipped + row.statistics.num_without_gradient,
            "{:,}".format,
        ),
    ]
    return columns


def _deepfool_over_best(row: Row) -> float | None:
    diagnostics = row.statistics.diagnostics
    return None if diagnostics is None else diagnostics.deepfool_over_best


def _costs() -> list[Column]:
    return [
        _number(
            "num_queries",
            "queries an image",
            "Forward passes and gradients of all attacks, for one image.",
            lambda row: row.num_queries,
            "{:,.1f}".format,
        ),
        _number(
            "seconds",
            "seconds",
            "Wall-clock time of the evaluation; of several jobs, the sum.",
            lambda row: row.seconds,
            "{:,.1f}".format,
        ),
    ]


def _comparisons(rho: str) -> list[Column]:
    def interval_of(row: Row) -> Interval | None:
        return None if row.versus is None else row.versus.ratio

    def ratio(row: Row) -> float | None:
        interval = interval_of(row)
        return None if interval is None else interval.value

    def ratio_text(row: Row) -> str:
        interval = interval_of(row)
        if interval is None:
            return ""
        return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

    def accuracy_text(row: Row) -> str:
        if row.versus is None:
            return ""
        return f"{100 * row.versus.accuracy_difference:+.2f} (p {row.versus.mcnemar_p:.2g})"

    return [
        Column(
            key=f"{rho}_over_reference",
            head=f"{rho} / reference",
            help=f"{rho} of this row over that of the reference, over the images that both have, "
            "with its bootstrap interval: how much it depends on the choice of the images.",
            value=ratio,
            text=ratio_text,
        ),
        Column(
            key="accuracy_minus_reference",
            head="accuracy - reference, points",
            help="Difference of the accuracies in percentage points; p is that of McNemar's exact "
            "test on the images that only one of the two classifies correctly.",
            value=lambda row: None if row.versus is None else row.versus.accuracy_difference,
            text=accuracy_text,
        ),
    ]


def _number(
    key: str,
    head: str,
    help_text: str,
    value: Callable[[Row], float | None],
    text: Callable[[float], str],
) -> Column:
    """A column of numbers; a missing one is an empty cell."""

    def text_of(row: Row) -> str:
        number = value(row)
        return "" if number is None else text(number)

    return Column(key=key, head=head, help=help_text, value=value, text=text_of)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _distance(ratio: float) -> str:
    return f"{ratio:#.4g}" if ratio >= 1e-3 or ratio == 0 else f"{ratio:.3e}"
