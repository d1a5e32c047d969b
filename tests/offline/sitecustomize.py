"""Python imports this first where its folder is on PYTHONPATH: no address but this machine's can be reached.

Attempts are refused, and written to the file that BOLTZFORMER_TEST_CONNECTIONS names, if it names one.
"""

import os
import socket

_HERE = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
_connect, _resolve = socket.socket.connect, socket.getaddrinfo


def _refuse(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in _HERE or name == socket.gethostname():
        return
    if log := os.environ.get("BOLTZFORMER_TEST_CONNECTIONS"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    raise socket.gaierror(socket.EAI_NONAME, f"the test denies the network: {name}")


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse(address[0])
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    _refuse(host)
    return _resolve(host, *args, **kwargs)


socket.socket.connect = connect
socket.getaddrinfo = getaddrinfo
