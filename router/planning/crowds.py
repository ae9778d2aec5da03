"""Teams that use one server at the same time: their files, their clients, and what each team got.

A crowd of `clients` asks again as soon as it was answered; one with `every_s` sends at each interval, whatever
became of those before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.errors import RouterError
from router.http.headers import Header
from router.planning.stage import Reply, Stage, percentile

PAUSE_S = 1.0
"""A client that was refused tries again after this time."""

APART_S = 0.02
"""Clients begin one after the other: the virtual clock does not wait for a backlog of connections."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """The clients of one team: the model that they ask for, and the tokens of their prompts and answers."""

    team: str
    model: str
    clients: int = 0
    every_s: float | None = None
    answer_tokens: int = 120
    prompt_tokens: int = 20
    num_ctx: int = 4096
    share: float = 1.0

    @property
    def key(self) -> str:
        """The key that its clients show."""
        return f"{self.team}-{'k' * 32}"

    @property
    def headers(self) -> list[Header]:
        """The headers by which its clients say who they are."""
        return [(b"authorization", f"Bearer {self.key}".encode())]

    @property
    def body(self) -> Mapping[str, object]:
        """The body of each of its requests."""
        prompt = f"[[tokens={self.answer_tokens}]] ".ljust(4 * self.prompt_tokens, "x")
        options = {"num_ctx": self.num_ctx}
        return {"model": self.model, "prompt": prompt, "stream": False, "think": False, "options": options}


def write_teams(folder: Path, crowds: Sequence[Crowd]) -> str:
    """Write the file of each crowd's team into `folder`; return the value of the configuration's key `teams`."""
    for crowd in crowds:
        keys = [{"id": "bench", "sha256": hashlib.sha256(crowd.key.encode()).hexdigest()}]
        team = {"team": crowd.team, "keys": keys, "share": crowd.share}
        (folder / f"{crowd.team}.yaml").write_text(json.dumps(team))
    return str(folder / "*.yaml")


async def play_crowds(one: Stage, crowds: Sequence[Crowd], until_s: float) -> dict[str, list[Reply]]:
    """Let all crowds ask for `until_s` seconds; return the answers of each team that came by then.

    A request that is under way at the end counts as an answer with status 0 that took until then.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + until_s
    replies: dict[str, list[Reply]] = {crowd.team: [] for crowd in crowds}

    async def ask(crowd: Crowd) -> Reply:
        since_s = loop.time()
        try:
            reply = await one.ask(crowd.body, "/api/generate", crowd.headers)
        except asyncio.CancelledError:
            replies[crowd.team].append(_unanswered(crowd, since_s, loop.time(), "not answered"))
            raise
        except RouterError as error:
            reply = _unanswered(crowd, since_s, loop.time(), error.message)
        replies[crowd.team].append(reply)
        return reply

    async def client(crowd: Crowd, number: int) -> None:
        await asyncio.sleep(number * APART_S)
        while True:
            if (await ask(crowd)).status != 200:
                await asyncio.sleep(PAUSE_S)

    async def regular(crowd: Crowd, every_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            while loop.time() < end_s:
                group.create_task(ask(crowd))
                await asyncio.sleep(every_s)

    tasks = [loop.create_task(client(crowd, number)) for crowd in crowds for number in range(crowd.clients)]
    tasks += [loop.create_task(regular(crowd, crowd.every_s)) for crowd in crowds if crowd.every_s is not None]
    await asyncio.sleep(until_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return replies


def _unanswered(crowd: Crowd, since_s: float, now_s: float, error: str) -> Reply:
    return Reply(crowd.model, "", 0, now_s - since_s, now_s - since_s, 0.0, error, since_s)


@dataclass(frozen=True, slots=True)
class Got:
    """What one team got: requests, refused or failed ones, seconds of service, and how long its requests took.

    A request that was not answered at the end counts with the time until then: it took longer, never less.
    """

    requests: int
    failed: int
    served: int
    served_s: float
    p50_s: float
    p99_s: float


def got(replies: Sequence[Reply]) -> Got:
    """Return the figures of one team."""
    answered = [reply for reply in replies if reply.status == 200 and not reply.error]
    under_way = [reply for reply in replies if not reply.status and reply.error == "not answered"]
    waits_s = [reply.took_s for reply in (*answered, *under_way)]
    return Got(
        requests=len(replies),
        failed=len(replies) - len(answered) - len(under_way),
        served=len(answered),
        served_s=sum(reply.service_s for reply in answered),
        p50_s=percentile(waits_s, 0.5),
        p99_s=percentile(waits_s, 0.99),
    )
