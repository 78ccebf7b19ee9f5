"""A client or a server whose traffic is as regular as the test wants.

    traffic.py serve PORT first|last|never
                                        accepts, and closes each connection as the first, when it has read
                                        end-of-file, or not at all
    traffic.py connect PORT COUNT RATE first|last [FROM]
                                        opens so many connections, so many a second, and closes each likewise;
                                        each from a port of its own, the first from that one
    traffic.py stretch PORT RATE        opens one connection, and sends so often on it
    traffic.py alone COUNT RATE         both ends in one process

Each says "ready", and a client begins when it is sent a line. In the end it says
"done OPENED FIRST LAST", in ns of the wall clock the begin of the first and the
last connect(), or "failed OPENED FIRST LAST ERRNO" of the one that failed, and
stays.
"""

import os
import signal
import socket
import sys
import threading
import time

LIFE = 120  # seconds, should the test fail to end it
HOST = os.environ.get("HOST", "127.0.0.1")


def say(*words):
    print(*words, flush=True)


def listen(port):
    return socket.create_server((HOST, port), backlog=512)


kept = []  # a socket that nothing refers to would be closed by the garbage collector


def end(s, order):
    if order == "never":
        return kept.append(s)
    if order == "last":
        try:
            while s.recv(4096):
                pass
        except ConnectionResetError:
            pass
    s.close()


def accept(listener, order):
    while True:
        end(listener.accept()[0], order)


def connect(port, count, rate, order, start=None):
    opened, first = 0, time.time_ns()
    began = time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, began + i / rate - time.monotonic()))
        s = socket.socket()
        if start:
            s.bind((HOST, start + i))
        last = time.time_ns()
        try:
            s.connect((HOST, port))
        except OSError as e:
            return say("failed", opened, first, last, e.errno)
        opened += 1
        end(s, order)
    say("done", opened, first, last)


def stretch(port, rate):
    s = socket.create_connection((HOST, port))
    while True:
        s.send(b"tick")
        time.sleep(1 / rate)


def main():
    signal.alarm(LIFE)
    how, args = sys.argv[1], sys.argv[2:]
    if how == "serve":
        listener = listen(int(args[0]))
        say("ready")
        accept(listener, args[1])
    port = 0
    if how == "alone":
        listener = listen(0)
        port = listener.getsockname()[1]
        threading.Thread(target=accept, args=(listener, "last"), daemon=True).start()
    say("ready")
    sys.stdin.readline()
    if how == "connect":
        connect(int(args[0]), int(args[1]), float(args[2]), args[3], *map(int, args[4:]))
    elif how == "stretch":
        stretch(int(args[0]), float(args[1]))
    else:
        connect(port, int(args[0]), float(args[1]), "first")
    while True:
        signal.pause()


main()
