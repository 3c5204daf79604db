/* The rule by which a node is declared dead, with clocks, delays and losses (core/lease.py, runtime/membership.py).

   A victim V renews its lease; an observer O watches it through the answers to its own heartbeats. Requests and answers
   take any time or are lost; who gives up a heartbeat sends the next while the first may still arrive at the database
   (a zombie). Either may pause at any step, the database may be away, its clock may step CS times, and not twice
   between two answers (TWICE: also then). Time passes in ticks of all clocks, anywhere; all times are differences, so
   it is not bounded.

     v vr         V's heartbeat: none, sent, answered; what is left of the trust that its answer would give
     z            zombies: given-up requests of V that may still run
     dl           what is left of V's own trust: T - MARGIN after the *sending* of the heartbeat
     age          the age of V's last renewal by the database's clock
     o cs         O's heartbeat; ticks since it was sent
     oS oR        ticks since the last answer's heartbeat was sent, since that answer was received
     dE dN        the database's clock since the last answer's reading, since the last reading
     cE ca        what the answer under way says: dE and age where it was read
     w sn         O watches: ticks since a moment by which V's counter had surely been written
     same csame eq   the seen counter is that in the row; the one under way is; the seen one is the one under way

   S4: nobody is declared dead who still trusts its lease. PROMPT is the other half (L4, "an outage evicts nobody"):
   V is healthy, and while the database answers renews every IV ticks at the latest; then it is never declared dead.

   Mutants: NOWATCH (no rule at all: whoever is slow), NOGAP (a gap in O's own heartbeats starts the watch anew), NOSTEP
   (ages count only while the database's clock keeps step with O's), NOLATE (they may be too large by the time that the
   answers took), NOFLOOR (nor reach back before the last answer, in which the counter was another), GAPRECV (a gap
   counts from the sending of the last heartbeat, not from its answer), OBSEND (counting from after the answer), NOREN
   (comparing renewals when declaring dead), DLANS (trust counted from the sending). NOLATE and NOFLOOR alone break
   nothing within these bounds. */
#ifndef T
#define T 5
#endif
#ifndef MARGIN
#define MARGIN 2
#endif
#define TOL (MARGIN/2)
#ifndef GAP
#define GAP 3
#endif
#ifndef IV
#define IV 1
#endif
#ifndef CS
#define CS 1
#endif
#ifndef STEP
#define STEP 3
#endif
#define CAP 7
#define SENT 1
#define ANS 2

byte v, vr, z, dl, o, cs, oS, oR, sn;
short age, dE, dN, cE, ca;
bit w, same, csame, eq, have, gone, away;
#ifdef PROMPT
byte age1;                                                       /* V's own count since its last renewal */
#define RENEWED age1=0;
#else
#define RENEWED
#endif
byte steps; bit stepped, ns;                                     /* stepped since O's last answer, since its last reading */
byte l; short a;                                                 /* always 0 between steps */

inline renew(){ RENEWED age=0; same=0; csame=0 }
inline lim(x){ if :: x>CAP -> x=CAP :: x<-CAP -> x=-CAP :: else fi }
#define OLOST o=0; cs=0; cE=0; ca=0; dN=0; ns=0; csame=0; eq=0
#define UNHAVE have=0; stepped=0; oS=0; oR=0; dE=0; w=0; sn=0; same=0; eq=0
#define STEPBY(n) steps++; stepped=have; ns=(o==ANS); age=age+n; lim(age); if :: have -> dE=dE+n; lim(dE) :: else fi; \
  if :: o==ANS -> dN=dN+n; lim(dN) :: else fi
#ifdef GAPRECV
#define FROM oR
#else
#define FROM oS
#endif
#ifdef NOWATCH
#define ENDED 1
#else
#define ENDED (sn>=T)
#endif

proctype Victim(){
  do
  :: d_step{ !gone && v==0 -> v=SENT; vr=T-MARGIN }
  :: d_step{ !gone && v==SENT && !away -> renew();
#ifdef DLANS
       vr=T-MARGIN;
#endif
       v=ANS }
#ifdef DLANS
  :: d_step{ v==ANS -> dl=T-MARGIN; v=0; vr=0 }
#else
  :: d_step{ v==ANS -> dl=vr; v=0; vr=0 }
#endif
#ifndef PROMPT
  :: d_step{ v==SENT && z<1 -> z++; v=0; vr=0 }                  /* given up: it may still run */
  :: d_step{ v!=0 -> v=0; vr=0 }                                 /* lost */
#endif
  :: d_step{ !gone && z>0 && !away -> z--; renew() }
  :: d_step{ gone -> v=0; vr=0; z=0; dl=0; age=0; gone=0; same=0; csame=0 }         /* it registers anew: begin again */
  od }

proctype Observer(){
  do
  :: d_step{ !gone && o==0 -> o=SENT; cs=0 }
  :: d_step{ !gone && o==SENT && !away -> o=ANS; if :: have -> cE=dE :: else fi; ca=age; dN=0; csame=1; eq=(w && same) }
  :: d_step{ o!=0 -> OLOST }      /* lost, before or after it ran */
  :: d_step{ !gone && o==ANS ->
       if :: w && eq -> skip                                     /* the counter stands still */
          :: else ->
               /* by age, if the clocks kept step between the two answers; else from now */
               l=0; a=0;
#ifdef NOSTEP
               if :: have -> a=ca :: else fi;
#else
               if :: have && oS-TOL<=cE && cE<=(oR-cs)+TOL ->
#ifndef NOLATE
                     if :: cE>(oR-cs) -> l=cE-(oR-cs) :: else fi;
#endif
                     a=ca-l
                  :: else fi;
#endif
               if :: a<0 -> a=0 :: else fi;
#ifndef NOFLOOR
               if :: a>oS -> a=oS :: else fi;
#endif
#ifdef OBSEND
               if :: a<cs -> a=cs :: else fi;
#endif
               w=1; sn=a; same=csame; if :: sn>T -> sn=T :: else fi; l=0; a=0 fi;
       have=1; oS=cs; oR=0; dE=dN; stepped=ns; OLOST;
#ifndef NOGAP
       if :: FROM>GAP -> UNHAVE :: else fi
#endif
     }
  /* declared dead: by compare-and-set on the renewals */
#ifdef NOREN
  :: d_step{ !gone && have && w && ENDED && !away ->
#else
  :: d_step{ !gone && have && w && ENDED && same && !away ->
#endif
#ifdef PROMPT
       assert(false);                                                                           /* L4 */
#endif
       assert(dl==0);                                                                           /* S4 */
       gone=1; w=0; sn=0; same=0 }
  od }

inline dec(x){ if :: x>0 -> x-- :: else fi }
inline inc(x,n){ if :: x<n -> x++ :: else fi }
proctype World(){
  do
#ifdef PROMPT   /* time waits for V: it does not pass while its heartbeat is due and the database is there */
  :: d_step{ (away || (age1<IV && v==0)) ->
#else
  :: d_step{ true ->
#endif
       dec(vr); dec(dl); age++; lim(age);
#ifndef DLANS
       if :: v==ANS && vr==0 -> v=0 :: else fi;                   /* of no use any more */
#endif
       if :: w -> inc(sn,T) :: else fi;
       if :: o!=0 -> cs++ :: else fi; if :: o==ANS -> dN++; lim(dN) :: else fi;
       if :: cs>CAP -> OLOST :: else fi;                          /* as good as lost */
       if :: have -> inc(oS,CAP); oR++; dE++; lim(dE) :: else fi;
#ifdef NOGAP
       if :: oR>CAP -> oR=CAP :: else fi
#else
       if :: FROM>GAP -> UNHAVE :: else fi                        /* a gap: nothing seen before counts */
#endif
#ifdef PROMPT
       ; inc(age1,IV)
#endif
       }
#ifdef TWICE
  :: d_step{ steps<CS -> STEPBY(STEP) }
  :: d_step{ steps<CS -> STEPBY(-STEP) }
#else
  :: d_step{ steps<CS && !stepped -> STEPBY(STEP) }
  :: d_step{ steps<CS && !stepped -> STEPBY(-STEP) }
#endif
#ifdef PROMPT   /* and the database does not leave before it has answered V */
  :: d_step{ !away && age1<IV && v==0 -> away=1 }
#else
  :: d_step{ !away -> away=1 }
#endif
  :: d_step{ away -> away=0 }
  od }

init{ atomic{ dl=T-MARGIN; run World(); run Victim(); run Observer() } }
