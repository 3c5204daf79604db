"""Does for the unit ``worker@.service`` of the examples what ``systemctl restart worker@01`` does.

``UNIT`` names the unit's file; its project is the working folder. ``PROBE`` says that there is a probe to wait for.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path


def service(text: str) -> dict[str, str]:
    """The unit's section ``Service``."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return dict(unit["Service"])


def expanded(line: str, instance: str) -> list[str]:
    """The words of a line, with systemd's specifiers; ``/opt/proj/.venv`` is the environment of this Python."""
    for ours, theirs in (("%%", "\0"), ("%i", instance), ("%t", os.getcwd()), ("%S", os.getcwd()), ("\0", "%")):
        line = line.replace(ours, theirs)
    return shlex.split(line.replace("/opt/proj/.venv/bin", os.path.dirname(sys.executable)))


def runs(pid: int) -> bool:
    """Whether the process exists and is more than a corpse that nobody has buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main(verb: str, unit: str) -> None:
    assert verb == "restart"
    settings, instance = service(Path(os.environ["UNIT"]).read_text()), unit.partition("@")[2]
    file = Path(f"{unit}.pid")
    if file.exists():  # KillMode=mixed: the main process alone
        assert settings["KillMode"] == "mixed"
        os.kill(int(file.read_text()), signal.SIGTERM)
        while runs(int(file.read_text())):
            time.sleep(0.05)
    Path(*expanded(settings["RuntimeDirectory"], instance)).mkdir(exist_ok=True)
    [variable] = expanded(settings["Environment"], instance)
    environment = os.environ | dict([variable.split("=", 1)])
    with open(f"{unit}.log", "ab") as log:
        command = expanded(settings["ExecStart"], instance)
        worker = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        file.write_text(str(worker.pid))
        if "PROBE" in os.environ:
            probe = expanded(settings["ExecStartPost"], instance)
            subprocess.run(probe, stdout=log, stderr=log, check=True, env=environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
