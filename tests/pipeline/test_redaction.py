"""Secrets do not stand in what is shown or stored."""

from __future__ import annotations

import pytest

from pipeline.errors import ErrorCode, RowError, StorageFailed, Trouble
from pipeline.records import EditResult
from pipeline.redaction import has_hidden, redacted

SIGNED = "https://h/a.mp4?X-Amz-Credential=AKIDX%2F2026&X-Amz-Date=3&X-Amz-Signature=s3cret"
SAFE = "https://h/a.mp4?X-Amz-Credential=***&X-Amz-Date=3&X-Amz-Signature=***"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"{SIGNED}: there is no such file", f"{SAFE}: there is no such file"),
        ("https://user:pa:s@s@h/a.mp4 is gone", "https://***@h/a.mp4 is gone"),
        ("zip://a.mp4::https://u:p@h/b.zip", "zip://a.mp4::https://***@h/b.zip"),
        ("https://x.blob.core.windows.net/c/a?sv=20&sig=Ab%2Bd&se=2", None),
        ("https://storage/b/a?GoogleAccessId=me@x&Expires=3&Signature=ab%2F", None),
        ("https://storage/b/a?X-Goog-Signature=ab12&X-Goog-Date=3", None),
        ("https://h/a?Policy=abc&Key-Pair-Id=APK&Signature=x~y", None),
        ("https://h/a.mp4?access_token=abc&x=1", "https://h/a.mp4?access_token=***&x=1"),
        ("Authorization: Bearer abcdefghijklmno", "Authorization: Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI run", "AWS_SECRET_ACCESS_KEY=*** run"),
        ("aws_session_token: FwoGZXIvYXdz", "aws_session_token: ***"),
        ('{"secret": "abcdefgh", "a": 1}', '{"secret": "***", "a": 1}'),
        ("no key AKIAIOSFODNN7EXAMPLE there", "no key *** there"),
        ("hf_abcdefghijklmnopqrstuvwxyz is no token", "*** is no token"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", None),
    ],
)
def test_a_secret_is_taken_out_of_a_text(text: str, safe: str | None) -> None:
    found = redacted(text)
    assert found == (safe if safe is not None else found)
    assert "***" in found
    for secret in ("s3cret", "pa:s", "Ab%2Bd", "ab%2F", "ab12", "x~y", "APK", "MIIE", "me@x"):
        assert secret not in found
    assert redacted(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b.mp4: there is no such file",
        "https://h/a.mp4?version=3&monkey=banana",
        "video_id 'token': a token: expected a text; keep: always",
        "mail x@y.org, see https://h/ and z@w.de",
        "the key 'seed' stands in line 2 already; remove one",
        "/data/key=value/a.mp4",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_the_value_of_a_variable_that_holds_a_secret_is_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_STORAGE_PASSWORD", "correct horse")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("A_TOKEN", "1")
    text = "correct horse may not read /home/me/key.json, 1 time"
    assert redacted(text) == "*** may not read /home/me/key.json, 1 time"


def test_errors_and_results_hold_no_secret() -> None:
    text = f"{SIGNED}: may not be read"
    assert RowError(ErrorCode.STORAGE, text).message == f"{SAFE}: may not be read"
    assert Trouble(ErrorCode.STORAGE, text).text == f"{SAFE}: may not be read"
    failed = StorageFailed(SIGNED, Trouble(ErrorCode.STORAGE, "is busy"))
    assert (str(failed), failed.location) == (f"{SAFE}: is busy", SIGNED)
    row = EditResult(video=SIGNED, error=text)
    assert (row.video, row.error) == (SAFE, f"{SAFE}: may not be read")


def test_a_location_without_its_secret_is_known_as_one() -> None:
    assert has_hidden(SAFE) and has_hidden(redacted("https://u:p@h/m.parquet"))
    assert not has_hidden(SIGNED) and not has_hidden("/data/***/a.mp4")


def test_a_long_text_is_read_quickly() -> None:
    for part in ("a_", "?a-", "x://", "eyJa", "key_token", "://@", "secret: "):
        assert redacted(part * 10_000)
