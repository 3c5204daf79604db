/* Task locks, statement by statement: one key that moves between two partitions, whose two owners both live.

   A claim of the key may be under way in its home partition and in its pool's at once. Two nodes claim, each in its own
   partition; two of whoever likes lock the key, unlock it, or lock another key; an operator changes the key's row by
   hand. As PostgreSQL runs them: each statement has a snapshot of its own, waits for locks, and its changes are seen
   when it commits; whoever inserts a running claim waits for a transaction that has inserted or ended another one of the
   key and has not committed. Each transaction may be broken off before its first wait and after each lock.

     pools place    there is a lock pool; where the key belongs (HOME or POOL), as committed
     byhand         it was an operator who moved it last
     ps px lead     locks on the rows of the partitions, FOR SHARE (how many) and FOR NO KEY UPDATE; on the leader's row
     runs           the owner of which partition has the running claim of the key (partition + 1), as committed
     kx ex          somebody has inserted such a claim, or ended it, and has not committed
     seq top        the sequence of fences; the largest fence of the key committed so far
     ch hand        changes of locks, changes by hand so far

   Claims are made in two ways. The function commit_claims looks first whether there are pools: without, the fence is
   drawn in the insert, with them behind it. The contest looks at the place in a statement of its own.

   Options: HAND, an operator unlocks the key by hand (how often); HANDSET, or locks it by hand; NODETECT, PostgreSQL does
   not look for deadlocks. Mutants: EARLYFENCE (with pools too the fence is drawn in the insert), NOHOLD (a change holds
   no partition), ONELOOK (it looks only once which pools there are), NOPLACE (the place is not looked at), FIRSTPOOL (the
   first pool is added while claims are under way), NOUNIQ (the unique index), NORIVAL (who inserts leaves it to the index
   to find the running claim). */
#ifndef MAXF
#define MAXF 3
#endif
#ifndef CH
#define CH 3
#endif
#ifndef HAND
#define HAND 0
#endif
#define HOME 0
#define POOL 1
#define OTHER 2
#ifdef NORIVAL
#define RIVAL 0
#else
#define RIVAL (runs!=0 && !e)                                    /* another claim of the key runs */
#endif
#ifdef NOPLACE
#define AWAY 0
#else
#define AWAY (place!=p)                                          /* the key belongs elsewhere */
#endif
#ifdef EARLYFENCE
#define EARLY 1
#else
#define EARLY old
#endif

bit pools, place, byhand;
byte ps[2]; bit px[2], lead;
byte runs; bit kx, ex;
byte seq, top, ch, hand;

#define MAYBREAK if :: true :: goto over fi                       /* never in a wait: a ring of waits lasts for ever */

/* An owner of a partition claims there, and ends what it claimed */
proctype Claimer(bit p){ bit e, l, old, c, r; byte f;            /* e: its last claim ends in the same transaction */
end_c:
  do
  :: d_step{ runs==p+1 -> runs=0 }                               /* an end in a transaction of its own */
  :: atomic{ seq<MAXF && (p==HOME || pools) -> if :: runs==p+1 -> e=1; ex=1 :: runs!=p+1 fi; MAYBREAK };
       atomic{ !px[p] -> ps[p]++; l=1; MAYBREAK };               /* FOR SHARE: waits for who holds it still */
       if
       :: old=!pools;                                            /* commit_claims; then its insert looks */
            if :: d_step{ old -> r=RIVAL } :: d_step{ !old -> r=(RIVAL || AWAY) } fi
       :: atomic{ r=AWAY; if :: r :: !r -> MAYBREAK fi };        /* the contest; then its insert looks */
            if :: r :: !r -> r=RIVAL fi
       fi;
       if :: r -> goto refused :: else fi;
       atomic{ if :: EARLY -> seq++; f=seq :: else fi; MAYBREAK };
#ifdef NOUNIQ
       c=1;
#else
       if                                                        /* the unique index: waits for who is about to */
       :: atomic{ !kx && (!ex || e) -> if :: runs==0 || e -> kx=1; c=1; MAYBREAK :: else fi }
#if HAND && !defined(NODETECT)
       :: timeout -> goto over                                   /* a ring of waits: PostgreSQL breaks one off */
#endif
       fi;
#endif
       if :: !c -> goto refused :: else fi;
       atomic{ if :: !EARLY -> seq++; f=seq :: else fi; MAYBREAK };
       d_step{ true ->                                                                           /* commit */
         assert(runs==0 || e);                                                                   /* S1 */
         assert(f>top);                                                                          /* S7 */
         assert(place==p || byhand);                                                             /* P: it had not left */
         top=f; runs=p+1; if :: e -> ex=0 :: else fi; kx=0; ps[p]--; e=0; l=0; old=0; c=0; f=0 }; goto end_c;
refused: atomic{ if :: e -> runs=0 :: else fi };                 /* what it ended is ended */
over:  atomic{ if :: e -> ex=0 :: else fi; if :: c -> kx=0 :: else fi; if :: l -> ps[p]-- :: else fi;
         e=0; l=0; old=0; c=0; r=0; f=0 }
  od }

/* Whoever locks or unlocks the key, or locks another key, whose home is elsewhere */
proctype Changer(){ byte to; bit n, h, g, l, seen;               /* n: it adds the pool; h g l: home, pool, leader held */
end_l:
  do
  :: atomic{ ch<CH -> ch++; if :: to=HOME; goto hold :: to=POOL :: to=OTHER fi };
       if :: pools -> goto hold :: else fi;
       atomic{ !lead -> lead=1; l=1; MAYBREAK };
       if :: pools -> goto hold :: else fi;
#ifndef FIRSTPOOL
       atomic{ ps[HOME]==0 && !px[HOME] -> px[HOME]=1; h=1; MAYBREAK };  /* all: without pools, of these two home alone */
#endif
       n=1;
hold:  skip;
#ifndef NOHOLD
       seen=pools;                                               /* the snapshot; its own new pool nobody else sees */
       if :: h || to==OTHER :: else -> atomic{ ps[HOME]==0 && !px[HOME] -> px[HOME]=1; h=1; MAYBREAK } fi;
       if :: seen -> atomic{ ps[POOL]==0 && !px[POOL] -> px[POOL]=1; g=1; MAYBREAK } :: else fi;
#ifndef ONELOOK
       if :: !g && pools -> atomic{ ps[POOL]==0 && !px[POOL] -> px[POOL]=1; g=1; MAYBREAK } :: else fi;
#endif
#endif
       d_step{ true -> if :: n -> pools=1 :: else fi;                                            /* commit */
         if :: to!=OTHER && place!=to -> place=to; byhand=0 :: else fi };
over:  atomic{ if :: h -> px[HOME]=0 :: else fi; if :: g -> px[POOL]=0 :: else fi; if :: l -> lead=0 :: else fi;
         to=0; n=0; h=0; g=0; l=0; seen=0 }
  od }

proctype Operator(){
end_o:
  do
  :: d_step{ hand<HAND && place==POOL -> hand++; place=HOME; byhand=1 }
#ifdef HANDSET
  :: d_step{ hand<HAND && pools && place==HOME -> hand++; place=POOL; byhand=1 }
#endif
  od }

init{ atomic{ run Claimer(HOME); run Claimer(POOL); run Changer(); run Changer(); run Operator() } }
