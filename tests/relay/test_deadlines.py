"""The engine's deadlines: exact, in order, and as any simple list would have them."""

from hypothesis import given
from hypothesis import strategies as st

from tunnel.relay.deadlines import DeadlineQueue


def test_owners_expire_in_the_order_of_their_deadlines() -> None:
    expired: list[str] = []
    queue = DeadlineQueue(10.0, expired.append)
    queue.add("one", 0.0)
    queue.add("two", 1.0)
    queue.add("three", 1.0)
    assert (queue.next(), len(queue)) == (10.0, 3)
    queue.expire(9.999)
    assert expired == []
    queue.expire(10.0)
    assert (expired, queue.next()) == (["one"], 11.0)
    queue.expire(99.0)
    assert (expired, queue.next(), len(queue)) == (["one", "two", "three"], None, 0)


def test_a_discarded_owner_does_not_expire() -> None:
    expired: list[str] = []
    queue = DeadlineQueue(10.0, expired.append)
    queue.add("one", 0.0)
    queue.add("two", 1.0)
    queue.discard("one")
    queue.discard("one")
    queue.discard("never added")
    assert queue.next() == 11.0
    queue.expire(99.0)
    assert expired == ["two"]


def test_adding_again_starts_again() -> None:
    expired: list[str] = []
    queue = DeadlineQueue(10.0, expired.append)
    queue.add("one", 0.0)
    queue.add("two", 1.0)
    queue.add("one", 2.0)
    queue.expire(11.5)
    assert (expired, queue.next()) == (["two"], 12.0)


def test_what_expires_may_add_and_discard() -> None:
    expired: list[str] = []

    def on_expired(owner: str) -> None:
        expired.append(owner)
        queue.discard("two")
        if len(expired) < 3:
            queue.add("one", 10.0)

    queue = DeadlineQueue(10.0, on_expired)
    queue.add("one", 0.0)
    queue.add("two", 0.0)
    queue.expire(10.0)
    assert expired == ["one"]
    queue.expire(19.0)
    assert expired == ["one"]
    queue.expire(20.0)
    assert expired == ["one", "one", "one"]


def test_a_zero_duration_expires_at_once() -> None:
    expired: list[str] = []
    queue = DeadlineQueue(0.0, expired.append)
    queue.add("one", 5.0)
    queue.expire(5.0)
    assert expired == ["one"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "expire"]), st.integers(0, 4), st.integers(0, 5)), max_size=60
    )
)
def test_it_behaves_as_a_list_of_deadlines(steps: list[tuple[str, int, int]]) -> None:
    expired: list[int] = []
    queue: DeadlineQueue[int] = DeadlineQueue(7.0, expired.append)
    model: list[tuple[float, int]] = []
    due: list[int] = []
    now = 0.0
    for verb, owner, passed in steps:
        now += passed
        if verb != "expire":
            model = [(at, other) for at, other in model if other != owner]
        if verb == "add":
            queue.add(owner, now)
            model.append((now + 7.0, owner))
        elif verb == "discard":
            queue.discard(owner)
        else:
            queue.expire(now)
            due += [other for at, other in model if at <= now]
            model = [(at, other) for at, other in model if at > now]
        assert expired == due
        assert len(queue) == len(model)
        assert queue.next() == (model[0][0] if model else None)
