-- Take items out that cannot be read.
--
-- ARGV[3…] their ids
-- Returns how many were there.

for i = 3, #ARGV do
  if redis.call('ZSCORE', ORDER, ARGV[i]) then -- otherwise another node was quicker
    aside(ARGV[i])
  end
end
settle()
return put_aside
