"""libzmq as a CURVE publisher: publishes an event every 50 ms, whoever has subscribed. Whom it lets in: `curve_bound`."""

import time

import zmq

from bowline_wire import everything, wire
from curve_bound import bound

socket, authenticator = bound(zmq.PUB, {zmq.LINGER: 0})

epoch = time.time_ns() // 1000
sequence = 0
while True:
    time.sleep(0.05)
    sequence += 1
    header = wire.EventHeader.new_message(kind="event", epoch=epoch, sequence=sequence)
    body = everything.Progress.new_message(job="job", done=1)
    socket.send_multipart([b"progress/job", header.to_bytes(), body.to_bytes()])
