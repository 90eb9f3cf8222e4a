"""libzmq as a CURVE publisher: lets in the subscribers whose keys it is told, one a line, and publishes an event whenever somebody has
subscribed.

Says its endpoint and its public key first, and `done` for each line. A line that begins with `-` revokes a key for handshakes to come.
"""

import sys
import threading
import time

import zmq
from zmq.auth.thread import ThreadAuthenticator

from bowline_wire import everything, wire

allowed = set()


class Provider:
    def callback(self, domain, key):
        return key.decode() in allowed


def listen():
    for line in sys.stdin:
        key = line.strip()
        if key.startswith("-"):
            allowed.discard(key[1:])
        else:
            allowed.add(key)
        print("done", flush=True)


context = zmq.Context()
authenticator = ThreadAuthenticator(context)
authenticator.start()
authenticator.configure_curve_callback(domain="*", credentials_provider=Provider())

public, secret = zmq.curve_keypair()
socket = context.socket(zmq.XPUB)
socket.setsockopt(zmq.LINGER, 1000)
socket.setsockopt(zmq.XPUB_VERBOSE, 1)
socket.curve_server = True
socket.curve_publickey = public
socket.curve_secretkey = secret
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", public.decode(), flush=True)
threading.Thread(target=listen, daemon=True).start()

epoch = time.time_ns() // 1000
sequence = 0
while True:
    if socket.recv() != b"\1progress/":
        continue
    sequence += 1
    header = wire.EventHeader.new_message(kind="event", epoch=epoch, sequence=sequence)
    body = everything.Progress.new_message(job="job", done=1)
    socket.send_multipart([b"progress/job", header.to_bytes(), body.to_bytes()])
