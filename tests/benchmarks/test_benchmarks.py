"""Every benchmark runs, on models and clips so small that its numbers say nothing."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline import Editor
from pipeline.model.checkpoint import CheckpointInfo
from tests.benchmarks import cost, edits, exchange, gpu, round_trip, storage
from tests.benchmarks.card import Bench, Sizes
from tests.published_models import T5
from tests.small_models import FRAMES, HEIGHT, WIDTH, make_transformer, make_vae, scheduler


def test_the_benchmark_of_cost_counts_what_each_plan_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LATENTS", (2, 16, 8, 8))
    monkeypatch.setattr(cost, "STEPS", 5)
    monkeypatch.setattr(cost, "LAYERS", 1)
    model, clean = cost.mid_sized_model(), torch.randn(cost.LATENTS)
    script = cost.measure(model, partial(cost.script_plan, model, clean, cost.EDITS[0]))
    assert (script.plain, script.injected) == (4 * 5, 2 * 5)  # guided inversion; two references
    ours = {
        name: cost.measure(model, partial(cost.our_plan, model, clean, settings))
        for name, (settings, _) in cost.PLANS.items()
    }
    empty = ours["empty reference"]
    assert (empty.plain, empty.injected) == (6 + 5, 2 * 4 * 5)  # pec; a reference for all edits
    assert cost.table(script, ours).count("\n| ") == 2 + len(ours)


def test_the_benchmark_of_storage_prints_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "SHAPE", (3, 16, 8, 8))
    monkeypatch.setattr(storage, "STEPS", 2)
    monkeypatch.setattr(storage, "LATENCY_S", 0.0)
    storage.main()
    assert capsys.readouterr().out.count("\n| ") == 2 + 3 + 3


@pytest.mark.distributed
def test_a_group_sends_what_the_formula_says() -> None:
    counts = exchange.counted(groups=1)
    degrees = exchange.MEASURED[0][1]
    for family, model in exchange.SMALL.items():
        formula = exchange.sent_in_a_step(model, degrees)
        assert counts[degrees][family] == {kind: n for kind, n in formula.items() if n}


def test_the_benchmark_of_the_round_trip_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "STEPS", 2)
    monkeypatch.setattr(round_trip, "METHODS", ("pec",))
    editor = Editor.from_pretrained("embedded", device="cpu")
    editor.set_progress_bar_config(disable=True)
    clip = torch.full((9, 64, 64, 3), 120, dtype=torch.uint8)
    row = round_trip.table(editor, [clip], "embedded").splitlines()[-1]
    assert row.startswith("| pec | ")


@pytest.mark.parametrize("name", edits.SETTINGS)
def test_the_benchmark_of_edits_knows_what_certifying_costs(name: str) -> None:
    assert 0 <= edits.round_trip_forwards(name) <= edits.STEPS


def tiny_gpu_bench() -> Bench:
    """The benchmark of a GPU in sizes that a CPU does in seconds."""
    made = make_transformer("5b"), make_vae()
    transformer, vae = (dict(model.config) for model in made)
    info = CheckpointInfo(Path(), "5b", transformer, vae, scheduler("5b"), "")
    t5 = {**T5, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    sizes = Sizes(info, (FRAMES, HEIGHT, WIDTH), [(5, HEIGHT, WIDTH)], t5, edits=2)
    return Bench(sizes, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("versions", 4),
        ("kernels", 6),
        ("forwards", 3),
        ("vae", 4),
        ("small_card", 2),
        ("out_of_memory", 3),
        pytest.param("group_of_one", 2, marks=pytest.mark.distributed),
        ("demo", 2),
        ("text_encoder", 1),
    ],
)
def test_the_benchmark_of_a_gpu_runs_in_tiny_sizes_on_a_cpu(
    name: str, rows: int, tmp_path: Path
) -> None:
    gpu.run(tiny_gpu_bench(), [name], tmp_path / "table.md")
    written = (tmp_path / "table.md").read_text()
    assert "failed" not in written
    assert written.count("\n| ") == 1 + rows


def test_a_section_of_the_gpu_benchmark_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(bench: Bench) -> Iterator[list[str]]:
        """It breaks."""
        yield ["a", "b"]
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setitem(gpu.SECTIONS, "vae", broken)
    gpu.run(tiny_gpu_bench(), ["vae", "versions"], tmp_path / "table.md")
    written = (tmp_path / "table.md").read_text()
    assert "| failed: RuntimeError: CUDA error: no kernel image |  |" in written
    assert "## versions" in written
