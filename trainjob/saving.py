"""Takes to the stores what a run left, however it ended: nothing of it is lost silently.

Called by the task that uploads the outputs, by the flow of a run that failed or was stopped, and by
the process that finishes for it.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from trainjob.errors import StoreError
from trainjob.events import Noted, Saved, emit
from trainjob.job import OutputChannel, TrainingJob, url_of_run
from trainjob.metrics.publish import publish_metrics
from trainjob.mirrors import FLUSH_S, mirrors_of, output_journal, saved_of
from trainjob.report import OutputReport
from trainjob.storage.log_mirror import LogMirror
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.receipt import OutputState, Receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import engine_of, open_store
from trainjob.storage.sync import Mirror
from trainjob.storage.sync_thread import flush
from trainjob.storage.upload import mark_result, upload_tree
from trainjob.workspace import Workspace

PATIENCE_S = 120.0
"""How long stores may be away while outputs are saved."""
_PAUSE_S = 2.0
_MAX_NAMED = 5


def save_checkpoints_and_logs(
    job: TrainingJob,
    run_id: str,
    settings: StoreSettings,
    *,
    secrets: Collection[str] = (),
    but: Collection[str] = (),
) -> None:
    """Make the last copies of checkpoints and logs, and emit `Saved` for each.

    Logs of a job with secrets stay on the machine, with a note, if nobody knows any more what has
    to be hidden in them: a block may hold another value by now than the ranks were given.

    Args:
        job: The job of the run.
        run_id: Which run's.
        settings: How to reach their stores.
        secrets: As for `trainjob.mirrors.mirrors_of`: what the ranks were given.
        but: Labels of what is saved already.
    """
    mirrors = mirrors_of(job, Workspace.of_run(run_id), settings, run_id, secrets)
    wanted = [mirror for mirror in mirrors if not isinstance(mirror, OutputMirror)]
    _save([mirror for mirror in wanted if mirror.label not in but], job, run_id, secrets)


def save_to_go_on(
    job: TrainingJob, run_id: str, settings: StoreSettings, *, secrets: Collection[str] = ()
) -> None:
    """Make the last copies of all that another process of the run needs to go on, and of its logs.

    Outputs, too: what a script wrote before its last checkpoint is not written again.

    Args:
        job: The job of the run.
        run_id: Which run's.
        settings: How to reach their stores.
        secrets: As for `save_checkpoints_and_logs`.
    """
    mirrors = mirrors_of(job, Workspace.of_run(run_id), settings, run_id, secrets)
    _save(mirrors, job, run_id, secrets)


def _save(
    mirrors: Sequence[Mirror], job: TrainingJob, run_id: str, secrets: Collection[str]
) -> None:
    if job.secrets and not secrets:
        workspace = Workspace.of_run(run_id)
        mirrors = [mirror for mirror in mirrors if not _is_left(mirror, workspace)]
    for report in flush(mirrors, FLUSH_S):
        emit(saved_of(report))


def _is_left(mirror: Mirror, workspace: Workspace) -> bool:
    """Tell whether a mirror would send logs, and note that they stay where they are."""
    if not isinstance(mirror, LogMirror):
        return False
    emit(
        Noted(
            f"the logs are not sent to {mirror.url} any more: the process that knew the secrets of "
            f"the run, which may be in them, is gone; they are in {workspace.logs}"
        )
    )
    return True


def add_metrics(job: TrainingJob, workspace: Workspace) -> None:
    """Put the metrics of the run among its outputs, in the first one; no result depends on it."""
    if not job.outputs:
        return
    last = workspace.metrics_dir(workspace.last_attempt)
    try:
        publish_metrics(last, workspace.output_dir(job.outputs[0].name))
    except OSError as error:
        emit(Noted(f"the metrics are not among the outputs but in {last}: {error}"))


def upload_all(
    job: TrainingJob,
    run_id: str,
    settings: StoreSettings,
    facts: Mapping[str, Any],
    state: OutputState,
) -> list[OutputReport]:
    """Upload every output of a run that ended well; none is a result before all are proved.

    Args:
        job: The job of the run.
        run_id: Which run's outputs; the receipts name it.
        settings: How to reach their stores.
        facts: What the receipts say of the run beside its files.
        state: How the training ended.

    Raises:
        StoreError: What `trainjob.storage.upload.upload_tree` says of an output that could not be
            uploaded, after all were tried. Of several, each is named, and it is retryable if one
            of them is.
    """
    receipts: dict[str, Receipt] = {}
    errors: list[StoreError] = []
    for channel in job.outputs:
        try:
            receipts[channel.name] = _upload(
                channel, run_id, settings, facts, state, is_marked=False
            )
        except StoreError as error:
            errors.append(error)
    if errors:
        raise _one_of(errors)
    for channel in job.outputs:
        if receipts[channel.name].files:
            mark_result(url_of_run(channel.url, run_id), settings, receipts[channel.name])
    return [
        _report_of(channel, run_id, settings, receipts[channel.name]) for channel in job.outputs
    ]


def _one_of(errors: Sequence[StoreError]) -> StoreError:
    """Return one error for all, of the kind that is tried again if one of them is."""
    first, *others = sorted(errors, key=lambda error: not error.retryable)
    return type(first)("\n".join(map(str, (first, *others)))) if others else first


def save_outputs(
    job: TrainingJob,
    run_id: str,
    settings: StoreSettings,
    facts: Mapping[str, Any],
    state: OutputState,
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """Upload the outputs as they are, marked as no finished result, and emit `Saved` for each.

    Args:
        job: The job of the run.
        run_id: Which run's outputs.
        settings: How to reach their stores.
        facts: What the receipts say of the run beside its files.
        state: How the run ends.
        patience_s: How long stores may be away, all together.
    """
    workspace = Workspace.of_run(run_id)
    add_metrics(job, workspace)
    give_up_at = time.monotonic() + patience_s
    for channel in job.outputs:
        folder = workspace.output_dir(channel.name)
        if not folder.is_dir() and not workspace.earlier_output_dirs(channel.name):
            continue
        try:
            upload = partial(_upload, channel, run_id, settings, facts, state)
            saved = _report_of(channel, run_id, settings, _tried_again(upload, give_up_at))
        except StoreError as error:
            url = url_of_run(channel.url, run_id)
            emit(Saved(channel.name, url, 0, 0, (str(error), f"the files are in {folder}")))
        else:
            emit(Saved(saved.name, saved.url, saved.num_files, saved.size_bytes, saved.left_out))


def _upload(
    channel: OutputChannel,
    run_id: str,
    settings: StoreSettings,
    facts: Mapping[str, Any],
    state: OutputState,
    *,
    is_marked: bool = True,
) -> Receipt:
    """Upload one output of a run, and note what is not as the run ended."""
    workspace = Workspace.of_run(run_id)
    receipt = upload_tree(
        workspace.output_dir(channel.name),
        url_of_run(channel.url, run_id),
        settings,
        run_id=run_id,
        facts=dict(facts),
        label=channel.name,
        state=state,
        journal=output_journal(workspace, channel.name),
        earlier=workspace.earlier_output_dirs(channel.name),
        is_marked=is_marked,
    )
    if receipt.earlier:
        emit(Noted(_earlier_text(channel.name, receipt.earlier)))
    if receipt.state != state:
        emit(Noted(f"{channel.name}: its finished result ({receipt.state}) stays as it is"))
    return receipt


def _report_of(
    channel: OutputChannel, run_id: str, settings: StoreSettings, receipt: Receipt
) -> OutputReport:
    """Return what lies in the store of an output."""
    url = url_of_run(channel.url, run_id)
    with open_store(url, settings) as store:
        engine = engine_of(store)
    return OutputReport(
        name=channel.name,
        url=url,
        num_files=len(receipt.files),
        size_bytes=sum(file.size_bytes for file in receipt.files),
        left_out=tuple(f"{path!r} {why}" for path, why in receipt.left_out.items()),
        engine=engine,
        num_read_back=sum(file.verified == "read back" for file in receipt.files),
        num_by_checksum=sum(file.verified == "checksum" for file in receipt.files),
        claimed=receipt.claimed,
    )


def _earlier_text(name: str, paths: Sequence[str]) -> str:
    """Say which files of an output the last attempt has not written."""
    files = "1 file of these is" if len(paths) == 1 else f"{len(paths):,} files of these are"
    more = f" and {len(paths) - _MAX_NAMED:,} more" if len(paths) > _MAX_NAMED else ""
    return f"{name}: {files} of an earlier attempt: {', '.join(paths[:_MAX_NAMED])}{more}"


def _tried_again(upload: Callable[[], Receipt], give_up_at: float) -> Receipt:
    """Upload, again and again while the store is away, but not for ever."""
    while True:
        try:
            return upload()
        except StoreError as error:
            if not error.retryable or time.monotonic() > give_up_at:
                raise
            time.sleep(_PAUSE_S)
