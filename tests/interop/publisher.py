"""A plain PUB socket publishes for a Bowline subscriber, with a gap after the second event."""

import time

import zmq

from bowline_wire import everything, pack_events, wire

socket = zmq.Context().socket(zmq.XPUB)
socket.setsockopt(zmq.LINGER, 1000)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", flush=True)

# Publishes once somebody has subscribed.
assert socket.recv() == b"\1progress/"
epoch = time.time_ns() // 1000


def event(number):
    header = wire.EventHeader.new_message(kind="event", epoch=epoch, sequence=number)
    body = everything.Progress.new_message(job="job", done=number)
    return header.to_bytes(), body.to_bytes()


# The first in the classic form, the others in one part.
topic = b"progress/job"
socket.send_multipart([topic, *event(1)])
socket.send(pack_events(topic, [event(2), event(5)]))
# Stays until it is told to go, so that nothing is cut off.
input()
