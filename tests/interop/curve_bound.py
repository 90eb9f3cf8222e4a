"""A bound libzmq socket with keys, which lets in the peers whose keys it is told on stdin, one a line: `allow KEY`, or
`revoke KEY` for handshakes to come.

Says its endpoint and its public key first, and `done` for each line.
"""

import sys
import threading

import zmq
from zmq.auth.thread import ThreadAuthenticator


class Allowed:
    def __init__(self):
        self.keys = set()

    def callback(self, domain, key):
        return key.decode() in self.keys

    def listen(self):
        changes = {"allow": self.keys.add, "revoke": self.keys.discard}
        for line in sys.stdin:
            # Words, and no sign before the key: any sign but a blank may be the first of a key itself.
            change, key = line.split()
            changes[change](key)
            print("done", flush=True)


def bound(kind, options):
    """A socket of this kind with these options, and what asks about keys, which has to live as long."""
    context = zmq.Context.instance()
    allowed = Allowed()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=allowed)

    public, secret = zmq.curve_keypair()
    socket = context.socket(kind)
    for option, value in options.items():
        socket.setsockopt(option, value)
    socket.curve_server = True
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", public.decode(), flush=True)
    threading.Thread(target=allowed.listen, daemon=True).start()
    return socket, authenticator
