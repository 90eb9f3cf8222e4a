@0xe0f1a3c5d7e90319;
# The next version of v1/pay.capnp: with the IDs of that one.
using Bowline = import "/bowline/bowline.capnp";

enum Currency { eur @0; usd @1; chf @2; }

struct Payment {
  to @0 :Text;
  amount @1 :UInt64;
  currency @2 :Currency;
  accepted @3 :List(Currency);
  how :union { cash @4 :Void; card @5 :Text; transfer :group { iban @6 :Text; purpose @7 :Text; } }
  note @8 :Text;
}

interface Pay $Bowline.service("pay") { pay @0 Payment -> Payment $Bowline.idempotent; refund @1 Payment -> Payment; }

struct Order $Bowline.queue("orders") { account @0 :Text $Bowline.key; payment @1 :Payment; }
struct Paid $Bowline.topic("paid") { account @0 :Text $Bowline.key; payment @1 :Payment; }
