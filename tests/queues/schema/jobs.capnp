@0xe0a7f2b15c3d4e01;

using Bowline = import "/bowline/bowline.capnp";

struct Step $Bowline.queue("steps") {
  # A step of a piece of work, of which the steps are done in their order.
  work   @0 :Text $Bowline.key;
  number @1 :UInt64;
}

struct Note $Bowline.queue("notes") {
  number @0 :UInt64;
  text   @1 :Text;
}

interface Ledger $Bowline.timeout("10s") {
  # What a job does that must be done once.
  enter @0 Note -> (times :UInt64) $Bowline.once $Bowline.atomic;
  # How often a note of this text has been entered.
}
