-- Take acknowledged items out of a queue.
--
-- KEYS[6…] for each id where it is remembered
-- ARGV[3] how an id begins that somebody waits for  [4] milliseconds that such a one is remembered  [5…] ids
-- Returns the ids of those that were there, and how many others were put aside.

local removed = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  if remove(id) == 1 then
    table.insert(removed, id)
    if string.sub(id, 1, #ARGV[3]) == ARGV[3] then
      redis.call('SET', KEYS[i + 1], 1, 'PX', ARGV[4])
    end
  end
end
if #removed > 0 then
  settle()
end
return { removed, put_aside }
