"""A fence behind an HTTP API that knows ETags: the document carries it, and If-Match makes the write conditional.

    python fenced_http.py        # shows it, with a server of its own

Read the document, give up if its fence is larger than yours, and write with the ETag that you have read: whoever
changed the document in between changed the ETag too, and the server refuses (412). An API of your own can do
without the reading: send the fence in a header, and let the server compare.
"""

import hashlib
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from celery import Celery

from jobsync_celery import JobSync, coordinated, current_claim
from jobsync_celery.errors import Fenced

API_URL = os.environ.get("API_URL", "http://localhost:8080")
app = Celery("fenced_http", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
JobSync(app, {"url": os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")})


@app.task
@coordinated(key="account")
def settle(account: int, amount: int) -> None:
    write(f"{API_URL}/balance/{account}", amount, current_claim().fence)


def write(url: str, amount: int, fence: int) -> None:
    """Set the balance unless a newer run has."""
    written = False
    while not written:  # again when somebody else wrote in between
        etag, document = read(url)
        if document.get("fence", 0) > fence:
            raise Fenced(f"{url}: a newer run than {fence} has written")
        written = replace(url, etag, {"amount": amount, "fence": fence})


def read(url: str) -> tuple[str, dict[str, int]]:
    with urlopen(url, timeout=10) as answer:
        return answer.headers["ETag"], json.load(answer)


def replace(url: str, etag: str, document: dict[str, int]) -> bool:
    """Write the document if it still has this ETag."""
    request = Request(url, json.dumps(document).encode(), {"If-Match": etag}, method="PUT")
    try:
        with urlopen(request, timeout=10):
            return True
    except HTTPError as refusal:
        with refusal:
            if refusal.code == 412:
                return False
            raise


class Api(BaseHTTPRequestHandler):
    """Stands for the API of somebody else. It knows ETags, but nothing of fences."""

    documents: dict[str, bytes] = {}  # noqa: RUF012 - shared by all requests
    turn = Lock()

    def do_GET(self) -> None:
        self.answer(200, self.documents.get(self.path, b"{}"))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.turn:
            old = self.documents.get(self.path, b"{}")
            matches = self.headers["If-Match"] == etag_of(old)
            if matches:
                self.documents[self.path] = body
        self.answer(200, body) if matches else self.answer(412, old)

    def answer(self, status: int, document: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", etag_of(document))
        self.end_headers()
        self.wfile.write(document)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def etag_of(document: bytes) -> str:
    return '"' + hashlib.sha256(document).hexdigest()[:16] + '"'


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/balance/1"
        write(url, 100, fence=7)
        write(url, 110, fence=7)  # one run may write twice
        write(url, 200, fence=8)  # the run that took over
        try:
            write(url, 120, fence=7)  # the hung worker wakes up
        except Fenced as error:
            print("refused:", error)
        print("kept:", json.loads(Api.documents["/balance/1"]))
        server.shutdown()


if __name__ == "__main__":
    main()
