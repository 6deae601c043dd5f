import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from trainjob.metrics.event_reader import EventFolders


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def folders(outputs: Path) -> EventFolders:
    folders = EventFolders()
    folders.start_attempt([outputs])
    return folders


def scalar(step: int, time_s: float = 1.7e9, **values: float) -> Event:
    parts = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=time_s, step=step, summary=Summary(value=parts))


def tensor(step: int, tag: str, value: object, plugin: str | None) -> Event:
    part = Summary.Value(tag=tag, tensor=make_tensor_proto(value))
    if plugin is not None:
        data = SummaryMetadata.PluginData(plugin_name=plugin)
        part.metadata.CopyFrom(SummaryMetadata(plugin_data=data))
    return Event(wall_time=1.7e9, step=step, summary=Summary(value=[part]))


def write(folder: Path, *events: Event) -> Path:
    """Write an event file with TensorBoard's own writer and return its path."""
    before = set(folder.glob("*tfevents*"))
    writer = EventFileWriter(str(folder))
    for event in events:
        writer.add_event(event)
    writer.close()
    [path] = set(folder.glob("*tfevents*")) - before
    return path


def read(folders: EventFolders) -> list[tuple[int, dict[str, float]]]:
    found, has_more = folders.read(limit_s=10)
    assert not has_more
    return [(one.step, one.values) for one in found]


def test_scalars_are_read_once_and_values_of_a_step_together(outputs, folders):
    write(outputs, scalar(1, loss=0.5), scalar(1, lr=0.1), scalar(2, loss=0.25))

    first, second = read(folders), read(folders)

    assert first == [(1, {"loss": 0.5, "lr": 0.1}), (2, {"loss": 0.25})]
    assert second == []


def test_files_that_appear_later_are_found(outputs, folders):
    assert read(folders) == []

    (outputs / "deep" / "er").mkdir(parents=True)
    write(outputs / "deep" / "er", scalar(1, loss=0.5))

    assert read(folders) == [(1, {"loss": 0.5})]


def test_scalars_in_tensors_are_read_and_other_tensors_are_not(outputs, folders):
    write(
        outputs,
        tensor(1, "loss", np.float32(0.7), "scalars"),
        tensor(2, "loss", np.float64(0.1), None),
        tensor(3, "bf16", np.array([2.5], dtype=np.float16), "scalars"),
        tensor(4, "note", "a text", "text"),
        tensor(5, "image", np.zeros((3, 3), np.float32), "scalars"),
        tensor(6, "mute", np.float32(1.0), None),
    )

    found = read(folders)

    assert found == [(1, {"loss": 0.7}), (2, {"loss": 0.1}), (3, {"bf16": 2.5})]


def test_a_float32_is_the_number_that_was_meant(outputs, folders):
    write(outputs, scalar(1, accuracy=0.7, seen=16777216.0))

    assert read(folders) == [(1, {"accuracy": 0.7, "seen": 16777216.0})]


def test_half_a_record_is_read_when_it_is_whole(outputs, folders):
    whole = write(outputs, scalar(1, loss=0.5), scalar(2, loss=0.25)).read_bytes()
    shutil.rmtree(outputs)
    outputs.mkdir()
    growing = outputs / "events.out.tfevents.1.host"
    found = []

    for end in range(0, len(whole) + 1, 7):
        growing.write_bytes(whole[:end])
        found += read(folders)
    growing.write_bytes(whole)

    assert found + read(folders) == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]


def test_a_damaged_record_costs_itself_alone_and_is_said_once(outputs, folders, caplog):
    path = write(outputs, *(scalar(step, loss=0.5) for step in range(1, 5)))
    content = bytearray(path.read_bytes())
    size = len(content) - content.rindex(b"loss")
    content[-size - 40] ^= 0xFF  # within the payload of the third record
    path.write_bytes(content)

    steps = [step for step, _ in read(folders)]

    assert len(steps) == 3
    assert [record.message for record in caplog.records if "is damaged" in record.message]
    assert len(caplog.records) == 1


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_ever_raises(outputs, data):
    path = outputs / "events.out.tfevents.1.host"
    path.unlink(missing_ok=True)
    content = bytearray(_sample(outputs))
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folders = EventFolders()
    folders.start_attempt([outputs])
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    read(folders)


def _sample(outputs: Path) -> bytes:
    kept = outputs.parent / "sample"
    if not kept.exists():
        kept.mkdir()
        write(kept, scalar(1, loss=0.5), tensor(2, "acc", np.float32(0.5), "scalars"))
    return next(iter(kept.iterdir())).read_bytes()


def test_large_records_are_passed_over(outputs, folders):
    image = Summary.Value(tag="image", image=Summary.Image(encoded_image_string=bytes(3 * 2**20)))
    write(outputs, Event(step=1, summary=Summary(value=[image])), scalar(2, loss=0.5))

    assert read(folders) == [(2, {"loss": 0.5})]


def test_of_two_folders_with_one_tag_the_later_has_its_folder_in_front(outputs, folders):
    for name in ("train", "validation"):
        (outputs / name).mkdir()
        write(outputs / name, scalar(1, loss=0.5))

    names = {name for _, values in read(folders) for name in values}

    assert names == {"loss", "validation/loss"}


def test_names_stay_over_attempts_even_if_folders_are_named_after_the_time(outputs, folders):
    def train(*names: str) -> Iterator[str]:
        for name in names:
            (outputs / name).mkdir()
            write(outputs / name, scalar(1, loss=0.5))
        yield from (name for _, values in read(folders) for name in values)

    first = list(train("Jul25_12-00", "validation"))
    shutil.rmtree(outputs)
    outputs.mkdir()
    folders.start_attempt([outputs])
    second = list(train("Jul25_13-00", "validation"))

    assert first == second == ["loss", "validation/loss"]


def test_what_earlier_attempts_left_in_their_outputs_is_not_read_again(outputs, folders):
    write(outputs, scalar(1, loss=0.5))
    read(folders)
    folders.start_attempt([outputs])
    another_process = EventFolders()
    another_process.start_attempt([outputs])

    write(outputs, scalar(2, loss=0.25))

    assert read(folders) == read(another_process) == [(2, {"loss": 0.25})]


def test_a_time_that_cannot_be_is_none(outputs, folders):
    write(outputs, scalar(1, time_s=float("nan"), loss=0.5), scalar(2, time_s=1e300, loss=0.5))

    found, _ = folders.read(limit_s=10)

    assert [one.time_s for one in found] == [None, None]


def test_reading_stops_after_its_time_and_goes_on_there(outputs, folders):
    write(outputs, *(scalar(step, loss=0.5) for step in range(5)))
    steps = []
    has_more = True

    while has_more:
        found, has_more = folders.read(limit_s=0)
        steps += [one.step for one in found]

    assert steps == [0, 1, 2, 3, 4]


def test_folders_that_vanish_are_no_error(outputs, folders):
    write(outputs, scalar(1, loss=0.5))
    read(folders)

    shutil.rmtree(outputs)

    assert read(folders) == []


def test_a_pipe_named_like_an_event_file_keeps_nobody_waiting(outputs, folders):
    os.mkfifo(outputs / "events.out.tfevents.1")
    write(outputs, scalar(1, loss=0.5))

    assert read(folders) == [(1, {"loss": 0.5})]


def test_a_link_named_like_an_event_file_leads_nowhere(outputs, folders, tmp_path):
    (tmp_path / "of-another").mkdir()
    of_another = write(tmp_path / "of-another", scalar(1, loss=0.5))
    (outputs / "events.out.tfevents.1").symlink_to(of_another)

    assert read(folders) == []
