"""Where the token of a cluster is found, and that it is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.job import CannotRun
from cluster.submission.token import find_token


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_is_looked_for_where_ray_looks_in_that_order(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token().value is None
    (places / ".ray").mkdir()
    (places / ".ray/auth_token").write_text("of-home\n")
    assert (find_token().value, find_token().source) == ("of-home", "~/.ray/auth_token")
    (places / "path").write_text(" of-path ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(places / "path"))
    assert find_token().value == "of-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-variable")
    assert (find_token().value, find_token().source) == ("of-variable", "RAY_AUTH_TOKEN")
    (places / "option").write_text("of-option")
    assert find_token(str(places / "option")).value == "of-option"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token().value is None
    assert find_token(str(places / "option")).value == "of-option"


def test_a_token_is_not_in_what_is_printed_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret")
    assert find_token().headers() == {"Authorization": "Bearer very-secret"}
    assert "very-secret" not in repr(find_token())


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "is empty"),
        (b"two words", "has spaces, line ends or other letters in it"),
        (b"one\ntwo", "has spaces, line ends or other letters in it"),
        (b"\xff\xfe\x00", "has spaces, line ends or other letters in it"),
        (b"x" * 100_000, "has more than 65536 bytes"),
    ],
)
def test_what_can_be_no_token_is_refused_without_being_shown(
    places: Path, data: bytes, part: str
) -> None:
    (places / "t").write_bytes(data)
    with pytest.raises(CannotRun) as refused:
        find_token(str(places / "t"))
    assert part in str(refused.value)
    assert "two" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(places: Path) -> None:
    with pytest.raises(CannotRun, match=r"--token-file \S+/none: cannot be read: No such file"):
        find_token(str(places / "none"))
