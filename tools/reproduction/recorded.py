"""Runs in OUTPUT that a command did not plan, and that its report may show.

In: the runs of other methods, and distances by an attack of an earlier command. Out: the names of
those that have ended with this command's options, and a line for each net that has others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from launchers.submit import SUBMITTED
from pipeline.errors import UserError
from reproduction.experiments import DISTANCES, REFERENCE
from reproduction.plan import PlannedRun, Planner


@dataclass
class OtherRuns:
    """Runs that were not planned."""

    names: set[str] = field(default_factory=set)  # those with the same options
    left_out: dict[str, str] = field(default_factory=dict)  # the reason, by the net's folder


def find(planner: Planner, planned: Sequence[PlannedRun], seeds: Sequence[int]) -> OtherRuns:
    """The ended runs of the table that are not among the planned ones.

    Args:
        planner: has the options of the command.
        planned: its runs.
        seeds: its seeds.
    """
    others, names = OtherRuns(), {run.name for run in planned}
    methods = [REFERENCE, *(method.name for method in planner.experiment.methods)]
    for seed in seeds:
        for method in methods:
            net = f"seed{seed}/{method}"
            if not (planner.output / net).is_dir():
                continue
            try:
                possible = [*_runs_of_net(planner, seed, method)]
            except UserError as error:  # an option of the command that does not suit the method
                others.left_out[net] = str(error)
                continue
            for run in possible:
                if run.name in names or not (run.folder / run.result).exists():
                    continue
                reason = _difference(run)
                if reason:
                    others.left_out.setdefault(net, reason)
                else:
                    others.names.add(run.name)
    return others


def _runs_of_net(planner: Planner, seed: int, method: str) -> Iterator[PlannedRun]:
    """The runs of one net: its training and its evaluations."""
    net = f"seed{seed}/{method}"
    attack = planner.attack or _attack_of(planner.output / net / DISTANCES)
    alone = Planner(planner.experiment, planner.output, planner.options, planner.weights, attack)
    for run in alone.table([seed], [method]):
        if run.name == net or run.name.startswith(f"{net}/"):
            yield run


def _attack_of(folder: Path) -> str | None:
    """The attack of distances that an earlier command measured."""
    try:
        options = yaml.safe_load((folder / SUBMITTED).read_text())
        return str(options["evaluation"]["attack"]["method"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _difference(run: PlannedRun) -> str:
    """Why a run, or one that it needed, was not made with these options; empty if it was."""
    for needed in run.needs:
        reason = _difference(needed)
        if reason:
            return reason
    try:
        return "" if run.done() else f"{run.folder} has not ended"
    except UserError as error:
        return str(error)
