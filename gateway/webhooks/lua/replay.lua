-- Queue dead letters again, behind what waits.
--
-- KEYS[1] an endpoint's queue  [2] its dead letters
-- ARGV[4…] their ids in the latter
-- Returns those ids that were there.

local replayed = {}
for i = 4, #ARGV do
  local found = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
  if found then
    redis.call('XDEL', KEYS[2], ARGV[i])
    redis.call('XADD', KEYS[1], '*', 'message', found[2][4])
    table.insert(replayed, ARGV[i])
  end
end
return replayed
