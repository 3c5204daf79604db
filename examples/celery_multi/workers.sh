#!/bin/sh
# Workers of celery multi on this machine:
#
#     workers.sh start | restart | stop
#
# restart goes one by one: each is stopped, which waits for what it runs, started again under its name, and takes part
# before the next one goes.
#
# In the environment: APP, the app; WORKERS, their names; RUN, a folder for their files; LIMIT, how many seconds to wait
# for the cluster. It may take longer for a reason of its own, a node that is dead elsewhere say; then the script ends.
set -eu
APP=${APP:-proj}
WORKERS=${WORKERS:-worker-01 worker-02 worker-03}
RUN=${RUN:-.}
LIMIT=${LIMIT:-120}
multi() { celery multi "$@" --pidfile="$RUN/%n.pid" --logfile="$RUN/%n%I.log"; }
jobsync() { celery -A "$APP" jobsync "$@"; }
# The cluster is stable, and this worker in it: live, with partitions, the fourth column.
settled() { told=$(jobsync status) && echo "$told" | grep -Eq "^$1@[^ ]* +live +[^ ]+ +[1-9]"; }
await() {
    end=$(($(date +%s) + LIMIT))
    for one in "$@"; do
        until settled "$one"; do
            if [ "$(date +%s)" -ge "$end" ]; then
                state=${told%%;*}
                echo "gave up after $LIMIT s: $one is not back, or the cluster is not stable (${state:-no answer});" \
                    "the rest is left as it is" >&2
                exit 1
            fi
            sleep 1
        done
    done
}

case ${1:-} in
    start)
        multi start $WORKERS -A "$APP" -l INFO
        await $WORKERS
        ;;
    restart)
        for worker in $WORKERS; do
            multi stopwait "$worker"
            multi start "$worker" -A "$APP" -l INFO
            await "$worker"
        done
        ;;
    stop)
        multi stopwait $WORKERS
        ;;
    *)
        echo "usage: $0 start | restart | stop" >&2
        exit 2
        ;;
esac
