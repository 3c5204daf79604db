"""A fence in Redis: a script compares and writes in one step, so that nobody slips in between.

    export REDIS_URL=redis://localhost:6379/0
    python fenced_redis.py        # shows it

The value and its fence lie in one hash. They live and expire together: a fence that is gone refuses nobody.
"""

import os
from typing import Any

from celery import Celery
from redis import Redis

from jobsync_celery import JobSync, coordinated, current_claim
from jobsync_celery.errors import Fenced

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
app = Celery("fenced_redis", broker=REDIS_URL)
JobSync(app, {"url": os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")})

# Fences are whole numbers below 2^53 for the first 8,192 failovers: Lua compares them exactly.
WRITE = """
local seen = tonumber(redis.call('HGET', KEYS[1], 'fence') or '0')
if seen > tonumber(ARGV[2]) then
    return 0
end
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'fence', ARGV[2])
return 1
"""


@app.task
@coordinated(key="account")
def settle(account: int, amount: int) -> None:
    with Redis.from_url(REDIS_URL) as redis:
        write(redis, f"balance:{account}", amount, current_claim().fence)


def write(redis: Any, name: str, value: int, fence: int) -> None:
    """Set the value unless a newer run has."""
    if not redis.register_script(WRITE)(keys=[name], args=[value, fence]):
        raise Fenced(f"{name}: a newer run than {fence} has written")


def main() -> None:
    with Redis.from_url(REDIS_URL, decode_responses=True) as redis:
        name = "fenced_redis:balance:1"
        redis.delete(name)
        write(redis, name, 100, fence=7)
        write(redis, name, 110, fence=7)  # one run may write twice
        write(redis, name, 200, fence=8)  # the run that took over
        try:
            write(redis, name, 120, fence=7)  # the hung worker wakes up
        except Fenced as error:
            print("refused:", error)
        print("kept:", redis.hgetall(name))
        redis.delete(name)


if __name__ == "__main__":
    main()
