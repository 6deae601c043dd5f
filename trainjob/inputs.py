"""The input channels of a run on this machine: staged before the training, let go of after it.

Called by the tasks that stage and train; `trainjob.storage.stage` does the work.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from trainjob.events import Noted, emit
from trainjob.job import InputChannel, TrainingJob
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import hold, keeping, release
from trainjob.storage.cache.snapshot import Proof
from trainjob.storage.cache.source import Unpacking
from trainjob.storage.failures import local_failures
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import stage_channel
from trainjob.values import counted, format_size
from trainjob.workspace import Workspace


@dataclass(frozen=True, slots=True)
class StagedInput:
    """An input channel as it was staged; of one that is streamed, nothing is known.

    Attributes:
        name: The channel.
        url: Where the data came from.
        mode: ``link``, ``copy`` or ``stream``.
        num_files: Its files, those of the archive if it was one.
        size_bytes: Their size.
        fingerprint: Over paths, sizes and digests of the files.
        engine: What brought them.
        verified: What the bytes were compared with.
        moved_bytes: What came from the store for this run.
        cached_bytes: What was there from earlier runs or tries.
        is_in_place: Whether it is a folder of this machine that is used where it lies.
    """

    name: str
    url: str
    mode: str
    num_files: int = 0
    size_bytes: int = 0
    fingerprint: str | None = None
    engine: str | None = None
    verified: Proof | None = None
    moved_bytes: int = 0
    cached_bytes: int = 0
    is_in_place: bool = False

    def __str__(self) -> str:
        """Return what was staged, and what it took, in one line."""
        if self.verified is None:
            return f"{self.name}: streamed, nothing copied"
        size = f"{counted(self.num_files, 'file')}, {format_size(self.size_bytes)}"
        is_own_proof = self.is_in_place and self.verified == "size"
        proof = "" if is_own_proof else f", verified by {self.verified}"
        return f"{self.name}: {size}, {self._how}{proof}"

    @property
    def _how(self) -> str:
        if self.is_in_place:
            return "used in place"
        moved = f"{format_size(self.moved_bytes)} moved"
        if not self.cached_bytes:
            return f"{moved} ({self.engine})"
        if not self.moved_bytes:
            return f"{moved} (cache)"
        return f"{moved} ({self.engine}), {format_size(self.cached_bytes)} from cache"


def stage_channels(
    job: TrainingJob, workspace: Workspace, settings: StoreSettings | None
) -> list[StagedInput]:
    """Bring every input channel of `job` into its workspace, verified.

    Raises:
        StoreError: See `trainjob.storage.stage.stage_channel`.
    """
    staged = [_stage(channel, workspace, settings, channel.expect) for channel in job.inputs]
    with local_failures(str(workspace.inputs_file)):
        workspace.inputs_file.parent.mkdir(parents=True, exist_ok=True)
        workspace.inputs_file.write_text(json.dumps({i.name: i.fingerprint for i in staged}))
    return staged


def unpacking_of(channel: InputChannel) -> Unpacking:
    """Return how a channel that is one archive is treated."""
    return Unpacking(
        is_wanted=channel.unpack != "never",
        names=channel.archive_names,
        any_ratio=channel.unpack == "always",
    )


@contextmanager
def holding_inputs(
    job: TrainingJob, workspace: Workspace, settings: StoreSettings | None
) -> Iterator[None]:
    """Have the staged inputs of a run there until the block ends, and let go of them then.

    What an earlier process of the run staged and the cache gave up since is staged again, if it is
    still the same data. A script that wrote into what other runs share is told of.

    Raises:
        StoreError: If the data is there no more, or is another one now.
    """
    cache = Cache.of_machine()
    known = _fingerprints(workspace)
    for channel in job.inputs:
        folder, holder = workspace.input_dir(channel.name), _holder(channel, workspace)
        if not channel.is_streamed and not hold(cache, folder, holder):
            _stage(channel, workspace, settings, known.get(channel.name) or channel.expect)
    holders = [_holder(channel, workspace) for channel in job.inputs]
    try:
        with keeping(cache, holders):
            yield
    finally:
        for holder in holders:
            for note in release(cache, holder):
                emit(Noted(note))


def _stage(
    channel: InputChannel,
    workspace: Workspace,
    settings: StoreSettings | None,
    expect: str | None,
) -> StagedInput:
    if channel.is_streamed:
        return StagedInput(channel.name, channel.url, channel.mode)
    data = stage_channel(
        channel.url,
        workspace.input_dir(channel.name),
        settings,
        label=channel.name,
        holder=_holder(channel, workspace),
        mode="copy" if channel.mode == "copy" else "link",
        unpacking=unpacking_of(channel),
        expect=expect,
    )
    return StagedInput(
        name=channel.name,
        url=data.url,
        mode=channel.mode,
        num_files=data.num_files,
        size_bytes=data.size_bytes,
        fingerprint=data.fingerprint,
        engine=data.engine,
        verified=data.verified,
        moved_bytes=data.moved_bytes,
        cached_bytes=data.cached_bytes,
        is_in_place=data.is_in_place,
    )


def _holder(channel: InputChannel, workspace: Workspace) -> str:
    return f"{workspace.root.name}.{channel.name}"


def _fingerprints(workspace: Workspace) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    with suppress(FileNotFoundError):
        found = json.loads(workspace.inputs_file.read_text())
    return found
