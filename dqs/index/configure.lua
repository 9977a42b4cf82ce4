-- Changes the options of a corpus.
--
-- ARGV  2 and 3, 4 and 5 ...: fields of the header and their values.
--
-- Returns {'done', revision of the options}.

if call('HGET', HEADER, 'generation') ~= ARGV[1] then
  return {'header'}
end
call('HSET', HEADER, unpack(ARGV, 2))
return {'done', call('HINCRBY', HEADER, 'revision', 1)}
