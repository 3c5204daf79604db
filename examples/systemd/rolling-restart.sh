#!/bin/sh
# Restart worker@01, worker@02 and so on in turn:
#
#     rolling-restart.sh [--drain] 01 02 03
#
# Each is restarted when the one before takes part again and the cluster is stable. With --drain each is empty before it
# is stopped, which shows whether a task runs longer than it should. Without, SIGTERM does the same, and with
# rejoin_grace_sec partitions wait for their worker instead of moving. PROJ is the folder of the project.
set -eu
cd "${PROJ:-/opt/proj}"
jobsync() { .venv/bin/celery -A proj jobsync "$@"; }
# The cluster is stable, and this worker in it: live, with partitions, the fourth column.
settled() { told=$(jobsync status) && echo "$told" | grep -Eq "^$1 +live +[^ ]+ +[1-9]"; }
drain=
if [ "${1:-}" = --drain ]; then drain=yes; shift; fi

for instance in "$@"; do
    if [ -n "$drain" ]; then jobsync drain "worker-$instance" --wait; fi
    systemctl restart "worker@$instance"
    until settled "worker-$instance"; do sleep 1; done
    echo "worker-$instance is back"
done
