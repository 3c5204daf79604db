"""What a Job is made with, checked before anything is opened."""

from __future__ import annotations

import datetime

from jobsync_celery.errors import SettingsError
from jobsync_celery.settings import CoordinationConfig

#: A month: far within what the operating system can wait for.
_MOST_SEC = 30 * 86400.0


def config_of(source: object) -> CoordinationConfig | None:
    """The settings; None if coordination is off."""
    config = CoordinationConfig.of(source)
    if config is not None and config.observes:
        raise SettingsError('mode="observe" is for Celery workers: a Job coordinates, or nothing (enabled=False)')
    return config


def node_name_of(value: object) -> str:
    """A node's name."""
    if not isinstance(value, str):
        raise SettingsError(f"node_name must be a string, not {type(value).__name__}")
    return str(CoordinationConfig(enabled=False, node_name=value).node_name)


def day_of(value: object) -> datetime.date:
    """A date, or the date of a datetime; today's by the local clock for None."""
    if value is None:
        return datetime.date.today()  # noqa: DTZ011 - the user's day
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    raise SettingsError(f"date must be a date, a datetime, or None for today, not {type(value).__name__}")


def seconds_of(name: str, value: object) -> float:
    """A number of seconds, of the argument ``name``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_SEC:
        raise SettingsError(f"{name} must be a number of seconds, 0 to {_MOST_SEC:.0f}, not {value!r}")
    return float(value)
