"""A plain SUB socket reads a Bowline publisher, and has its subscription confirmed."""

import sys
import uuid

import zmq

from bowline_wire import everything, unpack_events, wire

socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 10_000)
socket.connect(sys.argv[1])

prefix = b"progress/"
confirmation = b"\0bowline/" + uuid.uuid4().hex.encode() + prefix
socket.subscribe(prefix)
socket.subscribe(confirmation)

topic, header, body = socket.recv_multipart()
assert topic == confirmation, topic
with wire.EventHeader.from_bytes(header) as confirmed:
    assert confirmed.kind == "confirmed"
    epoch = confirmed.epoch
with wire.Tails.from_bytes(body) as tails:
    assert len(tails.tails) == 0
print("subscribed", flush=True)

received = []
while len(received) < 3:
    received += unpack_events(socket.recv_multipart())
for number, (topic, header, body) in zip((1, 2, 3), received, strict=True):
    assert topic == b"progress/job", topic
    with wire.EventHeader.from_bytes(header) as event:
        assert event.kind == "event"
        assert event.sequence == number
        assert event.epoch == epoch
    with everything.Progress.from_bytes(body) as progress:
        assert progress.job == "job"
        assert progress.done == number
print("ok", flush=True)
