"""For user scripts: save the state of a training and go on from it. Needs torch alone.

::

    from trainjob import checkpoint

    found = checkpoint.latest()
    if found:
        state = checkpoint.load(found)
        model.load_state_dict(state["model"])
        ...
    for step in range(first_step, num_steps):
        ...
        stop = checkpoint.should_stop()
        if stop or (step + 1) % 500 == 0:
            checkpoint.save(step + 1, {"model": model.state_dict(), "step": step + 1})
        if stop:
            break

A checkpoint is a folder that is complete or absent, whenever the process is killed; how it looks is
in `trainjob.checkpoint_folder`. Works in one process, with torch.distributed and with mpi4py, in a
run of trainjob or without one.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, SupportsFloat

import torch

# Here, before a script makes its process group: a module that is imported later would keep the
# group, and the rank might hang or abort at its end (pytorch #190489, torch 2.13).
import torch.distributed.nn

from trainjob import progress
from trainjob.checkpoint_folder import (
    Best,
    CheckpointError,
    Draft,
    Format,
    Marker,
    Saved,
    best_of,
    complete_checkpoints,
    finite,
    read_checkpoint,
    say_once,
)
from trainjob.checkpoint_plain import read_plain, write_plain
from trainjob.checkpoint_ranks import (
    agreed,
    has_group,
    is_true_on_any_rank,
    of_all_ranks,
    rank_and_world_size,
)
from trainjob.checkpoint_resume import ResumableSampler, rng_state, set_rng_state
from trainjob.errors import Problem

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ResumableSampler",
    "latest",
    "load",
    "of_all_ranks",
    "rng_state",
    "save",
    "set_rng_state",
    "should_stop",
]


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Args:
        folder: Where they are; absent: what the environment variable ``TRAINJOB_CHECKPOINT_DIR``
            names, which every run of trainjob sets, or ``checkpoints`` in the working directory.
        keep_last: How many of the newest are kept; None: all.
        best: A metric and whether more or less of it is better, such as ``("accuracy", "max")``;
            the best checkpoint by it is kept, too.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        keep_last: int | None = 3,
        best: Best | None = None,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last: asked for {keep_last}; keep 1 or more, or None for all")
        if best is not None and best[1] not in ("max", "min"):
            raise ValueError(f"best: asked for {best!r}; write (metric, 'max') or (metric, 'min')")
        given = folder or os.environ.get("TRAINJOB_CHECKPOINT_DIR") or "checkpoints"
        self.folder = Path(given).absolute()
        self._keep_last = keep_last
        self._best = best

    def save(
        self,
        step: int,
        state: dict[str, Any],
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
        sharded: bool = False,
    ) -> None:
        """Save the state after `step` steps, then remove what is not to be kept.

        A state that is the same on every rank is written by rank 0; the others may call this, and
        do nothing. With `sharded` every rank has to call it and writes its part, and it ends when
        all have written or fails on all of them. The state of a step that was saved before
        replaces it.

        Of a plain tensor or value that several ranks give under one name with `sharded`, one is
        kept: torch.distributed.checkpoint takes them for copies. What differs from rank to rank has
        to be a DTensor, as of FSDP and tensor parallel, or needs a name of its own on every rank.

        Args:
            step: How many steps are done, all epochs together.
            state: Values by name: state dicts, tensors, numbers, texts, and lists and dicts of
                these.
            metrics: Numbers at this step, for `best`.
            sharded: Whether to save by torch.distributed.checkpoint.

        Raises:
            CheckpointError: If it cannot be written, or ranks give parts of different steps;
                earlier checkpoints are as they were.
            TypeError: If the state holds something that could not be loaded again.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step: asked for {step!r}; give the number of steps done, 0 or more")
        numbers = finite(metrics or {})
        if sharded:
            self._save_sharded(step, state, numbers)
        elif rank_and_world_size()[0] == 0:
            with self._draft(step) as draft:
                write_plain(draft.path, state)
                draft.complete(_marker(step, "plain", draft, numbers), self._keep_last, self._best)

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None if there is none.

        Damaged ones are passed over, and that is said on stderr. Ranks that talk to each other
        all have to call it, and get the newest that all of them see.
        """
        checkpoints = self._seen_by_all()
        return checkpoints[-1].path if checkpoints else None

    def best(self) -> Path | None:
        """Return the complete checkpoint with the best metric, or None if there is none.

        Ranks that talk to each other all have to call it, as `latest`, and get the same one; rank 0
        alone would wait for them.
        """
        if self._best is None:
            raise ValueError("best: asked for the best checkpoint; say by which metric it is best")
        found = best_of(self._seen_by_all(), self._best)
        name = of_all_ranks(found.path.name if found else None)[0]
        return self.folder / name if name else None

    def _seen_by_all(self) -> list[Saved]:
        """Return the complete checkpoints that all ranks see, from old to new."""
        of_all_ranks(None)  # rank 0 may still be saving, which the others did not wait for
        checkpoints, damaged = complete_checkpoints(self.folder)
        for error in damaged:
            say_once(f"{error}")
        names = [saved.path.name for saved in checkpoints]
        views = of_all_ranks(names)
        common = set(names).intersection(*views)
        if not common and any(views):
            say_once(f"checkpoint: not every rank sees {self.folder}; none is used")
        return [saved for saved in checkpoints if saved.path.name in common]

    def _save_sharded(
        self, step: int, state: dict[str, Any], metrics: dict[str, float | None]
    ) -> None:
        from trainjob.checkpoint_sharded import state_dicts_of, write_shards  # half a second

        asked = f"checkpoint of step {step} in {str(self.folder)!r}"
        _check_group(asked)
        rank, _ = rank_and_world_size()
        ready: dict[str, Any] = {}
        with ExitStack() as stack:
            opened: list[Draft] = []

            def begin() -> tuple[int, str]:
                ready.update(state_dicts_of(state))
                if rank == 0:
                    opened.append(stack.enter_context(self._draft(step)))
                return step, str(opened[0].path) if opened else ""

            def finish() -> None:
                for draft in opened:
                    marker = _marker(step, "sharded", draft, metrics)
                    _check_shared(asked, written, set(marker.files))
                    draft.complete(marker, self._keep_last, self._best)

            begun = agreed(asked, begin)
            _check_steps([its_step for its_step, _ in begun], self.folder)
            path = Path(begun[0][1])
            written = set().union(*agreed(asked, lambda: write_shards(path, rank, ready)))
            agreed(asked, finish)

    @contextmanager
    def _draft(self, step: int) -> Iterator[Draft]:
        """Give a draft that is dropped if the block does not complete it."""
        try:
            with closing(Draft(self.folder, step)) as draft:
                yield draft
        except OSError as error:
            asked = f"a new one in {str(self.folder)!r}"
            do = "make room or give another folder; earlier checkpoints are as they were"
            problem = Problem(f"checkpoint of step {step}", asked, f"{error}{_room(self)}", do)
            raise CheckpointError(str(problem)) from error


def save(
    step: int,
    state: dict[str, Any],
    *,
    metrics: Mapping[str, SupportsFloat] | None = None,
    sharded: bool = False,
) -> None:
    """Save the state after `step` steps to the folder of the run; see `Checkpoints.save`."""
    Checkpoints().save(step, state, metrics=metrics, sharded=sharded)


def latest() -> Path | None:
    """Return the newest complete checkpoint of the run; see `Checkpoints.latest`."""
    return Checkpoints().latest()


def load(path: str | os.PathLike[str], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the state that was saved, with all tensors on the CPU.

    Args:
        path: What `latest` or `best` returned.
        into: For a checkpoint that was saved with `sharded`, and only for it: a state like the one
            that was saved. Its tensors and values are replaced, on every rank its own part; every
            rank has to call it.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    folder = Path(path)
    asked = f"checkpoint in {str(folder)!r}"
    if into is None:
        _check_format(read_checkpoint(folder), "plain", "give a state by load(path, into=state)")
        return read_plain(folder)
    _check_group(asked)
    do = "load it without `into`"
    agreed(asked, lambda: _check_format(read_checkpoint(folder), "sharded", do))
    from trainjob.checkpoint_sharded import read_shards  # half a second

    read_shards(folder, into)
    return into


_calls = itertools.count(1)
_is_stopping = False


def should_stop(every: int = 1) -> bool:
    """Tell all ranks alike whether to save and leave, because one of them was asked to.

    Every rank has to call it equally often. Without it, ranks that see the request in different
    steps would wait for each other for ever.

    Args:
        every: Talk to the other ranks only in every so manieth call; the others cost nothing and
            return False. Talking costs an all_reduce of one number, 0.1 ms with gloo on one node.
    """
    global _is_stopping  # noqa: PLW0603 - one answer a process: once asked to stop, always
    wanted = progress.should_stop()  # in each call: the first one tells the run that we listen
    if not _is_stopping and next(_calls) % every == 0:
        _is_stopping = is_true_on_any_rank(wanted)
    return _is_stopping


def _marker(step: int, kind: Format, draft: Draft, metrics: dict[str, float | None]) -> Marker:
    files = [path for path in draft.path.rglob("*") if path.is_file()]
    return Marker(
        step=step,
        format=kind,
        files={str(path.relative_to(draft.path)): path.stat().st_size for path in sorted(files)},
        metrics=metrics,
        world_size=rank_and_world_size()[1],
        run_id=os.environ.get("TRAINJOB_RUN_ID"),
        torch=torch.__version__,
    )


def _check_format(saved: Saved, wanted: Format, do: str) -> None:
    if saved.marker.format != wanted:
        asked = f"a {wanted} checkpoint in {str(saved.path)!r}"
        problem = Problem("checkpoint", asked, f"a {saved.marker.format} one", do)
        raise CheckpointError(str(problem))


def _check_group(asked: str) -> None:
    if rank_and_world_size()[1] > 1 and not has_group():
        found = "several ranks without a process group of torch.distributed"
        do = "call init_process_group first, or save and load a plain state"
        raise CheckpointError(str(Problem("sharded", asked, found, do)))


def _check_steps(steps: list[int], folder: Path) -> None:
    """Refuse parts of different steps: together they would be the state of none."""
    if len(set(steps)) > 1:
        asked = f"parts of one step in {str(folder)!r}"
        found = ", ".join(f"step {step} on rank {steps.index(step)}" for step in sorted(set(steps)))
        do = "save the same step on every rank"
        raise CheckpointError(str(Problem("sharded", asked, found, do)))


def _check_shared(asked: str, written: set[str], seen: set[str]) -> None:
    if written - seen:
        found = f"files of other ranks that rank 0 does not see, such as {min(written - seen)!r}"
        do = "give a folder that all nodes share"
        raise CheckpointError(str(Problem("sharded", asked, found, do)))


def _room(checkpoints: Checkpoints) -> str:
    with suppress(OSError):
        return f", {shutil.disk_usage(checkpoints.folder).free} bytes free there"
    return ""
