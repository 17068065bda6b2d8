"""An optimiser step of one rank, on a CPU and without a process group."""

import weakref
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipeline.data.index import Index
from pipeline.training.objective import Losses
from pipeline.training.step_runner import StepRunner
from tests.helpers.pretended_cases import StepCase
from tests.helpers.pretended_rehearsals import WithoutDdp, make_batch, make_runner

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_passes", [1, 2])
def test_losses_are_freed_after_their_backward_pass(photos: Index, num_passes: int) -> None:
    """They refer to perturbations, which would take memory in the next pass."""
    with mock.patch("pipeline.training.step_runner.data_parallel", WithoutDdp):
        options = {"train.gradient_accumulation_steps": num_passes}
        runner = make_runner(StepCase(options), photos, CPU)
    losses: list[weakref.ref[Tensor]] = []
    forward, step = StepRunner._forward, runner.optimizer.step

    def recorded_forward(*arguments: object) -> tuple[Tensor, Losses]:
        assert all(loss() is None for loss in losses)
        loss, without_graph = forward(*arguments)  # pyright: ignore[reportArgumentType]
        losses.append(weakref.ref(loss))
        return loss, without_graph

    def checked_step() -> None:
        assert [loss() for loss in losses] == [None] * num_passes
        step()

    with (
        mock.patch.object(StepRunner, "_forward", recorded_forward),
        mock.patch.object(runner.optimizer, "step", checked_step),
    ):
        runner.run(0, iter([make_batch(runner, CPU)] * num_passes), None)
    assert len(losses) == num_passes
