"""The troubles that the documents are about, all at once, in the network namespace that it is started in.

    scene.py

Each role is a process with the name and the port that the documents use. It says "ROLE PID" for each, and "ready". It
ends after LIFE seconds, or when its standard input does.
"""

import os
import resource
import select
import signal
import socket
import struct
import sys
import time

LIFE = 150  # seconds, should the test fail to end it

kept = []  # what nothing refers to would be closed by the garbage collector


def role(name, *fs):
    """Runs fs one after the other in a process of that name; the last one is to go on for as long as it lives."""
    if pid := os.fork():
        print(name, pid, flush=True)
        return
    signal.alarm(LIFE)
    with open("/proc/self/comm", "w") as f:
        f.write(name)
    for f in fs:
        f()
    os._exit(0)


def listen(port, host="127.0.0.1"):
    s = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    return s


def connect(port, host="127.0.0.1"):
    return socket.create_connection((host, port))


def every(seconds, f):
    def loop():
        while True:
            f()
            time.sleep(seconds)

    return loop


def sleep():
    while True:
        signal.pause()


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def serve(listeners):
    """Reads each connection to its end. One whose request begins with K it then forgets; others it closes soon."""
    waiting, due, first = list(listeners), [], {}
    while True:
        for s in select.select(waiting, [], [], 0.05)[0]:
            if s in listeners:
                waiting.append(s.accept()[0])
                continue
            data = s.recv(4096)
            first.setdefault(s, data[:1])
            if not data:
                waiting.remove(s)
                if first.pop(s) == b"K":
                    kept.append(s)
                else:
                    due.append((time.monotonic() + 0.1, s))
        while due and due[0][0] < time.monotonic():
            due.pop(0)[1].close()


def web():
    serve([listen(8080), listen(8080, "::1")])


def nginx():
    listener = listen(8086)
    os.fork()
    signal.alarm(LIFE)
    serve([listener])


def accept_and(f, port):
    def loop():
        listener = listen(port)
        while True:
            f(listener.accept()[0])

    return loop


def lazy():
    kept.append(listen(8083))
    sleep()


def ask(port, request, host="127.0.0.1"):
    with connect(port, host) as s:
        s.sendall(request)


def read_to_end(s):
    with s:
        while s.recv(4096):
            pass


def exhaust():
    """Closes first, until no port is left."""
    try:
        while True:
            with connect(8081) as s:
                s.shutdown(socket.SHUT_WR)
                s.recv(1)
            time.sleep(0.005)
    except OSError:  # EADDRNOTAVAIL
        pass


def be_reset():
    s = connect(5432)
    s.sendall(b"query")
    try:
        s.recv(1)
    except ConnectionResetError:
        pass
    return s


def run_out_of_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    ends = [connect(8085) for _ in range(52)]
    kept.extend(ends)


def main():
    role("web", web)
    role("nginx", nginx)
    role("time", accept_and(read_to_end, 8081))
    role("postgres", accept_and(lambda s: (s.recv(1), reset(s)), 5432))
    role("short", accept_and(lambda s: s.close(), 8082))
    role("lazy", lazy)
    role("batch", accept_and(kept.append, 8084))
    role("svc", accept_and(kept.append, 8085))
    time.sleep(0.5)  # until all of them listen
    role("app", lambda: kept.extend(be_reset() for _ in range(3)), every(0.2, be_reset))
    role("curl", every(1, lambda: [ask(8080, b"K", host) for host in ("127.0.0.1", "::1")]))
    role("wget", every(0.3, lambda: [ask(port, b"C") for port in (8080, 8086)]))
    role("pool", every(1, exhaust))
    role("api", every(0.008, lambda: read_to_end(connect(8082))))
    role("job", lambda: ask(8083, b"x"), lambda: ask(8084, b"x" * 50000), sleep)
    role("full", run_out_of_descriptors, sleep)
    print("ready", flush=True)


signal.alarm(LIFE)
main()
try:
    sys.stdin.read()
finally:
    os.killpg(0, signal.SIGKILL)  # its process group is its own
