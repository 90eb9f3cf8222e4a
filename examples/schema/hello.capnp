@0xb0f1a3c5d7e90401;

using Bowline = import "/bowline/bowline.capnp";

interface Hello {
  greet @0 (name :Text) -> (text :Text) $Bowline.idempotent $Bowline.timeout("2s");
  # Says hello to somebody.
}
