-- Takes the header of a corpus away, and takes down which data are to be freed.
--
-- KEYS  2 the set of generations that were dropped; no others than the header and this one.
-- ARGV  1 generation of the corpus, '' where it has none.
--
-- Returns all generations whose data may still be there.

local dropped = KEYS[2]
if ARGV[1] ~= '' and call('HGET', HEADER, 'generation') == ARGV[1] then
  -- In this order: a full server lets a script write that has freed something before, and no other.
  call('DEL', HEADER)
  call('SADD', dropped, ARGV[1])
end
return call('SMEMBERS', dropped)
