@0xb0f1a3c5d7e90402;

using Bowline = import "/bowline/bowline.capnp";

struct Reading $Bowline.topic("weather") {
  # What a station measured.
  station @0 :Text $Bowline.key;
  celsius @1 :Float32;
}
