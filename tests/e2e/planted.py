"""Looking for a secret in everything that a machine has on its disk."""

import base64
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, quote_plus


def places_with(secret: str, folder: Path) -> set[str]:
    """Return the files below `folder` that hold a secret in any form, and tables of databases.

    A database is read as a file and by its values, since a long value does not lie in one piece.
    """
    forms = [form.encode() for form in _forms(secret)]
    found = set()
    for file in _files(folder):
        name, content = str(file.relative_to(folder)), b""
        with suppress(FileNotFoundError):  # who still runs has deleted it
            content = file.read_bytes()
        if any(form in content for form in forms):
            found.add(name)
        if file.suffix == ".db":
            found |= {f"{name}: {table}" for table, row in _rows(file) if _has(row, forms)}
    return found


def _files(folder: Path) -> list[Path]:
    # Path.rglob fails where a folder is deleted meanwhile.
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(path for path in paths if path.is_file())


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield json.dumps(repr(secret)[1:-1])[1:-1]
    yield secret.encode().hex()
    for before in range(3):  # as a part of something longer, it may begin in the middle of a group
        whole = base64.b64encode(bytes(before) + secret.encode()).decode()
        inner = whole[4 if before else 0 : (before + len(secret.encode())) // 3 * 4]
        yield inner
        yield inner.translate(str.maketrans("+/", "-_"))


def _rows(database: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield table, row


def _has(row: tuple[object, ...], forms: list[bytes]) -> bool:
    values = [value if isinstance(value, bytes) else str(value).encode() for value in row]
    return any(form in value for form in forms for value in values)
