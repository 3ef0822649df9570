"""The address of a dashboard, out of what people give."""

from __future__ import annotations

import pytest

from cluster.job import CannotRun
from cluster.submission.address import dashboard_address


@pytest.fixture(autouse=True)
def no_address_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("head", "http://head:8265"),
        ("http://head", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("https://example.org/ray", "https://example.org/ray"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_is_completed(given: str, address: str) -> None:
    assert dashboard_address(given) == address


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("ray://head:10001", "an address of Ray Client, which takes no jobs"),
        ("ray://head:10001", "Is it http://head:8265?"),
        ("head:6379", "port 6379 is where nodes join"),
        ("auto", "on the head itself it is http://127.0.0.1:8265"),
        ("s3://head", "has the unknown protocol 's3'"),
        ("http://head:port", "is no address"),
        ("http://:8265", "is no address"),
        ("http://head:8265?x=1", "has more after its port"),
    ],
)
def test_what_is_no_address_of_a_dashboard_is_refused_with_one_that_is(
    given: str, part: str
) -> None:
    with pytest.raises(CannotRun) as refused:
        dashboard_address(given)
    assert part in str(refused.value)
    assert "http://" in str(refused.value)


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(CannotRun, match="a token in RAY_AUTH_TOKEN or --token-file"):
        dashboard_address("http://me:secret@head:8265")


def test_an_option_comes_before_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRun, match="no cluster is named: give --address"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(CannotRun, match="RAY_ADDRESS '10.0.0.1:6379': port 6379"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://one:8265")
    assert dashboard_address(None) == "http://one:8265"
    assert dashboard_address("two") == "http://two:8265"
