-- The rules of presence, as model.py has them, and the one way to commit. Put before each script of this folder.
--
-- KEYS[1]  log       stream  what was committed: prev, the id of the entry before, and body, as JSON
-- KEYS[2]  state     hash    position: the id of the log's last entry; attended: when a lease was last renewed;
--                            outage_begin, outage_end: when time stood still; loss_end: until when connections may be
--                            missing here that were lost
-- KEYS[3]  leases    zset    node -> until when
-- KEYS[4]  due       zset    user -> when its status will next change by itself, or sooner
-- KEYS[5]  users     set     every user ever seen
-- KEYS[6…] the script's own, as its header says. Among them come
--          user      hash    status, version, active_at, online_since, profile, meta, ttl_until, grace_until, ending,
--                            and c:<connection> -> node for each live connection
--          recent    list    the user's last transitions, newest first
--          node      hash    connection -> JSON, for each connection of a node
-- ARGV[1]  now, Unix milliseconds
-- ARGV[2]  milliseconds without activity until a user turns away
-- ARGV[3]  how many entries the log keeps, about
-- ARGV[4…] the script's own
--
-- A user is <tenant> 0x1f <user id>; neither holds control characters. All keys have one hash tag. A key that a script
-- touches is among its KEYS, so that a Cluster refuses a script whole while it moves some of them.

local LOG, STATE, LEASES, DUE, USERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local NOW, AWAY_AFTER, LOG_LENGTH = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local RECENT = 10
local LEASE_LOST = redis.error_reply('LEASE the node holds no lease')

local state = redis.call('HMGET', STATE, 'position', 'outage_begin', 'outage_end', 'loss_end')
local position = state[1] or '0-0'
local outage_begin, outage_end, loss_end = tonumber(state[2] or 0), tonumber(state[3] or 0), tonumber(state[4] or 0)
local committed = {}

local function holds_lease(node)
  return redis.call('ZSCORE', LEASES, node)
end

-- When what would run out at a time does run out: time may have stood still.
local function delayed(til)
  return til >= outage_begin and math.max(til, outage_end) or til
end

local function load(id, key, recent)
  local user = { id = id, key = key, recent = recent, connections = 0, status = 'offline', version = 0, changed = {} }
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if string.sub(name, 1, 2) == 'c:' then
      user.connections = user.connections + 1
    else
      user[name] = value
    end
  end
  for _, name in ipairs({ 'version', 'active_at', 'online_since', 'ttl_until', 'grace_until' }) do
    user[name] = tonumber(user[name])
  end
  user.new = #fields == 0
  user.due = tonumber(redis.call('ZSCORE', DUE, id))
  return user
end

local function set(user, name, value)
  if user[name] ~= value then
    user[name] = value
    user.changed[name] = true
  end
end

local function save(user)
  local values, gone = {}, {}
  for name in pairs(user.changed) do
    if user[name] == nil then
      table.insert(gone, name)
    else
      table.insert(values, name)
      table.insert(values, user[name])
    end
  end
  if #values > 0 then
    redis.call('HSET', user.key, unpack(values))
  end
  if #gone > 0 then
    redis.call('HDEL', user.key, unpack(gone))
  end
end

local function append(entry)
  local body = cjson.encode(entry)
  position = redis.call('XADD', LOG, 'MAXLEN', '~', LOG_LENGTH, '*', 'prev', position, 'body', body)
  return body
end

-- Commit a new version of a user, who was of another status before.
local function change(user, was, now, reason)
  set(user, 'version', user.version + 1)
  local body = append({
    user = user.id, version = user.version, at = now, was = was, status = user.status, reason = reason,
    active_at = user.active_at, online_since = user.online_since, ttl_until = user.ttl_until,
    profile = user.profile, meta = user.meta,
  })
  table.insert(committed, position)
  table.insert(committed, body)
  redis.call('LPUSH', user.recent, position .. ' ' .. body)
  redis.call('LTRIM', user.recent, 0, RECENT - 1)
  if user.new then
    redis.call('SADD', USERS, user.id)
  end
end

local function held_until(user)
  local til = math.max(user.grace_until or 0, user.ttl_until or 0)
  return til > 0 and delayed(til) or nil
end

local function status_at(user, now)
  local til = held_until(user)
  if user.connections == 0 and (not til or now >= til) then
    return 'offline'
  end
  if user.active_at and now - user.active_at >= AWAY_AFTER then
    return 'away'
  end
  return 'online'
end

-- Queue the time at which a user will next change by themselves. A later time than the one queued is left to be found
-- when that one comes up: activity, which only ever moves the time back, costs no queue operation.
local function expect(user)
  if user.status == 'offline' then
    return
  end
  local due = user.connections == 0 and held_until(user) or nil
  if user.active_at and user.status ~= 'away' then
    due = math.min(due or math.huge, user.active_at + AWAY_AFTER)
  end
  if due and (not user.due or due < user.due) then
    user.due = due
    redis.call('ZADD', DUE, due, user.id)
  end
end

-- Commit the status that the rules give, if it is not the one the user has.
local function settle(user, now, reason)
  local was, status = user.status, status_at(user, now)
  if status ~= was then
    set(user, 'status', status)
    if status == 'offline' then
      for _, name in ipairs({ 'online_since', 'ttl_until', 'grace_until', 'ending' }) do
        set(user, name, nil)
      end
    elseif was == 'offline' then
      set(user, 'online_since', now)
    end
    change(user, was, now, status == 'away' and 'inactive' or reason)
  end
  expect(user)
end

-- Commit what time alone has done to a user: out of a grace or a TTL, or away. It brings nobody online.
local function settle_by_time(user, now)
  if user.status ~= 'offline' then
    local by_grace = user.grace_until and user.grace_until >= (user.ttl_until or 0)
    settle(user, now, by_grace and user.ending or 'heartbeats stopped')
  end
end

-- The user, with what time has already done to it committed.
local function user_at(now, id, key, recent)
  local user = load(id, key, recent)
  if user.due and user.due <= now then
    settle_by_time(user, now)
  end
  return user
end

-- Record news that is no change of status; log it where it is news of a user who is there.
local function note(user, news)
  if news.active_at and news.active_at <= (user.active_at or 0) then
    news.active_at = nil
  end
  for name, value in pairs(news) do
    if user[name] == value then
      news[name] = nil
    else
      set(user, name, value)
    end
  end
  if next(news) and user.status ~= 'offline' then
    news.user, news.version = user.id, user.version
    append(news)
  end
end

-- Take a connection away, and start the grace its ending gives where it was the last that is known here.
local function forget(user, connection, ending, hold, at)
  redis.call('HDEL', user.key, 'c:' .. connection)
  user.connections = user.connections - 1
  hold = math.max(hold, loss_end - at)
  if hold > 0 and user.connections == 0 then
    set(user, 'grace_until', at + hold)
    set(user, 'ending', ending)
  end
end

-- The position of the log's end, whether a grace was resumed from, and id and body of each transition, in turn.
local function result(resumed)
  if position ~= (state[1] or '0-0') then
    redis.call('HSET', STATE, 'position', position)
  end
  return { position, resumed and 1 or 0, committed }
end
