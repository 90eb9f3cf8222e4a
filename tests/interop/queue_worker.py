"""A worker on `Thumbnail`s that a Bowline service keeps: one is done, one refused, one renewed, one late."""

import random
import sys
import time

import zmq

from bowline_wire import call, everything, queue

socket = zmq.Context().socket(zmq.REQ)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 20_000)
socket.connect(sys.argv[1])

group = {"queue": "thumbnails", "group": "workers"}
me = {**group, "session": random.getrandbits(64)}
lease_seconds = call(socket, queue.JobQueue, "describe", **group).leaseMicroseconds / 1e6


def lease():
    """The next job; as it has one hand, its credit is one job."""
    while True:
        leased = call(
            socket,
            queue.JobQueue,
            "lease",
            **me,
            credit={"jobs": 1, "bytes": 1 << 20, "takesAnyFirst": True},
            waitMicroseconds=5_000_000,
        )
        for job in leased.jobs:
            with everything.Thumbnail.from_bytes(job.body) as thumbnail:
                return job, thumbnail.image


def shown(job):
    return {"number": job.number, "token": job.token}


def answer(job, what, **more):
    """Whether the lease still held."""
    answer = {"lease": shown(job), what: None, **more}
    return call(socket, queue.JobQueue, "answer", **me, answers=[answer]).held[0]


while True:
    job, image = lease()
    refused, lost = job.earlier.refused, job.earlier.lost
    if image == "end":
        assert answer(job, "done")
        break
    if image == "refuse" and refused == 0:
        held = answer(job, "refuse", cause="not today")
    elif image == "renew":
        # Three leases of work.
        for _ in range(9):
            time.sleep(lease_seconds / 3)
            renewed = call(socket, queue.JobQueue, "renew", **me, leases=[shown(job)])
            assert renewed.held[0], "a lease that is renewed holds"
        held = answer(job, "done")
    elif image == "late" and lost == 0:
        time.sleep(3 * lease_seconds)
        held = answer(job, "done")
    else:
        held = answer(job, "done")
    print(image, refused, lost, "held" if held else "not held", flush=True)

call(socket, queue.JobQueue, "leave", **me)
print("ok", flush=True)
