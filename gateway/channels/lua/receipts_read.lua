-- Which messages the user has read.
--
-- ARGV[2…] their ids
-- Returns the ids of those that were.

forget()
local found = {}
for i = 2, #ARGV do
  local body = redis.call('HGET', BODIES, ARGV[i])
  if body and string.sub(body, 1, 1) == '1' then
    table.insert(found, ARGV[i])
  end
end
return found
