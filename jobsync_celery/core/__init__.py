"""The pure core: values in, values out; no clock, thread, log, Celery or SQL."""
