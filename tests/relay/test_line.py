"""Who goes on when a place gets free: the one that waited longest, then whoever has room, and nobody is passed over."""

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from tunnel.relay.line import LOOKS, Line


@define(eq=False)
class Waiter:
    name: str
    is_at_bound: bool = False


def line_of(*waiters: Waiter) -> Line[Waiter]:
    line: Line[Waiter] = Line()
    for waiter in waiters:
        line.add(waiter)
    return line


def drain(line: Line[Waiter]) -> list[str]:
    """Who goes on, each in its turn, until there is nothing to look at."""
    names = []
    while line.unseen:
        waiter = line.next()
        if waiter is not None:
            names.append(waiter.name)
    return names


def test_nobody_goes_on_before_a_bound_is_further_away() -> None:
    line = line_of(Waiter("one"))
    assert line.next() is None
    assert (len(line), line.unseen) == (1, 0)


def test_one_goes_on_at_a_time_and_the_first_comes_first() -> None:
    line = line_of(*(Waiter(name) for name in "abc"))
    line.look_again()
    first = line.next()
    assert first is not None
    assert first.name == "a"
    assert first not in line
    assert (len(line), line.unseen) == (2, 2)
    line.add(first)  # it took the place, and there is no other
    line.unseen = 0
    line.look_again()
    assert drain(line) == ["b", "c", "a"]


def test_who_is_at_a_bound_of_its_own_does_not_hold_up_the_others() -> None:
    own = Waiter("own", is_at_bound=True)
    line = line_of(own, Waiter("a"), Waiter("b"))
    line.look_again()
    assert drain(line) == ["a", "b"]
    assert own in line
    own.is_at_bound = False
    line.look_again()
    assert drain(line) == ["own"]
    assert not line


def test_one_turn_looks_at_so_many_and_the_next_goes_on_from_there() -> None:
    free = Waiter("free")
    line = line_of(*(Waiter(str(at), is_at_bound=True) for at in range(2 * LOOKS)), free)
    line.look_again()
    assert [line.next(), line.next(), line.next()] == [None, None, free]
    assert (len(line), line.unseen) == (2 * LOOKS, 0)


def test_who_was_closed_is_not_asked() -> None:
    gone, stays = Waiter("gone"), Waiter("stays")
    line = line_of(gone, stays)
    line.look_again()
    line.discard(gone)
    line.discard(gone)
    assert drain(line) == ["stays"]


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "next", "look", "flip"]), st.integers(0, 5))))
def test_whoever_has_room_goes_on_whatever_happens_meanwhile(steps: list[tuple[str, int]]) -> None:
    waiters = [Waiter(str(at)) for at in range(6)]
    line: Line[Waiter] = Line()
    for step, at in steps:
        waiter = waiters[at]
        if step == "flip":
            waiter.is_at_bound = not waiter.is_at_bound
            line.look_again()
        elif step == "next":
            found = line.next()
            assert found is None or not found.is_at_bound
        elif step == "look":
            line.look_again()
        else:
            (line.add if step == "add" else line.discard)(waiter)
    line.look_again()
    with_room = {waiter.name for waiter in waiters if waiter in line and not waiter.is_at_bound}
    assert set(drain(line)) == with_room
    assert all(waiter.is_at_bound for waiter in waiters if waiter in line)
