@0xe0f1a3c5d7e90342;
# What a second compilation of the same build.rs compiles, over types of the first.

using Everything = import "/everything.capnp";

struct Later { shape @0 :Everything.Shape; colours @1 :List(Everything.Colour); }
