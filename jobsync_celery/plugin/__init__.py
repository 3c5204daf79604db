"""The Celery side: transports, gate, bootsteps and commands."""
