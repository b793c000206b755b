-- Set a user's status by hand.
--
-- KEYS[7] user  [8] recent
-- ARGV[4] user  [5] the status, or '' for none  [6] the text, or ''  [7] when it ends, or ''
-- Returns result().

local function given(argument)
  return argument ~= '' and argument or nil
end

local user = user_at(NOW, ARGV[4], KEYS[7], KEYS[8])
local chosen, text, til = given(ARGV[5]), given(ARGV[6]), tonumber(given(ARGV[7]))
if chosen ~= user.chosen or text ~= user.text or til ~= user.chosen_until then
  set(user, 'chosen', chosen)
  set(user, 'text', text)
  set(user, 'chosen_until', til)
  settle(user, NOW, 'set by hand', true)
end
save(user)
return result()
