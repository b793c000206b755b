-- Take acknowledged items out of a queue.
--
-- KEYS[5…] for each id, the key that remembers its acknowledgement
-- ARGV[3] how an id begins whose acknowledgement is to be remembered  [4] for how many milliseconds  [5…] ids
-- Returns the ids of those that were in the queue.

local removed = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  if remove(id) == 1 then
    table.insert(removed, id)
    if string.sub(id, 1, #ARGV[3]) == ARGV[3] then
      redis.call('SET', KEYS[i], 1, 'PX', ARGV[4])
    end
  end
end
if #removed > 0 then
  settle()
end
return removed
