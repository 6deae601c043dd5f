"""Bring the code of the job into the workspace."""

from blocks.object_store import load_settings
from tasks.stage import stage
from trainjob.algorithm import ScriptAlgorithm
from trainjob.code_limits import limits_of_machine
from trainjob.job import TrainingJob
from trainjob.profiles import PROFILES
from trainjob.source import FetchedCode, boot_path
from trainjob.source import fetch_code as fetch
from trainjob.values import format_size
from trainjob.workspace import Workspace


def _summary(code: FetchedCode) -> str:
    version = f"commit {code.commit[:12]}, " if code.commit else ""
    entries = "1 file" if code.num_entries == 1 else f"{code.num_entries} files and folders"
    return f"{version}{entries}, {format_size(code.size_bytes)}"


@stage(_summary)
def fetch_code(job: TrainingJob, run_id: str) -> FetchedCode:
    """Fetch the code of `job` into the workspace of the run and find its boot file."""
    code_dir = Workspace.of_run(run_id).code
    limits = limits_of_machine(PROFILES[job.profile].code_limits)
    fetched = fetch(job.algorithm.code, code_dir, load_settings(job.store), limits)
    if isinstance(job.algorithm, ScriptAlgorithm):
        boot_path(job.algorithm, code_dir)
    return fetched
