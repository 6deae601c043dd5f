"""Whether the places that a job names can be had, told before anything is started.

Problems come back as such and are never raised: a check shows all of them at once.
"""

from collections.abc import Callable

from trainjob.errors import OutputNotEmpty, Problem, StoreError
from trainjob.storage.checkpoint_index import index_of_job
from trainjob.storage.failures import failure, problem_of
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, is_known_file, open_store

_RUN_ID = "{run_id}"


def input_problems(field: str, url: str, settings: StoreSettings | None) -> list[Problem]:
    """Return why what is at `url` cannot be an input: nothing, or one problem.

    Args:
        field: Where the url stands in the job file.
        url: See `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
    """
    asked = f"a folder with files at {url!r}"
    try:
        with open_store(url, settings) as store:
            if store.has_files() or store.is_file():
                return []
    except StoreError as error:
        return [problem_of(field, asked, error)]
    return [Problem(field, asked, "no file there", "check the url, or put the files there first")]


def output_problems(field: str, url: str, settings: StoreSettings | None) -> list[Problem]:
    """Return why nothing can be written to `url`: nothing, or one problem.

    Writing is proved: an object of a unique name is put into the store and deleted, an unnamed
    file is made on this machine.

    Args:
        field: Where the url stands in the job file.
        url: As for inputs; of one with ``{run_id}`` the folder above that part is asked, and may
            hold files.
        settings: How to reach an object store; absent: the AWS_* environment.
    """
    asked = f"an empty folder that can be written at {url!r}"
    return _writing_problems(field, asked, url, settings, _refuse_files)


def log_problems(field: str, url: str, settings: StoreSettings | None) -> list[Problem]:
    """Return why logs cannot be kept at `url`; the rules are those of `output_problems`."""
    asked = f"an empty folder for logs that can be written at {url!r}"
    return _writing_problems(field, asked, url, settings, _refuse_files)


def checkpoint_problems(
    field: str, url: str, settings: StoreSettings | None, *, job: str
) -> list[Problem]:
    """Return why checkpoints of `job` cannot be kept at `url`: nothing, or one problem.

    The folder may hold checkpoints of the same job; else the rules are those of `output_problems`.
    """
    asked = f"a folder for checkpoints of the job {job!r} at {url!r}"
    return _writing_problems(field, asked, url, settings, lambda store: index_of_job(store, job))


def _writing_problems(
    field: str,
    asked: str,
    url: str,
    settings: StoreSettings | None,
    check_content: Callable[[Store], object],
) -> list[Problem]:
    above, is_template, _ = url.partition(_RUN_ID)
    place = above[: above.rindex("/") + 1] if is_template and "/" in above else url
    if place == "s3://":
        do = f"write {_RUN_ID} after the name of the bucket"
        return [Problem(field, asked, "a bucket whose name changes with the run", do)]
    try:
        with open_store(place, settings) as store:
            if not is_template:
                check_content(store)
            if is_known_file(store):
                return [Problem(field, asked, "a file of that name", "use another folder")]
            store.prove_writing()
    except StoreError as error:
        return [problem_of(field, asked, error)]
    return []


def _refuse_files(store: Store) -> None:
    if store.has_files():
        do = f"use an empty folder or put {_RUN_ID} into the url"
        raise failure(OutputNotEmpty, store.url, "files in it", do)
