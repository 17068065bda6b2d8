"""Seeds of random draws, computed from their position in a run."""

import numpy as np


def derive_seed(*position: int) -> int:
    """A seed of 63 bits, computed from the run's seed, the step, and so on."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
