-- Say something in channels: on the bus of all nodes and in the histories, in one order, once.
--
-- KEYS[1] bus, stream: prev, the id of the entry before, and body  [2] the id of its last entry, string
-- KEYS[3] the id of the bus's last entry when channels began, string
-- KEYS[4] what makes it once: of a name, what was said under it, string; of a node, what it said last, list of number
--     and what was returned, by number
-- KEYS[5] the budget of who says it, string: when it is full again, in milliseconds; none where it is full
-- KEYS[6…] histories, streams of the bus's ids: prev, behind which nothing is missing before the entry, and body
-- ARGV[1] how many entries the bus keeps, about  [2] how many a history keeps  [3] milliseconds that one is kept
--     [4] the number by which a node knows what it says; 0 where it is said under a name
--     [5] milliseconds that the fourth key is kept  [6] what is returned besides
--     [7] now, in milliseconds  [8] bytes that it takes of the budget; 0 where it has none  [9] bytes of a full one
--     [10…] of each event: the key of its history, by its number; 0 for none; and the body
-- Returns the ids of the entries, by spaces, a line feed, and ARGV[6]; where it was said already, what was returned then;
-- where the budget is used up, after how many milliseconds it is not.

local BUS, LENGTH, EVENTS, TTL, NUMBER = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local SAID = 500 -- of one node: as many as may be sent again, for one lost answer
local LATE = 60000 -- milliseconds that a history is there when all of it is too old: clocks differ
local LAST = 0

local function number_of(text)
  return tonumber(string.match(text, '^%d+'))
end

if NUMBER == 0 then
  local said = redis.call('GET', KEYS[4])
  if said then
    return said
  end
else
  local last = redis.call('LINDEX', KEYS[4], -1)
  LAST = last and number_of(last) or 0
  if NUMBER <= LAST then -- sent again, or overtaken
    for _, said in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
      if number_of(said) == NUMBER then
        return string.match(said, '^%d+ (.*)$')
      end
    end
  end
end

local COST = tonumber(ARGV[8])
if COST > 0 then
  local now, budget = tonumber(ARGV[7]), tonumber(ARGV[9])
  local full = math.max(now, tonumber(redis.call('GET', KEYS[5]) or 0)) + TTL * COST / budget
  if full - now > TTL then
    return math.ceil(full - now - TTL)
  end
  redis.call('SET', KEYS[5], string.format('%.3f', full), 'PX', math.max(1, math.ceil(full - now)))
end

local position = redis.call('GET', KEYS[2]) or '0-0'
redis.call('SET', KEYS[3], position, 'NX')
local began = redis.call('GET', KEYS[3])

-- Behind which nothing of a channel can be missing that has no history when an entry comes.
local function unknown_before(id)
  local begin = math.max(0, number_of(id) - TTL - LATE)
  return number_of(began) >= begin and began or string.format('%.0f-0', begin)
end

local function keep(history, id, body)
  local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
  local prev = last and last[1] or unknown_before(id)
  local added = redis.pcall('XADD', history, 'MAXLEN', EVENTS, id, 'prev', prev, 'body', body)
  if type(added) == 'table' then -- the bus was lost, and the new one's clock is behind
    redis.call('DEL', history)
    redis.call('XADD', history, id, 'prev', id, 'body', body)
  end
  redis.call('PEXPIRE', history, TTL + LATE)
end

local ids = {}
for i = 10, #ARGV, 2 do
  local history, body = tonumber(ARGV[i]), ARGV[i + 1]
  position = redis.call('XADD', BUS, 'MAXLEN', '~', LENGTH, '*', 'prev', position, 'body', body)
  ids[#ids + 1] = position
  if history > 0 and EVENTS > 0 then
    keep(KEYS[history], position, body)
  end
end
redis.call('SET', KEYS[2], position)

local said = table.concat(ids, ' ') .. '\n' .. ARGV[6]
if NUMBER == 0 then
  redis.call('SET', KEYS[4], said, 'PX', ARGV[5])
else
  redis.call(NUMBER > LAST and 'RPUSH' or 'LPUSH', KEYS[4], ARGV[4] .. ' ' .. said)
  redis.call('LTRIM', KEYS[4], -SAID, -1)
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
return said
