"""Mistakes: damaged input files, and outputs that cannot be written."""

from tests.integration.mistakes import (
    damaged_data,
    damaged_inputs,
    damaged_results,
    damaged_runs,
    outputs,
)
from tests.integration.mistakes.case import Case

CASES: list[Case] = [
    *damaged_data.CASES,
    *damaged_inputs.CASES,
    *damaged_runs.CASES,
    *damaged_results.CASES,
    *outputs.CASES,
]
