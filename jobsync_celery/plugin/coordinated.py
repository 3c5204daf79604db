"""``@coordinated``: which tasks belong to whom by key, and how the key is read from their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from celery import Celery, Task
from celery.local import Proxy

from jobsync_celery.core.locks import patterns_of, pool_of
from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import JobsyncError, KeyMissing, SettingsError

KeySpec = str | int | Callable[..., Any]
OnLeaseLost = Literal["finish", "terminate"]
Decorated = TypeVar("Decorated")

_MARK = "__jobsync__"


class Declared(NamedTuple):
    """What the decorator was given."""

    key: KeySpec
    on_lease_lost: OnLeaseLost = "finish"
    pool: str = ""


#: Tasks that were decorated after Celery had wrapped them in a proxy that is not evaluated yet.
_proxies: list[tuple[Any, Declared]] = []


def coordinated(
    key: KeySpec, *, on_lease_lost: OnLeaseLost = "finish", nodes: str | Iterable[str] | None = None
) -> Callable[[Decorated], Decorated]:
    """Coordinate a task: of the runs with the same key, one runs at a time, all of them on the key's owner.

    Works above or below ``@app.task`` and ``@shared_task``, with ``bind=True``, and on class-based tasks.

    Arguments:
        key: the name of an argument, its position (``self`` not counted), or a callable that gets the task's
            arguments and returns the key. Keys are strings, integers or UUIDs of at most 255 characters.
        on_lease_lost: what becomes of a running body when its worker loses its lease, since another worker may then
            run the key: ``"finish"`` lets it run on, fenced off (see :meth:`Claim.guard`); ``"terminate"`` has its
            pool child kill itself at the deadline, and the task is run again. Only prefork can terminate.
        nodes: which nodes may run this task: a pattern of SQL's LIKE for node names, or several in order of
            preference, of which the first counts that any live node matches. Without a match its tasks wait. A task
            lock on the key goes before it. None: any node.

    Raises:
        SettingsError: ``key`` or ``on_lease_lost`` is none of these.
        LockInvalid: ``nodes`` is no pattern, nor several.
    """
    if on_lease_lost not in get_args(OnLeaseLost):
        raise SettingsError(f"coordinated(on_lease_lost={on_lease_lost!r}): give 'finish' or 'terminate'")
    if isinstance(key, bool) or key == "" or not (callable(key) or isinstance(key, (str, int))):
        raise SettingsError(f"coordinated(key={key!r}): give an argument's name, its position, or a callable")

    declared = Declared(key, on_lease_lost, "" if nodes is None else pool_of(patterns_of(nodes)))

    def mark(task: Decorated) -> Decorated:
        # A proxy is not evaluated here: that would finalize the app while its modules are being imported.
        if isinstance(task, Proxy):
            _proxies.append((task, declared))
        else:
            setattr(task, _MARK, declared)
        return task

    return mark


@dataclass(frozen=True)
class Coordination:
    """How one task is coordinated."""

    task_name: str
    spec: str | int
    read_key: Callable[[Sequence[Any], Mapping[str, Any]], Any]
    on_lease_lost: OnLeaseLost = "finish"
    #: The lock pool of the nodes that may run it; "" for any.
    pool: str = ""

    def key(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> str:
        """The key of a call, as text; raises :class:`KeyMissing`, naming the task, if there is none."""
        try:
            value = self.read_key(args or (), kwargs or {})
        except JobsyncError:
            raise
        except Exception as error:
            raise KeyMissing(self.task_name, self.spec, f"computing it failed: {error!r}") from error
        try:
            return key_text(value)
        except (JobsyncError, ValueError, TypeError) as error:
            raise KeyMissing(self.task_name, self.spec, str(error)) from error


class Registry:
    """The coordinated tasks of an app: declared in code, or by name in the settings.

    Arguments:
        named: task name -> key, for producers that do not have the task's code.
    """

    def __init__(self, app: Celery, named: Mapping[str, str | int]) -> None:
        self._app = app
        self._named = dict(named)
        self._known: dict[str, Coordination | None] = {}

    def get(self, name: str) -> Coordination | None:
        """How the task is coordinated; None if it is an ordinary one."""
        try:
            return self._known[name]
        except KeyError:
            return self._look_up(name)

    def all(self) -> dict[str, Coordination]:
        """Every coordinated task that the app knows, by name."""
        known = {name: self.get(name) for name in (*self._app.tasks, *self._named)}
        return {name: coordination for name, coordination in known.items() if coordination is not None}

    def _look_up(self, name: str) -> Coordination | None:
        task = self._app.tasks.get(name)
        declared = None if task is None else _declared(task)
        if declared is None and name in self._named:
            declared = Declared(self._named[name])
        coordination = None
        if declared is not None:
            key = declared.key
            coordination = Coordination(name, _label(key), _reader(name, key, task), *declared[1:])
        # An unknown task is not remembered as ordinary: the module that has it may be imported later.
        if coordination is not None or task is not None:
            self._known[name] = coordination
        return coordination


def _declared(task: Task) -> Declared | None:
    for proxy, declared in _proxies:
        resolved = proxy._get_current_object()
        if resolved is task or (resolved.name == task.name and _function(resolved) is _function(task)):
            return declared
    marks: list[Declared | None] = [getattr(holder, _MARK, None) for holder in (task, task.run, _function(task))]
    return next((mark for mark in marks if mark is not None), None)


def _function(task: Task) -> Any:
    run = getattr(task, "_orig_run", task.run)  # autoretry_for replaces run
    return getattr(run, "__func__", run)


def _label(spec: KeySpec) -> str | int:
    if not callable(spec):
        return spec
    # Never its repr, which may have an address in it: nodes compare what they say of their keys.
    return str(getattr(getattr(spec, "func", spec), "__name__", type(spec).__name__))


def _reader(name: str, spec: KeySpec, task: Task | None) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    if callable(spec):
        function = spec
        return lambda args, kwargs: function(*args, **kwargs)
    if isinstance(spec, int):
        return _by_position(name, spec)
    return _by_name(name, spec, None if task is None else inspect.signature(task.run))


def _by_position(name: str, index: int) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return args[index]
        except IndexError:
            reason = f"it is positional argument {index}, but only {len(args)} were given"
            raise KeyMissing(name, index, reason) from None

    return read


def _by_name(
    name: str, argument: str, signature: inspect.Signature | None
) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    index, default = _place(name, argument, signature)

    def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if argument in kwargs:
            return kwargs[argument]
        if index is not None and index < len(args):
            return args[index]
        if default is not inspect.Parameter.empty:
            return default
        raise KeyMissing(name, argument, f"it is the argument {argument!r}, which was not given")

    return read


def _place(name: str, argument: str, signature: inspect.Signature | None) -> tuple[int | None, Any]:
    """Where a named argument stands, and its default."""
    if signature is None:
        return None, inspect.Parameter.empty
    parameter = signature.parameters.get(argument)
    if parameter is None:
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values()):
            return None, inspect.Parameter.empty
        raise SettingsError(
            f"task {name}: its key is the argument {argument!r}, but it takes ({', '.join(signature.parameters)})"
        )
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return None, parameter.default
    return list(signature.parameters).index(argument), parameter.default
