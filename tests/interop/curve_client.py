"""libzmq as a CURVE client: makes its own keys, says the public one, and calls once for each line it is told.

Arguments: the endpoint, and the server's public key, or `none` to come without keys.
"""

import sys

import zmq

from bowline_wire import everything, request, text, wire

endpoint, server_key = sys.argv[1:3]
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 1500)
# libzmq gives a connection up for good when the other side's mechanism is not its own, and a socket that has no other
# blocks on sending: whether it had sent before it learned that is a race.
socket.setsockopt(zmq.SNDTIMEO, 1500)
public, secret = zmq.curve_keypair()
if server_key != "none":
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    socket.curve_serverkey = server_key.encode()
print(public.decode(), flush=True)

for number, line in enumerate(sys.stdin):
    if number == 0:
        socket.connect(endpoint)
    frames, correlation = request(everything.Base, 0, text(line.strip()))
    try:
        socket.send_multipart([b"", *frames])
        _, header, body = socket.recv_multipart()
    except zmq.Again:
        print("silence", flush=True)
        continue
    with wire.ReplyHeader.from_bytes(header) as reply:
        assert reply.correlation == correlation
        status = reply.status
    if status == 0:
        with everything.Denied.from_bytes(body) as results:
            print("reply", results.reason, flush=True)
    else:
        print("status", status, flush=True)
