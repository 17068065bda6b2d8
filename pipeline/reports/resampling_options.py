"""The options of bootstrap intervals on a command line."""

import argparse

from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.reports.paired_statistics import Resampling


def add_resampling(parser: arguments.Parser) -> None:
    """Add --level, --resamples and --seed."""
    default = Resampling()
    parser.add_argument(
        "--level",
        type=arguments.Number(float, Range(above=0, below=1)),
        default=default.level,
        help="confidence level of the intervals (%(default)s)",
    )
    parser.add_argument(
        "--resamples",
        type=arguments.POSITIVE,
        default=default.num_resamples,
        help="resamples of the bootstrap (%(default)s)",
    )
    parser.add_argument("--seed", type=arguments.SEED, default=default.seed, help="(%(default)s)")


def resampling_of(options: argparse.Namespace) -> Resampling:
    """The values of these options."""
    return Resampling(level=options.level, num_resamples=options.resamples, seed=options.seed)
