@0xe0f1a3c5d7e90314;
struct Own { n @0 :UInt32; }
