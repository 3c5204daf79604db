#!/usr/bin/env bash
# Checks the models of the protocol: what must hold, and mutants that must each break the promise that is named.
#   models/check.sh [WORD]     only the configurations whose line contains WORD
# One line for each; exits with 1 on any surprise. JOBS=n runs n at a time (default 2; each takes up to 1.5 GB).
# Without spin it says how to install it and exits with 0. Builds in a temporary folder.
set -uo pipefail

# holds | the promise that breaks (DESIGN 4) | stuck (a deadlock), what, and which model is built how: README.md says it.
configurations='
holds  failover, and another plan                        failover CR=0 MAXF=2
holds  counted copies and a crash                        protocol BROKER M=1 J=1
holds  two runs of a key and a crash                     protocol
holds  failover and registering twice                    failover CR=0 PV=0 MAXI=4 MAXF=2
holds  failover and a crash                              failover PV=0
holds  failover with two keys                            failover M=2 K=2 CR=0 PV=0 MAXF=2
holds  a lost connection, registering again              protocol CL=1 CR=0 M=1
holds  a lost connection, two runs of a key              protocol CL=1 CR=0 MAXI=2
holds  lock by lock, two keys                            transactions K=2
holds  lock by lock, two runs of a key                   transactions
holds  a key that moves between two live owners          locks
holds  locked and unlocked by hand too                   locks HAND=2 HANDSET CH=2
holds  the judgement by the observer alone               protocol RULE2 M=1 CR=0
holds  counted copies and a lost connection              protocol BROKER CL=1 CR=0 M=1 MAXF=2 MAXI=2
holds  the shared memory, step by step                   protocol STEPS M=1
holds  three nodes                                       protocol N=3 M=1 J=1 CR=0 MAXI=3
holds  two keys and a crash                              protocol K=2 MAXI=2
holds  two processes of one name                         protocol SAMENAME N=3 M=1 J=1 PV=0
holds  children that outlive their worker                protocol ORPHAN WAITLEASE SAMENAME N=3 M=1 J=1 PV=0
holds  heartbeats late and lost, a step of the clock     watch
holds  a step of the clock that goes unnoticed           watch STEP=1
holds  an outage evicts nobody, nor does a step          watch PROMPT
S2     no lock on the row of the partition               transactions NOSHARE M=1
S2     no lock on it nor on the row of the node          transactions NOLOCKS M=1
holds  only the lock on the row of the node left out     transactions NONODE M=1
S3     taken without a lock on the row of the node       transactions TAKENODE M=1
S7     the fence drawn before the locks                  transactions EARLYFENCE M=1
S5     a late end without comparing the fence            transactions LATE M=1
S5     guard without the lock on its claim               transactions NOGLOCK M=1
P      a change of locks that holds no partition         locks NOHOLD
P      pools looked for before home is held, not after   locks ONELOOK
P      where the key belongs is not looked at            locks NOPLACE
S7     with pools too the fence drawn in the insert      locks EARLYFENCE HAND=1
holds  the same, unless a key is unlocked by hand        locks EARLYFENCE CH=2
S7     the first pool added while claims are under way   locks FIRSTPOOL HAND=1 HANDSET
holds  the same, unless a key is locked by hand          locks FIRSTPOOL HAND=1 CH=2
S1     no unique index, a key unlocked by hand           locks NOUNIQ HAND=1
stuck  the running claim left to the index to find       locks NORIVAL
stuck  unlocked by hand, and deadlocks not broken        locks HAND=1 NODETECT
S4     no watch at all                                   watch NOWATCH CS=0
L4     a gap in the observer is overlooked               watch NOGAP PROMPT CS=0
L4     the gap counted from the answer                   watch GAPRECV PROMPT CS=0
S4     ages believed after a step of the clock           watch NOSTEP
S4     forth and back between two answers                watch CS=2 TWICE
S4     the count begun when the read was sent            watch OBSEND CS=0
S4     evicted without comparing the renewals            watch NOREN CS=0
S4     the deadline counted from the answer              watch DLANS CS=0
S2     after a failover nobody waits                     failover NOGRACE CR=0
S2     only who knew the old timeline waits              failover NOFRESH MAXF=2
S2     the timeline learned at the first heartbeat       failover LATETL MAXF=2
S2     claimed on a timeline not known                   failover NOCLAIMTL CR=0
S4     declared dead on a timeline not watched           failover NOEVICTTL CR=0 PV=0
S3     incarnations without the timeline                 failover NOINCTL CR=0 MAXI=4
S2     incarnations without it: a job of the old one     failover NOINCTL NORELEASE CR=0 PV=0 MAXI=4
S7     fences without the timeline                       failover NOFENCETL CR=0 PV=0 MAXI=4
S2     check and claim without locks between them        protocol NOSHARE M=1
S2     no incarnation asked at the start                 protocol NOINC M=1
S2     no deadline asked at the start                    protocol NODL M=1
S2     no epoch asked at the start                       protocol NOEPOCH CL=1 CR=0 M=1 PV=0
S2     no epoch asked at the start: bodies overlap       protocol NOEPOCH LIT0 CL=1 CR=0 M=1 PV=0
S2     the epoch moved on after the look, not before     protocol EPOCHLATE CL=1 CR=0 M=1
S7     two grants of one run under one fence             protocol SAMEFENCE CL=1 CR=0 M=1 PV=0
S4     the deadline counted from the answer              protocol DLANS M=1
S2     the incarnation read before the deadline          protocol TORN M=1
S4     evicted without comparing the renewals            protocol NOREN M=1
S4     the count begun when the read was sent            protocol OBSEND RULE2 M=1
S3     taken from its owner                              protocol TAKENOW M=1
S3     taken by a dead node                              protocol TAKENOCHK M=1
S2     claims cleared at the hand-over                   protocol RELCLEAR M=1
S1     no unique index on running keys                   protocol NOUNIQ
S5     a late end without comparing the fence            protocol LATE M=1
S5     guard without the lock on its claim               protocol NOGLOCK M=1
S6     acknowledged before the end is recorded           protocol ACKEARLY M=1
S6     acknowledged too early: a message is lost         protocol ACKEARLY LIT0 BROKER M=1 J=1
S6     runs known as done are run again                  protocol NODONE M=1
S4     taken over while children live                    protocol ORPHAN SAMENAME N=3 M=1 J=1 PV=0
not    effects once by guard alone (complete is for it)  protocol EXACT M=1
'

# One configuration: "expected  what  MODEL OPTION …", with two or more spaces between the parts.
check_one() {
    local expected what options folder model result seconds states option flags=() how=()
    expected=${1%% *}
    options=${1##*  }
    what=$(sed -E 's/^[^ ]+ +//; s/ {2,}[^ ].*$//' <<<"$1")
    model=${options%% *}
    for option in ${options#"$model"}; do flags+=("-D$option"); done
    if [ "$expected" = holds ]; then
        how=(-O2)
    else
        how=(-O0) # found soon: building takes longer than searching
        [ "$model" = failover ] && how+=(-DBFS) # ... breadth first: depth first would walk a long way past it
    fi
    folder=$(mktemp -d "$scratch/XXXXXX") && cp "$here/$model.pml" "$folder" && cd "$folder" || return 1
    SECONDS=0
    if ! spin -a "${flags[@]}" "$model.pml" >built 2>&1 ||
        ! "${CC:-cc}" "${how[@]}" -w -DSAFETY -DVECTORSZ=2048 -DMEMLIM=3000 -o pan pan.c >>built 2>&1
    then
        printf 'WRONG  %-48s does not build [%s]\n' "$what" "$options"
        cat built
        return 1
    fi
    ./pan -m1000000 -n -w24 >out 2>&1
    if grep -q 'assertion violated' out; then
        # The promise stands behind the assertion, on its line.
        spin -t -n -B -s "${flags[@]}" "$model.pml" >trail 2>&1
        result=$(sed -nE "s/^spin: $model.pml:([0-9]+), Error: assertion violated.*/\1/p" trail | head -n 1)
        result=$(sed -nE "${result:-1}s#.*/\* ?([SL][0-9]|P|not)\b.*#\1#p" "$model.pml")
        result=${result:-breaks what has no name}
    elif grep -q 'invalid end state' out && ! grep -q 'errors: 0$' out; then
        result=stuck
    elif grep -qE 'not completed|too small|max search depth' out; then
        result='did not finish'
    elif grep -q 'errors: 0$' out; then
        result=holds
    else
        result='ended unexpectedly'
    fi
    seconds=$SECONDS
    states=$(sed -nE 's/^ *([0-9.e+]+) states, stored.*/\1/p' out)
    cd / && rm -rf "$folder"
    if [ "$result" = "$expected" ]; then
        case $result in
            S* | L* | P) result="breaks $result" ;;
            not) result='breaks, as it may' ;;
            stuck) result='deadlock' ;;
        esac
        printf 'ok     %-48s %-10s %9s states %3d s  [%s]\n' "$what" "$result" "${states:-?}" "$seconds" "$options"
    else
        printf 'WRONG  %-48s %s, but expected: %s  [%s]\n' "$what" "$result" "$expected" "$options"
        return 1
    fi
}

here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --one ]; then
    check_one "$2"
    exit
fi

if ! command -v spin >/dev/null; then
    echo 'models/check.sh: not checked: spin is missing. Install it, for instance: apt-get install spin gcc libc6-dev'
    exit 0
fi

scratch=$(mktemp -d)
export scratch
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
