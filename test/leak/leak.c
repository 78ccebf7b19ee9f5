/*
 * A process that does not close its connections, in the shape that it is told:
 *
 *     leak SHAPE [PORT COUNT]
 *
 * Shapes that serve say "listening PORT" first; "client" connects COUNT times to
 * PORT. For each descriptor of a connection that stays open, it says
 * "held PID FD COOKIE PEERPORT". It ends by a signal, or by itself after LIFE.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LIFE = 120 /* seconds, should the test fail to end it */, WORKERS = 4 };

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static void held(int fd)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	uint64_t cookie;
	socklen_t cookie_size = sizeof(cookie);

	if (getpeername(fd, (struct sockaddr *)&peer, &size) ||
	    getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &cookie_size))
		err(1, "names of %d", fd);
	/* One write: parent and child share the pipe. */
	dprintf(1, "held %d %d %" PRIx64 " %d\n", getpid(), fd, cookie, ntohs(peer.sin_port));
}

static int listen_anywhere(int protocol)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(addr);
	int l = socket(AF_INET, SOCK_STREAM, protocol);

	if (l < 0 || bind(l, (struct sockaddr *)&addr, sizeof(addr)) || listen(l, 512) ||
	    getsockname(l, (struct sockaddr *)&addr, &size))
		err(1, "listen");
	dprintf(1, "listening %d\n", ntohs(addr.sin_port));
	return l;
}

/* Reads up to the end of what the peer sends, be it a FIN or a reset. */
static void read_all(int fd)
{
	char buf[4096];

	while (read(fd, buf, sizeof(buf)) > 0)
		;
}

static void sleep_forever(void)
{
	for (;;)
		pause();
}

static void limit_descriptors(rlim_t n)
{
	struct rlimit limit = { .rlim_cur = n, .rlim_max = n };

	if (setrlimit(RLIMIT_NOFILE, &limit))
		err(1, "setrlimit");
}

/* Waits for work that never comes, as a worker behind a stuck queue does. */
static void *worker(void *queue)
{
	static pthread_cond_t filled = PTHREAD_COND_INITIALIZER;

	pthread_mutex_lock(queue);
	while (!pthread_cond_wait(&filled, queue))
		;
	return NULL;
}

static void start_workers(void)
{
	static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;

	for (int i = 0; i < WORKERS; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, worker, &queue))
			errx(1, "pthread_create");
	}
}

static void connect_and_keep(int port, int count)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	dprintf(1, "connecting\n");
	while (count-- > 0) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			err(1, "connect");
		held(fd);
		read_all(fd);
	}
	sleep_forever();
}

/* Accepts without end, and keeps: what else it does not do, the shape says. */
static void serve(const char *shape)
{
	int epoll = epoll_create1(0);

	if (!strcmp(shape, "blocked"))
		start_workers();
	int protocol = IPPROTO_TCP;
	if (!strncmp(shape, "mptcp-", 6)) {
		protocol = IPPROTO_MPTCP;
		shape += 6;
	}
	int l = listen_anywhere(protocol);
	if (!strcmp(shape, "queue"))
		sleep_forever();
	for (;;) {
		int fd = accept(l, NULL, NULL);

		if (fd < 0)
			err(1, "accept");
		if (!strcmp(shape, "child") || !strcmp(shape, "both")) {
			if (!fork()) {
				alarm(LIFE);
				held(fd);
				sleep_forever();
			}
			if (!strcmp(shape, "child")) {
				close(fd);
				continue;
			}
		}
		held(fd);
		if (!strcmp(shape, "dup")) {
			held(dup(fd));
		} else if (!strcmp(shape, "eof")) {
			read_all(fd);
		} else if (!strcmp(shape, "shutdown")) {
			read_all(fd);
			shutdown(fd, SHUT_WR);
		} else if (!strcmp(shape, "epoll")) {
			struct epoll_event event = { .events = EPOLLRDHUP | EPOLLET };

			if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) || epoll_wait(epoll, &event, 1, -1) != 1)
				err(1, "epoll");
		}
	}
}

int main(int argc, char **argv)
{
	if (argc < 2)
		errx(2, "usage: leak SHAPE [PORT COUNT]");
	alarm(LIFE);
	limit_descriptors(!strcmp(argv[1], "limit") ? 64 : 8192);
	if (!strcmp(argv[1], "client") && argc == 4)
		connect_and_keep(atoi(argv[2]), atoi(argv[3]));
	serve(argv[1]); /* "never" and "limit" are what is left: keep, and do nothing */
}
