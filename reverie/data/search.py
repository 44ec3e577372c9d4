"""Shortest ways through a simulator whose states can be set, by breadth-first search."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any


def steps_to_go(
    start: Any, following: Callable[[Any], list[Any]], name: Callable[[Any], Hashable], solved: Callable[[Any], bool]
) -> dict[Hashable, int]:
    """Return the fewest steps to a solved state, for every state that ``start`` can lead to and that can be solved.

    ``following``: the states one step away. ``name``: equal for states that differ in nothing that matters.
    """
    before: dict[Hashable, list[Hashable]] = {name(start): []}
    found, ends = deque([start]), []
    while found:
        state = found.popleft()
        if solved(state):
            ends.append(name(state))
            continue
        for each in following(state):
            if name(each) not in before:
                before[name(each)] = []
                found.append(each)
            before[name(each)].append(name(state))
    steps, back = dict.fromkeys(ends, 0), deque(ends)
    while back:
        at = back.popleft()
        for each in before[at]:
            if each not in steps:
                steps[each] = steps[at] + 1
                back.append(each)
    return steps
