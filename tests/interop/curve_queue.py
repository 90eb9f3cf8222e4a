"""libzmq as a CURVE producer and worker: makes its own keys, says the public one, then for each line that it is told
(`push` or `work`) asks the queue `thumbnails` and says what comes of it: `done`, a status, or `silence`.

Arguments: the endpoint, and the server's public key, or `none` to come without keys.
"""

import secrets
import sys

import capnp
import zmq

from bowline_wire import everything, queue, request, wire


def messages(method):
    """The parameters and the results of a method, as types."""
    schema = queue.JobQueue.schema.methods[method]
    struct = capnp.lib.capnp._StructModule
    return struct(schema.param_type, method), struct(schema.result_type, method)


ORDINALS = {"push": 1, "lease": 2, "answer": 3}
NAMES = {"queue": "thumbnails"}
GROUP = {**NAMES, "group": "workers", "session": secrets.randbits(64)}

endpoint, server_key = sys.argv[1:3]
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 1500)
socket.setsockopt(zmq.SNDTIMEO, 1500)
public, secret = zmq.curve_keypair()
if server_key != "none":
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    socket.curve_serverkey = server_key.encode()
print(public.decode(), flush=True)


class Refused(Exception):
    pass


def call(method, **fields):
    params, results = messages(method)
    frames, correlation = request(queue.JobQueue, ORDINALS[method], params.new_message(**fields))
    try:
        socket.send_multipart([b"", *frames])
        _, header, body = socket.recv_multipart()
    except zmq.Again:
        raise Refused("silence") from None
    with wire.ReplyHeader.from_bytes(header) as reply:
        assert reply.correlation == correlation
        if reply.status != 0:
            raise Refused(f"status {reply.status}")
    with results.from_bytes(body) as results:
        return results.to_dict()


def push(number):
    body = everything.Thumbnail.new_message().to_bytes()
    job = {"identity": {"producerHigh": secrets.randbits(63), "sequence": number}, "body": body}
    [pushed] = call("push", **NAMES, jobs=[job])["results"]
    assert "accepted" in pushed, pushed


def work():
    credit = {"jobs": 1, "bytes": 1 << 20, "takesAnyFirst": True}
    [job] = call("lease", **GROUP, credit=credit, waitMicroseconds=1_000_000)["jobs"]
    lease = {"number": job["number"], "token": job["token"]}
    [held] = call("answer", **GROUP, answers=[{"lease": lease, "done": None}])["held"]
    assert held, job


for number, line in enumerate(sys.stdin):
    if number == 0:
        socket.connect(endpoint)
    try:
        if line.strip() == "push":
            push(number + 1)
        else:
            work()
        print("done", flush=True)
    except Refused as refused:
        print(refused, flush=True)
