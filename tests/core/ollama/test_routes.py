"""The table of Ollama's routes: what is found on a path, and what is never found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.ollama.routes import ROUTES, TARGETS, Match, allowed_methods, match

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


def path_of(route, argument="x"):
    """A path of `route`; `argument` stands where its pattern has one."""
    head, colon, _ = route.pattern.partition(":")
    return head + argument if colon else route.pattern


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.pattern}")
def test_each_route_is_found_on_its_own_path(route):
    """With the argument of the path where it has one."""
    argument = "x" if ":" in route.pattern else ""
    assert match(route.method, path_of(route)) == Match(route, argument)


def test_no_two_routes_share_method_and_path():
    """Each line of the table can be reached."""
    assert len({(route.method, route.pattern) for route in ROUTES}) == len(ROUTES)


def test_a_known_path_names_its_methods_where_the_method_is_wrong():
    """What a 405 answer says."""
    assert match("PUT", "/api/tags") == ("HEAD", "GET")
    assert match("GET", "/api/blobs/sha256-aa") == ("POST", "HEAD")


@pytest.mark.parametrize(
    "path", ["", "/api", "/api/", "/api/tags/", "/v1/models/", "/api/blobs/", "/API/tags", "/api/x"]
)
def test_other_paths_lead_nowhere(path):
    """No prefix, no trailing slash, no other spelling: what is not in the table is never forwarded."""
    assert match("GET", path) == match("POST", path) == ()


def test_an_argument_is_one_segment():
    """A slash in it would reach another route of the upstream."""
    assert match("GET", "/v1/models/a/b") == ()
    assert allowed_methods("/v1/models/llama3.2:3b")[1] == "llama3.2:3b"


@given(st.sampled_from(METHODS), st.text(alphabet="/apitgsv1:models.%", max_size=20))
def test_whatever_the_path_the_answer_is_a_route_of_that_method_or_methods(method, path):
    """No path raises, and nothing is found under another method."""
    found = match(method, path)
    assert method not in found if isinstance(found, tuple) else found.route.method == method


def test_raw_targets_are_the_paths_without_arguments():
    """The hot path finds the same route as the slow one, and what goes upstream is the same bytes."""
    assert {(method, target.decode()) for method, target in TARGETS} == {
        (route.method, route.pattern) for route in ROUTES if ":" not in route.pattern
    }
    for (method, target), route in TARGETS.items():
        assert match(method, target.decode()) == Match(route)
        assert (route.method_bytes, route.target) == (method.encode(), target)


def test_inference_is_what_the_router_chooses_a_model_for():
    """Every POST that runs a model, on all three dialects, and nothing else."""
    assert {route.pattern for route in ROUTES if route.is_inference} == {
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
    }
    assert {route.dialect for route in ROUTES if route.pattern.startswith("/api")} == {"ollama"}
