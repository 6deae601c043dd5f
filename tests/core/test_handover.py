"""Handing the last work to another process."""

from trainjob.handover import hand_over, handing_over_to


def test_without_anybody_named_the_work_stays() -> None:
    assert not hand_over()


def test_who_is_named_decides() -> None:
    answers = iter([False, True])

    with handing_over_to(lambda: next(answers)):
        assert [hand_over(), hand_over()] == [False, True]
    assert not hand_over()
