"""What a run will execute: the program, its environment and its folders.

A pure function of the job, its workspace and nothing else, so that the preview of a check and the
run itself cannot differ.
"""

import shlex
from dataclasses import dataclass

from trainjob.algorithm import ScriptAlgorithm
from trainjob.job import TrainingJob
from trainjob.launch.launch import CoreLease, Launch, Lease
from trainjob.parameters import parameter_argv, parameter_environment
from trainjob.places import (
    argument_places,
    environment_places,
    mounts_of,
    profile_environment,
)
from trainjob.sandbox_view import own_view
from trainjob.workspace import Workspace

CHECKPOINT_ENV = "TRAINJOB_CHECKPOINT_DIR"
"""Names the folder of checkpoints in every run, also where they stay on the machine alone."""


@dataclass(frozen=True, slots=True)
class Program:
    """What every rank executes.

    Attributes:
        argv: The boot file or command and all its arguments; a boot file is relative to the code.
        is_script: Whether the first word is a Python script.
        env: Variables that the job adds to the environment of the ranks.
    """

    argv: tuple[str, ...]
    is_script: bool
    env: dict[str, str]

    def __str__(self) -> str:
        """Return the program as typed in a terminal."""
        return shlex.join(("python", *self.argv) if self.is_script else self.argv)


def program_of(job: TrainingJob, workspace: Workspace) -> Program:
    """Return what every rank of `job` executes in `workspace`."""
    algorithm = job.algorithm
    if isinstance(algorithm, ScriptAlgorithm):
        words = [algorithm.boot_file]
    else:
        words = shlex.split(algorithm.command)
    return Program(
        argv=(*words, *_arguments(job, workspace)),
        is_script=isinstance(algorithm, ScriptAlgorithm),
        env=_environment(job, workspace),
    )


def launch_of(
    job: TrainingJob,
    workspace: Workspace,
    program: Program,
    *,
    run_id: str,
    attempt: int,
    trained_s: float = 0.0,
    lease: Lease | None = None,
    core_lease: CoreLease | None = None,
) -> Launch:
    """Return everything the launch of an attempt needs.

    Args:
        job: What to train.
        workspace: Its folders.
        program: What every rank executes.
        run_id: The run mark.
        attempt: Which attempt of the run this is, counted from 0.
        trained_s: How long earlier attempts trained, which counts for ``limits.auto_stop``.
        lease: The cards of the run.
        core_lease: Its cores.
    """
    limits, resources, flavor = job.limits, job.resources, job.resources.flavor
    outputs = (workspace.output_dir(channel.name) for channel in job.outputs)
    return Launch(
        run_id=run_id,
        launcher=job.launcher,
        world_size=job.world_size,
        program=program.argv,
        is_script=program.is_script,
        code_dir=workspace.code,
        log_dir=workspace.attempt_logs(attempt),
        env=program.env,
        device=resources.device,
        cores=flavor.cores if flavor else None,
        auto_stop_s=limits.auto_stop.total_seconds() - trained_s if limits.auto_stop else None,
        grace_s=limits.grace.total_seconds(),
        stall_s=limits.stall.total_seconds() if limits.stall else None,
        watched_dirs=(*outputs, workspace.checkpoints),
        attempt=attempt,
        mounts=(*own_view(job, workspace, attempt), *mounts_of(job, workspace)),
        is_sandboxed=job.sandbox,
        python=workspace.environment / "bin" / "python" if job.environment.requirements else None,
        lease=lease,
        core_lease=core_lease,
        memory_bytes=flavor.memory_gib * 2**30 if flavor else None,
        is_restartable=limits.auto_restart > 0,
    )


def _arguments(job: TrainingJob, workspace: Workspace) -> list[str]:
    places = argument_places(job, workspace)
    return parameter_argv(places, job.given_hyperparameters, job.algorithm.arguments)


def _environment(job: TrainingJob, workspace: Workspace) -> dict[str, str]:
    places, values = environment_places(job, workspace), job.given_hyperparameters
    given = parameter_environment(places, values, workspace.params_file)
    return profile_environment(job) | job.env | given | {CHECKPOINT_ENV: str(workspace.checkpoints)}
