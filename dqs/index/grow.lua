-- Splits some buckets of every band in two, so that buckets stay short while a corpus grows.
--
-- Linear hashing: with n buckets and the largest power of two P <= n, bucket n - P is the next
-- to be split; the entries whose fingerprint has the bit P go to the new bucket n.
--
-- KEYS  1 header, then pairs of old and new bucket.
-- ARGV  1 generation, 2 number of buckets before, 3 and after, 4 which byte (0..3) of a
--       fingerprint has the bit, 5 the bit's value in that byte.
--
-- Returns the number of buckets that the corpus has now; another client may have been faster.
-- Plain Lua 5.1 for Redis 6.2 and later. All keys are declared.

local call, sub, byte = redis.call, string.sub, string.byte

local header = call('HMGET', KEYS[1], 'generation', 'buckets')
if header[1] ~= ARGV[1] or header[2] ~= ARGV[2] then
  return tonumber(header[2] or 0)
end
local place, value = tonumber(ARGV[4]), tonumber(ARGV[5])
for key = 2, #KEYS, 2 do
  local bucket = call('GET', KEYS[key])
  if bucket then
    local stay, go = {}, {}
    for at = 1, #bucket, 8 do
      if byte(bucket, at + place) % (2 * value) >= value then
        go[#go + 1] = sub(bucket, at, at + 7)
      else
        stay[#stay + 1] = sub(bucket, at, at + 7)
      end
    end
    if #go > 0 then
      call('SET', KEYS[key + 1], table.concat(go))
      if #stay > 0 then
        call('SET', KEYS[key], table.concat(stay))
      else
        call('DEL', KEYS[key])
      end
    end
  end
end
call('HSET', KEYS[1], 'buckets', ARGV[3])
return tonumber(ARGV[3])
