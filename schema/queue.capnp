@0xb0f1a3c5d7e90231;
# Queues over the wire: a service like any other. docs/wire.md says how a producer and a worker use it.

interface JobQueue @0xb0f1a3c5d7e90232 {
  # Every method names the queue, so that one server can have several.

  describe    @0 (queue :Text, group :Text) -> Description;
  # Fails with status 5 (not found) where there is no such queue, or no such group of workers. An empty group
  # asks about the queue only.

  push        @1 (queue :Text, jobs :List(NewJob), waitMicroseconds :UInt64) -> (results :List(Pushed));
  # At most 1,024 jobs. Takes jobs in, in their order, and answers when they are as safe as the queue says. Waits so long for room.
  # May be sent again: a job is known by its identity.

  lease       @2 (queue :Text, group :Text, session :UInt64, credit :Credit, waitMicroseconds :UInt64)
              -> (jobs :List(LeasedJob));
  # Jobs for a worker, within its credit; none after the wait, or at once where the next job is larger than the
  # credit. `session` is a number that the worker drew at random and keeps as long as it runs.

  answer      @3 (queue :Text, group :Text, session :UInt64, answers :List(Answer)) -> (held :List(Bool));
  # For each answer, whether the lease still held; where not, it was refused.

  renew       @4 (queue :Text, group :Text, session :UInt64, leases :List(Lease)) -> (held :List(Bool));

  leave       @5 (queue :Text, group :Text, session :UInt64) -> ();
  # Gives back what the worker has, unbegun. Uses up no attempt.

  deadLetters @6 (queue :Text, group :Text, after :UInt64, hasAfter :Bool, max :UInt32)
              -> (letters :List(DeadLetter), more :More, next :UInt64);
  # At most so many, and no more than a message has room for. Where there are more, they are asked for with
  # `next` as `after`.

  sendBack    @7 (queue :Text, group :Text, numbers :List(UInt64)) -> (count :UInt32);

  delete      @8 (queue :Text, group :Text, numbers :List(UInt64)) -> (count :UInt32);

  find        @9 (queue :Text, id :Data) -> (isKnown :Bool, number :UInt64, state :JobState);

  counters    @10 (queue :Text, group :Text) -> Counters;

  cancel      @11 (queue :Text, id :Data) -> JobChange;
  # Ends a job that no worker has yet, in every group.

  reschedule  @12 (queue :Text, id :Data, delayMicroseconds :UInt64) -> JobChange;
  # Makes a job that no worker has yet due after this time from now, in every group.
}

enum More {
  unsaid  @0;
  # A server that does not say: there are more where the list is not empty.
  none    @1;
  some    @2;
}

struct JobChange {
  number @0 :UInt64;
  union {
    absent  @1 :Void;
    # No job of this ID is known.
    done    @2 :Void;
    tooLate @3 :JobState;
    # A worker has it, or had it, in some group; nothing was changed.
  }
}

struct Description {
  leaseMicroseconds @0 :UInt64;
  isDurable        @1 :Bool;
  fences           @2 :Bool;
  leases           @3 :Bool;
  deduplicates     @4 :Bool;
  recognisesPushes @5 :Bool;
  ordersKeys       @6 :Bool;
  delays           @7 :Bool;
  priorities       @8 :Bool;
  expires          @9 :Bool;
  deadLetters      @10 :Bool;
  finds            @11 :Bool;
  bounds           @12 :Bool;
  jobBytesMax      @13 :UInt64;
  cancels          @14 :Bool;
  typeId           @15 :UInt64;
  # Of the struct that the queue is served for; 0 where the server does not know.
  typeName         @16 :Text;
}

struct Identity {
  producerHigh @0 :UInt64;
  producerLow  @1 :UInt64;
  # The producer's ID, a UUID: its first eight bytes, big endian, in `producerHigh`.

  epoch        @2 :UInt64;
  # Greater after each start of the producer.

  sequence     @3 :UInt64;
  # Counted by the producer: the same again is the same push again.
}

enum Priority {
  high   @0;
  normal @1;
  low    @2;
}

enum JobState {
  ready    @0;
  leased   @1;
  delayed  @2;
  dead     @3;
  finished @4;
}

struct NewJob {
  identity @0 :Identity;

  id       @1 :Data;
  # The caller's own name for the job, 1 to 255 bytes; empty where it has none.

  key      @2 :Data;
  hasKey   @3 :Bool;

  priority @4 :Priority = normal;

  delayMicroseconds   @5 :UInt64;

  expiresMicroseconds @6 :UInt64;
  # After the push; 0 for never.

  body     @7 :Data;
  # The struct, a Cap'n Proto message.
}

struct Pushed {
  number @0 :UInt64;
  union {
    accepted    @1 :Void;
    duplicate   @2 :JobState;
    # A job of the same ID was there before: `number` is the original.
    again       @3 :Void;
    # This very push was accepted before.
    full        @4 :Void;
    tooLarge    @5 :UInt64;
    # The limit in bytes.
  }
}

struct Credit {
  jobs          @0 :UInt32;
  bytes         @1 :UInt64;
  takesAnyFirst @2 :Bool;
  # The first job may be larger than `bytes`: the worker has no other.
}

struct Attempts {
  refused   @0 :UInt32;
  expired   @1 :UInt32;
  lost      @2 :UInt32;
  postponed @3 :UInt32;
}

struct LeasedJob {
  number   @0 :UInt64;
  token    @1 :UInt64;
  # To be shown with each answer and renewal.
  earlier  @2 :Attempts;
  identity @3 :Identity;
  id       @4 :Data;
  key      @5 :Data;
  hasKey   @6 :Bool;
  priority @7 :Priority = normal;
  body     @8 :Data;
}

struct Lease {
  number @0 :UInt64;
  token  @1 :UInt64;
}

struct Answer {
  lease @0 :Lease;
  cause @1 :Text;
  union {
    done       @2 :Void;
    refuse     @3 :Void;
    bury       @4 :Void;
    retryAfterMicroseconds @5 :UInt64;
    abandon    @6 :Void;
    release    @7 :Void;
  }
}

struct Failure {
  kind  @0 :UInt8;
  # 0 refused, 1 expired, 2 lost, 3 put off, 4 given back.
  cause @1 :Text;
  ageMicroseconds @2 :UInt64;
}

struct DeadLetter {
  number   @0 :UInt64;
  identity @1 :Identity;
  id       @2 :Data;
  key      @3 :Data;
  hasKey   @4 :Bool;
  priority @5 :Priority = normal;
  attempts @6 :Attempts;
  failures @7 :List(Failure);
  body     @8 :Data;
}

struct Counters {
  ready     @0 :UInt64;
  leased    @1 :UInt64;
  delayed   @2 :UInt64;
  dead      @3 :UInt64;
  isBlocked @4 :Bool;
  done      @5 :UInt64;
  expired   @6 :UInt64;
  deleted   @7 :UInt64;
  damaged   @8 :UInt64;
  jobs      @9 :UInt64;
  bytes     @10 :UInt64;
  cancelled @11 :UInt64;
  producersForgotten @12 :UInt64;
}
