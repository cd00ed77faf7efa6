"""Connects to a server of this machine, and to one elsewhere."""

import socket

for address in (("127.0.0.1", PORT), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, timeout=0.2)
        print("escaped")
        break
    except OSError:
        pass
else:
    print("held")
