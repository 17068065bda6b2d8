"""The cells of the tables in reports."""

import statistics
from collections.abc import Sequence


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
