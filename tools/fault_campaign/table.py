"""The table of a campaign: Markdown, CSV and JSON."""

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fault_campaign.kinds import KINDS
from fault_campaign.outcome import Outcome
from fault_campaign.pace import Pace
from pipeline.errors import UserError
from pipeline.runtime.files import atomic_write, write_json
from pipeline.runtime.machine import cpu_name
from pipeline.runtime.text_tables import markdown_table, write_csv

PAGE, DATA, FAULTS = "faults.md", "faults.json", "faults.csv"
_SUMMARIES = (
    ("undisturbed run, s", "undisturbed_seconds", 1),
    ("of these until the first row of results, s", "start_seconds", 1),
    ("seconds lost in a fault, 95 % quantile", "seconds_lost_95", 1),
    ("seconds lost, median, in start-ups of the same run", "median_in_starts", 2),
    ("steps or images repeated, in all", "repeated", 0),
)
_HEAD = (
    "kind", "faults", "results lost", "bits equal", "seconds lost, median", "largest", "repeated"
)  # fmt: skip


def join(folders: Sequence[Path]) -> str:
    """One table in Markdown of several campaigns: a line for each kind, a column for each campaign.

    A cell has the number of faults, how many lost results or left something over, and the median of
    the seconds lost.

    Raises:
        UserError: a folder has no finished campaign.
    """
    campaigns = [_read(folder) for folder in folders]
    outcomes = [_outcomes(campaign) for campaign in campaigns]
    everywhere = [outcome for part in outcomes for outcome in part]
    drawn = {outcome.fault.kind for outcome in everywhere}
    kinds = [name for name in KINDS if name in drawn] + sorted(drawn - KINDS.keys())
    texts = {name: kind.text for name, kind in KINDS.items()}
    lines = [[texts.get(k, k), *(_cell(part, k) for part in outcomes)] for k in kinds]
    lines.append(["all", *(_cell(part) for part in outcomes)])
    for text, name, digits in _SUMMARIES:
        lines.append([text, *(f"{campaign[name]:.{digits}f}" for campaign in campaigns)])
    return markdown_table(("kind", *map(str, folders)), lines)


def _read(folder: Path) -> dict[str, Any]:
    names = ("outcomes", *(name for _, name, _ in _SUMMARIES))
    try:
        values: dict[str, Any] = json.loads((folder / DATA).read_text())
        return {name: values[name] for name in names}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{folder} has no {DATA} of a campaign that is done") from None


def _outcomes(campaign: dict[str, Any]) -> list[Outcome]:
    names = {field.name for field in fields(Outcome)}
    stored = [
        {name: v for name, v in values.items() if name in names} for values in campaign["outcomes"]
    ]
    return [Outcome.from_dict(values) for values in stored]


def _cell(outcomes: Sequence[Outcome], kind: str = "") -> str:
    group = [outcome for outcome in outcomes if kind in ("", outcome.fault.kind)]
    if not group:
        return ""
    seconds = statistics.median(outcome.seconds_lost for outcome in group)
    return f"{len(group)}, {sum(outcome.lost for outcome in group)} lost, {seconds:.1f} s"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-share * len(ordered) // 1) - 1, 0)]


def by_kind(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A line for each kind in the order of `KINDS`, and one for all faults."""
    kinds = [name for name in KINDS if any(o.fault.kind == name for o in outcomes)]
    groups = [(KINDS[k].text, [o for o in outcomes if o.fault.kind == k]) for k in kinds]
    return [_line(text, group) for text, group in [*groups, ("all", outcomes)]]


def _line(text: str, outcomes: Sequence[Outcome]) -> list[str]:
    seconds = [outcome.seconds_lost for outcome in outcomes]
    return [
        text,
        str(len(outcomes)),
        str(sum(outcome.lost for outcome in outcomes)),
        str(sum(not outcome.differences for outcome in outcomes)),
        f"{statistics.median(seconds):.1f}",
        f"{max(seconds):.1f}",
        str(sum(outcome.repeated for outcome in outcomes)),
    ]


def summary(outcomes: Sequence[Outcome], pace: Pace) -> dict[str, Any]:
    """The numbers of all faults."""
    seconds = [outcome.seconds_lost for outcome in outcomes]
    median = statistics.median(seconds)
    return {
        "faults": len(outcomes),
        "kinds": len({outcome.fault.kind for outcome in outcomes}),
        "results_lost": sum(outcome.lost for outcome in outcomes),
        "bits_equal": sum(not outcome.differences for outcome in outcomes),
        "seconds_lost_median": median,
        "seconds_lost_95": quantile(seconds, 0.95),
        "start_seconds": pace.start_seconds,
        "median_in_starts": statistics.median(
            outcome.seconds_lost / (outcome.start_seconds or pace.start_seconds)
            for outcome in outcomes
        ),
        "repeated": sum(outcome.repeated for outcome in outcomes),
        "undisturbed_seconds": pace.seconds,
        "cpu": cpu_name(),
        "python": platform.python_version(),
    }


def page(outcomes: Sequence[Outcome], pace: Pace, command: str, skipped: dict[str, str]) -> str:
    """The table in Markdown, with the command that makes it and the faults that lost something."""
    numbers = summary(outcomes, pace)
    lines = [
        "# Faults",
        "",
        f"    {command}",
        "",
        f"{numbers['faults']} faults of {numbers['kinds']} kinds, {numbers['results_lost']} with "
        f"results lost, {numbers['bits_equal']} with equal bits. Seconds lost in a fault: median "
        f"{numbers['seconds_lost_median']:.1f}, 95 % quantile {numbers['seconds_lost_95']:.1f}. "
        f"The undisturbed run took {pace.seconds:.1f} s, {pace.start_seconds:.1f} s of them until "
        f"its first results. In start-ups of the same run, the median is "
        f"{numbers['median_in_starts']:.2f}. "
        f"CPU: {numbers['cpu']}.",
        "",
        markdown_table(_HEAD, by_kind(outcomes)),
    ]
    if skipped:
        lines += ["Skipped kinds:", ""]
        lines += [f"- {name}: {reason}" for name, reason in skipped.items()] + [""]
    lost = [outcome for outcome in outcomes if outcome.lost]
    if lost:
        lines += ["Lost or left over:", ""]
        lines += [f"- {describe(outcome)}" for outcome in lost] + [""]
    return "\n".join(lines)


def describe(outcome: Outcome) -> str:
    """One fault in one line."""
    fault = outcome.fault
    state = "; ".join([*outcome.problems, *outcome.differences]) or "nothing lost"
    during, done = outcome.during or fault.phase, outcome.done or "nothing"
    return (
        f"{fault.number} {fault.kind} ({during}): {done}; "
        f"{outcome.seconds_lost:.1f} s lost, {outcome.repeated} repeated; {state}"
    )


def write(
    folder: Path,
    outcomes: Sequence[Outcome],
    pace: Pace,
    command: str,
    skipped: dict[str, str],
) -> Path:
    """Write all files; returns the path of the page."""
    faults = [{**asdict(outcome), "lost": outcome.lost} for outcome in outcomes]
    values = {"command": command, **summary(outcomes, pace), "skipped": skipped}
    write_json(folder / DATA, values | {"outcomes": faults})
    head = ("number", "kind", "phase", "during", "done", "exit codes", "seconds lost", "repeated")
    lines = [
        (
            outcome.fault.number,
            outcome.fault.kind,
            outcome.fault.phase,
            outcome.during,
            outcome.done,
            " ".join(map(str, outcome.exit_codes)),
            f"{outcome.seconds_lost:.2f}",
            outcome.repeated,
            not outcome.differences,
            outcome.lost,
        )
        for outcome in outcomes
    ]
    write_csv(folder / FAULTS, (*head, "bits equal", "lost"), lines)
    with atomic_write(folder / PAGE) as partial:
        partial.write_text(page(outcomes, pace, command, skipped))
    return folder / PAGE
