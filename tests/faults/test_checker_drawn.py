"""Drawn histories: legal ones pass, and each way to spoil one is found."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.made_up import TIMEOUT, Body, Story, row_of

#: How a body can go on before its run is done: killed, cut off but going on, cut off and terminated.
SETBACKS = ("killed", "outlives", "terminated")
#: How it is done: in peace, late beside the next task of its key, killed before its end was recorded, or completed,
#: with the next task beside the rest of it; or it is retried, or replaced, and that is done in peace.
ENDINGS = ("peace", "late", "unrecorded", "completed", "retried", "replaced")
TAKEN_OVER_SEC = TIMEOUT + 0.2


class Teller:
    """Tells a legal story of one cluster, key by key."""

    def __init__(self) -> None:
        self.story = Story()
        self._fence = 0
        self._n = 0

    def key(self, key: str, tasks: list[tuple[list[str], str, float]], at: float = 1.0) -> None:
        """The tasks of a key, one after another: each with its setbacks, how it is done, and how long it takes."""
        for setbacks, ending, sec in tasks:
            n, self._n = self._n, self._n + 1
            self.story.publish(n, key)
            for attempt, setback in enumerate(setbacks, 1):
                at = self._set_back(n, key, attempt, at, sec, setback)
            at = self._done(n, key, len(setbacks) + 1, at, sec, ending)

    def _set_back(self, n: int, key: str, attempt: int, at: float, sec: float, how: str) -> float:
        again = at + sec + TAKEN_OVER_SEC
        if how == "killed":
            body = self._ran(n, key, attempt, at, at + sec, ended=False)
            self.story.fault(body.last + 0.01, body.last + 0.01, target=body.node)
        elif how == "outlives":
            body = self._ran(n, key, attempt, at, again + 0.2)
            self.story.fault(at + 0.01, again + 1.0, "cut-database-refused", body.node)
        else:
            body = self._ran(n, key, attempt, at, again + 0.05, ended=False)
            body.policy = "terminate"
            self.story.fault(at + 0.01, again + 1.0, "cut-database-refused", body.node)
        return again

    def _done(self, n: int, key: str, attempt: int, at: float, sec: float, how: str) -> float:
        if how == "peace":
            return self._ran(n, key, attempt, at, at + sec).last + 0.05
        if how == "completed":
            body = self._ran(n, key, attempt, at, at + sec + 0.4)
            self.story.publish(n, key, kind="complete")
            for other in self.story.bodies[:-1]:
                if other.n == n:  # and found its claim lost
                    other.over = "requeued"
            self.story.entered(body, completes=True, at=at + sec)
            return at + sec + 0.001
        if how in ("retried", "replaced"):
            return self._in_two(n, key, attempt, at, sec, how)
        if how == "unrecorded":
            body = self._ran(n, key, attempt, at, at + sec)
            self.story.fault(body.last + 0.001, body.last + 0.001, target=body.node)
            return self._done(n, key, attempt + 1, body.last + TAKEN_OVER_SEC, sec, "peace")
        body = self._ran(n, key, attempt, at, at + TAKEN_OVER_SEC + 0.3)
        self.story.fault(at + 0.01, body.last + 1.0, "pause-parent", body.node)
        return at + TAKEN_OVER_SEC

    def _in_two(self, n: int, key: str, attempt: int, at: float, sec: float, how: str) -> float:
        first = self._ran(n, key, attempt, at, at + sec)
        self.story.rows[n] = row_of(first, "retried" if how == "retried" else "done")
        first.over = how
        self.story.publish(n, key, kind="retry" if how == "retried" else "replace", retries=int(how == "retried"))
        run = {"retries": 1} if how == "retried" else {"origin": "other"}
        return self._ran(n, key, 1, first.last + 0.05, first.last + 0.05 + sec, **run).last + 0.05

    def _ran(
        self, n: int, key: str, attempt: int, begin: float, last: float, ended: bool = True, **run: object
    ) -> Body:
        self._fence += 1
        node = f"node{self._fence % 3}"
        more = {"node": node, "fence": self._fence, "attempt": attempt, "ended": ended, **run}
        return self.story.ran(n, begin, last, key=key, **more)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Legal histories. Long after the faults two tasks of a key are done in peace, then a body is terminated."""
    setbacks = st.lists(st.sampled_from(SETBACKS), max_size=2)
    task = st.tuples(setbacks, st.sampled_from(ENDINGS), st.floats(0.02, 0.4))
    teller = Teller()
    for number in range(draw(st.integers(0, 2))):
        teller.key(f"key{number}", draw(st.lists(task, min_size=1, max_size=4)))
    calm: list[tuple[list[str], str, float]] = [([], "peace", draw(st.floats(0.02, 0.4))) for _ in range(2)]
    teller.key("calm", [*calm, (["terminated"], "peace", 0.1)], at=300.0)
    return teller.story


def calm(story: Story) -> tuple[Body, Body]:
    """Two neighbours of one key, the first of them done in peace."""
    *_, first, second, _, _ = story.bodies
    return first, second


@given(stories())
def test_a_legal_history_passes(story: Story) -> None:
    assert story.verdict().violations == ()


@given(stories(), st.data())
def test_a_dropped_execution_is_found(story: Story, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from(sorted(story.published)))
    story.bodies = [body for body in story.bodies if body.n != n or body.fence != story.rows[n]["fence"]]
    assert "S5" in story.broken()


@given(stories(), st.data())
def test_a_task_without_a_trace_is_found(story: Story, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from(sorted(story.published)))
    story.without(n)
    assert story.broken() == {"S6"}


@given(stories(), st.data(), st.integers(0, 1))
def test_a_done_run_that_runs_again_is_found(story: Story, data: st.DataObject, attempts: int) -> None:
    n = data.draw(st.sampled_from(sorted(story.published)))
    (done,) = (body for body in story.bodies if body.fence == story.rows[n]["fence"])
    later, fence = 100 + done.last, done.fence + 1000 * attempts
    story.bodies.append(replace(done, begin=later, last=later + 0.1, fence=fence, attempt=done.attempt + attempts))
    assert "S6" in story.broken()


@given(stories(), st.data())
def test_swapped_fences_are_found(story: Story, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted({body.key for body in story.bodies})))
    bodies = [body for body in story.bodies if body.key == key]
    if len(bodies) < 2:
        bodies = list(calm(story))
    at = data.draw(st.integers(0, len(bodies) - 2))
    first, second = bodies[at : at + 2]
    first.fence, second.fence = second.fence, first.fence
    for body in (first, second):
        if story.rows[body.n]["attempt"] == body.attempt:
            story.rows[body.n]["fence"] = body.fence
    assert "S7" in story.broken()


@given(stories(), st.floats(0.1, 0.9))
def test_a_start_moved_into_the_run_before_is_found(story: Story, share: float) -> None:
    first, second = calm(story)
    begin = first.begin + share * (first.last - first.begin)
    second.begin, second.last = begin, begin + second.last - second.begin
    story.rows[second.n] = row_of(second, "done")
    assert "S1" in story.broken()


@given(stories(), st.floats(0.1001, 2.0))
def test_a_late_line_after_terminate_is_found(story: Story, late: float) -> None:
    *_, terminated, successor = story.bodies
    assert terminated.policy == "terminate"
    terminated.last = successor.begin + late
    assert story.broken() == {"S1"}
