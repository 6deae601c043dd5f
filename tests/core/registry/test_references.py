"""Saved versions in a job: what they become, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainjob.algorithm import ScriptAlgorithm
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.job_changes import changed_job
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.records import SavedAlgorithm, SavedDataset, SavedModel
from trainjob.registry.references import UNRESOLVED
from trainjob.registry.registry import Registry

PRINTS = {key: "sha256:" + digit * 64 for key, digit in (("code", "c"), ("v1", "1"), ("v2", "2"))}
CODE = {"url": "s3://code/digits/", "expect": PRINTS["code"]}


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with two versions of a dataset, a model, and an algorithm that declares all."""
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    registry = registry_of_machine()
    for i in (1, 2):
        add_dataset(registry, "digits", url=f"s3://data/digits/{i}/", fingerprint=PRINTS[f"v{i}"])
    registry.add(
        SavedModel(
            name="net",
            version=1,
            created="now",
            url="s3://models/net/",
            fingerprint=PRINTS["v1"],
            is_read=True,
        )
    )
    add_algorithm(
        registry,
        inputs=[{"name": "data_url"}, {"name": "ckpt_url", "required": False}],
        outputs=[{"name": "train_url"}],
    )
    return registry


def add_dataset(registry: Registry, name: str, **fields: Any) -> None:
    values = {"url": "s3://data/x/", "fingerprint": PRINTS["v1"], "is_read": True}
    registry.add(SavedDataset(name=name, version=1, created="now", **values | fields))


def add_algorithm(registry: Registry, name: str = "train", **fields: Any) -> None:
    definition = {"kind": "script", "code": CODE, "boot_file": "train.py"}
    values: dict[str, Any] = {
        "name": name,
        "version": 1,
        "created": "now",
        "definition": definition,
        "num_entries": 1,
        "size_bytes": 1,
    }
    registry.add(SavedAlgorithm.model_validate(values | fields))


def job_of(**changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "name": "x",
        "algorithm": "train@1",
        "inputs": [{"name": "data_url", "dataset": "digits@1"}],
        "outputs": [{"name": "train_url", "url": "s3://out/"}],
    }
    return job | changes


def problems_in(job: dict[str, Any]) -> list[str]:
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(job)
    return [str(problem) for problem in raised.value.problems]


def test_a_job_gets_what_its_references_name() -> None:
    job = TrainingJob.parse(job_of())

    assert isinstance(job.algorithm, ScriptAlgorithm)
    assert (job.algorithm.registered, job.algorithm.boot_file) == ("train@1", "train.py")
    assert job.algorithm.code.model_dump() == {**CODE, "ref": None}
    [channel] = job.inputs
    assert (channel.dataset, channel.url) == ("digits@1", "s3://data/digits/1/")
    assert channel.expect == PRINTS["v1"]
    assert job.saved_versions == ["algorithm train@1", "dataset digits@1"]


@pytest.mark.parametrize("reference", ["digits", "digits@latest", "digits@2"])
def test_the_latest_version_is_pinned_by_its_number(reference, registry) -> None:
    job = TrainingJob.parse(job_of(inputs=[{"name": "data_url", "dataset": reference}]))
    add_dataset(registry, "digits", url="s3://data/digits/3/")

    again = TrainingJob.parse(job.model_dump(mode="json"))

    assert again == job
    assert (again.inputs[0].dataset, again.inputs[0].expect) == ("digits@2", PRINTS["v2"])


def test_a_job_that_was_read_needs_no_registry(registry, monkeypatch, tmp_path) -> None:
    job = TrainingJob.parse(job_of())
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "nothing"))

    assert TrainingJob.parse(job.model_dump(mode="json")) == job


def test_a_model_is_a_channel() -> None:
    inputs = [{"name": "data_url", "url": "s3://b/d/"}, {"name": "ckpt_url", "model": "net"}]

    job = TrainingJob.parse(job_of(inputs=inputs))

    assert job.inputs[1].url == "s3://models/net/"
    assert job.saved_versions == ["algorithm train@1", "model net@1"]


def test_a_form_that_gives_every_key_may_name_a_version() -> None:
    given = {"name": "data_url", "url": "", "dataset": "digits@1", "model": None, "mode": "link"}
    given |= {"unpack": "auto", "archive_names": "utf-8", "expect": None}

    assert TrainingJob.parse(job_of(inputs=[given])).inputs[0].url == "s3://data/digits/1/"


def test_data_is_unpacked_as_its_version_says(registry) -> None:
    add_dataset(registry, "zipped", url="s3://d/x.zip", unpack="always", archive_names="gbk")

    job = TrainingJob.parse(
        job_of(inputs=[{"name": "data_url", "dataset": "zipped"}], algorithm=plain_algorithm())
    )

    assert (job.inputs[0].unpack, job.inputs[0].archive_names) == ("always", "gbk")


def plain_algorithm() -> dict[str, Any]:
    return {"code": {"url": "s3://c/"}, "boot_file": "train.py"}


def test_all_problems_of_a_job_come_at_once() -> None:
    job = job_of(
        name="-x",
        algorithm="train@7",
        inputs=[{"name": "data_url", "dataset": "digits@9"}, {"name": "ckpt_url", "model": "nte"}],
        outputs=[{"name": "train_url", "url": "ftp://out/"}],
        launcher="horovod",
    )

    found = problems_in(job)

    starts = [
        "algorithm: asked for the saved algorithm 'train@7', found only train@1; ",
        "inputs[0].dataset: asked for the saved dataset 'digits@9', found only digits@1, digits@2;",
        "inputs[1].model: asked for the saved model 'nte@latest', found only net in ",
        "name: ",
        "launcher: ",
        "outputs[0].url: ",
    ]
    assert len(found) == len(starts)
    for start in starts:
        assert any(problem.startswith(start) for problem in found), (start, found)


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (
            {"dataset": "digits@1", "url": "s3://other/"},
            "inputs[0].dataset: asked for 'digits@1', found url beside it; "
            "give one of url, dataset and model",
        ),
        (
            {"dataset": "digits@1", "model": "net"},
            "inputs[0].dataset: asked for 'digits@1', found model beside it; "
            "give one of url, dataset and model",
        ),
        (
            {"dataset": "digits@1", "mode": "stream"},
            "inputs[0].mode: asked for stream, found the saved dataset digits@1, whose files a "
            "run compares with it; use mode: link, or give the url 's3://data/digits/1/' instead",
        ),
        (
            {"dataset": "digits@1", "expect": PRINTS["v2"]},
            f"inputs[0].expect: asked for '{PRINTS['v2']}', found {PRINTS['v1']} with the saved "
            "dataset digits@1; remove expect",
        ),
        (
            {"dataset": "digits@1", "archive_names": "gbk"},
            "inputs[0].archive_names: asked for 'gbk', found utf-8 with the saved dataset "
            "digits@1; remove archive_names",
        ),
        (
            {"dataset": "../digits"},
            "inputs[0].dataset: asked for NAME, NAME@3 or NAME@latest, found '../digits'; "
            "a name has 1 to 64 letters, digits, - and _, and does not start with -",
        ),
        (
            {},
            "inputs[0].url: asked for a url, or a saved version as dataset: or model:, found ''; "
            "change it",
        ),
    ],
)
def test_what_cannot_stand_beside_a_saved_version_is_refused(channel, expected) -> None:
    found = problems_in(job_of(inputs=[{"name": "data_url", **channel}]))

    assert found == [expected]


def test_a_file_of_the_registry_that_was_changed_is_a_problem_of_the_job(registry) -> None:
    (Path(str(registry.place)) / "dataset" / "digits" / "1.yaml").write_text("x")

    [problem] = problems_in(job_of())

    assert problem.startswith("inputs[0].dataset: asked for the saved dataset digits@1 in ")


def test_channels_match_the_declared_ones_both_ways() -> None:
    job = job_of(
        inputs=[{"name": "images", "url": "s3://b/d/"}],
        outputs=[{"name": "train_url", "url": "s3://b/o/"}, {"name": "more", "url": "s3://b/m/"}],
    )

    assert problems_in(job) == [
        "inputs[0].name: asked for the input 'images', found the algorithm train@1, which "
        "declares data_url, ckpt_url; rename it, or remove it",
        "inputs: asked for the input 'data_url' (Data Source) of the algorithm train@1, found "
        "only images; add {name: data_url, url: ...} to inputs",
        "outputs[1].name: asked for the output 'more', found the algorithm train@1, which "
        "declares train_url; rename it, or remove it",
    ]


def test_a_job_without_channels_lacks_the_required_ones() -> None:
    job = {"name": "x", "algorithm": "train"}

    assert problems_in(job) == [
        "inputs: asked for the input 'data_url' (Data Source) of the algorithm train@1, found "
        "none; add {name: data_url, url: ...} to inputs",
        "outputs: asked for the output 'train_url' (Output Data) of the algorithm train@1, found "
        "none; add {name: train_url, url: ...} to outputs",
    ]


def test_an_algorithm_that_takes_no_inputs_is_given_none(registry) -> None:
    add_algorithm(registry, "alone", inputs=[])

    assert problems_in(job_of(algorithm="alone")) == [
        "inputs[0].name: asked for the input 'data_url', found the algorithm alone@1, which has "
        "no inputs; remove it, you need not set any"
    ]


def test_an_algorithm_that_declares_nothing_takes_any_channel(registry) -> None:
    add_algorithm(registry, "free")

    assert TrainingJob.parse(job_of(algorithm="free")).saved_versions[0] == "algorithm free@1"


@pytest.mark.parametrize(
    ("declared", "given", "expected"),
    [
        (
            {"sources": ["dataset"]},
            {"url": "s3://b/d/"},
            "inputs[0].url: asked for 'data_url' from dataset, as only@1 declares, found a url; "
            "give dataset: ...",
        ),
        (
            {"sources": ["storage", "model"]},
            {"dataset": "digits@1"},
            "inputs[0].dataset: asked for 'data_url' from storage or model, as only@1 declares, "
            "found the saved dataset digits@1; give url: ... or model: ...",
        ),
        (
            {"labelling": "image-classification"},
            {"dataset": "digits@1"},
            "inputs[0].dataset: asked for a dataset with labelling 'image-classification', as "
            "only@1 declares, found digits@1 with none said; choose another dataset, or register "
            "a version that says it",
        ),
        (
            {"labelling": "Object Detection"},
            {"dataset": "labelled"},
            "inputs[0].dataset: asked for a dataset with labelling 'object-detection', as only@1 "
            "declares, found labelled@1 with 'sound-classification'; choose another dataset, or "
            "register a version that says it",
        ),
        (
            {"format": "parquet"},
            {"dataset": "labelled"},
            "inputs[0].dataset: asked for a dataset with format 'parquet', as only@1 declares, "
            "found labelled@1 with 'Wav'; choose another dataset, or register a version that "
            "says it",
        ),
        (
            {"is_split": False},
            {"dataset": "labelled"},
            "inputs[0].dataset: asked for a dataset with is_split false, as only@1 declares, found "
            "labelled@1 with true; choose another dataset, or register a version that says it",
        ),
        (
            {"is_split": True},
            {"dataset": "whole"},
            "inputs[0].dataset: asked for a dataset with is_split true, as only@1 declares, found "
            "whole@1 with false; choose another dataset, or register a version that says it",
        ),
    ],
)
def test_data_of_a_form_that_the_algorithm_does_not_take_is_refused(
    registry, declared, given, expected
) -> None:
    add_dataset(registry, "whole", is_split=False)
    facts = {"labelling": "sound-classification", "format": "Wav", "is_split": True}
    add_dataset(registry, "labelled", **facts)
    add_algorithm(registry, "only", inputs=[{"name": "data_url", **declared}])

    job = job_of(algorithm="only", inputs=[{"name": "data_url", **given}])

    assert problems_in(job) == [expected]


def test_all_that_an_algorithm_does_not_take_of_a_dataset_comes_at_once(registry) -> None:
    add_dataset(registry, "other", labelling="text-classification", format="csv", is_split=True)
    wanted = {"labelling": "image-classification", "format": "images", "is_split": False}
    add_algorithm(registry, "only", inputs=[{"name": "data_url", **wanted}])

    job = job_of(algorithm="only", inputs=[{"name": "data_url", "dataset": "other"}])

    assert len(problems_in(job)) == 3


def test_a_labelling_type_and_a_format_are_found_in_any_spelling(registry) -> None:
    add_dataset(registry, "images", labelling="Image_Classification", format="PNG", is_split=True)
    wanted = {"labelling": "image classification", "format": "png", "is_split": True}
    add_algorithm(registry, "only", inputs=[{"name": "data_url", **wanted}])

    job = job_of(algorithm="only", inputs=[{"name": "data_url", "dataset": "images"}])

    assert TrainingJob.parse(job).saved_versions == ["algorithm only@1", "dataset images@1"]


def test_a_job_reads_a_version_with_the_store_that_it_was_registered_with(registry) -> None:
    add_dataset(registry, "kept", store="minio")
    add_algorithm(registry, "beside", store="minio")
    inputs = [{"name": "data_url", "dataset": "kept"}]

    job = TrainingJob.parse(job_of(algorithm="beside", inputs=inputs))
    other = TrainingJob.parse(job_of(algorithm="beside", inputs=inputs, store="mirror"))

    assert (job.store, other.store) == ("minio", "mirror")
    assert TrainingJob.parse(job.model_dump(mode="json")) == job


def test_versions_of_two_stores_need_the_word_of_the_job(registry) -> None:
    add_dataset(registry, "kept", store="minio")
    add_algorithm(registry, "far", store="archive")
    job = job_of(algorithm="far", inputs=[{"name": "data_url", "dataset": "kept"}])

    assert problems_in(job) == [
        "store: asked for one store for the whole job, found 'archive' of algorithm far@1 and "
        "'minio' of dataset kept@1; set store to the one that reaches all urls of the job"
    ]
    assert TrainingJob.parse(job | {"store": "minio"}).store == "minio"


def test_a_version_read_without_a_store_counts_as_one_more(registry) -> None:
    add_dataset(registry, "kept", store="minio")
    add_dataset(registry, "near", url="/data/near/")
    inputs = [{"name": "data_url", "dataset": "kept"}, {"name": "ckpt_url", "dataset": "digits@2"}]
    of_a_folder = [inputs[0], {"name": "ckpt_url", "dataset": "near"}]
    code = {"kind": "script", "code": {"url": "/code"}, "boot_file": "train.py"}

    assert problems_in(job_of(algorithm=code, inputs=inputs)) == [
        "store: asked for one store for the whole job, found 'minio' of dataset kept@1 and the "
        "AWS_* environment of dataset digits@2; set store to the one that reaches all urls of the "
        "job"
    ]
    assert TrainingJob.parse(job_of(algorithm=code, inputs=of_a_folder)).store == "minio"


def test_the_rules_of_a_saved_algorithm_hold(registry) -> None:
    rule = {"name": "epochs", "type": "Integer", "minimum": 1, "maximum": 5, "default": 3}
    definition = {"kind": "script", "code": CODE, "boot_file": "t.py", "hyperparameters": [rule]}
    add_algorithm(registry, "ruled", definition=definition)

    [problem] = problems_in(job_of(algorithm="ruled", hyperparameters={"epochs": 6}))

    assert problem.startswith("hyperparameters.epochs: ")


def test_the_schema_of_the_form_takes_the_name_of_an_algorithm() -> None:
    kinds = TrainingJob.model_json_schema()["properties"]["algorithm"]["anyOf"]

    assert kinds[-1] == {"type": "string", "title": "Saved algorithm"}


def resolved_job(**changes: Any) -> dict[str, Any]:
    return TrainingJob.parse(job_of(**changes)).model_dump(mode="json")


def test_a_dataset_beside_the_files_of_another_version_is_refused() -> None:
    job = resolved_job()
    job["inputs"][0]["dataset"] = "digits@2"

    assert problems_in(job) == [
        f"inputs[0].dataset: asked for 'digits@2', found {PRINTS['v1']} as expect beside it, and "
        f"{PRINTS['v2']} saved as digits@2; remove url and expect, or name the version that they "
        "are of"
    ]


def test_a_channel_that_was_read_names_one_version() -> None:
    job = resolved_job()
    job["inputs"][0] |= {"model": "net@1"}
    nameless = resolved_job()
    nameless["inputs"][0]["dataset"] = "digits"

    assert problems_in(job) == [
        "inputs[0].dataset: asked for 'digits@1', found model beside it; "
        "give one of url, dataset and model"
    ]
    assert problems_in(nameless) == [
        "inputs[0].dataset: asked for the version whose url and expect are given, found 'digits'; "
        "remove url and expect, or write NAME@3"
    ]


def test_a_file_cannot_claim_versions_that_are_not_there(tmp_path: Path) -> None:
    job = resolved_job()
    job["inputs"][0]["dataset"] = "nope@9"
    job["algorithm"]["registered"] = "ghost@7"
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))

    with pytest.raises(JobError) as raised:
        TrainingJob.load(file)

    fields = [problem.field for problem in raised.value.problems]
    assert fields == ["algorithm.registered", "inputs[0].dataset"]
    assert "asked for the saved algorithm 'ghost@7', found only train in" in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("boot_file", "other.py"),
        ("hyperparameters", [{"name": "lr", "type": "Float"}]),
        ("allow_custom_hyperparameters", True),
        ("outputs", []),
    ],
)
def test_an_algorithm_with_other_values_is_not_the_saved_one(key: str, value: Any) -> None:
    job = resolved_job()
    job["algorithm"][key] = value

    found = problems_in(job)

    assert found[0] == (
        f"algorithm.registered: asked for the saved algorithm 'train@1', found another {key} "
        "beside it; write algorithm: train@1 alone, or remove registered"
    )


def test_a_job_that_was_read_keeps_the_channels_that_its_algorithm_declares() -> None:
    job = resolved_job()
    job["inputs"][0]["name"] = "images"
    alone = resolved_job()
    alone["algorithm"]["registered"] = None
    alone["outputs"] = []

    assert problems_in(job) == [
        "inputs[0].name: asked for the input 'images', found the algorithm train@1, which "
        "declares data_url, ckpt_url; rename it, or remove it",
        "inputs: asked for the input 'data_url' (Data Source) of the algorithm train@1, found "
        "only images; add {name: data_url, url: ...} to inputs",
    ]
    assert problems_in(alone) == [
        "outputs: asked for the output 'train_url' (Output Data) of the algorithm, found "
        "none; add {name: train_url, url: ...} to outputs",
    ]


def test_a_job_that_was_read_before_channels_were_kept_is_held_to_them() -> None:
    job = resolved_job()
    del job["algorithm"]["inputs"], job["algorithm"]["outputs"]
    good = TrainingJob.parse(job)
    job["outputs"] = []

    assert good.algorithm.outputs is not None
    assert problems_in(job)[0].startswith("outputs: asked for the output 'train_url'")


def test_the_form_of_the_data_is_asked_of_a_job_that_was_read(registry) -> None:
    add_dataset(registry, "labelled", labelling="sound", fingerprint=PRINTS["v2"])
    rule = {"name": "data_url", "sources": ["dataset"], "labelling": "image"}
    add_algorithm(registry, "only", inputs=[rule])
    job = TrainingJob.parse(
        job_of(algorithm=plain_algorithm(), inputs=[{"name": "data_url", "dataset": "labelled"}])
    ).model_dump(mode="json")
    job["algorithm"] = "only@1"

    assert problems_in(job) == [
        "inputs[0].dataset: asked for a dataset with labelling 'image', as only@1 declares, found "
        "labelled@1 with 'sound'; choose another dataset, or register a version that says it"
    ]


def test_each_new_version_is_held_to_the_rules_of_the_algorithm(registry) -> None:
    for labelling in ("image", "sound"):
        add_dataset(registry, "growing", labelling=labelling)
    add_algorithm(registry, "only", inputs=[{"name": "data_url", "labelling": "image"}])
    job = resolved_job(
        algorithm="only", inputs=[{"name": "data_url", "dataset": "growing@1"}], outputs=[]
    )
    job["inputs"][0] |= UNRESOLVED | {"dataset": "growing@2"}  # as schedule --on-dataset does

    [problem] = problems_in(job)

    assert problem.startswith("inputs[0].dataset: asked for a dataset with labelling 'image', as")


def test_a_dataset_that_was_read_is_still_one(registry) -> None:
    add_algorithm(registry, "only", inputs=[{"name": "data_url", "sources": ["dataset"]}])
    job = resolved_job(algorithm=plain_algorithm())
    job["algorithm"] = "only@1"
    registry.delete("dataset", "digits", 1)

    assert TrainingJob.parse(job).saved_versions == ["algorithm only@1", "dataset digits@1"]


def changed(job: dict[str, Any], *changes: str) -> TrainingJob:
    return changed_job(job, changes, "job")[0]


@pytest.mark.parametrize("channel", [{"dataset": "digits@1"}, {"url": "s3://b/d/"}])
def test_a_change_to_another_version_takes_its_files(channel: dict[str, Any]) -> None:
    job = resolved_job(inputs=[{"name": "data_url", **channel}])

    other = changed(job, "inputs[0].dataset=digits@2")
    model = changed(job, "inputs[0].model=net@1")

    assert (other.inputs[0].url, other.inputs[0].expect) == ("s3://data/digits/2/", PRINTS["v2"])
    assert model.saved_versions == ["algorithm train@1", "model net@1"]
    with pytest.raises(JobError, match="asked for the saved dataset 'nope@9', found only"):
        changed(job, "inputs[0].dataset=nope@9")


@pytest.mark.parametrize(
    ("change", "versions"),
    [
        ("inputs[0].dataset=digits", ["algorithm train@1", "dataset digits@2"]),
        ("inputs=[{name: data_url, model: net}]", ["algorithm train@1", "model net@1"]),
        ("algorithm=train", ["algorithm train@1", "dataset digits@1"]),
    ],
)
def test_a_version_of_a_change_is_that_of_the_moment_wherever_the_run_is(
    monkeypatch, tmp_path: Path, change: str, versions: list[str]
) -> None:
    job = resolved_job()

    _, data = changed_job(job, [change], "job")

    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "nothing"))
    assert TrainingJob.parse(data).saved_versions == versions


def test_a_rerun_needs_no_registry(monkeypatch, tmp_path) -> None:
    job = resolved_job()
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "nothing"))

    again = changed(job, "name=again")

    assert again.saved_versions == ["algorithm train@1", "dataset digits@1"]


def test_a_change_to_a_url_leaves_the_version() -> None:
    job = changed(resolved_job(), "inputs[0].url=s3://b/d/")

    assert (job.inputs[0].url, job.inputs[0].expect) == ("s3://b/d/", None)
    assert job.saved_versions == ["algorithm train@1"]


@pytest.mark.parametrize(
    "change",
    [
        "algorithm.boot_file=other.py",
        "algorithm.hyperparameters=[]",
        "algorithm.allow_custom_hyperparameters=true",
        "algorithm.code.url=s3://other/",
    ],
)
def test_a_changed_algorithm_is_no_saved_one(change: str) -> None:
    job = changed(resolved_job(), change)

    assert job.saved_versions == ["dataset digits@1"]
