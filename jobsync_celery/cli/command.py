"""What all commands share: which cluster, how the answer is printed, how often, and what an error looks like."""

from __future__ import annotations

import functools
import io
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from jobsync_celery.cli.answer import NO_ANSWER, Answer, painted, show
from jobsync_celery.cli.numbers import FiniteRange
from jobsync_celery.cli.site import URL_VARIABLE, site_of
from jobsync_celery.errors import JobsyncError

EXIT_CODES = (
    "Exit status: 0 all is well, 1 degraded or not settled, 2 no leader, no database, or a question that has no answer."
)
_WATCH_SEC = 2.0
_SHORTEST_WATCH_SEC = 0.2
_INTERRUPTED = 130

Asked = Callable[..., Answer]

_CLUSTER = (
    click.option("--url", metavar="URL", help=f"The database, if no app is named. Also read from {URL_VARIABLE}."),
    click.option("--appname", metavar="PREFIX", help="With --url: prefix of the cluster's tables.  [default: sync_]"),
    click.option("--schema", help="With --url: schema of the tables, if not on the search path."),
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WATCH = click.option(
    "--watch",
    metavar="[SECONDS]",
    type=FiniteRange(min=_SHORTEST_WATCH_SEC),
    is_flag=False,
    flag_value=_WATCH_SEC,
    help=f"Ask again every so many seconds ({_WATCH_SEC:.0f} if not given), until Ctrl-C.",
)


def question(
    name: str, find: Callable[..., Any] = site_of, *, observing: bool = False, **settings: Any
) -> Callable[[Asked], click.Command]:
    """Make a command of a function that reads: it gets the :class:`Site`, and what the decorators below it add.

    Arguments:
        find: makes what the function gets instead, of the same as :func:`site_of`.
        observing: whether it can be asked of an app whose tasks are only observed.
    """

    def decorate(function: Asked) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, watch: float | None, **given: Any) -> None:
            _run(function, given, as_json, watch, functools.partial(find, observing=observing))

        return _command(name, _with(run, (*_CLUSTER, _JSON, _WATCH)), settings)

    return decorate


def order(name: str, *, observing: bool = False, **settings: Any) -> Callable[[Asked], click.Command]:
    """Make a command of a function that changes something; it cannot be watched. See :func:`question`."""

    def decorate(function: Asked) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, **given: Any) -> None:
            _run(function, given, as_json, None, functools.partial(site_of, observing=observing))

        return _command(name, _with(run, (*_CLUSTER, _JSON)), settings)

    return decorate


def _command(name: str, run: Callable[..., None], settings: dict[str, Any]) -> click.Command:
    made: click.Command = click.command(name, **{"epilog": EXIT_CODES, **settings})(run)
    return made


def _with(run: Callable[..., None], options: tuple[Callable[[Any], Any], ...]) -> Callable[..., None]:
    for option in reversed(options):
        run = option(run)
    return run


def _run(function: Asked, given: dict[str, Any], as_json: bool, watch: float | None, find: Callable[..., Any]) -> None:
    """Ask, print, and exit as the answer says; an error is one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where there is no UTF-8, some signs are spelt out
            stream.reconfigure(errors="backslashreplace")
    named = {name: given.pop(name) for name in ("url", "appname", "schema")}
    try:
        app = getattr(click.get_current_context().obj, "app", None)
        ask = functools.partial(function, find(app, **named), **given)
        code = _watch(ask, as_json, watch) if watch else _once(ask, as_json)
    except JobsyncError as error:
        complain(error)
        if as_json:
            click.echo(json.dumps({"error": _told(error)}))
        code = NO_ANSWER
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def complain(error: JobsyncError) -> None:
    """Say in one line what is wrong."""
    click.echo(_line(error), err=True)


def _line(error: JobsyncError) -> str:
    return f"Error: {_told(error)}"


def _told(error: JobsyncError) -> str:
    return " ".join(str(error).split())


def _once(ask: Callable[[], Answer], as_json: bool) -> int:
    answer = ask()
    show(answer, as_json)
    return answer.code


def _watch(ask: Callable[[], Answer], as_json: bool, seconds: float) -> int:
    """Ask until interrupted; the first question has to be answered, later ones may fail and be asked again."""
    console = Console()
    answer = ask()
    with _Patience() as patience:
        if as_json or not console.is_terminal:
            show(answer, as_json, compact=True)
            while patience.waits(seconds):
                answer = _again(ask)
                show(answer, as_json, compact=True)
            return answer.code
        with Live(painted(answer, console.width), console=console, screen=True, auto_refresh=False) as live:
            while patience.waits(seconds):
                answer = _again(ask)
                live.update(painted(answer, console.width), refresh=True)
        console.print(painted(answer, console.width))
    return answer.code


def _again(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except JobsyncError as error:
        return Answer({"error": str(error)}, (_line(error),), code=NO_ANSWER)


class _Patience:
    """Waits between two questions; Ctrl-C ends the wait, and does not break off a question. A second one does."""

    def __enter__(self) -> _Patience:
        self._asked_to_end = self._waiting = False
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def waits(self, seconds: float) -> bool:
        """Wait so long; false as soon as Ctrl-C was pressed."""
        try:
            self._waiting = True
            if not self._asked_to_end:
                time.sleep(seconds)
        except KeyboardInterrupt:
            return False
        finally:
            self._waiting = False
        return not self._asked_to_end

    def _interrupted(self, *_: object) -> None:
        again, self._asked_to_end = self._asked_to_end, True
        if self._waiting or again:
            raise KeyboardInterrupt
