-- Looks up, verifies, decides and inserts a group of documents, in order, as one step.
--
-- KEYS  1 header, 2 records, then per document: id bucket, text bucket, one bucket per band.
-- ARGV  1 parameters, 2 generation, 3 number of buckets, 4 bands, 5 fewest agreements of a
--       near-duplicate, 6 bytes of a sketch, 7 for every byte 0..255 how many sketch entries agree
--       when two bytes differ by exactly these bits, then per document: packed fields, id.
--
-- Packed fields: flags (1 insert, 2 has a sketch, 4 empty text), text hash [16], one fingerprint [4]
-- per bucket (id, text, bands), sketch (zeros without one).
-- A bucket is a string of entries: fingerprint [4], document number [4, big-endian].
-- A record is: flags [1], Unix seconds [4, big-endian], text hash [16], sketch or nothing, id.
--
-- Returns {status} or {status, detail} when the caller's view of the corpus is old ('header', 'buckets'),
-- else {'done', documents, answer...}: for the first document, and for as many of the next as
-- MAX_WORK allows, one of
--   ''             not in the corpus before
--   'k'            this id with this text is in it: a retry
--   'r'            this id is in it with another text; not inserted
--   'x' id         that document has the same text
--   'n' agreements[2, big-endian] id     that document is near
--
-- Plain Lua 5.1 for Redis 6.2 and later. All keys are declared.

-- More documents than this under one fingerprint of one bucket are boilerplate, not copies:
-- the band is then full for that fingerprint, so that time and memory stay bounded.
local MAX_SAME = 24
-- Candidates verified per document, those that met in most bands first.
local MAX_VERIFIED = 32
-- Candidates verified in a call after which it answers what it has, so that Redis is never held for long.
local MAX_WORK = 64

local call, sub, byte, find = redis.call, string.sub, string.byte, string.find
local pack, unpack_struct, bxor = struct.pack, struct.unpack, bit.bxor

local header = call('HMGET', KEYS[1], 'parameters', 'generation', 'buckets', 'documents')
if header[1] ~= ARGV[1] or header[2] ~= ARGV[2] then
  return {'header'}
end
if header[3] ~= ARGV[3] then
  return {'buckets', header[3]}
end
local bands, fewest, sketch_bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local stride = bands + 2
local sketch_at = 18 + 4 * stride
local documents = tonumber(header[4])
local records = KEYS[2]
local now = pack('>I4', tonumber(call('TIME')[1]))
local agree, work = nil, 0

-- Numbers of the documents in `bucket` under `fingerprint`, as they stand there: four bytes each.
-- `at` is where the fingerprint's bytes occur first, by chance perhaps across two entries.
local function matches(bucket, fingerprint, at)
  local found = {}
  while at do
    if at % 8 == 1 then
      found[#found + 1] = sub(bucket, at + 4, at + 7)
      if #found >= MAX_SAME then break end
      at = find(bucket, fingerprint, at + 8, true)
    else
      at = find(bucket, fingerprint, at + 1, true)
    end
  end
  return found
end

local function id_of(record)
  if byte(record, 1) % 4 >= 2 then
    return sub(record, 22 + sketch_bytes)
  end
  return sub(record, 22)
end

-- How many entries of the sketch in `record` agree with the given bytes.
local function agreements(sketch, record)
  local count = 0
  for start = 1, #sketch, 8 do
    local a, b, c, d, e, f, g, h = byte(record, 21 + start, 28 + start)
    count = count + agree[bxor(sketch[start], a) + 1] + agree[bxor(sketch[start + 1], b) + 1]
      + agree[bxor(sketch[start + 2], c) + 1] + agree[bxor(sketch[start + 3], d) + 1]
      + agree[bxor(sketch[start + 4], e) + 1] + agree[bxor(sketch[start + 5], f) + 1]
      + agree[bxor(sketch[start + 6], g) + 1] + agree[bxor(sketch[start + 7], h) + 1]
  end
  return count
end

-- The most similar of the candidates, the earliest of equals; nil if none is similar enough.
-- `met` says in how many bands each candidate was met.
local function nearest(packed, candidates, met)
  if not agree then
    agree = {byte(ARGV[7], 1, -1)}
  end
  local sketch = {byte(packed, sketch_at, -1)}
  local best, best_number, best_record = fewest - 1, nil, nil
  local verified = 0
  for bands_met = bands, 1, -1 do
    for position = 1, #candidates do
      local number = candidates[position]
      if met[number] == bands_met then
        local record = call('HGET', records, pack('>I4', number))
        if record then
          local count = agreements(sketch, record)
          if count > best or (count == best and best_number and number < best_number) then
            best, best_number, best_record = count, number, record
          end
        end
        verified = verified + 1
        if verified == MAX_VERIFIED then break end
      end
    end
    if verified >= MAX_VERIFIED or verified == #candidates then break end
  end
  work = work + verified
  if best_record then
    return 'n' .. pack('>I2', best) .. id_of(best_record)
  end
  return nil
end

local answers = {'done', 0}
local position = 0
for argument = 8, #ARGV, 2 do
  local packed, id = ARGV[argument], ARGV[argument + 1]
  local first_key = 3 + position * stride
  position = position + 1
  local flags = byte(packed, 1)
  local insert, has_sketch, empty = flags % 2 == 1, flags % 4 >= 2, flags >= 4
  local text_hash = sub(packed, 2, 17)
  local answer = nil
  local known = call('MGET', KEYS[first_key], KEYS[first_key + 1])

  local at = known[1] and find(known[1], sub(packed, 18, 21), 1, true)
  if at then
    for _, number in ipairs(matches(known[1], sub(packed, 18, 21), at)) do
      local record = call('HGET', records, number)
      if record and id_of(record) == id then
        answer = sub(record, 6, 21) == text_hash and 'k' or 'r'
        break
      end
    end
  end
  at = not answer and not empty and known[2] and find(known[2], sub(packed, 22, 25), 1, true)
  if at then
    for _, number in ipairs(matches(known[2], sub(packed, 22, 25), at)) do
      local record = call('HGET', records, number)
      if record and sub(record, 6, 21) == text_hash then
        answer = 'x' .. id_of(record)
        break
      end
    end
  end

  local fingerprints, full = {}, nil
  if not answer and has_sketch then
    local buckets = call('MGET', unpack(KEYS, first_key + 2, first_key + 1 + bands))
    local candidates, met = {}, {}
    for band = 1, bands do
      local bucket, fingerprint = buckets[band], sub(packed, 22 + 4 * band, 25 + 4 * band)
      fingerprints[band] = fingerprint
      at = bucket and find(bucket, fingerprint, 1, true)
      if at then
        local found = matches(bucket, fingerprint, at)
        if #found >= MAX_SAME then
          full = full or {}
          full[band] = true
        end
        for match = 1, #found do
          local number = unpack_struct('>I4', found[match])
          if not met[number] then
            candidates[#candidates + 1] = number
          end
          met[number] = (met[number] or 0) + 1
        end
      end
    end
    if #candidates > 0 then
      answer = nearest(packed, candidates, met)
    end
  end

  if not answer and insert then
    local number = pack('>I4', documents)
    documents = documents + 1
    if has_sketch then
      call('HSET', records, number, '\2' .. now .. text_hash .. sub(packed, sketch_at) .. id)
    else
      call('HSET', records, number, '\0' .. now .. text_hash .. id)
    end
    call('APPEND', KEYS[first_key], sub(packed, 18, 21) .. number)
    if not empty then
      call('APPEND', KEYS[first_key + 1], sub(packed, 22, 25) .. number)
    end
    if has_sketch then
      for band = 1, bands do
        if not (full and full[band]) then
          call('APPEND', KEYS[first_key + 1 + band], fingerprints[band] .. number)
        end
      end
    end
  end
  answers[#answers + 1] = answer or ''
  if work > MAX_WORK then break end
end

if documents ~= tonumber(header[4]) then
  call('HSET', KEYS[1], 'documents', documents)
end
answers[2] = documents
return answers
