"""Is a history of one register (one key) linearizable?

Wing and Gong's search with a memory of visited states (Lowe's improvement). A write whose answer was lost (the server
was killed) may have happened at any time after its start, or never. A write that is lost and whose value nobody ever
read is left out: if the rest has an order with it, it has one without it.
"""

from dataclasses import dataclass

ABSENT = None
STATES_MAX = 2_000_000


@dataclass(frozen=True)
class Operation:
    """`end` is infinite for a lost answer. `value` is what was written or read; ABSENT for a delete or a 404."""

    start: float
    end: float
    is_write: bool
    value: object

    @property
    def is_lost(self):
        return self.end == float("inf")


def relevant(history):
    read = {operation.value for operation in history if not operation.is_write}
    return sorted(
        (o for o in history if not (o.is_lost and (not o.is_write or (o.value is not ABSENT and o.value not in read)))),
        key=lambda o: (o.start, o.end),
    )


def violation(history, initial=ABSENT):
    """None if an order exists, else the operations around the point that no order gets past."""
    operations = relevant(history)
    required = [index for index, operation in enumerate(operations) if not operation.is_lost]
    lost = [index for index, operation in enumerate(operations) if operation.is_lost]
    goal = sum(1 << index for index in required)
    stack, visited, farthest = [(0, initial)], set(), 0
    while stack:
        done, value = stack.pop()
        open_ones = goal & ~done
        if not open_ones:
            return None
        if (done, value) in visited:
            continue
        visited.add((done, value))
        assert len(visited) < STATES_MAX, "the history is too entangled to be judged; use fewer concurrent lost writes"
        first = (open_ones & -open_ones).bit_length() - 1
        farthest = max(farthest, first)
        # Whatever comes next must have started before every operation that is still open has ended.
        limit = min_end(operations, done, first)
        for index in candidates(operations, lost, done, first, limit):
            operation = operations[index]
            if operation.is_write:
                stack.append((done | 1 << index, operation.value))
            elif operation.value == value:
                stack.append((done | 1 << index, value))
    return operations[max(0, farthest - 8) : farthest + 9]


def min_end(operations, done, first):
    limit = operations[first].end
    for index in range(first + 1, len(operations)):
        operation = operations[index]
        if operation.start > limit:
            break
        if not done >> index & 1:
            limit = min(limit, operation.end)
    return limit


def candidates(operations, lost, done, first, limit):
    """Lost writes may lie far back; everything else that is open lies at the first open one or behind it."""
    for index in lost:
        if index >= first:
            break
        if not done >> index & 1:
            yield index
    for index in range(first, len(operations)):
        if operations[index].start > limit:
            break
        if not done >> index & 1:
            yield index
