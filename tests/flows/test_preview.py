"""What a check shows of the inputs of a job."""

from typing import Any

from flows.preview import preview, preview_text
from trainjob.job import TrainingJob

ALGORITHM = {"code": {"url": "/code"}, "boot_file": "train.py"}
PIN = "sha256:" + "0123456789abcdef" * 4


def plan_of(**channel: Any) -> dict[str, Any]:
    inputs = [{"name": "data_url", "url": "s3://b/data/"} | channel]
    return preview(TrainingJob.parse({"name": "x", "algorithm": ALGORITHM, "inputs": inputs}))


def steps_of(**channel: Any) -> list[str]:
    steps: list[str] = plan_of(**channel)["inputs"][0]["how"]
    return steps


def test_the_check_says_what_happens_to_each_channel() -> None:
    assert steps_of() == ["to read only, shared with other runs", "one archive is unpacked"]
    assert steps_of(mode="copy", unpack="never") == [
        "a copy of its own, which the script may write to",
        "an archive stays as it is",
    ]
    assert steps_of(unpack="always", archive_names="gbk", expect=PIN)[1:] == [
        "one archive is unpacked, however large it becomes, its names read as gbk",
        f"refused unless it is {PIN}",
    ]
    assert steps_of(shard_by="rank")[2] == (
        "only the share of this machine: with one machine all files"
    )


def test_the_check_shows_a_streamed_channel_without_a_folder() -> None:
    plan = plan_of(mode="stream")

    assert plan["inputs"][0]["folder"] is None
    lines = preview_text(plan).splitlines()
    index = lines.index("  input   data_url: s3://b/data/")
    assert lines[index + 1] == (
        "          -> not copied: the script gets the url, and the credentials of the store as "
        "AWS_* in its environment"
    )


def test_credentials_are_promised_for_s3_only() -> None:
    assert steps_of(mode="stream", url="gs://b/data/") == ["not copied: the script gets the url"]
