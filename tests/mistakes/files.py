"""Mistakes: damaged input files, and outputs that cannot be written."""

from tests.mistakes.case import Case

CASES: list[Case] = []
