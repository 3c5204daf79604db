"""Proof that a worker and all its pool children are gone: a lock file that they hold together.

The file is opened before the pool forks, so every child inherits the open file, and the kernel keeps its ``flock``
until the last of them has exited. Whoever gets the lock on the *same* file (same boot, device and inode) has the
proof; a container with another temporary folder sees another file and proves nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path


class Presence:
    """This process's hold on a node name, on this machine.

    Arguments:
        scope: what keeps clusters apart, such as the database and prefix.
        name: the node name.
    """

    def __init__(self, scope: str, name: str) -> None:
        digest = hashlib.sha256(f"{scope}\0{name}".encode()).hexdigest()[:24]
        self._path = Path(tempfile.gettempdir()) / f"jobsync-{os.getuid()}-{digest}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(self._path, flags, 0o600)
        status = os.fstat(self._fd)
        self._file = f"{_boot_id()}:{status.st_dev}:{status.st_ino}"
        self.held = self.hold()

    @property
    def identity(self) -> str:
        """What to register with; empty while the name is not held here, for then the file proves nothing of us."""
        return self._file if self.held else ""

    def hold(self) -> bool:
        """Try to hold the name; false while another process of this machine, or a child it left, holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.held = False
        else:
            self.held = True
        return self.held

    def proves_gone(self, identity: str) -> bool:
        """Whether the process that registered with ``identity`` is gone, with all its children."""
        return identity == self._file and (self.held or self.hold())

    def remove(self) -> None:
        """Let go of the name, and take the file away; only by who leaves in good order, and has no children.

        Whoever has opened the file meanwhile holds one that nobody else will find, which proves nothing of anybody.
        """
        try:
            if self.held and os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                self._path.unlink()
        except FileNotFoundError:
            pass
        self.close()

    def close(self) -> None:
        """Let go of the name in this process; children may still hold it."""
        os.close(self._fd)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without a boot id a reboot is not told from none; the inode of a file in the temporary folder is the rest.
        return os.uname().nodename
