"""Secrets do not stand in what is shown or stored."""

from __future__ import annotations

import re
import sys
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, RowError, StorageFailed, Trouble
from pipeline.records import EditResult
from pipeline.redaction import has_hidden, log, log_error, redacted, safe_end_of, say
from pipeline.redaction.patterns import PATTERNS, Pattern

SIGNED = "https://h/a.mp4?X-Amz-Credential=AKIDX%2F2026&X-Amz-Date=3&X-Amz-Signature=s3cret"
SAFE = "https://h/a.mp4?X-Amz-Credential=***&X-Amz-Date=3&X-Amz-Signature=***"
PIECES = (
    *("a", "a_", "a-", "a.", "a+", "a:", "a:b", "-", "_", "=", "@", "'", "%", " ", "\\", "\u00e9"),
    *("%25", "%2F", "%3A", "%40", "a%2F", "a%3A", "%3Aa%40", "%2Fa%3A", "?a-", "?sig=", "?sig='"),
    *("://@", "x://", "x://a:", "x://a:b'", "x://a:b c", "a-b:cd@", "key_token", "&key=", "x-"),
    *("secret: ", "password", "'token': '", "cookie: ", "authorization: ", "basic ", "bearer a"),
    *("eyJa", "eyJabcdefghijkl.", "ya29.", "hf_a", "xoxb-", "sk-", "sk-a ", "\\u0026sig"),
    *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "-----END", "password= "),
)
"""Of which long texts are made that patterns could read again and again."""


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
        (
            "u=https%3A%2F%2Fb%3FX-Amz-Signature%3Ds3cret%26x%3D1",
            "u=https%3A%2F%2Fb%3FX-Amz-Signature%3D***%26x%3D1",
        ),
        ("https://h/a%253FX-Amz-Signature%253Ds3cret%2526x", None),
        ("GET https%3A%2F%2Fuser%3Apass%40host%2Fa", "GET https%3A%2F%2F***%40host%2Fa"),
        ("user%3Apass%40host is away", "***%40host is away"),
        (
            r"https://h/a?x=1\u0026X-Amz-Signature=s3cret",
            r"https://h/a?x=1\u0026X-Amz-Signature=***",
        ),
        (r"https://h/a?sig=s3cret\u0026x=1", r"https://h/a?sig=***\u0026x=1"),
        ("https://h/a?x=1&amp;X-Amz-Signature=s3cret", "https://h/a?x=1&amp;X-Amz-Signature=***"),
        (
            "{'X-Amz-Signature': 's3cret', 'sig': 's3 cret'}",
            "{'X-Amz-Signature': '***', 'sig': '***'}",
        ),
        (r"{\"AWSAccessKeyId\": \"s3cret\"}", r"{\"AWSAccessKeyId\": \"***\"}"),
        (
            "{'AWSAccessKeyId': 's3cret', 'Expires': '3'}",
            "{'AWSAccessKeyId': '***', 'Expires': '3'}",
        ),
        ("x-amz-security-token: s3cret", "x-amz-security-token: ***"),
        ("> api-key: s3cret", "> api-key: ***"),
        ("X-Api-Key:s3cret", "X-Api-Key:***"),
        ("password: s3cret, try again", "password: ***, try again"),
        ("Cookie: a=s3cret; b=s3cret", "Cookie: ***"),
        ("{'Set-Cookie': 'a=s3cret; Path=/', 'x': 1}", "{'Set-Cookie': '***', 'x': 1}"),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=s3cret/2026/s3, Signature=s3cret",
            "Authorization: AWS4-HMAC-SHA256 ***, Signature=***",
        ),
        ("Authorization: OSS me:s3cret", "Authorization: OSS ***"),
        ("Authorization: BEARER s3cretabc", "Authorization: BEARER ***"),
        ("{'Authorization': 'Bearer: s3cretabc'}", "{'Authorization': 'Bearer: ***'}"),
        ("{'Authorization': b'Basic czpjcmV0'}", "{'Authorization': b'Basic ***'}"),
        ("Authorization: Basic dTpwdw==", "Authorization: Basic ***"),
        ("with BASIC dTpwdzE= it", "with BASIC *** it"),
        ("https://user:pa/s3cret@host/a.mp4", "https://***@host/a.mp4"),
        ("https://user:pa?s3cret@host/a.mp4", "https://***@host/a.mp4"),
        ("https://user:pa#s3cret@host/a.mp4", "https://***@host/a.mp4"),
        ("https://user:pa's3cret@host/a.mp4", "https://***@host/a.mp4"),
        ("https://user:pa s3cret@host/a.mp4", "https://***@host/a.mp4"),
        ("redis://:s3cret@host/0", "redis://***@host/0"),
        ("https://me:s3cret@h/a,https://me:s3cret@h/b", "https://***@h/a,https://***@h/b"),
        ("user:s3cret@host:22 refused", "***@host:22 refused"),
        ("https://h/a?sig=ab's3cret&x=1", "https://h/a?sig=***&x=1"),
        ("https://h/a?sig=ab,s3cret&x=1", "https://h/a?sig=***&x=1"),
        ("https://h/a?sig=ab)s3cret&x=1", "https://h/a?sig=***&x=1"),
        ("(see 'https://h/a?sig=s3cret').", "(see 'https://h/a?sig=***')."),
        ("https://h/a?st=3&hdnts=exp=1~acl=/*~hmac=s3cret", "https://h/a?st=3&hdnts=***"),
        (
            "AccountName=x;AccountKey=s3cret==;EndpointSuffix=c",
            "AccountName=x;AccountKey=***;EndpointSuffix=c",
        ),
        ("s3cret\nMIIE\n-----END PRIVATE KEY-----\nwrong", "***-----END PRIVATE KEY-----\nwrong"),
    ],
)
def test_a_secret_is_taken_out_of_a_text(text: str, safe: str | None) -> None:
    found = redacted(text)
    assert found == (safe if safe is not None else found)
    assert "***" in found
    for secret in (
        "s3cret",
        "pa:s",
        "Ab%2Bd",
        "ab%2F",
        "ab12",
        "x~y",
        "APK",
        "MIIE",
        "me@x",
        "dTpw",
    ):
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
        "https://minio:9000/bucket/a@b.mp4",
        "https://minio%3A9000%2Fbucket%2Fa%40b.mp4",
        "https%3A%2F%2Fhost%2Fa%40b.mp4",
        "http://[::1]:9000/a@b.mp4",
        "file:///data/a:b@c.mp4",
        "s3://bucket: may not be read by me@x.org",
        "https://h:8080: ask me@x.org",
        "write to mailto:me@x.org",
        "image:latest@sha256:0123",
        "the token: expected a text; a password is needed",
        "unknown columns 'token', 'caption'",
        "basic authentication and basic settings",
        "access_key=None, password=none",
        "edits.max_tokens: 3, tokens=300000",
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
    assert has_hidden("/data/***/out") and has_hidden("/data/my-***.mp4")
    assert not has_hidden(SIGNED) and not has_hidden("/data/**/*.mp4")


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.example)
def test_each_pattern_finds_its_example(pattern: Pattern) -> None:
    assert any(hint in pattern.example.lower() for hint in pattern.hints)
    left = pattern.finds.sub(pattern.leaves, pattern.example)
    assert "***" in left
    for secret in ("s3c", "ret", "cret"):
        assert secret not in left.replace("secret", "")
    assert redacted(pattern.example) == left
    assert redacted(left) == left


@pytest.mark.parametrize("part", PIECES)
def test_a_long_text_is_read_in_linear_time(part: str) -> None:
    took = []
    for length in (100_000, 1_000_000):
        text = part * (length // len(part))
        began = time.process_time()
        redacted(text)
        took.append(time.process_time() - began)
    assert took[1] < 0.5 + 40 * took[0], "ten times the text; a square would take a hundred"


SIGNED_IN = "https://user:pass@h/a.mp4?X-Amz-Signature=s3cret"


def raised() -> Exception:
    try:
        try:
            raise KeyError(SIGNED_IN)
        except KeyError as cause:
            raise RuntimeError(f"cannot open {SIGNED_IN}") from cause
    except RuntimeError as error:
        return error


def test_an_error_is_logged_with_its_causes_and_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_error(raised())
    text = capsys.readouterr().err
    assert "RuntimeError: cannot open https://***@h/a.mp4?X-Amz-Signature=***" in text
    assert "KeyError: 'https://***@h/a.mp4?X-Amz-Signature=***'" in text
    assert f'{__file__}", line' in text


def test_a_log_that_takes_nothing_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")
    with pytest.raises(OSError, match="No space left"):
        print("text", file=full, flush=True)
    monkeypatch.setattr(sys, "stderr", full)
    log("text")
    log_error(raised())
    with pytest.raises(OSError):
        full.close()


RANDOM = "wJalr/XUtnFEMI+K7:DENG"


@pytest.mark.parametrize(
    "variable",
    [
        *("PGPASSWORD", "MYSQL_PWD", "DB_PASS", "SMTP_PASSWD", "my_password", "REDIS_PASSPHRASE"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "S3_SECRETKEY"),
        *("HF_TOKEN", "WANDB_API_KEY", "OPENAI_APIKEY", "AZURE_STORAGE_KEY", "SECRET_KEY_BASE"),
        *("AZURE_STORAGE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "BASIC_AUTH", "CLIENT_SECRET_2"),
    ],
)
def test_names_of_variables_tell_that_they_hold_a_secret(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, RANDOM)
    encoded = quote(RANDOM, safe="")
    lower = re.sub("%..", lambda code: code[0].lower(), encoded)
    for form in (RANDOM, encoded, lower, quote(RANDOM)):
        assert redacted(f"no {form} here") == "no *** here"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DB_SECRET_NAME", "retake-prod-9x8y7z"),
        ("TOKEN_FILE", "retake9x8y7z"),
        ("AWS_ROLE_ARN", "retake9x8y7z"),
        ("MONKEY", "retake9x8y7z"),
        ("TOKENIZERS_PARALLELISM", "retake9x8y7z"),
        ("SSH_AUTH_SOCK", "retake9x8y7z"),
        ("PWD", "retake9x8y7z"),
        ("PARTITION_KEY", "retake-prod"),
        ("APP_AUTH", "disabled"),
        ("SORT_KEY", "created_at.2026"),
        ("DB_SECRET", "short"),
        ("GOOGLE_CREDENTIALS", "/home/me/key9x8y7z.json"),
        ("DATABASE_URL", "postgres://postgres:postgres@db/retake"),
        ("ENDPOINT", "http://minio:9000/retake9x8y7z@b"),
        ("ENDPOINT", "http://[::1]:9000/retake9x8y7z@b"),
        ("HOME_PAGE", "https://h/retake9x8y7z"),
    ],
)
def test_a_variable_without_a_secret_alters_no_text(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for part in re.findall(r"[\w.-]+", value):
        assert redacted(f"/data/{part}/out") == f"/data/{part}/out"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgres://me:hun7er%2Fx22@db/retake"),
        ("HTTPS_PROXY", "http://me:hun7er%2Fx22@proxy:3128"),
        ("https_proxy", "me:hun7er%2Fx22@proxy:3128"),
    ],
)
def test_the_password_of_a_location_in_a_variable_is_taken_out(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert redacted("hun7er/x22 and hun7er%2Fx22 are wrong") == "*** and *** are wrong"
    assert redacted(f"{value} is away") == f"{value.replace('me:hun7er%2Fx22', '***')} is away"


@given(st.text(alphabet="abXY019-._~/+%", min_size=6, max_size=60).map(lambda text: f"aB{text}9z"))
def test_a_signature_is_taken_out_whatever_it_is_made_of(signature: str) -> None:
    for text in (
        f"https://h/a.mp4?X-Amz-Signature={signature}&x=1",
        f"url='https://h/a.mp4?sig={signature}': gone",
        f"x-amz-security-token: {signature}",
        f"{{'signature': '{signature}'}}",
    ):
        assert signature not in redacted(text)


def test_the_end_of_a_log_begins_with_a_whole_line() -> None:
    cut = f"{'deadbeef' * 8}' is gone\nreading {SIGNED}\nthe last"
    assert safe_end_of(cut, 2000, whole=False) == f"reading {SAFE}\nthe last"
    assert safe_end_of(cut, 2000, whole=True).startswith("deadbeef")
    assert safe_end_of(cut, 20, whole=False) == "the last"
    assert safe_end_of(f"{'deadbeef' * 8} the last", 2000, whole=False) == "the last"
    assert safe_end_of("deadbeef", 2000, whole=False) == ""


def test_a_line_for_the_user_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"reading {SIGNED}")
    say(f"no {SIGNED}", problem=True)
    assert capsys.readouterr() == (f"reading {SAFE}\n", f"no {SAFE}\n")
