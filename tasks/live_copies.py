"""Show how far the copies of a stage are in Prefect's UI, if they take more than some seconds.

Used by the stages that stage inputs and upload outputs. Whatever happens to the server, the copies
go on as if nothing of this were here.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import task_run

from tasks.artifacts import RunArtifacts, brief_client
from trainjob.background import growing_pause_s, in_background
from trainjob.copy_status import CopyStatus
from trainjob.events import Event, Transferred, listening

UPDATE_S = 5.0
MAX_UPDATE_S = 75.0
_REQUEST_S = 5.0
_PATIENCE_S = 3.0  # Prefect kills a cancelled run after 30 s; uploads need them more
_MAX_COPIES = 20


@contextmanager
def live_copies(
    job_name: str,
    run_id: str,
    kind: Literal["staging", "uploading"],
    *,
    update_s: float = UPDATE_S,
) -> Iterator[None]:
    """Show what the copies in this block say of themselves as an artifact of this task run.

    It is ``KIND-JOB``: files, bytes, speed and the time that is left of every copy. It is there
    once the block has taken `update_s`, and is updated in place from then on.

    Args:
        job_name: Name of the job.
        run_id: Id of the flow run.
        kind: What the copies are for.
        update_s: Seconds from one update to the next at the beginning. They grow with the age of
            the block, to 75 s, so that a long copy costs the server little.
    """
    artifacts = RunArtifacts(job_name, UUID(run_id), UUID(str(task_run.id)))
    show, ended = _Show(kind, artifacts), threading.Event()
    work = partial(show.run, ended, update_s)
    with in_background(work, "live-copies", ended, _PATIENCE_S), listening(show.note):
        yield


class _Show:
    """Gathers what is said of copies, and shows it on a thread of its own."""

    def __init__(self, kind: str, artifacts: RunArtifacts) -> None:
        self._kind = kind
        self._artifacts = artifacts
        self._logger = get_run_logger()
        self._lock = threading.Lock()
        self._copies = CopyStatus()
        self._was_warned = False

    def note(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Transferred):
            with self._lock:
                self._copies.note(event)

    def run(self, ended: threading.Event, update_s: float) -> None:
        """Update the artifact every so often until the end, and then once more."""
        begun = time.monotonic()
        if ended.wait(update_s):
            return
        with brief_client(_REQUEST_S) as client:
            pause_s = 0.0
            while not ended.wait(pause_s):
                self._update(client)
                pause_s = growing_pause_s(time.monotonic() - begun, update_s, MAX_UPDATE_S)
            self._update(client)

    def _update(self, client: SyncPrefectClient) -> None:
        with self._lock:
            # The one that is under way first, since lists cut the rest off.
            events = list(reversed(self._copies.latest.values()))[:_MAX_COPIES]
            lines = [f"**{event.label}** {self._copies.text(event)}" for event in events]
        if not events:
            return
        try:
            percent = _percent(events[0])
            self._artifacts.write(client, self._kind, "progress", percent, "\n\n".join(lines))
        except Exception as error:  # noqa: BLE001 - nothing here may end a copy
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Log why the artifact is not up to date, the first time."""
        if not self._was_warned:
            self._was_warned = True
            self._logger.warning("the copy goes on, but its artifact is not up to date: %s", error)


def _percent(event: Transferred) -> float:
    """Return how much of a copy is done; nothing while its size is not known."""
    if event.total_bytes:
        return min(100 * event.size_bytes / event.total_bytes, 100.0)
    return 100.0 if event.total_files == event.num_files else 0.0
