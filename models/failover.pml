/* Failover of the database: a standby that lost the last commits becomes the primary.

   Two nodes, one partition, K keys, M runs. As in protocol.pml each transaction and each local action is one step, and
   time passes between any two steps, so pauses of any length are included. The standby is as old as it likes: its state
   is copied once, at any moment (Snap), and put in the place of the primary's at any later moment (Failover), on a new
   timeline. What processes know and what pool children run is of course not set back: that is the whole difficulty.

     rinc rdead owner target rec iseq fseq cst cinc cf   the database; z...: the same in the standby
     oname                 which process became owner (for S3 only)
     tl                    the timeline of the server that answers
     pinc ptl gen          a process: its incarnation, the timeline it registered on, its how-manieth registration
     wtl wt                unregistered: the timeline it has seen and what is left of its waiting
     sinc sdl              incarnation and deadline in shared memory
     ht                    the answer to a heartbeat is under way: what of the lease it will find
     jst jm ji jf jg       the pool slot: state, run, incarnation, fence, registration
     ow ov ot osame osn    one of the two watches the other: its counter stands still since; the compare-and-set would
                           succeed at the primary (osame), at the standby (osn; zch: the counter moved on since)
     top                   the largest fence that a key ever had (for S7 only)

   Rules that failover needs, and the mutant that leaves each out:
     a claim is granted only on the timeline that its node knows                             NOCLAIMTL
     fences begin with the timeline                                                          NOFENCETL
     incarnations begin with the timeline                                NOINCTL, with NORELEASE too
     nobody is declared dead on a timeline that the observer has not watched on              NOEVICTTL
     after a failover a lease is waited for before anybody registers, counted by each from
     when it saw the timeline; who has waited records the timeline, and then nobody waits    NOGRACE
     ... by a process too that knew no other timeline, since it has just started             NOFRESH
     ... and the known timeline is that of the registration, not of the first heartbeat      LATETL (with NOFRESH)  */
#ifndef M
#define M 1
#endif
#ifndef K
#define K 1
#endif
#ifndef TTL
#define TTL 2
#endif
#ifndef MAXI
#define MAXI 3
#endif
#ifndef MAXF
#define MAXF 3
#endif
#ifndef PV
#define PV 1
#endif
#ifndef CR
#define CR 1
#endif
#ifndef FO
#define FO 1
#endif
#define KEY(m) ((m)%K)
#define NO 0
#define RUN 1
#define LOST 2
#define DONE 3
#define G 1
#define X 2

/* the database and its standby */
byte rinc[2]; bit rdead[2]; byte owner, oname; bit target; byte rec, iseq, fseq;
byte cst[M], cinc[M], cf[M];
byte zrinc[2]; bit zrdead[2]; byte zowner, zoname; bit ztarget; byte zrec, ziseq, zfseq;
byte zcst[M], zcinc[M], zcf[M];
byte tl; bit snapped; byte fo, ni, nf, pv, cr;
/* the processes */
bit up[2]; byte pinc[2], ptl[2], gen[2], wtl[2], wt[2], sinc[2], sdl[2];
byte ht[2];
byte jst[2], jm[2], ji[2], jf[2], jg[2];
bit osame, osn, zch[2]; byte ow, ov, ot;
byte top[K];
byte k, e, oth;                                                   /* always 0 between steps */

#define ALIVE(x) ((rinc[0]==(x) && !rdead[0]) || (rinc[1]==(x) && !rdead[1]))
#ifdef NOINCTL
#define INCARNATION iseq
#else
#define INCARNATION (tl*16+iseq)
#endif
#ifdef NOFENCETL
#define FENCE fseq
#else
#define FENCE (tl*16+fseq)
#endif
#ifdef NOCLAIMTL
#define CLAIMTL(i) 1
#else
#define CLAIMTL(i) (ptl[i]==0 || ptl[i]==tl)
#endif
#ifdef NOEVICTTL
#define EVICTTL(i) 1
#else
#define EVICTTL(i) (ptl[i]==tl)
#endif
#ifdef NORELEASE                                                 /* so that S3 is not seen first */
#define RELEASED(i) (oname==i)
#else
#define RELEASED(i) 1
#endif
#define TRUSTS(i) (sinc[i]!=0 && sdl[i]>0)
#define BODY(i) (jst[i]==X && ji[i]==sinc[i] && sdl[i]>0)         /* a body before its own deadline */
#define CHANGE(v) if :: ow==2-(v) -> osame=0 :: else fi; if :: snapped -> zch[v]=1 :: else fi                         /* the counter in the row of v is another */
#define CLR(i) jst[i]=0; jm[i]=0; ji[i]=0; jf[i]=0; jg[i]=0
#define UNWATCH(i) if :: ow==(i)+1 -> ow=0; osame=0; osn=0; ov=0; ot=0 :: else fi

inline overlap(){ assert(!(BODY(0) && BODY(1) && KEY(jm[0])==KEY(jm[1]))) }                     /* S2: no two started */
/* one transaction: dead, its partition freed, its claims lost, a plan without it */
inline evict(v){
  assert(!(sinc[v]==rinc[v] && TRUSTS(v)));                                                     /* S4 */
  e=rinc[v]; rdead[v]=1;
  if :: owner==e -> owner=0; oname=2 :: else fi;
  for(k:0 .. (M-1)){ if :: cst[k]==RUN && cinc[k]==e -> cst[k]=LOST; cinc[k]=0 :: else fi };
  if :: target==v && !rdead[1-(v)] && rinc[1-(v)]!=0 -> target=1-(v) :: else fi; k=0; e=0 }
inline grant(i,m){
  fseq++; nf++; cst[m]=RUN; cinc[m]=pinc[i]; cf[m]=FENCE;
  assert(owner==pinc[i] && oname==i && ALIVE(pinc[i]));                                         /* S2: in its transaction */
  assert(FENCE>top[KEY(m)]); top[KEY(m)]=FENCE;                                                 /* S7 */
  jst[i]=G; jm[i]=m; ji[i]=pinc[i]; jf[i]=cf[m]; jg[i]=gen[i] }
inline others(m){ oth=0; for(k:0 .. (M-1)){ if :: k!=m && KEY(k)==KEY(m) && cst[k]==RUN -> oth=1 :: else fi }; k=0 }
inline lose(i){ pinc[i]=0; sdl[i]=0; ht[i]=0; UNWATCH(i) }                /* the incarnation stays in shared memory, as in the code */

#define MAYWAIT(i) (wtl[i]==tl && wt[i]==0)
#if defined(NOGRACE)
#define GRACE(i) 1
#elif defined(NOFRESH)                                            /* only who knew another timeline waits */
#define GRACE(i) ((ptl[i]==0 || ptl[i]==tl || wtl[i]==tl) && wt[i]==0)
#else
#define GRACE(i) (rec==tl || MAYWAIT(i))
#endif

proctype Node(byte i){
  do
  /* renewal. Whoever learns that the row is not there or the timeline is new learns it here: later would be the same as
     renewing later. Otherwise the answer is under way, for as long as it would give any trust */
  :: d_step{ up[i] && ht[i]==0 && pinc[i]!=0 ->
       if :: rinc[i]==pinc[i] && !rdead[i] -> CHANGE(i);
#ifdef LATETL
             if :: ptl[i]==0 -> ptl[i]=tl :: else fi;
#endif
             if :: ptl[i]==tl -> ht[i]=TTL;                       /* the other's counter stands still, or a new count begins */
                   if :: rinc[1-i]!=0 && !rdead[1-i] && (ow==0 || (ow==i+1 && !(osame && ov==rinc[1-i]))) ->
                         ow=i+1; ov=rinc[1-i]; ot=TTL; osame=1; osn=(snapped && !zch[1-i]) :: else fi
                :: else -> lose(i)
#ifdef NOFRESH
                     ; ptl[i]=tl; wtl[i]=tl; wt[i]=TTL
#endif
             fi
          :: else -> lose(i) fi }
  :: d_step{ ht[i]>0 -> ht[i]=0 }                                 /* its answer is lost */
  :: d_step{ ht[i]>0 -> sinc[i]=pinc[i]; sdl[i]=ht[i]; ht[i]=0; overlap() }
  /* unregistered: a timeline is seen on which nobody has waited yet */
#if !defined(NOFRESH) && !defined(NOGRACE)
  :: d_step{ up[i] && pinc[i]==0 && rec!=tl && wtl[i]!=tl -> wtl[i]=tl; wt[i]=TTL }
#endif
  /* register; a row of our own name that is not dead is our own former incarnation, or of our former process */
  :: d_step{ up[i] && pinc[i]==0 && ni<MAXI && GRACE(i) ->
       if :: rinc[i]!=0 && !rdead[i] -> evict(i) :: else fi;
       iseq++; ni++; rinc[i]=INCARNATION; rdead[i]=0; pinc[i]=rinc[i]; rec=tl; gen[i]++; CHANGE(i);
       wtl[i]=0; wt[i]=0;
#ifndef LATETL
       ptl[i]=tl;
#endif
       UNWATCH(i) }
  /* the hand-over does not wait; take only what is free and as a live node */
  :: d_step{ up[i] && pinc[i]!=0 && owner==pinc[i] && target!=i && RELEASED(i) ->
       assert(oname==i); owner=0; oname=2 }                       /* S3: by the owner */
  :: d_step{ up[i] && pinc[i]!=0 && owner==0 && target==i && rinc[i]==pinc[i] && !rdead[i] -> owner=pinc[i]; oname=i }
  /* the other is declared dead: its counter stood still for a whole lease */
  :: d_step{ up[i] && pinc[i]!=0 && ow==i+1 && ot==0 && osame && rinc[1-i]==ov && !rdead[1-i] && EVICTTL(i) ->
       evict((1-i)); UNWATCH(i) }
  /* the process dies, with its children, and starts again: it knows nothing */
  :: d_step{ up[i] && cr<CR -> cr++; up[i]=0; pinc[i]=0; ptl[i]=0; wtl[i]=0; wt[i]=0; sinc[i]=0; sdl[i]=0;
       ht[i]=0; CLR(i); UNWATCH(i) }
  :: d_step{ !up[i] && ni<MAXI -> up[i]=1 }
  od }

proctype Run(byte i; byte m){
  do
  :: d_step{ up[i] && pinc[i]!=0 && jst[i]==0 && owner==pinc[i] && rinc[i]==pinc[i] && !rdead[i] && CLAIMTL(i) && nf<MAXF &&
       cst[m]!=DONE -> others(m);
       if :: cst[m]!=RUN && !oth -> grant(i,m)
          :: cst[m]==RUN && !ALIVE(cinc[m]) -> grant(i,m)
          :: cst[m]==RUN && cinc[m]==pinc[i] -> grant(i,m)        /* claimed in a commit whose answer was lost */
          :: else -> skip fi;
       oth=0 }
  /* ... and that answer is lost */
  :: d_step{ jst[i]==G && jm[i]==m -> CLR(i) }
  :: d_step{ up[i] && jst[i]==G && jm[i]==m && sinc[i]==ji[i] && sdl[i]>0 -> jst[i]=X;
       assert(jg[i]==gen[i]);                                     /* S2: after re-registration too */
       overlap() }
  /* the end is recorded by compare-and-set on the fence; what failed over is not found, and the message stays */
  :: d_step{ up[i] && jst[i]==X && jm[i]==m ->
       if :: cf[m]==jf[i] && (cst[m]==RUN || cst[m]==LOST) -> cst[m]=DONE; cinc[m]=0; cf[m]=0 :: else fi; CLR(i) }
  :: d_step{ up[i] && (jst[i]==X || jst[i]==G) && jm[i]==m ->      /* to be run again */
       if :: cf[m]==jf[i] && cst[m]==RUN -> cst[m]=LOST; cinc[m]=0 :: else fi; CLR(i) }
  od }

#define ALL(f) f(rinc[0],zrinc[0]); f(rinc[1],zrinc[1]); f(rdead[0],zrdead[0]); f(rdead[1],zrdead[1]); f(owner,zowner); \
  f(oname,zoname); f(target,ztarget); f(rec,zrec); f(iseq,ziseq); f(fseq,zfseq)
#define SAVE(a,b) b=a
#define LOAD(a,b) a=b; b=0
inline dec(x){ if :: x>0 -> x-- :: else fi }
proctype World(){
  do
  :: d_step{ for(k:0 .. 1){ dec(sdl[k]); dec(ht[k]); dec(wt[k]) }; dec(ot); k=0 }
  :: d_step{ pv<PV -> pv++; target=1-target }
  :: d_step{ fo<FO && !snapped -> snapped=1; ALL(SAVE); zch[0]=0; zch[1]=0; osn=osame;
       for(k:0 .. (M-1)){ SAVE(cst[k],zcst[k]); SAVE(cinc[k],zcinc[k]); SAVE(cf[k],zcf[k]) }; k=0 }
  :: d_step{ snapped -> snapped=0; fo++; tl++; ALL(LOAD); zch[0]=0; zch[1]=0;
       osame=osn; osn=0;
       for(k:0 .. (M-1)){ LOAD(cst[k],zcst[k]); LOAD(cinc[k],zcinc[k]); LOAD(cf[k],zcf[k]) }; k=0 }
  :: d_step{ cst[0]==RUN && !ALIVE(cinc[0]) -> cst[0]=LOST; cinc[0]=0 }                          /* the settling pass */
  od }

init{ atomic{ byte i; byte m;
  tl=1; rec=1; oname=2;
  for(i:0 .. 1){ iseq++; ni++; rinc[i]=INCARNATION; pinc[i]=rinc[i]; ptl[i]=1; gen[i]=1; sinc[i]=pinc[i]; sdl[i]=TTL; up[i]=1 };
  owner=rinc[0]; oname=0; target=0;
  run World();
  for(i:0 .. 1){ run Node(i); for(m:0 .. (M-1)){ run Run(i,m) } };
  i=0; m=0 } }
