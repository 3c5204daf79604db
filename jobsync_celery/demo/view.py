"""What is shown: a live picture at a terminal, plain lines elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobsync_celery.demo.tally import NodeLine, Picture

_SHOW_EVERY_SEC = 0.25
_MOST_EVENTS = 14
_OTHER_LINES = 8  # head, bar, the table's head and rules, and the empty lines between
_STYLES = {"live": "green", "draining": "yellow", "dead": "red", "left": "dim", "starting": "cyan"}


class View(ABC):
    """Shows the cluster while the story goes on; a context manager."""

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - not every view has something to close
        """Leave the screen as it is."""

    @abstractmethod
    def happened(self, seconds: float, what: str, alarm: bool) -> None:
        """Something happened, so many seconds after the beginning."""

    @abstractmethod
    def show(self, picture: Picture) -> None:
        """The cluster looks like this now; called often."""


class PlainView(View):
    """A line for each event, and one every second."""

    def __init__(self) -> None:
        self._next = 0.0

    def happened(self, seconds: float, what: str, alarm: bool) -> None:
        click.echo(f"{seconds:5.1f} s  {'!!' if alarm else '--'} {what}")

    def show(self, picture: Picture) -> None:
        if picture.seconds < self._next or not picture.published:
            return
        self._next = picture.seconds + 1
        nodes = "; ".join(f"{line.name} {_plain(line)}" for line in picture.nodes if line.state != "left")
        click.echo(
            f"{picture.seconds:5.1f} s     published {picture.published}, done {picture.done},"
            f" {picture.rate:.0f}/s; leader {picture.status.leader.node}; {nodes}"
        )


class LiveView(View):
    """A picture that is drawn anew four times a second, with the last events below."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._events: deque[Text] = deque(maxlen=_MOST_EVENTS)
        self._picture: Picture | None = None
        self._live = Live(console=console, auto_refresh=False)
        self._next = 0.0

    def __enter__(self) -> View:
        self._live.start()
        return self

    def close(self) -> None:
        self._draw()
        self._live.stop()

    def happened(self, seconds: float, what: str, alarm: bool) -> None:
        self._events.append(Text(f"{seconds:5.1f} s  {what}", style="bold red" if alarm else ""))
        self._draw()

    def show(self, picture: Picture) -> None:
        self._picture = picture
        if picture.seconds >= self._next:
            self._next = picture.seconds + _SHOW_EVERY_SEC
            self._draw()

    def _draw(self) -> None:
        picture = self._picture
        lines = self._console.height - _OTHER_LINES - (len(picture.nodes) if picture else 0)
        events = list(self._events)[-max(2, lines) :]
        head: list[RenderableType] = [Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")]
        body: list[RenderableType] = [_progress(picture), "", _nodes(picture)] if picture else []
        self._live.update(Group(*head, *body, "", *events), refresh=True)


def _progress(picture: Picture) -> Table:
    leader = picture.status.leader
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(
        f"{picture.seconds:4.0f} s  {picture.done:>4} done of {picture.published:>4}",
        ProgressBar(total=picture.total, completed=picture.done),
        f"{picture.rate:3.0f}/s  leader {leader.node or 'none'}, term {leader.term}",
    )
    return grid


def _nodes(picture: Picture) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("node", "state"):
        table.add_column(heading, no_wrap=True, min_width=11)
    for heading in ("pid", "partitions", "tokens", "done", "per second"):
        table.add_column(heading, no_wrap=True, justify="right", min_width=6)
    for line in picture.nodes:
        style = _STYLES.get(line.state, "yellow")
        numbers = (line.pid, line.partitions, line.tokens, line.done, f"{line.rate:.0f}")
        star = " *" if line.name == picture.status.leader.node and line.state == "live" else ""
        table.add_row(Text(line.name + star), Text(line.state, style=style), *map(str, numbers))
    return table


def _plain(line: NodeLine) -> str:
    return f"{line.partitions}p {line.rate:.0f}/s" if line.state == "live" else line.state
