"""A plain PUB socket publishes for a Bowline subscriber, with a gap after the second event."""

import time

import zmq

from bowline_wire import everything, wire

socket = zmq.Context().socket(zmq.XPUB)
socket.setsockopt(zmq.LINGER, 1000)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", flush=True)

# Publishes once somebody has subscribed.
assert socket.recv() == b"\1progress/"
epoch = time.time_ns() // 1000
for number in (1, 2, 5):
    header = wire.EventHeader.new_message(kind="event", epoch=epoch, sequence=number)
    body = everything.Progress.new_message(job="job", done=number)
    socket.send_multipart([b"progress/job", header.to_bytes(), body.to_bytes()])
# Stays until it is told to go, so that nothing is cut off.
input()
