-- Give back what was lost: statuses that a node knows, at versions that are not here.
--
-- KEYS[7…] user and recent of each user, in turn
-- ARGV[4] node  [5] milliseconds that a user without connections is held online, in which their nodes register them
--     then for each user: the user, the version, and the other fields of its hash as a JSON object of strings
-- Returns result(). Error LEASE if the node holds no lease.

if not holds_lease(ARGV[4]) then
  return LEASE_LOST
end
local hold = tonumber(ARGV[5])
local NUMBERS = { 'active_at', 'online_since', 'ttl_until', 'chosen_until', 'revision' }
local TEXTS = { 'status', 'status_text', 'profile', 'meta', 'chosen', 'text', 'shown' }

-- Replace what is here by what the node knows, and hold the user online.
local function take(user, fields)
  local active_at = user.active_at
  for _, name in ipairs(NUMBERS) do
    set(user, name, tonumber(fields[name]))
  end
  for _, name in ipairs(TEXTS) do
    set(user, name, fields[name])
  end
  if active_at then
    set(user, 'active_at', math.max(active_at, user.active_at or 0))
  end
  local held = user.status ~= 'offline' and user.connections == 0
  set(user, 'grace_until', held and NOW + hold or nil)
  set(user, 'ending', held and 'node died' or nil)
  if user.status == 'offline' then
    end_session(user, NOW, 'restored')
  elseif not user.opened then
    begin_session(user, user.online_since or NOW)
  end
end

for i = 0, (#KEYS - 6) / 2 - 1 do
  local argument = 6 + 3 * i
  local user = load(ARGV[argument], KEYS[7 + 2 * i], KEYS[8 + 2 * i])
  local version, fields = tonumber(ARGV[argument + 1]), cjson.decode(ARGV[argument + 2])
  local was, was_text = seen(user)
  local taken = true
  if version > user.version then
    take(user, fields)
    set(user, 'version', version - 1) -- which change() counts on from
    change(user, was, was_text, NOW, 'restored')
  elseif version == user.version and (fields.shown and 'offline' or fields.status) ~= was then
    change(user, was, was_text, NOW, 'restored')
    taken = false
  elseif version == user.version and (tonumber(fields.revision) or 0) > (user.revision or 0) then
    take(user, fields)
    keep_private(user)
  else
    taken = false
  end
  if taken then
    if user.connections > 0 then -- a status of offline is older than their node's return
      settle(user, NOW, 'connected')
    else
      expect(user)
    end
    redis.call('HSET', STATE, 'loss_end', math.max(loss_end, NOW + hold))
  end
  save(user)
end
return result()
