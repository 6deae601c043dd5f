"""boto3 with its transfer manager: ``boto3_threads.py down|up|list URL FOLDER``."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

THREADS = 32


def main() -> None:
    """Copy or list."""
    operation, url, name = sys.argv[1:]
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    folder = Path(name)
    s3 = boto3.client("s3", config=Config(max_pool_connections=2 * THREADS))
    parts = TransferConfig(max_concurrency=8)

    def get(key: str) -> None:
        file = folder / key.removeprefix(prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(file), Config=parts)

    def put(file: Path) -> None:
        s3.upload_file(str(file), bucket, prefix + str(file.relative_to(folder)), Config=parts)

    if operation == "up":
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(put, [file for file in folder.rglob("*") if file.is_file()]))
        return
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    if operation == "list":
        print(len(keys))
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(get, keys))


if __name__ == "__main__":
    main()
