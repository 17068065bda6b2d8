"""The counts of ResNet-18's steps and evaluations as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from pipeline.runtime.text_tables import markdown_table

Outcome = Mapping[str, Any]
_PRECISIONS = ("fp32", "bf16")


def table(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Launches, waits and iterations of the attack; then the lines that wait, and how often.

    Args:
        outcomes: of the groups "counted steps" and "counted evaluations".
    """
    steps, evaluations = outcomes["counted steps"], outcomes["counted evaluations"]
    for outcome in (*steps.values(), *evaluations.values()):
        assert "error" not in outcome, outcome["error"]
    names = dict.fromkeys(name.partition(" ")[2] for name in steps)
    lines = [
        [f"step, {name}", *_cells([steps[f"{precision} {name}"] for precision in _PRECISIONS])]
        for name in names
    ]
    lines += [
        [f"evaluation, {name}, each batch", *_cells([outcome]), "", "", ""]
        for name, outcome in evaluations.items()
    ]
    names = ("launches", "waits", "iterations")
    head = ["", *(f"{name}, {precision}" for precision in _PRECISIONS for name in names)]
    return markdown_table(head, lines) + "\n" + _sites_table(steps, evaluations)


def _cells(outcomes: list[Outcome]) -> list[str]:
    cells = []
    for outcome in outcomes:
        num_parts = outcome.get("num_batches", 1)
        cells += [f"{outcome[name] / num_parts:,.0f}" for name in ("launches", "waits")]
        cells.append(f"{outcome['iterations']:.2f}" if outcome.get("iterations") else "")
    return cells


def _sites_table(steps: Mapping[str, Outcome], evaluations: Mapping[str, Outcome]) -> str:
    """The waits of each line; of evaluations those of all batches."""
    columns = {name: outcome for name, outcome in steps.items() if name.startswith("bf16")}
    columns |= {f"evaluation, {name}": outcome for name, outcome in evaluations.items()}
    sites = sorted({site for outcome in columns.values() for site in outcome["wait_sites"]})
    lines = [
        [site, *(str(outcome["wait_sites"].get(site, "")) for outcome in columns.values())]
        for site in sites
    ]
    return markdown_table(["waits (evaluations: of all batches)", *columns], lines)
