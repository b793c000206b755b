-- Tell what one node counts, and hear what the others do.
--
-- KEYS[1] node -> its counts, hash  [2] nodes by when their counts run out, sorted set
-- ARGV[1] node  [2] now  [3] milliseconds that its counts last; 0 ends them  [4] its counts, or empty for as they were
-- Returns 1, or 0 where they are not known and have to be told; then the counts of each other node.

for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])) do
  redis.call('ZREM', KEYS[2], node)
  redis.call('HDEL', KEYS[1], node)
end
if ARGV[3] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
elseif ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
end
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
if known == 1 then
  redis.call('ZADD', KEYS[2], string.format('%.0f', tonumber(ARGV[2]) + tonumber(ARGV[3])), ARGV[1])
end
local found = { known }
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    found[#found + 1] = all[i + 1]
  end
end
return found
