"""Telling before a run whether its inputs and outputs can be had."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_faults import Fault, fault_proxy
from trainjob.errors import Problem, StoreError
from trainjob.storage.checkpoint_restore import restore_checkpoints
from trainjob.storage.probe import (
    checkpoint_problems,
    input_problems,
    log_problems,
    output_problems,
)
from trainjob.storage.settings import StoreSettings
from trainjob.storage.upload import upload_tree


def told(problems) -> str:
    (problem,) = problems
    assert problem.field == "inputs[0].url"
    return str(problem)


def test_a_folder_with_files_is_an_input(place):
    place.put("deep/file", b"1")

    assert input_problems("inputs[0].url", place.url, place.settings) == []


def test_nothing_there_is_no_input(place):
    problem = told(input_problems("inputs[0].url", f"{place.url}/no", place.settings))

    assert "asked for a folder with files at" in problem
    assert "found no file there; check the url" in problem


@pytest.mark.parametrize("name", ["data.csv", "data.zip"])
def test_a_single_file_is_an_input(place, name):
    place.put(name, b"1")

    assert input_problems("inputs[0].url", f"{place.url}/{name}", place.settings) == []


def test_a_new_folder_is_an_output_and_asking_leaves_nothing(place):
    assert output_problems("outputs[0].url", f"{place.url}/new/er", place.settings) == []
    assert place.paths() == []


def test_asking_makes_no_folder(tmp_path):
    assert output_problems("outputs[0].url", str(tmp_path / "a" / "b"), None) == []
    assert list(tmp_path.iterdir()) == []


def test_an_output_with_files_is_refused(place):
    place.put("file", b"1")

    problem = told(output_problems("inputs[0].url", place.url, place.settings))

    assert "found files in it; use an empty folder or put {run_id} into the url" in problem


def test_with_a_run_id_the_folder_above_may_hold_files(place):
    place.put("run-1/file", b"1")
    before = place.paths()

    for url in ("/{run_id}/", "/run-{run_id}", "/{run_id}/model"):
        assert output_problems("outputs[0].url", place.url + url, place.settings) == []

    assert place.paths() == before


def test_a_file_in_the_way_of_an_output_is_named(place):
    place.put("out", b"1")

    problem = told(output_problems("inputs[0].url", f"{place.url}/out", place.settings))

    assert "found a file of that name" in problem


def test_rights_that_begin_at_the_prefix_are_enough(s3, s3_place, folder):
    (folder / "model.pt").write_bytes(b"weights")

    def rule(method: str, path: str) -> Fault:
        return "403" if method == "HEAD" else None  # as for the object s3://bucket/home/me

    with fault_proxy(s3.port, rule) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        for url in (s3_place.url, s3_place.url + "/{run_id}/"):
            assert output_problems("outputs[0].url", url, settings) == []
            assert log_problems("logs.url", url, settings) == []
            assert checkpoint_problems("checkpoints.url", url, settings, job="digits") == []
        upload_tree(folder, s3_place.url, settings, run_id="run", facts={}, label="train_url")

    assert s3_place.get("model.pt") == b"weights"


def test_a_place_that_this_user_may_not_look_at_is_named(tmp_path):
    (tmp_path / "vault").mkdir(0)
    if os.access(tmp_path / "vault", os.R_OK):
        pytest.skip("nothing is hidden from this user")

    for url in (f"{tmp_path}/vault/me/out", f"{tmp_path}/vault/me/{{run_id}}"):
        problem = told(output_problems("inputs[0].url", url, None))

        assert "found permission denied" in problem


def test_a_file_above_a_local_output_is_named(tmp_path):
    (tmp_path / "file").write_text("x")

    problem = told(output_problems("inputs[0].url", f"{tmp_path}/file/below/it", None))

    assert f"found '{tmp_path}/file' is a file, not a folder; use another folder" in problem


@pytest.mark.parametrize("place", ["disk", "disk/below/it", "disk/{run_id}/"])
def test_a_link_to_a_disk_that_is_not_there_is_named(tmp_path, folder, place):
    (tmp_path / "disk").symlink_to(tmp_path / "not mounted")
    (folder / "model.pt").write_bytes(b"weights")
    url = f"{tmp_path}/{place}"

    problem = told(output_problems("inputs[0].url", url, None))
    with pytest.raises(StoreError, match="a link that leads to nothing, is in the place of a f"):
        upload_tree(folder, url, None, run_id="run", facts={}, label="train_url")

    assert f"found '{tmp_path}/disk' is a link that leads to nothing; use another" in problem


def test_a_read_only_place_of_this_machine_is_named():
    problem = told(output_problems("inputs[0].url", "/proc/new", None))

    assert "asked for an empty folder that can be written at '/proc/new'" in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)

    problem = told(output_problems("inputs[0].url", f"{tmp_path}/locked/out", None))

    assert "found permission denied" in problem


def test_a_marker_alone_does_not_fill_an_output(s3_place):
    s3_place.put("", b"")

    assert output_problems("outputs[0].url", s3_place.url, s3_place.settings) == []


@pytest.mark.parametrize("ask", [input_problems, output_problems])
def test_a_missing_bucket_is_named(s3, ask):
    problem = told(ask("inputs[0].url", "s3://no-such-bucket/x/", s3.settings))

    assert "found no bucket of that name; create the bucket or correct its name" in problem


@pytest.mark.parametrize("ask", [input_problems, output_problems])
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_credentials_are_told_and_not_shown(s3, s3_place, ask, wrong):
    value = "wr0ng-s3cret" if wrong == "secret_key" else "wr0ng-key"
    settings = replace(s3.settings, **{wrong: value})

    problem = told(ask("inputs[0].url", s3_place.url, settings))

    assert "found the store refuses these credentials" in problem
    assert "wr0ng" not in problem
    assert "admin-secret" not in problem


def test_read_only_credentials_are_no_output(s3, s3_place):
    s3_place.put("file", b"1")

    assert input_problems("inputs[0].url", s3_place.url, s3.reader_settings) == []
    problem = told(output_problems("inputs[0].url", f"{s3_place.url}/new", s3.reader_settings))

    assert "found the credentials are not allowed to do this (PutObject: AccessDenied)" in problem


def test_an_output_that_can_be_written_but_not_read_is_refused(s3, s3_place):
    def unreadable(method: str, path: str) -> Fault:
        return "403" if method == "GET" and ".trainjob-probe-" in path else None

    with fault_proxy(s3.port, unreadable) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        problem = told(output_problems("inputs[0].url", f"{s3_place.url}/new", settings))
        methods = [method for method, path in proxy.requests if ".trainjob-probe-" in path]

    assert "found the credentials are not allowed to do this (GetObject: AccessDenied)" in problem
    assert methods[:2] == ["PUT", "GET"]
    assert s3_place.paths() == []


@pytest.mark.parametrize("key", [None, "only-the-key"])
def test_missing_credentials_are_told_fast(s3, s3_place, key):
    settings = StoreSettings(endpoint_url=s3.endpoint_url, access_key=key)
    started = time.monotonic()

    problem = told(input_problems("inputs[0].url", s3_place.url, settings))

    assert "found no complete credentials" in problem
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("ask", [input_problems, output_problems])
def test_a_store_that_does_not_answer_is_a_problem(s3, s3_place, ask):
    settings = replace(s3.settings, endpoint_url="http://127.0.0.1:1")

    problem = told(ask("inputs[0].url", s3_place.url, settings))

    assert "found no whole answer from the store at http://127.0.0.1:1" in problem
    assert "check the endpoint and the network" in problem


@pytest.mark.parametrize("ask", [input_problems, output_problems])
@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://BAD BUCKET/x", "http://127.0.0.1:1"),
        ("s3://bucket/x", "no address"),
        ("gs://bucket/x", None),
    ],
)
def test_what_can_not_be_asked_at_all_is_a_problem(s3, ask, url, endpoint):
    settings = replace(s3.settings, endpoint_url=endpoint)

    assert repr(url) in told(ask("inputs[0].url", url, settings))


def test_a_bucket_named_by_the_run_is_a_problem(s3):
    problem = told(output_problems("inputs[0].url", "s3://runs-{run_id}/x", s3.settings))

    assert "write {run_id} after the name of the bucket" in problem


def test_the_environment_is_used_without_settings(s3, s3_place, monkeypatch):
    s3_place.put("file", b"1")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)

    assert input_problems("inputs[0].url", s3_place.url, None) == []


def test_settings_come_from_the_environment(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL": "https://general",
        "AWS_ENDPOINT_URL_S3": "https://s3",
        "AWS_DEFAULT_REGION": "r1",
        "AWS_CA_BUNDLE": "/ca.pem",
    }.items():
        monkeypatch.setenv(name, value)

    settings = StoreSettings.from_env()

    assert settings == StoreSettings(
        endpoint_url="https://s3",
        region="r1",
        access_key="key",
        secret_key="secret",
        session_token="token",
        ca_bundle=Path("/ca.pem"),
    )
    assert "secret" not in repr(settings)
    assert "token" not in repr(settings)


@pytest.mark.parametrize(
    ("endpoint", "style"),
    [
        ("https://obs.cn-north-4.myhuaweicloud.com", "virtual"),
        ("https://cos.ap-beijing.myqcloud.com:443/", "virtual"),
        ("https://OSS-cn-hangzhou.aliyuncs.com", "virtual"),
        ("https://s3.example.com/?at=.myqcloud.com", "auto"),
        ("http://127.0.0.1:8333", "auto"),
        ("http://[", "auto"),
    ],
)
def test_a_store_that_wants_the_bucket_in_its_host_is_known_by_its_endpoint(
    monkeypatch, endpoint, style
):
    """No variable says it, and by botocore's rules the bucket is in the path of every endpoint."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    assert StoreSettings.from_env().addressing_style == style


def test_an_empty_environment_gives_empty_settings():
    assert StoreSettings.from_env() == StoreSettings()


def checkpoint_ask(field: str, url: str, settings: StoreSettings | None) -> list[Problem]:
    return checkpoint_problems(field, url, settings, job="digits")


@pytest.mark.parametrize("ask", [checkpoint_ask, log_problems])
def test_a_new_folder_is_a_place_for_checkpoints_and_logs(place, ask):
    assert ask("inputs[0].url", f"{place.url}/new/er", place.settings) == []
    assert place.paths() == []


@pytest.mark.parametrize("ask", [checkpoint_ask, log_problems])
def test_a_file_in_the_way_of_checkpoints_and_logs_is_named(place, ask):
    place.put("out", b"1")

    assert "a file of that name" in told(ask("inputs[0].url", f"{place.url}/out", place.settings))


def test_logs_need_an_empty_folder(place):
    place.put("file", b"1")

    problem = told(log_problems("inputs[0].url", place.url, place.settings))

    assert "found files in it; use an empty folder or put {run_id} into the url" in problem
    assert log_problems("logs.url", f"{place.url}/{{run_id}}/", place.settings) == []


def test_checkpoints_of_the_same_job_are_gone_on_from_and_others_are_refused(place, tmp_path):
    restore_checkpoints(place.url, tmp_path / "c", place.settings, job="digits", run_id="r")
    before = place.paths()

    assert checkpoint_problems("c.url", place.url, place.settings, job="digits") == []
    problem = told(checkpoint_problems("inputs[0].url", place.url, place.settings, job="mnist"))

    assert problem == (
        f"inputs[0].url: asked for a folder for checkpoints of the job 'mnist' at {place.url!r}, "
        "found not empty but with checkpoints of the job 'digits'; "
        "use another folder, or name the job 'digits' to go on from them"
    )
    assert place.paths() == before


def test_a_folder_of_other_programs_is_no_place_for_checkpoints(place):
    place.put("precious", b"1")

    problem = told(checkpoint_ask("inputs[0].url", place.url, place.settings))

    assert "found not empty but 1 files, such as 'precious'; use an empty folder" in problem


@pytest.mark.parametrize("ask", [checkpoint_ask, log_problems])
def test_read_only_credentials_keep_neither_checkpoints_nor_logs(s3, s3_place, ask):
    problem = told(ask("inputs[0].url", s3_place.url, s3.reader_settings))

    assert "found the credentials are not allowed to do this (PutObject: AccessDenied)" in problem


@pytest.mark.parametrize("ask", [checkpoint_ask, log_problems])
def test_a_store_that_is_away_may_be_back_for_checkpoints_and_logs(s3, s3_place, ask):
    settings = replace(s3.settings, endpoint_url="http://127.0.0.1:1")

    (problem,) = ask("inputs[0].url", s3_place.url, settings)

    assert problem.may_pass
