@0xe0f1a3c5d7e90317;
# Names that cannot be in Rust as they are, with others there.

using Bowline = import "/bowline/bowline.capnp";
$Bowline.rustName("new_names");

enum State { unknown @0 $Bowline.rustName("notKnown"); on @1; off @2; }

struct Thing {
  which @0 :Text $Bowline.rustName("choice");
  state @1 :State;
  union { a @2 :Void; unknown @3 :Text $Bowline.rustName("other"); }
  box :group $Bowline.rustName("crate2") { x @4 :Text; }
}

struct ThingClient $Bowline.rustName("Customer") { name @0 :Text; }
interface Thing2 $Bowline.rustName("things") {
  new @0 (unknown :Text $Bowline.rustName("text")) -> () $Bowline.rustName("make");
  connect @1 () -> () $Bowline.rustName("join");
}
const thingCustomer :UInt8 = 1 $Bowline.rustName("limit");
