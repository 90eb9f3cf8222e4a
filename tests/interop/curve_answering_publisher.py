"""libzmq as a CURVE publisher that publishes an event the moment that somebody subscribes, and none else. Whom it lets in: `curve_bound`."""

import time

import zmq

from bowline_wire import everything, wire
from curve_bound import bound

socket, authenticator = bound(zmq.XPUB, {zmq.LINGER: 0, zmq.XPUB_VERBOSE: 1})

epoch = time.time_ns() // 1000
sequence = 0
while True:
    if socket.recv()[:1] != b"\x01":
        continue
    sequence += 1
    header = wire.EventHeader.new_message(kind="event", epoch=epoch, sequence=sequence)
    body = everything.Progress.new_message(job="job", done=1)
    socket.send_multipart([b"progress/job", header.to_bytes(), body.to_bytes()])
