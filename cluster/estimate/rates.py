"""How fast each kind of device is: a table of assumptions, and files of measurements over it.

Peaks are those of the makers' data sheets: FLOPs a second of matrix products in 16 bits, summed in
32, without sparsity. The share of it that a forward reaches (MFU) was published for two kinds; for
the others it is a guess, and says so. The GPU benchmark writes a file of what it measured, which
takes the table's place.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.estimate.record import Rate
from cluster.job import CannotRun

GB = 10**9
TERA = 10.0**12

H100_MFU, A100_MFU = 0.37, 0.59
"""CogVideoX's model cards: 50 guided steps of 5b at 49x480x720 take about 90 s on an H100 and 180 s
on an A100; 100 forwards of 332 TFLOP are 369 and 184 TFLOP/s."""
OTHER_MFU = 0.45
VAE_MFU = 0.15
"""Of 3D convolutions that are no matrix products; nobody published it."""

_PUBLISHED = "model card of CogVideoX-5b: 50 guided steps in about {}; injected and VAE are guesses"
_GUESS = "a guess: no speed of this model on it was published"
_CARD = "5b on an H100 as published (37%), for its successor; a guess"


def _rate(name: str, memory_gb: int, tflops: float, mfu: float, source: str) -> Rate:
    return Rate(name, memory_gb * GB, tflops * TERA, mfu, mfu, VAE_MFU, "assumed", source)


RATES: Mapping[str, Rate] = {
    rate.name: rate
    for rate in (
        _rate("H100", 80, 989, H100_MFU, _PUBLISHED.format("90 s on an H100")),
        _rate("H200", 141, 989, H100_MFU, _PUBLISHED.format("90 s on an H100, the same chip")),
        _rate("B200", 180, 2250, H100_MFU, _CARD),
        _rate("A100-80GB", 80, 312, A100_MFU, _PUBLISHED.format("180 s on an A100")),
        _rate("A100-40GB", 40, 312, A100_MFU, _PUBLISHED.format("180 s on an A100")),
        _rate("L40S", 48, 362, OTHER_MFU, _GUESS),
        _rate("L4", 24, 121, OTHER_MFU, _GUESS),
        _rate("A10G", 24, 70, OTHER_MFU, _GUESS),
        _rate("RTX-4090", 24, 165, OTHER_MFU, _GUESS),
        _rate("RTX-5090", 32, 209, OTHER_MFU, _GUESS),
        _rate(
            "cpu",
            64,
            1.3,
            0.5,
            "a guess: a machine of 16 cores at 2.5 GHz with 32 FLOPs a cycle each, in fp32",
        ),
    )
}
"""By name. `cpu` is one machine: its cores work on one video together."""

CPU = "cpu"


def rate_of(name: str, rates: Mapping[str, Rate] = RATES) -> Rate:
    """The rate of a kind: `H100`, `a100-80`, `RTX 4090`.

    Raises:
        CannotRun: there is no such kind; the text names those that there are, and the nearest.
    """
    by_name = {_plain(known): rate for known, rate in rates.items()}
    found = by_name.get(_plain(name))
    if found:
        return found
    near = difflib.get_close_matches(_plain(name), by_name, n=1, cutoff=0.5)
    longer = sorted(known for known in by_name if _plain(name) and known.startswith(_plain(name)))
    nearest = [by_name[one].name for one in longer or near]
    meant = f"; did you mean {' or '.join(nearest)}?" if nearest else "."
    if "," in name:
        meant = "; these are several: give each by itself."
    raise CannotRun(
        f"GPU {name!r}: expected one of {', '.join(rates)}{meant} For another kind write a rates "
        "file with its name, memory_gb, peak_tflops and plain_mfu"
    )


def read_rates(file: str | Path, rates: Mapping[str, Rate] = RATES) -> dict[str, Rate]:
    """The rates with those of a file, YAML or JSON, in their place and beside them.

    The file holds a list `rates`. Each entry has a `name`; what else it has replaces what is known
    of that kind. A new kind needs `memory_gb`, `peak_tflops` and `plain_mfu`; without
    `injected_mfu` the share of a plain forward is taken, without `vae_mfu` 0.15.

        rates:
        - name: H100
          plain_mfu: 0.45
          injected_mfu: 0.43
          vae_mfu: 0.2
          basis: measured
          source: tests/benchmarks/results/5b_H100_2026-12-01.md

    Raises:
        CannotRun: there is no such file, or it is not as described.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise CannotRun(
            f"rates file {file}: cannot be read: {why}; name a YAML or JSON file of rates"
        ) from error
    try:
        found = _parsed(text)
    except yaml.YAMLError as error:
        raise CannotRun(f"rates file {file}: is neither YAML nor JSON: {error}") from error
    entries = found.get("rates") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise CannotRun(
            f"rates file {file}: expected a list of kinds, as `rates: [{{name: H100, plain_mfu: "
            f"0.4}}]`, and found {'nothing' if found is None else _shown(found)}"
        )
    known = dict(rates)
    for number, entry in enumerate(entries):
        rate = _read(entry, f"rates file {file}: rates[{number}]", str(file), known)
        known[rate.name] = rate
    return known


def _parsed(text: str) -> Any:
    """JSON first: YAML 1.1 takes its `1e-05` for a text."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


_SHARES = ("plain_mfu", "injected_mfu", "vae_mfu")
_SCALED = {"memory_gb": ("memory_bytes", GB), "peak_tflops": ("peak_flops", TERA)}
"""Numbers that a file may have in a person's unit."""


def _read(entry: Mapping[str, Any], where: str, file: str, known: Mapping[str, Rate]) -> Rate:
    """One entry of a rates file."""
    allowed = [field.name for field in fields(Rate)] + list(_SCALED)
    for given in entry:
        if given not in allowed:
            near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
            raise CannotRun(
                f"{where} has {given!r}; expected only {', '.join(allowed)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise CannotRun(f"{where}: its name is {name!r}; expected the name of a kind, as H100")
    values = _values(entry, where)
    before = {_plain(one): rate for one, rate in known.items()}.get(_plain(name))
    basis = entry.get("basis", "assumed")
    if basis not in ("measured", "assumed"):
        raise CannotRun(f"{where} ({name}): basis is {basis!r}; expected measured or assumed")
    source = str(entry.get("source", file))
    guessed = [share for share in _SHARES if share not in values]
    if basis == "measured" and guessed:
        source += f" (without {', '.join(guessed)}, which are guesses)"
    about: dict[str, Any] = {"basis": basis, "source": source}
    if before:
        return replace(before, **values, **about)
    if lacking := [one for one in ("memory_bytes", "peak_flops", "plain_mfu") if one not in values]:
        wanted = [
            {"memory_bytes": "memory_gb", "peak_flops": "peak_tflops"}.get(n, n) for n in lacking
        ]
        raise CannotRun(
            f"{where}: {name!r} is a new kind, and lacks {', '.join(wanted)}. Known kinds, whose "
            f"entries need not have all, are {', '.join(known)}"
        )
    values.setdefault("injected_mfu", values["plain_mfu"])
    values.setdefault("vae_mfu", VAE_MFU)
    return Rate(name=name, **values, **about)


def _values(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The numbers of an entry, by the fields of `Rate`."""
    values: dict[str, Any] = {}
    for name in (*_SHARES, *_SCALED, "memory_bytes", "peak_flops"):
        if name not in entry:
            continue
        value = entry[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        most = 1.0 if name in _SHARES else float("inf")
        if not number or not 0 < value <= most or value == float("inf"):
            expected = "a share above 0, at most 1" if name in _SHARES else "a number above 0"
            if number and name in _SHARES and 1 < value <= 100:
                expected += f"; for {value:g}% write {value / 100:g}"
            raise CannotRun(f"{where}: {name} is {value!r}; expected {expected}")
        field, unit = _SCALED.get(name, (name, 1))
        values[field] = value * unit
    if "memory_bytes" in values:
        values["memory_bytes"] = int(values["memory_bytes"])
    return values


def kinds(names: Iterable[str], rates: Mapping[str, Rate] = RATES) -> tuple[Rate, ...]:
    """The rates of the kinds that a user names, each once and in their order."""
    return tuple(dict.fromkeys(rate_of(name, rates) for name in names))


def _plain(name: str) -> str:
    """A kind's name without what users write in different ways."""
    return re.sub(r"nvidia|geforce|sxm\d?|pcie|gb$|[^a-z0-9]", "", name.lower().strip())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
