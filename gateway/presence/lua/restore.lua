-- Give back what was lost: statuses that a node knows, of versions that are not here.
--
-- KEYS[6…] user and recent of each, in turn
-- ARGV[4] node  [5] milliseconds that a user is held whose connections are not here, and that nodes have to register them
-- then for each: user, status, version, and active_at, online_since, ttl_until, profile, meta, or '' for none
-- Returns result(); LEASE where the node holds none.

if not holds_lease(ARGV[4]) then
  return LEASE_LOST
end
local hold = tonumber(ARGV[5])
for i = 0, (#KEYS - 5) / 2 - 1 do
  local argument = 6 + 8 * i
  local user = load(ARGV[argument], KEYS[6 + 2 * i], KEYS[7 + 2 * i])
  local status, version = ARGV[argument + 1], tonumber(ARGV[argument + 2])
  local was = user.status
  if version > user.version then
    local function known(offset)
      local value = ARGV[argument + offset]
      return value ~= '' and value or nil
    end
    local active_at = tonumber(known(3))
    set(user, 'status', status)
    set(user, 'version', version - 1) -- which change() counts on from
    set(user, 'active_at', active_at and math.max(active_at, user.active_at or 0) or user.active_at)
    set(user, 'online_since', tonumber(known(4)))
    set(user, 'ttl_until', tonumber(known(5)))
    set(user, 'profile', known(6))
    set(user, 'meta', known(7))
    local held = status ~= 'offline' and user.connections == 0
    set(user, 'grace_until', held and NOW + hold or nil)
    set(user, 'ending', held and 'node died' or nil)
    change(user, was, NOW, 'restored')
    if user.connections > 0 then -- that a user is gone was so before their node came back
      settle(user, NOW, 'connected')
    else
      expect(user)
    end
    redis.call('HSET', STATE, 'loss_end', NOW + hold)
  elseif version == user.version and status ~= user.status then
    change(user, was, NOW, 'restored')
  end
  save(user)
end
return result()
