"""Ollama's own command line before the router: the requests that its recordings hold, asked of a 70B; and curl.

The recordings are of v0.33.0 (tests/data/api/cli*.jsonl.gz). Names of models are exchanged for ours; all else is sent
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

from tests.e2e.conftest import CHAIN, EMBEDDER, LONELY, SERVED, VARIANTS

RECORDINGS = Path(__file__).parents[1] / "data" / "api"
PLAIN, EMBED = "tiny-plain", "tiny-embed"


def recording(identity):
    """The steps of one recorded command."""
    group = identity.rsplit("-", 1)[0]
    with gzip.open(RECORDINGS / f"{group}.jsonl.gz", "rt") as lines:
        found = [entry for entry in map(json.loads, lines) if entry["id"].startswith(f"{identity}-")]
    return found[0]["steps"]


def command(street, identity, names):
    """Send what a command sent; per step (path, status, headers, decoded lines)."""
    connection = http.client.HTTPConnection(street.address, timeout=30)
    answers = []
    for step in recording(identity):
        request, body = step["request"], step["request"].get("body", "")
        for old, new in names.items():
            body = body.replace(json.dumps(old), json.dumps(new))
        headers = {name: value for name, value in request["headers"] if name not in ("Host", "Content-Length")}
        connection.request(request["method"], request["target"], body.encode() or None, headers)
        answer = connection.getresponse()
        lines = [json.loads(line) for line in answer.read().splitlines()]  # none of an answer to HEAD
        answers.append((request["target"], answer.status, answer.headers, lines))
    connection.close()
    return answers


def test_ls_and_version_answer_as_a_server_does(street):
    """The chain stands among the models; hidden tags do not."""
    (head, tags), ((_, status, _, version),) = command(street, "cli-002", {}), command(street, "cli-001", {})
    assert (head[1], status) == (200, 200)
    assert version[0]["version"][0].isdigit()
    rows = tags[3][0]["models"]
    assert {row["name"] for row in rows} == {row["model"] for row in rows} == {CHAIN, *VARIANTS, LONELY, EMBEDDER}
    assert all(len(row["digest"]) == 64 and row["size"] > 0 and row["modified_at"] for row in rows)


@pytest.mark.parametrize("identity", ["cli-010", "cli-011", "cli-013"])
def test_run_is_served_by_what_fits_and_pulls_nothing(street, identity):
    """`ollama run llama3.3:70b "…"`, cold, warm and from a pipe: show, then generate."""
    _, show, run = command(street, identity, {PLAIN: CHAIN})
    assert (show[1], run[1]) == (200, 200)
    assert {"completion", "tools"} <= set(show[3][0]["capabilities"])
    assert run[2]["X-Router-Model"] == SERVED
    assert run[3][-1]["done"] is True
    assert {line["model"] for line in run[3]} == {SERVED}
    assert street.asked("/api/pull") == []


def test_interactive_run_with_set_save_and_load_works(street):
    """`/set parameter num_ctx`, `/save`, `/load`. To save what is no model but a chain is refused, and says so."""
    street.unload()
    answers = command(street, "cli-025", {PLAIN: SERVED})
    assert [answer[1] for answer in answers] == [200] * len(answers)
    chats = [answer for answer in answers if answer[0] == "/api/chat"]
    assert all(answer[3][-1]["done"] for answer in chats)
    assert chats[0][2]["X-Router-Model"] == SERVED
    assert {answer[1] for answer in command(street, "cli-038", {"made2": "saved"})[:4]} == {200}
    refused = next(answer for answer in command(street, "cli-025", {PLAIN: CHAIN}) if answer[0] == "/api/create")
    assert (refused[1], "is a chain of this router" in refused[3][0]["error"]) == (403, True)


def test_ps_shows_the_variant_on_the_gpu_and_stop_unloads_it(street):
    """`ollama stop llama3.3:70b` goes to what stands for it, and loads nothing."""
    command(street, "cli-010", {PLAIN: CHAIN})
    rows = command(street, "cli-004", {})[1][3][0]["models"]
    assert SERVED in [row["name"] for row in rows]
    assert all(row["size_vram"] == row["size"] for row in rows)
    street.loads.clear()
    stop = command(street, "cli-028", {PLAIN: CHAIN})[2]
    assert (stop[1], stop[3][0]["done_reason"]) == (200, "unload")
    again = command(street, "cli-029", {PLAIN: CHAIN})[2]
    assert (again[1], street.loads) == (200, [])
    street.until(lambda: SERVED not in street.residents())


def test_show_in_each_form_tells_of_the_chain(street):
    """`ollama show`, `--parameters` and `-v`."""
    for identity in ("cli-005", "cli-007", "cli-008"):
        names = {PLAIN: CHAIN, "gemma3-terse": CHAIN}
        (_, status, _, (shown,)) = command(street, identity, names)[1]
        assert (status, shown["model_info"]["general.architecture"]) == (200, "llama")


def test_run_of_an_embedder_and_of_another_spelling(street):
    """`ollama run nomic-embed-text "…"` asks /api/embed; names know no case."""
    embed = command(street, "cli-019", {EMBED: EMBEDDER})[2]
    assert (embed[1], len(embed[3][0]["embeddings"][0])) == (200, 768)
    assert command(street, "cli-020", {"TINY-PLAIN": CHAIN.upper()})[2][2]["X-Router-Model"] == SERVED


def test_run_of_what_nobody_has_is_ollamas_own_404_and_pull(street):
    """404 makes the command pull; the pull's failure is passed on as a line of its stream."""
    _, show, pull = command(street, "cli-022", {})
    assert (show[1], show[3][0]["error"]) == (404, "model 'missing:latest' not found")
    assert (pull[1], "error" in pull[3][-1]) == (200, True)


def test_run_of_what_does_not_fit_is_refused_in_one_string(street):
    """The command prints `error` as it is, so it is text and says what was needed."""
    _, show, run = command(street, "cli-010", {PLAIN: LONELY})
    assert (show[1], run[1]) == (200, 503)
    assert f"{LONELY}" in run[3][0]["error"] and "too big (needs" in run[3][0]["error"]
    assert int(run[2]["Retry-After"]) > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_and_names_who_served(street):
    """As in every README: no content type that says JSON."""
    body = json.dumps({"model": CHAIN, "prompt": "[[tokens=3]] hi"})
    call = ["curl", "-sSiN", "--noproxy", "*", f"{street.url}/api/generate", "-d", body]
    head, _, lines = subprocess.run(call, capture_output=True, check=True, timeout=30, text=True).stdout.partition(
        "\n\n"
    )
    assert f"x-router-model: {SERVED}" in head.lower()
    assert json.loads(lines.splitlines()[-1])["done"] is True
