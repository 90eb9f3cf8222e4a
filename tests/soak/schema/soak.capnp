@0xb0f1a3c5d7e90c01;
using Bowline = import "/bowline/bowline.capnp";

interface Shop $Bowline.timeout("2s") {
  # Has calls of every effect, and fails now and then in every way that a handler can.

  order @0 (number :UInt64) -> (total :UInt64) $Bowline.once $Bowline.atomic;
  # Counts an order, once.

  quote @1 (number :UInt64) -> (number :UInt64, padding :Data) $Bowline.idempotent;
  # The number modulo 100 decides what goes wrong: see `src/bin/shop.rs`.

  deliver @2 (number :UInt64) -> (total :UInt64) $Bowline.once $Bowline.atomic;
  # What a worker does with a parcel.

  usage @3 () -> Usage $Bowline.idempotent $Bowline.timeout("20s");
}

struct Usage {
  residentBytes @0 :UInt64;
  descriptors   @1 :UInt32;
  tasks         @2 :UInt32;
  diskBytes     @3 :UInt64;
  orders        @4 :UInt64;
  deliveries    @5 :UInt64;
  published     @6 :UInt64;
}

struct Placed $Bowline.topic("placed") {
  # An order has been placed.
  shelf  @0 :Text $Bowline.key;
  number @1 :UInt64;
}

struct Parcel $Bowline.queue("parcels") {
  number @0 :UInt64;
  text   @1 :Text;
}
