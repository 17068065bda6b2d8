"""Seeds of random draws, as functions of where in a run they are drawn."""

import numpy as np


def derive_seed(*place: int) -> int:
    """A seed (63 bits) that is a function of where in a run it is drawn for: the run's seed, the
    step, ..."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
