"""The command line: ``celery -A proj jobsync …``, and the same questions by database URL."""
