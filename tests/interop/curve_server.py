"""libzmq as a CURVE server: a REP that lets in the clients whose keys it is told, one a line, and answers their `ping`.

Says its endpoint and its public key first, and `done` for each line. A line that begins with `-` revokes a key for handshakes to come.
"""

import sys
import threading

import zmq
from zmq.auth.thread import ThreadAuthenticator

from bowline_wire import everything, text, wire

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
socket = context.socket(zmq.REP)
socket.setsockopt(zmq.LINGER, 0)
socket.curve_server = True
socket.curve_publickey = public
socket.curve_secretkey = secret
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", public.decode(), flush=True)
threading.Thread(target=listen, daemon=True).start()

while True:
    header, body = socket.recv_multipart()
    with wire.RequestHeader.from_bytes(header) as request:
        reply = wire.ReplyHeader.new_message(correlation=request.correlation)
    with everything.Denied.from_bytes(body) as params:
        answer = text(params.reason.upper())
    socket.send_multipart([reply.to_bytes(), answer.to_bytes()])
