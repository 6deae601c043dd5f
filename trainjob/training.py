"""Trains a job with everything around its attempts: the one call that the task `train` makes.

Checkpoints are brought back before, and kept in the store while the ranks run, like logs and
outputs; metrics are recorded; a target that is reached stops the training.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainjob.attempts import Attempts, Earlier, Trained, refuse_without_time
from trainjob.errors import CheckpointsOfAnother, StoreError, TrainjobError
from trainjob.events import MetricsSummarised, Noted, emit, listening
from trainjob.handover import hand_over
from trainjob.job import TrainingJob, url_of_run
from trainjob.launch.card_leases import leased_cards
from trainjob.launch.card_usage import noting_card_usage
from trainjob.launch.core_leases import leased_cores
from trainjob.launch.hidden import hiding
from trainjob.launch.launch import Lease
from trainjob.launch.training import Control
from trainjob.metrics.patterns import unfound
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.metrics.target import TargetWatch
from trainjob.mirrors import (
    FLUSH_S,
    checkpoint_journal,
    mirrors_of,
    output_journal,
    saved_of,
)
from trainjob.plan import Program
from trainjob.storage.checkpoint_restore import restore_checkpoints, went_on_elsewhere
from trainjob.storage.failures import local_failures
from trainjob.storage.log_mirror import num_logged_attempts
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.output_restore import restore_outputs
from trainjob.storage.script_access import access_environment, secrets_of
from trainjob.storage.settings import StoreSettings
from trainjob.storage.sync import Mirror
from trainjob.storage.sync_thread import Sync, syncing
from trainjob.workspace import Workspace

_logger = logging.getLogger(__name__)


def train_job(
    job: TrainingJob,
    program: Program,
    settings: StoreSettings,
    recorder: MetricsRecorder,
    *,
    run_id: str,
    earlier: Earlier,
    secrets: Mapping[str, str] | None = None,
) -> Trained:
    """Train until it ends well or cannot be helped.

    Args:
        job: What to train; its workspace holds code, inputs and parameters.
        program: What every rank executes.
        settings: How to reach the stores of the job.
        recorder: Records the metrics.
        run_id: The run.
        earlier: What earlier processes of the run did.
        secrets: Variables for the environment of the ranks whose values nobody may see.

    Raises:
        TrainingFailed: The last attempt failed.
        LaunchError: The ranks could not be started.
        RunLost: Its process was killed, and there is no time for another attempt.
        StoreError: The checkpoints to go on from cannot be had.
    """
    workspace = Workspace.of_run(run_id)
    if earlier.num_processes:
        earlier = _with_logged_attempts(job, settings, run_id, earlier)
    _bring_back(job, workspace, settings, run_id, earlier)
    secrets = secrets or {}
    mirrors = mirrors_of(job, workspace, settings, run_id, secrets.values())
    credentials, hidden = _known_to_ranks(job, settings, secrets)
    with ExitStack() as stack:
        stack.enter_context(hiding(hidden))
        sync = stack.enter_context(_saving(mirrors))
        refuse_without_time(job, workspace, earlier)  # before a wait for cards
        lease = stack.enter_context(_cards_of(job, run_id))
        flavor = job.resources.flavor
        cores = leased_cores(flavor.cores if flavor else None, run_id=run_id)
        control = Control(on_interrupt=partial(_leave_saving_to_another, sync))
        stack.enter_context(_stopping_at_target(job, control))
        stack.callback(lambda: emit(MetricsSummarised(recorder.summary())))
        attempts = Attempts(
            job,
            workspace,
            program,
            run_id=run_id,
            earlier=earlier,
            control=control,
            recorder=recorder,
            credentials=credentials,
            lease=lease,
            core_lease=stack.enter_context(cores),
        )
        try:
            trained = attempts.run()
        except TrainjobError:
            recorder.write_plot(job.name)
            raise
        recorder.write_plot(job.name)
        for problem in unfound(job.metrics, recorder.latest):
            emit(Noted(problem))
        return trained


def _known_to_ranks(
    job: TrainingJob, settings: StoreSettings, secrets: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the variables that only the ranks get, and what of them is hidden in what they say."""
    if not any(channel.needs_credentials for channel in job.inputs):
        return dict(secrets), secrets_of(StoreSettings(), secrets.values())
    return {**access_environment(settings), **secrets}, secrets_of(settings, secrets.values())


def _leave_saving_to_another(sync: Sync) -> None:
    """End the copying if another process finishes the run: two must not write the same."""
    if hand_over():
        sync.abandon()


def _with_logged_attempts(
    job: TrainingJob, settings: StoreSettings, run_id: str, earlier: Earlier
) -> Earlier:
    """Count the attempts too that only their logs in the store tell of.

    The server has not heard of those that began while it was away, and their logs must stay.
    """
    if job.logs.url is None:
        return earlier
    try:
        logged = num_logged_attempts(url_of_run(job.logs.url, run_id), settings, run_id)
    except StoreError as error:  # whoever saves the logs says so if it lasts
        _logger.info("the logs of earlier attempts cannot be listed: %s", error)
        return earlier
    return replace(earlier, num_attempts=max(earlier.num_attempts, logged))


def _bring_back(
    job: TrainingJob,
    workspace: Workspace,
    settings: StoreSettings,
    run_id: str,
    earlier: Earlier,
) -> None:
    """Fetch what the training goes on from, unless this machine has the newest of it.

    Outputs go with the checkpoints that they were written after. They come first, since it is by
    the checkpoints that a process which tries again sees what has to be fetched. Those of attempts
    on another machine that this one does not go on from are fetched as outputs of an earlier
    attempt: a run that is broken off must not take them out of the store.
    """
    is_elsewhere = _went_on_elsewhere(job, workspace, settings, run_id)
    if earlier.num_processes and (is_elsewhere or not workspace.next_attempt()):
        _bring_back_outputs(job, workspace, settings, run_id, workspace.outputs)
    elif earlier.num_attempts > workspace.next_attempt():
        _set_aside_own_outputs(workspace)
        latest = workspace.previous_outputs(earlier.num_attempts - 1)
        _bring_back_outputs(job, workspace, settings, run_id, latest)
    if job.checkpoints and (is_elsewhere or not workspace.has_checkpoints()):
        restore_checkpoints(
            url_of_run(job.checkpoints.url, run_id),
            workspace.checkpoints,
            settings,
            job=job.name,
            run_id=run_id,
            journal=checkpoint_journal(workspace),
        )


def _went_on_elsewhere(
    job: TrainingJob, workspace: Workspace, settings: StoreSettings, run_id: str
) -> bool:
    """Tell whether the store has checkpoints of a later time than this machine."""
    has_any = workspace.has_checkpoints()
    if job.checkpoints is None or not (has_any or workspace.next_attempt()):
        return False
    try:
        return went_on_elsewhere(
            url_of_run(job.checkpoints.url, run_id),
            settings,
            job=job.name,
            run_id=run_id,
            journal=checkpoint_journal(workspace),
        )
    except CheckpointsOfAnother:
        if has_any:
            raise
        return False  # with none of its own, the run takes over what another one left


def _set_aside_own_outputs(workspace: Workspace) -> None:
    """Move outputs that no attempt goes on from to where their attempt has its place.

    Whoever begins the next attempt knows them only as those of the attempt right before it.
    """
    place = workspace.previous_outputs(workspace.last_attempt)
    if workspace.has_checkpoints() or place.exists() or not workspace.outputs.exists():
        return
    with local_failures(str(place)):
        place.parent.mkdir(parents=True, exist_ok=True)
        workspace.outputs.rename(place)


def _bring_back_outputs(
    job: TrainingJob, workspace: Workspace, settings: StoreSettings, run_id: str, target: Path
) -> None:
    """Fetch to `target` what the run has written elsewhere, so that its outputs stay whole."""
    for channel in job.outputs:
        restore_outputs(
            url_of_run(channel.url, run_id),
            target / channel.name,
            settings,
            run_id=run_id,
            journal=output_journal(workspace, channel.name),
            label=channel.name,
        )


@contextmanager
def _cards_of(job: TrainingJob, run_id: str) -> Iterator[Lease | None]:
    """Have the cards of a job for its run alone; wait for them as long as its limits allow."""
    resources, wait = job.resources, job.limits.wait_for_cards
    environ = {**os.environ, **job.env}
    timeout_s = wait.total_seconds() if wait else None
    with (
        leased_cards(
            resources.device, resources.num_cards, environ, run_id=run_id, timeout_s=timeout_s
        ) as lease,
        noting_card_usage(resources.device, lease),
    ):
        yield lease


@contextmanager
def _saving(mirrors: Sequence[Mirror]) -> Iterator[Sync]:
    """Keep the mirrors up to date, and say at the end what checkpoints and logs came to.

    Of the outputs it is said by who uploads them at the end of the run.
    """
    sync = Sync()
    try:
        with syncing(mirrors, on_problem=_note_problem, flush_s=FLUSH_S) as sync:
            try:
                yield sync
            except Exception:
                raise
            except BaseException:  # told to end, not only while the ranks are waited for
                _leave_saving_to_another(sync)
                raise
    finally:
        outputs = {mirror.label for mirror in mirrors if isinstance(mirror, OutputMirror)}
        for report in sync.reports:
            if report.label not in outputs:
                emit(saved_of(report))


def _note_problem(error: StoreError) -> None:
    emit(Noted(str(error)))


@contextmanager
def _stopping_at_target(job: TrainingJob, control: Control) -> Iterator[None]:
    """Stop the training when ``limits.target`` is reached; say so if its metric never came."""
    if job.limits.target is None:
        yield
        return
    watch = TargetWatch(job.limits.target, control.stop_at_target)
    with listening(watch):
        yield
    if problem := watch.problem():
        emit(Noted(problem))
