"""A plain REP socket answers Bowline's calls of `ping`: the text comes back in capitals."""

import zmq

from bowline_wire import everything, interface_id, text, wire

socket = zmq.Context().socket(zmq.REP)
socket.setsockopt(zmq.LINGER, 0)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", flush=True)

while True:
    header, body = socket.recv_multipart()
    with wire.RequestHeader.from_bytes(header) as request:
        reply = wire.ReplyHeader.new_message(correlation=request.correlation)
        known = (request.interface, request.method) == (interface_id(everything.Base), 0)
        assert request.remainingMicroseconds > 0
        assert request.requestIdHigh >> 12 & 0xF == 7, "a UUIDv7"
    if known:
        with everything.Denied.from_bytes(body) as params:
            answer = text(params.reason.upper()).to_bytes()
    else:
        reply.status = 12
        reply.notDone = True
        reply.message = "no such method here"
        answer = b""
    socket.send_multipart([reply.to_bytes(), answer])
