"""Ollama's own command line in front of the router: its recorded requests, for a 70B model; and curl.

The recordings are of v0.33.0 (tests/data/api/cli*.jsonl.gz). Model names are replaced by ours; everything else is sent
as the Go client sent it, over one connection per command.
"""

from __future__ import annotations

import gzip
import http.client
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import CHAIN, EMBEDDER, SERVED, TOO_BIG, VARIANTS

RECORDINGS = Path(__file__).parents[1] / "data" / "api"
PLAIN, EMBED = "tiny-plain", "tiny-embed"


def recording(identity):
    """Return the steps of one recorded command."""
    group = identity.rsplit("-", 1)[0]
    with gzip.open(RECORDINGS / f"{group}.jsonl.gz", "rt") as lines:
        found = [entry for entry in map(json.loads, lines) if entry["id"].startswith(f"{identity}-")]
    return found[0]["steps"]


def command(rig, identity, names):
    """Send the requests of a command; return (path, status, headers, decoded lines) per step."""
    connection = http.client.HTTPConnection(rig.address, timeout=30)
    answers = []
    for step in recording(identity):
        request, body = step["request"], step["request"].get("body", "")
        for old, new in names.items():
            body = body.replace(json.dumps(old), json.dumps(new))
        headers = {name: value for name, value in request["headers"] if name not in ("Host", "Content-Length")}
        connection.request(request["method"], request["target"], body.encode() or None, headers)
        answer = connection.getresponse()
        lines = [json.loads(line) for line in answer.read().splitlines()]  # [] for an answer to HEAD
        answers.append((request["target"], answer.status, answer.headers, lines))
    connection.close()
    return answers


def test_ls_and_version_answer_as_a_server_does(rig):
    """The chain is listed among the models, derived tags are not."""
    (head, tags), ((_, status, _, version),) = command(rig, "cli-002", {}), command(rig, "cli-001", {})
    assert (head[1], status) == (200, 200)
    assert version[0]["version"][0].isdigit()
    rows = tags[3][0]["models"]
    assert {row["name"] for row in rows} == {row["model"] for row in rows} == {CHAIN, *VARIANTS, TOO_BIG, EMBEDDER}
    assert all(len(row["digest"]) == 64 and row["size"] > 0 and row["modified_at"] for row in rows)


@pytest.mark.parametrize("identity", ["cli-010", "cli-011", "cli-013"])
def test_run_is_served_by_a_variant_that_fits_and_pulls_nothing(rig, identity):
    """`ollama run llama3.3:70b "…"`, cold, warm and from a pipe: show, then generate."""
    _, show, run = command(rig, identity, {PLAIN: CHAIN})
    assert (show[1], run[1]) == (200, 200)
    assert {"completion", "tools"} <= set(show[3][0]["capabilities"])
    assert run[2]["X-Router-Model"] == SERVED
    assert run[3][-1]["done"] is True
    assert {line["model"] for line in run[3]} == {SERVED}
    assert rig.asked("/api/pull") == []


def test_interactive_run_with_set_save_and_load_works(rig):
    """`/set parameter num_ctx`, `/save`, `/load`. To save a chain is refused with a text, as it is not a model."""
    rig.unload()
    answers = command(rig, "cli-025", {PLAIN: SERVED})
    assert [answer[1] for answer in answers] == [200] * len(answers)
    chats = [answer for answer in answers if answer[0] == "/api/chat"]
    assert all(answer[3][-1]["done"] for answer in chats)
    assert chats[0][2]["X-Router-Model"] == SERVED
    assert {answer[1] for answer in command(rig, "cli-038", {"made2": "saved"})[:4]} == {200}
    refused = next(answer for answer in command(rig, "cli-025", {PLAIN: CHAIN}) if answer[0] == "/api/create")
    assert (refused[1], "is a chain of this router" in refused[3][0]["error"]) == (403, True)


def test_ps_shows_the_variant_on_the_gpu_and_stop_unloads_it(rig):
    """`ollama stop llama3.3:70b` unloads the variant that served, and loads nothing."""
    command(rig, "cli-010", {PLAIN: CHAIN})
    rows = command(rig, "cli-004", {})[1][3][0]["models"]
    assert SERVED in [row["name"] for row in rows]
    assert all(row["size_vram"] == row["size"] for row in rows)
    rig.loads.clear()
    stop = command(rig, "cli-028", {PLAIN: CHAIN})[2]
    assert (stop[1], stop[3][0]["done_reason"]) == (200, "unload")
    again = command(rig, "cli-029", {PLAIN: CHAIN})[2]
    assert (again[1], rig.loads) == (200, [])
    rig.until(lambda: SERVED not in rig.residents())


def test_show_in_each_form_works_for_a_chain(rig):
    """`ollama show`, `--parameters` and `-v`."""
    for identity in ("cli-005", "cli-007", "cli-008"):
        names = {PLAIN: CHAIN, "gemma3-terse": CHAIN}
        (_, status, _, (shown,)) = command(rig, identity, names)[1]
        assert (status, shown["model_info"]["general.architecture"]) == (200, "llama")


def test_run_works_for_an_embedder_and_another_spelling(rig):
    """`ollama run nomic-embed-text "…"` uses /api/embed; names are case-insensitive."""
    embed = command(rig, "cli-019", {EMBED: EMBEDDER})[2]
    assert (embed[1], len(embed[3][0]["embeddings"][0])) == (200, 768)
    assert command(rig, "cli-020", {"TINY-PLAIN": CHAIN.upper()})[2][2]["X-Router-Model"] == SERVED


def test_run_of_an_unknown_model_gets_ollamas_own_404_and_pulls(rig):
    """The command pulls after a 404; the failure of the pull is passed on as a line of its stream."""
    _, show, pull = command(rig, "cli-022", {})
    assert (show[1], show[3][0]["error"]) == (404, "model 'missing:latest' not found")
    assert (pull[1], "error" in pull[3][-1]) == (200, True)


def test_run_of_a_model_that_does_not_fit_is_refused_with_a_text(rig):
    """The command prints `error` unchanged, so it is a string, and explains the bytes needed."""
    _, show, run = command(rig, "cli-010", {PLAIN: TOO_BIG})
    assert (show[1], run[1]) == (200, 503)
    assert f"{TOO_BIG}" in run[3][0]["error"] and "too big (needs" in run[3][0]["error"]
    assert run[3][0]["error"].endswith(f"`ollama-router advise {TOO_BIG}` names them")
    assert (run[2]["Retry-After"], run[2]["X-Should-Retry"]) == (None, "false")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_and_the_answer_names_the_serving_model(rig):
    """As in every README, without a JSON content type."""
    body = json.dumps({"model": CHAIN, "prompt": "[[tokens=3]] hi"})
    call = ["curl", "-sSiN", "--noproxy", "*", f"{rig.url}/api/generate", "-d", body]
    head, _, lines = subprocess.run(call, capture_output=True, check=True, timeout=30, text=True).stdout.partition(
        "\n\n"
    )
    assert f"x-router-model: {SERVED}" in head.lower()
    assert json.loads(lines.splitlines()[-1])["done"] is True
