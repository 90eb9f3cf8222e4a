"""libzmq as a CURVE publisher: says its endpoint and public key, and publishes one event once somebody has subscribed."""

import sys
import time

import zmq

from bowline_wire import everything, wire

public, secret = zmq.curve_keypair()
socket = zmq.Context().socket(zmq.XPUB)
socket.setsockopt(zmq.LINGER, 1000)
socket.curve_server = True
socket.curve_publickey = public
socket.curve_secretkey = secret
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", public.decode(), flush=True)

assert socket.recv() == b"\1progress/"
header = wire.EventHeader.new_message(kind="event", epoch=time.time_ns() // 1000, sequence=1)
body = everything.Progress.new_message(job="job", done=1)
socket.send_multipart([b"progress/job", header.to_bytes(), body.to_bytes()])
# Stays until it is told to go, so that nothing is cut off.
sys.stdin.readline()
