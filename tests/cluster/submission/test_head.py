"""Reaching a head: what is wrong is said in seconds, with the way out."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.job import CannotRun
from cluster.submission import head
from cluster.submission.head import reach
from tests.cluster.submission.ray_head import free_ports
from tests.cluster.submission.small_head import asks_for, small_head, version_of

RAY = version("ray")
TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(address: str) -> str:
    started = time.monotonic()
    with pytest.raises(CannotRun) as refused:
        reach(address)
    assert time.monotonic() - started < 10, "it took more than seconds"
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def test_a_head_with_our_version_and_no_token_is_reached() -> None:
    with small_head(version_of(RAY)) as address:
        found = reach(address)
    assert (found.address, found.ray, found.token.value) == (address, RAY, None)


def test_a_head_that_asks_for_a_token_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with small_head(asks_for(TOKEN, RAY)) as address:
        assert reach(address).token.value == TOKEN


def test_a_token_that_is_missing_is_said_with_the_places_where_it_may_be() -> None:
    with small_head(asks_for(TOKEN, RAY)) as address:
        text = refusal(address)
    assert text == (
        f"the cluster at {address} asks for a token, and there is none here. Set RAY_AUTH_TOKEN, "
        "the file that RAY_AUTH_TOKEN_PATH or --token-file names, or ~/.ray/auth_token; "
        "`ray get-auth-token` prints it on the head"
    )


def test_a_wrong_token_is_named_by_its_place_alone(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("another-secret\n")
    with small_head(asks_for(TOKEN, RAY)) as address:
        text = refusal(address)
    assert f"the cluster at {address} refuses the token of ~/.ray/auth_token" in text
    assert "another-secret" not in text


def test_a_proxy_that_takes_the_token_away_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with small_head(lambda headers: (401, "no")) as address:
        assert "did not see the token of RAY_AUTH_TOKEN" in refusal(address)


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        ("2.59.0", True),
        ("2.60.1", True),
        ("3.0.0.dev0", True),
        (RAY, False),
        (f"{RAY}.post1", False),
        (f"{RAY}+local", False),
    ],
)
def test_another_version_of_ray_is_refused_with_both_versions(theirs: str, refused: bool) -> None:
    with small_head(version_of(theirs)) as address:
        if not refused:
            assert reach(address).ray == theirs
            return
        text = refusal(address)
    assert f"has Ray {theirs}, and this machine {RAY}" in text
    assert f"pip install 'ray[data,default]=={theirs}'" in text


@pytest.mark.parametrize(
    "answer", [(200, "<html>hello</html>"), (404, "not found"), (200, "[1]"), (302, "")]
)
def test_a_server_that_is_no_head_is_told(answer: tuple[int, str]) -> None:
    with small_head(lambda headers: answer) as address:
        assert f"answers (HTTP {answer[0]}), but not as the dashboard" in refusal(address)


def test_a_port_that_nothing_listens_on_is_told() -> None:
    (port,) = free_ports(1)
    text = refusal(f"127.0.0.1:{port}")
    assert f"nothing takes jobs at http://127.0.0.1:{port}: connection refused" in text
    assert f"ssh -L 8265:localhost:{port} HEAD" in text


def test_a_host_that_does_not_exist_is_told() -> None:
    assert "nothing takes jobs at http://no-such-host.invalid:8265:" in refusal(
        "no-such-host.invalid"
    )


@contextmanager
def listens(answer: bytes | None) -> Iterator[str]:
    """A server that takes connections, and answers them so, or never."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                if answer is not None:
                    connection.recv(1)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_a_port_that_speaks_something_else_is_told() -> None:
    with listens(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00") as address:
        assert "takes connections, but does not speak HTTP" in refusal(address)


def test_a_head_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ANSWER_S", 0.3)
    with listens(None) as address:
        assert "takes connections, and gives no answer in 0.3 s" in refusal(address)


def test_only_a_cluster_whose_nodes_are_all_here_sees_our_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "NODES_S", 0.0)

    def nodes(*ips: str, names: tuple[str, ...] = ()) -> str:
        listed = [{"node_ip": ip, "state": "ALIVE"} for ip in ips]
        return json.dumps(
            {
                "data": {"result": {"result": listed}, "hostNameList": list(names)},
                "ray_version": RAY,
            }
        )

    here = socket.gethostname()
    cases = [
        (nodes("127.0.0.1"), True),
        (nodes("127.0.0.1", names=(here,)), True),
        (nodes("127.0.0.1", names=("worker-1",)), False),
        (nodes("127.0.0.1", "203.0.113.7"), False),
        (nodes(), False),
        ("[]", False),
    ]
    for text, expected in cases:
        answers = iter([(200, nodes()), (200, text), (200, text)])
        with small_head(lambda headers: next(answers)) as address:
            assert reach(address).is_this_machine() == expected, text
