"""A Grafana dashboard of the metrics, as JSON that Grafana imports.

Each panel is one line here; its queries name the metrics as they are declared. Queries about how
much there was take the highest value of each series in the time that is shown: series of groups and
nodes that are gone count as well, and a counter's first value, which `increase` leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.metrics import declared
from cluster.metrics.declared import Metric

SCHEMA_VERSION = 39
"""Of Grafana 10.4 and later, which read it as it is; newer ones migrate it."""
UID = "retake"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
"""Columns of the page, and the usual height of a panel in its rows."""
SMALL = 4


@dataclass(frozen=True)
class Panel:
    """A panel.

    Args:
        title: above it.
        queries: PromQL by legend.
        unit: as Grafana names it.
        kind: Grafana's type of panel.
        width, height: in columns and rows of the page.
        text: its description.
        stacked: whether its series are added up.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = HEIGHT
    text: str = ""
    stacked: bool = False


def of(metric: Metric, *matchers: str) -> str:
    """The series of a metric in the runs that are chosen."""
    tags = ", ".join((f'{declared.RUN}=~"$run"', *matchers))
    return f"{metric.exported}{{{tags}}}"


def rate(metric: Metric, *matchers: str, by: str = "", over: str = "$__rate_interval") -> str:
    return f"sum{f' by ({by})' * bool(by)} (rate({of(metric, *matchers)}[{over}]))"


def total(metric: Metric, *matchers: str, by: str = "") -> str:
    """What a counter has come to."""
    return f"sum{f' by ({by})' * bool(by)} (max_over_time({of(metric, *matchers)}[$__range]))"


def small(title: str, query: str, unit: str = "short", text: str = "") -> Panel:
    """One number."""
    return Panel(title, {"": query}, unit, "stat", width=4, height=SMALL, text=text)


OK = 'status="ok"'
FAILED = 'status!="ok"'
TO_MAKE = 'queue=~"manifest|wave"'
LEFT = f"sum({of(declared.QUEUE, TO_MAKE)})"


def busy(by: str) -> str:
    """The share of their time that groups work."""
    return f"{rate(declared.BUSY_SECONDS, by=by)} / {rate(declared.GROUP_SECONDS, by=by)}"


ROWS: Mapping[str, Sequence[Panel]] = {
    "Progress": (
        small("Edits made", total(declared.EDITS, OK)),
        small("Edits without", total(declared.EDITS, FAILED), text="Failed and quarantined."),
        small("Edits left", LEFT),
        small(
            "Time left",
            f"{LEFT} / ({rate(declared.EDITS, over='15m')} > 0)",
            "s",
            "At the rate of the last 15 minutes.",
        ),
        small(
            "Done",
            f"1 - {LEFT} / (sum({of(declared.EXPECTED)}) > 0)",
            "percentunit",
            "Of the results that the run is to give.",
        ),
        small("Waves", total(declared.WAVES), text="A run takes some thousand videos at a time."),
        Panel(
            "Edits by status",
            {"{{status}}": f"3600 * {rate(declared.EDITS, by='status')}"},
            text="In an hour.",
            stacked=True,
        ),
        Panel(
            "Videos and prompts",
            {
                "videos inverted": f"3600 * {rate(declared.VIDEOS)}",
                "prompts encoded": f"3600 * {rate(declared.PROMPTS)}",
            },
            text="In an hour.",
        ),
        Panel(
            "Waiting edits",
            {"{{queue}}": f"sum by (queue) ({of(declared.QUEUE)})"},
            text="manifest: not yet taken from it; wave: on their way through the groups; results: "
            "made and not yet stored.",
            stacked=True,
        ),
    ),
    "GPUs": (
        Panel(
            "Busy ratio by stage",
            {"{{stage}}": busy("stage")},
            "percentunit",
            text="The share of their time in which groups work on at least one row.",
        ),
        Panel(
            "Busy ratio by node",
            {"{{NodeAddress}} {{stage}}": busy("NodeAddress, stage")},
            "percentunit",
            text="A node that stays below the others waits: for its storage, or for rows.",
        ),
        Panel(
            "Groups",
            {
                "{{stage}} ready": f"sum by (stage) ({of(declared.READY)})",
                "{{stage}} in all": f"sum by (stage) ({of(declared.GROUPS)})",
            },
            text="Those that have loaded what they need, of those that the job has.",
        ),
    ),
    "Time": (
        Panel(
            "Seconds by part",
            {"{{part}}": rate(declared.PART_SECONDS, by="part")},
            text="Seconds of the results in each second: about the groups that do it.",
            width=12,
            stacked=True,
        ),
        Panel(
            "Seconds of an edit by part",
            {
                "{{part}}": f"{total(declared.PART_SECONDS, by='part')} / on () group_left () "
                f"({total(declared.EDITS, OK)} > 0)"
            },
            "s",
            "bargauge",
            width=12,
            text="Mean of the edits of these runs, each with its share of the inversion.",
        ),
    ),
    "Failures": (
        Panel(
            "Edits without, by code",
            {"{{status}} {{code}}": total(declared.EDITS, FAILED, by="status, code")},
            kind="bargauge",
            text="What each code means is in the guide; `retake failures` lists the rows.",
        ),
        Panel(
            "Retries",
            {"tries": f"3600 * {rate(declared.RETRIES)}"},
            text="Attempts beyond the first in an hour.",
        ),
        Panel(
            "Groups started again",
            {"{{stage}}": f"3600 * {rate(declared.RESTARTS, by='stage')}"},
            text="Starts of ranks beyond the first in an hour.",
        ),
    ),
    "Storage": (
        Panel("Edits written", {"edits": rate(declared.BYTES)}, "Bps", width=12),
        Panel(
            "Storage takes no results",
            {"1 is trouble": f"max({of(declared.TROUBLE)})"},
            width=12,
            text="While it is 1 results are kept in the driver and tried again.",
        ),
    ),
    "Cost": (
        small("GPU-hours reserved", f"{total(declared.RESERVED)} / 3600", text="By all groups."),
        small(
            "GPU-hours at work",
            f"{total(declared.GPU_SECONDS)} / 3600",
            text="As the results have it: without loading, waiting and tries that were lost.",
        ),
        small(
            "GPU-hours for 1000 edits",
            f"{total(declared.RESERVED)} / 3.6 / ({total(declared.EDITS, OK)} > 0)",
            text="Reserved ones.",
        ),
        Panel(
            "GPUs reserved",
            {"{{stage}}": rate(declared.RESERVED, by="stage")},
            width=12,
            height=SMALL,
            stacked=True,
        ),
    ),
}
"""The panels, in rows."""


def dashboard() -> dict[str, Any]:
    """The dashboard, ready for `json.dumps`."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": []})
        panels[-1]["gridPos"] = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        x, y, high = 0, y + 1, 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, high = 0, y + high, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel) | {"gridPos": place})
            x, high = x + panel.width, max(high, panel.height)
        y += high
    return {
        "title": "Retake",
        "uid": UID,
        "tags": ["retake", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource(), _runs()]},
        "panels": [{"id": number} | panel for number, panel in enumerate(panels, 1)],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    one_number = panel.kind != "timeseries"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend or "__auto",
                "editorMode": "code",
                "range": not one_number,
                "instant": one_number,
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = {"mode": "absolute", "steps": [{"color": "green", "value": None}]}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": steps}
    if panel.unit == "percentunit":
        defaults["max"] = 1
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 40 if panel.stacked else 0
        defaults["custom"] = {"stacking": stacking, "fillOpacity": fill, "showPoints": "never"}
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "bargauge":
        return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic"}
    return {"reduceOptions": last, "colorMode": "value", "graphMode": "none", "textMode": "value"}


def _datasource() -> dict[str, Any]:
    """The choice of the Prometheus that is asked."""
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "refresh": 1,
    }


def _runs() -> dict[str, Any]:
    """The choice of runs, of which all are taken at first."""
    query = f"label_values({declared.WAVES.exported}, {declared.RUN})"
    return {
        "type": "query",
        "name": "run",
        "label": "Run",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "runs"},
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
    }
