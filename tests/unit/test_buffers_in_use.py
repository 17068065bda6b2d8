"""When DALI's buffers are released: the order of what is kept, recorded and waited for.

A real GPU is needed to see that nothing is overwritten.
"""

import gc
import weakref

import pytest
import torch

from pipeline.data.buffers_in_use import BuffersInUse


class Event:
    """An event that writes down what happens to it."""

    log: list[str] = []
    number = 0

    def __init__(self) -> None:
        Event.number += 1
        self.name = str(Event.number)

    def record(self, stream: object) -> None:
        self.log.append(f"record {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(Event, "log", [])
    monkeypatch.setattr(Event, "number", 0)
    return Event.log


def test_a_batch_is_kept_until_its_work_has_ended(log: list[str]) -> None:
    buffers = BuffersInUse(torch.device("cuda", 0))
    kept: list[weakref.ref] = []

    def num_kept() -> int:
        gc.collect()
        return sum(ref() is not None for ref in kept)

    for expected in (1, 2, 2, 2):
        buffers.release_read()
        images = torch.zeros(2)
        kept.append(weakref.ref(images))
        buffers.add(images)
        del images
        assert num_kept() == expected
    # The first batch's event is recorded when the second batch is requested.
    assert log == ["record 1", "record 2", "wait 1", "record 3", "wait 2"]
    buffers.release_all()
    assert log[5:] == ["record 4", "wait 3", "wait 4"]
    assert num_kept() == 0
    buffers.release_all()
    assert len(log) == 8


def test_nothing_is_kept_on_a_cpu() -> None:
    buffers = BuffersInUse(torch.device("cpu"))
    images = torch.zeros(2)
    kept = weakref.ref(images)
    buffers.add(images)
    del images
    buffers.release_read()
    gc.collect()
    assert kept() is None
