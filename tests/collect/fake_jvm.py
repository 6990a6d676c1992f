"""
A process that passes for a HotSpot JVM from outside, and then behaves as a sick or hostile one does.

    python fake_jvm.py WAY LIBRARY    map LIBRARY (a file named libjvm.so or libj9vm29.so), say ready, serve

It writes a line to stderr for every SIGQUIT that it gets and for every request.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

VERSION = b"0\nOpenJDK 64-Bit Server VM version 17.0.1+1\nJDK 17.0.1\n"
DUMP = b"0\n2026-11-20 13:15:00\nFull thread dump OpenJDK 64-Bit Server VM (17.0.1+1 mixed mode):\n\n"


def on_sigquit(_signum: int, _frame: FrameType | None) -> None:
    print("SIGQUIT", file=sys.stderr, flush=True)


def serve(way: str) -> None:
    place = Path(f"/tmp/.java_pid{os.getpid()}")
    attach_file = Path(f"/tmp/.attach_pid{os.getpid()}")
    while not attach_file.exists() or way == "no-socket":
        signal.pause()
    place.unlink(missing_ok=True)  # of an earlier process with this pid
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        place.chmod(0o600)
        listener.listen(5)
        while True:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(4096).split(b"\0")
                print(*(word.decode() for word in request[1:3]), file=sys.stderr, flush=True)
                answer(way, request, connection)


def answer(way: str, request: list[bytes], connection: socket.socket) -> None:
    if way == "hangs-up":
        return
    if way == "garbage":
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif request[1] == b"getversion":
        connection.sendall(b"-1\nOperation getversion not recognized!")
    elif way == "endless":
        connection.sendall(b"0\n")
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            return
    elif request[2] == b"VM.version":
        connection.sendall(VERSION)
    elif way == "silent":
        while True:
            signal.pause()
    elif way == "falls-silent":
        connection.sendall(DUMP)
        while True:
            signal.pause()
    elif way == "dies":
        connection.sendall(DUMP)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    way, library = sys.argv[1:]
    with open(library, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if way != "deaf":
        signal.signal(signal.SIGQUIT, on_sigquit)
    print("ready", flush=True)
    serve(way)
    mapped.close()


if __name__ == "__main__":
    main()
