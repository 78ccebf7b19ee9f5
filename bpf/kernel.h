/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* kernel.h: the few kernel types that tcptrace reads, and of each only the
 * members that it reads. CO-RE relocates every access against the running
 * kernel's BTF, so order and offsets here mean nothing; names and types do.
 * This replaces a 130,000-line vmlinux.h.
 */
#ifndef TCPTRACE_KERNEL_H
#define TCPTRACE_KERNEL_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/* uapi values that bpf_helper_defs.h and the maps need. Macros and enums of
 * the kernel's user interface never change, so they are written out. */
enum bpf_map_type {
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_F_CLONE = 1U << 9,
	BPF_SK_STORAGE_GET_F_CREATE = 1ULL << 0,
	BPF_RB_NO_WAKEUP = 1ULL << 0,
	BPF_RB_FORCE_WAKEUP = 1ULL << 1,
	BPF_RB_AVAIL_DATA = 0,
};

#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define SOCK_STREAM 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define NETLINK_SOCK_DIAG 4
#define SOCK_DESTROY 21

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

/* include/net/sock.h, enum sock_flags: bit numbers in skc_flags. The first
 * five have not moved since 2.6. */
enum {
	SOCK_DEAD = 0,
	SOCK_DONE = 1,
	SOCK_KEEPOPEN = 3,
	SOCK_LINGER = 4,
};

/* include/net/tcp.h, enum tcp_tw_status: what tcp_timewait_state_process() returns. */
enum {
	TCP_TW_RST = 1,
	TCP_TW_SYN = 3,
};

/* include/linux/sched.h */
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000

/* include/uapi/linux/stat.h and magic.h: how a socket's inode is told. */
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define SOCKFS_MAGIC 0x534F434B

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	long long counter;
} atomic64_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct ns_common {
	unsigned int inum;
	refcount_t count;
};

/* Since 6.18. */
struct ns_common___new {
	refcount_t __ns_ref;
};

struct net {
	struct ns_common ns;
};

/* Before 5.11. */
struct net___old {
	refcount_t count;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct proto {
	char name[32];
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	struct proto *skc_prot;
	unsigned long skc_flags;
};

typedef struct {
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct socket *sk_socket;
	int sk_err;
	__u16 sk_type;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	__u8 sk_kern_sock : 1;
	unsigned long sk_lingertime;
	struct bpf_local_storage *sk_bpf_storage; /* NULL: no program has any on it */
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct {
		__u32 lrcvtime; /* jiffies of the last segment with data */
	} icsk_ack;
	__u32 icsk_user_timeout;
};

struct list_head {
	struct list_head *next;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_una;
	__u32 write_seq;
	__u32 rcv_tstamp; /* jiffies of the last segment with an ACK */
	__u32 lsndtime;   /* jiffies of the last segment with data that was sent */
	__u64 tcp_mstamp; /* CLOCK_MONOTONIC, us, of the last segment or timer that was handled */
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 bytes_received;
	struct list_head tsorted_sent_queue; /* since 4.15 */
	int linger2;
	__u8 repair : 1;
};

/* Where the kernel has CONFIG_MPTCP. */
struct mptcp_sock {
	struct sock *first; /* its first subflow; of a listener, the one that listens */
};

struct hlist_node {
	struct hlist_node **pprev; /* NULL: in no list */
};

struct timer_list {
	struct hlist_node entry;
	unsigned long expires; /* jiffies */
	void (*function)(struct timer_list *);
};

/* A connection that is being accepted. */
struct request_sock {
	struct sock_common __req_common;
	struct timer_list rsk_timer;
};

/* What is left of a connection in TIME_WAIT, or in FIN_WAIT2 without a socket:
 * tw_substate says which. */
struct inet_timewait_sock {
	struct sock_common __tw_common;
	volatile unsigned char tw_substate;
	struct timer_list tw_timer;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp; /* a long once */
};

/* include/net/rstreason.h, since 6.10. */
enum sk_rst_reason {
	SK_RST_REASON_NOT_SPECIFIED = 0,
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

/* Read for its shape: one pointer at an address. The verifier types single
 * pointers, but no arrays of them (fdtable.fd). */
struct hlist_head {
	struct hlist_node *first;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[];
};

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	char comm[16];
	struct files_struct *files;
};

/* The system call number lives in an architecture's own member. Flavours
 * (the part after ___ is ignored) let one object serve both. */
struct pt_regs {};

struct pt_regs___x86 {
	unsigned long orig_ax;
	unsigned long di;
	unsigned long si;
};

struct pt_regs___arm64 {
	int syscallno;
	__u64 regs[2];
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 seq_num; /* of the object, from 0 */
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif
