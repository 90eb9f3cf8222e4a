@0xb0f1a3c5d7e90601;
using Bowline = import "/bowline/bowline.capnp";

interface Counter {
  # Counts, and must not count twice.

  add @0 (account :Text, by :Int64) -> (total :Int64) $Bowline.once $Bowline.fails("Refused") $Bowline.timeout("5s");
  addAgain @1 (account :Text, by :Int64) -> (total :Int64) $Bowline.once $Bowline.rerun $Bowline.timeout("5s");
  total @2 (account :Text) -> (total :Int64) $Bowline.idempotent;
}

interface Ledger {
  # Counts where its outcome is kept. For stores with transactions.

  addTogether @0 (account :Text, by :Int64) -> (total :Int64) $Bowline.once $Bowline.atomic $Bowline.timeout("5s");
}

struct Refused {
  reason @0 :Text;
}
