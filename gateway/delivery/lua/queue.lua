-- One user's queue. Put before each script of this folder.
--
-- KEYS[1] order   zset  id -> place
-- KEYS[2] bodies  hash  id -> <until when> <bytes that it counts for> <the item as JSON>; '' -> bytes of all
-- KEYS[3] queues  zset  user -> when the first of its queue is over its time
-- KEYS[4] depths  hash  user -> how many wait; '' -> for all users
-- KEYS[5] aside   stream  what could not be read: user, id, and body, as it was
-- KEYS[6…] the script's own, as its header says
-- ARGV[1] now, Unix milliseconds  [2] the user  [3…] the script's own
--
-- A user is <tenant> 0x1f <user id>. All keys have one hash tag, and a key that a script touches is among its KEYS. No key
-- has a TTL: expired items are deleted by the next script that looks into their queue, or by a sweep.

local ORDER, BODIES, QUEUES, DEPTHS, ASIDE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local NOW, USER = tonumber(ARGV[1]), ARGV[2]
local ASIDE_LENGTH = 1000
local put_aside = 0 -- which each script returns

-- Until when an item is kept, and how many bytes it counts for; nothing where what is there of it says neither.
local function kept(id)
  local til, bytes = string.match(redis.call('HGET', BODIES, id) or '', '^(%d+) (%d+) ')
  return tonumber(til), tonumber(bytes)
end

local function remove(id)
  if redis.call('ZREM', ORDER, id) == 0 then
    return 0
  end
  local _, bytes = kept(id)
  if bytes then
    redis.call('HINCRBY', BODIES, '', -bytes)
  end
  redis.call('HDEL', BODIES, id)
  return 1
end

-- Take an item out that cannot be read: it holds back nobody's.
local function aside(id)
  local body = redis.call('HGET', BODIES, id) or ''
  put_aside = put_aside + remove(id)
  redis.call('XADD', ASIDE, 'MAXLEN', '~', ASIDE_LENGTH, '*', 'user', USER, 'id', id, 'body', body)
end

local function first()
  while true do
    local id = redis.call('ZRANGE', ORDER, 0, 0)[1]
    local til = id and kept(id)
    if til or not id then
      return id, til
    end
    aside(id)
  end
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
