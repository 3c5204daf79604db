"""Fixtures of the Redis tests."""

from redis_scene import client, redis_server, redis_url, worker

__all__ = ["client", "redis_server", "redis_url", "worker"]
