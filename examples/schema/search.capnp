@0xb0f1a3c5d7e90403;
# A search engine: who are you, what is there, what fits, what is to come, and how far are we.

using Bowline = import "/bowline/bowline.capnp";

interface Login $Bowline.timeout("2s") {
  logIn @0 (user :Text, password :Text $Bowline.secret) -> (session :Text) $Bowline.idempotent $Bowline.fails("Denied");
  whoIs @1 (session :Text) -> (user :Text) $Bowline.idempotent $Bowline.fails("Denied");
}

struct Denied {
  reason @0 :Text;
}

interface Index $Bowline.timeout("10s") {
  add @0 Incoming -> Progress $Bowline.once $Bowline.atomic $Bowline.fails("Denied");
  # Takes a document in, that of one request once; one with a known path replaces the one before. Says how far
  # its upload is then.

  lookUp @1 (terms :List(Text)) -> (documents :UInt32, averageWords :Float64, found :List(Term)) $Bowline.idempotent;
  # Where the terms are.

  fetch @2 (path :Text) -> Document $Bowline.idempotent $Bowline.fails("Missing");

  counts @3 () -> (documents :UInt64, takenIn :UInt64) $Bowline.idempotent;
  # Documents that there are, and how often one was taken in.
}

struct Document {
  path @0 :Text;
  text @1 :Text;
}

struct Incoming $Bowline.queue("incoming") {
  # A document that is to be taken in, sooner or later.
  session  @0 :Text $Bowline.secret;
  upload   @1 :Text;
  # Which documents belong together.
  document @2 :Document;
}

struct Missing {
  path @0 :Text;
}

struct Term {
  postings @0 :List(Posting);

  struct Posting {
    path  @0 :Text;
    count @1 :UInt32;
    # How often the term is in the document.
    words @2 :UInt32;
    # Words of the document.
  }
}

interface Search $Bowline.timeout("5s") {
  search @0 (session :Text, query :Text, limit :UInt16) -> (hits :List(Hit), documents :UInt32) $Bowline.idempotent $Bowline.fails("Denied");
}

struct Hit {
  path     @0 :Text;
  score    @1 :Float64;
  document @2 :Bowline.Link(Document);
  # The document itself, wherever it is.
}

struct Progress $Bowline.topic("indexing") {
  upload    @0 :Text $Bowline.key;
  documents @1 :UInt32;
  bytes     @2 :UInt64;
}
