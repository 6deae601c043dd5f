"""``python -m flows cache``: environments with requirements beside datasets."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from flows.__main__ import main
from trainjob.environments.folder import MARKER, environments_folder, using


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two environments as they lie in the cache: one of today, and one unused for ten days."""
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    found = {}
    for name, lines in (("used", ["tool==1.0", "more"]), ("old", ["other"])):
        found[name] = root = environments_folder().published / (name * 10)
        root.mkdir(parents=True)
        facts = {"lines": lines, "num_packages": len(lines), "size_bytes": 1000}
        (root / MARKER).write_text(json.dumps(facts))
    ten_days_ago = time.time() - 10 * 24 * 3600
    os.utime(found["old"], (ten_days_ago, ten_days_ago))
    return found


def test_ls_shows_environments_and_what_is_in_them(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with using(environments_folder(), made["used"].name):
        assert main(["cache", "ls"]) == 0
        text = capsys.readouterr().out
        assert main(["cache", "ls", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)["environments"]

    _, blank, head, used, old, total = text.splitlines()
    assert blank == ""
    assert re.split("  +", head)[:3] == ["ENVIRONMENT", "PACKAGES", "SIZE"]
    key = made["used"].name[:12]
    assert re.split("  +", used) == [key, "2", "1000 B", "just now", "tool==1.0, more", "yes"]
    assert re.split("  +", old)[3:] == ["10d ago", "other", "-"]
    assert total == "2 environments, 2.0 KiB"
    assert [(each["key"], each["is_used"]) for each in facts] == [
        (made["used"].name, True),
        (made["old"].name, False),
    ]


def test_what_a_crash_spoiled_is_shown_and_removed(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = environments_folder().published / ("0" * 32)
    spoiled.mkdir()
    (spoiled / MARKER).write_text("")

    assert main(["cache", "ls"]) == 0
    assert "broken" in capsys.readouterr().out
    assert main(["cache", "prune", "--all"]) == 0

    assert not spoiled.exists()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--older-than", "7d"], {"used"}),
        (["--older-than", "30d"], {"used", "old"}),
        (["--all"], {"used"}),
        (["--all", "--dry-run"], {"used", "old"}),
        ([], {"used", "old"}),
    ],
)
def test_prune_removes_environments_that_no_run_uses(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str], words: list[str], left: set[str]
) -> None:
    with using(environments_folder(), made["used"].name):
        assert main(["cache", "prune", *words]) == 0

    assert {name for name, root in made.items() if root.exists()} == left
    is_named = f"{made['old'].name[:12]}  environment of other" in capsys.readouterr().out
    assert is_named == ("--all" in words or "7d" in words)
