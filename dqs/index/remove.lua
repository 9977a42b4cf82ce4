-- Removes documents: their records or retries, and their entries in all buckets, as one step.
--
-- ARGV  2 bands, 3 bytes of a sketch, 4 'ids' or 'expired', then
--       of 'ids': per document id key [4] and id; what stands under these ids is removed;
--       of 'expired': 5 how many documents and retries to look at, 6 most documents, 7 most retries, '' for any number;
--       what has left its window is removed, the oldest first.
--
-- Returns {'header'}, or {'done', how many ids were known or documents and retries removed, documents left,
-- Unix seconds at which something leaves its window next, '' for never, 0 for at once}.

local header = call('HMGET', HEADER, 'generation', 'buckets', 'documents', 'oldest', 'next', 'retries_oldest',
  'retries_next', 'window_s', 'retry_s', 'id_bytes', 'sketched', 'deleted', 'expired')
if header[1] ~= ARGV[1] then
  return {'header'}
end
local bands = tonumber(ARGV[2])
local long_id = 29 + 4 * bands + tonumber(ARGV[3])
local field = namer(tonumber(header[2]))
local documents, id_bytes, sketched = tonumber(header[3]), tonumber(header[10]), tonumber(header[11])
local removed, records, retries = {}, {}, {}

local function id_of(number, value)
  if byte(number) >= 128 then
    return sub(value, RETRY_ID)
  end
  return sub(value, byte(value) >= 2 and long_id or SHORT_ID)
end

local function remove(number, value)
  if removed[number] then return end
  removed[number] = value
  if byte(number) < 128 then
    records[#records + 1] = number
    documents = documents - 1
    id_bytes = id_bytes - #id_of(number, value)
    sketched = sketched - (byte(value) >= 2 and 1 or 0)
  else
    retries[#retries + 1] = number
  end
end

local function finish()
  local fields, entries, wanted = {}, {}, {}
  local function take(numbers)
    for position = 1, #numbers do
      local number = numbers[position]
      local its_fields, its_entries = places_of(number, removed[number], bands, field)
      for place = 1, #its_fields do
        local name = its_fields[place]
        if content[name] == nil then
          content[name] = false
          wanted[#wanted + 1] = name
        end
        fields[#fields + 1], entries[#entries + 1] = name, its_entries[place]
      end
    end
  end
  take(records)
  take(retries)
  read(wanted)
  for place = 1, #fields do
    cut(fields[place], entries[place])
  end
  if #records > 0 then call('HDEL', RECORDS, unpack(records)) end
  if #retries > 0 then call('HDEL', RETRIES, unpack(retries)) end
  store()
  call('HSET', HEADER, 'documents', documents, 'id_bytes', id_bytes, 'sketched', sketched)
end

local function get(key, numbers)
  return #numbers > 0 and call('HMGET', key, unpack(numbers)) or {}
end

if ARGV[4] == 'ids' then
  local fields = {}
  for argument = 5, #ARGV, 2 do
    fields[#fields + 1] = field(0, ARGV[argument], 1)
  end
  read(fields)
  -- What stands under the keys of the ids, some of it under other ids.
  local found_records, found_retries, record_ids, retry_ids = {}, {}, {}, {}
  for argument = 5, #ARGV, 2 do
    local entries, fingerprint, id = content[fields[(argument - 3) / 2]], sub(ARGV[argument], 2), ARGV[argument + 1]
    local at = entries and find(entries, fingerprint, 1, true)
    while at do
      if at % 8 == 1 then
        local number = sub(entries, at + 3, at + 7)
        local is_record = byte(number) < 128
        local found, ids = is_record and found_records or found_retries, is_record and record_ids or retry_ids
        found[#found + 1], ids[#ids + 1] = number, id
      end
      at = find(entries, fingerprint, at + 1, true)
    end
  end
  local known, is_known = 0, {}
  local function remove_those(numbers, ids, values)
    for place = 1, #numbers do
      local value, id = values[place], ids[place]
      if value and id_of(numbers[place], value) == id then
        remove(numbers[place], value)
        known = known + (is_known[id] and 0 or 1)
        is_known[id] = true
      end
    end
  end
  remove_those(found_records, record_ids, get(RECORDS, found_records))
  remove_those(found_retries, retry_ids, get(RETRIES, found_retries))
  if #records + #retries > 0 then
    finish()
    call('HSET', HEADER, 'deleted', tonumber(header[12]) + #records)
  end
  return {'done', known, documents, ''}
end

local budget = tonumber(ARGV[5])
local seconds = tonumber(call('TIME')[1])
local due = nil
local function note_due(at)
  due = due and min(due, at) or at
end

-- Walks over the numbers from `oldest` on; `stays` says until when a document stays, or nil if it goes now.
local function walk(key, oldest, stop, offset, stays)
  local last = min(oldest + budget, stop) - 1
  if last < oldest then return oldest end
  local numbers = {}
  for number = oldest, last do
    numbers[#numbers + 1] = pack('>I5', offset + number)
  end
  local values = get(key, numbers)
  for place = 1, #numbers do
    local value = values[place]
    if value then
      local until_s = stays(value, oldest + place - 1)
      if until_s then
        note_due(until_s)
        return oldest + place - 1
      end
      remove(numbers[place], value)
    end
  end
  if last + 1 < stop then note_due(0) end
  return last + 1
end

local oldest, oldest_retry = tonumber(header[4]), tonumber(header[6])
local window_s, retry_s = tonumber(header[8]), tonumber(header[9])
local most, most_retries = tonumber(ARGV[6]), tonumber(ARGV[7])
if window_s or most then
  oldest = walk(RECORDS, oldest, tonumber(header[5]), 0, function(record)
    if most and documents > most then return nil end
    if not window_s then return math.huge end
    local until_s = unpack_struct('>I4', record, 2) + window_s
    return until_s > seconds and until_s or nil
  end)
end
local next_retry = tonumber(header[7])
oldest_retry = walk(RETRIES, oldest_retry, next_retry, FIRST_RETRY, function(retry, number)
  if next_retry - number > most_retries then return nil end
  local until_s = unpack_struct('>I4', retry, 2) + retry_s
  return until_s > seconds and until_s or nil
end)
if #records + #retries > 0 then finish() end
call('HSET', HEADER, 'oldest', oldest, 'retries_oldest', oldest_retry, 'expired', tonumber(header[13]) + #records)
-- What comes from now on leaves after a whole window at the earliest.
if retry_s > 0 then note_due(seconds + retry_s) end
if window_s then note_due(seconds + window_s) end
if due == math.huge then due = nil end
return {'done', #records + #retries, documents, due and tostring(due) or ''}
