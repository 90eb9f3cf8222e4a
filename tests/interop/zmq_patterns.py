"""REQ sockets behind libzmq's own patterns call a Bowline service: queues of ROUTER and DEALER, one and two of them,
REQ_CORRELATE, and both. What these put in front of a request comes back in front of its reply."""

import sys
import threading

import zmq

from bowline_wire import everything, request, text, wire

context = zmq.Context()


def queue_in_front_of(address):
    """A ROUTER and a DEALER with zmq.proxy between them; where the ROUTER is."""
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.connect(address)
    threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()
    return f"tcp://127.0.0.1:{port}"


service = sys.argv[1]
one = queue_in_front_of(service)
two = queue_in_front_of(one)
for name, address, correlates in [
    ("REQ_CORRELATE", service, True),
    ("a queue", one, False),
    ("two queues", two, False),
    ("two queues and REQ_CORRELATE", two, True),
]:
    # Several at once, so that their replies can be told apart by their envelopes alone.
    sockets = []
    for number in range(4):
        socket = context.socket(zmq.REQ)
        socket.linger = 0
        socket.rcvtimeo = 10_000
        if correlates:
            socket.setsockopt(zmq.REQ_CORRELATE, 1)
            socket.setsockopt(zmq.REQ_RELAXED, 1)
        socket.connect(address)
        sockets.append((socket, f"{name} {number}"))
    for turn in range(3):
        for socket, said in sockets:
            frames, _ = request(everything.Base, 0, text(f"{said} {turn}"))
            socket.send_multipart(frames)
        for socket, said in sockets:
            header, body = socket.recv_multipart()
            with wire.ReplyHeader.from_bytes(header) as reply:
                assert reply.status == 0, (said, reply.status, reply.message)
                # There is no room for an envelope in a compact message.
                assert correlates or name != "a queue" or not reply.compact
            with everything.Denied.from_bytes(body) as results:
                assert results.reason == f"{said} {turn}", (said, results.reason)

# A Bowline client may be at the other end of the queues.
print(two, flush=True)
sys.stdin.readline()
print("ok")
