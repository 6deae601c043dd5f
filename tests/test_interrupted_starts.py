"""No thread goes on of whose start the caller was interrupted, and no other error takes its place.

Card usage and artifacts have such a test beside their others.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.delivery import Delivery, holding
from flows.tally import Tally
from tasks.train import _output_in_log
from tests.interruptions import Stop, runs, stop_start_of_thread
from tests.waiting import wait_until
from trainjob.attempts import Earlier
from trainjob.launch.launch import Launch
from trainjob.launch.output import following_output
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.storage.sync_thread import syncing


def recording(folder: Path) -> AbstractContextManager[None]:
    return MetricsRecorder(MetricPatterns(())).recording(0, None, [folder], folder / "metrics")


def following(folder: Path) -> AbstractContextManager[None]:
    launch = Launch(
        run_id="interrupted-start",
        launcher="single",
        world_size=1,
        program=("train.py",),
        is_script=True,
        code_dir=folder,
        log_dir=folder / "logs",
        env={},
        device="cpu",
        cores=None,
        auto_stop_s=None,
        grace_s=5.0,
    )
    return following_output(launch)


@contextmanager
def holding_a_run(_: Path) -> Iterator[None]:
    """Hold a run of a server that does not answer."""
    delivery = Delivery(
        run_id=UUID(int=1),
        number=1,
        is_redelivered=False,
        was_cancelled=False,
        earlier=Earlier(),
        deployment_id=None,
    )
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        holding(delivery, Tally(Earlier()), is_restartable=False),
    ):
        yield


@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("sync", lambda _: syncing([])),
        ("read-metrics", recording),
        ("follow-ranks", following),
        ("rank-output-to-log", lambda _: _output_in_log(logging.getLogger("tests"), None)),
        ("trainjob-holder", holding_a_run),
    ],
)
def test_a_thread_whose_start_was_interrupted_is_gone(
    name: str,
    begin: Callable[[Path], AbstractContextManager[object]],
    is_late: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    stop_start_of_thread(monkeypatch, name, is_late=is_late)

    with pytest.raises(Stop), begin(tmp_path):
        pytest.fail("the block was entered")

    wait_until(lambda: not runs(name), timeout_s=20)
