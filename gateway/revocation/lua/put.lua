-- Keep revocations, and let go of those whose time is over.
--
-- KEYS[1] what is kept: name -> before:until, hash  [2] names by until, sorted set  [3] names by place, sorted set
-- KEYS[4] epoch: a new one with each beginning; place and name of the last change, hash
-- ARGV[1] now  [2] how many are kept at the most  [3] an epoch, where there is none  [4…] name, before, until of each
-- Returns the names of those that found no place.
--
-- A place is a time in microseconds of Redis's clock, or one more than the last: places of a copy of this data that
-- went another way, as after a failover, do not come twice. The name of what has run out keeps its place for a minute,
-- and that of the last change for as long as it is the last, for readers to see that they go on from it.

local linger = string.format('%.0f', tonumber(ARGV[1]) + 60000)
local head = redis.call('HMGET', KEYS[4], 'epoch', 'place', 'name')
local place, last = tonumber(head[2] or '0'), head[3]
if not head[1] then
  redis.call('HSET', KEYS[4], 'epoch', ARGV[3])
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, 1000)) do
  if redis.call('HDEL', KEYS[1], name) == 1 then
    redis.call('ZADD', KEYS[2], linger, name)
  elseif name == last then
    redis.call('ZREM', KEYS[2], name)
  else
    redis.call('ZREM', KEYS[2], name)
    redis.call('ZREM', KEYS[3], name)
  end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full = {}
for i = 4, #ARGV, 3 do
  local name, before, til = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local known = redis.call('HGET', KEYS[1], name)
  local changed = not known
  if known then
    local was_before, was_til = string.match(known, '^(%-?%d+):(%d+)$')
    changed = before > tonumber(was_before) or til > tonumber(was_til)
    before, til = math.max(before, tonumber(was_before)), math.max(til, tonumber(was_til))
  end
  if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then
    full[#full + 1] = name
  elseif changed then
    place = math.max(place + 1, now)
    if last and last ~= name and redis.call('HEXISTS', KEYS[1], last) == 0 then
      redis.call('ZADD', KEYS[2], linger, last)
    end
    last = name
    redis.call('HSET', KEYS[1], name, string.format('%.0f:%.0f', before, til))
    redis.call('ZADD', KEYS[2], string.format('%.0f', til), name)
    redis.call('ZADD', KEYS[3], string.format('%.0f', place), name)
    redis.call('HSET', KEYS[4], 'place', string.format('%.0f', place), 'name', name)
  end
end
return full
