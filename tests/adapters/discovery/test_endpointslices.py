"""EndpointSlices as an API server lists and watches them, recorded, with what goes wrong with watches (N5)."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qs, urlsplit

from ollama_simulator.clock import run_virtual
from router.adapters.discovery.endpointslices import MOST_LINE_BYTES, EndpointSlices, nodes_in
from tests.http.raw_upstream import answer, chunk, raw_upstream, reset

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def endpoint(name, address, *, ready=True, serving=True, terminating=False):
    """One endpoint, with the fields of a recorded one."""
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": f"node-of-{name}",
        "targetRef": {"kind": "Pod", "namespace": "llm", "name": name, "uid": f"uid-{name}"},
        "zone": "a",
    }


def slice_of(name, *endpoints, version="1", kind="IPv4"):
    return {
        "metadata": {
            "name": name,
            "namespace": "llm",
            "uid": f"uid-of-{name}",
            "resourceVersion": version,
            "generation": 2,
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "nodes",
                "service.kubernetes.io/headless": "",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "nodes", "uid": "uid-of-service"}],
        },
        "addressType": kind,
        "endpoints": list(endpoints),
        "ports": [{"name": "router", "protocol": "TCP", "port": 11435}],
    }


def listed(*slices, version="100"):
    return json.dumps(
        {
            "kind": "EndpointSliceList",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": version},
            "items": list(slices),
        }
    ).encode()


def event(kind, changed):
    return json.dumps({"type": kind, "object": changed}).encode() + b"\n"


GONE = event(
    "ERROR",
    {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "too old resource version: 100 (200)",
        "reason": "Expired",
        "code": 410,
    },
)
BOOKMARK = event("BOOKMARK", {"kind": "EndpointSlice", "metadata": {"resourceVersion": "150"}, "endpoints": None})


class Api:
    """An API server: `lists` are answered in turn (the last one for ever), `watches` are the events of each watch.

    A watch ends after its events; with `None` in them it goes on, silent.
    """

    def __init__(self, lists, watches=()):
        self.lists, self.watches = list(lists), list(watches)
        self.queries, self.heads = [], []
        self.seen = []
        self.said = []

    async def serve(self, visit):
        query = parse_qs(urlsplit(visit.target.decode()).query)
        self.queries.append({key: value[0] for key, value in query.items()})
        self.heads.append(visit.head)
        if "watch" not in query:
            body = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            if isinstance(body, int):
                await answer(b"{}", status=b"%d No" % body)(visit)
            else:
                await answer(body)(visit)
            return
        events = self.watches.pop(0) if self.watches else [None]
        if isinstance(events, int):
            await answer(b"{}", status=b"%d No" % events)(visit)
            return
        await visit.say(HEAD)
        for one in events:
            if one is None:
                await asyncio.sleep(1e6)
            await asyncio.sleep(0.1)
            await visit.say(chunk(one))
        await visit.say(b"0\r\n\r\n")


def follow(api, seconds=5.0, **more):
    """Return what the adapter told within some virtual seconds, without repetitions."""

    async def run():
        async with raw_upstream(api.serve) as upstream:
            found = EndpointSlices("llm/nodes", 11435, url=upstream.url, pause_s=1.0, report=api.said.append, **more)
            task = asyncio.create_task(found.watch(lambda nodes: api.seen.append(dict(nodes))))
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return [one for at, one in enumerate(api.seen) if at == 0 or one != api.seen[at - 1]]

    return run_virtual(run())


A, B, C = endpoint("a", "10.1.0.1"), endpoint("b", "10.1.0.2"), endpoint("c", "10.1.0.3")
AT = {f"uid-{name}": f"http://10.1.0.{number}:11435" for number, name in enumerate("abc", 1)}


def only(*names):
    return {f"uid-{name}": AT[f"uid-{name}"] for name in names}


def test_changes_of_a_watch_are_followed():
    """Added, modified and deleted slices; a bookmark changes nothing."""
    events = [
        event("ADDED", slice_of("s2", C)),
        BOOKMARK,
        event("MODIFIED", slice_of("s1", A)),
        event("DELETED", slice_of("s2", C)),
        None,
    ]
    api = Api([listed(slice_of("s1", A, B))], [events])
    assert follow(api) == [only("a", "b"), only("a", "b", "c"), only("a", "c"), only("a")]
    assert api.queries[0] == {"labelSelector": "kubernetes.io/service-name=nodes"}
    assert api.queries[1]["resourceVersion"] == "100"
    assert api.heads[0].startswith(b"GET /apis/discovery.k8s.io/v1/namespaces/llm/endpointslices?")


def test_what_was_deleted_while_no_watch_was_open_is_gone_at_the_next_list_n5():
    """The event is never told, and is not needed."""
    lists = [listed(slice_of("s1", A, B), slice_of("s2", C)), listed(slice_of("s1", A), version="200")]
    api = Api(lists, [[BOOKMARK]])
    assert follow(api) == [only("a", "b", "c"), only("a")]


def test_a_watch_that_is_too_old_is_begun_anew_from_a_list_n5():
    """As an event, and as a status."""
    lists = [listed(slice_of("s1", A, B)), listed(slice_of("s1", A), version="200")]
    for watches in ([[GONE]], [410]):
        api = Api(list(lists), list(watches))
        assert follow(api) == [only("a", "b"), only("a")]
        assert [one.get("resourceVersion") for one in api.queries if "watch" in one] == ["100", "200"]
        assert api.said == []


def test_only_endpoints_that_are_ready_are_nodes():
    """Not those that terminate, though they serve; where nothing is said one is ready."""
    ending = endpoint("b", "10.1.0.2", ready=False, serving=True, terminating=True)
    unsaid = {**C, "conditions": {}}
    assert follow(Api([listed(slice_of("s1", A, ending, unsaid))]), 1.0) == [only("a", "c")]


def test_a_pod_in_two_slices_is_one_node_and_an_address_is_no_name():
    """While slices are rebalanced it stands in both; a new pod at an old address is another node."""
    again = endpoint("a2", "10.1.0.1")
    assert nodes_in([slice_of("s1", A, B), slice_of("s2", A)], 11435) == only("a", "b")
    assert nodes_in([slice_of("s1", again)], 11435) == {"uid-a2": "http://10.1.0.1:11435"}
    both = [slice_of("s4", A), slice_of("s6", endpoint("a", "fd00::1"), kind="IPv6")]
    assert nodes_in(both, 11435) == nodes_in(both[::-1], 11435) == only("a")
    six = endpoint("six", "fd00::1")
    assert nodes_in([slice_of("s6", six, kind="IPv6")], 80) == {"uid-six": "http://[fd00::1]:80"}


def test_an_api_server_that_fails_takes_no_node_away():
    """It is reported once, and the list is read again after a pause."""
    lists = [listed(slice_of("s1", A, B)), 503, 500, listed(slice_of("s1", A))]
    api = Api(lists, [[BOOKMARK]])
    assert follow(api, 6.0) == [only("a", "b"), only("a")]
    assert api.said == ["the endpoints of llm/nodes cannot be read: the API server answered with status 503"]


def test_a_refused_watch_is_reported_and_tried_again():
    """Rights to list and to watch are two."""
    api = Api([listed(slice_of("s1", A))], [403, [None]])
    assert follow(api, 4.0) == [only("a")]
    assert api.said == ["the endpoints of llm/nodes cannot be read: the API server answered with status 403"]


def test_what_cannot_be_read_ends_nothing():
    """No JSON, other JSON, and a line without an end."""
    for watch in ([b"{]\n"], [b"[]\n"], [b'{"type":"ADDED","object":7}\n'], [b"x" * (MOST_LINE_BYTES + 2)]):
        api = Api([listed(slice_of("s1", A)), listed(slice_of("s1", B))], [watch])
        assert follow(api, 4.0)[-1] == only("b")
    odd = json.dumps({"items": [7, {"endpoints": 3}, {"endpoints": [None, {"addresses": 4}]}]}).encode()
    assert follow(Api([odd]), 1.0) == [{}]


def test_the_token_is_read_for_each_request(tmp_path):
    """It is renewed in its file while the router runs."""
    token = tmp_path / "token"
    token.write_text("first\n")
    api = Api([listed(slice_of("s1", A))], [[BOOKMARK]])

    async def renew():
        await asyncio.sleep(0.05)
        token.write_text("second\n")

    async def run():
        async with raw_upstream(api.serve) as upstream:
            found = EndpointSlices("llm/nodes", 1, url=upstream.url, pause_s=1.0, report=print, token_file=str(token))
            task = asyncio.create_task(found.watch(lambda _nodes: None))
            await renew()
            await asyncio.sleep(2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_virtual(run())
    shown = [b"authorization: bearer first" in head.lower() for head in api.heads]
    assert shown[0] is True
    assert shown[-1] is False


def test_a_list_without_end_and_one_nested_without_end_take_no_node_away(monkeypatch):
    """Both are reported, and the list is read again after a pause."""
    monkeypatch.setattr("router.adapters.discovery.endpointslices.MOST_BYTES", 5000)
    nested = ("not readable JSON", "Input data was truncated")  # Pythons differ in how deep they go
    for bad, whys in ((b" " * 6000, ("the list is longer than 5000 bytes",)), (b"[" * 4000, nested)):
        api = Api([listed(slice_of("s1", A)), bad, listed(slice_of("s1", B))], [[BOOKMARK]])
        assert follow(api, 6.0) == [only("a"), only("b")]
        assert len(api.said) == 1
        assert api.said[0] in [f"the endpoints of llm/nodes cannot be read: {why}" for why in whys]


def test_a_watch_that_breaks_off_is_no_failure():
    """Long connections do; the list is read again."""

    class Cutting(Api):
        async def serve(self, visit):
            if b"watch=1" in visit.target and self.watches:
                self.watches.clear()
                await visit.say(HEAD + chunk(event("ADDED", slice_of("s2", B))))
                await asyncio.sleep(0.1)
                reset(visit.writer)
            else:
                await super().serve(visit)

    api = Cutting([listed(slice_of("s1", A)), listed(slice_of("s1", C))], [[None]])
    assert follow(api, 5.0) == [only("a"), only("a", "b"), only("c")]
    assert api.said == []
