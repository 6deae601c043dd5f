"""Where outputs are downloaded to: a folder that is refused before anything is read."""

from pathlib import Path

import pytest

from trainjob.download import download_output
from trainjob.errors import StoreError


def test_a_file_where_the_folder_should_be_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("mine")

    with pytest.raises(StoreError) as refused:
        download_output("train_url", "s3://b/out/", file / "train_url", None, run_id="1")

    assert str(refused.value) == (
        f"{file / 'train_url'}: a file at {str(file)!r}, where a folder should be; give another "
        "folder"
    )
    assert file.read_text() == "mine"
