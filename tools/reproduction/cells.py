"""The cells of the tables in reports."""

import statistics
from collections.abc import Mapping, Sequence


def with_seeds(
    head: Sequence[str], lines: Sequence[Sequence[str]], by_seed: Sequence[Mapping[int, object]]
) -> tuple[list[str], list[list[str]]]:
    """The head and lines of a table, with the number of seeds if lines have different ones.

    Args:
        head: of the table.
        lines: of the table.
        by_seed: for each line what it is the mean of.
    """
    if len({len(values) for values in by_seed}) <= 1:
        return [*head], [[*line] for line in lines]
    counted = [[*line, str(len(values))] for line, values in zip(lines, by_seed, strict=True)]
    return [*head, "seeds"], counted


def mean_and_spread(values: Sequence[float], form: str, form_of_spread: str) -> str:
    """The mean ± the standard deviation, which a single value does not have; empty without values.

    Args:
        values: a number for each seed.
        form: format of the mean, such as {:.2f}.
        form_of_spread: format of the standard deviation.
    """
    text = form.format(statistics.mean(values)) if values else ""
    if len(values) > 1:
        text += f" ± {form_of_spread.format(statistics.stdev(values))}"
    return text
