-- Commit what time has changed of users whose time in due has come, and delete what was kept for long enough.
--
-- KEYS[7…] user and recent of each user, in turn
-- ARGV[4…] the users
-- Returns result().

-- Commit that a user is as if never seen, except for what they have set by hand. True if nothing is left of them.
local function forget_user(user)
  local _, _, ttl = retention()
  local gone = user.status == 'offline' and user.active_at and NOW >= user.active_at + ttl
  local version = user.version
  if version > tonumber(redis.call('HGET', STATE, floor_of(user)) or 0) then
    redis.call('HSET', STATE, floor_of(user), version)
  end
  set(user, 'version', 0)
  if user.revision then
    set(user, 'revision', user.revision + 1)
  end
  set(user, 'shown', user.shown and '{}')
  if gone then
    for _, name in ipairs({ 'active_at', 'profile', 'meta', 'sessions', 'gone_at' }) do
      set(user, name, nil)
    end
    redis.call('DEL', user.recent)
    if not (user.chosen or user.text) or has_run_out(user, NOW) or not keeps_choices() then
      redis.call('DEL', user.key)
      redis.call('SREM', USERS, user.id)
      redis.call('ZREM', DUE, user.id)
      append({ user = user.id, version = 0, status = 'offline', forgotten = version })
      user.changed = {}
      return true
    end
  end
  local entry = whole(user)
  entry.forgotten = version
  append(entry)
end

local function let_go(user)
  local _, ttl = retention()
  if user.status == 'offline' and user.sessions and user.gone_at and NOW >= user.gone_at + ttl then
    redis.call('LTRIM', user.recent, 0, -user.sessions - 1)
    set(user, 'sessions', nil)
    set(user, 'gone_at', nil)
  end
  local due = forgotten_at(user)
  if not (due and NOW >= due and forget_user(user)) then
    expect(user)
  end
end

for i = 0, #ARGV - 4 do
  local id = ARGV[4 + i]
  local due = tonumber(redis.call('ZSCORE', DUE, id))
  if due and due <= NOW then -- another node may have been quicker
    redis.call('ZREM', DUE, id)
    local user = load(id, KEYS[7 + 2 * i], KEYS[8 + 2 * i])
    settle_by_time(user, NOW)
    let_go(user)
    save(user)
  end
end
return result()
