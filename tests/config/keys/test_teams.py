"""Keys about teams: which files describe them, and who a client without a key is."""

from __future__ import annotations

import asyncio

import pytest

from router.cli.generations import RELOADED
from router.cli.watching import POLL_S
from tests.config.keys.play import ALONE, BIG, OTHER, SMALL, compare, get, hello, send
from tests.config.keys.process import START_S, ollama, served
from tests.http.raw_upstream import answer


def teams(folder, **chains):
    """Write a file for each team, whose chain for `BIG` is the one named; return the pattern of the files."""
    folder.mkdir(exist_ok=True)
    for name, variant in chains.items():
        (folder / f"{name}.yaml").write_text(f'team: {name}\nchains: {{ "{BIG}": ["{variant}"] }}\n')
    return str(folder / "*.yaml")


async def model_of(one):
    """The model that answers a request for `BIG`."""
    return (await send(one.router.url, "POST", "/api/generate", hello(BIG, stream=False))).json()["model"]


@pytest.mark.key("default_team")
def test_a_client_that_nothing_identifies_is_the_default_team(tmp_path):
    """It has the chains of that team."""
    config = {**ALONE, "teams": teams(tmp_path, coding=OTHER, chat=SMALL)}
    assert compare(model_of, "default_team", ["anonymous", "coding", "chat"], config) == [BIG, OTHER, SMALL]


@pytest.mark.key("teams")
def test_the_files_that_match_describe_the_teams(tmp_path):
    """Without a pattern there are none."""
    first, second = teams(tmp_path / "a", anonymous=OTHER), teams(tmp_path / "b", anonymous=SMALL)
    assert compare(model_of, "teams", [None, first, second]) == [BIG, OTHER, SMALL]


@pytest.mark.key("teams")
def test_the_configuration_in_force_shows_the_teams(tmp_path):
    """Of each of them every key, and no hash."""

    async def shown(one):
        return [
            file["team"] for file in (await get(one.router.admin_url, "/router/config")).json().get("team_files", [])
        ]

    assert compare(shown, "teams", [None, teams(tmp_path, chat=SMALL, coding=OTHER)]) == [[], ["chat", "coding"]]


@pytest.mark.key("watch_files")
@pytest.mark.real_time
async def test_a_changed_file_is_read_again_only_if_files_are_watched(tmp_path):
    """Otherwise by a signal."""
    found = []
    for text in ("true", "false"):
        file = tmp_path / f"{text}.yaml"
        file.write_text(f"watch_files: {text}\n")
        async with ollama(answer(b"{}")) as upstream, served(upstream.url, tmp_path, file=file) as router:
            async with asyncio.timeout(START_S):
                file.write_text(f"watch_files: {text}\nchains: {{ x: [a] }}\n")
                await asyncio.sleep(4 * POLL_S if text == "false" else 0)
                if text == "false":
                    router.reload()
                await router.says(RELOADED)
            router.stop()
            await router.process.wait()
            found.append(sum(RELOADED in message for message in await router.log()))
    assert found == [1, 1]
