-- Record activity of many users.
--
-- KEYS[7…] user and recent of each beat, in turn
-- ARGV[4] node  [5] milliseconds that a beat without a connection keeps its user online
--     then for each beat: user, when, 1 if it keeps its user online by itself, meta as JSON or '', profile as JSON or ''
-- Returns result(). Error LEASE if the node holds no lease.

if not holds_lease(ARGV[4]) then
  return LEASE_LOST
end
local ttl = tonumber(ARGV[5])
for i = 0, (#KEYS - 6) / 2 - 1 do
  local argument = 6 + 5 * i
  local at, holds = tonumber(ARGV[argument + 1]), ARGV[argument + 2] == '1'
  local meta, profile = ARGV[argument + 3], ARGV[argument + 4]
  local user = user_at(at, ARGV[argument], KEYS[7 + 2 * i], KEYS[8 + 2 * i])
  if holds or user.status ~= 'offline' then
    note(user, {
      active_at = at,
      meta = meta ~= '' and meta or nil,
      profile = profile ~= '' and profile or nil,
      ttl_until = holds and math.max(user.ttl_until or 0, at + ttl) or nil,
    })
    settle(user, at, 'active')
  end
  save(user)
end
return result()
