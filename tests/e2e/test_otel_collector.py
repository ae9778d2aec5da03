"""A real collector of OpenTelemetry takes the traces of a front and a node, and prints what it has understood.

Nothing here installs it. With any build of it that has the receiver `otlp` and the exporter `debug`:

    OTELCOL=/path/to/otelcol scripts/test tests/e2e/test_otel_collector.py
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.app import running
from router.config import load_config
from tests.config.keys.play import in_front_of
from tests.config.keys.test_traces import MIDDLE, PARENT, SAMPLED, TRACE, ask
from tests.e2e.waiting import until_now

PROGRAM = os.environ.get("OTELCOL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_time,
    pytest.mark.skipif(not PROGRAM, reason="no collector is named: OTELCOL=…/otelcol"),
]
START_S = 120.0
CONFIG = """
receivers: {{ otlp: {{ protocols: {{ http: {{ endpoint: "{address}" }} }} }} }}
exporters: {{ debug: {{ verbosity: detailed }} }}
service:
  pipelines: {{ traces: {{ receivers: [otlp], exporters: [debug] }} }}
"""
FIELD = re.compile(r"^ +(Trace ID|Parent ID|ID|Name|Kind|Status code) +: (.*)$", re.MULTILINE)
LINK = re.compile(r"SpanLink #\d+\s+-> Trace ID: (\w+)\s+-> ID: (\w+)")


@contextmanager
def collector(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run one: its address, and the file that it writes to."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    config, output = folder / "collector.yaml", folder / "collector.log"
    config.write_text(CONFIG.format(address=address))
    with output.open("w") as log:
        child = subprocess.Popen([PROGRAM, "--config", f"file:{config}"], stdout=log, stderr=log)
        try:
            until_now(lambda: "Everything is ready" in output.read_text(), START_S)
            yield f"http://{address}", output
        finally:
            child.terminate()
            child.wait(START_S)


def spans_in(text: str) -> list[dict[str, Any]]:
    """Return the spans that the collector has printed, each with its fields and its links."""
    found = []
    for part in re.split(r"^Span #\d+$", text, flags=re.MULTILINE)[1:]:
        fields: dict[str, Any] = dict(FIELD.findall(part))
        found.append(fields | {"links": LINK.findall(part), "text": part})
    return found


async def test_a_trace_through_front_and_node_arrives_and_a_load_is_linked_by_all_who_waited_v2(tmp_path: Path) -> None:
    """As a collector understands them, and not as this project's own tests do."""
    machine = Machine(
        cards=(CardSpec(name="CUDA0", total_mib=24564),), speeds=Speeds(load_mib_per_s=20_000, tokens_per_s=500)
    )
    own = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:", "defaults.auto_chains": "off"}
    with collector(tmp_path) as (url, output):
        traced = {"defaults.auto_chains": "off", "telemetry.otlp.endpoint": url, "telemetry.otlp.every_s": 0.05}
        async with running_simulator(SimConfig(machine=machine, models=(MIDDLE,))) as sim:
            config = load_config(env={}, options={**own, **traced, "backends.local.url": sim.url})
            async with (
                running(config, probe=CardsProbe(sim.cards), is_probed=True) as node,
                in_front_of(node.url, traced) as front,
            ):
                asked = [ask(front.url, headers, MIDDLE) for headers in ([SAMPLED], [], [])]
                assert await asyncio.gather(*asked) == [200, 200, 200]
        until_now(lambda: output.read_text().count("text_completion") >= 6, START_S)
        spans = spans_in(output.read_text())
    requests = {span["ID"]: span for span in spans if span["Name"].startswith("text_completion")}
    nodes = [span for span in requests.values() if span["Parent ID"] in requests]
    fronts = [requests[span["Parent ID"]] for span in nodes]
    assert len({span["Trace ID"] for span in fronts}) == 3
    assert [span["Trace ID"] for span in nodes] == [span["Trace ID"] for span in fronts]
    assert TRACE in {span["Trace ID"] for span in fronts if span["Parent ID"] == PARENT}
    assert {span["Kind"] for span in requests.values()} == {"Server"}
    loads = {(span["Trace ID"], span["ID"]) for span in spans if span["Name"].startswith("load ")}
    assert len(loads) == 2
    assert all(len(span["links"]) == 1 and set(span["links"]) <= loads for span in fronts)
    assert len({tuple(span["links"]) for span in fronts}) == 1
    whole = fronts[0]["text"]
    for said in ("gen_ai.request.model: Str(", "gen_ai.usage.output_tokens: Int(", "ollama_router.queue_s: Double("):
        assert said in whole
    assert "service.name: Str(ollama-router)" in output.read_text()
