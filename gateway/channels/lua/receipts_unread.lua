-- What the user has not read: the message of an id, or all that one user sent.
--
-- ARGV[2] the id, or an empty string  [3] the sender, where there is no id
-- Returns ids and senders, one after the other, oldest first.

forget()
local found = {}
for _, id in ipairs(ARGV[2] == '' and redis.call('ZRANGE', ORDER, 0, -1) or { ARGV[2] }) do
  local body = redis.call('HGET', BODIES, id)
  if body and string.sub(body, 1, 1) == '0' then
    local sender = string.sub(body, 3)
    if ARGV[2] ~= '' or sender == ARGV[3] then
      table.insert(found, id)
      table.insert(found, sender)
    end
  end
end
return found
