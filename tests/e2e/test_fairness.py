"""A busy key waits for itself alone."""

from e2e.history import overlaps
from e2e.site import Site

SHARED = {
    "workers": ("w1",),
    "options": ("-c", "4"),
    "jobsync": {"hold_limit": 20},
    "conf": {"worker_prefetch_multiplier": 2},
}


def test_one_task_of_a_key_at_a_time_whatever_the_concurrency(shared: Site) -> None:
    results = shared.many(80, 4, "step", 0.03)
    assert shared.results(results) == list(range(80))
    ids = [result.id for result in results]
    shared.assert_once(ids)
    runs = shared.history.runs(*ids)
    by_key = {key: [run.n for run in runs if run.key == key] for key in {run.key for run in runs}}
    assert all(numbers == sorted(numbers) for numbers in by_key.values()), "in the order of publishing"
    assert any(overlaps([run.__class__(**{**vars(run), "key": "any"}) for run in runs])), "keys run side by side"


def test_a_hot_key_beyond_the_hold_limit_starves_neither_other_keys_nor_ordinary_tasks(shared: Site) -> None:
    hot = [shared.call("step", "hot", n, 0.15) for n in range(60)]
    shared.until_begun(hot[0].id)
    own = shared.app.jobsync.queue_for("hot")
    cold = [key for n in range(200) if shared.app.jobsync.queue_for(key := f"cold{n}") != own][:20]
    others = [shared.call("step", key, n) for n, key in enumerate(cold)] + [shared.call("plain", n) for n in range(20)]
    shared.results(others)
    served = max(run.ended or run.last for run in shared.history.runs(*(result.id for result in others)))
    done = [run for run in shared.history.runs(*(result.id for result in hot)) if run.ended and run.ended < served]
    assert len(done) < 30, "the others did not wait for the hot key"
    shared.results(hot)
    shared.assert_once(result.id for result in (*hot, *others[:20]))
    shared.assert_brokers_are_empty()
