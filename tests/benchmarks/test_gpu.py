"""The benchmark of a GPU, in sizes so small that a CPU runs it and its numbers say nothing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from cluster.estimate.rates import RATES, read_rates
from pipeline.model.checkpoint import CheckpointInfo
from tests.benchmarks.gpu import __main__ as gpu
from tests.benchmarks.gpu import forwards
from tests.benchmarks.gpu.card import NATIVE, Bench, Sizes
from tests.benchmarks.gpu.kinds import KINDS, Kind, kind_of
from tests.published_models import T5
from tests.small_models import FRAMES, HEIGHT, WIDTH, make_transformer, make_vae, scheduler

CPU = Kind("cpu", 1.3)


def tiny_bench(kind: Kind | None = None) -> Bench:
    made = make_transformer("5b"), make_vae()
    transformer, vae = (dict(model.config) for model in made)
    info = CheckpointInfo(Path(), "5b", transformer, vae, scheduler("5b"), "")
    t5 = {**T5, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    sizes = Sizes(info, (FRAMES, HEIGHT, WIDTH), [(5, HEIGHT, WIDTH)], t5, edits=(1, 4))
    return Bench(sizes, torch.device("cpu"), kind)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("versions", 4),
        ("forwards", 6),
        ("kernels", 6),
        ("step_cache", 6),
        ("small_card", 2),
        ("out_of_memory", 3),
        pytest.param("group_of_one", 2, marks=pytest.mark.distributed),
        ("demo", 2),
        ("text_encoder", 1),
    ],
)
def test_a_section_runs_in_tiny_sizes_on_a_cpu(name: str, rows: int, tmp_path: Path) -> None:
    gpu.run(tiny_bench(), [name], tmp_path / "table.md")
    written = (tmp_path / "table.md").read_text().partition("## ")[2]
    assert "failed" not in written
    assert written.count("\n| ") == 1 + rows


@pytest.mark.parametrize("way", forwards.WAYS)
def test_a_way_to_make_forwards_faster_is_compared_with_native(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a native model in its place: a CPU has neither kernels in 8 bits nor time to compile."""
    monkeypatch.setitem(forwards.WAYS, way, NATIVE)
    bench = tiny_bench()
    assert gpu.run(bench, [way], tmp_path / "table.md") == []
    written = (tmp_path / "table.md").read_text()
    assert "| a plain forward's velocity, against native | inf dB |  |" in written
    assert set(bench.found.edit_s) == {"native", forwards.NAMES[way]}
    assert f"| {forwards.NAMES[way]} | " in written


def test_what_was_reached_is_in_a_file_of_rates(tmp_path: Path) -> None:
    bench = tiny_bench(CPU)
    assert gpu.run(bench, ["forwards", "vae"], tmp_path / "5b_here.md") == []
    assert (tmp_path / "5b_here.md").read_text().count("| 5x64x96 | ") == 4
    (entry,) = json.loads((tmp_path / "5b_here.json").read_text())["rates"]
    assert {key: entry[key] for key in ("name", "basis", "source")} == {
        "name": "cpu",
        "basis": "measured",
        "source": "tests/benchmarks/results/5b_here.md",
    }
    shares = [entry[name] for name in ("plain_mfu", "injected_mfu", "vae_mfu")]
    assert all(0 < share < 1 for share in shares)
    plain_s = bench.found.seconds["native"][0]
    flops = forwards.flops_of(bench)["plain"]
    assert entry["plain_mfu"] == pytest.approx(flops / plain_s / 1.3e12, rel=1e-2)


def test_the_command_names_its_file_by_model_hardware_and_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "real_sizes", lambda family: tiny_bench().sizes)
    arguments = ["--device", "cpu", "--only", "versions", "--minutes", "1", "--to", str(tmp_path)]
    assert gpu.main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"5b_a-cpu_{date.today()}.md"]


def test_a_second_run_of_a_day_leaves_the_tables_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "real_sizes", lambda family: tiny_bench().sizes)
    first, second = (f"5b_a-cpu_{date.today()}{number}.md" for number in ("", "-2"))
    arguments = ["--device", "cpu", "--minutes", "1", "--to", str(tmp_path), "--only"]
    gpu.main([*arguments, "text_encoder"])
    before = (tmp_path / first).read_text()
    gpu.main([*arguments, "versions"])
    assert (tmp_path / first).read_text() == before
    assert "## versions" in (tmp_path / second).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "finds no GPU here"),
        (["--device", "cpu", "--kind", "X1"], "--kind and --peak go together"),
        (["--device", "cpu", "--peak", "100"], "--kind and --peak go together"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^2$"):
        gpu.main([*arguments, "--to", str(tmp_path / "to")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_a_plan_takes_the_file_of_rates(tmp_path: Path) -> None:
    bench = tiny_bench(replace(CPU, name="H200"))
    assert gpu.run(bench, ["forwards", "vae"], tmp_path / "5b_here.md") == []
    rate = read_rates(tmp_path / "5b_here.json")["H200"]
    assert (rate.basis, rate.source) == ("measured", "tests/benchmarks/results/5b_here.md")
    found = (rate.plain_mfu, rate.injected_mfu, rate.vae_mfu)
    shares = bench.found.shares
    assert found == pytest.approx([shares[n] for n in ("plain_mfu", "injected_mfu", "vae_mfu")],
                                  rel=1e-2)  # fmt: skip


def test_the_cards_are_those_that_a_plan_knows() -> None:
    """The benchmark needs `pipeline` only, so it has their peaks a second time."""
    peaks = {kind.name: kind.tflops * 1e12 for _, _, kind in KINDS}
    assert peaks == {name: rate.peak_flops for name, rate in RATES.items() if name != "cpu"}


def test_an_edits_seconds_are_those_of_its_forwards() -> None:
    """K = 4, 50 steps, the defaults: 30 levels, 12 of them guided; PEC takes one more."""
    assert forwards.calls_of_an_edit() == (31, 12, 18)
    assert forwards.seconds_of_an_edit(0.67, 1.0) == pytest.approx((61 * 0.67 + 4 * 42) / 4)


def test_a_section_that_fails_says_why_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(bench: Bench) -> Iterator[list[str]]:
        """It breaks."""
        yield ["a", "b"]
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setitem(gpu.SECTIONS, "vae", broken)
    assert gpu.run(tiny_bench(), ["vae", "versions"], tmp_path / "table.md") == ["vae"]
    written = (tmp_path / "table.md").read_text()
    assert "| failed: RuntimeError: CUDA error: no kernel image |  |" in written
    assert "## versions" in written


def test_after_its_minutes_no_section_begins_and_the_file_says_so(tmp_path: Path) -> None:
    gpu.run(tiny_bench(), ["versions", "forwards"], tmp_path / "table.md", minutes=0)
    written = (tmp_path / "table.md").read_text()
    assert "Left out after 0 minutes: versions, forwards." in written
    assert "## " not in written


def test_what_was_there_before_a_card_is_taken_away_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def taken_away(bench: Bench) -> Iterator[list[str]]:
        """It ends as a killed process does."""
        yield ["a"]
        yield ["first row"]
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SECTIONS, "vae", taken_away)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(tiny_bench(), ["vae"], tmp_path / "table.md")
    assert "| first row |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("hardware", "memory_gb", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 85, "H100"),
        ("NVIDIA H200", 150, "H200"),
        ("NVIDIA A100-SXM4-40GB", 42, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 85, "A100-80GB"),
        ("NVIDIA L40S", 48, "L40S"),
        ("NVIDIA L4", 24, "L4"),
        ("NVIDIA GeForce RTX 4090", 25, "RTX-4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10, None),
        ("a CPU", 0, None),
    ],
)
def test_a_card_is_known_by_the_name_of_its_driver(
    hardware: str, memory_gb: float, name: str | None
) -> None:
    kind = kind_of(hardware, memory_gb)
    assert (kind and kind.name) == name


def test_published_seconds_are_judged_on_the_cards_that_they_are_of() -> None:
    bench = tiny_bench(Kind("H100", 989))
    bench.found.seconds = {"native": (0.7, 1.2), "fp8, compiled": (0.5, 0.8)}
    bench.found.edit_s = {"native": 58.0, "fp8, compiled": 41.0}
    first, second = gpu.glance(bench).splitlines()[2:4]
    assert first == (
        "| native | 0.7 (≤ 0.75: met) | 1.2 (≤ 1.1: **missed**) | 58 (≤ 60: met) | 1.00x |"
    )
    assert second.endswith("| 1.41x (≥ 1.45: **missed**) |")
    bench = replace(bench, kind=Kind("A100-80GB", 312))
    assert "met" not in gpu.glance(bench)
