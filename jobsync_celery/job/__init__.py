"""``Job``: a cluster's node in a program that is no Celery worker, and its tasks."""
