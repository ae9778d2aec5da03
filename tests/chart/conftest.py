"""The chart, rendered by Helm once for all tests."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import CASES, REFUSED, RELEASES, Rendered

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-chart/bin/python"
VERSIONS = ["1.29", "1.33", "1.37"]


def custom() -> dict[str, Any]:
    """Return the strict schemas of custom resources by kind."""
    packed = (ROOT / "tests/data/crds/schemas.json.gz").read_bytes()
    schemas = json.loads(gzip.decompress(packed))["schemas"]
    return {
        "HTTPRoute": schemas["httproute-gateway.networking.k8s.io-v1"],
        "ServiceMonitor": schemas["servicemonitor-monitoring.coreos.com-v1"],
    }


@pytest.fixture(scope="session")
def results() -> dict[str, dict[str, Any]]:
    """Return what Helm made of each case."""
    if not PYTHON.exists():
        pytest.skip("scripts/chart installs Helm")
    every = CASES | {name: values for name, (values, _) in REFUSED.items()}
    task = {
        "chart": str(ROOT / "charts/ollama-router"),
        "versions": VERSIONS,
        "custom": custom(),
        "cases": {name: {"release": RELEASES.get(name, "fleet"), "values": values} for name, values in every.items()},
    }
    done = subprocess.run(
        [PYTHON, ROOT / "tests/chart/render.py"], input=json.dumps(task), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Provide the name of each case."""
    return str(request.param)


@pytest.fixture
def chart(results: dict[str, dict[str, Any]], case: str) -> Rendered:
    """Provide the objects of each case."""
    assert "error" not in results[case], results[case]["error"]
    return Rendered(results[case]["objects"])


@pytest.fixture
def of(results: dict[str, dict[str, Any]]) -> Any:
    """Provide the objects of a case by its name."""
    return lambda name: Rendered(results[name]["objects"])
