-- Splits some buckets of every structure in two, so that buckets stay short while a corpus grows.
--
-- Linear hashing: with n buckets and the largest power of two P <= n, bucket n - P is the next
-- to be split; the entries whose key has the bit P go to the new bucket n.
--
-- ARGV  2 number of buckets before and 3 after, 4 structures.
--
-- Returns the number of buckets that the corpus has now; another client may have been faster.

local header = call('HMGET', HEADER, 'generation', 'buckets')
if header[1] ~= ARGV[1] then
  return {'header'}
end
if header[2] ~= ARGV[2] then
  return {'buckets', header[2]}
end
local before, after, structures = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local power = 1
while 2 * power <= before do power = 2 * power end
-- Entries have no lowest byte of the key: it is the same for all of a bucket.
local place, value = 0, power / 256
while value >= 256 do
  place, value = place + 1, value / 256
end

local olds, news = {}, {}
for number = before, after - 1 do
  for structure = 0, structures - 1 do
    local old = number - power
    olds[#olds + 1] = char(structure, floor(old / 65536), floor(old / 256) % 256, old % 256)
    news[#news + 1] = char(structure, floor(number / 65536), floor(number / 256) % 256, number % 256)
  end
end
read(olds)
for position = 1, #olds do
  local entries = content[olds[position]]
  if entries then
    local stay, go = {}, {}
    for at = 1, #entries, 8 do
      local side = byte(entries, at + place) % (2 * value) >= value and go or stay
      side[#side + 1] = sub(entries, at, at + 7)
    end
    if #go > 0 then
      write(news[position], table.concat(go))
      write(olds[position], table.concat(stay))
    end
  end
end
store()
call('HSET', HEADER, 'buckets', ARGV[3])
return {'buckets', ARGV[3]}
