@0xb0f1a3c5d7e90211;
# What goes over the wire in front of a body. docs/wire.md explains every field and shows the bytes.
#
# Fields are only ever added, at the end. A reader ignores fields that it does not know, so that
# a peer may be older or newer than this file; `version` changes only when the meaning of what is
# here changes, and then a reader refuses what it cannot understand.

struct RequestHeader {
  version     @0 :UInt16 = 1;
  # Version of this envelope.

  method      @1 :UInt16;
  # Ordinal of the method in the interface that declares it.

  attempt     @2 :UInt16;
  # 0 for the first time that this request is sent, 1 for its first retry, and so on.

  interface   @3 :UInt64;
  # Type ID of the interface that declares the method: the number after the @ in the schema file.

  requestIdHigh @4 :UInt64;
  requestIdLow  @5 :UInt64;
  # The request ID, a UUIDv7 (RFC 9562): its first eight bytes, big endian, in `requestIdHigh`.
  # Both are 0 where the caller gave `requestKey` instead.

  correlation @6 :UInt64;
  # Any number. The reply carries the same one.

  remainingMicroseconds @7 :UInt64;
  # How long from now the caller will wait. Remaining time and not a time of day: clocks differ.
  # 0 means that the caller gave no deadline.

  requestKey  @8 :Data;
  # The caller's own request ID of 1 to 255 bytes, in place of a UUID.

  trace       @9 :TraceContext;
  metadata    @10 :List(Metadata);

  outcomeOnly @11 :Bool;
  # There is no body and nothing is to be done: the caller asks for the recorded outcome of a request ID.

  announce    @12 :Bool;
  # The client has not heard from this server yet. Where the reply takes time, the server first sends a
  # ReplyHeader with correlation 0, which says what it takes.

  bounded     @13 :Bool;
  # The client takes replies up to the sizes below; 0 stands for 1 MiB and for 1 MiB and 64 KiB.

  cancel      @14 :Bool;
  # The caller no longer waits for the reply to `correlation`. Nothing else in this header counts, the body is an
  # empty message, and there is no reply. Only for servers that say `cancels`.

  replyBodyBytesMax    @15 :UInt32;
  # Largest body of a reply that the client takes.

  replyMessageBytesMax @16 :UInt32;
  # Largest header and body of a reply together that the client takes.
}

struct ReplyHeader {
  version     @0 :UInt16 = 1;

  status      @1 :UInt16;
  # 0: success, the body is the results struct. 1 to 16: the status codes of gRPC.
  # 100: an application error, the body is the struct that the method's $fails names.

  replayed    @2 :Bool;
  # The reply is the stored outcome of an earlier attempt.

  notDone     @3 :Bool;
  # Only with a status of 1 to 16: the server knows that the work was not done. Otherwise its outcome is unknown.

  correlation @4 :UInt64;
  # That of the request.

  retryAfterMicroseconds @5 :UInt64;
  # How long the caller should wait before it tries again; 0 where the server does not say.

  message     @6 :Text;
  # For a person to read, where status is not 0.

  metadata    @7 :List(Metadata);

  done        @8 :Bool;
  # Only with a status of 1 to 16: the work was done, and only its reply is not to be had.

  reason      @9 :UInt16;
  # Only with a status of 1 to 16: which of the cases in docs/wire.md it is, or 0.

  compact     @10 :Bool;
  # The server takes requests in the compact form of docs/wire.md on this connection.

  cancels     @11 :Bool;
  # The server understands `cancel` in a request.

  requestBodyBytesMax    @12 :UInt32;
  # Largest body of a request that the server takes; 0 where it does not say. Only to a request that says `announce`.

  requestMessageBytesMax @13 :UInt32;
  # Largest header and body of a request together that the server takes; 0 where it does not say.
}

struct EventHeader {
  version     @0 :UInt16 = 1;

  kind        @1 :Kind;

  epoch       @2 :UInt64;
  # Chosen by the publisher when it starts, greater than any it had before. Sequence numbers count within it.

  sequence    @3 :UInt64;
  # event: the number of this event in its topic, from 1.
  # tail: the number of the last event of the topic, 0 if there was none.
  # tails: the number of this part of the answer, from 0.
  # confirmed: how many parts of the answer came before.

  trace       @4 :TraceContext;
  metadata    @5 :List(Metadata);

  enum Kind {
    event @0;
    # The body is the topic's struct.

    tail @1;
    # No body: announces the number of the last event, so that the loss of the last one shows too.

    confirmed @2;
    # The publisher has the subscription, and the body is a Tails. See docs/wire.md.

    refused @3;
    # The publisher does not take the subscription: no rule allows it, or it is one too many. No body.

    tails @4;
    # A part of a long answer, before its `confirmed`. The body is a Tails.
  }
}

struct Tails {
  # The topics that a subscription matches and that have had an event. Any other will begin with 1.
  tails @0 :List(Tail);

  struct Tail {
    topic    @0 :Data;
    sequence @1 :UInt64;
    # The number of its last event.
  }
}

struct TraceContext {
  # https://www.w3.org/TR/trace-context/
  traceIdHigh @0 :UInt64;
  traceIdLow  @1 :UInt64;
  parentId    @2 :UInt64;
  flags       @3 :UInt8;
  state       @4 :Text;
}

struct Metadata {
  key   @0 :Text;
  value @1 :Data;
}
