-- Copies a piece of the table of lines behind its end; when all of it is copied, the table has doubled.
--
-- KEYS  5 the table of lines.
-- ARGV  2 slots of the table, 3 bytes to copy.
--
-- Returns {'done', slots of the table now}.

local header = call('HMGET', HEADER, 'generation', 'line_slots', 'lines_copied')
if header[1] ~= ARGV[1] then
  return {'header'}
end
if header[2] ~= ARGV[2] then
  return {'done', tonumber(header[2])}
end
local bytes, copied = 4 * tonumber(header[2]), tonumber(header[3])
local piece = call('GETRANGE', KEYS[5], copied, min(copied + tonumber(ARGV[3]), bytes) - 1)
call('SETRANGE', KEYS[5], bytes + copied, piece)
copied = copied + tonumber(ARGV[3])
local slots = tonumber(header[2])
if copied >= bytes then
  slots, copied = 2 * slots, 0
end
call('HSET', HEADER, 'line_slots', slots, 'lines_copied', copied)
return {'done', slots}
