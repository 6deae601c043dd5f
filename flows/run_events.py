"""What a run tells the server beside its states: that its training was restarted, or stood still.

Events of Prefect, to be seen on the page of the run and to trigger automations, such as those of
`deployments.webhooks`. They are sent by a thread of Prefect's own, so that a training never waits
for a server; one that is away may not hear of them.
"""

from prefect.events import emit_event

from flows.tally import RESTARTS_LABEL
from trainjob.events import AttemptEnded
from trainjob.launch.failure import TrainingStalled
from trainjob.values import counted

RESTARTED_EVENT = "trainjob.run.restarted"
"""The training is started again; the payload says why, and how often it was by now."""

STALLED_EVENT = "trainjob.run.stalled"
"""The training was stopped by ``limits.stall``; the payload says what was seen last."""

_MAX_CHARS = 2000


def tell_attempt(run_id: str, ended: AttemptEnded, num_restarts: int) -> None:
    """Tell what is to be known of an attempt that has ended.

    Args:
        run_id: The run.
        ended: Its attempt.
        num_restarts: How often its training was started again, this time included if it is.
    """
    reason = str(ended.error or "").partition("\n")[0]
    if isinstance(ended.error, TrainingStalled):
        _tell(STALLED_EVENT, run_id, reason, num_restarts)
    if ended.will_restart:
        tell_restart(run_id, reason, num_restarts)


def tell_restart(run_id: str, reason: str, num_restarts: int) -> None:
    """Tell that the training is started again, by this process or another one.

    Args:
        run_id: The run.
        reason: Why, in one line.
        num_restarts: How often it was, this time included; 0 if a person has it start again.
    """
    times = f"{counted(num_restarts, 'restart')} so far: " if num_restarts else ""
    _tell(RESTARTED_EVENT, run_id, f"{times}{reason}", num_restarts)


def _tell(event: str, run_id: str, message: str, num_restarts: int) -> None:
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"prefect.flow-run.{run_id}",
            RESTARTS_LABEL: str(num_restarts),  # so that each is known from the next
        },
        payload={"message": message[:_MAX_CHARS], "restarts": num_restarts},
    )
