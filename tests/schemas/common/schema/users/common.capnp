@0xe0f1a3c5d7e90340;
# Types of another crate.

using Bowline = import "/bowline/bowline.capnp";

struct User { name @0 :Text; role @1 :Role; }
enum Role { admin @0; guest @1; }
struct Refused { why @0 :Text; }
struct Page(T) { first @0 :T; next @1 :Bowline.Link(Page(T)); }

interface Directory { all @0 () -> Page(User); }
