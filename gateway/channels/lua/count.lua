-- Tell how many connections of a node are in channels, and hear how many there are of all nodes.
--
-- KEYS[1] nodes by when their counts run out, sorted set  [2] channel -> connections of all nodes, hash
-- KEYS[3] changes of these, stream: channel and count  [4] the node's own counts, hash
-- KEYS[5…] the counts of nodes that ran out, each a hash
-- ARGV[1] node  [2] now  [3] milliseconds that its counts last; 0 ends them
--     [4] the id of the last change it has heard of; empty for one that is to hear all
--     [5] how many nodes ran out, and their names; then channels and the node's counts of them
-- Returns 1, or 0 where the node's counts are not known any more and have to be told; how many counts of nodes that ran
-- out are still there; the id of the last change; 1 where what follows is all there is; and channels and counts.

local NODES, ALL, CHANGES, OWN = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local NOW, KEEP, AFTER, OUT = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local LENGTH, CHUNK = 10000, 500

local function add(channel, difference)
  if difference ~= 0 then
    local count = redis.call('HINCRBY', ALL, channel, difference)
    if count <= 0 then
      redis.call('HDEL', ALL, channel)
      count = 0
    end
    redis.call('XADD', CHANGES, 'MAXLEN', '~', LENGTH, '*', 'channel', channel, 'count', count)
  end
end

local function forget(node, own)
  local counts = redis.call('HRANDFIELD', own, CHUNK, 'WITHVALUES')
  for i = 1, #counts, 2 do
    add(counts[i], -counts[i + 1])
    redis.call('HDEL', own, counts[i])
  end
  local left = redis.call('HLEN', own)
  if left == 0 then
    redis.call('ZREM', NODES, node)
  end
  return left
end

local left = 0
for i = 1, OUT do
  local node = ARGV[5 + i]
  if tonumber(redis.call('ZSCORE', NODES, node) or math.huge) <= NOW then
    left = left + forget(node, KEYS[4 + i])
  end
end

local known = 1
if KEEP == 0 then
  redis.call('ZADD', NODES, 0, ARGV[1]) -- whoever comes next takes what is left
  left = forget(ARGV[1], OWN)
else
  known = redis.call('ZSCORE', NODES, ARGV[1]) and 1 or 0
  redis.call('ZADD', NODES, string.format('%.0f', NOW + KEEP), ARGV[1])
  for i = 6 + OUT, #ARGV, 2 do
    local count = tonumber(ARGV[i + 1])
    add(ARGV[i], count - tonumber(redis.call('HGET', OWN, ARGV[i]) or 0))
    if count == 0 then
      redis.call('HDEL', OWN, ARGV[i])
    else
      redis.call('HSET', OWN, ARGV[i], count)
    end
  end
end

local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)[1]
local position = last and last[1] or '0-0'
if AFTER ~= '' and (AFTER == position or #redis.call('XRANGE', CHANGES, AFTER, AFTER) == 1) then
  local changes = {}
  for _, entry in ipairs(redis.call('XRANGE', CHANGES, '(' .. AFTER, '+')) do
    changes[#changes + 1] = entry[2][2]
    changes[#changes + 1] = entry[2][4]
  end
  return { known, left, position, 0, changes }
end
return { known, left, position, 1, redis.call('HGETALL', ALL) }
