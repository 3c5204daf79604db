"""``python -m jobsync_celery demo``: puts the stage together, plays, judges, and leaves nothing behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click
from rich.console import Console

from jobsync_celery.demo import verdict
from jobsync_celery.demo.checker import Findings, check
from jobsync_celery.demo.cluster import CONCURRENCY, Workers
from jobsync_celery.demo.leftovers import check_broker, remove_queues, remove_tables
from jobsync_celery.demo.observer import Observer
from jobsync_celery.demo.publisher import Publisher
from jobsync_celery.demo.records import History, Record
from jobsync_celery.demo.scenario import Timings, play
from jobsync_celery.demo.scene import Crew, Scene, SceneError
from jobsync_celery.demo.script import Job, Script, write_script
from jobsync_celery.demo.stage import Choices, Stage, prepared
from jobsync_celery.demo.tasks import demo_app
from jobsync_celery.demo.view import LiveView, PlainView, View
from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.servers import ServerError
from jobsync_celery.servers.process import Guard
from jobsync_celery.store.schema import ensure_schema


class Interrupted(BaseException):
    """A signal asked the demo to end."""


@click.command()
@click.option("--workers", default=3, show_default=True, type=click.IntRange(2, 12), help="Workers at the beginning.")
@click.option("--tasks", default=3000, show_default=True, type=click.IntRange(1), help="Tasks to publish.")
@click.option("--keys", default=300, show_default=True, type=click.IntRange(1), help="Keys they are about.")
@click.option("--broker", metavar="URL", help="Redis or RabbitMQ to use instead of a private Redis.")
@click.option("--database", metavar="URL", help="PostgreSQL to use instead of a private one.")
@click.option("--seed", default=1, show_default=True, help="Fixes keys, durations, and who is killed when.")
@click.option("--keep", is_flag=True, help="Keep the records, the logs, and the tables in --database.")
def demo(workers: int, tasks: int, keys: int, seed: int, **choices: Any) -> None:
    """Watch a cluster of Celery workers share work by key while one is killed and one is stopped.

    Exit status: 0 if nothing was lost, doubled or overlapped, else 1.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace", line_buffering=True)
    script = write_script(seed, workers, tasks, keys)
    with _signals() as stop:
        try:
            status = _perform(script, Choices(**choices), stop.check)
        except Interrupted:
            click.echo("stopped by a signal; nothing is left running", err=True)
            status = 128 + stop.number
        except (JobsyncError, ServerError, SceneError) as error:
            click.echo(f"Error: {error}", err=True)
            status = 1
    sys.exit(status)


class _Stop:
    """Remembers a signal until somebody asks: raised just anywhere, it could leave things half done."""

    number = 0

    def __call__(self, number: int, frame: object) -> None:
        self.number = self.number or number

    def check(self) -> None:
        """Raise if a signal came."""
        if self.number:
            raise Interrupted


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _perform(script: Script, choices: Choices, check_signals: Callable[[], None]) -> int:
    click.echo("starting " + _servers(choices) + " ...", err=True)
    with prepared(choices, check_signals) as (stage, guard):
        try:
            return _run(script, choices, stage, guard, check_signals)
        finally:
            if choices.keep:
                click.echo(f"records and logs: {stage.folder}")


def _run(script: Script, choices: Choices, stage: Stage, guard: Guard, check_signals: Callable[[], None]) -> int:
    with ExitStack() as stack:
        app = _application(stack, choices, stage, guard)
        crew = _crew(stack, app, script, stage, guard)
        try:
            with _view(script, stage) as view:
                timings = play(Scene(script, crew, view, check_signals))
        except SceneError:
            _show_logs(script, crew.workers)
            raise
        findings = check(History(stage.history).follow(), app.ledger.credits(), stage.heartbeat_timeout_sec)
        _pronounce(findings, timings, script, stage)
        if not findings.clean:
            _show_logs(script, crew.workers)
        return 0 if findings.clean else 1


def _application(stack: ExitStack, choices: Choices, stage: Stage, guard: Guard) -> Any:
    """The app with its tables; on servers that are not ours the stack takes everything away again."""
    app = demo_app(stage)
    ensure_schema(app.jobsync.cluster.store.database, app.jobsync.cluster.shape)
    if choices.database and not choices.keep:
        stack.callback(_take_away, "tables", stage.appname, remove_tables, app)
    app.ledger.create()
    stack.callback(app.ledger.close)
    if choices.broker:
        check_broker(app)
        stack.callback(_take_away, "queues", stage.prefix, remove_queues, app, stage)
    stack.callback(guard.close)  # before the above: no worker may be left that makes them anew
    return app


def _take_away(what: str, prefix: str, remove: Callable[..., None], *arguments: Any) -> None:
    """What cannot be taken away is told, and must not hide how the demo ended."""
    try:
        remove(*arguments)
    except Exception as error:  # noqa: BLE001 - of broker, driver or store
        click.echo(f"the demo's {what} {prefix}* could not be removed: {error}", err=True)


def _crew(stack: ExitStack, app: Any, script: Script, stage: Stage, guard: Guard) -> Crew:
    history = History(stage.history)
    stack.callback(history.close)
    publisher = Publisher(script.jobs, _publishing(app, history))
    stack.callback(publisher.end)
    observer = Observer(app.jobsync.cluster.store.database)
    stack.callback(observer.close)
    return Crew(Workers(stage, guard), publisher, observer, history, app.ledger.count)


def _publishing(app: Any, history: History) -> Any:
    credit = app.tasks["demo.credit"]

    def publish(job: Job) -> None:
        credit.apply_async((job.account, job.n, job.seconds))
        history.append(Record("published", boot_clock(), job.n, job.account))

    return publish


def _view(script: Script, stage: Stage) -> View:
    console = Console()
    work = f"{len(script.jobs)} tasks, {len({job.account for job in script.jobs})} keys, seed {script.seed}"
    lease = f"heartbeat {stage.heartbeat_interval_sec} s, lease {stage.heartbeat_timeout_sec} s"
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, f"jobsync demo: {work}; {lease}")
    pool = f"{CONCURRENCY} processes each"
    click.echo(f"jobsync demo: {work}; {len(script.first)} workers and one more, {pool}; {lease}")
    return PlainView()


def _servers(choices: Choices) -> str:
    database = "the PostgreSQL given" if choices.database else "a private PostgreSQL"
    return f"on {database} and {'the broker given' if choices.broker else 'a private Redis'}"


def _pronounce(findings: Findings, timings: Timings, script: Script, stage: Stage) -> None:
    click.echo()
    for line in verdict.lines(findings, timings, script, stage):
        click.echo(line)
    for line in verdict.conclusion(findings):
        click.secho(line, fg="green" if findings.clean else "red", bold=True)


def _show_logs(script: Script, workers: Workers) -> None:
    for name in script.names:
        tail = workers.log_tail(name)
        if tail:
            click.echo(f"--- the end of {name}'s log ---\n{tail}", err=True)
