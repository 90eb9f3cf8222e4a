"""A producer of `Thumbnail`s, which a Bowline service keeps: pushes some, and some of them again."""

import sys
import time
import uuid

import zmq

from bowline_wire import call, everything, queue

socket = zmq.Context().socket(zmq.REQ)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.RCVTIMEO, 20_000)
socket.connect(sys.argv[1])

producer = uuid.uuid4().int  # kept on disk by one that is to be known after a restart
epoch = time.time_ns() // 1000


def job(sequence, image, **more):
    return queue.NewJob.new_message(
        identity={
            "producerHigh": producer >> 64,
            "producerLow": producer & (1 << 64) - 1,
            "epoch": epoch,
            "sequence": sequence,
        },
        key=image.encode(),  # the field with `$key`
        hasKey=True,
        body=everything.Thumbnail.new_message(image=image, pixels=640).to_bytes(),
        **more,
    )


def push(*jobs):
    pushed = call(
        socket,
        queue.JobQueue,
        "push",
        queue="thumbnails",
        jobs=list(jobs),
        waitMicroseconds=5_000_000,
    )
    return [(result.which(), result.number) for result in pushed.results]


first = [job(0, "cat.jpg"), job(1, "dog.jpg")]
results = push(*first)
assert [what for what, _ in results] == ["accepted", "accepted"], results

# As after an answer that was lost: the same pushes, and nothing is pushed by them.
results = push(*first)
assert [what for what, _ in results] == ["again", "again"], results

# Its own name makes another push of it the same job.
((what, number),) = push(job(2, "owl.jpg", id=b"owl"))
assert what == "accepted", what
((what, original),) = push(job(3, "owl.jpg", id=b"owl"))
assert (what, original) == ("duplicate", number), what
found = call(socket, queue.JobQueue, "find", queue="thumbnails", id=b"owl")
assert (found.isKnown, found.number) == (True, number), found
print("ok", flush=True)
