"""Which fault comes when: a function of the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fault_campaign.kinds import Kind


@dataclass(frozen=True)
class Fault:
    """A planned fault.

    Attributes:
        number: from 1.
        kind: name of its kind.
        phase: start-up: before the first row of results; work: after it; writing: while a
            checkpoint or another file of the run is written.
        fraction: when in the phase, in [0, 1): of the time until the first row, or of all rows.
        rank_fraction: which rank, in [0, 1).
        draw: another random number in [0, 1), for the kind: a size, a position, a time.
    """

    number: int
    kind: str
    phase: str
    fraction: float
    rank_fraction: float
    draw: float

    def rank_of(self, num_ranks: int) -> int:
        """The rank that the fault is for."""
        return min(int(self.rank_fraction * num_ranks), num_ranks - 1)


def plan(num_faults: int, seed: int, kinds: Sequence[Kind]) -> list[Fault]:
    """Draw the faults: all kinds equally often, and all phases of a kind equally often.

    Args:
        num_faults: how many. A shorter plan of the same seed and kinds is the beginning of a
            longer one.
        seed: the same seed gives the same plan.
        kinds: from which kinds; must not be empty.
    """
    generator = random.Random(seed)
    phases: dict[str, list[str]] = {}
    faults: list[Fault] = []
    while len(faults) < num_faults:
        order = list(kinds)
        generator.shuffle(order)
        for kind in order:
            if not phases.get(kind.name):
                phases[kind.name] = generator.sample(kind.phases, len(kind.phases))
            draws = [generator.random() for _ in range(3)]
            phase = phases[kind.name].pop()
            faults.append(Fault(len(faults) + 1, kind.name, phase, *draws))
    return faults[:num_faults]
