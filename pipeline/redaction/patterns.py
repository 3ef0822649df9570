"""How secrets look in texts: a table of patterns, each with an example of what it finds.

Each reads a text in linear time: a repeat is bounded, or ends where the next match could begin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HIDDEN = "***"
"""What stands in the place of a secret. It is no value that anything could work with."""


@dataclass(frozen=True)
class Pattern:
    """A form of secrets.

    Args:
        example: a text with one; the secret in it is `s3cret`, or holds it.
        hints: one of them stands in each text, in lower case, that the pattern finds something in.
        finds: the secret, and what must stand around it.
        leaves: what stands there instead.
    """

    example: str
    hints: tuple[str, ...]
    finds: re.Pattern[str]
    leaves: str = rf"\1{HIDDEN}"


def _of(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_CODE = "%(?:25)*"
"""Before the number of a character in an address; once more for each time it was encoded."""
_SIGNING = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid"
    r"|signature|credential|sig|hdn(?:ea|ts|tl))"
)
"""Names that say enough wherever they stand."""
_SURE = (
    r"(?:passw(?:or)?d|passphrase|(?:api|access|account|secret|private|signing)[-_]?key(?:[-_]id)?"
    r"|secret(?:[-_]access[-_]key)?|(?:access|auth|session|security|bearer)[-_]?token)"
)
"""Names whose values are secrets in any setting."""
_WEAK = r"(?:key|token|pwd|credentials?|auth|policy|key-pair-id)"
"""Names with other meanings, too: a value is one only in a query, or where more tells it."""
_PARTS = r"(?:[a-z0-9]{1,40}[-_.]){0,8}"
"""As `db_` before `password`."""

_END = r"'.,:)\]}"
"""What stands after a value rather than at its end: a sentence goes on there."""
_VALUE = rf"[^&;#\s\"`\\]*[^&;#\s\"`\\{_END}]"
_LONGER = rf"(?!(?:none|null|true|false)\b)[^&;#\s\"`\\]{{3,}}[^&;#\s\"`\\{_END}]"
_IS = r"[ \t]{0,4}=[ \t]{0,4}['\"]?(?!['\"])"
_COLON = r"['\"]?[ \t]{0,4}:[ \t]{0,4}"
_OPEN = r"(?:b?\\?['\"])?"
_ENCODED = rf"(?:(?!{_CODE}26)[^&;#\s\"'`\\])+"

_NO_PORT = r"(?!\d+(?:[/?#\s'\",):]|%|$))"
_REST = r"(?:(?!://)[^\s'\"`])*"

PATTERNS = (
    Pattern(  # the first, so that what is left of a location is no login
        "https://u:s3c/ret'@h/a.mp4",
        ("://",),
        _of(
            # A password may hold anything: it ends at the last @ before a space or quote, or at the
            # next one, as in `https://u:s3 cret@h`. Digits are a port.
            rf"([a-z][a-z0-9+.-]*://)(?:[^\s/?#'\"`:@\[]*:(?![:\s]|/){_NO_PORT}"
            rf"(?:{_REST}@|(?:(?!://)[^\n@]){{1,80}}@(?=[\w.\[]))|[^\s/?#'\"`]+@)"
        ),
        rf"\1{HIDDEN}@",
    ),
    Pattern(
        "https%3A%2F%2Fu%3As3cret%40h%2Fa.mp4",
        ("%40", "2540"),
        _of(
            rf"((?<![\w.+%/-])|{_CODE}2f)[\w.~+-]*{_CODE}3a(?!{_CODE}2f)(?!\d+%)"
            rf"(?:(?!{_CODE}3a{_CODE}2f)[^\s'\"`&])*?(?P<at>{_CODE}40)"
        ),
        rf"\1{HIDDEN}\g<at>",
    ),
    Pattern(
        "u:s3cret@h:22 is away",
        ("@",),
        _of(
            r"(?<![\w.+/@:%-])(?!mailto:)[\w.+-]+:(?!//)(?:[^\s/:@'\"`,]{4,}|\*{3})@(?!sha\d)(?=[\w.-]+)"
        ),
        f"{HIDDEN}@",
    ),
    Pattern(
        "https://h/a.mp4?api_key=s3cret&x=1",
        ("=",),
        _of(rf"((?:[?&;#]|\\u0026){_PARTS}(?:{_SIGNING}|{_SURE}|{_WEAK})=['\"]?){_VALUE}"),
    ),
    Pattern(
        "https://h/get?url=https%3A%2F%2Fb%2Fa%3FX-Amz-Signature%3Ds3cret%26x%3D1",
        ("%3d", "253d"),
        _of(
            rf"((?:(?:[?&;#]|{_CODE}(?:3f|26|3b|23)|\\u0026){_PARTS}(?:{_SURE}|{_WEAK}|{_SIGNING})"
            rf"|(?<![a-z0-9]){_SIGNING}){_CODE}3d){_ENCODED}"
        ),
    ),
    Pattern(
        "AWS4-HMAC-SHA256 Credential=s3cret/2026/s3, SignedHeaders=host, Signature=s3cret",
        ("=",),
        _of(rf"((?<![a-z0-9]){_SIGNING}{_IS}){_VALUE}"),
    ),
    Pattern(
        "DB_PASSWORD=s3cret, token='s3cret'",
        ("=",),
        _of(rf"((?:{_SURE}|token|(?<![a-z0-9])pwd){_IS}){_LONGER}"),
    ),
    Pattern(
        "x-api-key: s3cret",
        (":",),
        _of(
            rf"((?:{_SURE}|(?<=[-_]){_SIGNING}|awsaccesskeyid|(?<=[a-z0-9][-_])(?:key|token|pwd))"
            rf"{_COLON}(?!b?\\?['\"])){_LONGER}"
        ),
    ),
    Pattern(
        "{'X-Amz-Signature': 's3 cret', \"token\": \"s3cret\"}",
        (":",),
        _of(
            rf"((?:{_SIGNING}|{_SURE}|token|pwd|credentials)\\?{_COLON}b?(?P<quote>\\?['\"]))"
            r"(?:(?!(?P=quote)).)+"
        ),
    ),
    Pattern(
        "Proxy-Authorization: s3cret",
        ("authorization",),
        _of(
            rf"(authorization\\?(?:{_COLON}|{_IS}){_OPEN}"
            r"(?:(?:bearer|basic|digest|token|negotiate|ntlm|apikey):?[ ]"
            rf"|[a-z][\w-]{{0,40}}[ ](?=[^\s'\"]{{0,40}}[\d:=*]))?){_VALUE}"
        ),
    ),
    Pattern(
        "Set-Cookie: a=s3cret; b=s3cret",
        ("cookie",),
        _of(rf"(cookie\\?{_COLON}{_OPEN})[^\s'\"\\][^\r\n'\"\\]*"),
    ),
    Pattern(
        "curl said BEARER: s3cretabcdefg",
        ("bearer", "basic"),
        # Shorter than 15, letters alone are a word, as in `basic authentication`.
        re.compile(
            r"(\b(?i:bearer|basic):?\s)(?=[\w.~+/=-]{15}|[\w.~+/-]*[\d=]|[\w.~/-][a-z]*[A-Z])"
            r"[\w.~+/=-]{4,}"
        ),
    ),
    Pattern(
        "-----BEGIN RSA PRIVATE KEY-----\ns3cret\n-----END RSA PRIVATE KEY-----",
        ("-----begin",),
        re.compile(r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[^-]*"),
    ),
    Pattern(  # whose beginning was cut off
        "s3cret\n-----END PRIVATE KEY-----",
        ("-----end",),
        re.compile(r"\A()[\w+/=\s]+(?=-----END [A-Z ]{0,40}PRIVATE KEY-----)"),
    ),
    Pattern(
        "hf_s3cretabcdefghijklmnopq",
        ("akia", "asia", "aroa", "hf_", "gh", "xox", "sk-", "ya29.", "aiza", "eyj"),
        re.compile(
            r"\b(?:(?:AKIA|ASIA|AROA)[A-Z0-9]{12,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
            r"|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|ya29\.[\w.-]{20,}"
            r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
        ),
        HIDDEN,
    ),
)
