"""One live websocket for each device, held by the worker that owns the device; what comes in becomes tasks.

    pip install websockets
    export DATABASE_URL=postgresql://user:password@localhost/dbname
    export BROKER_URL=redis://localhost:6379/0
    python websocket_fan_in.py                                # a terminal: stands for the devices
    celery -A websocket_fan_in worker -n one@%h -l INFO       # another; and one more, with -n two@%h

The page docs/how-to/websocket-fan-in.md goes through it.
"""

import logging
import os
import threading
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.signals import worker_ready
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from jobsync_celery import JobSync, coordinated, current_claim
from jobsync_celery.signals import partitions_assigned, partitions_revoked

logger = logging.getLogger(__name__)

DEVICES_URL = os.environ.get("DEVICES_URL", "ws://localhost:8765")
DEVICES = [f"device-{number}" for number in range(12)]

app = Celery("websocket_fan_in", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
config = {"url": database, "appname": "fan_in_", "queue_prefix": "fan-in-example-", "partitions": 16}
jobsync = JobSync(app, config)


@app.task
@coordinated(key="device")
def record(device: str, reading: str) -> None:
    logger.info("%s records %s of %s", current_claim().node, reading, device)


# -- the connections, in the worker's main process -----------------------------------------------------------------


class Link(threading.Thread):
    """Receives what one device says, for as long as this worker owns it."""

    def __init__(self, device: str) -> None:
        super().__init__(name=f"link to {device}", daemon=True)
        self.device = device
        self.over = threading.Event()

    def run(self) -> None:
        while self.wanted():
            try:
                with connect(f"{DEVICES_URL}/{self.device}", open_timeout=2, close_timeout=1) as socket:
                    logger.info("connected to %s", self.device)
                    self.receive(socket)
            except (OSError, WebSocketException) as error:
                logger.warning("no connection to %s: %s", self.device, error)
                self.over.wait(1)
        logger.info("disconnected from %s", self.device)

    def receive(self, socket: ClientConnection) -> None:
        while self.wanted():
            try:
                reading = socket.recv(timeout=0.2)
            except TimeoutError:
                continue
            if self.wanted():
                record.delay(self.device, reading)

    def wanted(self) -> bool:
        return not self.over.is_set() and jobsync.owns(self.device)


links: dict[str, Link] = {}
turn = threading.Lock()


@partitions_assigned.connect
@partitions_revoked.connect
def reconcile(**kwargs: Any) -> None:
    """Close what is not ours any more, and open what is; done when all is closed."""
    with turn:  # signals come in one thread, the loop is another
        gone = [links.pop(device) for device in list(links) if not jobsync.owns(device)]
        for link in gone:
            link.over.set()
        for link in gone:
            link.join()
        for device in DEVICES:
            if device not in links and jobsync.owns(device):
                links[device] = Link(device)
                links[device].start()


@worker_ready.connect
def keep_reconciling(**kwargs: Any) -> None:
    """A key that is locked or unlocked moves alone, without a signal: so look every second."""

    def loop() -> None:
        pause = threading.Event()
        while not pause.wait(1):
            reconcile()

    threading.Thread(target=loop, name="reconcile", daemon=True).start()


# -- what stands for the devices -----------------------------------------------------------------------------------

listeners: dict[str, ServerConnection] = {}


def speak(socket: ServerConnection) -> None:
    """Send a reading twice a second; the newest listener counts, for an older one may be of a worker that hangs."""
    device = urlsplit(socket.request.path).path.strip("/") if socket.request else ""
    older, listeners[device] = listeners.get(device), socket
    if older is not None and older.protocol.state is State.OPEN:
        print(f"{device} has two listeners", flush=True)
        older.close()
    print(f"{device} has a listener", flush=True)
    reading = 0
    try:
        while True:
            socket.send(str(reading))
            reading += 1
            try:
                socket.recv(timeout=0.5)
            except TimeoutError:
                continue
    except ConnectionClosed:
        print(f"{device} lost a listener", flush=True)


def main() -> None:
    address = urlsplit(DEVICES_URL)
    with serve(speak, address.hostname, address.port) as server:
        print(f"devices at {DEVICES_URL}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
