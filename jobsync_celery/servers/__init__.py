"""Private PostgreSQL, Redis and RabbitMQ servers for the demo and the tests.

Each runs on a free loopback port with its data in the temporary folder, and ends with the process
that started it, whatever ends that process::

    with PrivatePostgres() as postgres, PrivateRedis() as redis:
        ... postgres.url, redis.url ...
"""

from jobsync_celery.servers.errors import ServerError, ServerMissing
from jobsync_celery.servers.postgres import PrivatePostgres
from jobsync_celery.servers.rabbitmq import PrivateRabbitMQ
from jobsync_celery.servers.redis import PrivateRedis

__all__ = ["PrivatePostgres", "PrivateRabbitMQ", "PrivateRedis", "ServerError", "ServerMissing"]
