@0xe0f1a3c5d7e90302;

using Everything = import "../everything.capnp";
# Which imports this one.

struct Point {
  x @0 :Int32;
  y @1 :Int32;
}

struct Painted {
  point @0 :Point;
  colour @1 :Everything.Colour = type;
}

struct Refused {
  code @0 :UInt16;
}

interface Versioned {
  version @0 () -> (number :UInt32);
}
