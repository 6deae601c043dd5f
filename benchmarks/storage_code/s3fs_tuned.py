"""s3fs with explicit lists and many requests: ``s3fs_tuned.py down|up|list URL FOLDER``."""

import sys
from pathlib import Path

import s3fs

BATCH = 64


def main() -> None:
    """Copy or list."""
    operation, url, name = sys.argv[1:]
    prefix, folder = url.removeprefix("s3://"), Path(name)
    s3 = s3fs.S3FileSystem(config_kwargs={"max_pool_connections": BATCH})
    if operation == "up":
        files = [str(file) for file in folder.rglob("*") if file.is_file()]
        keys = [prefix + file.removeprefix(f"{folder}/") for file in files]
        s3.put(files, keys, batch_size=BATCH)
        return
    keys = s3.find(prefix)
    if operation == "list":
        print(len(keys))
        return
    targets = [str(folder / key.removeprefix(prefix)) for key in keys]
    s3.get(keys, targets, batch_size=BATCH)


if __name__ == "__main__":
    main()
