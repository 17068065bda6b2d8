"""The plan is a pure function, the same for any ranks, with torchvision's distribution of crops."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipeline.config import DataConfig, TrainConfig
from pipeline.data.batches import TrainingPlan, evaluation_specs
from pipeline.data.index import Index
from pipeline.data.plan import Windows, evaluation_windows, order, training_windows
from pipeline.errors import UserError


def sizes(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).integers(30, 700, (2, num)))


def equal(a: Windows, b: Windows) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Windows)
    )


def test_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    first = order(1000, seed=1, epoch=0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, order(1000, seed=1, epoch=0))
    assert not np.array_equal(first, order(1000, seed=1, epoch=1))
    assert not np.array_equal(first, order(1000, seed=2, epoch=0))


def test_order_is_pinned_for_ever() -> None:
    # A changed order would silently break resuming runs of earlier versions.
    assert order(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


@pytest.mark.parametrize("start", [0, 1, 37, 99])
def test_windows_depend_on_the_position_alone(start: int) -> None:
    width, height = sizes(100)
    config = DataConfig()
    whole = training_windows(width, height, 5, 3, 0, config)
    part = training_windows(width[start:], height[start:], 5, 3, start, config)
    cut = {f.name: getattr(whole, f.name)[start:] for f in dataclasses.fields(Windows)}
    assert equal(part, Windows(**cut))


def test_windows_lie_inside_the_image() -> None:
    width, height = sizes(5000)
    size = np.stack([height, width], axis=1)
    for windows in (
        training_windows(width, height, 0, 0, 0, DataConfig()),
        evaluation_windows(width, height, DataConfig()),
    ):
        assert (windows.anchor >= 0).all()
        assert (windows.shape >= 1).all()
        assert (windows.anchor + windows.shape <= size).all()
        assert (windows.roi_start >= 0).all()
        assert (windows.roi_end <= windows.shape + 1e-3).all()


def test_random_crops_are_distributed_as_torchvisions() -> None:
    num, width, height = 20_000, 400, 300
    ours = training_windows(np.full(num, width), np.full(num, height), 0, 0, 0, DataConfig())
    torch.manual_seed(0)
    picture = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(num)]
    )
    quantiles = np.linspace(0.05, 0.95, 19)
    for column, values in enumerate(
        (ours.anchor[:, 0], ours.anchor[:, 1], ours.shape[:, 0], ours.shape[:, 1])
    ):
        gap = np.quantile(values, quantiles) - np.quantile(theirs[:, column], quantiles)
        assert np.abs(gap).max() < 7, f"column {column}"  # pixels; the noise of 20,000 draws
    area = np.prod(ours.shape, axis=1) / (width * height)
    their_area = theirs[:, 2] * theirs[:, 3] / (width * height)
    assert abs(area.mean() - their_area.mean()) < 0.01
    assert abs(ours.mirror.mean() - 0.5) < 0.02


def test_images_too_narrow_for_any_crop_get_torchvisions_central_one() -> None:
    width, height = np.array([1000, 10]), np.array([10, 1000])
    windows = training_windows(width, height, 0, 0, 0, DataConfig(crop_scale=[0.9, 1.0]))
    assert windows.shape.tolist() == [[10, 13], [13, 10]]
    assert windows.anchor.tolist() == [[0, 493], [493, 0]]


def test_options_turn_crops_and_flips_off() -> None:
    width, height = sizes(200)
    config = DataConfig(random_crop=False, hflip=False)
    windows = training_windows(width, height, 0, 0, 0, config)
    assert equal(windows, evaluation_windows(width, height, config))
    assert not windows.mirror.any()


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_a_step_takes_the_same_images_and_windows_on_any_ranks(
    photos: Index, ranks: int, accumulation: int
) -> None:
    def taken(ranks: int, accumulation: int) -> dict[int, dict[int, bytes]]:
        train = TrainConfig(batch_size=8, gradient_accumulation_steps=accumulation)
        steps: dict[int, dict[int, bytes]] = {step: {} for step in range(3, 12)}
        for rank in range(ranks):
            plan = TrainingPlan(photos, DataConfig(), train, rank, ranks)
            for number, spec in enumerate(plan.specs(3, 12)):
                for k, row in enumerate(spec.rows):
                    window = b"".join(
                        getattr(spec.windows, f.name)[k].tobytes()
                        for f in dataclasses.fields(Windows)
                    )
                    steps[3 + number // accumulation][int(row)] = window
        return steps

    assert taken(ranks, accumulation) == taken(1, 1)
    assert all(len(step) == 8 for step in taken(ranks, accumulation).values())


def test_a_batch_that_does_not_divide_is_refused(photos: Index) -> None:
    with pytest.raises(UserError, match=r"batch_size 10 is not divisible by 2 ranks .* 2 = 4"):
        TrainingPlan(
            photos, DataConfig(), TrainConfig(batch_size=10, gradient_accumulation_steps=2), 0, 2
        )
    with pytest.raises(UserError, match="larger than the 40 images"):
        TrainingPlan(photos, DataConfig(), TrainConfig(batch_size=64), 0, 1)


def test_evaluation_takes_each_row_once(photos: Index) -> None:
    rows = np.arange(5, 30)
    specs = list(evaluation_specs(photos, rows, DataConfig(), 8))
    assert [len(spec.rows) for spec in specs] == [8, 8, 8, 1]
    assert np.concatenate([spec.rows for spec in specs]).tolist() == rows.tolist()
