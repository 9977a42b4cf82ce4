-- What all scripts share; stands before each of them.
--
-- Every script has the KEYS 1 header, 2 records, 3 retries, 4 buckets, and the ARGV 1 generation of the corpus.
-- If that is not the corpus's any more, it returns {'header'} and has changed nothing.
--
-- A bucket is a field of the hash `buckets`: structure [1] (0 ids, 1 text hashes, then the bands), number [3,
-- big-endian]. Its value is a string of entries: bytes 2 to 4 of the key, document number [5, big-endian].
-- A record is: flags (1 stands in a bucket of text hashes, 2 has a sketch) [1], Unix seconds [4, big-endian], text
-- hash [16], id key [4], lines seen [1], then, of a document with a sketch, band keys [4 each], filled bins [2,
-- big-endian], sketch, and at the end the id.
-- A retry is: answer ('u' unique, 'x' exact, 'n' near) [1], Unix seconds [4], text hash [16], id key [4], lines
-- seen [1], number of the document named [5], bands met [1], bins that are the same [2], filled in both [2], in
-- either [2], id.
-- The number of a retry has the highest bit set.
--
-- Plain Lua 5.1 for Redis 6.2 and later. All keys are declared.

local call, sub, byte, find, char = redis.call, string.sub, string.byte, string.find, string.char
local floor, min, max = math.floor, math.min, math.max
local pack, unpack_struct = struct.pack, struct.unpack
local HEADER, RECORDS, RETRIES, BUCKETS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST_RETRY = 549755813888
local RETRY_ID, SHORT_ID = 39, 27

-- The contents of buckets as they are after what this call has done, by field; false where there is none.
local content = {}
-- The fields that have changed, each followed by its content, and where the contents stand.
local changes, place_of, length = {}, {}, 0
local has_empty = false

-- A function that names the bucket of a key in a structure, by linear hashing; the key is the four bytes of `text`
-- from `at` on, little-endian.
local function namer(buckets)
  local power = 1
  while 2 * power <= buckets do power = 2 * power end
  return function(structure, text, at)
    local number = unpack_struct('<I4', text, at) % (2 * power)
    if number >= buckets then number = number - power end
    return pack('>I4', 16777216 * structure + number)
  end
end

local function read(fields)
  if #fields > 0 then
    local found = call('HMGET', BUCKETS, unpack(fields))
    for place = 1, #fields do
      content[fields[place]] = found[place]
    end
  end
end

-- What a bucket holds, read if this call has not done so; false where there is none.
local function entries_of(field)
  local entries = content[field]
  if entries == nil then
    entries = call('HGET', BUCKETS, field)
    content[field] = entries
  end
  return entries
end

local function write(field, entries)
  content[field] = entries
  local place = place_of[field]
  if place then
    changes[place] = entries
  else
    changes[length + 1] = field
    length = length + 2
    changes[length] = entries
    place_of[field] = length
  end
end

-- Writes what has changed into the hash `buckets`.
local function store()
  local gone = {}
  if has_empty then
    local filled = {}
    for place = 2, length, 2 do
      if changes[place] == '' then
        gone[#gone + 1] = changes[place - 1]
      else
        filled[#filled + 1] = changes[place - 1]
        filled[#filled + 1] = changes[place]
      end
    end
    changes = filled
  end
  if #changes > 0 then call('HSET', BUCKETS, unpack(changes)) end
  if #gone > 0 then call('HDEL', BUCKETS, unpack(gone)) end
end

-- Takes an entry out of a bucket.
local function cut(field, entry)
  local entries = entries_of(field)
  local at = entries and find(entries, entry, 1, true)
  while at and at % 8 ~= 1 do
    at = find(entries, entry, at + 1, true)
  end
  if at then
    entries = sub(entries, 1, at - 1) .. sub(entries, at + 8)
    has_empty = has_empty or entries == ''
    write(field, entries)
  end
end

-- The buckets in which a record or a retry stands, and its entry in each.
local function places_of(number, value, bands, field)
  local fields, entries, n = {field(0, value, 22)}, {sub(value, 23, 25) .. number}, 1
  if byte(number) < 128 then
    local flags = byte(value)
    if flags % 2 == 1 then
      n = 2
      fields[2], entries[2] = field(1, value, 6), sub(value, 7, 9) .. number
    end
    if flags >= 2 then
      for band = 1, bands do
        local at = 23 + 4 * band
        fields[n + band], entries[n + band] = field(1 + band, value, at), sub(value, at + 1, at + 3) .. number
      end
    end
  end
  return fields, entries
end
