"""What a script leaves beside regular files: named all at once, and nothing else is lost for it."""

import os
import socket

import pytest

from trainjob.errors import UnsafeKey
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.stage import stage_tree
from trainjob.storage.store import open_store
from trainjob.storage.upload import upload_tree


@pytest.fixture
def outputs(tmp_path, write_tree):
    return write_tree(tmp_path / "outputs", {"model.pt": b"weights", "logs/metrics.json": b"{}"})


@pytest.fixture
def upload(outputs, place):
    def run(source=outputs, **others):
        return upload_tree(
            source,
            place.url,
            place.settings,
            run_id="run-1",
            facts={},
            label="train_url",
            **others,
        )

    return run


@pytest.fixture
def mirror(outputs, place, tmp_path):
    return OutputMirror(
        outputs,
        place.url,
        place.settings,
        run_id="run-1",
        label="train_url",
        journal=tmp_path / "journal",
    )


@pytest.fixture
def odd(outputs, tmp_path, monkeypatch) -> dict[str, str]:
    """One of every kind of thing that is no file to upload, with what is said of it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"a key")
    os.mkfifo(outputs / "logs" / "pipe")
    monkeypatch.chdir(outputs)  # since the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (outputs / "broken").symlink_to("nowhere")
    (outputs / "loop").symlink_to("loop")
    (outputs / "circle").symlink_to(".")
    (outputs / "stolen").symlink_to(tmp_path / "elsewhere" / "secret")
    (outputs / "stolen folder").symlink_to(tmp_path / "elsewhere")
    (outputs / "_SUCCESS").write_bytes(b"")
    return {
        "logs/pipe": "is not a regular file",
        "socket": "is not a regular file",
        "broken": "is a link that leads to nothing",
        "loop": "is a link that leads to nothing",
        "circle": "is a link to a folder that it is in",
        "stolen": "is a link out of the folder",
        "stolen folder": "is a link out of the folder",
        "_SUCCESS": "has a name that trainjob uses for itself",
    }


def test_what_cannot_be_uploaded_is_named_at_once_and_the_rest_is_there(upload, place, odd):
    with pytest.raises(UnsafeKey) as caught:
        upload()

    for path, reason in odd.items():
        assert f"{path!r} {reason}" in str(caught.value)
    assert "2 files uploaded" in str(caught.value)
    assert not caught.value.retryable
    assert set(place.paths()) == {"model.pt", "logs/metrics.json", RECEIPT}
    assert place.get("model.pt") == b"weights"


def test_what_is_not_all_is_no_result_and_says_what_is_missing(upload, place, odd):
    with pytest.raises(UnsafeKey):
        upload()

    report = verify_receipt(place.url, place.settings)
    assert not report.is_result
    assert {problem.partition(": ")[0] for problem in report.problems} == odd.keys()
    place.put(SUCCESS, b"")
    assert "_SUCCESS: there, though not all was uploaded" in (
        verify_receipt(place.url, place.settings).problems
    )


def test_a_retry_without_the_odd_things_completes_the_upload(upload, outputs, place, odd):
    with pytest.raises(UnsafeKey):
        upload()
    for path in odd:
        (outputs / path).unlink()

    upload()

    assert verify_receipt(place.url, place.settings).is_result


def test_what_a_broken_off_training_left_is_uploaded_with_its_gaps_in_the_receipt(
    upload, place, odd
):
    receipt = upload(state="Failed")

    assert receipt.left_out.keys() == odd.keys()
    assert read_receipt(place.url, place.settings) == receipt
    assert {file.path for file in receipt.files} == {"model.pt", "logs/metrics.json"}


def test_nothing_but_odd_things_is_named_as_such(upload, tmp_path, place):
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "pipe")

    with pytest.raises(UnsafeKey, match="'pipe' is not a regular file"):
        upload(tmp_path / "odd")

    assert place.paths() == []


@pytest.fixture
def vault(outputs, tmp_path):
    """A folder beside the outputs that this user may not look into."""
    (tmp_path / "vault" / "inner").mkdir(parents=True)
    (tmp_path / "vault").chmod(0)
    if os.access(tmp_path / "vault", os.R_OK):
        pytest.skip("nothing is hidden from this user")
    yield tmp_path / "vault"
    (tmp_path / "vault").chmod(0o700)


def test_links_that_nobody_can_follow_keep_nothing_else_back(upload, mirror, outputs, place):
    (outputs / "long").symlink_to("a" * 300)
    (outputs / "loop").symlink_to("loop/below")

    mirror.push(is_final=True)
    with pytest.raises(UnsafeKey, match="'long' is a link that leads to nothing, 'loop' is a link"):
        upload()

    assert place.get("model.pt") == b"weights"


def test_a_link_to_where_this_user_may_not_look_keeps_nothing_else_back(
    upload, mirror, outputs, place, vault
):
    (outputs / "stolen").symlink_to(vault / "inner" / "key")

    mirror.push(is_final=True)
    with pytest.raises(UnsafeKey, match="'stolen' is a link out of the folder"):
        upload()

    assert place.get("model.pt") == b"weights"


def test_a_folder_that_this_user_may_not_search_keeps_nothing_else_back(
    upload, outputs, place, vault
):
    (outputs / "logs" / "latest").symlink_to("metrics.json")
    (outputs / "logs").chmod(0o600)

    with pytest.raises(UnsafeKey) as caught:
        upload()

    (outputs / "logs").chmod(0o700)
    assert "'logs/latest' is in, or leads to, a folder that this user may not search" in str(
        caught.value
    )
    assert "'logs/metrics.json' is a file that this user may not read" in str(caught.value)
    assert place.get("model.pt") == b"weights"


def test_a_file_from_before_1970_is_uploaded(upload, mirror, outputs, place):
    os.utime(outputs / "model.pt", (-7200, -7200))

    mirror.look()
    mirror.push(is_final=False)
    upload()

    assert verify_receipt(place.url, place.settings).is_result


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is hidden from root")
def test_what_this_user_may_not_read_keeps_nothing_else_back(upload, outputs, place):
    (outputs / "secret").touch(0)
    (outputs / "vault").mkdir(0)

    with pytest.raises(UnsafeKey, match="'secret' is a file that this user may not read"):
        upload()

    (outputs / "vault").chmod(0o700)
    assert place.get("model.pt") == b"weights"


def test_an_output_folder_that_became_a_link_is_refused_by_name(
    upload, mirror, outputs, tmp_path, place
):
    outputs.rename(tmp_path / "elsewhere")
    outputs.symlink_to(tmp_path / "elsewhere")

    for work in (upload, lambda: upload(state="Failed"), lambda: mirror.push(is_final=False)):
        with pytest.raises(UnsafeKey, match=r"outputs: .* replaced this folder by a link"):
            work()

    assert place.paths() == []


def test_links_inside_are_followed(upload, outputs, place):
    (outputs / "latest").symlink_to("model.pt")
    (outputs / "all").symlink_to("logs")

    upload()

    assert place.get("latest") == b"weights"
    assert place.get("all/metrics.json") == b"{}"


def test_folders_that_hold_nothing_are_kept(upload, outputs, place, tmp_path):
    (outputs / "empty" / "inner").mkdir(parents=True)

    receipt = upload()
    staged = stage_tree(place.url, tmp_path / "back", place.settings, "data")

    assert receipt.folders == ("empty/inner",)
    assert (tmp_path / "back" / "empty" / "inner").is_dir()
    assert len(staged.files) == 4
    assert verify_receipt(place.url, place.settings).is_result


def test_a_folder_that_is_gone_is_noticed(upload, outputs, place, tmp_path):
    (outputs / "empty").mkdir()
    upload()
    if place.url.startswith("s3"):
        place.delete("empty/")
    else:
        (place.root / "empty").rmdir()

    assert verify_receipt(place.url, place.settings).problems == ("empty/: missing",)


def test_a_folder_that_the_same_run_no_longer_leaves_is_removed(upload, outputs, place):
    (outputs / "empty").mkdir()
    upload()
    (outputs / "empty").rmdir()

    upload()

    assert "empty/" not in place.paths()
    assert not (getattr(place, "root", outputs) / "empty").exists()
    assert verify_receipt(place.url, place.settings).is_result


def test_unfinished_and_hidden_names_are_uploaded_at_the_end_alone(
    upload, mirror, outputs, place, write_tree
):
    names = {".env", "a/.hidden", ".cache/x", "model.pt.tmp", "b.part/c", ".tmp-1"}
    write_tree(outputs, dict.fromkeys(names, b"1"))

    mirror.push(is_final=True)
    during = set(place.paths())
    upload()

    assert during & names == set()
    assert "model.pt" in during
    assert names <= set(place.paths())


def path_of(size: int) -> str:
    """Return a path of so many bytes, with parts that a disk takes."""
    parts = ["d" * 199] * ((size - 1) // 200)
    return "/".join([*parts, "f" * (size - 200 * len(parts))])


def test_keys_that_s3_does_not_take_are_named_with_all_else_and_the_rest_is_there(
    s3_place, tmp_path, write_tree
):
    room = 1024 - len(f"{s3_place.prefix}/")
    fits, long, folder = path_of(room), path_of(room + 1), f"folder/{path_of(room - 7)}"
    outputs = write_tree(tmp_path / "outputs", {"model.pt": b"1", fits: b"2", long: b"3"})
    (outputs / folder).mkdir(parents=True)  # the key of its marker has one byte more
    os.mkfifo(outputs / "pipe")

    with pytest.raises(UnsafeKey) as caught:
        upload_tree(
            outputs, s3_place.url, s3_place.settings, run_id="r", facts={}, label="train_url"
        )

    told = str(caught.value)
    assert "2 files uploaded" in told
    for path in (long, folder):
        assert f"{path!r} has a key of more than the 1024 bytes that S3 takes" in told
    assert "'pipe' is not a regular file" in told
    assert set(s3_place.paths()) == {"model.pt", fits, RECEIPT}
    receipt = read_receipt(s3_place.url, s3_place.settings)
    assert receipt.left_out.keys() == {long, folder, "pipe"}


def test_the_message_names_some_of_very_many_and_the_receipt_all(upload, outputs, place):
    names = [f"pipe {number:03}" for number in range(60)]
    for name in names:
        os.mkfifo(outputs / name)

    with pytest.raises(UnsafeKey, match="'pipe 049' is not a regular file and 10 more"):
        upload()

    assert list(read_receipt(place.url, place.settings).left_out) == names


@pytest.mark.parametrize("instead", ["link", "pipe"])
def test_what_takes_the_place_of_a_file_that_was_looked_at_is_not_sent(
    instead, outputs, any_place, tmp_path
):
    files = list_folder(outputs).files
    secret = tmp_path / "credentials"
    secret.write_bytes(b"secrets")
    model = outputs / "model.pt"
    model.unlink()
    if instead == "link":
        model.symlink_to(secret)
    else:
        os.mkfifo(model)

    changed: list[str] = []
    with open_store(any_place.url, any_place.settings) as store:
        sent = store.upload(outputs, files, Meter(None, files), changed)

    assert changed == ["model.pt"]
    assert [record.path for record in sent] == ["logs/metrics.json"]
    assert any_place.paths() == ["logs/metrics.json"]
