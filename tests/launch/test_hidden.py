"""Secrets of the ranks' environment: there for the ranks, and nowhere else."""

import json

import pytest

from trainjob.events import Event, RankOutput, listening
from trainjob.launch.failure import RankFailed
from trainjob.launch.hidden import hiding, without_secrets
from trainjob.launch.training import run_training

SECRET = {"STORE_SECRET": "very-secret"}


def test_the_longest_of_several_secrets_is_hidden_first() -> None:
    with hiding(["key", "key-and-more", ""]):
        assert without_secrets("a key, a key-and-more") == "a ***, a ***"
    assert without_secrets("a key") == "a key"


def test_ranks_have_their_credentials_and_no_file_of_the_launch_does(make_launch) -> None:
    script = "import os\nassert os.environ['STORE_SECRET'] == 'very-secret'\n"
    launch = make_launch(script, launcher="torchrun", world_size=2)

    result = run_training(launch, credentials=SECRET)

    assert result.reason == "finished"
    files = [path for path in launch.log_dir.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"very-secret" in path.read_bytes()] == []


@pytest.mark.mpi
def test_credentials_are_on_no_command_line_between_supervisor_and_rank(make_launch) -> None:
    script = """
import json, os, pathlib
seen, pid = b"", os.getpid()
while pid > 1:
    process = pathlib.Path(f"/proc/{pid}")
    seen += (process / "cmdline").read_bytes()
    pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
print(json.dumps([b"supervisor" in seen, os.environ["STORE_SECRET"].encode() in seen]), flush=True)
"""
    events: list[Event] = []
    launch = make_launch(script, launcher="mpi", world_size=2)

    with listening(events.append):
        run_training(launch, credentials=SECRET)

    lines = [line for event in events if isinstance(event, RankOutput) for line in event.lines]
    assert [json.loads(line) for line in lines] == [[True, False], [True, False]]


def test_what_a_rank_tells_of_a_secret_is_hidden_from_watchers_and_in_its_failure(
    make_launch,
) -> None:
    script = "import os\nprint(os.environ['STORE_SECRET'], flush=True)\n"
    script += "raise ValueError('no ' + os.environ['STORE_SECRET'])\n"
    events: list[Event] = []

    with hiding([*SECRET.values()]), listening(events.append), pytest.raises(RankFailed) as caught:
        run_training(make_launch(script), credentials=SECRET)

    assert "very-secret" not in repr(events) + str(caught.value) + repr(caught.value.failure)
    assert "no ***" in str(caught.value)
    assert "***" in repr([event for event in events if isinstance(event, RankOutput)])
