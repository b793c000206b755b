-- Put dead letters at the end of their endpoint's queue again.
--
-- KEYS[1] an endpoint's queue  [2] its dead letters
-- ARGV[4…] ids of entries of the dead letters' stream
-- Returns those of the ids that were found.

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
