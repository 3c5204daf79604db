"""The settings that the operator guide gives for kinds of clusters do what they are for, on virtual time.

Promised of each: a node that is silent for less than its lease keeps what it has, and a node that dies has given up
everything a second after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from .sim_node import SHAPE, SimNode
from .world import Playground, World


class Scenario(NamedTuple):
    """A row of the guide's table: its heartbeat settings, and the longest silence that it is to bear."""

    interval: float
    timeout: float
    silence: float


DEFAULT = Scenario(5, 15, 9)
LARGE = Scenario(3, 15, 11)
STABLE = Scenario(5, 30, 20)
CHURN = Scenario(3, 9, 5)
SCENARIOS = [pytest.param(each, id=name) for name, each in zip(
    ("default", "large", "stable", "churn"), (DEFAULT, LARGE, STABLE, CHURN), strict=True
)]  # fmt: skip
_STEP = 0.25


@pytest.fixture
def settled(database_url: str) -> Iterator[Callable[..., World]]:
    """Make a world with these settings, where three nodes, or as many as asked for, have their shares."""
    playground, worlds = Playground(database_url), list[World]()

    def make(scenario: Scenario, names: str = "abc") -> World:
        worlds.append(World(playground, scenario.interval, scenario.timeout))
        for name in names:
            worlds[-1].join(name)
        worlds[-1].live(6 * scenario.interval)
        counts = Counter(owners(worlds[-1]))
        assert None not in counts and max(counts.values()) == -(-SHAPE.partitions // len(names))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
    playground.close()


def owners(world: World) -> list[object]:
    return [row["owner"] for row in world.ledger.partitions.values()]


def gone_from(world: World, node: SimNode, at_most: float) -> float:
    """How many seconds pass until others have all that a node had."""
    begun = world.now
    while node.name in owners(world) or None in owners(world):
        assert world.now - begun < at_most, f"after {at_most} s it is still {owners(world)}"
        world.live(_STEP)
    return world.now - begun


@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "follower"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_killed_node_s_share_is_elsewhere_within_its_lease_and_a_second(
    settled: Callable[..., World], scenario: Scenario, victim: int
) -> None:
    world = settled(scenario)
    world.live(0.7 * victim)  # somewhere between two heartbeats
    world.crash(world.nodes[victim], provably=False)
    took = gone_from(world, world.nodes[victim], scenario.timeout + 1 + _STEP)
    assert took <= scenario.timeout + 1
    assert world.ledger.evictions == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_silence_within_the_lease_evicts_nobody_and_moves_nothing(
    settled: Callable[..., World], scenario: Scenario
) -> None:
    world = settled(scenario)
    before = owners(world)
    for node in world.nodes:
        world.live(scenario.interval * 0.9)
        world.cut_off(node, scenario.silence)
        world.live(scenario.silence + 2 * scenario.interval)
        world.pause(node, scenario.silence, children=True)
        world.live(scenario.silence + 2 * scenario.interval)
    assert world.ledger.evictions == 0 and owners(world) == before


def test_a_silence_that_a_stable_cluster_bears_is_a_death_by_default(settled: Callable[..., World]) -> None:
    world = settled(DEFAULT)
    world.pause(world.nodes[1], STABLE.silence, children=True)
    world.live(STABLE.silence)
    assert world.ledger.evictions == 1
    assert "b" not in owners(world)


def test_a_death_that_churn_notices_in_time_is_none_yet_by_default(settled: Callable[..., World]) -> None:
    world = settled(DEFAULT)
    world.crash(world.nodes[1], provably=False)
    world.live(CHURN.timeout)
    assert world.ledger.evictions == 0
    gone_from(world, world.nodes[1], DEFAULT.timeout + 1 - CHURN.timeout)


@pytest.mark.parametrize("survivors", [1, 2])
def test_when_all_older_nodes_die_at_once_the_youngest_notice_a_lease_after_they_began_to_look(
    settled: Callable[..., World], survivors: int
) -> None:
    """Only the oldest few watch the others; a younger one begins when they have been silent for half of their lease."""
    world = settled(DEFAULT, "abcdef")
    victims = world.nodes[: len(world.nodes) - survivors]
    for node in victims:
        world.crash(node, provably=False)
    begins = DEFAULT.timeout / 2 + DEFAULT.interval
    took = max(gone_from(world, node, begins + DEFAULT.timeout + 1 + _STEP) for node in victims)
    assert DEFAULT.timeout < took
    assert world.ledger.evictions == len(victims)
