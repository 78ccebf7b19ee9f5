/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* tcptrace.h: the wire contract between the kernel side and pkg/events.
 *
 * Every record begins with struct event. The kernel and the agent share one
 * host, so integers are in host order, which is little-endian wherever
 * tcptrace runs; addresses are in network order, IPv4 as ::ffff:a.b.c.d.
 * A recording holds the same bytes: a change here is a new recording version.
 */
#ifndef TCPTRACE_H
#define TCPTRACE_H

enum event_kind {
	EVENT_TRANSITION = 1, /* struct transition */
	EVENT_DESTROY = 2,    /* struct event: the last reference was dropped */
	EVENT_ACCEPT = 3,     /* struct accept */
	EVENT_SOCKET = 4,     /* struct socket_row: found by an iterator */
	EVENT_FORK = 5,       /* struct process */
	EVENT_TIMEWAIT = 6,   /* struct timewait */
};

enum event_flags {
	F_OWNED = 1 << 0,   /* in a system call on this very socket */
	F_SOCKET = 1 << 1,  /* sk_socket != NULL: accepted, and not closed */
	F_DEAD = 1 << 2,    /* SOCK_DEAD: close() was called */
	F_DONE = 1 << 3,    /* SOCK_DONE: the peer's FIN has arrived */
	F_EXITING = 1 << 4, /* current is exiting (PF_EXITING) */
	F_KTHREAD = 1 << 5, /* current is nobody's process: a kernel thread, or the agent, whose
			     * iterators hold files that their owners close meanwhile */
	F_LINGER = 1 << 6,  /* SO_LINGER with a time: close() waits, and sets SOCK_DEAD late */
	F_REPAIR = 1 << 7,  /* TCP_REPAIR: closes in silence */
};

struct event {
	__u64 ktime_ns; /* CLOCK_BOOTTIME */
	__u64 skaddr;
	__u64 cookie; /* 0: the kernel has none */
	__u32 netns;
	__u8 kind;
	__u8 oldstate;
	__u8 newstate;
	__u8 flags;
};

/* A process in the PID namespace of the agent; pid 0: not visible from there,
 * or nobody's. comm is the thread group leader's, any bytes, NUL-padded. */
struct proc {
	__u32 pid;
	__u32 hidden; /* of a process that is not visible: its PID in the initial namespace */
	__u8 comm[16];
};

enum transition_more {
	MORE_LINGER2 = 1 << 0, /* TCP_LINGER2 < 0: no FIN_WAIT2 without a process */
	MORE_TAKEN = 1 << 1,   /* the first that is told of the socket: what came before was turned
				* away, since no process that --pid asks for was known to have it */
};

struct transition {
	struct event ev;
	struct proc proc; /* only with F_OWNED: a bystander's name never leaves the kernel */
	__u16 family;
	__u16 lport; /* host order; 0: not chosen yet */
	__u16 rport;
	__u8 shutdown; /* sk_shutdown: 1 RCV, 2 SEND */
	__u8 more;     /* enum transition_more */
	__u8 laddr[16];
	__u8 raddr[16];
	__u64 listener; /* LISTEN -> SYN_RECV: the listener's skaddr */
	__u32 err;      /* sk_err */
	/* These, and MORE_LINGER2, are 0 but into CLOSE_WAIT, out of it, and into CLOSE. */
	__u32 unread;   /* rcv_nxt - copied_seq, a received FIN included */
	__u64 sent;     /* payload bytes sent, without retransmissions */
	__u64 received; /* payload bytes received, a received FIN included */
};

struct accept {
	struct event ev;
	struct proc proc;
};

/* One descriptor of one process (proc.pid != 0 or fd >= 0), or a socket that
 * no descriptor was looked up for (fd -1). tr.ev.oldstate = newstate = state. */
struct socket_row {
	struct transition tr;
	/* At least so long in its state, or since the last segment, which cannot be
	 * longer ago than that; 0: unknown. */
	__u64 quiet_ns;
	__u64 unsent_ns; /* since data was sent last, cut to jiffies */
	__s32 fd;
	__u32 queued; /* bytes written and not acknowledged, a FIN included */
	__u8 kernel;  /* a socket of the kernel's own: no process can have it */
	__u8 mini;    /* what stands in for a socket: skaddr is not a struct sock's, and what is not
		       * said here is 0 */
	__u8 thread;  /* the descriptor is of a thread that shares none with the thread group's leader */
	__u8 fresh;   /* never was connected */
	__u8 guarded; /* SO_KEEPALIVE or TCP_USER_TIMEOUT: a peer that is gone will be noticed */
	__u8 stamped; /* of a minisocket: see struct timewait */
	__u8 _pad[2];
	__u64 expires_ns; /* of a minisocket: until its timer ends it */
};

/* As many rows as are read at once: twice as many are just below the kernel's
 * buffer for it (eight pages), see let_read. */
struct socket_rows {
	struct socket_row at[96];
};

enum timewait_why {
	TW_CONNECT = 1, /* it makes way for a connect() from the same port (tcp_tw_reuse) */
	TW_SYN = 2,     /* a new SYN of its peer gets a connection */
	TW_RESET = 3,   /* what its peer has sent was answered with a reset */
	TW_KILLED = 4,  /* by ss -K (SOCK_DESTROY), or with its network namespace */
	TW_OTHER = 5,   /* none of these: its time is up, or a reset has come */
	TW_AGAIN = 6,   /* of a beginning: it is none, its timer was set anew */
};

/* A minisocket begins or its timer is set anew (newstate: its tw_substate,
 * TIME_WAIT or FIN_WAIT2), or it ends (newstate CLOSE; oldstate: tw_substate).
 * An end by timer_cancel may be followed by a beginning of the same minisocket:
 * then it was none. One whose cause is known only afterwards comes again, with
 * the cause. ev.skaddr is the minisocket's address. */
struct timewait {
	struct event ev;
	__s64 left_ns; /* until its timer ends it, in jiffies; not positive: it may */
	__u16 family;
	__u16 lport;
	__u16 rport;
	__u8 why;     /* of an end, 0: not known; TW_AGAIN or 0 of a beginning */
	__u8 stamped; /* the peer sends timestamps: tcp_tw_reuse may apply */
	__u8 laddr[16];
	__u8 raddr[16];
};

struct process {
	struct event ev; /* skaddr, cookie, netns: 0 */
	struct proc proc;
	struct proc parent;
};

_Static_assert(sizeof(struct event) == 32, "wire");
_Static_assert(sizeof(struct proc) == 24, "wire");
_Static_assert(sizeof(struct transition) == 128, "wire");
_Static_assert(__builtin_offsetof(struct transition, laddr) == 64, "wire");
_Static_assert(__builtin_offsetof(struct transition, listener) == 96, "wire");
_Static_assert(sizeof(struct accept) == 56, "wire");
_Static_assert(sizeof(struct socket_row) == 168, "wire");
_Static_assert(sizeof(struct process) == 80, "wire");
_Static_assert(sizeof(struct timewait) == 80, "wire");

#endif
