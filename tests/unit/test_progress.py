"""What a rank does, in an order that ranks can compare."""

from pipeline.runtime.progress import Progress


def test_positions_of_a_run() -> None:
    progress, texts, orders = Progress(), [], []

    def record() -> None:
        texts.append(progress.position.text)
        orders.append(progress.position.order)

    record()
    for step in (1, 2):
        for stage in ("loading images", "forward pass", "loading images", "forward pass"):
            progress.enter_step(step, stage)
            record()
    for number in (0, 20, 40):
        progress.count_images(number)
        record()
    progress.end_evaluation()
    record()
    progress.enter_step(2, "writing a checkpoint")
    record()
    assert orders == sorted(set(orders)), "a later position is never behind an earlier one"
    assert texts[0] == "start of the run"
    assert texts[4:6] == ["step 1, forward pass", "step 2, loading images"]
    assert texts[-3:] == [
        "40 images evaluated",
        "all its images evaluated",
        "step 2, writing a checkpoint",
    ]


def test_ranks_with_shares_of_different_sizes_are_at_the_same_point() -> None:
    orders = []
    for share in ([10, 20], [10, 20, 21]):
        progress = Progress()
        for number in (0, *share):
            progress.count_images(number)
        progress.end_evaluation()
        orders.append(progress.position.order)
    assert orders[0] == orders[1]
