-- Writes hashes of lines into their slots.
--
-- KEYS  5 the table of lines.
-- ARGV  2 how many of them take an empty slot, then the operations of a BITFIELD command.
--
-- Returns {'done', lines in the table}.

if call('HGET', HEADER, 'generation') ~= ARGV[1] then
  return {'header'}
end
call('BITFIELD', KEYS[5], unpack(ARGV, 3))
return {'done', call('HINCRBY', HEADER, 'lines', ARGV[2])}
