@0xb0f1a3c5d7e90221;
# What the stores of request outcomes keep under each key. Not on the wire between services; stores that
# are shared or outlive a process have it as bytes. Fields are only ever added.

struct Record {
  fingerprint @0 :Data;
  # BLAKE3 of the canonical parameters, 32 bytes.

  owner       @1 :UInt64;
  number      @2 :UInt64;
  # Together the fencing token of the attempt that has it, or had it last.

  recovery    @3 :Recovery;
  # What a retry gets if that attempt died.

  state :union {
    inFlight  @4 :UInt64;
    # The end of its lease, in milliseconds since 1970.

    inDoubt   @5 :Void;

    done :group {
      expires  @6 :UInt64;
      # In milliseconds since 1970.

      outcome  @7 :Outcome;
    }
  }

  begunBefore @8 :Bool;
  # Whether an earlier attempt was begun and ended without an outcome.

  enum Recovery {
    inDoubt @0;
    rerun   @1;
    atomic  @2;
  }
}

struct Outcome {
  isApplicationError @0 :Bool;

  kept :union {
    reply :group {
      body     @1 :Data;
      metadata @2 :List(Metadata);
    }
    notRetained :group {
      digest   @3 :Data;
      bytes    @4 :UInt64;
    }
  }
}

struct Metadata {
  key   @0 :Text;
  value @1 :Data;
}
