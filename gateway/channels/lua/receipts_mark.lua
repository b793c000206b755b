-- Mark messages as read.
--
-- ARGV[2…] their ids
-- Returns the ids of those that had not been.

forget()
local marked = {}
for i = 2, #ARGV do
  local body = redis.call('HGET', BODIES, ARGV[i])
  if body and string.sub(body, 1, 1) == '0' then
    redis.call('HSET', BODIES, ARGV[i], '1' .. string.sub(body, 2))
    table.insert(marked, ARGV[i])
  end
end
return marked
