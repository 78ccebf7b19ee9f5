// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* tcptrace.bpf.c: what tcptrace runs in the kernel.
 *
 * sock:inet_sock_set_state hands over every state transition of every TCP
 * socket. Each becomes one record in one ring buffer, in the order in which
 * the socket went through them. All judgement is left to the agent; the
 * kernel side only copies, and turns away early what a filter excludes for
 * certain.
 *
 * Kernel memory is read by direct BTF loads. They cost less than bpf_probe_read
 * and are allowed under lockdown=confidentiality, which refuses the latter.
 * Only what an old kernel gives no type for is read the other way (see READ).
 *
 * The programs that trace:
 *   set_state, set_state_nested  the transitions; see set_state_nested for why two
 *   destroy_sock                 a socket's memory is released
 *   accept_exit, accept_syscall  who accepted; the agent attaches one of them
 *   process_fork                 who is whose child
 *   ..._raw                      the same for a kernel without types
 *   timewait_*                   minisockets: TIME_WAIT, and FIN_WAIT2 without a process
 *   timer_*                      the same where functions cannot be traced
 * and those that the agent runs:
 *   dump_tcp, dump_files         sockets that exist, and who holds them
 *   look_timewait                what has become of some minisockets
 *   try_*                        nothing: whether they load is what counts
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "tcptrace.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Since 6.2. What it returns can be read, and no helper takes it. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

#define CAST(type, addr) ((type *)bpf_rdonly_cast((const void *)(addr), bpf_core_type_id_kernel(type)))

/* The wire types, for the generated Go code: a test holds pkg/events to them. */
const struct transition *unused_transition __attribute__((unused));
const struct event *unused_event __attribute__((unused));
const struct accept *unused_accept __attribute__((unused));
const struct socket_row *unused_socket_row __attribute__((unused));
const struct socket_rows *unused_socket_rows __attribute__((unused));
const struct process *unused_process __attribute__((unused));
const struct timewait *unused_timewait __attribute__((unused));

/* Set by the agent before the programs are loaded, so that the verifier drops
 * the branches that a run does not need, or that the kernel has not got the
 * helpers for. */
const volatile __u32 pidns_inum;      /* 0: the agent is in the initial PID namespace */
const volatile __u32 self_pid;        /* the agent's, in its own PID namespace */
const volatile __u64 jiffy_ns;        /* one jiffy */
const volatile bool may_probe;        /* bpf_probe_read_{kernel,user} are allowed */
const volatile bool has_cookies;      /* bpf_get_socket_cookie, since 5.12 */
const volatile bool has_task;         /* bpf_get_current_task_btf, since 5.11 */
const volatile bool has_numbers;      /* pid.numbers is declared with its length open, since 6.6 */
const volatile __u64 wakeup_bytes;    /* unread bytes from which the reader is woken */
const volatile bool filter_pids;      /* by notes and asked; needs has_cookies, has_task and bpf_sk_storage_get (5.11) */
const volatile bool filter_follow;
const volatile __u32 filter_netns;    /* 0: all */
const volatile __u16 filter_family;   /* 0: both */
const volatile bool filter_lport;
const volatile bool filter_rport;
const volatile bool filter_remote;
const volatile __u8 lports[65536 / 8]; /* bit sets */
const volatile __u8 rports[65536 / 8];

/* Written by the tracing programs, read by the agent. When it is full, the
 * record is dropped and counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} events SEC(".maps");

/* The books. A transition is counted once: in filtered, or in seen, and of these once
 * more in ring_full if it goes no further. */
struct counters {
	__u64 seen;
	__u64 filtered;
	__u64 ring_full;
	__u64 rescued; /* runs of set_state_nested that found work, other protocols' too */
	__u64 records_lost; /* records that are not transitions: no place in the ring */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* The transition that set_state handled last on this CPU. Written by
 * set_state, read by set_state_nested. */
struct last {
	__u64 skaddr;
	__u64 states;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last);
} last_seen SEC(".maps");

/* What is noted on a socket, under filter_pids only: one that a process asked for has or
 * had, or the child of such a listener, to which the kernel clones the note (F_CLONE). All
 * other sockets are turned away. Written by wants() and by dump, freed by the kernel with
 * the socket. */
struct note {
	__u8 told; /* the agent has been told of the socket */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct note);
} notes SEC(".maps");

/* The states that the iterators look for, a bit set. Written by the agent before
 * it opens one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} wanted SEC(".maps");

struct remote_key {
	__u32 prefixlen;
	__u8 addr[16];
};

/* --remote, IPv4 as ::ffff:0:0/96. Written by the agent before attaching. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct remote_key);
	__type(value, __u8);
} remotes SEC(".maps");

/* Reads a member, through pointers if there are several: directly where the
 * verifier knows the type of p, by bpf_probe_read_kernel where it does not. The
 * functions that may be in either place say which by a parameter that hides this
 * constant; as they are inlined, one way is left of the two. */
static const bool probed = false;

#define READ(p, ...) (probed ? BPF_CORE_READ(p, __VA_ARGS__) : ___arrow(p, __VA_ARGS__))
#define READ_BITFIELD(p, member) \
	(probed ? BPF_CORE_READ_BITFIELD_PROBED(p, member) : BPF_CORE_READ_BITFIELD(p, member))

/* Waking the reader costs more than the record (an irq_work and a task switch,
 * and softirqs on top of this program). It reads on a deadline of its own and
 * is woken only when the ring fills faster than that. */
static __always_inline __u64 submit_flags(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= wakeup_bytes ?
		       BPF_RB_FORCE_WAKEUP :
		       BPF_RB_NO_WAKEUP;
}

static __always_inline struct counters *counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counts, &zero);
}

/* A softirq may interrupt a program between load and store of the same
 * counter, hence atomic. */
#define COUNT(c, field) \
	do { \
		if (c) \
			__sync_fetch_and_add(&(c)->field, 1); \
	} while (0)

static __always_inline void copy_addr(__u8 *to, const struct in6_addr *from, bool probed)
{
	__u32 *t = (__u32 *)to;

	if (probed) {
		bpf_core_read(to, 16, from);
		return;
	}
	t[0] = from->in6_u.u6_addr32[0];
	t[1] = from->in6_u.u6_addr32[1];
	t[2] = from->in6_u.u6_addr32[2];
	t[3] = from->in6_u.u6_addr32[3];
}

static __always_inline void map_addr(__u8 *to, __be32 from)
{
	__u32 *t = (__u32 *)to;

	t[0] = 0;
	t[1] = 0;
	t[2] = bpf_htonl(0xffff);
	t[3] = from;
}

/* The process's PID as the agent's PID namespace has it: struct pid carries a
 * number for each level of namespaces from the initial one down. */
static __always_inline __u32 pid_in_namespace(struct pid *pid, bool probed)
{
	unsigned int level;

	if (!pid)
		return 0;
	level = READ(pid, level);
	/* The verifier holds direct loads to the length that an array is declared with. */
	if (probed || !has_numbers) {
		if (!may_probe)
			return 0;
		for (int i = 1; i < 8; i++) {
			const struct upid *at = (const struct upid *)((__u64)pid + bpf_core_field_offset(pid->numbers) +
								      i * bpf_core_type_size(struct upid));

			if (level < i)
				break;
			if (BPF_CORE_READ(at, ns, ns.inum) == pidns_inum)
				return BPF_CORE_READ(at, nr);
		}
		return 0;
	}
#pragma unroll
	for (int i = 1; i < 8; i++) {
		if (level < i)
			break;
		if (pid->numbers[i].ns->ns.inum == pidns_inum)
			return pid->numbers[i].nr;
	}
	return 0;
}

static __always_inline __u32 pid_of(struct task_struct *task, bool probed)
{
	return pidns_inum ? pid_in_namespace(READ(task, group_leader, thread_pid), probed) : READ(task, tgid);
}

static __always_inline void copy_proc(struct proc *p, struct task_struct *task, bool probed)
{
	struct task_struct *leader = READ(task, group_leader);
	__u64 *comm = (__u64 *)p->comm;

	p->pid = pid_of(task, probed);
	p->hidden = p->pid ? 0 : READ(task, tgid);
	/* Threads have names of their own; users know the process by its leader's. */
	if (probed) {
		bpf_core_read(comm, sizeof(p->comm), &leader->comm);
		return;
	}
	comm[0] = ((__u64 *)leader->comm)[0];
	comm[1] = ((__u64 *)leader->comm)[1];
}

static __always_inline void no_proc(struct proc *p)
{
	__u64 *w = (__u64 *)p;

	w[0] = 0;
	w[1] = 0;
	w[2] = 0;
}

/* The current task's process, and its flags (PF_*). Where they cannot be read, it is
 * nobody's. */
static __always_inline unsigned int copy_current(struct proc *p)
{
	struct task_struct *task;

	if (has_task) {
		task = bpf_get_current_task_btf();
		copy_proc(p, task, false);
		return task->flags;
	}
	if (!may_probe) {
		no_proc(p);
		return PF_KTHREAD;
	}
	task = (struct task_struct *)bpf_get_current_task();
	copy_proc(p, task, true);
	return BPF_CORE_READ(task, flags);
}

static __always_inline void copy_header(struct event *ev, const struct sock *sk, __u8 kind, bool probed)
{
	ev->ktime_ns = bpf_ktime_get_boot_ns();
	ev->skaddr = (__u64)sk;
	ev->netns = READ(sk, __sk_common.skc_net.net, ns.inum);
	ev->kind = kind;
	ev->oldstate = 0;
	ev->newstate = 0;
	ev->flags = 0;
}

/* All of the ends but the local port, which is not always there. */
#define COPY_ENDS(e, skc) \
	do { \
		(e)->family = READ(skc, skc_family); \
		(e)->rport = bpf_ntohs(READ(skc, skc_dport)); \
		if ((e)->family == AF_INET6) { \
			copy_addr((e)->laddr, &(skc)->skc_v6_rcv_saddr, probed); \
			copy_addr((e)->raddr, &(skc)->skc_v6_daddr, probed); \
		} else { \
			map_addr((e)->laddr, READ(skc, skc_rcv_saddr)); \
			map_addr((e)->raddr, READ(skc, skc_daddr)); \
		} \
	} while (0)

/* Before CLOSE the port is already given back (skc_num 0) but still written in
 * inet_sport. Where a connection begins it is the other way round: inet_sport may be
 * left over from an earlier one. */
static __always_inline __u16 local_port(const struct sock *sk, const struct tcp_sock *tp, int newstate,
					bool probed)
{
	if (newstate == TCP_CLOSE && tp)
		return bpf_ntohs(READ(tp, inet_conn.icsk_inet.inet_sport));
	return READ(sk, __sk_common.skc_num);
}

/* Everything of a transition but its process and its header's states. What is read through tp
 * costs more than what is read through sk, which the verifier trusts: a load that may fault has
 * its address checked first. So tp is NULL where its part does not matter. */
static __always_inline void copy_socket(struct transition *e, const struct sock *sk,
					const struct tcp_sock *tp, int newstate, bool probed)
{
	const struct sock_common *skc = &sk->__sk_common;
	unsigned long skflags = READ(skc, skc_flags);
	__u8 flags = 0;

	e->lport = local_port(sk, tp, newstate, probed);
	COPY_ENDS(e, skc);
	e->shutdown = READ(sk, sk_shutdown);
	e->err = READ(sk, sk_err);
	if (tp) {
		e->more = READ(tp, linger2) < 0 ? MORE_LINGER2 : 0;
		e->unread = READ(tp, rcv_nxt) - READ(tp, copied_seq);
		e->sent = READ(tp, bytes_sent) - READ(tp, bytes_retrans);
		e->received = READ(tp, bytes_received);
	} else {
		e->more = 0;
		e->unread = 0;
		e->sent = 0;
		e->received = 0;
	}

	if (READ(sk, sk_lock.owned))
		flags |= F_OWNED;
	if (READ(sk, sk_socket))
		flags |= F_SOCKET;
	if (skflags & (1UL << SOCK_DEAD))
		flags |= F_DEAD;
	if (skflags & (1UL << SOCK_DONE))
		flags |= F_DONE;
	if ((skflags & (1UL << SOCK_LINGER)) && READ(sk, sk_lingertime))
		flags |= F_LINGER;
	if (newstate == TCP_CLOSE && tp && READ_BITFIELD(tp, repair))
		flags |= F_REPAIR;
	e->ev.flags = flags;
}

/* The processes that --pid asks for: bit sets by PID. asked is set by the agent, and cleared
 * by process_fork, which that may undo: then sockets reach the agent in vain, which decides
 * again. heirs, their children, are process_fork's alone. As large as PIDs can be
 * (PID_MAX_LIMIT) if filter_pids, filter_follow. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} asked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heirs SEC(".maps");

static __always_inline __u64 *pid_word(void *set, __u32 pid)
{
	__u32 place = pid / 64;

	return bpf_map_lookup_elem(set, &place);
}

static __always_inline bool has_pid(void *set, __u32 pid)
{
	__u64 *word = pid_word(set, pid);

	return word && (*word >> pid % 64 & 1);
}

/* Nothing else changes this very bit: a PID is given by one fork at a time. So an atomic
 * addition sets and clears it, which every kernel has. */
static __always_inline void set_pid(void *set, __u32 pid, bool to)
{
	__u64 *word = pid_word(set, pid);
	__u64 bit = 1ULL << pid % 64;

	if (word && !(*word & bit) == to)
		__sync_fetch_and_add(word, to ? bit : -bit);
}

static __always_inline bool is_asked(struct task_struct *task)
{
	__u32 pid = pid_of(task, false);

	return has_pid(&asked, pid) || (filter_follow && has_pid(&heirs, pid));
}

/* The children of a process that is asked for are too; and whoever had the PID of a new
 * process before has exited. */
static __always_inline void inherit(struct task_struct *parent, struct task_struct *child)
{
	__u32 pid = pid_of(child, false);

	set_pid(&asked, pid, false);
	if (filter_follow)
		set_pid(&heirs, pid, is_asked(parent));
}

/* Cookies of noted sockets that have sent a FIN: a minisocket may take over, which has no
 * notes. The value says that one has. The oldest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u8);
} closing SEC(".maps");

/* What a process asked for has had since before it was traced, and what leads to sockets
 * that no note could be put on: the address of an MPTCP socket's first subflow, which
 * helpers do not take from dump_files, so that of a listener its children inherit none; and
 * port_key() of a listener, for its accept queue.
 * Written by dump_files, read by dump_tcp and wants. The oldest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u8);
} held SEC(".maps");

/* Not to be mistaken for an address. */
static __always_inline __u64 port_key(const struct sock_common *skc, bool probed)
{
	return (__u64)READ(skc, skc_net.net, ns.inum) << 16 | READ(skc, skc_num);
}

static __always_inline void hold(__u64 key)
{
	__u8 held_by_someone = 1;

	bpf_map_update_elem(&held, &key, &held_by_someone, BPF_ANY);
}

static __always_inline void expect_minisocket(const struct sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie((void *)sk);
	__u8 over = 0;

	bpf_map_update_elem(&closing, &cookie, &over, BPF_ANY);
}

/* It is not in FIN_WAIT1, FIN_WAIT2 or CLOSING any more. */
static __always_inline void expect_no_minisocket(const struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;
	__u8 *over = bpf_map_lookup_elem(&closing, &cookie);

	if (over && !*over)
		bpf_map_delete_elem(&closing, &cookie);
}

/* Reports whether the agent is told of a minisocket with this cookie. */
static __always_inline bool wants_minisocket(__u64 cookie)
{
	return !filter_pids || bpf_map_lookup_elem(&closing, &cookie);
}

static __always_inline bool may_become_minisocket(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING;
}

/* The listener of a child that is being announced, by its address; 0: not known. A child is
 * a copy (sk_clone_lock), and announced before tcp_create_openreq_child() empties its lists.
 * A listener's are empty, and the head of an empty list points to itself: so that of the
 * copy points to the listener's. Unlike the address it is bound to, this tells listeners that
 * share a port (SO_REUSEPORT) apart. */
static __always_inline __u64 listener_of_child(const struct sock *sk, bool probed)
{
	const struct tcp_sock *tp = probed ? (const struct tcp_sock *)sk :
					     (const struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
	const struct list_head *head;

	if (!tp)
		return 0;
	head = READ(tp, tsorted_sent_queue.next);
	if (!head || head == &tp->tsorted_sent_queue || READ(head, next) != head)
		return 0;
	return (__u64)head - bpf_core_field_offset(tp->tsorted_sent_queue);
}

/* NULL is the answer for nearly all sockets, and costs one load. */
static __always_inline struct note *note_of(const struct sock *sk)
{
	return sk->sk_bpf_storage ? bpf_sk_storage_get(&notes, (void *)sk, 0, 0) : NULL;
}

static __always_inline struct note *make_note(const struct sock *sk)
{
	struct note *n = bpf_sk_storage_get(&notes, (void *)sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!n) {
		struct counters *c = counters();

		COUNT(c, records_lost);
	}
	return n;
}

/* Reports whether a socket that makes a transition is one that a process asked for has or
 * had, or the child of such a listener; and whether the agent hears of it for the first
 * time. What a process does with a socket in a system call shows that it has it. */
static __always_inline bool wants(const struct sock *sk, bool born, bool *taken)
{
	struct note *n = note_of(sk);

	if (!n) {
		if (born) {
			__u64 key = listener_of_child(sk, false) ?: port_key(&sk->__sk_common, false);

			if (!bpf_map_lookup_elem(&held, &key))
				return false;
		} else if (!sk->sk_lock.owned || !is_asked(bpf_get_current_task_btf())) {
			return false;
		}
		n = make_note(sk);
	}
	*taken = !n || !n->told;
	if (n)
		n->told = 1;
	return true;
}

static __always_inline bool has_port(const volatile __u8 *set, __u16 port)
{
	__u32 place = port / 8;

	/* The compiler knows that it is small; the verifier of 5.10 has to be shown. */
	barrier_var(place);
	return set[place & (65536 / 8 - 1)] & (1 << (port & 7));
}

static __always_inline bool excluded_peer(const struct sock_common *skc, bool probed)
{
	struct remote_key key = { .prefixlen = 128 };
	bool mapped;

	if (filter_rport && !has_port(rports, bpf_ntohs(READ(skc, skc_dport))))
		return true;
	if (!filter_family && !filter_remote)
		return false;
	if (READ(skc, skc_family) != AF_INET6)
		map_addr(key.addr, READ(skc, skc_daddr));
	else
		copy_addr(key.addr, &skc->skc_v6_daddr, probed);
	mapped = ((__u32 *)key.addr)[0] == 0 && ((__u32 *)key.addr)[1] == 0 &&
		 ((__u32 *)key.addr)[2] == bpf_htonl(0xffff);
	if (filter_family && (filter_family == AF_INET) != mapped)
		return true;
	return filter_remote && !bpf_map_lookup_elem(&remotes, &key);
}

/* Reports whether a filter excludes this transition for certain. The agent
 * decides again with all it knows. What is not known yet must pass: the local
 * port of a client before it leaves SYN_SENT, the peer of a child before it is
 * ESTABLISHED (kernels before 6.15 announce it without). The transition that
 * makes it known passes too, so that the agent can forget a socket that turned
 * out not to match. */
static __always_inline bool excluded(const struct sock *sk, const struct tcp_sock *tp, int oldstate,
				     int newstate, bool probed)
{
	if (filter_netns && READ(sk, __sk_common.skc_net.net, ns.inum) != filter_netns)
		return true;

	/* A listener matters for its children, whatever it is itself; and listen()
	 * on an unbound socket is announced before it has a port. */
	if (newstate == TCP_LISTEN || (oldstate == TCP_LISTEN && newstate == TCP_CLOSE))
		return false;

	if (filter_lport && newstate != TCP_SYN_SENT && oldstate != TCP_SYN_SENT &&
	    !has_port(lports, local_port(sk, tp, newstate, probed)))
		return true;

	if (oldstate == TCP_LISTEN || oldstate == TCP_SYN_RECV)
		return false;

	return excluded_peer(&sk->__sk_common, probed);
}

/* The process that is in a system call on the socket. */
static __always_inline void copy_owner(struct transition *e, int newstate)
{
	unsigned int pf = copy_current(&e->proc);

	if (pf & PF_KTHREAD) {
		e->ev.flags |= F_KTHREAD;
		no_proc(&e->proc);
		return;
	}
	if (pf & PF_EXITING)
		e->ev.flags |= F_EXITING;
	/* An iterator of the agent's may be the last to let go of a file, or hold
	 * a socket's lock: that makes it nobody's owner. */
	if (e->proc.pid == self_pid && newstate != TCP_SYN_SENT && newstate != TCP_LISTEN) {
		e->ev.flags |= F_KTHREAD;
		no_proc(&e->proc);
	}
}

/* The socket that a task is in connect() with, by its PID's low bits: two that
 * share a place at once hide each other. Written by emit, read by timer_ends. */
struct connecting {
	__u64 task;
	__u64 skaddr;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct connecting);
} connecting SEC(".maps");

static __always_inline struct connecting *connecting_of(struct task_struct *task)
{
	__u32 place = task->pid & 1023;

	return bpf_map_lookup_elem(&connecting, &place);
}

static __always_inline void emit(const struct sock *sk, int oldstate, int newstate, bool probed)
{
	bool born = oldstate == TCP_LISTEN && newstate != TCP_CLOSE;
	struct counters *c = counters();
	const struct tcp_sock *tp = NULL;
	struct transition *e;
	bool taken = false;
	__u64 cookie;

	if (newstate == TCP_SYN_SENT && bpf_rdonly_cast && !probed) {
		struct task_struct *task = bpf_get_current_task_btf();
		struct connecting *at = connecting_of(task);

		if (at) {
			at->task = (__u64)task;
			at->skaddr = (__u64)sk;
		}
	}
	if (filter_pids && !probed && !wants(sk, born, &taken)) {
		COUNT(c, filtered);
		return;
	}
	if (newstate == TCP_CLOSE || newstate == TCP_CLOSE_WAIT || oldstate == TCP_CLOSE_WAIT) {
		tp = probed ? (const struct tcp_sock *)sk :
			      (const struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
		if (!tp)
			return;
	}
	if (excluded(sk, tp, oldstate, newstate, probed)) {
		COUNT(c, filtered);
		return;
	}
	COUNT(c, seen);
	if (filter_pids && !probed) {
		if (newstate == TCP_FIN_WAIT1)
			expect_minisocket(sk);
		else if (newstate == TCP_CLOSE && may_become_minisocket(oldstate))
			expect_no_minisocket(sk);
	}
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		COUNT(c, ring_full);
		return;
	}
	copy_header(&e->ev, sk, EVENT_TRANSITION, probed);
	e->ev.oldstate = oldstate;
	e->ev.newstate = newstate;
	e->listener = 0;
	cookie = READ(sk, __sk_common.skc_cookie.counter);
	/* Before 6.15 a child is announced while it is a mere copy of its listener,
	 * cookie included. It has none of its own yet, nor should it be given one. */
	if (born && !READ(sk, __sk_common.skc_dport))
		cookie = 0;
	else if (!cookie && has_cookies && !probed)
		cookie = bpf_get_socket_cookie((void *)sk);
	e->ev.cookie = cookie;
	copy_socket(e, sk, tp, newstate, probed);
	if (taken)
		e->more |= MORE_TAKEN;
	no_proc(&e->proc);
	if (e->ev.flags & F_OWNED)
		copy_owner(e, newstate);
	if (born)
		e->listener = listener_of_child(sk, probed);
	/* How full the ring is does not change much from one to the next. */
	bpf_ringbuf_submit(e, c && !(c->seen & 15) ? submit_flags() : BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, const struct sock *sk, const int oldstate, const int newstate)
{
	__u32 zero = 0;
	struct last *last = bpf_map_lookup_elem(&last_seen, &zero);

	if (last) {
		last->skaddr = (__u64)sk;
		last->states = (__u64)oldstate << 32 | (__u32)newstate;
	}
	/* MPTCP's outer socket (262), SCTP and DCCP announce themselves here too. */
	if (sk->sk_protocol == IPPROTO_TCP)
		emit(sk, oldstate, newstate, false);
	return 0;
}

/* From 6.1 on the kernel skips a tracing program that is already running on
 * this CPU. A softirq that interrupts set_state would so lose its transitions
 * in silence. This second program, attached after the first, runs in the
 * softirq too: what set_state has not left its mark for, it was not given.
 * When it is itself interrupted, between the mark and the comparison, the
 * outer transition is sent twice; the agent drops the second. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_nested, const struct sock *sk, const int oldstate, const int newstate)
{
	__u32 zero = 0;
	struct last *last = bpf_map_lookup_elem(&last_seen, &zero);
	struct counters *c;

	if (!last || (last->skaddr == (__u64)sk &&
		      last->states == ((__u64)oldstate << 32 | (__u32)newstate)))
		return 0;
	c = counters();
	COUNT(c, rescued);
	if (sk->sk_protocol == IPPROTO_TCP)
		emit(sk, oldstate, newstate, false);
	return 0;
}

/* For a kernel without types of its own: they come from a file, and what is read
 * has none for the verifier. */
SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(set_state_raw, const struct sock *sk, const int oldstate, const int newstate)
{
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		emit(sk, oldstate, newstate, true);
	return 0;
}

static __always_inline void emit_destroy(const struct sock *sk, bool probed)
{
	struct counters *c;
	struct event *e;

	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return;
	if (filter_pids && !probed && !note_of(sk))
		return;
	if (filter_netns && READ(sk, __sk_common.skc_net.net, ns.inum) != filter_netns)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		c = counters();
		COUNT(c, records_lost);
		return;
	}
	copy_header(e, sk, EVENT_DESTROY, probed);
	e->cookie = READ(sk, __sk_common.skc_cookie.counter);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroy_sock, struct sock *sk)
{
	emit_destroy(sk, false);
	return 0;
}

SEC("raw_tp/tcp_destroy_sock")
int BPF_PROG(destroy_sock_raw, struct sock *sk)
{
	emit_destroy(sk, true);
	return 0;
}

/* The sock behind a descriptor of the current task, or NULL.
 * Needs bpf_rdonly_cast (6.2), so that these too are direct loads. */
static __always_inline const struct sock *sock_of_fd(struct task_struct *task, long fd)
{
	struct fdtable *fdt;
	struct socket *socket;
	struct inode *inode;
	struct file *file;

	if (!task->files)
		return NULL;
	fdt = task->files->fdt;
	if (fd < 0 || fd >= fdt->max_fds)
		return NULL;
	file = (struct file *)CAST(struct hlist_head, (__u64)fdt->fd + fd * sizeof(void *))->first;
	if (!file)
		return NULL;
	file = CAST(struct file, file);
	inode = file->f_inode;
	if ((inode->i_mode & S_IFMT) != S_IFSOCK || inode->i_sb->s_magic != SOCKFS_MAGIC)
		return NULL;
	socket = CAST(struct socket, file->private_data);
	return socket->sk;
}

static __always_inline void emit_accept(const struct sock *sk)
{
	struct counters *c;
	struct accept *e;

	if (sk->sk_protocol != IPPROTO_TCP)
		return;
	/* Who else accepts what a process asked for could have had, must be known too. No
	 * helper takes sk, so that somebody else's notes pass. */
	if (filter_pids && !sk->sk_bpf_storage && !is_asked(bpf_get_current_task_btf()))
		return;
	if (filter_netns && sk->__sk_common.skc_net.net->ns.inum != filter_netns)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		c = counters();
		COUNT(c, records_lost);
		return;
	}
	copy_header(&e->ev, sk, EVENT_ACCEPT, false);
	e->ev.cookie = sk->__sk_common.skc_cookie.counter;
	if (copy_current(&e->proc) & PF_KTHREAD) /* kernel_accept() of a kernel service */
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
	else
		bpf_ringbuf_submit(e, submit_flags());
}

/* io_uring's workers come this way too, and carry their process's tgid. */
SEC("fexit/inet_accept")
int BPF_PROG(accept_exit, struct socket *sock, struct socket *newsock)
{
	struct sock *sk = newsock->sk;

	/* A failed accept() has made no sock. */
	if (sk)
		emit_accept(sk);
	return 0;
}

/* Where trampolines (fexit) are refused. It runs at the end of every system
 * call of the host, so what is not accept must leave at once. */
SEC("tp_btf/sys_exit")
int BPF_PROG(accept_syscall, struct pt_regs *regs, long ret)
{
	const struct sock *sk;
	long nr;

	if (ret < 0)
		return 0;
	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		nr = ((struct pt_regs___x86 *)regs)->orig_ax;
		if (nr != 43 && nr != 288)
			return 0;
	} else {
		nr = ((struct pt_regs___arm64 *)regs)->syscallno;
		if (nr != 202 && nr != 242)
			return 0;
	}
	sk = sock_of_fd(bpf_get_current_task_btf(), ret);
	if (sk)
		emit_accept(sk);
	return 0;
}

static __always_inline void emit_fork(struct task_struct *parent, struct task_struct *child, bool probed)
{
	struct counters *c;
	struct process *e;

	if (READ(child, pid) != READ(child, tgid)) /* a thread */
		return;
	if (filter_pids && !probed)
		inherit(parent, child);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		c = counters();
		COUNT(c, records_lost);
		return;
	}
	__builtin_memset(&e->ev, 0, sizeof(e->ev));
	e->ev.ktime_ns = bpf_ktime_get_boot_ns();
	e->ev.kind = EVENT_FORK;
	copy_proc(&e->proc, child, probed);
	copy_proc(&e->parent, parent, probed);
	if (e->proc.pid)
		bpf_ringbuf_submit(e, submit_flags());
	else /* of another PID namespace */
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	emit_fork(parent, child, false);
	return 0;
}

SEC("raw_tp/sched_process_fork")
int BPF_PROG(process_fork_raw, struct task_struct *parent, struct task_struct *child)
{
	emit_fork(parent, child, true);
	return 0;
}


/* tw_timer_handler(), the function of a minisocket's timer. The first minisocket
 * that dump_mini comes across shows its address, which no symbol does without
 * CAP_SYSLOG. */
__u64 tw_handler;

/* Packets are watched too, so that an end without a packet that explains it has
 * another reason. Written by the agent. */
__u8 sees_packets;

/* A compiler may inline what is hooked, and then nothing comes. While the agent proves that
 * it does, with a minisocket of its own, this is 1 and nothing is sent; what has come is
 * noted. */
__u8 proving;
__u8 proven_begin;
__u8 proven_end;

/* What a packet does to a minisocket, on this CPU. */
struct packet {
	__u64 twaddr; /* the minisocket that it was for; 0: none */
	__u64 ktime;  /* when it came */
	__u64 hashed; /* the minisocket that inet_twsk_hashdance_schedule() was called for last */
	__u8 why;
	__u8 tries;            /* timers that may be the one of a connection in place of ended */
	struct timewait ended; /* by a packet, it seems */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

static __always_inline struct packet *packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packets, &zero);
}

static __always_inline bool same_addr(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* Reports whether a socket has the very ends that a minisocket has or had. */
static __always_inline bool has_ends_of(const struct sock_common *skc, const struct timewait *tw)
{
	struct {
		__u16 family, lport, rport, _pad;
		__u8 laddr[16];
		__u8 raddr[16];
	} ends;

	if (skc->skc_num != tw->lport || skc->skc_net.net->ns.inum != tw->ev.netns)
		return false;
	COPY_ENDS(&ends, skc);
	return ends.rport == tw->rport && same_addr(ends.laddr, tw->laddr) && same_addr(ends.raddr, tw->raddr);
}

/* __inet_check_established() gives a socket in connect() its port before it lets
 * go of the minisocket that had it. */
static __always_inline bool makes_way_for_connect(const struct timewait *tw)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct connecting *at = connecting_of(task);
	const struct sock *sk;

	if (!bpf_rdonly_cast || !at || at->task != (__u64)task)
		return false;
	sk = CAST(struct sock, at->skaddr);
	return sk->__sk_common.skc_state == TCP_SYN_SENT && has_ends_of(&sk->__sk_common, tw);
}

/* Says whether the current task asks NETLINK_SOCK_DIAG of this network namespace to
 * kill a socket, as ss -K does: TW_KILLED; TW_OTHER if not; 0 if it asks for something
 * that may not be read. */
static __always_inline __u8 asks_to_kill(const struct net *net)
{
	struct task_struct *task = bpf_get_current_task_btf();
	long nr, fd, sendmsg, sendto;
	const struct pt_regs *regs;
	const struct sock *sk;
	const void *request;
	__u16 type = 0;

	if (!bpf_rdonly_cast || task->flags & PF_KTHREAD)
		return TW_OTHER;
	regs = (const struct pt_regs *)bpf_task_pt_regs(task);
	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		nr = ((struct pt_regs___x86 *)regs)->orig_ax;
		fd = ((struct pt_regs___x86 *)regs)->di;
		request = (const void *)((struct pt_regs___x86 *)regs)->si;
		sendmsg = 46;
		sendto = 44;
	} else {
		nr = ((struct pt_regs___arm64 *)regs)->syscallno;
		fd = ((struct pt_regs___arm64 *)regs)->regs[0];
		request = (const void *)((struct pt_regs___arm64 *)regs)->regs[1];
		sendmsg = 211;
		sendto = 206;
	}
	if (nr != sendmsg && nr != sendto)
		return TW_OTHER;
	sk = sock_of_fd(task, fd);
	if (!sk || sk->__sk_common.skc_family != AF_NETLINK || sk->sk_protocol != NETLINK_SOCK_DIAG ||
	    sk->__sk_common.skc_net.net->ns.inum != net->ns.inum)
		return TW_OTHER;
	if (!may_probe)
		return 0;
	/* struct user_msghdr.msg_iov, struct iovec.iov_base, struct nlmsghdr.nlmsg_type */
	if (nr == sendmsg && (bpf_probe_read_user(&request, sizeof(request), request + 16) ||
			      bpf_probe_read_user(&request, sizeof(request), request)))
		return 0;
	if (bpf_probe_read_user(&type, sizeof(type), request + 4))
		return 0;
	return type == SOCK_DESTROY ? TW_KILLED : TW_OTHER;
}

/* Reports whether the last reference to a network namespace is gone, and it is
 * being cleared (cleanup_net). */
static __always_inline bool is_over(const struct net *net)
{
	if (bpf_core_field_exists(struct ns_common___new, __ns_ref))
		return !((const struct ns_common___new *)&net->ns)->__ns_ref.refs.counter;
	if (bpf_core_field_exists(struct net___old, count))
		return !((const struct net___old *)net)->count.refs.counter;
	return !net->ns.count.refs.counter;
}

static __always_inline bool excluded_timewait(const struct tcp_timewait_sock *tw)
{
	const struct sock_common *skc = &tw->tw_sk.__tw_common;

	return !wants_minisocket(skc->skc_cookie.counter) || (filter_netns && skc->skc_net.net->ns.inum != filter_netns) ||
	       (filter_lport && !has_port(lports, skc->skc_num)) || excluded_peer(skc, false);
}

/* The minisocket of a TCP connection, NULL if it is another protocol's. The helper knows two
 * struct protos, and what an MPTCP listener has accepted has a third: the connections of
 * most servers in Go. */
static __always_inline const struct tcp_timewait_sock *tcp_timewait(const struct sock_common *skc)
{
	if (!bpf_rdonly_cast)
		return (const struct tcp_timewait_sock *)bpf_skc_to_tcp_timewait_sock((void *)skc);
	if (skc->skc_state != TCP_TIME_WAIT || (*(__u32 *)skc->skc_prot->name & 0xffffff) != 0x504354) /* "TCP" */
		return NULL;
	return CAST(struct tcp_timewait_sock, skc);
}

static __always_inline struct timewait *reserve_timewait(const struct tcp_timewait_sock *tw)
{
	const struct sock_common *skc = &tw->tw_sk.__tw_common;
	struct timewait *e;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		struct counters *c = counters();

		COUNT(c, records_lost);
		return NULL;
	}
	e->ev.ktime_ns = bpf_ktime_get_boot_ns();
	e->ev.skaddr = (__u64)tw;
	e->ev.cookie = skc->skc_cookie.counter;
	e->ev.netns = skc->skc_net.net->ns.inum;
	e->ev.kind = EVENT_TIMEWAIT;
	e->ev.oldstate = 0;
	e->ev.newstate = tw->tw_sk.tw_substate;
	e->ev.flags = 0;
	COPY_ENDS(e, skc);
	e->lport = skc->skc_num;
	e->why = 0;
	e->stamped = tw->tw_ts_recent_stamp != 0;
	return e;
}

static __always_inline void timewait_begins(const struct tcp_timewait_sock *tw, __s64 ticks, bool again)
{
	struct timewait *e;

	if (filter_pids) {
		__u64 cookie = tw->tw_sk.__tw_common.skc_cookie.counter;
		__u8 over = 1;

		bpf_map_update_elem(&closing, &cookie, &over, BPF_ANY);
	}
	e = reserve_timewait(tw);
	if (!e)
		return;
	e->why = again ? TW_AGAIN : 0;
	e->left_ns = ticks * (__s64)jiffy_ns;
	bpf_ringbuf_submit(e, submit_flags());
}

static __always_inline __s64 ticks_left(const struct timer_list *timer)
{
	return timer->expires - bpf_jiffies64();
}

/* The same where functions can be traced, which needs no bpf_rdonly_cast: what a task
 * does that ends minisockets, with the ends that they have then. Read by timewait_kill. */
struct caller {
	__u64 task;    /* that is in connect() or tcp_abort(); 0: none */
	__u64 aborted; /* the argument of tcp_abort(); 0: it is connect() */
	__u32 netns;
	__u16 family, lport, rport, _pad[3]; /* of connect(); lport 0: not chosen yet */
	__u8 laddr[16];
	__u8 raddr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct caller);
} callers SEC(".maps");

static __always_inline struct caller *caller(void)
{
	__u32 place = bpf_get_current_pid_tgid() & 1023;

	return bpf_map_lookup_elem(&callers, &place);
}

static __always_inline bool is_called_by_connect(const struct timewait *tw)
{
	__u64 task = bpf_get_current_task();
	struct caller *c = caller();

	return c && c->task == task && !c->aborted && (!c->lport || c->lport == tw->lport) &&
	       c->rport == tw->rport && c->netns == tw->ev.netns && same_addr(c->laddr, tw->laddr) &&
	       same_addr(c->raddr, tw->raddr);
}

static __always_inline bool is_aborted(const struct tcp_timewait_sock *tw)
{
	__u64 task = bpf_get_current_task();
	struct caller *c = caller();

	return c && c->task == task && c->aborted == (__u64)tw;
}

static __always_inline void timewait_ends(const struct tcp_timewait_sock *tw, struct packet *p, bool traced)
{
	struct timewait *e;

	if (excluded_timewait(tw))
		return;
	if (filter_pids) {
		__u64 cookie = tw->tw_sk.__tw_common.skc_cookie.counter;

		bpf_map_delete_elem(&closing, &cookie);
	}
	e = reserve_timewait(tw);
	if (!e)
		return;
	e->ev.oldstate = e->ev.newstate;
	e->ev.newstate = TCP_CLOSE;
	e->left_ns = ticks_left(&tw->tw_sk.tw_timer) * (__s64)jiffy_ns;
	if (p && p->twaddr == (__u64)tw && e->ev.ktime_ns - p->ktime < 10000000) {
		e->why = p->why;
		p->twaddr = 0;
	} else if (traced ? is_called_by_connect(e) : makes_way_for_connect(e)) {
		e->why = TW_CONNECT;
	} else if (is_over(tw->tw_sk.__tw_common.skc_net.net)) {
		e->why = TW_KILLED;
	} else {
		if (traced)
			e->why = is_aborted(tw) ? TW_KILLED : TW_OTHER;
		else if (bpf_rdonly_cast)
			e->why = asks_to_kill(tw->tw_sk.__tw_common.skc_net.net);
		if (e->why == TW_OTHER && !sees_packets)
			e->why = 0;
		if (p) {
			p->ended = *e;
			p->tries = 4;
		}
	}
	bpf_ringbuf_submit(e, submit_flags());
}

/* The first variant: what every minisocket goes through, from 5.10 to 6.18 under
 * these names. */
static __always_inline void scheduled(struct inet_timewait_sock *minisocket, int timeo, bool again)
{
	const struct tcp_timewait_sock *tw = tcp_timewait(&minisocket->__tw_common);

	if (proving)
		proven_begin = 1;
	else if (tw && !excluded_timewait(tw))
		timewait_begins(tw, timeo, again);
}

/* What the next one has told of already is not told again. Not a bool: of an argument that
 * is one, the trampolines of 5.10 store a byte and leave what was beside it. */
SEC("fentry/__inet_twsk_schedule")
int BPF_PROG(timewait_schedule, struct inet_timewait_sock *minisocket, int timeo, __u8 rearm)
{
	struct packet *p = packet();

	if (rearm || !p || p->hashed != (__u64)minisocket)
		scheduled(minisocket, timeo, rearm);
	return 0;
}

/* From 6.11 on it calls the former, if the compiler has not made one of both, as it does
 * for arm64. */
SEC("fentry/inet_twsk_hashdance_schedule")
int BPF_PROG(timewait_hashdance, struct inet_timewait_sock *minisocket, void *sk, void *hashinfo, int timeo)
{
	struct packet *p = packet();

	if (p)
		p->hashed = (__u64)minisocket;
	scheduled(minisocket, timeo, false);
	return 0;
}

SEC("fentry/inet_twsk_kill")
int BPF_PROG(timewait_kill, struct inet_timewait_sock *minisocket)
{
	const struct tcp_timewait_sock *tw = tcp_timewait(&minisocket->__tw_common);

	if (proving)
		proven_end = 1;
	else if (tw)
		timewait_ends(tw, packet(), true);
	return 0;
}

SEC("fentry/__inet_hash_connect")
int BPF_PROG(timewait_connect, void *death_row, struct sock *sk)
{
	__u64 task = bpf_get_current_task();
	struct caller *c = caller();
	const struct sock_common *skc = &sk->__sk_common;

	if (c) {
		c->aborted = 0;
		c->netns = skc->skc_net.net->ns.inum;
		c->lport = skc->skc_num;
		COPY_ENDS(c, skc);
		c->task = task;
	}
	return 0;
}

SEC("fexit/__inet_hash_connect")
int BPF_PROG(timewait_connected)
{
	__u64 task = bpf_get_current_task();
	struct caller *c = caller();

	if (c && c->task == task)
		c->task = 0;
	return 0;
}

SEC("fentry/tcp_abort")
int BPF_PROG(timewait_abort, struct sock *sk)
{
	__u64 task = bpf_get_current_task();
	struct caller *c = caller();

	if (c) {
		c->aborted = (__u64)sk;
		c->task = task;
	}
	return 0;
}

/* What an earlier packet has not ended, this one may. */
SEC("fentry/tcp_timewait_state_process")
int BPF_PROG(timewait_packet_begins)
{
	struct packet *p = packet();

	if (p)
		p->twaddr = 0;
	return 0;
}

/* Its callers do what it returns, in the same softirq. */
static __always_inline void packet_was(struct inet_timewait_sock *tw, __u32 status)
{
	struct packet *p;

	if (status != TCP_TW_SYN && status != TCP_TW_RST)
		return;
	p = packet();
	if (p) {
		p->twaddr = (__u64)tw;
		p->ktime = bpf_ktime_get_boot_ns();
		p->why = status == TCP_TW_SYN ? TW_SYN : TW_RESET;
	}
}

/* The number of its arguments varies, so the result is asked for (5.17). */
SEC("fexit/tcp_timewait_state_process")
int BPF_PROG(timewait_packet, struct inet_timewait_sock *tw)
{
	__u64 status;

	if (!bpf_get_func_ret(ctx, &status))
		packet_was(tw, status);
	return 0;
}

/* It had three for as long as that could not be. */
SEC("fexit/tcp_timewait_state_process")
int BPF_PROG(timewait_packet_of_three, struct inet_timewait_sock *tw, void *skb, void *th, int status)
{
	packet_was(tw, status);
	return 0;
}

/* The second variant, where trampolines are refused: the tracepoints of all timers,
 * of which those of minisockets are told by their function. They are run with the
 * timer base locked and interrupts off, so that nothing comes in between. What they
 * do not show is that a timer has been set anew if it stays in the same bucket of
 * the wheel, two seconds wide at this distance: see look_timewait. */
static __always_inline const struct tcp_timewait_sock *timewait_of(const struct timer_list *timer)
{
	return CAST(struct tcp_timewait_sock,
		    (__u64)timer - bpf_core_field_offset(struct inet_timewait_sock, tw_timer));
}

SEC("tp_btf/timer_start")
int BPF_PROG(timer_begins, struct timer_list *timer)
{
	const struct request_sock *req;
	struct timewait *e;
	struct packet *p = packet();

	if ((__u64)timer->function == tw_handler) {
		const struct tcp_timewait_sock *tw = timewait_of(timer);
		/* mod_timer() starts again what it has just cancelled. The memory may be
		 * another's by now. */
		bool again = p && p->tries && p->ended.ev.skaddr == (__u64)tw &&
			     p->ended.ev.cookie == (__u64)tw->tw_sk.__tw_common.skc_cookie.counter;

		if (again || !excluded_timewait(tw))
			timewait_begins(tw, ticks_left(timer), again);
		return 0;
	}
	if (!p || !p->tries)
		return 0;
	/* A SYN that ends a minisocket becomes a request_sock, whose timer is the next
	 * that is started (inet_csk_reqsk_queue_hash_add). */
	p->tries--;
	req = CAST(struct request_sock, (__u64)timer - bpf_core_field_offset(struct request_sock, rsk_timer));
	if (req->__req_common.skc_state != TCP_NEW_SYN_RECV || !has_ends_of(&req->__req_common, &p->ended))
		return 0;
	p->tries = 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (e) {
		*e = p->ended;
		e->why = TW_SYN;
		bpf_ringbuf_submit(e, submit_flags());
	} else {
		struct counters *c = counters();

		COUNT(c, records_lost);
	}
	return 0;
}

SEC("tp_btf/timer_cancel")
int BPF_PROG(timer_ends, struct timer_list *timer)
{
	if ((__u64)timer->function == tw_handler)
		timewait_ends(timewait_of(timer), packet(), false);
	return 0;
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(timer_reset, const struct sock *sk)
{
	struct packet *p = packet();

	/* The tracepoint speaks of minisockets since 6.10, and has had reasons since
	 * then. Where there are none, this cannot be relocated and is refused. */
	if (p && bpf_core_enum_value(enum sk_rst_reason, SK_RST_REASON_NOT_SPECIFIED) != TCP_CLOSE) {
		p->twaddr = (__u64)sk;
		p->ktime = bpf_ktime_get_boot_ns();
		p->why = TW_RESET;
	}
	return 0;
}

/* Minisockets in FIN_WAIT2 for the agent to look at. */
#define LOOKS 256

struct looks {
	__u32 n;
	__u32 _pad;
	struct {
		__u64 twaddr;
		__u64 cookie;
	} at[LOOKS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct looks);
} looks SEC(".maps");

static long look(__u32 i, struct looks **at)
{
	const struct tcp_timewait_sock *tw;
	struct looks *l = *at;
	__u64 cookie;

	if (i >= LOOKS || i >= l->n)
		return 1;
	tw = CAST(struct tcp_timewait_sock, l->at[i].twaddr);
	cookie = l->at[i].cookie;
	/* The memory may be another's by now, or nobody's: that is no harm to read, and
	 * the cookie is nobody else's. What has ended has no timer in the wheel. */
	if (tw->tw_sk.tw_substate == TCP_TIME_WAIT && (__u64)tw->tw_sk.tw_timer.function == tw_handler &&
	    tw->tw_sk.tw_timer.entry.pprev && (__u64)tw->tw_sk.__tw_common.skc_cookie.counter == cookie)
		timewait_begins(tw, ticks_left(&tw->tw_sk.tw_timer), true);
	return 0;
}

SEC("syscall")
int look_timewait(void *ctx)
{
	__u32 zero = 0;
	struct looks *l = bpf_map_lookup_elem(&looks, &zero);

	if (l)
		bpf_loop(LOOKS, look, &l, 0);
	return 0;
}

/* At least so long has the socket been in its state. Both clocks are read cut to
 * their ticks, so the difference may be one too large. */
static __always_inline __u64 quiet(const struct tcp_sock *tp, __u8 state, bool probed)
{
	__u32 now = bpf_jiffies64(), heard, ticks;
	__u64 now_us, stamp;

	if (state == TCP_CLOSE) {
		/* A reset is no segment with an ACK. But tcp_rcv_established(),
		 * tcp_rcv_state_process(), tcp_send_active_reset() and the timers all
		 * refresh this, and after tcp_done() nothing does. */
		now_us = bpf_ktime_get_ns() / 1000;
		stamp = READ(tp, tcp_mstamp);
		return now_us > stamp + 1 ? (now_us - stamp - 1) * 1000 : 0;
	}
	/* Data that is just what was expected does not count as one with an ACK. */
	heard = READ(tp, rcv_tstamp);
	ticks = now - heard;
	if (ticks > now - READ(tp, inet_conn.icsk_ack.lrcvtime))
		ticks = now - READ(tp, inet_conn.icsk_ack.lrcvtime);
	return heard && ticks > 1 ? (ticks - 1) * jiffy_ns : 0;
}

static __always_inline bool is_wanted(__u8 state)
{
	__u32 zero = 0;
	__u32 *states = bpf_map_lookup_elem(&wanted, &zero);

	return states && (*states & (1 << (state & 15)));
}

/* Writes the row of a TCP socket. sk and tp may be the results of a cast, which
 * helpers do not take: so the cookie comes from the caller, and the note if it has one. */
static __always_inline void write_row(struct seq_file *seq, const struct sock *sk, const struct tcp_sock *tp,
				      __u64 cookie, struct note *note, struct task_struct *task, int fd, bool probed)
{
	__u8 state = READ(sk, __sk_common.skc_state);
	struct socket_row row = {};
	bool taken = false;

	if (filter_netns && READ(sk, __sk_common.skc_net.net, ns.inum) != filter_netns)
		return;
	copy_header(&row.tr.ev, sk, EVENT_SOCKET, probed);
	/* A transition that is later than the row may rely on it. */
	if (note) {
		taken = !note->told;
		note->told = 1;
	}
	row.tr.ev.cookie = cookie;
	row.tr.ev.oldstate = state;
	row.tr.ev.newstate = state;
	copy_socket(&row.tr, sk, tp, state, probed);
	if (taken)
		row.tr.more |= MORE_TAKEN;
	if (task) {
		copy_proc(&row.tr.proc, task, false);
		row.thread = task->pid != task->tgid;
	}
	row.fd = fd;
	/* rcv_nxt is 0 until the peer's SYN has come (tcp_connect_init), and
	 * connect(AF_UNSPEC) clears the port: as good as new. */
	row.fresh = state == TCP_CLOSE && (!READ(tp, rcv_nxt) || !READ(sk, __sk_common.skc_dport));
	row.quiet_ns = quiet(tp, state, probed);
	row.unsent_ns = (__u64)((__u32)bpf_jiffies64() - READ(tp, lsndtime)) * jiffy_ns;
	row.queued = READ(tp, write_seq) - READ(tp, snd_una);
	row.kernel = READ_BITFIELD(sk, sk_kern_sock);
	row.guarded = (READ(sk, __sk_common.skc_flags) & (1UL << SOCK_KEEPOPEN)) ||
		      READ(tp, inet_conn.icsk_user_timeout);
	bpf_seq_write(seq, &row, sizeof(row));
}

/* Raw sockets may have any number in sk_protocol, and NETLINK_XFRM has 6. */
static __always_inline bool is_stream(const struct sock *sk, int protocol, bool probed)
{
	__u16 family = READ(sk, __sk_common.skc_family);

	return READ(sk, sk_protocol) == protocol && READ(sk, sk_type) == SOCK_STREAM &&
	       (family == AF_INET || family == AF_INET6);
}

/* Reports whether dump_files has found that a process asked for has the socket, or the
 * listener in whose queue it is: or it may be another with the same port, for the agent to tell apart. */
static __always_inline bool is_held(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_lookup_elem(&held, &key))
		return true;
	if (sk->sk_socket || sk->__sk_common.skc_flags & (1UL << SOCK_DEAD))
		return false;
	key = port_key(&sk->__sk_common, false);
	return bpf_map_lookup_elem(&held, &key);
}

/* The note of a socket that a scan has found, under filter_pids; NULL if nobody asks for
 * it. task has it, if that is known. */
static __always_inline struct note *note_found(struct sock *sk, struct task_struct *task)
{
	struct note *n = note_of(sk);
	__u8 state;

	if (n || !(task ? is_asked(task) : is_held(sk)))
		return n;
	n = make_note(sk);
	state = sk->__sk_common.skc_state;
	if (n && state == TCP_LISTEN)
		hold(port_key(&sk->__sk_common, false));
	else if (may_become_minisocket(state))
		expect_minisocket(sk);
	return n;
}

static __always_inline void dump(struct seq_file *seq, struct sock *sk, struct task_struct *task, int fd)
{
	struct note *n = NULL;
	struct tcp_sock *tp;
	__u64 cookie;

	if (!is_stream(sk, IPPROTO_TCP, false))
		return;
	if (filter_pids) {
		n = note_found(sk, task);
		if (!n)
			return;
	}
	if (!is_wanted(sk->__sk_common.skc_state))
		return;
	tp = (struct tcp_sock *)bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	cookie = has_cookies ? bpf_get_socket_cookie(sk) : sk->__sk_common.skc_cookie.counter;
	write_row(seq, sk, tp, cookie, n, task, fd, false);
}

static __always_inline void hold_first_subflow(const struct sock *first, bool probed)
{
	hold((__u64)first);
	if (READ(first, __sk_common.skc_state) == TCP_LISTEN)
		hold(port_key(&first->__sk_common, probed));
}

/* What a process has of an MPTCP connection is the outer socket, and what is traced
 * are its subflows. The first one stands for it: of a listener, it is the one that
 * listens. Programs in Go listen so unless told otherwise. */
static __always_inline void dump_first_subflow(struct seq_file *seq, const struct sock *sk,
					       struct task_struct *task, int fd)
{
	const struct sock *first;

	if (!bpf_core_type_exists(struct mptcp_sock))
		return;
	if (!bpf_rdonly_cast) {
		/* There is no row of it; but what comes of a listener can be traced. */
		if (filter_pids && may_probe && is_asked(task)) {
			first = BPF_CORE_READ((const struct mptcp_sock *)sk, first);
			if (first && is_stream(first, IPPROTO_TCP, true))
				hold_first_subflow(first, true);
		}
		return;
	}
	first = CAST(struct mptcp_sock, sk)->first;
	if (!first || !is_stream(first, IPPROTO_TCP, false))
		return;
	if (filter_pids && is_asked(task))
		hold_first_subflow(first, false);
	else if (filter_pids && !first->sk_bpf_storage)
		return;
	if (is_wanted(first->__sk_common.skc_state))
		write_row(seq, first, CAST(struct tcp_sock, first), first->__sk_common.skc_cookie.counter, NULL, task,
			  fd, false);
}

/* What is no socket, yet or any more: a connection that is being accepted (a
 * request_sock), or one in TIME_WAIT. */
static __always_inline void dump_mini(struct seq_file *seq, const struct sock_common *skc)
{
	__u64 now = bpf_jiffies64(), ktime = bpf_ktime_get_boot_ns(); /* of one moment */
	const struct tcp_timewait_sock *tw;
	struct socket_row row = {};
	__u8 state;

	if (skc->skc_state == TCP_TIME_WAIT && !tw_handler) {
		tw = tcp_timewait(skc);
		if (tw)
			tw_handler = (__u64)tw->tw_sk.tw_timer.function;
	}
	if (!is_wanted(skc->skc_state) || !wants_minisocket(skc->skc_cookie.counter) ||
	    (filter_netns && skc->skc_net.net->ns.inum != filter_netns))
		return;
	if (skc->skc_state == TCP_NEW_SYN_RECV) {
		state = TCP_SYN_RECV;
	} else {
		tw = tcp_timewait(skc);
		if (!tw)
			return;
		state = tw->tw_sk.tw_substate;
		row.stamped = tw->tw_ts_recent_stamp != 0;
		if (tw->tw_sk.tw_timer.expires > now)
			row.expires_ns = (tw->tw_sk.tw_timer.expires - now) * jiffy_ns;
	}
	row.tr.ev.ktime_ns = ktime;
	row.tr.ev.skaddr = (__u64)skc;
	row.tr.ev.cookie = skc->skc_cookie.counter;
	row.tr.ev.netns = skc->skc_net.net->ns.inum;
	row.tr.ev.kind = EVENT_SOCKET;
	row.tr.ev.oldstate = state;
	row.tr.ev.newstate = state;
	COPY_ENDS(&row.tr, skc);
	row.tr.lport = skc->skc_num;
	row.fd = -1;
	row.mini = 1;
	bpf_seq_write(seq, &row, sizeof(row));
}

/* The kernel reads on until it has as much as the reader asks for, however many
 * objects have nothing to say; and after a million of those it gives up (EAGAIN).
 * Meanwhile nobody empties the ring buffer. So every few milliseconds the reader
 * is given all that it asks for, as rows of no kind. */
static const struct socket_rows pause;

static __always_inline void let_read(const struct bpf_iter_meta *meta)
{
	if (meta->seq_num % 16384 == 16383)
		bpf_seq_write(meta->seq, &pause, sizeof(pause));
}

/* The sockets of one network namespace: that of the thread which opens the
 * iterator. Finds those too that no process holds. */
SEC("iter/tcp")
int dump_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	let_read(ctx->meta);
	tp = (struct tcp_sock *)bpf_skc_to_tcp_sock(skc);
	if (tp)
		dump(ctx->meta->seq, (struct sock *)tp, NULL, -1);
	else
		dump_mini(ctx->meta->seq, skc);
	return 0;
}

/* The sockets that processes hold, in every network namespace: every
 * descriptor of every process of the opening thread's PID namespace. */
SEC("iter/task_file")
int dump_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;

	if (!task || !file)
		return 0;
	let_read(ctx->meta);
	socket = bpf_sock_from_file(file);
	if (!socket || !socket->sk)
		return 0;
	if (is_stream(socket->sk, IPPROTO_MPTCP, false))
		dump_first_subflow(ctx->meta->seq, socket->sk, task, ctx->fd);
	else
		dump(ctx->meta->seq, socket->sk, task, ctx->fd);
	return 0;
}

/* The same before bpf_sock_from_file (5.11). What a file is of has no type then. */
SEC("iter/task_file")
int dump_files_probed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	const struct sock *sk;
	__u8 state;

	if (!task || !file)
		return 0;
	let_read(ctx->meta);
	if ((file->f_inode->i_mode & S_IFMT) != S_IFSOCK ||
	    file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return 0;
	sk = BPF_CORE_READ((struct socket *)file->private_data, sk);
	if (!sk || !is_stream(sk, IPPROTO_TCP, true))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (is_wanted(state))
		write_row(ctx->meta->seq, sk, (const struct tcp_sock *)sk,
			  BPF_CORE_READ(sk, __sk_common.skc_cookie.counter), NULL, task, ctx->fd, true);
	return 0;
}

/* Loaded, and never attached, to find out which of the has_ constants are true. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(try_cookies, struct sock *sk)
{
	return bpf_get_socket_cookie(sk) != 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(try_storage, struct sock *sk)
{
	return bpf_sk_storage_get(&notes, sk, 0, 0) != NULL;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(try_task)
{
	return bpf_get_current_task_btf()->flags != 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(try_numbers, struct task_struct *task)
{
	struct pid *pid = task->group_leader->thread_pid;

	return pid->numbers[1].ns->ns.inum + pid->numbers[1].nr != 0;
}
