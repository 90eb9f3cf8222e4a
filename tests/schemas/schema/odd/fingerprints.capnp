@0xe0f1a3c5d7e9031b;
# Each of these has what the first one has, and something new that nobody set.

using Bowline = import "/bowline/bowline.capnp";
struct Opt(T) { value @0 :T; }
struct V1 { a @0 :Text; }
struct V2p { a @0 :Text; s @1 :V1; t @2 :Text; n @3 :UInt32 = 7; g :group { x @4 :Text; } }
struct V2link { a @0 :Text; next @1 :Bowline.Link(V1); }
struct V2opt { a @0 :Text; o @1 :Opt(Text); }
struct V2def { a @0 :Text; mode @1 :Text = "fast"; }
struct V2union { a @0 :Text; union { none @1 :Void; x @2 :Text; } }
struct V2union2 { a @0 :Text; union { x @1 :Text; y @2 :Text; } }
struct V2ugrp { a @0 :Text; u :union { x @1 :V1; y @2 :Text; } }
struct V2nan { a @0 :Text; p @1 :Nan; }
struct Nan { f @0 :Float64 = nan; list @1 :List(Float64) = [nan]; }
struct V2lists { a @0 :Text; l @1 :List(Int32) = [1, 2]; s @2 :V1 = (a = "x"); d @3 :Data = 0x"01"; e @4 :Bool = true; }
struct V2own { a @0 :Text; own @1 :V2own; u :union { own @2 :V2own; b @3 :Void; } }
struct V2opt2 { a @0 :Text; o @1 :Opt(Opt(List(Text))); u :union { o @2 :Opt(Text); b @3 :Void; } }
