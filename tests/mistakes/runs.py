"""Mistakes: runs: their folders, their ends, what they leave behind."""

from tests.mistakes.case import Case

CASES: list[Case] = []
