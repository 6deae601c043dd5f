"""Changes to a job as they are typed: what a value becomes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.errors import JobError
from trainjob.job_changes import changed_job


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return make_job(
        tmp_path,
        hyperparameters={"lr": 0.1, "layers": [8, 4]},
        env={"LEVEL": "1"},
        secrets={"HF_TOKEN": "my-token"},
    )


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("hyperparameters.lr=1e-3", ("hyperparameters", "lr"), 0.001),
        ("hyperparameters.lr=no", ("hyperparameters", "lr"), "no"),
        ("hyperparameters.lr='1'", ("hyperparameters", "lr"), "1"),
        ("hyperparameters.lr=", ("hyperparameters", "lr"), ""),
        ("hyperparameters.layers=[16, 8]", ("hyperparameters", "layers"), [16, 8]),
        ("+hyperparameters.seed=3", ("hyperparameters", "seed"), 3),
        ("env.LEVEL=2", ("env", "LEVEL"), "2"),
        ("+env.COLOR=a=b: [c", ("env", "COLOR"), "a=b: [c"),
        ("description=12", ("description",), "12"),
        ("name=2026", ("name",), "2026"),
        ("limits.auto_restart=3", ("limits", "auto_restart"), 3),
        ("limits.target={metric: loss, at_most: 1}", ("limits", "target", "at_most"), 1),
        ("checkpoints.url=/tmp/c", ("checkpoints", "url"), "/tmp/c"),
        ("inputs[0].name=other", ("inputs", 0, "name"), "other"),
    ],
)
def test_a_value_is_of_the_type_that_the_job_wants(
    job: dict[str, Any], change: str, field: tuple[Any, ...], value: Any
) -> None:
    changed, _ = changed_job(job, [change], "job")

    found: Any = changed.model_dump(mode="json")
    for part in field:
        found = found[part]
    assert found == value
    assert type(found) is type(value) or isinstance(value, int)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("hyperparameters.lrr=1", "did you mean 'lr'? Write +hyperparameters.lrr="),
        ("env.LEVELS=1", "did you mean 'LEVEL'?"),
        ("secrets.HF_TOKN=b", "did you mean 'HF_TOKEN'? Write +secrets.HF_TOKN=… to add it"),
        ("+env.API_KEY=a-secret-of-mine", "env.API_KEY: asked for a value that everyone"),
        ("env={API_KEY: a-secret-of-mine}", "env.API_KEY: asked for a value that everyone"),
        ("limit.auto_stop=1h", "did you mean 'limits'?"),
        ("limits.auto_stopp=1h", "did you mean 'auto_stop'?"),
        ("limits.auto_stop=soon", "limits.auto_stop: asked for a duration with its unit"),
        ("hyperparameters.lr=null", "hyperparameters.lr: asked for"),
        ("hyperparameters.lr={a: 1}", "hyperparameters.lr: asked for"),
        ("inputs[3].url=x", "found 1 there"),
        ("name.first=x", "found 'copy' above it"),
        ("hyperparameters.lr", "asked for KEY=VALUE"),
        ("=3", "asked for KEY=VALUE"),
    ],
)
def test_what_the_job_does_not_have_is_refused(
    job: dict[str, Any], change: str, expected: str
) -> None:
    with pytest.raises(JobError) as raised:
        changed_job(job, [change], "job")

    assert expected in str(raised.value)


def test_the_old_job_is_left_as_it_is(job: dict[str, Any]) -> None:
    before = repr(job)

    changed_job(job, ["hyperparameters.lr=1", "limits.auto_stop=1h"], "job")

    assert repr(job) == before


def test_a_job_that_was_wrong_can_be_mended(job: dict[str, Any]) -> None:
    wrong = job | {"launcher": "single", "resources": {"processes_per_node": 2}}

    changed, data = changed_job(wrong, ["launcher=torchrun"], "job")

    assert changed.launcher == "torchrun"
    assert data["launcher"] == "torchrun"


def test_a_secret_that_the_old_job_has_in_its_env_does_not_keep_it_from_running_again(
    job: dict[str, Any],
) -> None:
    job["env"]["WANDB_API_KEY"] = "sent-long-ago"

    changed, _ = changed_job(job, ["hyperparameters.lr=1"], "job")

    assert changed.env["WANDB_API_KEY"] == "sent-long-ago"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ("inputs[0].url=data2/", ("inputs", 0, "url"), "HERE/data2/"),
        ("inputs=[{name: data_url, url: ../d}]", ("inputs", 0, "url"), "ABOVE/d"),
        ("algorithm.code.url=code2", ("algorithm", "code", "url"), "HERE/code2"),
        ("checkpoints={url: 'c/{run_id}'}", ("checkpoints", "url"), "HERE/c/{run_id}"),
        ("inputs[0].url=s3://b/d/", ("inputs", 0, "url"), "s3://b/d/"),
        ("inputs[0].name=data_url", ("inputs", 0, "url"), "data/"),
        ("hyperparameters.lr=1", ("outputs", 0, "url"), "out/{run_id}"),
    ],
)
def test_a_relative_path_of_a_change_is_below_the_current_folder_and_others_stay(
    job: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    field: tuple[Any, ...],
    expected: str,
) -> None:
    """Those of a form are relative to the checkout of the worker."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    job["inputs"] = [{"name": "data_url", "url": "data/"}]
    job["outputs"] = [{"name": "train_url", "url": "out/{run_id}"}]

    changed, data = changed_job(job, [change], "job")

    wanted = expected.replace("HERE", str(here)).replace("ABOVE", str(tmp_path))
    for found in (data, changed.model_dump(mode="json")):
        value: Any = found
        for part in field:
            value = value[part]
        assert value == wanted
