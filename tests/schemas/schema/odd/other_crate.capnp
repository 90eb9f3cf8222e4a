@0xe0f1a3c5d7e90341;
# A service over the types of another crate.

using Bowline = import "/bowline/bowline.capnp";
using Common = import "/users/common.capnp";
using Page = Common.Page;

interface Users extends(Common.Directory) {
  get @0 (name :Text) -> (user :Common.User, page :Page(Common.User)) $Bowline.fails("Common.Refused");
}
struct Refused { other @0 :UInt8; }
