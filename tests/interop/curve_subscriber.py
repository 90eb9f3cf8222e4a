"""libzmq as a CURVE subscriber: makes its own keys, says the public one, then subscribes and says what comes of it.

Arguments: the endpoint, and the publisher's public key, or `none` to come without keys.
"""

import sys
import uuid

import zmq

from bowline_wire import unpack_events, wire

endpoint, server_key = sys.argv[1:3]
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 1500)
public, secret = zmq.curve_keypair()
if server_key != "none":
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    socket.curve_serverkey = server_key.encode()
print(public.decode(), flush=True)

sys.stdin.readline()
socket.connect(endpoint)
prefix = b"progress/"
socket.subscribe(prefix)
socket.subscribe(b"\0bowline/" + uuid.uuid4().hex.encode() + prefix)
while True:
    try:
        events = unpack_events(socket.recv_multipart())
    except zmq.Again:
        print("silence", flush=True)
        break
    for _, header, _ in events:
        with wire.EventHeader.from_bytes(header) as event:
            print(event.kind, flush=True)
