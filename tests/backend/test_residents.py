"""The book of what is loaded: who holds an entry, what ps changes in it, and what is forgotten."""

import pytest

from router.backend.epoch import Epoch
from router.backend.residents import GOING_S, Residents, Tracked
from router.backend.tracked import MOST_USERS
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from tests.backend.machine import BIG, SMALL, row_of

W = "sha256-small"
OPTIONS = LoadOptions(num_ctx=8192, num_batch=512)


class Book:
    """Residents under test; `idle` counts how often the last request to an entry has ended."""

    def __init__(self, keep=()):
        self.epoch, self.idle, self.guess = Epoch(), 0, {0: 3 * GIB}
        self.residents = Residents(frozenset(map(key_of, keep)), self.epoch)
        self.residents.notify(self._on_leave)

    def _on_leave(self, tracked, _now_s):
        self.idle += not tracked.in_flight

    def ps(self, *, now_s=0.0, **seen):
        """Merge these rows of ps (weights → row); return the entries that have gone."""
        return self.residents.merge(seen, lambda name: name, lambda _row: dict(self.guess), now_s)

    def changes(self):
        """How often the epoch has advanced since the last call."""
        was, self.epoch.number = self.epoch.number, 0
        return was


def one(**more):
    """Return a book with one resident, and that resident."""
    book = Book(**more)
    book.ps(small=row_of(SMALL), now_s=1.0)
    book.changes()
    return book, book.residents["small"]


def test_a_request_is_counted_in_and_out():
    """`served` counts on, `in_flight` does not, and the entry has been idle since the last one left."""
    book, tracked = one()
    assert [book.residents.enter("small") for _ in range(2)] == [tracked, tracked]
    book.residents.leave(tracked, 5.0)
    assert (tracked.in_flight, tracked.served, tracked.idle_since_s, book.idle) == (1, 2, 1.0, 0)
    book.residents.leave(tracked, 7.0)
    assert (tracked.in_flight, tracked.served, tracked.idle_since_s, book.idle) == (0, 2, 7.0, 1)


def test_what_is_not_loaded_cannot_be_entered():
    """The request has to be decided again."""
    book, _ = one()
    assert book.residents.enter("big") is None


def test_what_ps_shows_first_is_a_resident_of_unknown_options():
    """Idle from now on, holding what it is guessed to hold, and decisions are void."""
    book = Book()
    assert book.ps(small=row_of(SMALL), now_s=3.0) == []
    tracked = book.residents["small"]
    assert (tracked.name, tracked.options, tracked.in_flight, tracked.idle_since_s) == (SMALL.name, None, 0, 3.0)
    assert (tracked.held_bytes, tracked.is_measured) == (book.guess, False)
    assert tracked.sent_options == LoadOptions(num_ctx=32768)
    assert book.changes() == 1


def test_the_youngest_has_the_highest_order():
    """Also when an older one has gone and come back."""
    book = Book()
    for seen in ({"big": row_of(BIG)}, {"big": row_of(BIG), "small": row_of(SMALL)}, {"small": row_of(SMALL)}):
        book.ps(**seen)
    book.ps(big=row_of(BIG), small=row_of(SMALL))
    assert book.residents["big"].order > book.residents["small"].order


def test_an_unchanged_row_changes_nothing():
    """Remembered decisions stay valid; the row itself is taken over, for its expiry."""
    book, tracked = one()
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: GIB})
    again = row_of(SMALL)
    assert book.ps(small=again) == []
    assert book.residents["small"] is tracked
    assert (tracked.row is again, tracked.options, book.changes()) == (True, OPTIONS, 0)


@pytest.mark.parametrize(
    "row",
    [row_of(SMALL, num_ctx=4096), row_of(SMALL, vram_bytes=GIB), row_of(BIG)],
    ids=["other context", "other share on the card", "other size"],
)
def test_a_runner_that_was_reloaded_behind_our_back_is_a_stranger(row):
    """What was known of the runner before is forgotten; the requests in flight are not."""
    book, tracked = one()
    book.residents.enter("small")
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: GIB})
    tracked.measured({0: 9 * GIB})
    tracked.spilled()
    book.ps(small=row)
    assert (tracked.options, tracked.is_spilled, tracked.free_at_load_bytes) == (None, False, {})
    assert (tracked.held_bytes, tracked.is_measured, tracked.in_flight) == (book.guess, False, 1)
    assert book.changes() == 1


def test_a_runner_that_was_reloaded_behind_our_back_is_the_youngest():
    """`order` rises with each load, whoever has caused it."""
    book = Book()
    book.ps(small=row_of(SMALL))
    book.ps(small=row_of(SMALL), big=row_of(BIG))
    book.ps(small=row_of(SMALL, num_ctx=4096), big=row_of(BIG))
    assert book.residents["small"].order > book.residents["big"].order


def test_what_ps_does_not_show_any_more_has_gone():
    """It is returned once, and decisions are void."""
    book, tracked = one()
    assert book.ps() == [tracked]
    assert (len(book.residents), list(book.residents), book.changes()) == (0, [], 1)
    assert book.ps() == []


def test_an_entry_that_comes_back_has_its_requests_in_flight():
    """ps may miss a model for a moment: the same entry counts its requests out."""
    book, tracked = one()
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: GIB})
    tracked.measured({0: 9 * GIB})
    tracked.spilled()
    book.residents.enter("small")
    book.residents.go(tracked, 2.0)
    order = tracked.order
    book.ps()
    book.ps(small=row_of(SMALL), now_s=9.0)
    assert book.residents["small"] is tracked
    assert (tracked.in_flight, tracked.order > order, tracked.loaded_at_s) == (1, True, 9.0)
    assert (tracked.options, tracked.is_spilled, tracked.frozen(0, 9.0).is_going) == (None, False, False)
    assert (tracked.held_bytes, tracked.is_measured) == (book.guess, False)
    book.residents.leave(tracked, 10.0)
    assert (tracked.in_flight, book.idle) == (0, 1)


def test_an_entry_that_comes_back_for_a_request_of_the_router_is_its_own():
    """Nobody else has loaded it: Ollama did, for the request that was sent to it just as it left."""
    book, tracked = one()
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: GIB})
    book.residents.enter("small")
    book.ps()
    book.ps(small=row_of(SMALL))
    assert book.residents.is_ours(tracked)
    book.residents.leave(tracked, 10.0)
    book.ps()
    book.ps(small=row_of(SMALL))
    assert not book.residents.is_ours(book.residents["small"])


def test_an_entry_that_comes_back_has_no_free_memory_of_an_earlier_load():
    """What the driver had free before the load that nobody has seen is unknown."""
    book, tracked = one()
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: GIB})
    book.residents.enter("small")
    book.ps()
    book.ps(small=row_of(SMALL))
    assert tracked.free_at_load_bytes == {}


def test_an_entry_that_comes_back_has_served_nothing_but_what_is_in_flight():
    """`served` counts since it was loaded; a ticket has no count for the new load yet."""
    book, tracked = one()
    for _ in range(100):
        book.residents.leave(book.residents.enter("small"), 1.0)
    book.residents.enter("small")
    book.ps()
    book.ps(small=row_of(SMALL))
    assert tracked.served <= 1


def test_an_entry_that_comes_back_under_a_kept_name_is_kept():
    """Two tags may share the weights; `keep:` names one of them."""
    book, tracked = one(keep=[BIG.name])
    book.residents.enter("small")
    book.ps()
    book.ps(small=row_of(BIG))
    assert (tracked.name, tracked.is_kept) == (BIG.name, True)


def test_an_entry_whose_requests_have_ended_while_it_was_away_is_a_new_one_when_it_comes_back():
    """Nothing of the old one is in the new one; the old one was counted out."""
    book, tracked = one()
    book.residents.enter("small")
    book.ps()
    book.residents.leave(tracked, 2.0)
    assert book.idle == 1
    book.ps(small=row_of(SMALL))
    new = book.residents["small"]
    assert (new is tracked, new.in_flight, new.served) == (False, 0, 0)


def test_a_model_that_is_being_unloaded_cannot_be_relied_on_for_a_while():
    """For as long as an unload may take; then it is usable again if it is still there."""
    book, tracked = one()
    book.residents.go(tracked, 20.0)
    assert book.changes() == 1
    assert not tracked.frozen(0, 20.0 + GOING_S - 0.1).is_fully_resident
    assert tracked.frozen(0, 20.0 + GOING_S).is_fully_resident


def test_a_model_that_would_not_go_can_be_relied_on_again_at_once():
    """The unload is taken back."""
    book, tracked = one()
    book.residents.go(tracked, 20.0)
    book.changes()
    book.residents.stay(tracked)
    assert (tracked.frozen(0, 20.0).is_fully_resident, book.changes()) == (True, 1)


def test_a_spill_is_seen_by_every_decision_from_then_on():
    """No request may be sent to it."""
    book, tracked = one()
    book.residents.spilled(tracked)
    assert (tracked.frozen(0, 0.0).is_fully_resident, book.changes()) == (False, 1)


def test_what_all_entries_hold_of_a_card():
    """Measured or assumed; a card that nobody uses has nothing."""
    book = Book()
    book.ps(small=row_of(SMALL), big=row_of(BIG))
    book.residents["small"].measured({0: GIB, 1: 2 * GIB})
    book.changes()
    book.residents.assume(book.residents["big"], {1: 5 * GIB})
    assert book.changes() == 1
    assert [book.residents.held_on(card) for card in (0, 1, 2)] == [GIB, 7 * GIB, 0]
    assert not book.residents["big"].is_measured


def test_models_that_the_operator_keeps_are_marked():
    """By the model that is meant, not by its spelling."""
    book = Book(keep=["SMALL:3b"])
    book.ps(small=row_of(SMALL), big=row_of(BIG))
    assert {weights: entry.is_kept for weights, entry in book.residents.items()} == {"small": True, "big": False}


def test_a_decision_sees_what_is_known_of_a_resident():
    """Everything that plans and verdicts look at, frozen."""
    tracked = Tracked(W, SMALL.name, row_of(SMALL, num_ctx=16384), 7, 0.0, is_kept=True)
    tracked.loaded(OPTIONS, 330.0, 1.0, {0: 20 * GIB})
    tracked.measured({0: 3 * GIB})
    tracked.enter()
    seen = tracked.frozen(4, 0.0)
    assert (seen.name, seen.weights, seen.context_length, seen.order) == (SMALL.name, W, 16384, 7)
    assert (seen.size_bytes, seen.size_vram_bytes) == (SMALL.size_bytes, SMALL.size_bytes)
    assert (seen.held_bytes, seen.free_at_load_bytes) == ({0: 3 * GIB}, {0: 20 * GIB})
    assert (seen.options, seen.keep_alive_s, seen.in_flight, seen.wanted, seen.kept) == (OPTIONS, 330.0, 1, 4, True)


def test_a_resident_keeps_everything_when_its_weights_become_known():
    """Until its model was shown another key stood in for them. Requests in flight are counted on."""
    book, tracked = one()
    book.residents.enter("small")
    book.residents.move("small", W)
    assert (list(book.residents), tracked.weights, tracked.in_flight, book.changes()) == ([W], W, 1, 1)
    assert book.ps(**{W: row_of(SMALL)}) == []
    book.residents.leave(tracked, 9.0)
    assert (book.residents[W], tracked.in_flight, book.idle) == (tracked, 0, 1)


@pytest.mark.parametrize(("old", "new"), [("big", W), ("small", "small")])
def test_what_is_not_loaded_or_in_its_place_already_is_not_moved(old, new):
    """Nothing changes then."""
    book, tracked = one()
    book.residents.move(old, new)
    assert (dict(book.residents), book.changes()) == ({"small": tracked}, 0)


@pytest.mark.parametrize(
    ("kept", "keep_alive_s", "users"),
    [((), None, ("late",)), ((), 1000.0, ("early", "late")), ((SMALL.name,), None, ("early", "late"))],
    ids=["by Ollama's lease", "by a client's keep_alive", "kept"],
)
def test_the_users_of_a_resident_are_the_teams_that_have_used_it_within_its_keep_alive(kept, keep_alive_s, users):
    """What it holds is theirs until then; requests of no team are nobody's."""
    book, tracked = one(keep=kept)
    for at_s, team in ((0.0, "late"), (10.0, "early"), (200.0, "late"), (200.0, "")):
        book.residents.enter("small", team, at_s)
    if keep_alive_s is not None:
        tracked.keep_for(keep_alive_s)
    assert tracked.frozen(0, 310.0).users == users


def test_the_users_of_a_resident_are_a_bounded_number():
    """Reloads may bring any number of new names; the last ones count."""
    book, tracked = one()
    for number in range(2 * MOST_USERS):
        book.residents.enter("small", f"team {number}", 1.0)
    assert len(tracked.users) == MOST_USERS
    assert f"team {2 * MOST_USERS - 1}" in tracked.frozen(0, 2.0).users
