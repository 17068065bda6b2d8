"""Messages about ranks that do not answer or are behind, and about the likely cause.

In: what the ranks have reported. Out: clauses to append to a message, each with "; " before it.
"""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.errors import first_few

_MAX_NAMES = 4  # ranks or hosts in a message


class RankReport(NamedTuple):
    """What a rank reports every second.

    Attributes:
        host: name of the rank's host.
        sent: seconds from the start of the ranks until this report.
        order: of the rank's position, as in `pipeline.runtime.progress.Position`.
        text: the rank's position.
        seconds: since the rank came to this position.
        has_answered: whether a collective has failed on this rank, too.
        num_oom_kills: processes on the host that the kernel has killed, as in
            `pipeline.runtime.oom_kills`.
        pid: number of the rank's process.
        scope: where this number is valid, as in `pipeline.runtime.process_scope`.
    """

    host: str
    sent: float
    order: list[int]
    text: str
    seconds: float
    has_answered: bool
    num_oom_kills: int
    pid: int
    scope: str


def describe_silent(silent: list[int], reports: Mapping[int, RankReport], now: float) -> str:
    """Name the ranks that do not answer, with what they have reported last.

    Args:
        silent: these ranks, neither none nor all; those without a report ended at the start.
        reports: the last report of each rank, by rank.
        now: seconds from the start of the ranks until now.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank in sorted(reports):
        ranks_of.setdefault(reports[rank].host, []).append(rank)
    # With one rank on a host, nothing tells a lost node from a lost rank.
    lost_hosts = [
        host for host, ranks in ranks_of.items() if len(ranks) > 1 and set(ranks) <= set(silent)
    ]
    names = [f"rank {rank}" for rank in silent if rank not in reports]
    for host, ranks in ranks_of.items():
        groups = [ranks] if host in lost_hosts else [[rank] for rank in ranks if rank in silent]
        names += [_name(group, reports, now) for group in groups]
    others = [report for rank, report in reports.items() if rank not in silent]
    clauses = f"; no answer from {first_few(names, _MAX_NAMES)}{_others(others)}"
    if lost_hosts:
        clauses += f"; {first_few(lost_hosts, _MAX_NAMES)} or the network may be down"
    return clauses + _oom_clause(silent, reports) + slurm_clause()


def describe_positions(reports: Mapping[int, RankReport]) -> str:
    """Name the ranks that are behind, where all ranks report.

    Args:
        reports: the report of each rank, by rank.
    """
    orders = [report.order for report in reports.values()]
    if min(orders) == max(orders):
        return f"; all ranks report, at the same point ({reports[0].text})"
    names = [
        f"rank {rank} on {report.host} (last progress {report.seconds:.0f} s ago: {report.text})"
        for rank, report in sorted(reports.items())
        if report.order == min(orders)
    ]
    behind = first_few(names, _MAX_NAMES)
    return f"; all ranks report; behind: {behind}{_others(reports.values())}"


def slurm_clause() -> str:
    """The command that shows how the tasks of this job ended; empty outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return ""
    return f"; `sacct -j {job} --format=JobID,State,ExitCode,MaxRSS` shows how the tasks ended"


def _name(ranks: list[int], reports: Mapping[int, RankReport], now: float) -> str:
    """One rank, or all ranks of a host."""
    report = max((reports[rank] for rank in ranks), key=lambda report: report.sent)
    name = f"rank {ranks[0]}" if len(ranks) == 1 else f"all {len(ranks)} ranks"
    age = max(now - report.sent, 0)
    return f"{name} on {report.host} (last report {age:.0f} s ago: {report.text})"


def _others(reports: Iterable[RankReport]) -> str:
    """The position of those that are not behind."""
    return f"; others: {max(reports, key=lambda report: report.order).text}"


def _oom_clause(silent: Iterable[int], reports: Mapping[int, RankReport]) -> str:
    """The hosts of these ranks on which the kernel has killed a process, as other ranks report."""
    hosts = {reports[rank].host for rank in silent if rank in reports}
    killed = {
        report.host for report in reports.values() if report.num_oom_kills and report.host in hosts
    }
    if not killed:
        return ""
    names = first_few(sorted(killed), _MAX_NAMES)
    return f"; the kernel has killed a process on {names} because memory ran out"
