"""The position of this rank in a run, to be reported to the other ranks.

In: the stages of steps that this rank enters, and the images that it has evaluated. Out: a
position that can be compared with those of other ranks.
"""

import time
from typing import NamedTuple

_TEXTS = {
    "start": "start of the run",
    "step": "step {number}, {stage}",
    "images": "{number} images evaluated",
    "evaluated": "all its images evaluated",
}


class Position(NamedTuple):
    """What a rank does.

    Attributes:
        order: the rank with the smaller one is behind; equal for ranks at the same point.
        kind: a key of the texts: a step, an evaluation.
        number: of the step, from 1, or of images that this rank has evaluated.
        stage: of the step.
        begin: when this rank came to this position, `time.monotonic`, in seconds.
    """

    order: tuple[int, int, int]  # the part of the run, the number, the count of stages with it
    kind: str
    number: int
    stage: str
    begin: float

    @property
    def text(self) -> str:
        """The position, for messages."""
        return _TEXTS[self.kind].format(number=self.number, stage=self.stage)


class Progress:
    """Records what this rank does. To record a position takes about a microsecond.

    All ranks must come to the same kinds of positions, and stages of a step, in the same order.

    Attributes:
        position: the last position; another thread may read it.
    """

    def __init__(self) -> None:
        self.position = Position((0, 0, 0), "start", 0, "", time.monotonic())

    def enter_step(self, number: int, stage: str) -> None:
        """Enter a stage of a step, for example ``forward pass``.

        Args:
            number: of the step, from 1.
            stage: what is done, for messages. A stage may come several times in a step.
        """
        self._move("step", number, stage)

    def count_images(self, number: int) -> None:
        """Record the number of images that this rank has evaluated in the present evaluation."""
        self._move("images", number)

    def end_evaluation(self) -> None:
        """Record that this rank has evaluated its images. Some ranks have one more than others."""
        self._move("evaluated")

    def _move(self, kind: str, number: int = 0, stage: str = "") -> None:
        last = self.position
        part, _, count = last.order
        if kind != last.kind:
            part += 1
        count = count + 1 if (kind, number) == (last.kind, last.number) else 0
        self.position = Position((part, number, count), kind, number, stage, time.monotonic())
