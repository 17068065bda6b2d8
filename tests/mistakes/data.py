"""Mistakes: indices and their classes."""

from tests.mistakes.case import Case

CASES: list[Case] = []
