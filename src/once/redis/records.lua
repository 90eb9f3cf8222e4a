-- The changes of one record, each done whole or not at all, since Redis runs one script at a time.
--
-- A record is a hash: f fingerprint, e epoch, r recovery, s state, u the end of its lease or of its retention, o
-- outcome, b bytes of its reply, w whether somebody waits. It expires by itself when it is over.
-- Beside the records, `open` has those that may be in doubt, by the time at which they are, and `over`
-- those that may be forgotten, by the time at which they may, so that `totals` stays true. `shares` has what the
-- records of each scope cost; `ended:` with a scope those of its records that may be forgotten when there is no room, by
-- when they ended; `forgotten:` with a scope the latest time at which a key was made that was forgotten so. A scope is the
-- beginning of a key: a kind, a length, and a principal.
--
-- KEYS: record, open, over, totals, shares. ARGV: what to do, time ('' for the server's), key, channel, and what that takes.
-- Answers with strings and nils only.

local record, open, over, totals, shares = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local what, key, channel = ARGV[1], ARGV[3], ARGV[4]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local ABANDONED_RETENTION = 24 * 60 * 60 * 1000
local IN_FLIGHT, IN_DOUBT, DONE = '0', '1', '2'
local RECOVERY_IN_DOUBT = '0'
-- Of a name in `over`: the bytes of the reply, the epoch, and then the key.
local BYTES_END, EPOCH_END = 12, 28
-- What a record costs its scope beside its reply; records that make room for one operation; scopes that are looked at for
-- one which has something to give.
local RECORD_COST, FORGOTTEN_MAX, LARGEST_MAX = 256, 64, 16

local prefix = string.sub(record, 1, #record - #key)
local base = string.sub(prefix, 1, #prefix - #'record:')
local early = { count = 0, retained = 0, scope = '' }

local function whole(number)
  return string.format('%.0f', number)
end

local function whole_cost(records, bytes)
  return whole(0 + records * RECORD_COST + bytes)
end

local function scope_of(its_key)
  if #its_key < 3 then return its_key end
  return string.sub(its_key, 1, 3 + string.byte(its_key, 2) * 256 + string.byte(its_key, 3))
end

-- When the call began that has this key, if the key says so: it ends with a UUIDv7.
local function created_of(its_key)
  local at = #scope_of(its_key) + (string.byte(its_key, 1) == 0 and 10 or 0)
  if #its_key ~= at + 17 or string.byte(its_key, at + 1) ~= 0 then return nil end
  if math.floor(string.byte(its_key, at + 8) / 16) ~= 7 then return nil end
  local created = 0
  for i = at + 2, at + 7 do created = created * 256 + string.byte(its_key, i) end
  return created
end

local function charge(its_key, records, bytes)
  local scope = scope_of(its_key)
  local cost = redis.call('ZINCRBY', shares, whole_cost(records, bytes), scope)
  if tonumber(cost) <= 0 then redis.call('ZREM', shares, scope) end
end

local function get()
  local got = redis.call('HMGET', record, 'f', 'e', 'r', 's', 'u', 'o', 'b', 'w')
  if not got[1] then return nil end
  return { f = got[1], e = got[2], r = got[3], s = got[4], u = got[5], o = got[6], b = got[7], w = got[8] }
end

-- When it may be forgotten, if time alone decides.
local function over_at(it)
  if it.s == DONE then return tonumber(it.u) end
  if it.s == IN_FLIGHT and it.r ~= RECOVERY_IN_DOUBT then return tonumber(it.u) + ABANDONED_RETENTION end
end

local function name_in_over(it)
  return string.format('%012d', it.b) .. it.e .. key
end

-- Adds the record to the totals, or takes it out: `sign` is 1 or -1.
local function count(sign, bytes)
  redis.call('HINCRBY', totals, 'records', sign)
  redis.call('HINCRBY', totals, 'bytes', whole(0 + sign * bytes))
end

local function has_ended(it)
  return it.s == DONE or (it.s == IN_FLIGHT and it.r ~= RECOVERY_IN_DOUBT and tonumber(it.u) <= now)
end

local function remove(it)
  redis.call('DEL', record)
  redis.call('ZREM', open, key)
  redis.call('ZREM', over, name_in_over(it))
  redis.call('ZREM', base .. 'ended:' .. scope_of(key), key)
  count(-1, it.b)
  charge(key, -1, -it.b)
end

local function put(it)
  redis.call('HSET', record, 'f', it.f, 'e', it.e, 'r', it.r, 's', it.s, 'u', it.u, 'b', it.b)
  if it.o then redis.call('HSET', record, 'o', it.o) end
  if it.w then redis.call('HSET', record, 'w', it.w) end
  if it.s == IN_DOUBT then
    redis.call('ZADD', open, 0, key)
  elseif it.s == IN_FLIGHT and it.r == RECOVERY_IN_DOUBT then
    redis.call('ZADD', open, it.u, key)
  end
  local at = over_at(it)
  if at then
    redis.call('ZADD', over, whole(at), name_in_over(it))
    redis.call('PEXPIRE', record, whole(math.max(at - now, 1)))
  end
  if has_ended(it) then
    redis.call('ZADD', base .. 'ended:' .. scope_of(key), now, key)
  else
    -- It may be there of a record that has expired by itself.
    redis.call('ZREM', base .. 'ended:' .. scope_of(key), key)
  end
  count(1, it.b)
  charge(key, 1, it.b)
end

-- `new` may be nil.
local function replace(old, new)
  remove(old)
  if new then
    if new.s == IN_FLIGHT then new.w = old.w end
    put(new)
  end
  if old.w and not (new and new.w) then redis.call('PUBLISH', channel, key) end
end

-- By its name in `over`. It may have expired by itself, and its key may have been used again.
local function forget(name)
  local its_key = string.sub(name, EPOCH_END + 1)
  local its_epoch = redis.call('HGET', prefix .. its_key, 'e')
  if not its_epoch or its_epoch == string.sub(name, BYTES_END + 1, EPOCH_END) then
    redis.call('DEL', prefix .. its_key)
    redis.call('ZREM', base .. 'ended:' .. scope_of(its_key), its_key)
  end
  redis.call('ZREM', over, name)
  local bytes = tonumber(string.sub(name, 1, BYTES_END))
  count(-1, bytes)
  charge(its_key, -1, -bytes)
end

-- Keys of this scope that were made up to then may have been forgotten: until they are too old anyway. The key of a clock that
-- is ahead does not count beyond the middle between the end of its request and now: see `forgotten` in record.rs.
local function mark(its_key, ended, until_)
  local created = created_of(its_key)
  if not created then return end
  local latest = math.floor(math.min(created, (math.min(ended, now) + now) / 2 - 1))
  local name = base .. 'forgotten:' .. scope_of(its_key)
  local was = tonumber(redis.call('GET', name) or 0)
  local left = math.max(redis.call('PTTL', name), until_ - now, 1)
  redis.call('SET', name, whole(math.max(was, latest)), 'PX', whole(left))
end

-- Forgets the oldest outcome of a scope; says whether there was one.
local function forget_oldest_of(scope)
  local ended = base .. 'ended:' .. scope
  while true do
    local found = redis.call('ZRANGE', ended, 0, 0, 'WITHSCORES')
    local its_key = found[1]
    if not its_key then return false end
    redis.call('ZREM', ended, its_key)
    local got = redis.call('HMGET', prefix .. its_key, 'e', 'b', 's', 'u', 'r')
    local it = { e = got[1], b = got[2], s = got[3], u = got[4], r = got[5] }
    if it.e and has_ended(it) then
      local at = tonumber(found[2])
      mark(its_key, at, over_at(it))
      forget(string.format('%012d', it.b) .. it.e .. its_key)
      early = { count = early.count + 1, retained = math.max(now - at, 0), scope = scope }
      return true
    end
  end
end

-- Forgets the oldest outcome of the scope that has most; says whether it did. Not where the one that asks has twice as
-- much, and nothing to give.
local function forget_oldest()
  local asking = tonumber(redis.call('ZSCORE', shares, scope_of(key)) or 0)
  local largest = redis.call('ZREVRANGE', shares, 0, LARGEST_MAX - 1, 'WITHSCORES')
  for i = 1, #largest, 2 do
    if tonumber(largest[i + 1]) * 2 < asking then return false end
    if forget_oldest_of(largest[i]) then return true end
  end
  return false
end

local function has_room(records_max, bytes_max, may_forget)
  for forgotten = 0, FORGOTTEN_MAX do
    local has = redis.call('HMGET', totals, 'records', 'bytes')
    local has_records = tonumber(has[1] or 0) < records_max
    if has_records and tonumber(has[2] or 0) < bytes_max then return true end
    -- The bytes of one large reply are many small ones: what comes next goes on.
    if forgotten == FORGOTTEN_MAX then return has_records end
    if not may_forget or not forget_oldest() then return has_records and forgotten > 0 end
  end
end

local function answer(code, it)
  local forgotten = redis.call('GET', base .. 'forgotten:' .. scope_of(key)) or '0'
  local more = { forgotten, whole(early.count), whole(early.retained), early.scope }
  if not it then return { code, whole(now), false, false, false, false, false, false, unpack(more) } end
  return { code, whole(now), it.f, it.e, it.r, it.s, it.u, it.o or false, unpack(more) }
end

if what == 'read' then
  return answer('seen', get())
end

if what == 'begin' then
  local fingerprint, epoch, recovery, lease = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
  local not_after, created = tonumber(ARGV[9]), tonumber(ARGV[10])
  local retention, skew = tonumber(ARGV[11]), tonumber(ARGV[12])
  local old = get()
  if old then return answer('seen', old) end
  local is_of_age = not created
    or (created <= now + skew and math.max(now - created, 0) + skew < retention)
  local forgotten = tonumber(redis.call('GET', base .. 'forgotten:' .. scope_of(key)) or 0)
  if now > not_after or not is_of_age or (created and created <= forgotten) then return answer('seen') end
  if not has_room(tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15] == '1') then return answer('full') end
  put({ f = fingerprint, e = epoch, r = recovery, s = IN_FLIGHT, u = whole(now + lease), b = '0' })
  return answer('done')
end

if what == 'complete' then
  local epoch, retention, bytes, outcome = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
  local old = get()
  if not old or old.e ~= epoch or old.s == DONE then return answer('refused') end
  replace(old, { f = old.f, e = old.e, r = old.r, s = DONE, u = whole(now + retention), b = bytes, o = outcome })
  -- What is recorded has its room by all means: older outcomes give it.
  if ARGV[10] == '1' then has_room(math.huge, tonumber(ARGV[9]) + 1, true) end
  return answer('done')
end

if what == 'replace' then
  local epoch, state, until_, not_after = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
  local old = get()
  if now > not_after or not old or old.e ~= epoch or old.s ~= state or old.u ~= until_ then
    return answer('refused')
  end
  local new = nil
  if ARGV[9] then
    new = { f = ARGV[9], e = ARGV[10], r = ARGV[11], s = ARGV[12], u = ARGV[13], b = ARGV[14], o = ARGV[15] }
  end
  replace(old, new)
  return answer('done')
end

if what == 'wait' then
  if redis.call('HGET', record, 's') ~= IN_FLIGHT then return answer('refused') end
  redis.call('HSET', record, 'w', '1')
  return answer('done')
end

if what == 'expire' then
  local names = redis.call('ZRANGEBYSCORE', over, '-inf', whole(now), 'LIMIT', 0, ARGV[5])
  for _, name in ipairs(names) do forget(name) end
  return { 'done', whole(#names) }
end

if what == 'in doubt' then
  return redis.call('ZRANGEBYSCORE', open, '-inf', whole(now), 'LIMIT', 0, ARGV[5])
end

return redis.error_reply('ERR unknown operation ' .. what)
