"""Checkpoints in one process: saved, found, kept, replaced, and refused with one clear message."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from trainjob import checkpoint, checkpoint_folder
from trainjob.checkpoint import CheckpointError, Checkpoints, load
from trainjob.checkpoint_folder import Draft, read_checkpoint

ROOT = Path(__file__).parents[2]


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((100,), float(step))}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "nested": [(1, 2.5), {"a": None, "b": True}, {"x"}, b"bytes", 1j],
        "counts": Counter("aab"),
        "ordered": OrderedDict(z=1, a=2),
        "kinds": (torch.float32, torch.Size([2, 3]), torch.device("cpu")),
        "empty": {},
    }

    checkpoint.Checkpoints(tmp_path).save(7, state, metrics={"loss": 0.5})

    path = checkpoint.Checkpoints(tmp_path).latest()
    assert path == tmp_path / "step-00000007"
    loaded = load(path)
    assert list(loaded) == list(state)
    for part in ("nested", "counts", "ordered", "kinds", "empty"):
        assert loaded[part] == state[part]
    assert torch.equal(loaded["model"]["weight"], model.weight)
    optimizer.load_state_dict(loaded["optimizer"])


def test_a_disk_that_lets_nobody_set_permissions_takes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a share of Windows that somebody else has mounted."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)

    checkpoint.Checkpoints(tmp_path).save(1, weights(1))

    assert steps(tmp_path) == ["step-00000001"]


def test_the_marker_says_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINJOB_RUN_ID", "run-1")

    Checkpoints(tmp_path).save(
        3, weights(3), metrics={"loss": torch.tensor(0.5), "nan": float("nan")}
    )

    folder = tmp_path / "step-00000003"
    marker = json.loads((folder / "COMPLETE").read_text())
    assert marker == {
        "step": 3,
        "format": "plain",
        "files": {"state.pt": (folder / "state.pt").stat().st_size},
        "metrics": {"loss": 0.5, "nan": None},
        "world_size": 1,
        "run_id": "run-1",
        "torch": torch.__version__,
        "version": 1,
    }


def test_the_folder_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINJOB_CHECKPOINT_DIR", str(tmp_path / "of the run"))
    checkpoint.save(1, weights(1), metrics={"loss": 1.0})

    assert checkpoint.latest() == tmp_path / "of the run" / "step-00000001"

    monkeypatch.delenv("TRAINJOB_CHECKPOINT_DIR")
    assert checkpoint.latest() is None
    checkpoint.save(2, weights(2))
    assert checkpoint.latest() == tmp_path / "checkpoints" / "step-00000002"


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, best=("accuracy", "max"))
    for step, accuracy in enumerate([0.1, 0.9, 0.9, float("nan"), 0.2, 0.3]):
        checkpoints.save(step, weights(step), metrics={"accuracy": accuracy})

    assert steps(tmp_path) == ["step-00000001", "step-00000004", "step-00000005"]
    assert checkpoints.best() == tmp_path / "step-00000001"
    assert checkpoints.latest() == tmp_path / "step-00000005"


def test_less_can_be_better_and_checkpoints_without_the_metric_do_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1, best=("loss", "min"))
    assert checkpoints.best() is None
    for step, metrics in enumerate([{"loss": 2.0}, {"loss": 1.0}, None, {"other": 0.0}]):
        checkpoints.save(step, weights(step), metrics=metrics)

    assert steps(tmp_path) == ["step-00000001", "step-00000003"]


def test_all_are_kept_on_request(tmp_path: Path) -> None:
    for step in range(5):
        Checkpoints(tmp_path, keep_last=None).save(step, weights(step))

    assert len(steps(tmp_path)) == 5


def test_what_was_just_saved_is_kept_though_an_older_training_went_further(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(500, weights(500))

    Checkpoints(tmp_path, keep_last=1).save(10, weights(10))

    assert steps(tmp_path) == ["step-00000010", "step-00000500.aside"]


def test_a_training_that_goes_on_from_an_earlier_step_leaves_the_later_ones_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    for step in (100, 700, 800, 900):
        Checkpoints(tmp_path, keep_last=None).save(step, {"line": 1})

    latest = []
    for step in (200, 300, 400):
        checkpoints.save(step, {"line": 2})
        path = checkpoints.latest()
        assert path is not None
        latest.append((path.name, load(path)["line"]))

    assert latest == [(f"step-00000{step}", 2) for step in (200, 300, 400)]
    asides = [f"step-00000{step}.aside" for step in (700, 800, 900)]
    assert steps(tmp_path) == [*(name for name, _ in latest), *asides]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step 200 was saved after step 900" in said
    for name in asides:  # as they were: to go on from one, its name is all it needs
        (tmp_path / name).rename(tmp_path / name.removesuffix(".aside"))
    assert checkpoints.latest() == tmp_path / "step-00000900"


def test_of_what_was_left_behind_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, best=("accuracy", "max"))
    for step, accuracy in ((100, 0.5), (600, 0.9), (700, 0.8), (800, 0.8)):
        checkpoints.save(step, {"line": 1}, metrics={"accuracy": accuracy})
    for step in (200, 300, 100, 150):  # it goes back once more
        checkpoints.save(step, {"line": 2}, metrics={"accuracy": step / 1000})

    assert steps(tmp_path) == [
        "step-00000100",
        "step-00000150",
        "step-00000600.aside",
        "step-00000700.aside",
        "step-00000800.aside",
    ]
    assert checkpoints.best() == tmp_path / "step-00000150"
    checkpoints.save(800, {"line": 3})
    checkpoints.save(160, {"line": 4})
    assert load(tmp_path / "step-00000800.aside")["line"] == 3


def test_only_what_we_made_is_removed(tmp_path: Path) -> None:
    names = ("step-1", "step-00000001.bak", "step-00000003.aside", "model", "step-00000001")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("mine")

    for step in (4, 3, 2, 1, 2, 3, 4):
        Checkpoints(tmp_path, keep_last=1).save(step, weights(step))

    assert len(list(tmp_path.glob("*/precious"))) == len(names)
    assert Checkpoints(tmp_path).latest() == tmp_path / "step-00000004"


def test_a_checkpoint_that_lost_its_marker_is_moved_out_of_the_way_of_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 6):
        checkpoints.save(step, weights(step))
    for _ in range(2):
        _unmark(tmp_path / "step-00000006")
        assert checkpoints.latest() == tmp_path / "step-00000003"

        checkpoints.save(6, weights(6))

    assert checkpoints.latest() == tmp_path / "step-00000006"
    broken = ["step-00000006.broken-1", "step-00000006.broken-2"]
    assert steps(tmp_path) == ["step-00000003", "step-00000006", *broken]
    assert [(tmp_path / name / "state.pt").exists() for name in broken] == [True, True]
    assert f"moved to {broken[0]}" in capsys.readouterr().err


def test_what_is_in_the_way_again_and_again_is_one_clear_error(tmp_path: Path) -> None:
    for number in range(1, 10):
        (tmp_path / f"step-00000001.broken-{number}").mkdir()
    (tmp_path / "step-00000001").write_text("mine")

    with pytest.raises(CheckpointError, match="which holds something that is no checkpoint"):
        Checkpoints(tmp_path).save(1, weights(1))

    assert (tmp_path / "step-00000001").read_text() == "mine"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_step_that_is_saved_again_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:  # some network file systems
        monkeypatch.setattr(checkpoint_folder, "_exchanged", lambda first, second: False)
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(1, weights(1))
    checkpoints.save(2, {"w": torch.zeros(1), "try": 1})
    checkpoints.save(2, {"w": torch.zeros(2), "try": 2})
    checkpoints.save(2, {"w": torch.zeros(3), "try": 3})

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "step-00000001",
        "step-00000002",
    ]
    assert load(tmp_path / "step-00000002")["try"] == 3


def test_steps_beyond_eight_digits_stay_in_order(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        Checkpoints(tmp_path).save(step, weights(1))

    assert Checkpoints(tmp_path).latest() == tmp_path / "step-100000000"


@pytest.mark.parametrize("name", ["a b", "it's", "новый", "-rf", "line\nbreak", "*", "[x]"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path / name, keep_last=1).save(step, weights(step))

    assert steps(tmp_path / name) == ["step-00000002"]
    assert Checkpoints(tmp_path / name).latest() == tmp_path / name / "step-00000002"


def _cut(folder: Path) -> None:
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-1])


def _lose(folder: Path) -> None:
    (folder / "state.pt").unlink()


def _unmark(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def _cut_marker(folder: Path) -> None:
    (folder / "COMPLETE").write_text('{"step": 2')


def _foreign_marker(folder: Path) -> None:
    (folder / "COMPLETE").write_text('{"someone": "else"}')


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (_cut, r"state\.pt of \d+ bytes instead of \d+ bytes"),
        (_lose, r"state\.pt missing instead of \d+ bytes"),
        (_unmark, "no file COMPLETE there"),
        (_cut_marker, "a file COMPLETE that cannot be read"),
        (_foreign_marker, "a file COMPLETE that cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_once_said_and_never_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm, found: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, weights(step))
    harm(tmp_path / "step-00000002")

    paths = [checkpoints.latest(), checkpoints.latest()]

    assert paths == [tmp_path / "step-00000001"] * 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"checkpoint: asked for a checkpoint in '{tmp_path}/step-00000002'" in said
    with pytest.raises(CheckpointError, match=found):
        load(tmp_path / "step-00000002")


def test_a_file_that_another_rank_removes_while_it_is_looked_at_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path).save(1, weights(1))
    file = tmp_path / "step-00000001" / "state.pt"
    look = Path.stat

    def look_before_it_goes(path: Path, **how: Any) -> Any:
        found = look(path, **how)
        if path == file:
            file.unlink()
        return found

    monkeypatch.setattr(Path, "stat", look_before_it_goes)

    with suppress(CheckpointError):
        read_checkpoint(file.parent)

    monkeypatch.undo()
    assert not file.exists()


def test_a_damaged_checkpoint_is_made_anew_and_costs_no_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2):
        checkpoints.save(step, weights(step))
    _cut(tmp_path / "step-00000002")

    checkpoints.save(2, weights(2))

    path = checkpoints.latest()
    assert path is not None
    assert torch.equal(load(path)["w"], weights(2)["w"])
    assert (tmp_path / "step-00000001").is_dir()


def test_bytes_that_are_no_state_are_one_clear_error(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, weights(1))
    file = tmp_path / "step-00000001" / "state.pt"
    file.write_bytes(bytes(file.stat().st_size))

    with pytest.raises(CheckpointError, match=r"asked for the state in .*state\.pt'.*damaged"):
        load(tmp_path / "step-00000001")


@pytest.mark.parametrize("name", ["nowhere", ".", "a file"])
def test_a_wrong_path_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("x")

    with pytest.raises(CheckpointError, match=r"checkpoint: asked for a checkpoint in '.*latest"):
        load(tmp_path / name)


class Own:
    pass


class OwnTensor(torch.Tensor):
    pass


def with_attribute(tensor: torch.Tensor, value: object) -> torch.Tensor:
    tensor.tag = value  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"args": Path("x")}, r"state\['args'\]"),
        ({"a": [1, (2, Own())]}, r"state\['a'\]\[1\]\[1\]"),
        ({"f": {"x": len}}, r"state\['f'\]\['x'\]"),
        ({"k": {Own(): 1}}, r"a key of state\['k'\]"),
        ({"w": [torch.zeros(2).as_subclass(OwnTensor)]}, r"state\['w'\]\[0\]"),
        ({"w": with_attribute(torch.zeros(2), [Own()])}, r"state\['w'\]\.tag\[0\]"),
        (
            {"p": with_attribute(torch.nn.Parameter(torch.zeros(2)), Path("x"))},
            r"state\['p'\]\.tag",
        ),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_when_it_is_saved(
    tmp_path: Path, value: dict[str, object], name: str
) -> None:
    Checkpoints(tmp_path).save(1, weights(1))

    with pytest.raises(TypeError, match=f"^{name}: asked to save a .*could not be loaded again"):
        Checkpoints(tmp_path).save(2, value)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step-00000001"]


def test_a_type_that_the_script_allows_torch_to_load_can_be_saved(tmp_path: Path) -> None:
    state = {"own": Own(), "w": torch.zeros(2).as_subclass(OwnTensor)}

    with torch.serialization.safe_globals([Own, OwnTensor]):
        Checkpoints(tmp_path).save(1, state)

        loaded = load(tmp_path / "step-00000001")
    assert type(loaded["own"]) is Own
    assert type(loaded["w"]) is OwnTensor


def test_tensors_of_every_kind_of_torch_can_be_saved(tmp_path: Path) -> None:
    state = {
        "parameter": with_attribute(torch.nn.Parameter(torch.ones(2)), {"decay": 0.1}),
        "buffer": torch.nn.Buffer(torch.ones(2)),
        "sparse": torch.eye(2).to_sparse(),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "nested": torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
    }

    Checkpoints(tmp_path).save(1, state)

    loaded = load(tmp_path / "step-00000001")
    assert {name: type(tensor) for name, tensor in loaded.items()} == {
        name: type(tensor) for name, tensor in state.items()
    }
    assert loaded["parameter"].tag == {"decay": 0.1}


@pytest.mark.parametrize("step", [-1, True, 1.0, "1"])
def test_a_step_is_a_count(tmp_path: Path, step) -> None:
    with pytest.raises(ValueError, match=r"^step: asked for "):
        Checkpoints(tmp_path).save(step, {})


def test_rules_for_keeping_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep 1 or more, or None"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"write \(metric, 'max'\)"):
        Checkpoints(tmp_path, best=("loss", "less"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="by which metric"):
        Checkpoints(tmp_path).best()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(CheckpointError, match=r"^checkpoint of step 1: asked for .*/file'"):
        Checkpoints(tmp_path / "file").save(1, {})


def test_one_writer_waits_for_another_and_removes_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = Draft(tmp_path, 1)
    other = threading.Thread(target=Checkpoints(tmp_path).save, args=(2, weights(2)))
    other.start()
    said, deadline = "", time.monotonic() + 10
    while "waiting for another process" not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err

    was_alone = steps(tmp_path) == []
    was_there = draft.path.is_dir()
    draft.close()
    other.join(10)

    assert was_alone
    assert was_there
    assert steps(tmp_path) == ["step-00000002"]


@pytest.fixture
def save_on_request(tmp_path: Path) -> Iterator[None]:
    """A script that saves where it is asked to stop, instead of in its loop."""
    before = signal.signal(signal.SIGUSR1, lambda *_: Checkpoints(tmp_path).save(2, weights(2)))
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("save_on_request")
def test_a_save_in_a_signal_handler_amid_a_save_is_one_clear_error(tmp_path: Path) -> None:
    do = "save in the loop once should_stop"
    with closing(Draft(tmp_path, 1)), pytest.raises(CheckpointError, match=do):
        signal.raise_signal(signal.SIGUSR1)

    signal.raise_signal(signal.SIGUSR1)

    assert steps(tmp_path) == ["step-00000002"]


def test_what_dead_writers_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-1-abc").mkdir()
    (tmp_path / ".tmp-step-1-abc" / "state.pt").write_text("half")

    Checkpoints(tmp_path).save(2, weights(2))

    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step-00000002"]


def test_a_sharded_checkpoint_of_one_process_is_loaded_into_a_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, {"w": torch.arange(5.0), "step": 4}, sharded=True)
    into: dict[str, Any] = {"w": torch.zeros(5), "step": 0}

    path = checkpoints.latest()
    assert path is not None
    load(path, into=into)

    assert torch.equal(into["w"], torch.arange(5.0))
    assert into["step"] == 4
    with pytest.raises(CheckpointError, match="found a sharded one; give a state by load"):
        load(path)
    with pytest.raises(CheckpointError, match="Missing key in checkpoint state_dict: other"):
        load(path, into={"other": torch.zeros(1)})


def test_a_plain_checkpoint_is_not_loaded_into_a_state(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, weights(1))

    with pytest.raises(CheckpointError, match="found a plain one; load it without `into`"):
        load(tmp_path / "step-00000001", into={})


def test_several_ranks_without_a_group_cannot_save_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(CheckpointError, match="call init_process_group first"):
        Checkpoints(tmp_path).save(1, weights(1), sharded=True)
    with pytest.raises(CheckpointError, match="call init_process_group first"):
        load(tmp_path, into={})


def test_only_rank_0_writes_where_ranks_are_known_by_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    Checkpoints(tmp_path).save(1, weights(1))
    assert steps(tmp_path) == []

    monkeypatch.setenv("RANK", "0")
    Checkpoints(tmp_path).save(1, weights(1))

    assert steps(tmp_path) == ["step-00000001"]
    marker = json.loads((tmp_path / "step-00000001" / "COMPLETE").read_text())
    assert marker["world_size"] == 2


FULL_DISK = """
import json, sys
from pathlib import Path
import torch
from trainjob.checkpoint import CheckpointError, Checkpoints, load

checkpoints = Checkpoints(sys.argv[1])
small, large = {"w": torch.ones(50_000)}, {"w": torch.ones(500_000)}
checkpoints.save(1, small)
checkpoints.save(2, small, sharded=True)
told = []
for sharded in (False, True):
    try:
        checkpoints.save(3, large, sharded=sharded)
    except CheckpointError as error:
        told.append(str(error))
left = sorted(path.name for path in Path(sys.argv[1]).iterdir())
is_whole = torch.equal(load(Path(sys.argv[1], "step-00000001"))["w"], small["w"])
checkpoints.save(4, small)
print(json.dumps([told, left, is_whole, checkpoints.latest().name]))
"""


def test_a_full_disk_is_one_clear_error_and_earlier_checkpoints_stay(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    run = f'{mount} && exec "$@"'
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path)]

    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", run, "sh", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told, left, is_whole, latest = json.loads(done.stdout)
    assert len(told) == 2
    assert "checkpoint of step 3: asked for a new one in" in told[0]
    assert "No space left on device" in told[0]
    assert "bytes free there; make room or give another folder" in told[0]
    assert "checkpoint of step 3" in told[1]
    assert "No space left on device" in told[1]
    assert left == [".lock", "step-00000001", "step-00000002"]
    assert is_whole
    assert latest == "step-00000004"
