@0xe0f1a3c5d7e90301;
# Uses all that a schema can have.

using Bowline = import "/bowline/bowline.capnp";
using Common = import "sub/common.capnp";

const maxLength :UInt32 = 314;
# The longest of all.
const greeting :Text = "hello";

enum Colour {
  # What it looks like.
  red @0;
  # Like a rose.
  green @1;
  type @2;
}

struct Numbers {
  void @0 :Void;
  flag @1 :Bool = true;
  i8 @2 :Int8 = -8;
  i16 @3 :Int16;
  i32 @4 :Int32;
  i64 @5 :Int64;
  u8 @6 :UInt8;
  u16 @7 :UInt16;
  u32 @8 :UInt32 = 32;
  u64 @9 :UInt64;
  f32 @10 :Float32;
  f64 @11 :Float64 = 0.5;
  colour @12 :Colour = green;
}

struct Lists {
  flags @0 :List(Bool);
  numbers @1 :List(Int32) = [1, 2, 3];
  bytes @2 :List(UInt8);
  texts @3 :List(Text);
  datas @4 :List(Data);
  structs @5 :List(Numbers);
  colours @6 :List(Colour);
  lists @7 :List(List(Text));
  text @8 :Text = "default";
  data @9 :Data;
}

struct Keywords {
  # Names that mean something to Rust.
  type @0 :Text;
  match @1 :UInt32;
  self @2 :Bool;
  box :group {
    async @3 :Text;
    crate @4 :UInt8;
  }
}

struct Shape {
  # A union and nothing else.
  union {
    none @0 :Void;
    circle @1 :Float64;
    name @2 :Text;
    sides @3 :List(Float64);
    colour @4 :Colour;
    numbers @5 :Numbers;
    rectangle :group {
      width @6 :UInt32;
      height @7 :UInt32;
    }
  }
}

struct Account {
  # Has fields and a union.
  name @0 :Text;
  password @1 :Text $Bowline.secret;
  union {
    free @2 :Void;
    paid @3 :UInt32;
    token @4 :Text $Bowline.secret;
  }
  shape @5 :Shape;
}

struct Tree {
  # Contains itself.
  value @0 :Int64;
  left @1 :Tree;
  right @2 :Tree;
  children @3 :List(Tree);
  more :union {
    leaf @4 :Void;
    node @5 :Tree;
  }
}

struct Pair(A, B) {
  first @0 :A;
  second @1 :B;
}

struct Pairs {
  texts @0 :Pair(Text, Data);
  structs @1 :Pair(Numbers, Pair(Text, List(Text)));
  list @2 :List(Pair(Text, Numbers));
  common @3 :Common.Point;
  link @4 :Bowline.Link(Account);
}

struct Outer {
  inner @0 :Inner;
  struct Inner {
    deep @0 :Deep;
    enum Deep { one @0; two @1; }
    const limit :UInt16 = 7;
  }
}

struct Progress $Bowline.topic("progress") {
  job @0 :Text $Bowline.key;
  done @1 :UInt32;
}

struct Sample $Bowline.topic("sample") {
  series @0 :Text $Bowline.key;
  payload @1 :Data;
}

struct Tick $Bowline.topic("tick") $Bowline.queue("ticks") {
  number @0 :UInt64 $Bowline.key;
}

struct Older {
  # What a peer knows whose schema is older than that of the next.
  name @0 :Text;
  state :union {
    off @1 :Void;
    on @2 :UInt32;
  }
}

struct Newer {
  name @0 :Text;
  state :union {
    off @1 :Void;
    on @2 :UInt32;
    dimmed @4 :UInt64;
  }
  more @3 :Text;
  numbers @5 :List(Numbers);
}

struct Vault {
  # Has secrets of its own, and in all that it has.
  account @0 :Account;
  accounts @1 :List(Account);
  pair @2 :Pair(Account, Text);
  box :group {
    label @3 :Text;
    pin @4 :Text $Bowline.secret;
  }
  lock :union {
    open @5 :Void;
    owner @6 :Account;
    code @7 :Text $Bowline.secret;
  }
  spare @8 :Vault;
  painted @9 :Common.Painted;
}

struct Denied {
  # Why not.
  reason @0 :Text;
}

interface Base {
  ping @0 (text :Text) -> (text :Text) $Bowline.idempotent;
}

interface Login extends(Base, Common.Versioned) $Bowline.service("logins") $Bowline.timeout("2s") {
  # Lets people in.
  logIn @0 (user :Text, password :Text $Bowline.secret) -> (session :Text) $Bowline.once $Bowline.fails("Denied") $Bowline.timeout("250ms");
  # Makes a session.
  logOut @1 Tick -> Numbers;
  match @2 () -> ();
  pair @3 Pair(Text, Text) -> Pair(Text, Text);
}

interface Admin extends(Login, Base) {
  # Has Base twice, and all of its methods once.
  ban @0 (user :Text) -> () $Bowline.once $Bowline.rerun $Bowline.fails("Common.Refused");
  wipe @1 () -> () $Bowline.once $Bowline.atomic;
}

interface Reading {
  # Reads all that it is sent.
  lists @0 Lists -> Tick;
  tree @1 Tree -> Tick;
}

interface Other {
  logIn @0 (user :Text) -> (session :Text);
}

struct Thumbnail $Bowline.queue("thumbnails") {
  image @0 :Text $Bowline.key;
  pixels @1 :UInt32;
}
