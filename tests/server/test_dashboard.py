"""The dashboard and the table of metrics, against what a server really exports."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedEmbedder, ScriptedEngine
from metrics_page import MetricsPage, scrape

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dbgpt_guanaco.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [t["expr"] for panel in PANELS for t in panel.get("targets", [])]
SELECTOR = re.compile(r"([a-z_][a-z0-9_]*)\{([^}]*)\}")
ROW = re.compile(r"\| `(guanaco_\w+)` \| (\w+) \| ([^|]*) \|")
# What Prometheus itself puts on every series.
OF_THE_SCRAPE = {"instance", "job"}


@pytest.fixture
async def exported(connect: Any) -> MetricsPage:
    """What there is after an answer and some vectors."""
    client = connect(ScriptedEngine("a", "b"), embedder=ScriptedEmbedder())
    await client.post("/v1/completions", json={"prompt": "x"})
    await client.post("/v1/embeddings", json={"input": "x"})
    return await scrape(client)


def labels_of(page: MetricsPage, name: str) -> set[str]:
    return {label for n, pairs in page.values if n == name for label, _ in pairs}


async def test_every_metric_that_a_panel_asks_for_is_exported(exported: MetricsPage) -> None:
    named = {name for e in EXPRESSIONS for name in re.findall(r"(?:guanaco|process)_\w+", e)}
    selected = {name for e in EXPRESSIONS for name, _ in SELECTOR.findall(e)}

    assert len(named) > 20
    assert selected <= named <= exported.types.keys()


async def test_every_label_that_a_panel_asks_for_is_there(exported: MetricsPage) -> None:
    for expression in EXPRESSIONS:
        known = set(OF_THE_SCRAPE)
        for name, matchers in SELECTOR.findall(expression):
            known |= labels_of(exported, name)
            assert set(re.findall(r"(\w+)=", matchers)) <= labels_of(exported, name) | OF_THE_SCRAPE
        for grouping in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            assert set(grouping.split(", ")) <= known, expression


async def test_the_variables_list_what_is_exported(exported: MetricsPage) -> None:
    asked = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]

    read = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in asked]

    assert len(read) == 2
    for found in filter(None, read):
        assert found[2] in labels_of(exported, found[1]) | OF_THE_SCRAPE
    assert None not in read


def test_panels_have_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(0 <= place["x"] <= place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert is_beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_the_source_is_chosen_at_import() -> None:
    sources = {json.dumps(p["datasource"]) for p in PANELS if p["type"] != "row"}

    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}


async def test_the_table_of_metrics_is_what_is_exported(exported: MetricsPage) -> None:
    rows = ROW.findall((ROOT / "docs/metrics.md").read_text(encoding="utf-8"))
    told = {name: (kind, set(labels.split(", "))) for name, kind, labels in rows}
    parts = re.compile("_(bucket|count|sum|created)$")

    found: dict[str, tuple[str, set[str]]] = {}
    for name, kind in exported.types.items():
        if name.startswith("guanaco_") and not name.endswith("_created"):
            base = parts.sub("", name) if kind == "histogram" else name
            labels = labels_of(exported, name) - {"le"}
            found[base] = (kind, found.get(base, (kind, set()))[1] | labels)

    assert told == found
