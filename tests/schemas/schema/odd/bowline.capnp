@0xe0f1a3c5d7e90315;
# A file of the name of the crate.

struct Named { n @0 :UInt32; }
