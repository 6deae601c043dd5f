"""Gives a run the environment that its ``requirements.txt`` asks for: one that is there, or new.

Called by the tasks that install and train. Of runs that ask for the same at once, one makes it and
the others wait for it.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainjob.environments.asked import Asked, asked_by, requirements_problems
from trainjob.environments.build import build_environment, move_scripts, protect
from trainjob.environments.folder import (
    Environment,
    environments_folder,
    find_environment,
    remove_unfinished,
    using,
)
from trainjob.errors import RequirementsFailed, RequirementsUnavailable
from trainjob.job import TrainingJob
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.removal import destroy, remove
from trainjob.storage.failures import local_failures
from trainjob.values import counted, format_size
from trainjob.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Provided:
    """The environment of a run; `was_there` is whether an earlier run made it."""

    root: Path
    num_packages: int
    size_bytes: int
    was_there: bool

    def __str__(self) -> str:
        """Return what was installed, in one line."""
        size = f"{counted(self.num_packages, 'package')}, {format_size(self.size_bytes)}"
        return f"{size}, {'from cache' if self.was_there else 'installed'}"


def provide_environment(job: TrainingJob, workspace: Workspace) -> Provided:
    """Let ``environment`` in the workspace lead to what the code of the run asks for.

    Args:
        job: If it asks for a sandbox, what pip builds is in one, too.
        workspace: The run; its code is there.

    Raises:
        RequirementsFailed: If it cannot be installed; `RequirementsUnavailable` if another try can
            help.
        StoreError: If the disk does not take it.
        LaunchError: If there is no sandbox to be had.
    """
    if problems := requirements_problems(workspace.code):
        raise RequirementsFailed("\n".join(map(str, problems)))
    folder = environments_folder()
    asked = asked_by(workspace.code)
    found = find_environment(folder, asked.key)
    made, was_there = (found, True) if found else _made(folder, asked, workspace, job)
    with local_failures(str(workspace.environment)):
        workspace.environment.unlink(missing_ok=True)
        workspace.environment.symlink_to(made.root)
    return Provided(made.root, made.num_packages, made.size_bytes, was_there)


@contextmanager
def holding_environment(job: TrainingJob, workspace: Workspace) -> Iterator[None]:
    """Have the environment of a run there until the block ends, if its job asks for one.

    One that was removed since it was provided is made again.

    Raises:
        RequirementsFailed: See `provide_environment`.
    """
    if not job.environment.requirements:
        yield
        return
    folder = environments_folder()
    key = workspace.environment.resolve().name if workspace.environment.is_symlink() else ""
    while True:  # another process may remove it before it is used
        with using(folder, key) as found:
            if found is not None:
                yield
                return
        key = provide_environment(job, workspace).root.name


def _made(
    folder: Cache, asked: Asked, workspace: Workspace, job: TrainingJob
) -> tuple[Environment, bool]:
    """Make an environment, or take the one that another process makes meanwhile, and say which."""
    folder.prepare()
    folder.empty_trash()
    with folder.alone(asked.key, lambda: find_environment(folder, asked.key) is not None):
        if found := find_environment(folder, asked.key):
            return found, True
        remove_unfinished(folder)
        incoming = folder.incoming / f"{asked.key}-{Owner.this()}-{uuid.uuid4().hex}"
        try:
            with local_failures(str(incoming)):
                build_environment(incoming, asked, workspace, sandbox=job.sandbox)
                return _published(folder, asked.key, incoming), False
        finally:
            destroy(incoming)


def _published(folder: Cache, key: str, incoming: Path) -> Environment:
    target = folder.published / key
    move_scripts(incoming, target)
    protect(incoming)
    try:
        incoming.rename(target)
    except OSError:
        # A broken one is there; or, where there are no locks, another process was faster.
        if find_environment(folder, key) is None:
            remove(target, folder.trash)
            incoming.rename(target)
    made = find_environment(folder, key)
    if made is None:
        what = f"asked for the environment {key}, found it removed as soon as it was made"
        raise RequirementsUnavailable(f"{what}; run again")
    return made
