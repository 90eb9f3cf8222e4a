@0xe0f1a3c5d7e90316;
# Types of the names that generated code could mean others by.

using Bowline = import "/bowline/bowline.capnp";

struct Option { some @0 :Text; none @1 :String; }
struct String { string @0 :Text; }
struct Vec(Self) { vec @0 :List(Box); self @1 :Self; }
struct Box { box @0 :Text; core @1 :Core; struct Core { std @0 :Text; } }
struct Result(Option, option) { ok @0 :Option; err @1 :option; }
struct Default { default @0 :UInt8 = 7; clone @1 :Bool = true; }
struct Bytes { u8 @0 :List(UInt8); u16 @1 :Data = 0x"0102"; empty @2 :Data = ""; }
struct Plain { from @0 :Text; to @1 :Text; message @2 :Text; value @3 :Int8; i @4 :List(Text); }
struct Ok { ok @0 :Void; }
struct Status { code @0 :UInt16; }
struct Request { id @0 :Text; }
struct Reply { plain @0 :Text; }
struct Call { call @0 :Text; }
enum From { self @0; crate @1; super @2; from @3; }
enum Error { some @0; none @1; ok @2; err @3; default @4; }
enum Nothing {}

struct Members {
  union {
    which @0 :UInt32;
    reader @1 :Text;
    builder @2 :Members;
    owned @3 :Void;
    pipeline @4 :Pipeline;
    whichReader @5 :Bool;
    self @6 :Void;
    colour @7 :Colour;
    async :group { await @8 :Text; match @9 :Nothing; }
    move :group { gen @10 :Bool; }
  }
  enum Colour { reader @0; self @1; }
  enum Which { which @0; builder @1; }
  struct Pipeline { reader @0 :Text; colour :group { dyn @1 :Colour; try @2 :Which; } }
  const reader2 :UInt8 = 1;
}

struct Groups {
  async :group { a @0 :Text; }
  once :group { b @1 :UInt8 = 3; }
  which :group { c @2 :Text; }
}

interface Send { clone @0 (self :Text) -> (self :Text); }
interface Sync extends(Send) { call @0 (service :Text) -> (service :Text); into @1 () -> (); drop @2 () -> (); fmt @3 () -> (); }
interface Future { poll @0 (poll :Request) -> Status; request @1 Request -> Reply; service @2 Call -> Option $Bowline.fails("Error2"); }
struct Error2 { error @0 :Text; }
interface Server2 { new2 @0 (t :Text) -> (); t @1 () -> (); s @2 () -> () $Bowline.once; }
const ok :UInt8 = 1;
const self :Text = "self";
const async :List(Text) = ["a"];
const struct :Option = (some = "x");
const match :Error = none;
