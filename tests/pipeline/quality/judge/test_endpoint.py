"""A judge behind an OpenAI-compatible server, over HTTP: what it is asked, and what can fail."""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import ipaddress
import threading
import time
from dataclasses import replace
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.quality.fingerprints import WrongModel
from pipeline.quality.judge import Judge, fingerprint_of
from pipeline.quality.judge.absence import MOST_MISSED, Absence
from pipeline.quality.judge.endpoint import Endpoint
from pipeline.quality.scoring import Pair
from pipeline.scores import JudgeScores
from pipeline.settings import ScoreSettings
from tests.judge_server import GOOD, MODEL, Answer, JudgeServer, judge_server, refuses, says

KEY = "sk-" + "abc123" * 6


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def pair() -> Pair:
    frames = torch.randint(0, 256, (2, 9, 24, 40, 3), generator=torch.manual_seed(0))
    source, edit = frames.to(torch.uint8)
    return Pair(source=source, edit=edit, prompt="a red ball", instruction="make it red")


def judge_at(server: JudgeServer | str, deadline_s: float = 20, **settings: object) -> Judge:
    url = server if isinstance(server, str) else server.url
    return Judge.load(ScoreSettings(judge=url, judge_deadline_s=deadline_s, **settings))


def absence_of(judge: Judge) -> Absence:
    assert isinstance(judge.model, Endpoint)
    return judge.model.absence


def test_a_pair_is_scored_and_the_frames_arrive_as_they_are(pair: Pair) -> None:
    with judge_server(says(GOOD)) as server:
        judge = judge_at(server, judge_frames=2)
        assert judge.score(pair) == JudgeScores(
            4, 3, 2, "the ball is red", MODEL, judge.fingerprint()
        )
    (asked,) = server.requests
    assert asked["model"] == MODEL
    assert asked["temperature"] == asked["seed"] == 0
    assert asked["max_tokens"] == 512
    assert asked["response_format"]["json_schema"]["strict"] is True
    (message,) = asked["messages"]
    assert "make it red" in message["content"][0]["text"]
    urls = [part["image_url"]["url"] for part in message["content"] if "image_url" in part]
    sent = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url[22:])))) for url in urls]
    expected = [pair.source[2], pair.edit[2], pair.source[6], pair.edit[6]]
    for image, frame in zip(sent, expected, strict=True):
        assert (image == frame.numpy()).all()


def test_the_server_is_asked_for_its_models_once_and_not_at_all_with_a_name(pair: Pair) -> None:
    with judge_server(says(GOOD)) as server:
        judge = judge_at(server)
        first = judge.fingerprint()
        assert server.listed == 1
        judge.score(pair)
        judge.score(pair)
        assert server.listed == 1
        named = judge_at(server, judge_model="other")
        assert named.fingerprint() != first
        assert judge_at(server, judge_model=MODEL).fingerprint() == first
        assert named.score(pair).model == "other"
        assert server.listed == 1
        assert fingerprint_of(ScoreSettings(judge=server.url)) == first


def test_an_answer_that_cannot_be_used_is_asked_for_once_more_with_what_is_wrong(
    pair: Pair,
) -> None:
    bad = says(GOOD.replace("4", "5"))
    with judge_server(bad, says(GOOD)) as server:
        assert judge_at(server).score(pair).follows == 4
    assert "follows is 5" in server.requests[1]["messages"][0]["content"][-1]["text"]
    with judge_server(bad) as server:
        judge = judge_at(server)
        scores = judge.score(pair)
        assert len(server.requests) == 2
    assert scores.error == (
        "judge: no answer of 2 could be used; the last: follows is 5; expected a whole number "
        "from 1 to 4"
    )
    assert scores.follows is scores.reason is None
    assert scores.fingerprint == judge.fingerprint()  # an answer all the same: not asked for again


@pytest.mark.parametrize(
    ("answer", "wrong", "asked"),
    [
        (says("Looks good to me!"), "not JSON alone, but 'Looks good to me!'", 2),
        (says(""), "it is empty", 2),
        (says(None), "there is no text in", 2),
        (says(GOOD[:20], "length"), "it is cut off after 512 tokens", 2),
        (Answer(body='{"choices": []}'), "there is no choices[0].message", 2),
        (Answer(body='{"choices": [{"message": "hm"}]}'), "there is no choices[0].message", 2),
        (says(None, refusal="I cannot judge this."), "the model refuses: 'I cannot judge", 1),
        (says("", "content_filter"), "the server's filter refused the answer", 1),
        (refuses(400, "Filtered.", "content_filter"), "filter refused the pair", 1),
    ],
)
def test_an_answer_without_scores_is_row_data_that_is_not_asked_for_again(
    answer: Answer, wrong: str, asked: int, pair: Pair
) -> None:
    with judge_server(answer) as server:
        judge = judge_at(server)
        scores = judge.score(pair)
        assert len(server.requests) == asked
    assert scores.error
    assert wrong in scores.error
    assert scores.fingerprint == judge.fingerprint()
    assert absence_of(judge).missed_in_a_row == 0


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (refuses(401, "Unauthorized"), "set the environment variable OPENAI_API_KEY"),
        (refuses(404, "The model `x` does not exist."), "'The model `x` does not exist.'; check"),
        (refuses(500, "EngineDeadError"), "status 500: 'EngineDeadError'"),
        (Answer(307, headers={"Location": "https://u:pa55word@h/v1"}), "names 'https://***@h/v1'"),
        (Answer(body="<html>Welcome</html>"), "expected a JSON object, got '<html>Welcome"),
        (
            refuses(400, "maximum context length is 4096"),
            "fewer score.judge_frames make it shorter",
        ),
    ],
)
def test_what_another_run_may_do_better_has_no_fingerprint_and_says_the_way_out(
    answer: Answer, wrong: str, pair: Pair
) -> None:
    with judge_server(answer) as server:
        scores = judge_at(server).score(pair)
        assert len(server.requests) == 1
    assert scores.error
    assert wrong in scores.error
    assert "pa55word" not in scores.error
    assert scores.model == MODEL
    assert scores.fingerprint is None


def test_a_deadline_is_of_the_whole_answer(pair: Pair) -> None:
    never = threading.Event()
    with judge_server(replace(says(GOOD), until=never)) as server:
        judge = judge_at(server, 0.3)
        began = time.monotonic()
        scores = judge.score(pair)
        assert time.monotonic() - began < 5
        never.set()
    assert scores.error
    assert "no answer in 0.3 s" in scores.error
    assert "score.judge_deadline_s" in scores.error
    assert scores.fingerprint is None


def test_it_is_asked_from_a_notebook_too_whose_thread_runs_a_loop(pair: Pair) -> None:
    async def cell(judge: Judge) -> JudgeScores:
        return judge.score(pair)

    with judge_server(says(GOOD)) as server:
        assert asyncio.run(cell(judge_at(server))).follows == 4


def test_a_busy_server_is_waited_for_as_it_says(pair: Pair) -> None:
    with judge_server(refuses(429, "slow down", Retry_After="0.2"), says(GOOD)) as server:
        began = time.monotonic()
        assert judge_at(server).score(pair).follows == 4
        assert time.monotonic() - began >= 0.2
    with judge_server(Answer(503), says(GOOD)) as server:
        assert judge_at(server).score(pair).follows == 4


@pytest.mark.parametrize("after", ["3600", "a date"])
def test_a_server_that_is_busy_beyond_the_deadline_is_not_waited_for(
    after: str, pair: Pair
) -> None:
    if after == "a date":
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        after = format_datetime(later, usegmt=True)
    with judge_server(refuses(429, "quota", Retry_After=after)) as server:
        began = time.monotonic()
        scores = judge_at(server).score(pair)
        assert time.monotonic() - began < 5
    assert scores.error
    assert "status 429: 'quota'; busy for 3" in scores.error
    assert scores.fingerprint is None


def test_a_lost_answer_is_asked_for_again_once(pair: Pair) -> None:
    lost = replace(says(GOOD), lost=True)
    with judge_server(lost, says(GOOD)) as server:
        assert judge_at(server).score(pair).follows == 4
    with judge_server(lost) as server:
        scores = judge_at(server).score(pair)
        assert len(server.requests) == 2
    assert scores.error
    assert "ClientPayloadError" in scores.error
    assert scores.fingerprint is None


def test_what_a_server_does_not_take_is_left_out_from_then_on(pair: Pair) -> None:
    def old(asked: dict) -> Answer:
        for name in ("response_format", "max_tokens", "temperature"):
            if name in asked:
                return refuses(400, f"Unsupported parameter: '{name}'")
        return says(GOOD)

    with judge_server(old) as server:
        judge = judge_at(server)
        assert judge.score(pair).follows == 4
        assert judge.score(pair).follows == 4
        assert len(server.requests) == 5
    last = server.requests[-1]
    assert last["max_completion_tokens"] == 512
    assert last["seed"] == 0
    assert {"response_format", "max_tokens", "temperature"}.isdisjoint(last)


def test_the_key_is_sent_and_no_message_holds_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with judge_server(refuses(401, f"Incorrect API key provided: {KEY}.")) as server:
        scores = judge_at(server).score(pair)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert scores.error
    assert KEY not in repr(scores)
    assert "the server does not take the key in OPENAI_API_KEY" in scores.error


def test_user_and_password_of_a_url_are_sent_and_never_shown(pair: Pair) -> None:
    with judge_server(refuses(401, "who?")) as server:
        judge = judge_at(server.url.replace("//", "//me:pa%20ss55word@"))
        scores = judge.score(pair)
    sent = server.headers[0]["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent) == b"me:pa ss55word"
    assert scores.error
    assert "the server does not take the user and password in score.judge" in scores.error
    assert "ss55word" not in repr(scores)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://", "expected the URL of an OpenAI-compatible server, such as http://host:8000/v1"),
        ("http://host:99999/v1", "expected the URL"),
        ("http://host/v1?api_key=s3cret55", "expected the URL"),
    ],
)
def test_what_is_no_url_is_refused_at_once(url: str, wrong: str) -> None:
    with pytest.raises(WrongModel) as refused:
        judge_at(url)
    assert wrong in str(refused.value)
    assert "s3cret55" not in str(refused.value)


def test_a_url_without_its_v1_is_told_from_the_right_one(pair: Pair) -> None:
    with judge_server(says(GOOD)) as server:
        judge = judge_at(server.url.removesuffix("/v1"))
        scores = judge.score(pair)
        assert scores.error
        assert f"is it {server.url}?" in scores.error
        with pytest.raises(WrongModel, match="score.judge: .*status 404"):
            judge.fingerprint()
        assert judge_at(server.url + "/").score(pair).follows == 4


def test_a_certificate_that_nobody_vouches_for_is_refused_and_a_trusted_one_taken(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path)
    with judge_server(says(GOOD), tls=files) as server:
        scores = judge_at(server).score(pair)
        assert scores.error
        assert "no safe connection" in scores.error
        assert "SSL_CERT_FILE" in scores.error
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", files[0])
        assert judge_at(server).score(pair).follows == 4


def test_a_server_that_is_not_there_is_not_waited_for_by_each_pair(
    pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    with judge_server(says(GOOD)) as server:
        judge = judge_at(server)
        judge.fingerprint()
        port = int(server.url.split(":")[2].removesuffix("/v1"))
    absence = absence_of(judge)
    for _ in range(MOST_MISSED):
        scores = judge.score(pair)
        assert scores.error
        assert "Connect" in scores.error
    began = time.monotonic()
    for _ in range(200):
        scores = judge.score(pair)
    assert time.monotonic() - began < 5
    assert scores.error
    assert scores.error.startswith(f"not asked: the judge failed {MOST_MISSED} times in a row")
    assert scores.fingerprint is None
    assert capfd.readouterr().err.count("The judge failed 3 times in a row") == 1
    with judge_server(says(GOOD), port=port):
        assert "not asked" in str(judge.score(pair).error)
        absence.pause_s = 0.0
        absence._next = 0.0
        assert judge.score(pair).follows == 4
        assert judge.score(pair).follows == 4
    assert "The judge answers again." in capfd.readouterr().err


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate of 127.0.0.1, signed by itself, and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "judge")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "certificate.pem"), str(folder / "key.pem")
