"""What a run really took, said at its end."""

from typing import Any

import pytest

from tests.clock import Clock
from tests.waiting import wait_until
from trainjob.errors import TrainingFailed
from trainjob.events import AttemptEnded, AttemptStarted, StageFailed
from trainjob.job import TrainingJob
from trainjob.report import StageReport, report_markdown
from trainjob.run_record import RunRecord
from trainjob.spent import Spent, spent_by

STAGES = {"stage_inputs": 36.0, "train": 360.0}


def job(**flavor: Any) -> TrainingJob:
    sized = {"cores": 8, "memory_gib": 40, **flavor}
    return TrainingJob.parse(
        {
            "name": "x",
            "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"},
            "resources": {"flavor": sized},
        }
    )


def test_every_stage_costs_its_time_and_every_card_its_own() -> None:
    spent = spent_by(job(card="V100", cards=2, price_per_hour=100), STAGES, [324.0])

    assert spent == Spent("cuda", 2, 648.0, 0, 10.0, {"stage_inputs": 1.0, "train": 9.0})
    assert str(spent) == "10.00 for 648.0 device-seconds of training, on 2 cards of cuda"


@pytest.mark.parametrize("attempts", [[], [0.0]])
def test_to_wait_for_cards_costs_nothing(attempts: list[float]) -> None:
    spent = spent_by(job(card="V100", cards=1, price_per_hour=100), STAGES, attempts)

    assert spent.by_stage == {"stage_inputs": 1.0, "train": 0.0}
    assert spent.cost == 1.0


def test_where_a_time_is_not_known_the_stage_says_what_it_was_at_least() -> None:
    spent = spent_by(job(price_per_hour=100), STAGES, [None, 100.0])

    assert spent.by_stage["train"] == 10.0


def test_attempts_of_a_killed_process_are_paid_for_too() -> None:
    spent = spent_by(job(price_per_hour=100), STAGES, [360.0, None, 350.0])

    assert spent.by_stage["train"] == pytest.approx(710 / 36)
    assert str(spent) == (
        "20.72 for 710.0 device-seconds of training, on 1 machine, without 1 attempt whose time is "
        "not known"
    )


def test_without_a_price_there_is_time_and_no_cost() -> None:
    spent = spent_by(job(), STAGES, [350.0])

    assert spent == Spent("cpu", 1, 350.0)
    assert str(spent) == "350.0 device-seconds of training, on 1 machine"


def test_the_report_has_the_cost_of_each_stage_also_when_the_training_failed() -> None:
    record = RunRecord("r1", "x", job(price_per_hour=100))
    error = TrainingFailed("rank 1 was killed")
    record.stages.append(StageReport("stage_inputs", 36.0, "nothing to stage"))
    record.note(AttemptStarted(0, None))
    record.note(AttemptEnded(0, 350.0, None, error, False, "/l"))
    record.stages.append(StageReport("train", 360.0, "failed"))

    page = report_markdown(record.report("Failed", error), record.job)

    assert "| took | 10.72 for 350.0 device-seconds of training, on 1 machine |" in page
    assert "| stage | time | cost | what it did |" in page
    assert "| train | 360.0 s | 9.72 | failed |" in page
    assert "| together | 396.0 s | 10.72 |" in page


def test_failed_tries_of_a_stage_and_the_pauses_after_them_are_paid_for_too() -> None:
    clock = Clock(100.0)
    record = RunRecord("r1", "x", job(price_per_hour=3600), clock=clock)
    clock.now += 30.0
    record.note(StageFailed("stage_inputs", 30.0, ValueError(), will_retry=True))
    clock.now += 2.0 + 20.0
    record.note(StageFailed("stage_inputs", 20.0, ValueError(), will_retry=True))
    clock.now += 4.0 + 5.0
    record.add_stage(StageReport("stage_inputs", 5.0, "all is there"))
    clock.now += 8.0
    record.note(StageFailed("fetch_code", 8.0, ValueError(), will_retry=True))
    clock.now += 2.0 + 1.0
    record.note(StageFailed("fetch_code", 1.0, ValueError(), will_retry=False))

    spent = record.report("Failed", "no").spent

    assert spent is not None
    assert spent.by_stage == pytest.approx({"stage_inputs": 61.0, "fetch_code": 11.0})
    assert [stage.seconds for stage in record.stages] == [61.0, 11.0]


def test_the_report_of_a_job_without_a_price_has_no_column_of_costs() -> None:
    record = RunRecord("r1", "x", job())
    record.stages.append(StageReport("stage_inputs", 36.0, "nothing to stage"))

    page = report_markdown(record.report("Failed", "no"), record.job)

    assert "| stage | time | what it did |" in page


def test_a_run_of_which_no_stage_began_took_nothing() -> None:
    assert RunRecord("r1", "x", job()).report("Failed", "no").spent is None


def test_an_attempt_that_is_being_stopped_counts_up_to_now() -> None:
    record = RunRecord("r1", "x", job(price_per_hour=3600))
    record.stages.append(StageReport("stage_inputs", 1.0, "nothing to stage"))
    record.note(AttemptStarted(0, None))

    first = record.report("Cancelled", None).spent
    wait_until(lambda: record.report("Cancelled", None).spent != first)

    assert first is not None
    assert first.num_unknown == 0
    assert set(first.by_stage) == {"stage_inputs", "train"}
