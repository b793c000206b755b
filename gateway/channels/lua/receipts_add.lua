-- Take note of a message; one that is known stays as it is.
--
-- ARGV[2] its id  [3] its sender  [4] now, in milliseconds  [5] how long it is kept, in milliseconds  [6] how many are
-- Returns 1; 0 for one that is known.

forget()
if redis.call('HEXISTS', BODIES, ARGV[2]) == 1 then
  return 0
end
local last = redis.call('ZREVRANGE', ORDER, 0, 0, 'WITHSCORES')[2]
local score = math.max(tonumber(ARGV[4]) * 1000, tonumber(last or 0) + 1)
redis.call('ZADD', ORDER, string.format('%.0f', score), ARGV[2])
redis.call('HSET', BODIES, ARGV[2], '0 ' .. ARGV[3])
remove(redis.call('ZRANGE', ORDER, 0, -1 - tonumber(ARGV[6])))
redis.call('PEXPIRE', ORDER, ARGV[5])
redis.call('PEXPIRE', BODIES, ARGV[5])
return 1
