"""obstore with many requests at a time: ``obstore_async.py down|up|list URL FOLDER``."""

import asyncio
import os
import sys
from pathlib import Path

import obstore
from obstore.store import S3Store

REQUESTS = 64


async def main() -> None:
    """Copy or list."""
    operation, url, name = sys.argv[1:]
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    folder = Path(name)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(
        bucket,
        endpoint=endpoint,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "10 minutes"},
    )
    slots = asyncio.Semaphore(REQUESTS)

    async def get(key: str) -> None:
        async with slots:
            file = folder / key.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            answer = await obstore.get_async(store, key)
            with file.open("wb") as copy:
                async for chunk in answer.stream(min_chunk_size=1 << 20):
                    copy.write(chunk)

    async def put(file: Path) -> None:
        async with slots:
            await obstore.put_async(store, prefix + str(file.relative_to(folder)), file)

    if operation == "up":
        await asyncio.gather(*(put(file) for file in folder.rglob("*") if file.is_file()))
        return
    keys = [item["path"] for page in obstore.list(store, prefix) for item in page]
    if operation == "list":
        print(len(keys))
    else:
        await asyncio.gather(*map(get, keys))


if __name__ == "__main__":
    asyncio.run(main())
