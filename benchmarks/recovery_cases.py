"""Workers are killed, stopped and started: how long until what they had starts elsewhere."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from e2e.history import now
from e2e.site import HEARTBEAT, TIMEOUT
from e2e.waiting import until
from recovery_scene import Message, Scene

FAILOVER_SEC = TIMEOUT + 1.0
HANDOVER_SEC = 1.0
_PROBE_SEC = 0.015
_LIVE = "SELECT name FROM sync_node WHERE name = %s AND state = 'live'"

#: Measure -> seconds, of one round.
Round = dict[str, float]


def kill_follower(scene: Scene) -> Round:
    """SIGKILL of the youngest node."""
    return _kill(scene, -1)


def kill_leader(scene: Scene) -> Round:
    """SIGKILL of the oldest node."""
    return _kill(scene, 0)


def _kill(scene: Scene, age: int) -> Round:
    victim = scene.by_age()[age]
    node = victim.hostname()
    filled = scene.fill(victim, "slow_first", 600)
    time.sleep(random.uniform(0, HEARTBEAT))  # so that rounds meet the heartbeat at different moments
    killed = now()
    victim.kill("SIGKILL")
    measured = {"all partitions are owned by others": scene.until_gone(node) - killed}
    scene.site.until_ended(*filled.ids())
    for kind, messages in (("fetched", filled.fetched), ("queued", filled.queued), ("cut off", filled.running)):
        began = [run.began - killed for run in scene.runs(messages, not_on=node)]
        assert len(began) == len(messages), f"{kind}: {len(began)} of {len(messages)} ran elsewhere"
        measured |= {f"first start, {kind}": min(began), f"last start, {kind}": max(began)}
    victim.container.begin()
    return measured


def stop(scene: Scene) -> Round:
    """SIGTERM of a node while two long tasks run on it."""
    victim = random.choice(scene.by_age())
    node = victim.hostname()
    go_on = scene.site.folder / "go on"
    go_on.touch()
    filled = scene.fill(victim, "as_long_as", str(go_on))
    stopped = now()
    victim.kill("SIGTERM")
    gone = scene.until_gone(node)
    scene.site.until_ended(*(each.id for each in (*filled.fetched, *filled.queued)))
    go_on.unlink()
    scene.site.until_ended(*filled.ids())
    assert victim.container.wait() == 0
    moved = scene.runs([*filled.fetched, *filled.queued], not_on=node)
    first = {scene.partition_of(str(run.key)): run.began - stopped for run in reversed(moved)}
    ended = {run.key: run.ended or run.last for run in scene.runs(filled.running)}
    own = [run.began - ended[run.key] for run in scene.runs(filled.behind)]
    assert min(own) > 0 and len(moved) == len(filled.fetched) + len(filled.queued)
    victim.container.begin()
    return {
        "all partitions are owned by others": gone - stopped,
        "first start of any": min(first.values()),
        "first start in each moved partition": max(first.values()),
        "last start": max(run.began for run in moved) - stopped,
        "other keys beside a long task": max(
            run.began - stopped for run in moved if scene.partition_of(str(run.key)) in _homes(filled.running)
        ),
        "the long task's own key, after its end": max(own),
    }


def join(scene: Scene) -> Round:
    """A node comes back under its name, which moves its former partitions; in some of them a long task runs."""
    joiner = scene.by_age()[-1]
    node = joiner.hostname()
    coming = scene.owned(node)
    joiner.stop()
    scene.until_gone(node)
    go_on = scene.site.folder / "go on"
    long = _one_long_task_each(scene, coming, go_on)
    behind = [scene.publish("step", each.key) for each in long]
    started = now()
    joiner.container.begin()
    probes = Probes(scene, coming)
    registered = probes.until(lambda: scene.site.rows(_LIVE, node))
    shared = probes.until(lambda: scene.shared_evenly(node))
    moved = scene.owned(node)
    probes.until(lambda: now() > shared + 1.0)
    go_on.unlink()
    scene.site.until_ended(*(each.id for each in (*probes.sent, *long, *behind)))
    ended = {run.key: run.ended or run.last for run in scene.runs(long)}
    waits = probes.waits(moved)
    beside = [wait for each, wait in waits if each.partition in _homes(long)]
    assert beside, "a partition with a long task was to move"
    return {
        "it owns its share": shared - registered,
        "its first start": min(run.began for run in scene.runs(probes.sent) if run.host == node) - registered,
        "any message of a moving partition waits": max(wait for _, wait in waits),
        "other keys beside a long task wait": max(beside),
        "the long task's own key, after its end": max(run.began - ended[run.key] for run in scene.runs(behind)),
        "(from process start to registration)": registered - started,
    }


def _one_long_task_each(scene: Scene, partitions: list[int], file: Path) -> list[Message]:
    """On every owner of these partitions one task that runs for as long as the file exists."""
    owners = scene.site.owners()
    chosen = {owners[partition]: partition for partition in partitions}.values()
    file.touch()
    long = [scene.publish("as_long_as", scene.key(partition), str(file)) for partition in chosen]
    scene.site.until_begun(*(each.id for each in long))
    return long


class Probes:
    """Messages of ever new keys to some partitions in turn: how long each waits shows who stands still, and when."""

    def __init__(self, scene: Scene, partitions: list[int]) -> None:
        self._scene = scene
        self._partitions = partitions
        self.sent: list[Message] = []

    def until(self, condition: Callable[[], object]) -> float:
        """Publish until it is so; when that was seen."""

        def turn() -> object:
            partition = self._partitions[len(self.sent) % len(self._partitions)]
            self.sent.append(self._scene.publish("step", self._scene.key(partition)))
            return condition()

        until(turn, "the newcomer takes part", every=_PROBE_SEC)
        return now()

    def waits(self, partitions: list[int]) -> list[tuple[Message, float]]:
        """How long those for these partitions waited, from before they were sent."""
        began = {run.id: run.began for run in self._scene.runs(self.sent)}
        return [(each, began[each.id] - each.at) for each in self.sent if each.partition in partitions]


def _homes(messages: Iterable[Message]) -> set[int]:
    return {each.partition for each in messages}


#: Case -> measure -> what it may take at the worst. Other measures are for information.
BOUNDS: dict[str, dict[str, float]] = {
    **{
        f"SIGKILL of {whom}": {
            "all partitions are owned by others": FAILOVER_SEC,
            "first start, fetched": FAILOVER_SEC,
            "first start, queued": FAILOVER_SEC,
            "first start, cut off": FAILOVER_SEC,
        }
        for whom in ("a follower", "the leader")
    },
    "SIGTERM": {
        "all partitions are owned by others": HANDOVER_SEC,
        "first start of any": HANDOVER_SEC,
        "first start in each moved partition": HANDOVER_SEC,
        "other keys beside a long task": HANDOVER_SEC,
    },
    "a worker joins": {
        "it owns its share": HANDOVER_SEC,
        "any message of a moving partition waits": HANDOVER_SEC,
        "other keys beside a long task wait": HANDOVER_SEC,
    },
}
CASES: dict[str, Callable[[Scene], Round]] = {
    "SIGKILL of a follower": kill_follower,
    "SIGKILL of the leader": kill_leader,
    "SIGTERM": stop,
    "a worker joins": join,
}
