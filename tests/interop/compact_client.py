"""A DEALER calls `ping` of a Bowline service: once by itself, then many times in one message."""

import sys

import zmq

from bowline_wire import everything, pack, request, text, unpack, wire

socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 10_000)
socket.connect(sys.argv[1])

frames, _ = request(everything.Base, 0, text("first"))
socket.send_multipart([b"", *frames])
delimiter, header, body = socket.recv_multipart()
assert delimiter == b""
with wire.ReplyHeader.from_bytes(header) as reply:
    assert reply.status == 0, (reply.status, reply.message)
    assert reply.compact, "the server takes calls in one message"

waiting = {number: f"call {number}" for number in range(1, 101)}
calls = [request(everything.Base, 0, text(said), correlation=number)[0] for number, said in waiting.items()]
socket.send(pack(calls))
messages = 0
while waiting:
    parts = socket.recv_multipart()
    messages += 1
    for header, body in unpack(parts[0]) if len(parts) == 1 else [parts[1:]]:
        with wire.ReplyHeader.from_bytes(header) as reply:
            assert reply.status == 0, (reply.status, reply.message)
            said = waiting.pop(reply.correlation)
        with everything.Denied.from_bytes(body) as results:
            assert results.reason == said, (results.reason, said)
assert messages < 100, messages
print("ok")
