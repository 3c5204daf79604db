/* The transactions of the protocol, lock by lock: what the other models take for one step is taken apart here.

   Two nodes, one partition, K keys, M runs. A transaction takes its row locks one by one, waits for them as PostgreSQL
   does, reads what is committed at that moment (READ COMMITTED), and its changes are seen when it commits. Any two
   transactions interleave; each may be broken off at any lock, and the answer to a commit may be lost. There is no time
   here: a lease may end at any moment, the worst case. Two threads of each node use the database, the claimer and the
   node's own; besides there are the pool child with the user's transaction, and the leader.

     dead inc          the rows of the nodes (0 and 1)      nks nx   locks on them: FOR KEY SHARE (how many), FOR UPDATE
     owner target      the row of the partition             ps px    locks on it: FOR SHARE (how many), FOR UPDATE
     cst cinc cf       the rows of the runs' claims         cx       locks on them: FOR UPDATE
     kx                somebody is about to commit a running claim of this key: the unique index makes others wait
     seq               the sequence of fences               top      the largest fence of a key committed so far
     pinc              the incarnation a node believes in   jst jm jf ji   its job: granted, guarded; run, fence, incarnation

   Mutants: NOSHARE (the share lock on the partition's row), NONODE (the key share lock on the node's row), NOLOCKS
   (both), EARLYFENCE (the fence drawn before the locks), LATE (the late end's compare-and-set
   on the fence), NOGLOCK (guard's row lock), TAKENODE (key share lock and check when a partition is taken). */
#ifndef M
#define M 2
#endif
#ifndef K
#define K 1
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
#ifndef LOSSES
#define LOSSES 1
#endif
#define KEY(m) ((m)%K)
#define NO 0
#define RUN 1
#define LOST 2
#define DONE 3
#define J 1
#define JG 2

byte inc[2]; bit dead[2]; byte nks[2]; bit nx[2];
byte owner; bit target; byte ps; bit px;
byte cst[M], cinc[M], cf[M]; bit cx[M], kx[K];
byte seq, top[K], iseq, pv, losses;
byte pinc[2], jst[2], jm[2], jf[2], ji[2];
byte k, r;                                                       /* always 0 between steps */

#define ALIVE(x) ((inc[0]==(x) && !dead[0]) || (inc[1]==(x) && !dead[1]))
#define ME(i,x) (inc[i]==(x) && !dead[i])
inline rivals(m){ r=0; for(k:0 .. (M-1)){ if :: k!=m && KEY(k)==KEY(m) && cst[k]==RUN -> r=1 :: else fi }; k=0 }

/* The claimer's thread: ends, and claims */
proctype Claimer(byte i){ byte m, f, x; bit n, p, c;             /* x: the incarnation it claims for; n p c: locks held */
idle: skip;
end_c:
  do
  /* the end of the job: by compare-and-set on the fence, one statement; a locked row is left for later */
  :: d_step{ jst[i]==J && !cx[jm[i]] ->
       if
#ifdef LATE
       :: cst[jm[i]]==RUN || cst[jm[i]]==LOST -> assert(cf[jm[i]]==jf[i]);                      /* S5: nobody took over */
            cst[jm[i]]=DONE; cinc[jm[i]]=0
#else
       :: cf[jm[i]]==jf[i] && (cst[jm[i]]==RUN || cst[jm[i]]==LOST) -> cst[jm[i]]=DONE; cinc[jm[i]]=0
#endif
       :: cf[jm[i]]==jf[i] && (cst[jm[i]]==RUN || cst[jm[i]]==LOST) -> cst[jm[i]]=LOST; cinc[jm[i]]=0
       :: else fi; jst[i]=0; jm[i]=0; jf[i]=0; ji[i]=0 }
  :: d_step{ pinc[i]!=0 && jst[i]==0 && seq<MAXF -> x=pinc[i]; m=0 } break
#if M>1
  :: d_step{ pinc[i]!=0 && jst[i]==0 && seq<MAXF -> x=pinc[i]; m=1 } break
#endif
#if M>2
  :: d_step{ pinc[i]!=0 && jst[i]==0 && seq<MAXF -> x=pinc[i]; m=2 } break
#endif
  od;
#ifdef EARLYFENCE
  if :: d_step{ seq<MAXF -> seq++; f=seq } :: seq>=MAXF -> goto over fi;
#endif
  /* the node's row: waits for who declares it dead, then looks again */
#if defined(NONODE) || defined(NOLOCKS)
  if :: ME(i,x) -> skip :: else -> goto over fi;
#else
  if :: d_step{ !nx[i] && ME(i,x) -> nks[i]++; n=1 } :: !nx[i] && !ME(i,x) -> goto over fi;
#endif
  /* the partition's row: waits for who frees or takes it, then looks again */
#if defined(NOSHARE) || defined(NOLOCKS)
  if :: owner==x -> skip :: else -> goto over fi;
#else
  if :: d_step{ !px && owner==x -> ps++; p=1 } :: !px && owner!=x -> goto over fi;
#endif
  /* the claims of this key whose holder is dead are lost (its own statement; locked ones are left alone) */
  d_step{ for(k:0 .. (M-1)){ if :: KEY(k)==KEY(m) && cst[k]==RUN && !ALIVE(cinc[k]) && !cx[k] -> cst[k]=LOST; cinc[k]=0
                                :: else fi }; k=0 };
  /* insert or take over: the unique index makes it wait for a rival about to commit, the row for its lock */
  if :: d_step{ !kx[KEY(m)] && !cx[m] -> rivals(m);
          if :: !r && (cst[m]==NO || cst[m]==LOST || (cst[m]==RUN && cinc[m]==x)) -> kx[KEY(m)]=1; cx[m]=1; c=1
             :: else fi; r=0 } fi;
  if :: !c -> goto over :: else fi;
#ifndef EARLYFENCE
  if :: d_step{ seq<MAXF -> seq++; f=seq } :: seq>=MAXF -> goto over fi;
#endif
  if
  :: d_step{ true -> rivals(m);                                                                  /* commit */
       assert(!r); r=0;                                                                         /* S1 */
       assert(owner==x);                                            /* S2: owned the partition in that transaction */
       assert(ME(i,x));                                                                         /* S2: not evicted */
       assert(f>top[KEY(m)]); top[KEY(m)]=f;                                                    /* S7 */
       cst[m]=RUN; cinc[m]=x; cf[m]=f; cx[m]=0; kx[KEY(m)]=0; c=0;
       if :: pinc[i]==x -> jst[i]=J; jm[i]=m; jf[i]=f; ji[i]=x                                  /* the answer */
          :: losses<LOSSES -> losses++                            /* lost: found again by run and incarnation */
          :: pinc[i]!=x -> skip fi }
  :: true -> skip                                                /* broken off */
  fi;
over: atomic{
    if :: c -> cx[m]=0; kx[KEY(m)]=0 :: else fi; if :: n -> nks[i]-- :: else fi; if :: p -> ps-- :: else fi;
    n=0; p=0; c=0; m=0; f=0; x=0 };
  goto idle }

/* The node's own thread: release, take, learn of one's death, register anew */
proctype Owner(byte i){
  end_o:
  do
  :: pinc[i]!=0 && owner==pinc[i] && target!=i ->                /* release: what is no more meant for us */
       if :: d_step{ !px && ps==0 && owner==pinc[i] -> px=1 }
            if :: d_step{ true -> assert(owner==pinc[i]); owner=0; px=0 }                       /* S3: by the owner */
               :: px=0 fi
          :: !px && owner!=pinc[i] fi
  :: pinc[i]!=0 && owner==0 && target==i ->                      /* take: the node's row, then the partition's */
#ifdef TAKENODE
       if :: d_step{ !px && ps==0 && owner==0 && target==i -> px=1 }
            if :: d_step{ true -> assert(owner==0); assert(ME(i,pinc[i]));                 /* S3: free; a live node */
                          owner=pinc[i]; px=0 }
               :: px=0 fi
          :: !px && (owner!=0 || target!=i) fi
#else
       if :: d_step{ !nx[i] && ME(i,pinc[i]) -> nks[i]++ }
            if :: d_step{ !px && ps==0 && owner==0 && target==i -> px=1 }
                 if :: d_step{ true -> assert(owner==0); assert(ME(i,pinc[i]));                 /* S3: free; a live node */
                               owner=pinc[i]; px=0; nks[i]-- }
                    :: d_step{ px=0; nks[i]-- } fi
               :: d_step{ !px && (owner!=0 || target!=i) -> nks[i]-- } fi
          :: !nx[i] && !ME(i,pinc[i]) fi
#endif
  :: d_step{ pinc[i]!=0 && !ME(i,pinc[i]) -> pinc[i]=0 }         /* a heartbeat found no row */
  :: d_step{ pinc[i]==0 && dead[i] && !nx[i] && nks[i]==0 && iseq<MAXI ->  /* register (incarnation is unique: FOR UPDATE) */
       iseq++; inc[i]=iseq; dead[i]=0; pinc[i]=iseq }
  od }

/* The pool child: the user's transaction under guard */
proctype Child(byte i){ byte m, f;
  end_x:
  do
#ifdef NOGLOCK
  :: d_step{ jst[i]==J && cst[jm[i]]==RUN && cf[jm[i]]==jf[i] -> m=jm[i]; f=jf[i]; jst[i]=JG };
       if :: d_step{ true -> assert(cst[m]==RUN && cf[m]==f); jst[i]=J; m=0; f=0 }               /* S5 */
          :: d_step{ true -> jst[i]=J; m=0; f=0 } fi
#else
  :: jst[i]==J ->
       if
       :: d_step{ jst[i]==J && !cx[jm[i]] && cst[jm[i]]==RUN && cf[jm[i]]==jf[i] -> m=jm[i]; f=jf[i]; cx[m]=1; jst[i]=JG }
            if :: d_step{ true -> assert(cst[m]==RUN && cf[m]==f); cx[m]=0; jst[i]=J; m=0; f=0 }  /* S5: none lost commits */
               :: d_step{ true -> cx[m]=0; jst[i]=J; m=0; f=0 } fi
       :: jst[i]!=J
       :: !cx[jm[i]] && !(cst[jm[i]]==RUN && cf[jm[i]]==jf[i])   /* Fenced */
       fi
#endif
  od }

/* The leader: declares v dead, frees what it had, plans without it. Then the settling pass */
proctype Leader(){ byte v, e; bit h;
  end_l:
  do
  :: d_step{ pv<PV -> pv++; target=1-target }            /* a plan: waits for nobody here (its row lock is short) */
  :: if :: !dead[0] -> v=0 :: !dead[1] -> v=1 fi;
       d_step{ !nx[v] && nks[v]==0 -> e=inc[v]; nx[v]=1 };       /* FOR UPDATE: waits for claims and takes under way */
       if :: owner==e -> d_step{ !px && ps==0 -> px=1; h=1 } :: else fi;
       d_step{ true -> dead[v]=1; nx[v]=0;                       /* commit; claims: SKIP LOCKED, as committed by now */
         if :: h && owner==e -> owner=0 :: else fi; if :: h -> px=0; h=0 :: else fi;
         for(k:0 .. (M-1)){ if :: cst[k]==RUN && cinc[k]==e && !cx[k] -> cst[k]=LOST; cinc[k]=0 :: else fi }; k=0;
         if :: target==v && !dead[1-v] -> target=1-v :: else fi; v=0; e=0 }
  :: d_step{ owner!=0 && !ALIVE(owner) && !px && ps==0 -> owner=0 }
  :: d_step{ cst[0]==RUN && !ALIVE(cinc[0]) && !cx[0] -> cst[0]=LOST; cinc[0]=0 }
#if M>1
  :: d_step{ cst[1]==RUN && !ALIVE(cinc[1]) && !cx[1] -> cst[1]=LOST; cinc[1]=0 }
#endif
  od }

init{ atomic{ byte i;
  for(i:0 .. 1){ iseq++; inc[i]=iseq; pinc[i]=iseq };
  owner=1; target=0;
  run Leader();
  for(i:0 .. 1){ run Claimer(i); run Owner(i); run Child(i) }; i=0 } }
