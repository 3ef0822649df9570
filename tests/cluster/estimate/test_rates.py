"""Kinds of devices are found by the names that users give them, and measured ones replace them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.deploy.gpus import GPUS
from cluster.estimate.rates import RATES, kinds, rate_of, read_rates
from cluster.job import CannotRun


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("H100", "H100"),
        ("h100", "H100"),
        ("NVIDIA H100 SXM5", "H100"),
        ("A100-80", "A100-80GB"),
        ("a100-40gb", "A100-40GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100-80GB"),
        ("RTX 4090", "RTX-4090"),
        ("rtx_4090", "RTX-4090"),
        ("CPU", "cpu"),
    ],
)
def test_a_kind_is_found_however_it_is_written(given: str, name: str) -> None:
    assert rate_of(given).name == name


@pytest.mark.parametrize(
    ("given", "meant"),
    [("A100", "A100-40GB or A100-80GB"), ("H10", "H100"), ("RTX", "RTX-4090 or RTX-5090")],
)
def test_an_unknown_kind_is_refused_with_the_known_ones_and_the_nearest(
    given: str, meant: str
) -> None:
    with pytest.raises(CannotRun) as refused:
        rate_of(given)
    assert f"GPU '{given}': expected one of {', '.join(RATES)}; did you mean {meant}?" in str(
        refused.value
    )
    assert str(refused.value).endswith(
        f"{meant}? For another kind write a rates file with its name, "
        "memory_gb, peak_tflops and plain_mfu"
    )


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(CannotRun, match="expected one of") as refused:
        rate_of("???")
    assert "did you mean" not in str(refused.value)
    assert "cpu. For another kind" in str(refused.value)


def test_kinds_named_twice_are_planned_once_and_in_their_order() -> None:
    assert [rate.name for rate in kinds(["L4", "H100", "l4"])] == ["L4", "H100"]


def test_every_kind_says_what_it_is_based_on() -> None:
    for rate in RATES.values():
        assert rate.basis == "assumed"
        assert rate.source
        assert 0 < rate.plain_mfu < 1
    # 100 forwards of 332 TFLOP in the 90 s and 180 s of the model card.
    for name, seconds in (("H100", 90), ("A100-80GB", 180)):
        rate = rate_of(name)
        assert 100 * 332e12 / (rate.peak_flops * rate.plain_mfu) == pytest.approx(seconds, rel=0.02)


def test_the_kinds_that_retake_deploy_knows_have_rates_and_the_same_memory() -> None:
    for kind, gpu in GPUS.items():
        assert rate_of(kind).memory_bytes == gpu.memory_gb * 10**9


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ("H10", "did you mean H100? For another kind"),
        ("H100,L4", "these are several: give each by itself."),
    ],
)
def test_what_is_meant_by_an_unknown_kind_is_a_sentence(given: str, end: str) -> None:
    with pytest.raises(CannotRun, match=re.escape(end)):
        rate_of(given)


def test_a_small_number_of_a_json_file_is_a_number(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps({"rates": [{"name": "cpu", "plain_mfu": 1e-05}]}))
    assert read_rates(file)["cpu"].plain_mfu == 1e-05


def write(folder: Path, text: str) -> Path:
    path = folder / "rates.yaml"
    path.write_text(text)
    return path


def test_a_rates_file_replaces_what_it_names_and_adds_kinds(tmp_path: Path) -> None:
    measured = {"name": "h100", "plain_mfu": 0.45, "injected_mfu": 0.4, "basis": "measured"}
    new = {"name": "X1", "memory_gb": 96, "peak_tflops": 500, "plain_mfu": 0.4, "source": "me"}
    file = write(tmp_path, json.dumps({"rates": [measured, new]}))
    rates = read_rates(file)
    assert list(rates) == [*RATES, "X1"]
    h100 = rates["H100"]
    assert (h100.plain_mfu, h100.injected_mfu, h100.basis) == (0.45, 0.4, "measured")
    assert (h100.memory_bytes, h100.vae_mfu) == (80_000_000_000, RATES["H100"].vae_mfu)
    assert h100.source == f"{file} (without vae_mfu, which are guesses)"
    x1 = rate_of("x1", rates)
    assert (x1.memory_bytes, x1.peak_flops) == (96_000_000_000, 5e14)
    assert (x1.plain_mfu, x1.injected_mfu, x1.source, x1.basis) == (0.4, 0.4, "me", "assumed")
    assert RATES["H100"].basis == "assumed"


def test_the_fields_of_a_rate_are_read_in_bytes_and_flops_too(tmp_path: Path) -> None:
    file = write(tmp_path, "rates: [{name: Y, memory_bytes: 5, peak_flops: 1e9, plain_mfu: 1}]")
    with pytest.raises(CannotRun, match=r"peak_flops is '1e9'; expected a number above 0"):
        read_rates(file)  # YAML 1.1 reads 1e9 as text
    file = write(tmp_path, "rates: [{name: Y, memory_bytes: 5, peak_flops: 1.0e+9, plain_mfu: 1}]")
    assert (read_rates(file)["Y"].memory_bytes, read_rates(file)["Y"].peak_flops) == (5, 1e9)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "is neither YAML nor JSON"),
        ("- H100", "expected a list of kinds"),
        ("rates: {H100: 1}", "expected a list of kinds"),
        ("rates: [H100]", "expected a list of kinds"),
        ("rates: [{plain_mfu: 0.4}]", r"rates\[0\]: its name is None"),
        ("rates: [{name: H100, mfu: 0.4}]", "has 'mfu'.*did you mean .*mfu"),
        (
            "rates: [{name: H100, plain_mfu: 40}]",
            "plain_mfu is 40; expected a share above 0, at most 1; for 40% write 0.4",
        ),
        ("rates: [{name: H100, plain_mfu: true}]", "plain_mfu is True; expected a share"),
        ("rates: [{name: H100, memory_gb: -1}]", "memory_gb is -1; expected a number above 0"),
        ("rates: [{name: H100, basis: told}]", "basis is 'told'; expected measured or assumed"),
        ("rates: [{name: X1, memory_gb: 3}]", "'X1' is a new kind, and lacks peak_tflops, plain"),
    ],
)
def test_a_wrong_rates_file_is_refused_with_what_is_wrong(
    text: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotRun, match=why) as refused:
        read_rates(write(tmp_path, text))
    assert str(tmp_path / "rates.yaml") in str(refused.value)


def test_a_rates_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"none\.yaml: cannot be read: No such file"):
        read_rates(tmp_path / "none.yaml")
