"""What docs/operations.md shows, for tests that do as it says."""

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
_BLOCK = re.compile(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[tuple[str, str, str]] = _BLOCK.findall(PAGE)
"""Language, mark and text of each block."""

ENV_FILES = {
    path: dict(line.split("=", 1) for line in text.splitlines())
    for language, mark, text in reversed(BLOCKS)  # of server.env more is shown below
    if language == "ini" and (path := mark.removeprefix("file=")) != mark
}
