"""A process that does not close its connections, in the shape that it is told.

    leak.py SHAPE

It says what leak.c says, "listening PORT" and then "held PID FD COOKIE
PEERPORT" for each descriptor of a connection that stays open, and also
"closed PID FD COOKIE PEERPORT" for one that it has closed.
"""

import os
import select
import signal
import socket
import sys
import threading
import time

LIFE = 120  # seconds, should the test fail to end it
SO_COOKIE = 57

kept = []  # a socket that nothing refers to would be closed by the garbage collector


def say(*words):
    # One write: parent and child share the pipe.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def name(s):
    cookie = int.from_bytes(s.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    return os.getpid(), s.fileno(), f"{cookie:x}", s.getpeername()[1]


def keep(s):
    kept.append(s)
    say("held", *name(s))


def read_all(s):
    """Reads up to the end of what the peer sends, be it a FIN or a reset."""
    try:
        while s.recv(4096):
            pass
    except ConnectionResetError:
        pass


def sleep_forever():
    while True:
        signal.pause()


def eof(s):
    keep(s)
    read_all(s)


def blocked(s):
    """Hands the connection to a worker that waits for something else."""
    read_end, write_end = os.pipe()
    kept.append(write_end)
    threading.Thread(target=os.read, args=(read_end, 1), daemon=True).start()
    keep(s)


connections = 0


def one_in_ten(s):
    """Forgets the close() in one of its ways through the code."""
    global connections
    connections += 1
    names = name(s)
    read_all(s)
    if connections % 10 == 0:
        return keep(s)
    time.sleep(0.03)
    s.close()
    say("closed", *names)


def stream(s):
    """Answers a request whose end is the peer's FIN, for as long as the test wants."""
    keep(s)
    read_all(s)
    try:
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            s.send(b"tick")
    except (BrokenPipeError, ConnectionResetError):
        return  # the test is over
    sys.stdin.readline()


loop = select.epoll()


def edge_triggered(s):
    """Is told of data and FIN once, and looks at neither."""
    loop.register(s, select.EPOLLIN | select.EPOLLET)
    keep(s)
    loop.poll()


def child(s):
    """The one who accepts lets go; the one who was forked never does."""
    if os.fork() == 0:
        signal.alarm(LIFE)
        keep(s)
        sleep_forever()
    s.close()


def start_receiver():
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        signal.alarm(LIFE)
        spare = [open(os.devnull) for _ in range(5)]  # so that its number is not by chance the sender's
        while True:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            keep(socket.socket(fileno=fds[0]))
            read_all(kept[-1])
    return ours


def main():
    signal.alarm(LIFE)
    shape = sys.argv[1]
    if shape == "pass":
        over = start_receiver()

        def serve(s):
            socket.send_fds(over, [b"x"], [s.fileno()])
            s.close()
    else:
        serve = {
            "eof": eof,
            "never": keep,
            "blocked": blocked,
            "one-in-ten": one_in_ten,
            "stream": stream,
            "edge": edge_triggered,
            "child": child,
        }[shape]
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    say("listening", listener.getsockname()[1])
    while True:
        serve(listener.accept()[0])


main()
