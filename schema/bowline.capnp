@0xb0f1a3c5d7e90200;
# What a schema can say about a service beyond its types. A team's schema imports it with
#
#     using Bowline = import "/bowline/bowline.capnp";
#
# and bowline-build finds it without a copy in the team's tree.

annotation service @0xb0f1a3c5d7e90201 (interface) :Text;
# The name that the service is found and shown under. Without it, the interface's name in snake_case. This name and those
# of topics and queues are letters and digits of ASCII, and between them '-', '_', '.', ':' and '/'.

annotation idempotent @0xb0f1a3c5d7e90202 (method) :Void;
# f(x) = f(f(x)) by nature: may be sent again at any time, and nothing is stored.

annotation once @0xb0f1a3c5d7e90203 (method) :Void;
# At most one recorded outcome per request ID: a retry gets the stored reply. What a retry gets after a
# crash in between is "outcome unknown", unless one of the next two says more.

annotation rerun @0xb0f1a3c5d7e9020a (method) :Void;
# Beside $once: what was begun and not recorded may be run again.

annotation atomic @0xb0f1a3c5d7e9020b (method) :Void;
# Beside $once: the outcome commits in the transaction of the work itself, so that what was not recorded
# was not done. Needs a store with transactions.

annotation timeout @0xb0f1a3c5d7e90204 (interface, method) :Text;
# How long a caller waits unless it says otherwise: a number and a unit of "us", "ms", "s", "min" or "h".
# On an interface it holds for the methods that have none of their own.

annotation fails @0xb0f1a3c5d7e90205 (method) :Text;
# The struct that the method answers with when it fails, named as a field's type would be: "BadPassword" or
# "Common.Refused". It has no type parameters.

annotation topic @0xb0f1a3c5d7e90206 (struct) :Text;
# Events of this struct are published under this topic.

annotation queue @0xb0f1a3c5d7e90207 (struct) :Text;
# Jobs of this struct go through this queue.

annotation key @0xb0f1a3c5d7e90208 (field) :Void;
# Of a topic: its value is the last part of the topic. Of a queue: jobs with equal keys stay in order. It is in a struct
# with $topic or $queue, or in a group of one, and shows in topics and logs: it is never $secret.

annotation secret @0xb0f1a3c5d7e90209 (field, param) :Void;
# The value never appears in Debug output.

annotation rustName @0xb0f1a3c5d7e9020c (file, const, enum, enumerant, struct, field, union, group, interface, method, param) :Text;
# Makes the names in Rust of this one ("notKnown" gives `not_known` or `NotKnown`) instead of the declared name, which
# stays what is sent and what JSON has. On a file, the name of its module.

struct Link(T) {
  # A reference to a resource of another service: a call that yields a T, ready to be made.
  service    @0 :Text;
  # The name of the service, as in $service.
  interface  @1 :UInt64;
  method     @2 :UInt16;
  parameters @3 :Data;
  # The parameters of that call, as a Cap'n Proto message.
}
