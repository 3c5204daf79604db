"""End to end: real worker processes on a private Redis, RabbitMQ and PostgreSQL, driven by pytest-celery."""
