"""A plain REQ socket calls `ping` of a Bowline service, and a method that is not there."""

import sys

import zmq

from bowline_wire import everything, request, text, wire

socket = zmq.Context().socket(zmq.REQ)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 10_000)
socket.connect(sys.argv[1])

frames, correlation = request(everything.Base, 0, text("from Python"))
socket.send_multipart(frames)
header, body = socket.recv_multipart()
with wire.ReplyHeader.from_bytes(header) as reply:
    assert reply.version == 1
    assert reply.status == 0, (reply.status, reply.message)
    assert reply.correlation == correlation
with everything.Denied.from_bytes(body) as results:
    assert results.reason == "from Python", results

frames, correlation = request(everything.Base, 99, text(""))
socket.send_multipart(frames)
header, body = socket.recv_multipart()
with wire.ReplyHeader.from_bytes(header) as reply:
    assert reply.status == 12, reply.status  # Unimplemented
    assert reply.notDone
    assert reply.correlation == correlation

# Not an envelope: the answer says so, and the service goes on.
socket.send_multipart([b"nonsense", b""])
header, body = socket.recv_multipart()
with wire.ReplyHeader.from_bytes(header) as reply:
    assert reply.status == 3, reply.status  # InvalidArgument
print("ok")
