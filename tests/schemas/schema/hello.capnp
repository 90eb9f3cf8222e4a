@0xe0f1a3c5d7e90304;
# The service of the front page of the documentation.

using Bowline = import "/bowline/bowline.capnp";

interface Hello {
  greet @0 (name :Text) -> (text :Text) $Bowline.idempotent $Bowline.timeout("2s");
}
