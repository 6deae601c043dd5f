"""The command line: ``python -m flows run | check | submit | list | show | verify | cache | …``.

Exit codes: 0 completed, 1 failed, 2 the job file is wrong, 130 stopped.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

from rich.console import Console

from flows.cache_command import add_cache_command
from flows.catalogue_command import add_catalogue_commands
from flows.check_text import NOT_READ, errors_text, more_lines
from flows.preview import preview, preview_text
from flows.reference import job_file_reference
from flows.registry_command import add_registry_commands
from flows.registry_place import chosen_registry
from flows.run_commands import add_run_commands
from flows.terminal import Terminal, WarningLines
from flows.upload_command import add_upload_command, whole_url
from trainjob.check.checking import Findings, check_job
from trainjob.errors import JobError, Problem, TrainjobError
from trainjob.events import listening
from trainjob.job import TrainingJob
from trainjob.report import GOOD_ENDS, RunReport
from trainjob.storage.receipt import verify_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.values import counted, format_size, printable

_PREFECT_DEFAULTS = {
    # The terminal tells the story; Prefect's own lines beside it would tell it twice.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",  # such as a heartbeat that a busy server missed
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # 20 is short for a busy laptop
    # The server of `make serve`, which may share the database, calls a run dead after 90 s.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # What the core warns of stands in the log of the run, too.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "trainjob",
    # No outbound calls: a self-hosted product does not phone anyone.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}

COMPLETED, FAILED, WRONG_JOB, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    for name, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)  # read when Prefect is imported, hence before it
    try:
        return int(arguments.command(arguments))
    except JobError as error:
        _fail(arguments, error, [asdict(problem) for problem in error.problems])
        return _code_of(error.problems)
    except TrainjobError as error:
        _fail(arguments, error, [])
        return FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # as of `logs RUN | head`: who read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Training jobs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job here and now")
    run.add_argument("job", metavar="JOB.yaml", help="the job file")
    run.add_argument("--ranks", choices=("all", "0"), default="all", help="whose output to show")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="show what a run would use, or all problems")
    check.add_argument("job", metavar="JOB.yaml", help="the job file")
    check.set_defaults(command=_check)

    schema = commands.add_parser("schema", help="print the JSON schema of the job file")
    schema.add_argument("--markdown", action="store_true", help="as a page with every key")
    schema.set_defaults(command=_schema, json=True)

    verify = commands.add_parser("verify", help="prove the receipt of an output again")
    verify.add_argument("url", metavar="URL", help="where the output is")
    verify.add_argument("--store", metavar="NAME", help="ObjectStore block; else AWS_* variables")
    verify.set_defaults(command=_verify)

    for of_server in add_run_commands(commands):
        of_server.set_defaults(command=_ask_server)

    for listed in (add_cache_command(commands), *add_catalogue_commands(commands)):
        listed.set_defaults(command=_answer)

    for command in (add_upload_command(commands), *add_registry_commands(commands)):
        command.set_defaults(command=_with_store)

    for command in (run, check, verify):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    # With --json the story goes to standard error, so that standard output is the object alone.
    console = Console(stderr=arguments.json, highlight=False)
    terminal = Terminal(console, only_rank=None if arguments.ranks == "all" else 0)
    begun = time.monotonic()
    job = TrainingJob.load(arguments.job, chosen_registry())
    terminal.introduce(job)
    findings = _refuse_problems(job, arguments.job)
    if findings.cost:
        terminal.say(f"      cost: {findings.cost}")
    for problem in findings.warnings:
        terminal.say(f"      warning: {problem}", style="yellow")
    _stop_by_signals(terminal)
    logging.getLogger("trainjob").addHandler(WarningLines(terminal))
    with terminal.live(), listening(terminal):
        code, report = _run_flow(job, terminal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python drops our handler while it exits
    terminal.conclude(report, time.monotonic() - begun)
    if arguments.json:
        print(json.dumps({**asdict(report), "exit_code": code}, indent=2, default=str))
    return code


def _stop_by_signals(terminal: Terminal) -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal stop the run, and none of them its last words.

    The first stops the ranks, a second one does not wait for them; further ones change nothing.
    """
    num_left = 2

    def stop(_signum: int, _frame: FrameType | None) -> None:
        nonlocal num_left
        if num_left and terminal.report is None:
            num_left -= 1
            raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What is ignored stays ignored: nohup wants the run to outlive its terminal.
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, stop)


def _run_flow(job: TrainingJob, terminal: Terminal) -> tuple[int, RunReport]:
    terminal.waiting("starting Prefect")
    # Importing Prefect takes a second, which a job that is wrong need not wait for.
    from flows.run_here import run_here

    try:
        state, message = run_here(job)
    except KeyboardInterrupt:
        state, message = "Cancelled", "stopped"
    report = terminal.report or RunReport(job.name, "", state=state, error=message)
    codes = dict.fromkeys(GOOD_ENDS, COMPLETED) | {"Cancelled": STOPPED}
    return codes.get(report.state, FAILED), report


def _check(arguments: argparse.Namespace) -> int:
    try:
        job = TrainingJob.load(arguments.job, chosen_registry())
        findings = _findings(job)
    except JobError as error:
        findings = Findings(error.problems, (NOT_READ,))
    problems = {
        "problems": [asdict(problem) for problem in findings.problems],
        "not_checked": findings.not_checked,
        "cost": findings.cost,
        "code": findings.code,
    }
    if findings.errors:
        text = errors_text(arguments.job, findings)
        if arguments.json:
            print(json.dumps({"error": text, **problems}, indent=2))
        print(text, file=sys.stderr)
        return _code_of(findings.errors)
    plan = preview(job)
    text = "\n".join([preview_text(plan), "", *more_lines(findings)])
    print(json.dumps({**plan, **problems}, indent=2) if arguments.json else text)
    return COMPLETED


def _code_of(errors: Sequence[Problem]) -> int:
    """Return the exit code of a job with errors; a store that is away is no mistake in it."""
    return FAILED if all(problem.may_pass for problem in errors) else WRONG_JOB


def _schema(arguments: argparse.Namespace) -> int:
    schema = TrainingJob.model_json_schema()
    print(job_file_reference() if arguments.markdown else json.dumps(schema, indent=2))
    return COMPLETED


def _verify(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments.store)
    terminal = Terminal(Console(stderr=arguments.json))
    url = whole_url(arguments.url)
    with terminal.live(), listening(terminal):
        found = verify_receipt(url, settings)
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
    elif found.problems:
        print(f"{arguments.url}: NOT what its receipt says", file=sys.stderr)
        print("\n".join(f"  {problem}" for problem in found.problems), file=sys.stderr)
    else:
        files = f"{counted(found.num_files, 'file')}, {format_size(found.size_bytes)}"
        state = "" if found.is_result else f", of a run that is no result: {found.state}"
        print(f"{arguments.url}: {files}, all as the receipt says{state}")
    return FAILED if found.problems else COMPLETED


def _with_store(arguments: argparse.Namespace) -> int:
    terminal = Terminal(Console(stderr=True))
    with terminal.live(), listening(terminal):
        answer = arguments.answer(arguments, _settings(arguments.store))
    print(json.dumps(answer.data, indent=2) if arguments.json else answer.text)
    return COMPLETED


def _answer(arguments: argparse.Namespace) -> int:
    terminal = Terminal(Console(stderr=True))
    with terminal.live(), listening(terminal):
        answer = arguments.answer(arguments)
    print(json.dumps(answer.data, indent=2) if arguments.json else answer.text)
    return COMPLETED if answer.is_good else FAILED


def _ask_server(arguments: argparse.Namespace) -> int:
    # Importing Prefect takes a second, which other commands need not wait for.
    from flows.run_answers import ANSWERS

    def say(text: str) -> None:
        # With --json the lines go to standard error, so that standard output is the object alone.
        print(printable(text), file=sys.stderr if arguments.json else sys.stdout, flush=True)

    answer = ANSWERS[arguments.answer](arguments, say)
    if arguments.json:
        print(json.dumps(answer.data, indent=2))
    elif answer.text:
        print(printable(answer.text))
    return COMPLETED if answer.is_good else FAILED


def _refuse_problems(job: TrainingJob, source: str) -> Findings:
    findings = _findings(job)
    if findings.errors:
        raise JobError(source, findings.errors)
    return findings


def _findings(job: TrainingJob) -> Findings:
    if job.store is None and not job.secrets:
        return check_job(job, StoreSettings.from_env())
    # These are Prefect blocks; without them, a check does not wait for Prefect's import.
    from flows.server import reach_server
    from flows.server_check import check_with_server

    reach_server()
    return check_with_server(job)


def _settings(store: str | None) -> StoreSettings:
    if store is None:
        return StoreSettings.from_env()
    # A named store is a Prefect block; without one, a check does not wait for Prefect's import.
    from blocks.object_store import load_settings
    from flows.server import reach_server

    reach_server()
    return load_settings(store)


def _fail(arguments: argparse.Namespace, error: TrainjobError, problems: list[Any]) -> None:
    if arguments.json:
        print(json.dumps({"error": str(error), "problems": problems}, indent=2))
    print(printable(str(error)), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
