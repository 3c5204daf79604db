"""What Redis does in one step: take messages and record them, put unacknowledged ones back, move one elsewhere."""

from __future__ import annotations

# KEYS: every queue at the first priority, then every queue at the next. ARGV: limit, queues, fair, now, unacked,
# unacked_index, set aside, per queue 1 = record. Answer, in turn: key number (negative: set aside), tag, message.
TAKE = r"""
local limit, width, fair, now = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local found, count, refused = {}, 0, nil
local function described(raw)
    local text, json = raw, cjson.encode
    if raw:sub(1, 10) == '{"body": "' then  -- the body may be large, and is not needed
        local stop = raw:find('"', 11, true)
        if stop and raw:byte(stop - 1) ~= 92 then text = '{"body":"' .. raw:sub(stop) end
    end
    local ok, message = pcall(cjson.decode, text)
    if not ok then  -- half a surrogate pair, which Python writes and cjson refuses
        message = cjson.decode((text:gsub('\\u[dD][89a-fA-F]%x%x', '\\u0020')))
    end
    local tag, info = message.properties.delivery_tag, message.properties.delivery_info
    if type(tag) ~= 'string' and type(tag) ~= 'number' then error('no delivery tag') end
    return {tostring(tag), '[' .. raw .. ', ' .. json(info.exchange) .. ', ' .. json(info.routing_key) .. ']'}
end
local function take(at)
    local raw, queue, tag = redis.call('RPOP', KEYS[at]), (at - 1) % width + 1, ''
    if not raw then return false end
    if ARGV[8]:sub(queue, queue) == '1' then
        local ok, entry = pcall(described, raw)
        if ok then
            tag = entry[1]
            local score, reply = string.format('%.17g', now + count * 1e-6), redis.pcall('HSET', ARGV[5], tag, entry[2])
            if type(reply) == 'number' then reply = redis.pcall('ZADD', ARGV[6], score, tag) end
            if type(reply) ~= 'number' then  -- may not record it: then it is not taken either
                redis.call('RPUSH', KEYS[at], raw); redis.pcall('HDEL', ARGV[5], tag)
                limit, refused = 0, reply
                return false
            end
        else
            redis.call('LPUSH', ARGV[7], raw)
            at = -at
        end
    end
    count = count + 1
    found[#found + 1], found[#found + 2], found[#found + 3] = at, tag, raw
    return true
end
for first = 1, #KEYS, width do
    repeat
        local busy = false
        for at = first, first + width - 1 do
            while count < limit and take(at) do
                busy = fair
                if fair then break end
            end
        end
    until not busy or count >= limit
end
if count > 0 then return found end
for at = 1, #KEYS, 4000 do redis.call('EXISTS', unpack(KEYS, at, math.min(at + 3999, #KEYS))) end
return refused or found
"""

# ARGV: unacked, unacked_index, then for each message, newest first: tag, score, message, number of keys, keys.
# Without a tag it was never recorded. A score tells an entry from a later delivery under the same tag.
PUT_BACK = """
local at, moved = 3, 0
while at <= #ARGV do
    local tag, score, last = ARGV[at], ARGV[at + 1], at + 3 + tonumber(ARGV[at + 3])
    local same = score == '' or tonumber(redis.call('ZSCORE', ARGV[2], tag) or 0) == tonumber(score)
    if tag == '' or same and redis.call('HDEL', ARGV[1], tag) == 1 then
        redis.call('ZREM', ARGV[2], tag)
        for key = at + 4, last do redis.call('RPUSH', ARGV[key], ARGV[at + 2]) end
        moved = moved + 1
    end
    at = last + 1
end
return moved
"""

# KEYS: a queue, then where its next message goes. ARGV: that message, and what it looks like there.
MOVE = """
if #KEYS == 1 then return redis.error_reply('NOROUTE the message belongs into no queue') end
if redis.call('LINDEX', KEYS[1], -1) ~= ARGV[1] then return 0 end
for key = 2, #KEYS do redis.call('LPUSH', KEYS[key], ARGV[2]) end
redis.call('RPOP', KEYS[1])
return 1
"""
