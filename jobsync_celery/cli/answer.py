"""What a command has to say, in the three ways of saying it: for people at a terminal, for pipes, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: Exit codes: all is well; degraded, or not settled; no leader, no database, or nothing that could be asked so.
WELL, TROUBLED, NO_ANSWER = 0, 1, 2

NOTHING = "-"
_GAP = "  "
_SHORTEST = 16
_STYLES = {
    **dict.fromkeys(("stable", "live", "done", "owned", "yes"), "green"),
    **dict.fromkeys(("draining", "left", "waiting", "rebalancing", "retried", "moving", "caretaker", "risk"), "yellow"),
    "running": "cyan",
    **dict.fromkeys(("degraded", "no leader", "silent", "dead", "failed", "lost", "free", "no", "problem"), "red"),
}


@dataclass(frozen=True)
class Grid:
    """Rows under headings.

    Arguments:
        numbers: columns that are set to the right.
        whole: columns that are never cut off, where a terminal is narrow. Numbers are not, either.
        spare: columns that are left out there, the first ones first.
    """

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    spare: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Arguments:
        data: as JSON has it.
        lines: sentences, before the grids.
        notes: sentences after them.
        code: the exit code.
        state: the words with which the first line begins, if they are to be painted.
    """

    data: Mapping[str, Any]
    lines: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    code: int = WELL
    state: str = ""


def show(answer: Answer, as_json: bool, *, compact: bool = False) -> None:
    """Print an answer as the reader can take it."""
    if as_json:
        click.echo(as_text(answer, compact=compact))
    elif (console := Console()).is_terminal:
        console.print(painted(answer, console.width))
    else:
        for line in plain(answer):
            click.echo(line)


def as_text(answer: Answer, *, compact: bool = False) -> str:
    """The answer as JSON; ``compact`` is one line."""
    return json.dumps(answer.data, indent=None if compact else 2, default=_time_text)


def plain(answer: Answer) -> Iterator[str]:
    """The answer as lines, with columns that can be cut."""
    yield from map(_shown, answer.lines)
    for grid in answer.grids:
        if grid.title:
            yield grid.title
        yield from _columns(grid)
    yield from map(_shown, answer.notes)


def painted(answer: Answer, width: int) -> RenderableType:
    """The answer for a terminal of so many columns."""
    parts: list[RenderableType] = [_sentence(_shown(line), answer.state) for line in answer.lines]
    for grid in answer.grids:
        if grid.title:
            parts.append(Text(grid.title, style="bold"))
        parts.append(_table(grid, width))
    parts.extend(Text(_shown(note), style="dim") for note in answer.notes)
    return Group(*parts)


def moment(at: datetime | None) -> str:
    """A time for people: the reader's own day and clock."""
    return NOTHING if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """A span for people, in its two largest units."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def text(value: object) -> str:
    """A cell."""
    return NOTHING if value is None or value == "" else str(value)


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant, as the end of a message."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1) or [each for each in names if each.startswith(name)][:1]
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"; there are: {shown}" if names else ""


def _time_text(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()


def _shown(text: str) -> str:
    """What users wrote, as in keys, must not move the cursor or end the line."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _columns(grid: Grid) -> Iterator[str]:
    rows = [grid.headings, *(tuple(map(_shown, row)) for row in grid.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(grid.headings))]
    for row in rows:
        cells = (
            cell.rjust(width) if heading in grid.numbers else cell.ljust(width)
            for cell, width, heading in zip(row, widths, grid.headings, strict=True)
        )
        yield _GAP.join(cells).rstrip()


def _table(grid: Grid, width: int) -> Table:
    rows = [tuple(_nearer(_shown(cell)) for cell in row) for row in grid.rows]
    widest = {
        heading: max([len(heading), *(cell_len(row[at]) for row in rows)]) for at, heading in enumerate(grid.headings)
    }
    table = Table(box=None, padding=(0, len(_GAP), 0, 0), header_style="dim", pad_edge=False)
    fitting = _fitting(grid, widest, width)
    for heading, room in fitting.items():
        justify: Any = "right" if heading in grid.numbers else "left"
        table.add_column(heading, justify=justify, overflow="ellipsis", no_wrap=True, width=room)
    shown = [at for at, heading in enumerate(grid.headings) if heading in fitting]
    for row in rows:
        table.add_row(*(Text(row[at], style=_STYLES.get(row[at], "")) for at in shown))
    return table


def _fitting(grid: Grid, widest: Mapping[str, int], width: int) -> dict[str, int]:
    """The columns that there is room for, and their widths; what is not firm may be cut down to some characters."""
    least = {
        heading: full if heading in grid.numbers | grid.whole else min(full, _SHORTEST)
        for heading, full in widest.items()
    }
    for heading in grid.spare:
        if sum(least.values()) + len(_GAP) * (len(least) - 1) <= width:
            break
        del least[heading]
    widths = {heading: widest[heading] for heading in least}
    too_much = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width
    for _ in range(too_much):
        heading = max(widths, key=lambda each: widths[each] - least[each])
        if widths[heading] == least[heading]:
            break
        widths[heading] -= 1
    return widths


def _nearer(cell: str) -> str:
    """A time of today without its day."""
    today = datetime.now().astimezone().strftime("%Y-%m-%d ")
    return cell.removeprefix(today)


def _sentence(line: str, state: str) -> RenderableType:
    """A line with its words wrapped, below its own beginning."""
    sentence = Text(line)
    if indent := len(line) - len(line.lstrip()):
        return Padding(Text(line.lstrip()), (0, 0, 0, indent))
    word = state if state and line.startswith(state) else line.partition(":")[0]
    if word == state or word in _STYLES:
        sentence.stylize(f"bold {_STYLES.get(word, 'red')}", 0, len(word))
    return sentence
