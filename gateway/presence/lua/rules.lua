-- The rules of presence, as model.py has them, and the one way to commit. Put before each script of this folder.
--
-- KEYS[1]  log       stream  what was committed: prev, the id of the entry before, and body, as JSON
-- KEYS[2]  state     hash    position: the id of the log's last entry; attended: when a lease was last renewed;
--                            outage_begin, outage_end, loss_end: as model.Outage has them;
--                            away_after: as nodes have it;
--                            retention: likewise, as the numbers Retention.sessions, .sessions_ttl, .last_seen_ttl (0
--                            for None), and one more 0 if .choices is False;
--                            floor:<tenant>: the highest version that was forgotten in the tenant;
--                            webhooks: how many transitions the outbox keeps, missing if no node sends webhooks;
--                            webhooks_at: when a node last said so;
--                            outbox_dropped: how many transitions the full outbox has dropped
-- KEYS[3]  leases    zset    node -> when its lease ends
-- KEYS[4]  due       zset    user -> when its status will next change by itself, or sooner
-- KEYS[5]  users     set     every user that is known
-- KEYS[6]  outbox    stream  transitions that no sender of webhooks has taken yet, oldest first, each as body in the
--                            log. The field is named transition, or part if the user is in a part of a tenant
-- KEYS[7…] the script's own, as its header says. Among them may be
--          user      hash    status, status_text, version, active_at, online_since, profile, meta, ttl_until,
--                            grace_until, ending, lost_at: as model.Held has them, and c:<connection> -> node for
--                            each live connection;
--                            sessions: how many sessions are in recent; opened: how many connections were opened in the
--                            running session; gone_at: when the last one ended;
--                            chosen, text, chosen_until, revision: as model.Choice and model.Own have them;
--                            shown: what others are told of an invisible user: active_at, profile and meta, as JSON
--          recent    list    the user's last transitions, newest first; behind them the sessions, newest last, each as a
--                            JSON array of from, to, connections, reason and device
--          node      hash    connection -> JSON, for each connection of a node
-- ARGV[1]  now, Unix milliseconds
-- ARGV[2]  milliseconds without activity until a user turns away; 0 from one who is no node: as nodes have it
-- ARGV[3]  how many entries the log keeps, about; and behind spaces the traceparent and the tracestate of who commits,
--          where there are
-- ARGV[4…] the script's own
--
-- A user is <tenant> 0x1f <user id>; neither holds control characters, but for the 0x1e in a part of a tenant. All keys
-- have one hash tag. A key that a script touches is among its KEYS, so that a Cluster refuses a script whole while it
-- moves some of them.

local LOG, STATE, LEASES, DUE, USERS, OUTBOX = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local NOW, AWAY_AFTER = tonumber(ARGV[1]), tonumber(ARGV[2])
local LOG_LENGTH, TRACEPARENT, TRACESTATE = string.match(ARGV[3], '^(%d+) ?(%S*) ?(.*)$')
if TRACEPARENT == '' then
  TRACEPARENT = nil
end
if TRACESTATE == '' then
  TRACESTATE = nil
end
local RECENT = 10
local LEASE_LOST = redis.error_reply('LEASE the node holds no lease')

local state = redis.call(
  'HMGET', STATE, 'position', 'outage_begin', 'outage_end', 'loss_end', 'away_after', 'retention', 'webhooks'
)
local position = state[1] or '0-0'
local outage_begin, outage_end, loss_end = tonumber(state[2] or 0), tonumber(state[3] or 0), tonumber(state[4] or 0)
local OUTBOX_LENGTH = state[7] and tonumber(state[7])
local committed = {}
local opener -- the connection that a script counts, as JSON
if AWAY_AFTER == 0 then
  AWAY_AFTER = tonumber(state[5] or math.huge)
end

local function retention()
  local sessions, ttl, last_seen_ttl = string.match(state[6] or '0 0 0', '(%d+) (%d+) (%d+)')
  return tonumber(sessions), tonumber(ttl), tonumber(last_seen_ttl)
end

local function keeps_choices()
  return not string.match(state[6] or '', '^%d+ %d+ %d+ 0$')
end

local function holds_lease(node)
  return redis.call('ZSCORE', LEASES, node)
end

-- When something that is set to end at a time really ends, as model.Outage.delay() has it.
local function delayed(til)
  return til >= outage_begin and math.max(til, outage_end) or til
end

-- Endings that somebody meant: no grace follows them, unless connections may be missing here after an outage.
local MEANT = { goodbye = true, kicked = true, ['token expired'] = true, ['token revoked'] = true }

-- When a user's grace runs out; nil where none runs.
local function grace_end(user)
  local til = user.grace_until
  if til and MEANT[user.ending] then
    return til >= outage_begin and math.max(til, loss_end) or til
  end
  return til and delayed(til)
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
  for _, name in ipairs({
    'version', 'active_at', 'online_since', 'ttl_until', 'grace_until', 'lost_at', 'chosen_until', 'revision',
    'sessions', 'opened', 'gone_at',
  }) do
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

-- A user's whole presence, as model.published() makes it.
local function whole(user)
  local true_one = {
    status = user.status, status_text = user.status_text, active_at = user.active_at,
    online_since = user.online_since, ttl_until = user.ttl_until, profile = user.profile, meta = user.meta,
  }
  local entry = true_one
  if user.shown then
    entry = cjson.decode(user.shown)
    entry.status = 'offline'
  end
  entry.user, entry.version = user.id, user.version
  if user.revision then
    entry.own = { chosen = user.chosen, text = user.text, til = user.chosen_until, revision = user.revision }
    if user.shown then
      entry.own.hidden = true_one
    end
  end
  return entry
end

local function known(user)
  if user.new then
    redis.call('SADD', USERS, user.id)
  end
end

-- Remove one element from a user's list of transitions and sessions, by its index.
local function take_out(user, index)
  redis.call('LSET', user.recent, index, '')
  redis.call('LREM', user.recent, index < 0 and -1 or 1, '')
end

local function begin_session(user, now)
  local most, ttl = retention()
  if most == 0 then
    return
  end
  -- A connection's JSON begins with what is its device's. A quote within a text would stand behind a backslash.
  local device = opener and string.sub(opener, 1, string.find(opener, ',"tenant":', 1, true) - 1) .. '}' or 'null'
  redis.call('RPUSH', user.recent, '[' .. now .. ',null,null,null,' .. device .. ']')
  local sessions = (user.sessions or 0) + 1
  while sessions > 1 do
    local oldest = redis.call('LINDEX', user.recent, -sessions) or ''
    local ended_at = tonumber(string.match(oldest, '^%[%d+,(%d+)'))
    if sessions <= most and ended_at and now < ended_at + ttl then
      break
    end
    if string.sub(oldest, 1, 1) == '[' then
      take_out(user, -sessions)
    end
    sessions = sessions - 1
  end
  set(user, 'sessions', sessions)
  set(user, 'opened', user.connections)
end

local function end_session(user, now, reason)
  if user.opened then
    local lasting = redis.call('LINDEX', user.recent, -1) or ''
    local from, device = string.match(lasting, '^%[(%d+),null,null,null,(.*)%]$')
    if from then
      local ended = { from, now, user.opened, cjson.encode(reason), device }
      redis.call('LSET', user.recent, -1, '[' .. table.concat(ended, ',') .. ']')
    end
    set(user, 'opened', nil)
    set(user, 'gone_at', now)
  end
end

local function floor_of(user)
  return 'floor:' .. string.match(user.id, '^[^\30\31]*')
end

-- Commit a new version of a user; was and was_text are what others were told until now.
local function change(user, was, was_text, now, reason, due)
  if user.version == 0 then
    set(user, 'version', tonumber(redis.call('HGET', STATE, floor_of(user)) or 0))
  end
  set(user, 'version', user.version + 1)
  local entry = whole(user)
  entry.at, entry.was, entry.was_text, entry.reason = now, was, was_text, reason
  entry.due, entry.traceparent, entry.tracestate = due, TRACEPARENT, TRACESTATE
  local body = append(entry)
  table.insert(committed, position)
  table.insert(committed, body)
  local kept = redis.call('LPUSH', user.recent, position .. ' ' .. body) - (user.sessions or 0)
  if kept > RECENT then
    if user.sessions then
      take_out(user, RECENT)
    else
      redis.call('RPOP', user.recent)
    end
  end
  if OUTBOX_LENGTH then
    redis.call('XADD', OUTBOX, '*', string.find(user.id, '\30', 1, true) and 'part' or 'transition', body)
    if redis.call('XLEN', OUTBOX) > OUTBOX_LENGTH then -- nobody takes them: of each user the last is worth most
      redis.call('HINCRBY', STATE, 'outbox_dropped', redis.call('XTRIM', OUTBOX, 'MAXLEN', OUTBOX_LENGTH))
    end
  end
  known(user)
end

-- Commit a change that others do not see.
local function keep_private(user)
  local entry = whole(user)
  entry.private = true
  append(entry)
  known(user)
end

-- What others are told: the status, and the text beside it.
local function seen(user)
  if user.shown then
    return 'offline', nil
  end
  return user.status, user.status_text
end

-- The statuses that are shown as set, however active the user is.
local BY_HAND = { away = true, busy = true, dnd = true }

local function has_run_out(user, now)
  return user.chosen_until and now >= user.chosen_until
end

local function held_until(user)
  local til = math.max(grace_end(user) or 0, user.ttl_until and delayed(user.ttl_until) or 0)
  return til > 0 and til or nil
end

local function status_at(user, now)
  local til = held_until(user)
  if user.connections == 0 and (not til or now >= til) then
    return 'offline'
  end
  if BY_HAND[user.chosen] and not has_run_out(user, now) then
    return user.chosen
  end
  if user.active_at and now - user.active_at >= AWAY_AFTER then
    return 'away'
  end
  return 'online'
end

-- When a user who is offline is to be forgotten, as model.forgotten_at() has it; nil for never.
local function forgotten_at(user)
  local _, _, ttl = retention()
  if ttl > 0 then
    local active_at = user.shown and cjson.decode(user.shown).active_at
    active_at = tonumber(active_at or (user.status == 'offline' and user.active_at or nil))
    return active_at and active_at + ttl
  end
end

-- When something that is kept of a user is to be deleted: a session, or the user; nil for never.
local function let_go_at(user)
  local due = forgotten_at(user)
  if user.status == 'offline' and user.sessions and user.gone_at then
    local _, ttl = retention()
    due = math.min(due or math.huge, user.gone_at + ttl)
  end
  return due
end

-- Queue the time at which a user will next change without a command. If an earlier time is queued already, nothing is
-- done: the new one is computed again when that comes. So activity, which only ever postpones the change, costs nothing.
local function expect(user)
  local offline = user.status == 'offline'
  local due = (offline or user.shown) and let_go_at(user) or math.huge
  if not offline and user.connections == 0 then
    due = math.min(due, held_until(user) or math.huge)
  end
  if not offline and user.active_at and user.status ~= 'away' and not BY_HAND[user.chosen] then
    due = math.min(due, user.active_at + AWAY_AFTER)
  end
  if not offline and user.chosen_until then
    due = math.min(due, user.chosen_until)
  end
  if due < (user.due or math.huge) then
    user.due = due
    redis.call('ZADD', DUE, due, user.id)
  end
end

-- Commit the status that the rules give, if it differs from the one the user has, or if they have just set one.
local function settle(user, now, reason, chose)
  local was, hidden, ran_out = user.status, user.shown, has_run_out(user, now)
  local status = status_at(user, now)
  if status ~= was or ran_out or chose then
    local before, before_text = seen(user)
    if ran_out then
      for _, name in ipairs({ 'chosen', 'text', 'chosen_until' }) do
        set(user, name, nil)
      end
    end
    if user.revision or chose then
      set(user, 'revision', (user.revision or 0) + 1)
    end
    local appears = hidden and user.chosen ~= 'invisible'
    local vanishes = not hidden and user.chosen == 'invisible'
    if status ~= 'offline' and (appears or vanishes) then
      -- Becoming invisible looks like a goodbye, which is activity; becoming visible looks like coming online now.
      -- What the user did while unseen stays unseen.
      set(user, 'active_at', math.max(user.active_at or 0, now))
      if appears then
        set(user, 'online_since', now)
      end
      status = status_at(user, now)
    end
    set(user, 'status', status)
    local due -- when a grace or TTL ran out, if that is why the user goes
    if status == 'offline' and (reason == user.ending or reason == 'heartbeats stopped') then
      due = held_until(user)
    end
    if was == 'offline' and status ~= 'offline' then
      begin_session(user, now)
    elseif was ~= 'offline' and status == 'offline' then
      end_session(user, now, reason)
    end
    if status == 'offline' then
      for _, name in ipairs({ 'online_since', 'ttl_until', 'grace_until', 'lost_at', 'ending', 'status_text' }) do
        set(user, name, nil)
      end
    else
      set(user, 'status_text', user.text)
      if was == 'offline' then
        set(user, 'online_since', now)
      end
    end
    if appears then
      set(user, 'shown', nil)
      if status == 'offline' then
        local shown = cjson.decode(hidden)
        for _, name in ipairs({ 'active_at', 'profile', 'meta' }) do
          set(user, name, shown[name])
        end
      end
    elseif vanishes then
      set(user, 'shown', cjson.encode({ active_at = user.active_at, profile = user.profile, meta = user.meta }))
    end
    local after, after_text = seen(user)
    if after == before and after_text == before_text then
      keep_private(user)
    else
      if before ~= 'offline' and after ~= 'offline' then
        reason = ran_out and 'set by hand until now' or status == 'away' and not chose and 'inactive' or reason
      elseif user.shown ~= hidden then -- it must look as if the user had really come or gone
        reason, due = after == 'offline' and 'goodbye' or 'connected', nil
      end
      change(user, before, before_text, now, reason, due)
    end
  end
  expect(user)
end

-- Commit what time alone has changed: a grace or TTL ran out, or the user became away.
local function settle_by_time(user, now)
  if user.status ~= 'offline' then
    local by_grace = user.grace_until and user.grace_until >= (user.ttl_until or 0)
    settle(user, now, by_grace and user.ending or 'heartbeats stopped')
  end
end

-- The user, after committing what time has already changed.
local function user_at(now, id, key, recent)
  local user = load(id, key, recent)
  if user.due and user.due <= now then
    settle_by_time(user, now)
  end
  if has_run_out(user, now) then -- the user is offline, so no sweep has committed it
    settle(user, now, 'set by hand until now')
  end
  return user
end

-- Record news that changes no status, and log it if it is new and the user is online.
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
    if user.shown then
      keep_private(user)
    else
      news.user, news.version = user.id, user.version
      append(news)
    end
  end
end

-- Remove a connection; if it was the user's last, start the grace that its ending gives.
local function forget(user, connection, ending, hold, at)
  redis.call('HDEL', user.key, 'c:' .. connection)
  user.connections = user.connections - 1
  hold = math.max(hold, loss_end - at)
  if hold > 0 and user.connections > 0 then
    set(user, 'lost_at', math.max(at, user.lost_at or 0))
  elseif hold > 0 then
    -- This one may be reported late, by a node that is slow or dead: the grace counts from the last loss.
    set(user, 'grace_until', math.max(at, user.lost_at or 0) + hold)
    set(user, 'ending', ending)
  end
end

-- What a command returns: the position of the log's end, 1 if the user came back within a grace or 0, and a flat list of
-- the id and body of each transition.
local function result(resumed)
  if position ~= (state[1] or '0-0') then
    redis.call('HSET', STATE, 'position', position)
  end
  return { position, resumed and 1 or 0, committed }
end
