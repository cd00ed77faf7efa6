"""Connects to a server by a name that is in no file system."""

import socket

try:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect("\0" + NAME)
    print("escaped")
except OSError:
    print("held")
