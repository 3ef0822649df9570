"""A server of S3 that fails on command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.storage import Folder, patience
from tests.fault_proxy import DATA, FaultProxy, faulty
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FaultProxy, dict[str, str]]]:
    with s3_server() as environment, faulty(environment) as found:
        yield found


@pytest.fixture
def proxy(
    server: tuple[FaultProxy, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """A server with the bucket `clips`; deadlines and pauses are short."""
    proxy, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own pauses are long
    monkeypatch.setenv("RETAKE_STORAGE_TIMEOUT_S", "0.3")
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "20")
    monkeypatch.setattr(patience, "PAUSES_S", (0.01, 0.05))
    fs = Folder("s3://clips").fs
    fs.mkdir("clips", create_parents=True) if not fs.exists("clips") else None
    Folder("s3://clips").write("a.mp4", DATA)
    fs.invalidate_cache()
    yield proxy
    proxy.heal()
