"""Metrics among the outputs."""

from pathlib import Path

import pytest

from trainjob.metrics.publish import publish_metrics


@pytest.fixture
def metrics_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "metrics" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("1\n")
    return folder


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "train_url"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_text("weights")
    return folder


def test_metrics_are_put_into_a_folder_of_the_output(metrics_dir: Path, output_dir: Path) -> None:
    publish_metrics(metrics_dir, output_dir)

    assert (output_dir / "metrics" / "metrics.jsonl").read_text() == "1\n"


def test_doing_it_again_brings_what_has_grown(metrics_dir: Path, output_dir: Path) -> None:
    publish_metrics(metrics_dir, output_dir)
    (metrics_dir / "metrics.jsonl").write_text("1\n2\n")
    (metrics_dir / "metrics.png").write_text("image")

    publish_metrics(metrics_dir, output_dir)

    assert (output_dir / "metrics" / "metrics.jsonl").read_text() == "1\n2\n"
    assert (output_dir / "metrics" / "metrics.png").read_text() == "image"


def test_what_the_script_wrote_stays(metrics_dir: Path, output_dir: Path) -> None:
    (output_dir / "metrics").mkdir()
    (output_dir / "metrics" / "metrics.jsonl").write_text("mine")

    publish_metrics(metrics_dir, output_dir)
    publish_metrics(metrics_dir, output_dir)

    assert (output_dir / "metrics" / "metrics.jsonl").read_text() == "mine"


def test_an_output_that_the_script_left_empty_stays_empty(
    metrics_dir: Path, output_dir: Path
) -> None:
    (output_dir / "model.pt").unlink()

    publish_metrics(metrics_dir, output_dir)

    assert list(output_dir.iterdir()) == []


def test_a_run_without_metrics_has_no_folder(tmp_path: Path, output_dir: Path) -> None:
    publish_metrics(tmp_path / "absent", output_dir)

    assert [path.name for path in output_dir.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("when", ["before", "between"])
def test_nothing_is_written_by_way_of_links_of_the_script(
    when: str, metrics_dir: Path, output_dir: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    published = output_dir / "metrics" / "metrics.jsonl"
    if when == "before":
        published.parent.mkdir()
    else:
        publish_metrics(metrics_dir, output_dir)
        published.unlink()
    published.symlink_to(elsewhere)

    publish_metrics(metrics_dir, output_dir)

    assert not elsewhere.exists()
    assert published.is_symlink()


def test_a_folder_of_metrics_that_is_a_link_is_left_alone(
    metrics_dir: Path, output_dir: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (output_dir / "metrics").symlink_to(elsewhere)

    publish_metrics(metrics_dir, output_dir)

    assert list(elsewhere.iterdir()) == []
