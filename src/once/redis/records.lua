-- The changes of one record, each done whole or not at all, since Redis runs one script at a time.
--
-- A record is a hash: f fingerprint, e epoch, r recovery, s state, u the end of its lease or of its retention, o
-- outcome, b bytes of its reply, w whether somebody waits. It expires by itself when it is over.
-- Beside the records, `open` has those that may be in doubt, by the time at which they are, and `over`
-- those that may be forgotten, by the time at which they may, so that `totals` stays true.
--
-- KEYS: record, open, over, totals. ARGV: what to do, time ('' for the server's), key, channel, and what that takes.
-- Answers with strings and nils only.

local record, open, over, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
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

local function whole(number)
  return string.format('%.0f', number)
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

local function remove(it)
  redis.call('DEL', record)
  redis.call('ZREM', open, key)
  redis.call('ZREM', over, name_in_over(it))
  count(-1, it.b)
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
  count(1, it.b)
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
  local its_record = string.sub(record, 1, #record - #key) .. its_key
  if redis.call('HGET', its_record, 'e') == string.sub(name, BYTES_END + 1, EPOCH_END) then
    redis.call('DEL', its_record)
  end
  redis.call('ZREM', over, name)
  count(-1, string.sub(name, 1, BYTES_END))
end

-- Forgets the outcome that would be forgotten next; says whether there was one.
local function forget_oldest()
  for _, name in ipairs(redis.call('ZRANGE', over, 0, 99)) do
    local its_record = string.sub(record, 1, #record - #key) .. string.sub(name, EPOCH_END + 1)
    local state = redis.call('HGET', its_record, 's')
    if not state or state == DONE then
      forget(name)
      return true
    end
  end
  return false
end

local function has_room(records_max, bytes_max, may_forget)
  while true do
    local has = redis.call('HMGET', totals, 'records', 'bytes')
    if tonumber(has[1] or 0) < records_max and tonumber(has[2] or 0) < bytes_max then return true end
    if not may_forget or not forget_oldest() then return false end
  end
end

local function answer(code, it)
  if not it then return { code, whole(now) } end
  return { code, whole(now), it.f, it.e, it.r, it.s, it.u, it.o or false }
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
  if now > not_after or not is_of_age then return answer('seen') end
  if not has_room(tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15] == '1') then return answer('full') end
  put({ f = fingerprint, e = epoch, r = recovery, s = IN_FLIGHT, u = whole(now + lease), b = '0' })
  return answer('done')
end

if what == 'complete' then
  local epoch, retention, bytes, outcome = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
  local old = get()
  if not old or old.e ~= epoch or old.s == DONE then return answer('refused') end
  replace(old, { f = old.f, e = old.e, r = old.r, s = DONE, u = whole(now + retention), b = bytes, o = outcome })
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
