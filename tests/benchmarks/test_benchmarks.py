"""Every benchmark runs, on models and clips so small that its numbers say nothing."""

import sys
from argparse import Namespace

import pytest
import torch

from pipeline import Editor
from tests.benchmarks import cost, edits, exchange, masks, round_trip, speedups, storage


@pytest.mark.parametrize("edits", cost.SEVERAL)
@pytest.mark.parametrize("name", cost.PLANS)
def test_the_forwards_of_a_plan_are_those_of_its_formula(
    name: str, edits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "LATENTS", (2, 16, 8, 8))
    monkeypatch.setattr(cost, "STEPS", 5)
    counted = cost.recorded_run(cost.PLANS[name], edits).forwards
    assert (counted.plain, counted.injected) == cost.expected(cost.PLANS[name], edits)


def test_the_formulas_of_cost_give_the_known_forwards_of_an_edit() -> None:
    """At 50 steps and c = 1.49; one more for each inversion and video than without PEC."""
    rows = cost.forwards_table().splitlines()[4:]
    known = {row.split(" | ")[0][2:]: [int(n) for n in row[:-2].split(" | ")[2:]] for row in rows}
    assert known == {
        "the script, for each prompt": [349, 349, 349],
        "one inversion, without guidance": [300, 262, 255],
        "shared reference (exact)": [300, 224, 212],
        "empty reference (null)": [250, 174, 162],
        "empty, in the first half of the steps": [201, 144, 134],
        "empty, from 60% of the levels": [150, 105, 97],
        "the defaults": [124, 78, 70],
    }


def test_the_benchmark_of_cost_times_every_plan_that_has_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "LATENTS", (2, 16, 8, 8))
    monkeypatch.setattr(cost, "STEPS", 5)
    monkeypatch.setattr(cost, "SEVERAL", (1, 4))
    found = cost.measure(Namespace(quick=True))
    assert found.figures[0].met
    judged = {figure.name for figure in found.figures if figure.basis == "ratio" and figure.target}
    assert judged == {f"4 edits, {name}" for name, plan in cost.PLANS.items() if plan.target}


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


def test_a_speed_up_is_judged_by_its_worst_edit_however_many_are_equal() -> None:
    row = speedups.Row(plain_s=3.0, seconds=2.0, db=[speedups.SAME_DB] * 9 + [29.0])
    worst, faster = speedups.figures({speedups.RECOMMENDED: row})
    assert (worst.value, worst.met) == (29.0, False)
    assert (faster.value, faster.met) == (1.5, True)
    row.db[-1] = 31.0
    assert speedups.figures({speedups.RECOMMENDED: row})[0].met


def test_a_speed_up_that_is_not_there_has_a_reason_and_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    names = ("plain", "fp8", "sage")
    rows = speedups.quality(1, 2, {name: speedups.VARIANTS[name] for name in names})
    assert rows["fp8"].problem == "not installed"
    assert "the model is on cpu" in rows["sage"].problem
    assert speedups.figures(rows) == []
    assert speedups.as_markdown(rows, 1).count("\n| ") == len(names)


def test_the_benchmark_of_masks_counts_no_forward_more_and_knows_the_true_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks, "STEPS", 3)
    found = masks.measure(Namespace(quick=True, seed=1))
    counted = [figure for figure in found.figures if figure.basis == "counted"]
    assert [figure.value for figure in counted] == [0, 0]
    rows = {row.split(" | ")[0]: row for row in found.tables["masks"].splitlines()}
    assert len(rows) == 4 + len(masks.VARIANTS)
    assert "| 1.00 / 1.00 |" in rows["| given"]  # nothing but the pooling is compared
    assert found.tables["background"].count("dB") == 2 * 6
