"""Where what a run wrote lies, as a page of links for people.

Beside the report, whose page has everything of a run: this one is short, for a list of pages.
"""

from collections.abc import Mapping

from trainjob.job import TrainingJob, url_of_run
from trainjob.report import RunReport
from trainjob.storage.own_files import RECEIPT


def places_of(report: RunReport, job: TrainingJob | None) -> dict[str, str]:
    """Return the places that a run wrote to, by what is there, the most wanted first.

    Args:
        report: What the run did.
        job: Its job; None if it could not be read.
    """
    if job is None or not (report.outputs or report.logs):  # nothing was trained
        return {}
    places: dict[str, str] = {}
    for name, url in report.output_urls.items():  # what a stopped training left is there, too
        places |= {name: url, f"receipt of {name}": f"{url.rstrip('/')}/{RECEIPT}"}
    if job.checkpoints is not None:
        places["checkpoints"] = url_of_run(job.checkpoints.url, report.run_id)
    if job.logs.url is not None:
        places["logs"] = url_of_run(job.logs.url, report.run_id)
    if report.logs:
        places["logs on the machine"] = report.logs
    return places


def places_markdown(places: Mapping[str, str], run_id: str) -> str:
    """Return the places as a page, with links where a browser can follow them."""
    rows = [f"| {what} | {_link(place)} |" for what, place in places.items()]
    fetch = f"python -m flows download {run_id} FOLDER"
    head = ["| what | where |", "|---|---|"]
    return "\n".join([*head, *rows, "", f"Fetch the outputs: `{fetch}`"])


def _link(place: str) -> str:
    text = place.replace("|", "\\|")
    return f"[{text}](<{text}>)" if "://" in place else f"`{text}`"
