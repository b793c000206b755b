-- What one user has been sent, and has read: what every script of receipts begins with.
--
-- KEYS[1] order: zset of message ids by when they came, in milliseconds times a thousand  [2] bodies: hash of id ->
--     "0 <sender>", or "1 <sender>" of one that was read
-- ARGV[1] up to when what came is too old, in milliseconds

local ORDER, BODIES = KEYS[1], KEYS[2]

local function remove(ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', ORDER, id)
    redis.call('HDEL', BODIES, id)
  end
end

local function forget()
  remove(redis.call('ZRANGEBYSCORE', ORDER, '-inf', string.format('%.0f', tonumber(ARGV[1]) * 1000 + 999)))
end
