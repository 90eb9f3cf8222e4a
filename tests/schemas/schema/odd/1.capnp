@0xe0f1a3c5d7e90313;
# A file whose name is no name in Rust.

struct One { n @0 :UInt32; }
