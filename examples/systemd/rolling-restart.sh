#!/bin/sh
# Restart worker@01, worker@02 and so on in turn:
#
#     rolling-restart.sh [--drain] 01 02 03
#
# Each is restarted when the one before takes part again and the cluster is stable. With --drain each is empty before it
# is stopped, which shows whether a task runs longer than it should. Without, SIGTERM does the same, and with
# rejoin_grace_sec partitions wait for their worker instead of moving.
#
# In the environment: PROJ, the folder of the project; LIMIT, how many seconds to wait for the cluster after a restart. It
# may take longer for a reason of its own, a node that is dead elsewhere say; then the other workers are left as they are.
set -eu
LIMIT=${LIMIT:-120}
cd "${PROJ:-/opt/proj}"
jobsync() { .venv/bin/celery -A proj jobsync "$@"; }
# The cluster is stable, and this worker in it: live, with partitions, the fourth column.
settled() { told=$(jobsync status) && echo "$told" | grep -Eq "^$1 +live +[^ ]+ +[1-9]"; }
await() {
    end=$(($(date +%s) + LIMIT))
    until settled "$1"; do
        if [ "$(date +%s)" -ge "$end" ]; then
            state=${told%%;*}
            echo "gave up after $LIMIT s: $1 is not back, or the cluster is not stable (${state:-no answer});" \
                "the rest is left as it is" >&2
            exit 1
        fi
        sleep 1
    done
}

drain=
if [ "${1:-}" = --drain ]; then drain=yes; shift; fi

for instance in "$@"; do
    if [ -n "$drain" ]; then jobsync drain "worker-$instance" --wait; fi
    systemctl restart "worker@$instance"
    await "worker-$instance"
    echo "worker-$instance is back"
done
