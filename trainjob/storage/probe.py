"""Whether the inputs and outputs of a job can be had, told before anything is started.

Problems come back as such and are never raised: a check shows all of them at once.
"""

from trainjob.errors import Problem, StoreError
from trainjob.storage.failures import problem_of
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store

_RUN_ID = "{run_id}"


def input_problems(field: str, url: str, settings: StoreSettings | None) -> list[Problem]:
    """Return why the folder at `url` cannot be an input: nothing, or one problem.

    Args:
        field: Where the url stands in the job file.
        url: See `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
    """
    asked = f"a folder with files at {url!r}"
    try:
        with open_store(url, settings) as store:
            if store.has_files():
                return []
            is_file = store.is_file()
    except StoreError as error:
        return [problem_of(field, asked, error)]
    if is_file:
        return [Problem(field, asked, "a single file", "give the folder that holds it")]
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
    above, is_template, _ = url.partition(_RUN_ID)
    place = above[: above.rindex("/") + 1] if is_template and "/" in above else url
    if place == "s3://":
        do = f"write {_RUN_ID} after the name of the bucket"
        return [Problem(field, asked, "a bucket whose name changes with the run", do)]
    try:
        with open_store(place, settings) as store:
            if not is_template and store.has_files():
                do = f"use an empty folder or put {_RUN_ID} into the url"
                return [Problem(field, asked, "files in it", do)]
            if store.is_file():
                return [Problem(field, asked, "a file of that name", "use another folder")]
            store.prove_writing()
    except StoreError as error:
        return [problem_of(field, asked, error)]
    return []
