"""What a run exports, scraped over HTTP, and the dashboard's queries of it in a real Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cluster.metrics import declared
from cluster.metrics.dashboard import ROWS
from tests.cluster.metrics.scene import PROMETHEUS, Scraped, a_run

pytestmark = [pytest.mark.ray, pytest.mark.distributed]

QUERIES = {
    f"{panel.title} {legend}".strip(): query
    for panels in ROWS.values()
    for panel in panels
    for legend, query in panel.queries.items()
}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    with a_run(tmp_path_factory.mktemp("metrics")) as seen:
        yield seen


def values(scraped: Scraped, metric: declared.Metric) -> dict[tuple[str, ...], float]:
    """The values of a metric by its own tags, those of all processes added up."""
    found: dict[tuple[str, ...], float] = {}
    series = re.findall(rf"^{metric.exported}{{(.*)}} (\S+)$", scraped.text, re.MULTILINE)
    for tags, value in series:
        given = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        assert given["run"] == scraped.run
        key = tuple(given[tag] for tag in metric.tags)
        found[key] = found.get(key, 0.0) + float(value)
    return found


def test_a_run_exports_every_metric_with_the_right_value(scraped: Scraped) -> None:
    seen = {metric: values(scraped, metric) for metric in declared.METRICS}
    assert [metric.name for metric, found in seen.items() if not found] == []
    assert seen[declared.EDITS] == {("ok", "none"): 4, ("failed", "video_unreadable"): 2}
    assert seen[declared.EXPECTED] == {(): 6}
    assert seen[declared.QUEUE] == {("manifest",): 0, ("wave",): 0, ("results",): 0}
    assert seen[declared.VIDEOS] == {(): 2}
    assert seen[declared.PROMPTS] == {(): 3}
    assert seen[declared.WAVES] == {(): 1}
    assert seen[declared.RETRIES] == seen[declared.GPU_SECONDS] == {(): 0}
    assert seen[declared.BYTES][()] > 1000
    assert seen[declared.TROUBLE] == {(): 0}
    parts = seen[declared.PART_SECONDS]
    assert set(parts) == {(part,) for part in declared.PARTS}
    assert parts["invert",] > 0 < parts["reconstruct",]
    assert seen[declared.GROUPS] == seen[declared.READY] == {("prompts",): 1, ("editing",): 1}
    busy, all_seconds = seen[declared.BUSY_SECONDS], seen[declared.GROUP_SECONDS]
    assert 0 < busy["editing",] < all_seconds["editing",] < 300
    assert set(busy) == {("prompts",), ("editing",)}
    assert set(seen[declared.RESTARTS].values()) == set(seen[declared.RESERVED].values()) == {0}


@pytest.mark.skipif(not PROMETHEUS, reason="there is no prometheus")
def test_every_panel_has_data_in_prometheus(scraped: Scraped) -> None:
    assert scraped.ask
    without = []
    for title, query in QUERIES.items():
        for name, value in (("$run", ".*"), ("$__rate_interval", "15s"), ("$__range", "120s")):
            query = query.replace(name, value)
        if not scraped.ask(query):
            without.append((title, query))
    assert not without
