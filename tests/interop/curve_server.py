"""libzmq as a CURVE server: a REP that answers the `ping` of its clients. Whom it lets in: `curve_bound`."""

import zmq

from bowline_wire import everything, text, wire
from curve_bound import bound

socket, authenticator = bound(zmq.REP, {zmq.LINGER: 0})

while True:
    header, body = socket.recv_multipart()
    with wire.RequestHeader.from_bytes(header) as request:
        reply = wire.ReplyHeader.new_message(correlation=request.correlation)
    with everything.Denied.from_bytes(body) as params:
        answer = text(params.reason.upper())
    socket.send_multipart([reply.to_bytes(), answer.to_bytes()])
