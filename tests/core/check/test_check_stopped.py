"""A check that is stopped while a store says nothing."""

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import make_job
from tests.waiting import PATIENCE_S
from trainjob.check.checking import check_job
from trainjob.job import TrainingJob
from trainjob.storage.settings import StoreSettings


@pytest.fixture
def silent_store() -> Iterator[StoreSettings]:
    """A store that takes connections, says nothing, and has Ctrl-C pressed at the first."""
    main = threading.main_thread().ident or 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        connections: list[socket.socket] = []

        def stop_when_asked() -> None:
            connections.append(listener.accept()[0])
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=stop_when_asked)
        thread.start()
        yield StoreSettings(
            endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            access_key="key",
            secret_key="secret",
        )
        thread.join()
        for connection in connections:
            connection.close()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("engine", ["curl", "fsspec"])
def test_ctrl_c_ends_a_check_that_waits_for_a_silent_store(
    silent_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Its threads as well, which would keep the process from ending."""
    monkeypatch.setenv("TRAINJOB_STORAGE_ENGINE", engine)
    inputs = [{"name": "data_url", "url": "s3://bucket/data/"}]
    job = TrainingJob.parse(make_job(tmp_path, inputs=inputs))

    with pytest.raises(KeyboardInterrupt):
        check_job(job, silent_store)

    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("ThreadPoolExecutor")]
