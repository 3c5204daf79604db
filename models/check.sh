#!/usr/bin/env bash
# Checks the model of the protocol: what must hold, and mutants of it that must each fail.
#   models/check.sh [WORD]     only the configurations whose line contains WORD
# One line for each; exits with 1 on any surprise. JOBS=n runs n at a time (default 2; each takes up to 1.1 GB).
# Without spin it says how to install it and exits with 0. Builds in a temporary folder.
set -uo pipefail

# holds | breaks, what, and how protocol.pml is built: README.md explains the options.
configurations='
holds   a lost connection, two runs of a key              CL=1 CR=0 MAXI=2
holds   a lost connection, registering again              CL=1 CR=0 M=1
holds   counted copies and a crash                        BROKER M=1 J=1
holds   two runs of a key and a crash                     -
holds   the judgement by the observer alone               RULE2 M=1 CR=0
holds   counted copies and a lost connection              BROKER CL=1 CR=0 M=1 MAXF=2 MAXI=2
holds   the shared memory, step by step                   STEPS M=1
holds   three nodes                                       N=3 M=1 J=1 CR=0 MAXI=3
holds   two keys and a crash                              K=2 MAXI=2
holds   two processes of one name                         SAMENAME N=3 M=1 J=1 PV=0
holds   children that outlive their worker                ORPHAN WAITLEASE SAMENAME N=3 M=1 J=1 PV=0
breaks  check and claim without locks between them        NOSHARE M=1
breaks  no incarnation asked at the start                 NOINC M=1
breaks  no deadline asked at the start                    NODL M=1
breaks  no epoch asked at the start                       NOEPOCH CL=1 CR=0 M=1 PV=0
breaks  no epoch asked at the start: bodies overlap       NOEPOCH LIT0 CL=1 CR=0 M=1 PV=0
breaks  the epoch moved on after the look, not before     EPOCHLATE CL=1 CR=0 M=1 PV=0
breaks  two grants of one run under one fence             SAMEFENCE CL=1 CR=0 M=1 PV=0
breaks  the deadline counted from the answer              DLANS M=1
breaks  the incarnation read before the deadline          TORN M=1
breaks  evicted without comparing the renewals            NOREN M=1
breaks  the count begun when the read was sent            OBSEND RULE2 M=1
breaks  taken from its owner                              TAKENOW M=1
breaks  taken by a dead node                              TAKENOCHK M=1
breaks  claims cleared at the hand-over                   RELCLEAR M=1
breaks  no unique index on running keys                   NOUNIQ
breaks  a late end without comparing the fence            LATE M=1
breaks  guard without the lock on its claim               NOGLOCK M=1
breaks  acknowledged before the end is recorded           ACKEARLY M=1
breaks  acknowledged too early: a message is lost         ACKEARLY LIT0 BROKER M=1 J=1
breaks  runs known as done are run again                  NODONE M=1
breaks  taken over while children live                    ORPHAN SAMENAME N=3 M=1 J=1 PV=0
breaks  effects once by guard alone (complete is for it)  EXACT M=1
'

# One configuration: "holds|breaks  what  OPTION …", with two or more spaces between the parts.
check_one() {
    local expected what options folder result seconds states level=-O2 flags=() option
    expected=${1%%  *}
    options=${1##*  }
    what=$(sed -E 's/^[a-z]+ +//; s/ {2,}[^ ].*$//' <<<"$1")
    [ "$options" = - ] && options=''
    [ "$expected" = breaks ] && level=-O1 # found soon: building takes longer than searching
    for option in $options; do flags+=("-D$option"); done
    folder=$(mktemp -d "$scratch/XXXXXX") && cd "$folder" || return 1
    SECONDS=0
    if ! spin -a "${flags[@]}" "$model" >built 2>&1 ||
        ! "${CC:-cc}" "$level" -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=2500 -o pan pan.c >>built 2>&1
    then
        printf 'WRONG   %-48s does not build [%s]\n' "$what" "$options"
        cat built
        return 1
    fi
    ./pan -m200000 -n -w24 >out 2>&1
    seconds=$SECONDS
    if grep -q 'Search not completed' out && ! grep -q 'assertion violated' out; then
        result='did not finish'
    elif grep -q 'assertion violated' out; then
        result=breaks
    elif grep -q 'errors: 0$' out; then
        result=holds
    else
        result='ended unexpectedly'
    fi
    states=$(sed -nE 's/^ *([0-9.e+]+) states, stored.*/\1/p' out)
    cd / && rm -rf "$folder"
    if [ "$result" = "$expected" ]; then
        printf 'ok      %-48s %-6s %9s states %4d s  [%s]\n' "$what" "$result" "${states:-?}" "$seconds" "$options"
    else
        printf 'WRONG   %-48s %s, but should be: %s  [%s]\n' "$what" "$result" "$expected" "$options"
        return 1
    fi
}

if [ "${1:-}" = --one ]; then
    check_one "$2"
    exit
fi

if ! command -v spin >/dev/null; then
    echo 'models/check.sh: not checked: spin is missing. Install it, for instance: apt-get install spin gcc libc6-dev'
    exit 0
fi

here=$(cd "$(dirname "$0")" && pwd)
model=$here/protocol.pml
scratch=$(mktemp -d)
export model scratch
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP

SECONDS=0
chosen=$(grep -v '^$' <<<"$configurations" | grep -F -- "${1:-}")
if [ -z "$chosen" ]; then
    echo "models/check.sh: no configuration contains '$1'" >&2
    exit 2
fi
tr '\n' '\0' <<<"$chosen" | xargs -0 -n 1 -P "${JOBS:-2}" "$here/check.sh" --one
status=$?
if [ "$status" = 0 ]; then
    echo "all as expected: $(wc -l <<<"$chosen" | tr -d ' ') configurations, $SECONDS s"
else
    echo "models/check.sh: there were surprises ($SECONDS s)" >&2
    exit 1
fi
