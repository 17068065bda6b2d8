"""Mistakes: options that are refused, and options without effect."""

from tests.mistakes.case import FINETUNE, Case

CASES: list[Case] = [
    Case(
        "no such option value", lambda _: (FINETUNE, "--train.batch_size", 0), "batch_size must be"
    ),
    Case(
        "no such index",
        lambda folder: (FINETUNE, "--data.train", folder / "no.parquet", "--dry_run", "true"),
        r"data\.train: no file .*no\.parquet",
    ),
]
