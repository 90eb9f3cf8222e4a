@0xe0f1a3c5d7e90318;
# What is natural in a schema and awkward in Rust.

using Bowline = import "/bowline/bowline.capnp";

struct Map(Key, Value) {
  entries @0 :List(Entry);
  first @1 :Entry;
  struct Entry { key @0 :Key; value @1 :Value; union { fresh @2 :Void; old @3 :Old; } struct Old { was @0 :Value; why @1 :Text; } }
}

struct Page {
  items @0 :List(Bowline.Link(Item));
  names @1 :Map(Text, Item);
  entry @2 :Map(Text, List(Float64)).Entry;
  cached @3 :Cached(Item);
  maybe @4 :Maybe(Text);
  node @5 :Node;
  swap @6 :Swap(Text, Data);
  labelled @7 :Labelled(Text, Item);
}
struct Item { n @0 :UInt32; kinds @1 :List(Kind); grid @2 :List(List(Kind)); pair @3 :Cached(List(Kind)); kind @4 :Kind = two; }
struct Box(T) { value @0 :T; note @1 :Text; }
struct Node { n @0 :UInt32; next @1 :Box(Node); all @2 :List(Box(Node)); }
struct Cached(T) { value @0 :T; union { fresh @1 :Void; age @2 :Int64; } }
struct Maybe(T) { union { none @0 :Void; number @1 :Int64; } }
struct Swap(A, B) { a @0 :A; b @1 :B; again @2 :Swap(B, A); }
struct Labelled(T, t) { label @0 :Text; kept :group { value @1 :T; } }
enum Kind { one @0; two @1; three @2; }

struct Order $Bowline.queue("orders.by-customer") {
  customer :group { id @0 :Text $Bowline.key; name @1 :Text; address :group { city @2 :Text; } }
  total @3 :UInt64;
}

interface Left { ping @0 (x :Text) -> (x :Text); left @1 () -> (); }
interface Right { ping @0 () -> (y :Text); }
interface Both extends(Left, Right) { both @0 () -> (); }
interface Again extends(Left) { ping @0 (x :Text, y :Text) -> (); }
interface Further extends(Left) { further @0 () -> (); }
interface Deeper extends(Both, Again) {}

struct Point { x @0 :Float64; y @1 :Float32; }
struct Values {
  point @0 :Point;
  points @1 :List(Point);
  nan @2 :Float64 = nan;
  inner @3 :Inner;
  infinite @4 :List(Float32);
  struct Inner { f @0 :Float64 = nan; s @1 :Text = "$crate::x"; list @2 :List(Float64) = [nan, 1.5]; shape @3 :Point = (x = 1.5); }
}
struct Deep { v @0 :UInt32; next @1 :Deep; lists @2 :List(List(List(Text))); }
