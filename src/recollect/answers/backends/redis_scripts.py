"""What happens within a Redis server, in Lua: each script is one step that nobody sees half of.

`KEYS[1]` is the prefix of all keys.
"""

from __future__ import annotations

# Keys after the prefix: `m:id` fields of an entry, `b:id` its record, `o:id` its observations,
# `c:id` its continuations, `x:request` places -> ids, `used` and `used:category` ids by last use,
# `ids` ids by number, `expires` ids by expiry, `next` the last id, `about` schema and secret.
_REMOVE = """
local p = KEYS[1]
local function remove(first)
  local gone, waiting = {}, {first}
  while #waiting > 0 do
    local id = table.remove(waiting)
    local m = redis.call('HMGET', p..'m:'..id, 'request', 'place', 'category', 'parent')
    if m[1] then
      gone[#gone + 1] = tonumber(id)
      local at = p..'x:'..m[1]
      if redis.call('HGET', at, m[2]) == tostring(id) then redis.call('HDEL', at, m[2]) end
      redis.call('ZREM', p..'used:'..m[3], id)
      if m[4] ~= '' then redis.call('SREM', p..'c:'..m[4], id) end
      for _, child in ipairs(redis.call('SMEMBERS', p..'c:'..id)) do
        waiting[#waiting + 1] = child
      end
    end
    redis.call('DEL', p..'m:'..id, p..'b:'..id, p..'o:'..id, p..'c:'..id)
    for _, set in ipairs({'used', 'ids', 'expires'}) do redis.call('ZREM', p..set, id) end
  end
  return gone
end
"""
ADD = (
    _REMOVE
    + """
local request, place, record, created, expires = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local millis, category, parent = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local held = redis.call('HGET', p..'x:'..request, place)
if held then remove(held) end
local id = redis.call('INCR', p..'next')
redis.call('HSET', p..'m:'..id, 'request', request, 'place', place, 'category', category,
  'parent', parent, 'hits', 0, 'created', created, unpack(ARGV, 9))
if millis > 0 then
  redis.call('SET', p..'b:'..id, record, 'PX', millis)
else
  redis.call('SET', p..'b:'..id, record)
end
redis.call('HSET', p..'x:'..request, place, id)
redis.call('ZADD', p..'used', created, id)
redis.call('ZADD', p..'used:'..category, created, id)
redis.call('ZADD', p..'ids', id, id)
redis.call('ZADD', p..'expires', expires, id)
if parent ~= '' then redis.call('SADD', p..'c:'..parent, id) end
return id
"""
)
DELETE = (
    _REMOVE
    + """
local all = {}
for _, id in ipairs(ARGV) do
  for _, gone in ipairs(remove(id)) do all[#all + 1] = gone end
end
return all
"""
)
STATUS = (
    _REMOVE
    + """
local id, status = ARGV[1], ARGV[2]
local m = redis.call('HMGET', p..'m:'..id, 'request', 'place', 'writer')
if not m[1] then return 0 end
local place = ''
if status ~= 'live' then place = 'q'..m[3] end
local at = p..'x:'..m[1]
if redis.call('HGET', at, m[2]) == id then redis.call('HDEL', at, m[2]) end
local held = redis.call('HGET', at, place)
if held and held ~= id then remove(held) end
redis.call('HSET', at, place, id)
redis.call('HSET', p..'m:'..id, 'place', place, 'status', status)
return 1
"""
)
TOUCH = """
local p, id, now = KEYS[1], ARGV[1], ARGV[2]
local category = redis.call('HGET', p..'m:'..id, 'category')
if category then
  redis.call('HINCRBY', p..'m:'..id, 'hits', 1)
  redis.call('ZADD', p..'used', now, id)
  redis.call('ZADD', p..'used:'..category, now, id)
end
"""
OBSERVE = """
local p, id = KEYS[1], ARGV[1]
if redis.call('EXISTS', p..'m:'..id) == 1 then
  redis.call('RPUSH', p..'o:'..id, ARGV[2])
  redis.call('LTRIM', p..'o:'..id, -tonumber(ARGV[3]), -1)
end
"""
EXACT = """
local p, found = KEYS[1], {}
for _, id in ipairs(redis.call('HVALS', p..'x:'..ARGV[1])) do
  local m = redis.call('HMGET', p..'m:'..id, 'status', 'hits')
  local record = redis.call('GET', p..'b:'..id)
  if m[1] and record then found[#found + 1] = {id, m[1], m[2], record} end
end
return found
"""

ALL = (ADD, DELETE, STATUS, TOUCH, OBSERVE, EXACT)
