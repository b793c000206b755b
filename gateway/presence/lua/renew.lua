-- Give a node a lease, or prolong the one it has.
--
-- KEYS[6] dying, zset: node -> when the lease ran out, of each whose connections are being ended
-- ARGV[4] node  [5] milliseconds  [6] the id of the last entry of the log that the node has
--     [7] 1 where the node could not reach Redis before  [8] milliseconds without a renewal that are an outage
-- Returns {1 if it still had one, 1 if the log holds that entry}.

local node, lease, last = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local attended = tonumber(redis.call('HGET', STATE, 'attended'))
if ARGV[7] == '1' and attended and NOW - attended >= tonumber(ARGV[8]) then
  -- One outage soon after another is one with it: what the first prolonged had not run out.
  local begin = attended < outage_end and math.min(outage_begin, attended) or attended
  redis.call('HSET', STATE, 'outage_begin', begin, 'outage_end', NOW + lease)
end
redis.call('HSET', STATE, 'attended', math.max(attended or 0, NOW))

local until_before = tonumber(redis.call('ZSCORE', LEASES, node))
redis.call('ZADD', LEASES, math.max(until_before or 0, NOW + lease), node)
redis.call('ZREM', KEYS[6], node)

local continues = last == '0-0' or last == position or #redis.call('XRANGE', LOG, last, last) == 1
return { until_before and 1 or 0, continues and 1 or 0 }
