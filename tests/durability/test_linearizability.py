"""The checker itself: it must accept what is right and find what is wrong."""

import itertools
import random

from linearizability import ABSENT, Operation, violation

LOST = float("inf")


def write(start, end, value):
    return Operation(start, end, True, value)


def read(start, end, value):
    return Operation(start, end, False, value)


def test_what_is_right_is_accepted():
    assert violation([]) is None
    assert violation([read(0, 1, ABSENT), write(2, 3, "a"), read(4, 5, "a"), write(6, 7, ABSENT), read(8, 9, ABSENT)]) is None
    assert violation([write(0, 10, "a"), read(1, 2, ABSENT), read(3, 4, "a")]) is None, "it took effect in between"
    assert violation([write(0, 10, "a"), write(1, 9, "b"), read(11, 12, "a")]) is None, "concurrent writes have any order"
    assert violation([write(0, LOST, "a"), read(5, 6, ABSENT), read(7, 8, "a")]) is None, "a lost write may come late"
    assert violation([write(0, 1, "a"), write(2, LOST, "b"), read(5, 6, "a")]) is None, "or never"
    assert violation([write(0, 1, "a"), write(2, LOST, ABSENT), read(3, 4, "a"), read(5, 6, ABSENT)]) is None


def test_what_is_wrong_is_found():
    assert violation([write(0, 1, "a"), read(2, 3, ABSENT)]), "an acknowledged write is gone"
    assert violation([write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")]), "a stale read"
    assert violation([write(0, 9, "a"), read(1, 2, "a"), read(3, 4, ABSENT)]), "a read that goes back"
    assert violation([read(0, 1, "a"), write(2, 3, "a")]), "a value before it was written"
    assert violation([write(0, LOST, "a"), write(1, 2, "b"), read(3, 4, "a"), read(5, 6, "b")]), "a lost write that flickers"
    assert violation([write(0, 1, "a"), write(2, 3, ABSENT), read(4, 5, "a")]), "a deleted object is back"
    assert violation([write(0, 1, "a"), read(2, 3, "never written")])


def test_against_every_order_of_small_histories():
    """The search agrees with trying all permutations."""

    def naive(history):
        kept = [o for o in history if not (o.is_lost and not o.is_write)]
        lost = [o for o in kept if o.is_lost]
        settled = [o for o in kept if not o.is_lost]
        for count in range(len(lost) + 1):
            for chosen in itertools.combinations(lost, count):
                for order in itertools.permutations(settled + list(chosen)):
                    in_time = all(not (b.end < a.start) for i, a in enumerate(order) for b in order[i + 1 :])
                    value, fits = ABSENT, True
                    for operation in order:
                        if operation.is_write:
                            value = operation.value
                        fits = fits and (operation.is_write or operation.value == value)
                    if in_time and fits:
                        return True
        return False

    draw = random.Random(7)
    verdicts = set()
    for _ in range(1500):
        history = []
        for number in range(draw.randint(2, 5)):
            start = draw.randint(0, 12)
            lost = draw.random() < 0.25
            is_write = draw.random() < 0.5
            value = (ABSENT if draw.random() < 0.2 else f"w{number}") if is_write else draw.choice([ABSENT, "w0", "w1", "w2"])
            history.append(Operation(start, LOST if lost else start + draw.randint(1, 6), is_write, value))
        assert (violation(history) is None) == naive(history), history
        verdicts.add(naive(history))
    assert verdicts == {True, False}
