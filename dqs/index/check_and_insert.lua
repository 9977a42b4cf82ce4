-- Looks up, verifies, decides and inserts a group of documents, in order, as one step.
--
-- ARGV  2 parameters, 3 number of buckets, 4 bands, 5 bins of a sketch, 6 least similarity of a near-duplicate,
--       7 for every byte 0..255 how many of its four bins are empty, 8 most documents under one key of a bucket,
--       9 most candidates verified, 10 number of documents, then per document packed fields and id, then per
--       document the buckets to look into: that of the id, and those of the bands, or without a sketch that of the
--       text hash.
--
-- Packed fields: flags (1 insert, 2 has a sketch, 4 empty text, 8 keep unchecked, 16 replace), text hash [16],
-- id key [4], lines seen [1], band keys [4 each], filled bins [2, big-endian], sketch.
--
-- Returns {status} or {status, detail} when the caller's view of the corpus is old ('header', 'buckets'),
-- else {'done', documents, retries, oldest retry, Unix seconds, revision of the options, answer...}: for the first
-- document, and for as many of the next as MAX_WORK allows, one of
--   ''                  not in the corpus before
--   'k' lines seen [1]  nor when this document came before, under this id and with this text
--   'r'                 this id came with another text; nothing was decided
--   'x' lines seen [1] bands met [1] id                              that document has the same text
--   'n' lines seen [1] bands met [1] same [2] both [2] either [2] id that document is near
--
-- All writes come last, so that a server that refuses to write has changed nothing.

-- Candidates verified in a call after which it answers what it has, so that Redis is never held for long.
local MAX_WORK = 64

local bxor, bor = bit.bxor, bit.bor

local header = call('HMGET', HEADER, 'generation', 'parameters', 'buckets', 'documents', 'next', 'retries_next',
  'retries_oldest', 'window_s', 'retry_s', 'asked', 'exact', 'near', 'retried', 'reused', 'replaced', 'id_bytes',
  'sketched', 'revision', 'unbanded')
if header[1] ~= ARGV[1] or header[2] ~= ARGV[2] then
  return {'header'}
end
if header[3] ~= ARGV[3] then
  return {'buckets', header[3]}
end
local bands, bins, least = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_same, max_verified, group = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local filled_at = 23 + 4 * bands
local long_id = filled_at + 6 + bins / 4
local documents, next_number, next_retry = tonumber(header[4]), tonumber(header[5]), tonumber(header[6])
local retry_s = tonumber(header[9])
local seconds = tonumber(call('TIME')[1])
local now = pack('>I4', seconds)
-- What was kept until then is forgotten, whether it is still stored or not.
local since = header[8] ~= '' and seconds - tonumber(header[8]) or 0
local exact, near, retried = tonumber(header[11]), tonumber(header[12]), tonumber(header[13])
local reused, replaced = tonumber(header[14]), tonumber(header[15])
local id_bytes, sketched = tonumber(header[16]), tonumber(header[17])
-- Documents with a sketch that no band had room for. Without them a copy of a document meets it in a band, and
-- the bucket of its text hash need not be read for documents that meet nothing.
local unbanded = tonumber(header[19] or 0)
local empty_bins, work = nil, 0
local bucket_name = nil

local first_field = 11 + 2 * group
do
  local found = call('HMGET', BUCKETS, unpack(ARGV, first_field))
  for place = 1, #found do
    content[ARGV[first_field + place - 1]] = found[place]
  end
end
-- What this call adds, by number, and what it takes away.
local new_records, new_retries, gone = {}, {}, {}
local record_fields, retry_fields, gone_records, gone_retries = {}, {}, {}, {}

-- The field of a bucket that the caller has not named.
local function named_bucket(structure, text, at)
  bucket_name = bucket_name or namer(tonumber(ARGV[3]))
  return bucket_name(structure, text, at)
end

-- The first `most` numbers that stand under `fingerprint` in the entries of a bucket, nil if there is none.
local function matches(entries, fingerprint, most)
  local at = entries and find(entries, fingerprint, 1, true)
  local found = nil
  while at do
    if at % 8 == 1 then
      found = found or {}
      found[#found + 1] = sub(entries, at + 3, at + 7)
      if #found >= most then return found end
      at = find(entries, fingerprint, at + 8, true)
    else
      at = find(entries, fingerprint, at + 1, true)
    end
  end
  return found
end

-- The record of a kept document that is not forgotten.
local function record_of(number)
  if gone[number] then return nil end
  local record = new_records[number] or call('HGET', RECORDS, number)
  if record and (since <= 0 or unpack_struct('>I4', record, 2) > since) then
    return record
  end
  return nil
end

local function retry_of(number)
  if gone[number] then return nil end
  local retry = new_retries[number] or call('HGET', RETRIES, number)
  if retry and seconds - unpack_struct('>I4', retry, 2) < retry_s then
    return retry
  end
  return nil
end

local function id_of(record)
  return sub(record, byte(record) >= 2 and long_id or SHORT_ID)
end

-- How many bins of the sketch in `record` have the same code as `sketch`, are filled in both, are filled in either.
local function agreements(sketch, filled, record)
  local equal, neither = 0, 0
  local offset = filled_at + 5
  for start = 1, #sketch, 8 do
    local r1, r2, r3, r4, r5, r6, r7, r8 = byte(record, offset + start, offset + start + 7)
    local s1, s2, s3, s4 = sketch[start], sketch[start + 1], sketch[start + 2], sketch[start + 3]
    local s5, s6, s7, s8 = sketch[start + 4], sketch[start + 5], sketch[start + 6], sketch[start + 7]
    equal = equal + empty_bins[bxor(r1, s1) + 1] + empty_bins[bxor(r2, s2) + 1] + empty_bins[bxor(r3, s3) + 1]
      + empty_bins[bxor(r4, s4) + 1] + empty_bins[bxor(r5, s5) + 1] + empty_bins[bxor(r6, s6) + 1]
      + empty_bins[bxor(r7, s7) + 1] + empty_bins[bxor(r8, s8) + 1]
    neither = neither + empty_bins[bor(r1, s1) + 1] + empty_bins[bor(r2, s2) + 1] + empty_bins[bor(r3, s3) + 1]
      + empty_bins[bor(r4, s4) + 1] + empty_bins[bor(r5, s5) + 1] + empty_bins[bor(r6, s6) + 1]
      + empty_bins[bor(r7, s7) + 1] + empty_bins[bor(r8, s8) + 1]
  end
  local either = bins - neither
  return equal - neither, filled + unpack_struct('>I2', record, filled_at + 4) - either, either
end

-- The most similar of the candidates, the earliest of equals: its number, record and the counts of `agreements`.
-- `met` says in how many bands each candidate was met. Numbers of one length sort as strings.
local function nearest(packed, candidates, met)
  if not empty_bins then
    empty_bins = {byte(ARGV[7], 1, -1)}
  end
  if #candidates > max_verified then
    table.sort(candidates, function(a, b)
      return met[a] > met[b] or (met[a] == met[b] and a < b)
    end)
  end
  local sketch = {byte(packed, filled_at + 2, -1)}
  local filled = unpack_struct('>I2', packed, filled_at)
  local best, best_number, best_record, same, both, either = least, nil, nil, 0, 0, 0
  for position = 1, min(#candidates, max_verified) do
    local number = candidates[position]
    local record = record_of(number)
    if record then
      local a, b, c = agreements(sketch, filled, record)
      local similarity = min((3 * a - b) / (2 * c), 1)
      if similarity > best or (similarity == best and (not best_number or number < best_number)) then
        best, best_number, best_record, same, both, either = similarity, number, record, a, b, c
      end
    end
    work = work + 1
  end
  return best_number, best_record, same, both, either
end

-- What the corpus knows under this id: an answer, or nil; and the numbers of all that stand under it.
local function known(bucket, key, id, text_hash, insert)
  local found = matches(content[bucket], sub(key, 2), math.huge)
  if not found then return nil, nil end
  local answer, numbers, is_kept = nil, {}, false
  for position = 1, #found do
    local number = found[position]
    if byte(number) < 128 then
      local record = record_of(number)
      if record and id_of(record) == id then
        numbers[#numbers + 1] = number
        answer, is_kept = sub(record, 6, 21) == text_hash and 'k' .. sub(record, 26, 26) or 'r', true
      end
    else
      local retry = retry_of(number)
      if retry and sub(retry, RETRY_ID) == id then
        numbers[#numbers + 1] = number
        local kind = sub(retry, 1, 1)
        if not is_kept then
          if sub(retry, 6, 21) ~= text_hash then
            answer = 'r'
          elseif kind == 'u' then
            -- If it is to be kept now, that is another question.
            answer = not insert and 'k' .. sub(retry, 26, 26) or nil
          else
            local record = record_of(sub(retry, 27, 31))
            if not record then
              answer = nil
            elseif kind == 'x' then
              answer = 'x' .. sub(retry, 26, 26) .. sub(retry, 32, 32) .. id_of(record)
            else
              answer = 'n' .. sub(retry, 26, 26) .. sub(retry, 32, 38) .. id_of(record)
            end
          end
        end
      end
    end
  end
  return answer, numbers
end

-- Takes a document out, so that another one can have its id.
local function take_out(number)
  local is_record = byte(number) < 128
  local value = is_record and record_of(number) or retry_of(number)
  local fields, entries = places_of(number, value, bands, named_bucket)
  for place = 1, #fields do
    cut(fields[place], entries[place])
  end
  gone[number] = true
  if is_record then
    documents = documents - 1
    sketched = sketched - (byte(value) >= 2 and 1 or 0)
    id_bytes = id_bytes - #id_of(value)
    gone_records[#gone_records + 1] = number
  else
    gone_retries[#gone_retries + 1] = number
  end
end

local answers = {'done'}
local prints = {}
local position, next_field = 0, first_field
for argument = 11, 9 + 2 * group, 2 do
  local packed, id = ARGV[argument], ARGV[argument + 1]
  position = position + 1
  local flags = byte(packed)
  local insert, has_sketch, empty = flags % 2 == 1, flags % 4 >= 2, flags % 8 >= 4
  local unchecked, replace = flags % 16 >= 8, flags >= 16
  local text_hash, id_key, seen = sub(packed, 2, 17), sub(packed, 18, 21), sub(packed, 22, 22)
  local id_bucket = ARGV[next_field]
  local bucket_before = next_field
  next_field = next_field + (has_sketch and bands + 1 or 2)
  local text_bucket = not has_sketch and ARGV[bucket_before + 1]
  local answer, numbers = known(id_bucket, id_key, id, text_hash, insert)
  if answer == 'r' and replace then
    for place = 1, #numbers do
      take_out(numbers[place])
    end
    answer, replaced = nil, replaced + 1
  end
  local is_retry = answer ~= nil
  local named, counts, met_bands = nil, '\0\0\0\0\0\0', 0
  local full, filled_bands = nil, 0

  if not is_retry then
    local candidates, met = nil, nil
    if has_sketch then
      for band = 1, bands do
        local fingerprint = sub(packed, 20 + 4 * band, 22 + 4 * band)
        prints[band] = fingerprint
        local entries = content[ARGV[bucket_before + band]]
        if entries and find(entries, fingerprint, 1, true) then
          local found = matches(entries, fingerprint, max_same)
          if found then
            if not met then
              candidates, met = {}, {}
            end
            if #found >= max_same then
              full = full or {}
              full[band] = true
              filled_bands = filled_bands + 1
            end
            for place = 1, #found do
              local number = found[place]
              if not met[number] then
                candidates[#candidates + 1] = number
              end
              met[number] = (met[number] or 0) + 1
            end
          end
        end
      end
    end
    if not unchecked then
      local record = nil
      if not empty and (met or not has_sketch or unbanded > 0) then
        text_bucket = text_bucket or named_bucket(1, text_hash, 1)
        local found = matches(entries_of(text_bucket), sub(text_hash, 2, 4), math.huge) or {}
        for place = 1, #found do
          record = record_of(found[place])
          if record and sub(record, 6, 21) == text_hash then
            named = found[place]
            break
          end
        end
      end
      if not named and met then
        local number, near_record, same, both, either = nearest(packed, candidates, met)
        if number then
          -- The most similar one, the earliest of equals: copies of a text have similarity 1.
          named, record = number, near_record
          counts = pack('>I2I2I2', same, both, either)
        end
      end
      if named then
        met_bands = met and met[named] or 0
        if sub(record, 6, 21) == text_hash then
          exact = exact + 1
          answer = 'x' .. seen .. char(met_bands) .. id_of(record)
        else
          near = near + 1
          answer = 'n' .. seen .. char(met_bands) .. counts .. id_of(record)
        end
      end
    end
  end

  if is_retry then
    if answer == 'r' then reused = reused + 1 else retried = retried + 1 end
  elseif not answer and insert then
    local number = pack('>I5', next_number)
    next_number = next_number + 1
    documents = documents + 1
    id_bytes = id_bytes + #id
    local record
    if has_sketch then
      sketched = sketched + 1
      record = (full and '\3' or '\2') .. now .. sub(packed, 2) .. id
      for band = 1, bands do
        if not (full and full[band]) then
          local bucket = ARGV[bucket_before + band]
          write(bucket, (content[bucket] or '') .. prints[band] .. number)
        end
      end
      if filled_bands == bands then unbanded = unbanded + 1 end
    else
      record = (empty and '\0' or '\1') .. now .. text_hash .. id_key .. seen .. id
    end
    new_records[number] = record
    record_fields[#record_fields + 1] = number
    write(id_bucket, (content[id_bucket] or '') .. sub(id_key, 2) .. number)
    -- Copies of other documents are found by their bands.
    if not empty and (full or not has_sketch) then
      text_bucket = text_bucket or named_bucket(1, text_hash, 1)
      write(text_bucket, (entries_of(text_bucket) or '') .. sub(text_hash, 2, 4) .. number)
    end
  elseif retry_s > 0 then
    local number = pack('>I5', FIRST_RETRY + next_retry)
    next_retry = next_retry + 1
    local kind = answer and sub(answer, 1, 1) or 'u'
    new_retries[number] = kind .. now .. text_hash .. id_key .. seen .. (named or '\0\0\0\0\0') .. char(met_bands)
      .. counts .. id
    retry_fields[#retry_fields + 1] = number
    write(id_bucket, (content[id_bucket] or '') .. sub(id_key, 2) .. number)
  end
  answers[6 + position] = answer or ''
  if work > MAX_WORK then break end
end

local function save(key, numbers, values)
  local set = {}
  for place = 1, #numbers do
    local number = numbers[place]
    if not gone[number] then
      set[#set + 1] = number
      set[#set + 1] = values[number]
    end
  end
  if #set > 0 then call('HSET', key, unpack(set)) end
end
save(RECORDS, record_fields, new_records)
save(RETRIES, retry_fields, new_retries)
if #gone_records > 0 then call('HDEL', RECORDS, unpack(gone_records)) end
if #gone_retries > 0 then call('HDEL', RETRIES, unpack(gone_retries)) end
store()
call('HSET', HEADER, 'documents', documents, 'next', next_number, 'retries_next', next_retry,
  'asked', tonumber(header[10]) + position, 'exact', exact, 'near', near, 'retried', retried, 'reused', reused,
  'replaced', replaced, 'id_bytes', id_bytes, 'sketched', sketched, 'unbanded', unbanded)
answers[2], answers[3], answers[4], answers[5] = documents, next_retry, tonumber(header[7]), seconds
answers[6] = tonumber(header[18])
return answers
