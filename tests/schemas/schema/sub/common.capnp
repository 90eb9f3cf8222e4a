@0xe0f1a3c5d7e90302;

struct Point {
  x @0 :Int32;
  y @1 :Int32;
}

interface Versioned {
  version @0 () -> (number :UInt32);
}
