/* The protocol of jobsync_celery: leases by incarnation, hand-over that does not wait for running tasks, claims per key,
   and the epoch that fences what the pool forgets when a broker connection is lost.

   One partition, K keys, M messages (runs), N worker processes with J pool slots each. Every option of every process
   is one atomic step: one database transaction, or one local action. Time passes between any two steps, so a pause of
   any length, at any step, of any party, is included. Time is relative (what is left of each lease), so it is not
   bounded. Bounded are incarnations MAXI, claims MAXF, plans PV, crashes CR and lost broker connections CL.
   What stands for what:
     rinc rl rdead rgone   a row of sync_node (store/nodes.py); rgone: its process provably gone (runtime/presence.py)
     owner target          the row of sync_partition (store/partitions.py); owners are incarnations
     cst cinc cf           rows of sync_claim (store/claims.py); glk: locked under guard (store/guard.py)
     pinc hb ht            a worker's own incarnation and its heartbeat under way (runtime/membership.py)
     sinc sdl              incarnation and deadline in shared memory (runtime/lease.py)
     jst jm ji jf jz       a slot: state, message, pass's incarnation, fence, epoch out of date (plugin/pool_child.py)
     ost ov och            the observer that may declare dead (core/lease.py, runtime/leadership.py)
   Without BROKER every message can be delivered to any process at any time, any number of times: duplicates and
   redeliveries. With BROKER copies are counted, so that a loss can be seen. README.md lists options and mutants. */
#ifndef N
#define N 2
#endif
#ifndef M
#define M 2
#endif
#ifndef K
#define K 1
#endif
#ifndef J
#define J 2
#endif
#ifndef TTL
#define TTL 2
#endif
#ifndef MAXF
#define MAXF 3
#endif
#ifdef SAMENAME
#define NN 2
#define NM(i) (i%2)
#else
#define NN N
#define NM(i) (i)
#endif
#ifndef MAXI
#define MAXI (NN+1)
#endif
#ifndef PV
#define PV 1
#endif
#ifndef CR
#define CR 1
#endif
#ifndef CL
#define CL 0
#endif
#define KEY(m) ((m)%K)
#define NO 0
#define RUN 1
#define LOST 2
#define DONE 3
/* a slot: empty (0); granted, in gate or pipe; body runs; runs with its claim locked under guard; to be returned;
   to be acknowledged; acknowledged too early (mutant); between two reads of the lease; accepted by the child, which
   has said so in its result pipe but not yet looked at the lease; forgotten by the pool while the child may hold it,
   before and after the end of its claim is recorded */
#define G 1
#define X 2
#define XG 3
#define R 4
#define A 5
#define Z 6
#define T 7
#define P 8
#define W 9
#define V 10

byte iseq, fence, pv, cr;
byte rinc[NN], rl[NN]; bit rdead[NN], rgone[NN];                /* incarnation, what is left of the lease, dead, gone */
byte owner, target;                                             /* owner: 0 is free; target: a name */
byte cst[M], cinc[M], cf[M], top[K]; bit glk[M], was[M];        /* was: recorded done at some time; top: the key's largest fence */
bit up[N], hb[N]; byte pinc[N], sinc[N], sdl[N], ht[N];         /* ht: what of the lease the answer will find */
byte jst[N*J], jm[N*J], ji[N*J], jf[N*J];
byte cl; bit jz[N*J], jw[N*J];                                  /* jw: seen unaccepted (EPOCHLATE) */
bit ost, och; byte ov;                                          /* och: ov's incarnation or renewals have changed */
byte jd[N*J], ot, chk[N], eff[M]; bit osend, inq[M], hnd[N*M]; /* for STEPS, RULE2, NOSHARE, EXACT, BROKER */
hidden byte k, s2, oth, e;

#if NN==2
#define ALIVE(x) ((rinc[0]==(x) && !rdead[0]) || (rinc[1]==(x) && !rdead[1]))
#else
#define ALIVE(x) ((rinc[0]==(x) && !rdead[0]) || (rinc[1]==(x) && !rdead[1]) || (rinc[2]==(x) && !rdead[2]))
#endif
#define LB(s) ((jst[s]==X || jst[s]==XG) && ji[s]==sinc[(s)/J] && sdl[(s)/J]>0)   /* a body before its own deadline */
#ifdef LIT0
#define LIT(c) skip
#else
#define LIT(c) assert(c)
#endif
#define CLR(s) jst[s]=0; jm[s]=0; ji[s]=0; jf[s]=0; jz[s]=0
#define GATE(s) (jst[s]!=W && jst[s]!=V)                        /* the gate knows of it */
#ifndef NOEPOCH
#define EPOK(s) (!jz[s])
#else
#define EPOK(s) 1
#endif
#define HV(i,m) hnd[(i)*M+(m)]
#ifdef NOINC
#define INCOK(i,s) 1
#else
#define INCOK(i,s) (sinc[i]==ji[s])
#endif
#ifdef NODL
#define DLOK(i) 1
#else
#define DLOK(i) (sdl[i]>0)
#endif
#ifdef NOREN
#define CHANGED(n)
#else
#define CHANGED(n) if :: ost && ov==n -> och=1 :: else fi;
#endif
#ifdef NODONE
#define KNOWN 0
#else
#define KNOWN (cst[m]==DONE)
#endif
#ifdef WAITLEASE
#define GONE(n) 0
#else
#define GONE(n) rgone[n]
#endif
#ifdef BROKER
#define MAYCLAIM(i,m) HV(i,m)
#define DROP(i,m) HV(i,m)=0; nolost()
#define BACK(i,m) if :: HV(i,m) -> HV(i,m)=0; inq[m]=1 :: else fi
#else
#define MAYCLAIM(i,m) 1
#define DROP(i,m) skip
#define BACK(i,m) skip
#endif

inline overlap(){ for(k:0 .. (N*J-1)){ for(s2:0 .. (N*J-1)){
  assert(!(k<s2 && LB(k) && LB(s2) && KEY(jm[k])==KEY(jm[s2]))) } }; k=0; s2=0 }  /* S2: no two at once */
inline s4(){ for(k:0 .. (N-1)){ LIT(!(sinc[k]!=0 && sdl[k]>0 && !ALIVE(sinc[k]))) }; k=0 }  /* S4 */
#ifdef BROKER
inline nolost(){ for(k:0 .. (M-1)){ oth=0; for(s2:0 .. (N-1)){ oth=oth|HV(s2,k) };
  assert(inq[k] || oth || cst[k]==DONE) }; k=0; s2=0; oth=0 }  /* S6: nothing lost */
#endif
inline evict(v){ /* one transaction: dead, partitions freed, claims lost (SKIP LOCKED), plan */
  e=rinc[v]; rdead[v]=1; rl[v]=0; rgone[v]=0;
  if :: owner==e -> owner=0 :: else fi;
  for(k:0 .. (M-1)){ if :: cst[k]==RUN && cinc[k]==e && !glk[k] -> cst[k]=LOST; cinc[k]=0 :: else fi };
  if :: target==v -> for(k:0 .. (NN-1)){ if :: !rdead[k] -> target=k :: else fi } :: else fi; k=0; e=0;
  s4() }
inline grant(i,m){
#ifdef SAMEFENCE  /* a run asked for twice in one batch: both requests get the one fence that was drawn */
  if :: cst[m]==RUN && cinc[m]==pinc[i] -> skip :: else -> fence++; cf[m]=fence fi;
  cst[m]=RUN; cinc[m]=pinc[i];
#else
  fence++; cst[m]=RUN; cinc[m]=pinc[i]; cf[m]=fence;
#endif
  LIT(owner==pinc[i] && ALIVE(pinc[i]));                        /* S2: granted by the owner, alive */
  LIT(cf[m]>top[KEY(m)]); top[KEY(m)]=cf[m];                     /* S7 */
  for(k:0 .. (M-1)){ LIT(!(k!=m && KEY(k)==KEY(m) && cst[k]==RUN)) }; k=0;  /* S1 */
  s2=i*J; if :: jst[s2]!=0 -> s2++ :: else fi;
  jst[s2]=G; jm[s2]=m; ji[s2]=pinc[i]; jf[s2]=cf[m]; s2=0 }
#ifdef NOUNIQ
inline others(m){ oth=0 }
#else
inline others(m){ oth=0; for(k:0 .. (M-1)){ if :: k!=m && KEY(k)==KEY(m) && cst[k]==RUN -> oth=1 :: else fi }; k=0 }
#endif
#define HAS(s,i,m) (jst[s]!=0 && GATE(s) && jm[s]==m && ji[s]==pinc[i])
#if J==2
#define FREE(i) (jst[i*J]==0 || jst[i*J+1]==0)
#define MINE(i,m) (HAS(i*J,i,m) || HAS(i*J+1,i,m))
#else
#define FREE(i) (jst[i*J]==0)
#define MINE(i,m) HAS(i*J,i,m)
#endif
#define WANT(i,m) (up[i] && pinc[i]!=0 && MAYCLAIM(i,m) && FREE(i) && !MINE(i,m))
inline outcome(i,m){ others(m);
  if
  :: KNOWN -> DROP(i,m)                                                                /* known done: drop */
  :: !KNOWN && cst[m]!=RUN && !oth && fence<MAXF -> grant(i,m)
  :: !KNOWN && cst[m]==RUN && !ALIVE(cinc[m]) && !glk[m] && fence<MAXF -> grant(i,m)   /* of a dead one: take over */
#if CL>0
  :: !KNOWN && cst[m]==RUN && cinc[m]==pinc[i] && ALIVE(cinc[m]) && !glk[m] && fence<MAXF -> grant(i,m)
                                       /* our own, granted before the gate let go of it: found again by its identity */
#endif
  :: else -> skip                                                                      /* hold */
  fi; oth=0 }
/* what holds whenever a body starts: its claim runs under its fence, its node is alive, the run was never done */
inline onstart(s){
  LIT(cst[jm[s]]==RUN && cf[jm[s]]==jf[s] && ALIVE(ji[s]));     /* S2: its claim stands, its node is not dead */
  assert(!was[jm[s]]);                                          /* S6: never again after it was done */
  overlap() }
#define OWNEND(s) (cf[jm[s]]==jf[s] && (cst[jm[s]]==RUN || cst[jm[s]]==LOST))
#define SETDONE(s) cst[jm[s]]=DONE; was[jm[s]]=1; cinc[jm[s]]=0; cf[jm[s]]=0

proctype Msg(byte i; byte m){ /* consumer and claimer of process i for message m, and the broker's nemeses */
  do
#ifdef BROKER
  :: d_step{ up[i] && pinc[i]!=0 && inq[m] && !HV(i,m) && owner==pinc[i] -> HV(i,m)=1; inq[m]=0 }
  :: d_step{ HV(i,m) && !inq[m] -> inq[m]=1 }                   /* duplicate at any time */
  :: d_step{ HV(i,m) -> HV(i,m)=0; inq[m]=1 }                   /* connection lost, or given back */
#endif
#ifdef NOSHARE
  :: d_step{ WANT(i,m) && chk[i]==0 && owner==pinc[i] && ALIVE(pinc[i]) -> chk[i]=m+1 }
  :: d_step{ up[i] && chk[i]==m+1 -> chk[i]=0; if :: WANT(i,m) -> outcome(i,m) :: else fi }
#else
  :: d_step{ WANT(i,m) && owner==pinc[i] -> outcome(i,m) }
#endif
  od }

proctype Slot(byte i; byte s){
  do
#ifdef TORN   /* the child reads the incarnation, then the deadline */
  :: d_step{ jst[s]==G && sinc[i]==ji[s] -> jst[s]=T }
  :: d_step{ jst[s]==T && sdl[i]>0 -> jst[s]=X; onstart(s) }
#else
#ifdef STEPS  /* the child reads the deadline, then the incarnation, then compares that deadline with the clock */
  :: d_step{ jst[s]==G && sdl[i]>0 -> jst[s]=T; jd[s]=sdl[i] }
  :: d_step{ jst[s]==T -> if :: sinc[i]==ji[s] && jd[s]>0 -> jst[s]=X; jd[s]=0; onstart(s) :: else -> jst[s]=G; jd[s]=0 fi }
#else
#if CL>0
  :: d_step{ jst[s]==G -> jst[s]=P }                            /* the child accepts, then looks at the lease */
  :: d_step{ (jst[s]==P || jst[s]==W || jst[s]==V) && EPOK(s) && INCOK(i,s) && DLOK(i) -> jst[s]=X; onstart(s) }
  :: d_step{ up[i] && jst[s]==W ->                              /* the end of a forgotten job is recorded */
       if :: cst[jm[s]]==RUN && cf[jm[s]]==jf[s] -> cst[jm[s]]=LOST; cinc[jm[s]]=0 :: else fi; jst[s]=V }
  :: d_step{ jst[s]==V -> CLR(s) }                              /* the child has refused it, or never had it */
#else
  :: d_step{ jst[s]==G && INCOK(i,s) && DLOK(i) -> jst[s]=X; onstart(s) }
#endif
#endif
#endif
  :: d_step{ up[i] && (jst[s]==G || jst[s]==X || jst[s]==P) ->  /* given back, refused, child died, requeued: to run again */
       if :: cst[jm[s]]==RUN && cf[jm[s]]==jf[s] -> cst[jm[s]]=LOST; cinc[jm[s]]=0 :: else fi;
#ifdef BROKER
       jst[s]=R }
  :: d_step{ up[i] && jst[s]==R -> BACK(i,jm[s]);
#endif
       CLR(s) }
  /* guard in the user's transaction: row lock and check, then commit or abort */
#ifdef NOGLOCK
  :: d_step{ jst[s]==X && cst[jm[s]]==RUN && cf[jm[s]]==jf[s] -> jst[s]=XG }
#else
  :: d_step{ jst[s]==X && cst[jm[s]]==RUN && cf[jm[s]]==jf[s] && !glk[jm[s]] -> jst[s]=XG; glk[jm[s]]=1 }
#endif
  :: d_step{ jst[s]==XG -> assert(cst[jm[s]]==RUN && cf[jm[s]]==jf[s]); glk[jm[s]]=0; jst[s]=X    /* S5: none lost commits */
#ifdef EXACT
       ; assert(eff[jm[s]]==0 || eff[jm[s]]==jf[s]); eff[jm[s]]=jf[s]   /* not promised: effects of one attempt only */
#endif
     }
  :: d_step{ jst[s]==XG -> glk[jm[s]]=0; jst[s]=X }
  /* body over; end recorded: own fence and running, or late: own fence and lost; then acknowledged */
#ifdef ACKEARLY
  :: d_step{ up[i] && jst[s]==X -> jst[s]=Z; LIT(cst[jm[s]]==DONE); DROP(i,jm[s]) }  /* S6 */
  :: d_step{ up[i] && jst[s]==Z -> if :: OWNEND(s) -> SETDONE(s) :: else fi; CLR(s) }
#else
  :: d_step{ up[i] && jst[s]==X ->
       if
#ifdef LATE
       :: cst[jm[s]]!=NO -> /* S5: nobody took over */ LIT(OWNEND(s)); SETDONE(s); jst[s]=A
#else
       :: OWNEND(s) -> SETDONE(s); jst[s]=A
#endif
       :: else -> jst[s]=R fi;
#ifdef BROKER
     }
  :: d_step{ up[i] && jst[s]==A -> assert(cst[jm[s]]==DONE); DROP(i,jm[s]);  /* S6 */
#endif
       CLR(s) }
#endif
  od }

proctype Node(byte i){
  do
  :: d_step{ up[i] && !hb[i] && pinc[i]!=0 ->                   /* renewal: no expiry test; fails only if dead */
       if
       :: rinc[NM(i)]==pinc[i] && !rdead[NM(i)] -> rl[NM(i)]=TTL; CHANGED(NM(i)) hb[i]=1; ht[i]=TTL
       :: else -> pinc[i]=0; sinc[i]=0; sdl[i]=0 fi }           /* lease lost */
  :: d_step{ up[i] && !hb[i] && pinc[i]==0 && iseq<MAXI && (rdead[NM(i)] || GONE(NM(i))) ->          /* register */
       if :: !rdead[NM(i)] -> evict(NM(i)) :: else fi;          /* pid provably gone: take over at once */
       iseq++; rinc[NM(i)]=iseq; rdead[NM(i)]=0; rl[NM(i)]=TTL; pinc[i]=iseq; hb[i]=1; ht[i]=TTL;
       if :: ost && ov==NM(i) -> och=1 :: else fi }
  /* the answer, any time later */
#if defined(STEPS) || defined(TORN)   /* the writer: no deadline, the incarnation, the deadline */
  :: d_step{ up[i] && hb[i] && sinc[i]!=pinc[i] -> sdl[i]=0; sinc[i]=pinc[i] }
  :: d_step{ up[i] && hb[i] && sinc[i]==pinc[i] -> sdl[i]=ht[i]; hb[i]=0; ht[i]=0; s4(); overlap() }
#else
#ifdef DLANS
  :: d_step{ up[i] && hb[i] -> sinc[i]=pinc[i]; sdl[i]=TTL; hb[i]=0; ht[i]=0; s4(); overlap() }
#else
  :: d_step{ up[i] && hb[i] -> sinc[i]=pinc[i]; sdl[i]=ht[i]; hb[i]=0; ht[i]=0; s4(); overlap() }
#endif
#endif
  /* hand-over: released at once, running claims stay */
  :: d_step{ up[i] && pinc[i]!=0 && owner==pinc[i] && target!=NM(i) -> owner=0;
#ifdef RELCLEAR
       for(k:0 .. (M-1)){ if :: cst[k]==RUN && cinc[k]==pinc[i] && !glk[k] -> cst[k]=LOST; cinc[k]=0 :: else fi }; k=0
#endif
     }
#ifdef TAKENOW
  :: d_step{ up[i] && pinc[i]!=0 && target==NM(i) && owner!=pinc[i] && ALIVE(pinc[i]) ->
       LIT(owner==0); owner=pinc[i] }                           /* S3: only what is free is taken */
#else
#ifdef TAKENOCHK
  :: d_step{ up[i] && pinc[i]!=0 && target==NM(i) && owner==0 -> LIT(ALIVE(pinc[i])); owner=pinc[i] }  /* S3 */
#else
  :: d_step{ up[i] && pinc[i]!=0 && target==NM(i) && owner==0 && ALIVE(pinc[i]) -> owner=pinc[i] }
#endif
#endif
#if CL>0  /* the broker connection is lost: a new epoch, and what no child has accepted is forgotten */
#ifdef EPOCHLATE
  :: d_step{ up[i] && cl<CL && pinc[i]!=0 -> cl++; for(k:(i*J) .. (i*J+J-1)){ if :: jst[k]==G -> jw[k]=1 :: else fi }; k=0 }
  :: d_step{ up[i] && cl>0 && (jw[i*J] || jw[i*J+J-1]) -> for(k:(i*J) .. (i*J+J-1)){
       if :: jst[k]==G || jst[k]==P -> jz[k]=1 :: else fi;
       if :: jw[k] && (jst[k]==G || jst[k]==P) -> jst[k]=W
          :: jw[k] && jst[k]!=G && jst[k]!=P && cst[jm[k]]==RUN && cf[jm[k]]==jf[k] && !glk[jm[k]] -> cst[jm[k]]=LOST; cinc[jm[k]]=0
          :: else fi; jw[k]=0 }; k=0 }
#else
  :: d_step{ up[i] && cl<CL && pinc[i]!=0 -> cl++;
       for(k:(i*J) .. (i*J+J-1)){ if :: jst[k]==G -> jst[k]=W; jz[k]=1 :: jst[k]==P -> jz[k]=1 :: else fi };
#ifdef BROKER
       for(k:0 .. (M-1)){ BACK(i,k) };
#endif
       k=0 }
#endif
#endif
  :: d_step{ up[i] && cr<CR && pinc[i]!=0 -> cr++; up[i]=0;     /* crash of the process, and restart */
       if :: rinc[NM(i)]==pinc[i] && !rdead[NM(i)] -> rgone[NM(i)]=1 :: else fi; pinc[i]=0; hb[i]=0; ht[i]=0;
#ifdef BROKER
       for(k:0 .. (M-1)){ BACK(i,k) };
#endif
       chk[i]=0;
#ifdef ORPHAN  /* the children outlive the main process for a while */
       skip
#else
       sinc[i]=0; sdl[i]=0;
       for(k:(i*J) .. (i*J+J-1)){ if :: jst[k]==XG -> glk[jm[k]]=0 :: else fi; CLR(k); jd[k]=0 }; k=0
#endif
#ifdef BROKER
       ; nolost()
#endif
     }
#ifndef ORPHAN
  :: d_step{ !up[i] && iseq<MAXI -> up[i]=1 }
#endif
  od }
inline dec(x){ if :: x>0 -> x-- :: else fi }
proctype World(){ /* time; plans (any name, stale ones too); the observer; the settling pass */
  do
  :: d_step{ for(k:0 .. (NN-1)){ dec(rl[k]) }; for(k:0 .. (N-1)){ dec(sdl[k]); dec(ht[k]) }; k=0;
#ifdef STEPS
       for(k:0 .. (N*J-1)){ dec(jd[k]) }; k=0;
#endif
#ifdef RULE2
       if :: ot>0 -> ot-- :: else fi
#endif
     }
  :: d_step{ pv<PV && target!=0 -> target=0; pv++ }
  :: d_step{ pv<PV && target!=1 -> target=1; pv++ }
#if NN==3
  :: d_step{ pv<PV && target!=2 -> target=2; pv++ }
#endif
#ifdef RULE2  /* by the observer's clock: unchanged for a whole lease since it was read (OBSEND: since the read was sent) */
  :: d_step{ !ost && !osend -> osend=1; ot=TTL }
#ifdef OBSEND
#define SETOT skip
#else
#define SETOT ot=TTL
#endif
#define SEEN(x) (!ost && osend)
#define GO (ot==0)
#define CLEAR ost=0; ov=0; och=0; ot=0; osend=0
#else
#define SEEN(x) (!ost && rl[x]==0)
#define SETOT skip
#define GO 1
#define CLEAR ost=0; ov=0; och=0
#endif
  :: d_step{ SEEN(0) && !rdead[0] -> ost=1; ov=0; SETOT }
  :: d_step{ SEEN(1) && !rdead[1] -> ost=1; ov=1; SETOT }
#if NN==3
  :: d_step{ SEEN(2) && !rdead[2] -> ost=1; ov=2; SETOT }
#endif
  :: d_step{ ost && GO -> if :: !rdead[ov] && !och -> evict(ov) :: else fi; CLEAR }
  :: d_step{ cst[0]==RUN && !ALIVE(cinc[0]) && !glk[0] -> cst[0]=LOST; cinc[0]=0 }
#if M>1
  :: d_step{ cst[1]==RUN && !ALIVE(cinc[1]) && !glk[1] -> cst[1]=LOST; cinc[1]=0 }
#endif
  od }
init{ atomic{ byte i; byte m;
  for(i:0 .. (NN-1)){ iseq++; rinc[i]=iseq; rl[i]=TTL; pinc[i]=iseq; sinc[i]=iseq; sdl[i]=TTL };
  for(i:0 .. (N-1)){ up[i]=1 };
  owner=1; target=0;
#ifdef BROKER
  for(m:0 .. (M-1)){ inq[m]=1 };
#endif
  run World();
  for(i:0 .. (N-1)){ run Node(i); for(m:0 .. (M-1)){ run Msg(i,m) }; for(m:0 .. (J-1)){ run Slot(i,i*J+m) } };
  i=0; m=0 } }
