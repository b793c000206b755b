-- Give a node a lease, or prolong the one it has.
--
-- KEYS[7] dying, zset: node -> when its lease ran out, for each node whose connections are being ended
-- ARGV[4] node  [5] milliseconds of a lease  [6] the id of the last entry of the log that the node has read
--     [7] 1 if the node could not reach Redis before  [8] milliseconds without a renewal that count as an outage
--     [9] retention, as in state  [10] how many transitions the outbox keeps, or 0 if the node sends no webhooks
--     [11] milliseconds that the outbox is written after the last node that sends webhooks was heard of
--     [12] milliseconds within which every node is back after an outage
-- Returns {1 if it still had a lease, 1 if the log holds that entry, 1 if retention has changed}.

local node, lease, last = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local attended = tonumber(redis.call('HGET', STATE, 'attended'))
if ARGV[7] == '1' and attended and NOW - attended >= tonumber(ARGV[8]) then
  -- An outage that follows another before it is over continues that one: nothing has run out in between.
  local begin = attended < outage_end and math.min(outage_begin, attended) or attended
  local back = math.max(loss_end, NOW + tonumber(ARGV[12]))
  redis.call('HSET', STATE, 'outage_begin', begin, 'outage_end', NOW + lease, 'loss_end', back)
end
redis.call('HSET', STATE, 'attended', math.max(attended or 0, NOW), 'away_after', AWAY_AFTER, 'retention', ARGV[9])
-- One node that sends webhooks is enough: the transitions of other nodes and clients are written to the outbox, too.
if ARGV[10] ~= '0' then
  redis.call('HSET', STATE, 'webhooks', ARGV[10], 'webhooks_at', NOW)
elseif OUTBOX_LENGTH and NOW - tonumber(redis.call('HGET', STATE, 'webhooks_at')) > tonumber(ARGV[11]) then
  redis.call('HDEL', STATE, 'webhooks', 'webhooks_at')
end

local until_before = tonumber(redis.call('ZSCORE', LEASES, node))
redis.call('ZADD', LEASES, math.max(until_before or 0, NOW + lease), node)
redis.call('ZREM', KEYS[7], node)

local continues = last == '0-0' or last == position or #redis.call('XRANGE', LOG, last, last) == 1
return { until_before and 1 or 0, continues and 1 or 0, state[6] == ARGV[9] and 0 or 1 }
