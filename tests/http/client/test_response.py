"""An answer that is being read, without a connection: pieces, back-pressure, errors, and what is given up."""

import asyncio

import pytest

from router.errors import UpstreamError
from router.http.client.response import HIGH_WATER_BYTES, NO_HEAD, UpstreamResponse
from tests.leftovers import errors_left, uncollected


class Source:
    """A connection that an answer comes from; what was asked of it, in order."""

    def __init__(self):
        self.asked = []

    def pause(self):
        self.asked.append("pause")

    def resume(self):
        self.asked.append("resume")

    def cancel(self):
        self.asked.append("cancel")


def answer():
    source = Source()
    return source, UpstreamResponse(source, NO_HEAD)


async def test_what_has_arrived_is_read_as_one_piece_and_the_end_is_empty():
    """Nothing yet is None, and waits."""
    _, response = answer()
    assert response.read_nowait() is None
    response.feed(b"a")
    response.feed(b"b")
    response.finish()
    assert (response.read_nowait(), response.read_nowait(), await response.read()) == (b"ab", b"", b"")


async def test_a_slow_reader_stops_the_connection_and_reading_on_starts_it_again():
    """Once each."""
    source, response = answer()
    for _ in range(3):
        response.feed(bytes(HIGH_WATER_BYTES))
    assert source.asked == ["pause"]
    response.read_nowait()
    response.read_nowait()
    assert source.asked == ["pause", "resume"]


async def test_what_arrived_ahead_of_an_error_is_read_first():
    """Then the error is raised, as often as it is read; a later one changes nothing."""
    _, response = answer()
    response.feed(b"a")
    response.fail(UpstreamError("cut"))
    response.fail(UpstreamError("other"))
    assert response.read_nowait() == b"a"
    for _ in range(2):
        with pytest.raises(UpstreamError, match="cut"):
            response.read_nowait()


async def test_a_complete_answer_cannot_fail():
    """Its connection may break afterwards."""
    source, response = answer()
    response.finish()
    response.fail(UpstreamError("late"))
    assert response.read_nowait() == b""
    response.close()
    assert source.asked == []


async def test_an_answer_that_is_given_up_is_cancelled_once():
    """And what had arrived is dropped."""
    source, response = answer()
    response.feed(b"a")
    for _ in range(2):
        response.close()
    assert (source.asked, response.read_nowait()) == (["cancel"], b"")


async def test_pieces_are_poured_into_a_sink_as_they_arrive():
    """Those that are there, and those that are still to come, without a turn of the loop in between."""
    _, response = answer()
    response.feed(b"a")
    taken = []
    pouring = asyncio.create_task(response.pour(lambda piece: taken.append(piece) is None))
    await asyncio.sleep(0)
    response.feed(b"b")
    assert taken == [b"a", b"b"]
    response.finish()
    assert await pouring is True


async def test_a_sink_that_wants_no_more_ends_the_pouring_until_it_is_called_again():
    """For what was there already as for what comes."""
    _, response = answer()
    response.feed(b"a")
    taken = []

    def full(piece):
        taken.append(piece)
        return False

    assert await response.pour(full) is False
    pouring = asyncio.create_task(response.pour(full))
    await asyncio.sleep(0)
    response.feed(b"b")
    response.feed(b"c")
    assert (await pouring, taken) == (False, [b"a", b"b"])
    assert await response.pour(full) is False
    assert taken == [b"a", b"b", b"c"]


async def test_what_a_sink_raises_is_raised_by_the_pouring_and_not_by_the_connection():
    """The connection goes on for others."""
    _, response = answer()

    def broken(_):
        raise ValueError("broken")

    with uncollected():
        pouring = asyncio.create_task(response.pour(broken))
        await asyncio.sleep(0)
        response.feed(b"a")
        (error,) = await asyncio.gather(pouring, return_exceptions=True)
        assert (type(error), str(error)) == (ValueError, "broken")
        del error, pouring
        await asyncio.sleep(0)  # the loop still holds what it has just called
        assert errors_left() == []


async def test_a_cut_while_pouring_is_raised():
    """After the pieces that came ahead of it."""
    _, response = answer()
    pouring = asyncio.create_task(response.pour(lambda _: True))
    await asyncio.sleep(0)
    response.fail(UpstreamError("cut"))
    with pytest.raises(UpstreamError, match="cut"):
        await pouring


async def test_a_reader_that_leaves_takes_nothing_with_it():
    """The next one gets what arrives."""
    _, response = answer()
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    response.feed(b"a")
    assert await response.read() == b"a"


async def test_an_unwanted_answer_is_thrown_away_up_to_a_limit():
    """Beyond it somebody is told, for each further piece."""
    told = []
    response = UpstreamResponse.unwanted(5, lambda: told.append("too much"))
    response.feed(b"1234")
    assert told == []
    response.feed(b"56")
    assert told == ["too much"]
    assert response.read_nowait() is None


async def test_a_whole_answer_goes_to_the_sink_or_wakes_who_waits_for_it():
    """As if its pieces had come one by one."""
    _, poured = answer()
    found = []
    pouring = asyncio.create_task(poured.pour(lambda piece: found.append(piece) or True))
    await asyncio.sleep(0)
    poured.arrive(NO_HEAD, b"whole")
    await pouring
    assert (found, poured.read_nowait()) == ([b"whole"], b"")
    _, awaited = answer()
    reading = asyncio.create_task(awaited.read())
    await asyncio.sleep(0)
    awaited.arrive(NO_HEAD, b"whole")
    assert (await reading, await awaited.read()) == (b"whole", b"")
