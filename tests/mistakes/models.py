"""Mistakes: nets and weights."""

from tests.mistakes.case import Case

CASES: list[Case] = []
