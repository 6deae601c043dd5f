"""``python -m flows submit | list | show | logs | stop | rerun | download | schedule``.

What the words of the command line are; `flows.run_answers` answers them, with Prefect.
"""

import argparse
from typing import Any

from flows.priorities import PRIORITIES

_RUN = "id, or how it begins; name; or name of a job: its latest run"
_RUN_TO_STOP = "id, or how it begins; name; or name of a job: its run that is not over"
_POOL = (
    "run by the deployment training-job/POOL; else POOL is the pool of the job's flavor, if it has "
    "one, or cpu, gpu or npu, by its device"
)


def add_run_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands for runs of a server to the command line, and return their parsers.

    Args:
        commands: What ``add_subparsers`` of the parser returned. ``answer`` of its arguments will
            be a key of `flows.run_answers.ANSWERS`.
    """
    made = [
        _add_submit(commands),
        _add_list(commands),
        _add_about_one(commands, "show", "everything about a run"),
        _add_logs(commands),
        _add_about_one(commands, "stop", "have a run save what it has, and end", _RUN_TO_STOP),
        _add_rerun(commands),
        _add_download(commands),
        _add_schedule(commands),
    ]
    for parser in made:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def _add_submit(commands: Any) -> argparse.ArgumentParser:
    submit = _parser(commands, "submit", "have a worker of the server run a job")
    submit.add_argument("job", metavar="JOB.yaml", help="the job file")
    _add_pool_and_watch(submit)
    return submit


def _add_list(commands: Any) -> argparse.ArgumentParser:
    listed = _parser(commands, "list", "the newest runs")
    listed.add_argument("--state", metavar="STATE", help="only these: Running, Failed, ...")
    listed.add_argument("--name", metavar="TEXT", help="only runs and jobs with this in the name")
    listed.add_argument("--tag", metavar="TAG", help="only runs with this tag")
    listed.add_argument("--limit", type=_count, default=20, metavar="N", help="how many; 20")
    return listed


def _add_logs(commands: Any) -> argparse.ArgumentParser:
    logs = _add_about_one(commands, "logs", "what a run has said")
    logs.add_argument("-f", "--follow", action="store_true", help="go on to the end of the run")
    return logs


def _add_rerun(commands: Any) -> argparse.ArgumentParser:
    rerun = _add_about_one(commands, "rerun", "run the job of a run again, with changes")
    rerun.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="such as hyperparameters.lr=0.01; +KEY=VALUE adds a hyperparameter or variable",
    )
    _add_pool_and_watch(rerun)
    return rerun


def _add_download(commands: Any) -> argparse.ArgumentParser:
    download = _add_about_one(commands, "download", "the outputs of a run, each file verified")
    download.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="where to; else a folder of the run's name"
    )
    return download


def _add_schedule(commands: Any) -> argparse.ArgumentParser:
    schedule = _parser(commands, "schedule", "have a job start by itself; list, delete NAME")
    schedule.add_argument("what", metavar="JOB.yaml|list|delete", help="a job file, or what to do")
    schedule.add_argument("target", nargs="?", metavar="NAME", help="which schedule to delete")
    when = schedule.add_mutually_exclusive_group()
    when.add_argument("--cron", metavar="CRON", help="when, such as '0 3 * * *'")
    when.add_argument("--every", metavar="DURATION", help="how often, such as 6h")
    when.add_argument("--rrule", metavar="RULE", help="when, such as 'FREQ=WEEKLY;BYDAY=MO'")
    when.add_argument("--on-dataset", metavar="NAME", help="when this dataset has a new version")
    schedule.add_argument("--anchor", metavar="TIME", help="what --every is counted from; now")
    schedule.add_argument("--timezone", metavar="ZONE", help="of the times; UTC")
    schedule.add_argument("--name", metavar="NAME", help="of the schedule; else that of the job")
    _add_pool(schedule)
    return schedule


def _add_about_one(commands: Any, name: str, text: str, run: str = _RUN) -> argparse.ArgumentParser:
    parser = _parser(commands, name, text)
    parser.add_argument("run", metavar="RUN", help=run)
    return parser


def _add_pool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", metavar="POOL", help=_POOL)
    parser.add_argument(
        "--priority", choices=PRIORITIES, help="start it before or after others of its pool"
    )
    parser.add_argument(
        "--job-variable",
        action="append",
        default=[],
        dest="job_variables",
        metavar="KEY=VALUE",
        help="what the pool is told of the run, such as image=registry.example.com/trainjob:1",
    )


def _add_pool_and_watch(parser: argparse.ArgumentParser) -> None:
    _add_pool(parser)
    parser.add_argument("--watch", action="store_true", help="show its log, end as it ends")


def _parser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(answer=name)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"asked for {text!r} runs; write a number of at least 1")
    return int(text)
