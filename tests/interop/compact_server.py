"""A ROUTER answers Bowline's calls of `ping` in the form that they come in, and says how many came how."""

import zmq

from bowline_wire import everything, pack, text, unpack, wire

socket = zmq.Context().socket(zmq.ROUTER)
socket.setsockopt(zmq.LINGER, 1000)
socket.setsockopt(zmq.RCVTIMEO, 10_000)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", flush=True)


def answer(header, body):
    with wire.RequestHeader.from_bytes(header) as request:
        reply = wire.ReplyHeader.new_message(correlation=request.correlation, compact=True)
    with everything.Denied.from_bytes(body) as params:
        return [reply.to_bytes(), text(params.reason.upper()).to_bytes()]


classic = compact = 0
while classic + compact < 101:
    peer, *parts = socket.recv_multipart()
    if len(parts) == 1:
        calls = unpack(parts[0])
        compact += len(calls)
        socket.send_multipart([peer, pack([answer(*call) for call in calls])])
    else:
        classic += 1
        socket.send_multipart([peer, b"", *answer(*parts[1:])])
print(f"{classic} and {compact}", flush=True)
