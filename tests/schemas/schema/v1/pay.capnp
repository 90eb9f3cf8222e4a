@0xe0f1a3c5d7e90319;
using Bowline = import "/bowline/bowline.capnp";

# The first version of a service that another one stands in front of.

enum Currency { eur @0; usd @1; }

struct Payment {
  to @0 :Text;
  amount @1 :UInt64;
  currency @2 :Currency;
  accepted @3 :List(Currency);
  how :union { cash @4 :Void; card @5 :Text; }
}

interface Pay $Bowline.service("pay") { pay @0 Payment -> Payment $Bowline.idempotent; }

struct Order $Bowline.queue("orders") { account @0 :Text $Bowline.key; payment @1 :Payment; }
struct Paid $Bowline.topic("paid") { account @0 :Text $Bowline.key; payment @1 :Payment; }
