@0xe0f1a3c5d7e90303;
# Nothing in it, nor its own name, is not a keyword of Rust.

using Bowline = import "/bowline/bowline.capnp";

interface Trait {
  fn @0 (impl :Text, where :Loop) -> (return :Text, else :Loop) $Bowline.fails("Break");
}

struct Loop {
  union {
    while @0 :Void;
    for @1 :Match;
    in :group {
      mut @2 :Bool;
      ref @3 :List(Match);
    }
  }
}

struct Break {
  static @0 :Text;
}

enum Match {
  if @0;
  async @1;
}

const use :UInt8 = 7;
