"""Bowline's envelope in Python, from docs/wire.md and the schemas as they stand."""

import pathlib
import struct
import tempfile
import uuid

import capnp

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "schema"

capnp.remove_import_hook()

# What `import "/bowline/bowline.capnp"` finds.
_imports = tempfile.TemporaryDirectory()
(pathlib.Path(_imports.name) / "bowline").symlink_to(SCHEMA)

wire = capnp.load(str(SCHEMA / "wire.capnp"))
queue = capnp.load(str(SCHEMA / "queue.capnp"), imports=[_imports.name])
everything = capnp.load(
    str(ROOT / "tests/schemas/schema/everything.capnp"), imports=[_imports.name]
)

def interface_id(interface):
    return interface.schema.node.id


def text(value):
    """A struct with one Text, such as the parameters and the results of `ping`."""
    return everything.Denied.new_message(reason=value)


def request(interface, method, body, remaining_microseconds=5_000_000, correlation=314):
    """The two frames of a request, and its correlation number."""
    request_id = uuid.uuid4().int
    header = wire.RequestHeader.new_message(
        method=method,
        interface=interface_id(interface),
        requestIdHigh=request_id >> 64,
        requestIdLow=request_id & (1 << 64) - 1,
        correlation=correlation,
        remainingMicroseconds=remaining_microseconds,
    )
    return [header.to_bytes(), body.to_bytes()], correlation


def call(socket, interface, name, **params):
    """Calls a method of an interface by its name over a REQ socket, and gives its results."""
    method = interface.schema.methods[name]
    ordinal = list(interface.schema.method_names).index(name)
    # The structs of parameters and results have no names of their own.
    params_struct, results_struct = (
        capnp.lib.capnp._StructModule(struct, name)
        for struct in (method.param_type, method.result_type)
    )
    body = params_struct.new_message(**params)
    frames, correlation = request(interface, ordinal, body, 15_000_000)
    socket.send_multipart(frames)
    header, results = socket.recv_multipart()
    with wire.ReplyHeader.from_bytes(header) as reply:
        assert reply.status == 0, (reply.status, reply.message)
        assert reply.correlation == correlation
    return next(iter(results_struct.read_multiple_bytes(results)))


def pack(calls):
    """Calls in one part: header, body, header, body."""
    return b"".join(header + body for header, body in calls)


def unpack(part):
    """The calls of one part, each a header and a body."""
    messages = []
    while part:
        segments_less_one, words = struct.unpack_from("<II", part)
        assert segments_less_one == 0
        messages.append(part[: 8 + words * 8])
        part = part[8 + words * 8 :]
    return list(zip(messages[::2], messages[1::2], strict=True))


def pack_events(topic, events):
    """Events of one topic in one part."""
    return topic + b"\xff" * (8 - len(topic) % 8) + pack(events)


def unpack_events(parts):
    """The events of a message in either form, each a topic, a header and a body."""
    if len(parts) == 3:
        return [tuple(parts)]
    (part,) = parts
    topic = part[: part.index(b"\xff")]
    front = (len(topic) // 8 + 1) * 8
    return [(topic, header, body) for header, body in unpack(part[front:])]
