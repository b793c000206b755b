-- Commit what time has changed for users who were found to be due.
--
-- KEYS[6…] user and recent of each, in turn
-- ARGV[4…] each user
-- Returns result().

for i = 0, #ARGV - 4 do
  local id = ARGV[4 + i]
  local due = tonumber(redis.call('ZSCORE', DUE, id))
  if due and due <= NOW then -- another node may have been quicker
    redis.call('ZREM', DUE, id)
    local user = load(id, KEYS[6 + 2 * i], KEYS[7 + 2 * i])
    settle_by_time(user, NOW)
    save(user)
  end
end
return result()
