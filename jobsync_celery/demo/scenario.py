"""The story: what happens to the cluster, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobsync_celery.demo.observer import Look
from jobsync_celery.demo.scene import Scene

_START_SEC = 40.0
_MOVE_SEC = 20.0
_STILL_SEC = 30.0
_QUIET_SEC = 1.0
# What the steps take in themselves, to pace the stream: a worker's start, a lease's end, a stop.
_JOIN_SEC, _FAIL_OVER_SEC, _STOP_SEC = 3.5, 2.5, 2.5


@dataclass(frozen=True)
class Timings:
    """Seconds that the moves took; None where a move did not end."""

    join: float | None
    handover: float | None


def play(scene: Scene) -> Timings:
    """Workers start, tasks flow, one worker joins, one is killed, one is stopped, and all tasks are done."""
    script = scene.script
    start(scene)
    scene.publish()
    left = script.before_join + _JOIN_SEC + script.before_kill + _FAIL_OVER_SEC + script.before_stop + _STOP_SEC
    scene.step(script.before_join + _JOIN_SEC, left + script.before_end)
    scene.watch(script.before_join)
    joined = join(scene)
    scene.step(script.before_kill + _FAIL_OVER_SEC, script.before_stop + _STOP_SEC + script.before_end)
    scene.watch(script.before_kill)
    kill(scene)
    scene.step(script.before_stop + _STOP_SEC, script.before_end)
    scene.watch(script.before_stop)
    handed_over = stop(scene)
    scene.step(script.before_end, 0)
    finish(scene)
    return Timings(joined, handed_over)


def start(scene: Scene) -> None:
    """The first workers start together, and share the partitions."""
    first = scene.script.first
    scene.say(f"{len(first)} workers start: {first[0]} to {first[-1]}")
    for name in first:
        scene.start(name)
    scene.wait_until(lambda: scene.look.shared_by(first), _START_SEC, "the first workers did not share the partitions")
    scene.say(f"all partitions are shared: {_shares(scene.look)}")


def join(scene: Scene) -> float | None:
    """Another worker joins; seconds from its registration until it has its share."""
    name = scene.script.joiner
    scene.say(f"{name} is started")
    scene.start(name)
    scene.wait_until(lambda: scene.look.node(name) is not None, _START_SEC, f"{name} did not register")
    node = scene.look.node(name)
    assert node is not None
    registered = node.node.created_on.timestamp()
    _until_shared(scene)
    owned = scene.look.owned_by(name)
    if not scene.look.shared_by(scene.up):
        scene.say(f"{name} does NOT have its share: {_shares(scene.look)}")
        return None
    scene.say(f"{name} has its share of {len(owned)} partitions")
    return max((scene.look.seats[number].since - registered for number in owned), default=None)


def kill(scene: Scene) -> None:
    """One worker is killed as if by the kernel; the others notice when its lease ends."""
    victim, leads = scene.script.victim, scene.look.status.leader.node == scene.script.victim
    scene.say(f"SIGKILL to {victim}{', the leader,' if leads else ''} and its pool children", alarm=True)
    partitions = scene.kill(victim)
    _until_shared(scene)
    scene.say(f"the {len(partitions)} partitions of {victim} {_moved(scene.look.shared_by(scene.up), scene)}")


def stop(scene: Scene) -> float | None:
    """One worker is stopped as by a deployment; seconds until the last of its partitions had another owner."""
    leaver = scene.script.leaver
    owned, sent = scene.look_now().owned_by(leaver), scene.look.clock
    leads = scene.look.status.leader.node == leaver
    scene.stop(leaver)
    scene.say(f"SIGTERM to {leaver}{', the leader' if leads else ''}", alarm=True)
    took: Callable[[], float | None] = lambda: scene.look.moved_since(sent, owned, leaver)  # noqa: E731
    scene.wait_until(lambda: took() is not None, _MOVE_SEC)
    seconds = took()
    scene.say(f"the {len(owned)} partitions of {leaver} {_moved(seconds is not None, scene)}")
    scene.wait_until(lambda: scene.ended(leaver), _MOVE_SEC)
    scene.say(f"{leaver} has finished its tasks and left" if scene.ended(leaver) else f"{leaver} does not end")
    return seconds


def finish(scene: Scene) -> None:
    """The stream ends, the last tasks run, and the workers get a moment in which a task could run twice."""
    scene.wait_until(lambda: scene.published, _MOVE_SEC, "the publisher did not finish")
    scene.say("all tasks are published")
    scene.wait_while_progress(_STILL_SEC)
    scene.watch(_QUIET_SEC)
    scene.say("the workers are stopped")
    scene.stop_all()


def _until_shared(scene: Scene) -> None:
    """Until the workers that are up share everything; what never settles shows in the verdict."""
    scene.wait_until(lambda: scene.look.shared_by(scene.up), _MOVE_SEC)


def _shares(look: Look) -> str:
    return ", ".join(f"{share.node.name} {share.owned}" for share in look.status.live)


def _moved(all_of_them: bool, scene: Scene) -> str:
    return "have new owners" if all_of_them else f"do NOT all have new owners: {_shares(scene.look)}"
