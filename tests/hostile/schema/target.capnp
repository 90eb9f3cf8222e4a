@0xe0f1a3c5d7e91000;
using Bowline = import "/bowline/bowline.capnp";

interface Target @0xe0f1a3c5d7e91001 {
  # A service with something in it for each attack.

  echo @0 (data :Data) -> (data :Data) $Bowline.idempotent $Bowline.timeout("1s");
  large @1 (bytes :UInt32) -> (data :Data) $Bowline.idempotent $Bowline.timeout("1s");
  # Answers with up to 256 KiB.
  grow @2 (root :Node) -> (nodes :UInt64) $Bowline.idempotent $Bowline.timeout("1s");
  # Reads the tree into a plain struct.
  remember @3 (data :Data) -> (data :Data) $Bowline.once $Bowline.timeout("1s");
  # Echoes, and keeps the outcome.
}

struct Work $Bowline.queue("work") {
  data @0 :Data;
}

struct Guarded $Bowline.queue("guarded") {
  data @0 :Data;
}

struct Node {
  text     @0 :Text;
  children @1 :List(Node);
}

struct Tick $Bowline.topic("tick") {
  number   @0 :UInt64;
  unixNanoseconds @1 :UInt64;
  payload  @2 :Data;
}
