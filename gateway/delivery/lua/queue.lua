-- One user's queue. Put before each script of this folder.
--
-- KEYS[1] order   zset  id -> place
-- KEYS[2] bodies  hash  id -> <when it expires> <bytes that it counts for> <the item as JSON>; '' -> bytes of all items
-- KEYS[3] queues  zset  user -> when the first item of its queue expires
-- KEYS[4] depths  hash  user -> how many items wait; '' -> how many wait for all users
-- KEYS[5…] the script's own, as its header says
-- ARGV[1] now, Unix milliseconds  [2] the user  [3…] the script's own
--
-- A user is <tenant> 0x1f <user id>. All keys have one hash tag, and a key that a script touches is among its KEYS. No key
-- has a TTL: expired items are deleted by the next script that looks into their queue, or by a sweep.

local ORDER, BODIES, QUEUES, DEPTHS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local NOW, USER = tonumber(ARGV[1]), ARGV[2]

local function first()
  local id = redis.call('ZRANGE', ORDER, 0, 0)[1]
  if id then
    return id, tonumber(string.match(redis.call('HGET', BODIES, id), '^%d+'))
  end
end

local function remove(id)
  if redis.call('ZREM', ORDER, id) == 0 then
    return 0
  end
  local bytes = string.match(redis.call('HGET', BODIES, id), '^%d+ (%d+)')
  redis.call('HINCRBY', BODIES, '', -bytes)
  redis.call('HDEL', BODIES, id)
  return 1
end

local function expire()
  local expired = 0
  local id, til = first()
  while id and til <= NOW do
    expired = expired + remove(id)
    id, til = first()
  end
  return expired
end

-- Bring queues and depths up to date with the queue.
local function settle()
  local id, til = first()
  local depth = redis.call('ZCARD', ORDER)
  local was = tonumber(redis.call('HGET', DEPTHS, USER) or 0)
  if id then
    redis.call('ZADD', QUEUES, til, USER)
    redis.call('HSET', DEPTHS, USER, depth)
  else
    redis.call('DEL', BODIES)
    redis.call('ZREM', QUEUES, USER)
    redis.call('HDEL', DEPTHS, USER)
  end
  if depth ~= was then
    redis.call('HINCRBY', DEPTHS, '', depth - was)
  end
end
