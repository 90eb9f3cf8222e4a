@0xb0f1a3c5d7e90701;
using Bowline = import "/bowline/bowline.capnp";

interface Counter {
  # Counts, and must not count twice.

  add @0 (by :UInt64) -> (total :UInt64) $Bowline.once $Bowline.timeout("2s");
  total @1 () -> (total :UInt64, records :UInt64) $Bowline.idempotent;
}

interface Work {
  # Does what takes time and can be done by so many hands at once.

  work @0 (number :UInt64) -> (number :UInt64) $Bowline.idempotent $Bowline.timeout("1s");
  seen @1 () -> (calls :UInt64, done :UInt64) $Bowline.idempotent;
  stall @2 (milliseconds :UInt32) -> () $Bowline.idempotent;
  # Nothing is done for so long; what comes in has to wait.
}
