"""The dashboard: it shows every metric and no other, and is what Grafana expects of one."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cluster.metrics.dashboard import WIDTH, dashboard
from cluster.metrics.declared import METRICS, RUN
from jobs.cli import app

MADE = dashboard()
PANELS: list[dict[str, Any]] = [panel for panel in MADE["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
KINDS = {"timeseries", "stat", "bargauge"}
"""Types of panels that every Grafana has."""
UNITS = {"short", "s", "percentunit", "Bps"}
"""Names of Grafana's, in its list of units."""
ADDED = {"NodeAddress"}
"""Tags that Ray adds to all metrics."""


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    named = {name for query in QUERIES for name in re.findall(r"\bray_\w+", query)}
    assert named == {metric.exported for metric in METRICS}


def test_a_query_names_only_tags_that_its_metrics_have() -> None:
    tags = {metric.exported: {RUN, *metric.tags} for metric in METRICS}
    for query in QUERIES:
        series = re.findall(r"\b(ray_\w+)\{([^}]*)\}", query)
        assert series
        for name, matchers in series:
            assert set(re.findall(r"(\w+)(?:=~|!=|=)", matchers)) <= tags[name], query
        all_tags = set.union(*(tags[name] for name, _ in series)) | ADDED
        for grouped in re.findall(r"\bby \(([^)]*)\)", query):
            assert set(grouped.split(", ")) <= all_tags, query


def test_a_legend_names_only_tags_that_its_query_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
            kept = set(grouped.group(1).split(", ")) if grouped else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == kept, panel["title"]


def test_the_panels_lie_side_by_side_within_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in MADE["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        rows = range(place["y"], place["y"] + place["h"])
        cells = set(itertools.product(range(place["x"], place["x"] + place["w"]), rows))
        assert not taken & cells, panel["title"]
        taken |= cells


def test_every_panel_has_a_number_a_type_and_a_unit_and_asks_the_chosen_prometheus() -> None:
    assert [panel["id"] for panel in MADE["panels"]] == list(range(1, len(MADE["panels"]) + 1))
    datasource, run = MADE["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": f"${{{datasource['name']}}}"}
    assert run["datasource"] == chosen
    for panel in PANELS:
        assert panel["type"] in KINDS
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == chosen
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
    titles = [panel["title"] for panel in MADE["panels"]]
    assert len(set(titles)) == len(titles)


def test_every_query_is_of_the_chosen_runs() -> None:
    assert MADE["templating"]["list"][1]["name"] == "run"
    for query in QUERIES:
        assert query.count('run=~"$run"') == len(re.findall(r"\bray_\w+", query))


def test_the_command_writes_the_dashboard_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    file = tmp_path / "retake.json"
    done = CliRunner().invoke(app, ["dashboard", str(file)])
    assert done.exit_code == 0
    assert done.output == (
        f"{file}: import it in Grafana (Dashboards, New, Import), and choose your Prometheus "
        "there\n"
    )
    assert json.loads(file.read_text()) == MADE


def test_a_dashboard_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["dashboard", str(tmp_path / "file/retake.json")])
    assert done.exit_code == 1
    assert done.output.startswith(f"error: {tmp_path}/file/retake.json: ")
    assert "Traceback" not in done.output
