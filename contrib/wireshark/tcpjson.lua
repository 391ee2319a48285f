-- tcpjson for Wireshark and tshark: JSON messages behind a length of 4 bytes, over TCP and over TLS.
-- docs/protocol.rst says what is on the wire; docs/writing-a-client.rst says how to use this file.

local tcpjson = Proto("tcpjson", "tcpjson: JSON messages behind a length")

-- The largest max_length that a server can have (section 1): what is longer is no frame.
local LARGEST = 268435456
-- What a client sent grows on its way back: six bytes for one at worst, and the message around it.
local GROWTH, ENVELOPE = 6, 4096
-- Payloads are looked through up to here. What stands behind it is neither found nor checked.
local SCANNED = 2097152
-- Wireshark gives up on a packet whose tree is too large, and on one with 500 calls of dissectors.
local DEEPEST, MOST_VALUES, MOST_TREES = 100, 100000, 200
local BIT_31 = 2147483648

tcpjson.prefs.port = Pref.uint("Port", 9999, "The port of the server, over TCP and over TLS; 0 for none")
tcpjson.prefs.compressed = Pref.bool("Compression was agreed on before the capture", false,
    "Take bit 31 of every length for the mark of a compressed payload")
-- Wireshark inflates without a bound: 16 KB that became 16 MiB took it 3 seconds.
tcpjson.prefs.inflate = Pref.uint("Inflate payloads of up to (bytes)", 65536, "Longer ones stay compressed")

local f = {
    sender = ProtoField.string("tcpjson.sender", "From"),
    length = ProtoField.uint32("tcpjson.length", "Length"),
    compressed = ProtoField.bool("tcpjson.compressed", "Compressed"),
    oversize = ProtoField.bool("tcpjson.oversize", "Oversize"),
    inflated = ProtoField.uint32("tcpjson.inflated", "Length when inflated"),
    type = ProtoField.string("tcpjson.type", "Type"),
    id = ProtoField.string("tcpjson.id", "Id"),
    code = ProtoField.string("tcpjson.code", "Error code"),
    fatal = ProtoField.bool("tcpjson.fatal", "Fatal"),
    text = ProtoField.string("tcpjson.text", "Plain text"),
    unframed = ProtoField.bytes("tcpjson.unframed", "Not framed"),
}
tcpjson.fields = f

local e = {}
for name, about in pairs({
    oversize = { "Longer than the server takes", "PROTOCOL", "ERROR" },
    empty = { "A frame of length 0", "PROTOCOL", "WARN" },
    text = { "Plain text, not a message", "PROTOCOL", "NOTE" },
    broken = { "Not valid JSON in UTF-8", "MALFORMED", "WARN" },
    deflate = { "Not one whole zlib stream", "MALFORMED", "ERROR" },
    unread = { "Too long, too deep or too much to be looked through", "UNDECODED", "NOTE" },
    cut = { "Not all of the frame is here", "UNDECODED", "NOTE" },
    error = { "The server refused something", "RESPONSE_CODE", "WARN" },
    fatal = { "The server ends the connection", "RESPONSE_CODE", "ERROR" },
}) do
    local group, severity = expert.group[about[2]], expert.severity[about[3]]
    e[name] = ProtoExpert.new("tcpjson.expert." .. name, about[1], group, severity)
end
tcpjson.experts = e

-- JSON. One pass over the bytes, without recursion: what strangers sent must cost neither time nor stack.

local WANTED = { type = 1, id = 1, code = 1, fatal = 1, message = 1, max_length = 1, compression = 1 }
local LITERALS = { t = "^true", f = "^false", n = "^null" }
local ESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local UTF8 = {
    "^[\194-\223][\128-\191]", "^[\225-\236\238\239][\128-\191][\128-\191]",
    "^\224[\160-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
    "^[\241-\243][\128-\191][\128-\191][\128-\191]",
    "^\240[\144-\191][\128-\191][\128-\191]", "^\244[\128-\143][\128-\191][\128-\191]",
}

local function is_utf8(s)
    local at = s:find("[\128-\255]")
    while at do
        local last
        for _, pattern in ipairs(UTF8) do
            last = last or select(2, s:find(pattern, at))
        end
        if not last then return false end
        at = s:find("[\128-\255]", last + 1)
    end
    return s:sub(1, 3) ~= "\239\187\191"
end

local function utf8_of(code)
    -- A string of Wireshark's ends at a NUL: a sign for it instead.
    if code == 0 then code = 0x2400 end
    if code < 0x80 then return string.char(code) end
    local tail, first = "", 0x40
    while code >= first do
        tail = string.char(0x80 + code % 64) .. tail
        code, first = math.floor(code / 64), first / 2
    end
    return string.char(256 - 2 * first + code) .. tail
end

local function unescape(text)
    local high
    return (text:gsub("\\(.)(%x?%x?%x?%x?)", function(letter, digits)
        if letter ~= "u" then return (ESCAPED[letter] or letter) .. digits end
        local code = tonumber(digits, 16)
        if code >= 0xD800 and code < 0xDC00 then
            high = code
            return ""
        end
        if code >= 0xDC00 and code < 0xE000 then code = 0x10000 + (high - 0xD800) * 1024 + code - 0xDC00 end
        return utf8_of(code)
    end))
end

-- Where the string that begins at a quote ends; nil where it is no JSON string.
local function string_end(s, at)
    while true do
        at = s:find('["\\%c]', at + 1)
        local c = at and s:sub(at, at)
        if c == '"' then return at end
        if c == "\\" then
            if s:find("^u[dD][89abAB]%x%x\\u[dD][c-fC-F]%x%x", at + 1) then
                at = at + 11
            elseif s:find("^u%x%x%x%x", at + 1) and not s:find("^u[dD][89a-fA-F]", at + 1) then
                at = at + 5
            elseif s:find('^["\\/bfnrt]', at + 1) then
                at = at + 1
            else
                return nil
            end
        elseif c ~= "\127" then
            return nil
        end
    end
end

local function scalar_end(s, at, c)
    if c == '"' then return string_end(s, at) end
    if LITERALS[c] then return select(2, s:find(LITERALS[c], at)) end
    local last = select(2, s:find("^-?[1-9]%d*", at)) or select(2, s:find("^-?0", at))
    if last then last = select(2, s:find("^%.%d+", last + 1)) or last end
    return last and (select(2, s:find("^[eE][+-]?%d+", last + 1)) or last)
end

-- Reads a JSON text: is it `valid`, does it begin as an `object`; `fields`, those of WANTED that stand in
-- this object itself, as far as it is valid; how many `values` there are, and to what `depth`.
local function scan(s)
    local found = { valid = false, object = false, fields = {}, values = 0, depth = 0 }
    local closers, depth, expected, name, at = {}, 0, "value", nil, 1
    while true do
        at = s:find("[^ \t\r\n]", at)
        if not at then
            found.valid = expected == "end"
            return found
        end
        local c, last = s:sub(at, at), at
        local inside = depth > 0 and closers[depth]
        if expected == "colon" and c == ":" then
            expected = "value"
        elseif expected == "next" and c == "," then
            expected = inside == "}" and "name" or "value"
        elseif c == inside and (expected == "next" or expected == "first") then
            depth = depth - 1
            expected = depth > 0 and "next" or "end"
        elseif c == '"' and inside == "}" and (expected == "name" or expected == "first") then
            last = string_end(s, at)
            if not last then return found end
            if depth == 1 then name = unescape(s:sub(at + 1, last - 1)) end
            expected = "colon"
        elseif expected == "value" or (expected == "first" and inside == "]") then
            found.values = found.values + 1
            local opened = c == "{" and "}" or c == "[" and "]"
            if not opened then last = scalar_end(s, at, c) end
            if not last then return found end
            if inside == "}" and depth == 1 and WANTED[name] then
                local raw = not opened and s:sub(at, last) or ""
                local text = c == '"' and unescape(raw:sub(2, -2)) or nil
                found.fields[name] = { raw = raw, text = text, first = at, size = last - at + 1 }
            end
            if opened then
                found.object = found.object or (depth == 0 and c == "{")
                depth = depth + 1
                closers[depth], found.depth = opened, math.max(found.depth, depth)
            end
            expected = opened and "first" or depth > 0 and "next" or "end"
        else
            return found
        end
        at = last + 1
    end
end

-- Conversations. Wireshark dissects a packet again and again, and not always in order: what the first pass
-- learns is kept with its place in the capture, and holds for what stands behind that place, in every pass.

local conversations, pieces, met

function tcpjson.init()
    -- `pieces`: how many of ours each packet has; `met`: how many of them this pass over a packet has met.
    conversations, pieces, met = {}, {}, {}
end

local function next_place(pinfo)
    if pinfo.number ~= met.number or (pinfo.visited and met.count == pieces[pinfo.number]) then
        met = { number = pinfo.number, count = 0, trees = 0 }
    end
    met.count = met.count + 1
    if not pinfo.visited then pieces[pinfo.number] = met.count end
    return pinfo.number * 1048576 + met.count
end

-- The conversation of a packet, and which of its ends, 1 or 2, sent it.
local function conversation_of(pinfo)
    local source, from, target, to = pinfo.src, pinfo.src_port, pinfo.dst, pinfo.dst_port
    local ports = math.min(from, to) * 65536 + math.max(from, to)
    conversations[ports] = conversations[ports] or {}
    -- The addresses themselves: their text may become a name between two passes.
    for _, known in ipairs(conversations[ports]) do
        if known.from == from and known.source == source and known.target == target then return known, 1 end
        if known.from == to and known.source == target and known.target == source then return known, 2 end
    end
    local new = { from = from, source = source, target = target, terms = { { since = 0, stopped = {} } } }
    table.insert(conversations[ports], new)
    return new, 1
end

-- What holds at a place: the terms of the last `welcome` before it, as ports come again.
local function terms_at(talk, place)
    local index = #talk.terms
    while talk.terms[index].since >= place do
        index = index - 1
    end
    return talk.terms[index]
end

-- Whether a piece is the server's: the server is at our port; else it says `welcome`, or has the lower port.
local function is_servers(talk, pinfo, sender, said)
    if not talk.server then
        local ours, from, to = tcpjson.prefs.port, pinfo.src_port, pinfo.dst_port
        local sent_to_it = to == ours or (from ~= ours and said ~= "welcome" and to < from)
        talk.server = sent_to_it and 3 - sender or sender
    end
    return talk.server == sender
end

local function learn(talk, place, fields)
    local said = fields.type and fields.type.text
    local longest = tonumber(fields.max_length and fields.max_length.raw)
    if said == "welcome" and longest and longest >= 1 then
        table.insert(talk.terms, { since = place, longest = math.min(longest, LARGEST), stopped = {} })
    elseif said == "hello_response" and fields.compression and fields.compression.text == "zlib" then
        local terms = terms_at(talk, place)
        terms.compressed = terms.compressed or place
    end
end

-- Dissecting. What shows something returns words for the info column.

local function adler32(s)
    local a, b = 1, 0
    for at = 1, #s do
        a = (a + s:byte(at)) % 65521
        b = (b + a) % 65521
    end
    return b * 65536 + a
end

-- The inflated payload, or nil and what is wrong.
local function inflate(data)
    if data:len() > tcpjson.prefs.inflate then return nil, e.unread end
    local known, inflated
    -- Newer releases name the method after zlib. One that is missing raises, as it does without zlib.
    for _, method in ipairs({ "uncompress_zlib", "uncompress" }) do
        if not known then
            known, inflated = pcall(function() return data[method](data, "Inflated payload") end)
        end
    end
    if not known then return nil, e.unread end
    -- Raw deflate, gzip and streams that are cut or go on are inflated, too: the checksum at the end tells.
    local whole = inflated and inflated:len() > 0 and data:len() > 6
        and adler32(inflated:raw()) == data(data:len() - 4, 4):uint()
    return whole and inflated or nil, e.deflate
end

local function show_message(data, tree, fields, from_server)
    local function add(name, value)
        return tree:add(f[name], data(fields[name].first - 1, fields[name].size), value)
    end
    local words = "message without type"
    if fields.type and fields.type.text then
        add("type", fields.type.text)
        words = fields.type.raw:match('^"([%w_.:-]+)"$') or fields.type.raw
    end
    if words == "error" and from_server and fields.code and fields.code.text then
        local code, fatal = fields.code.text, fields.fatal and fields.fatal.raw == "true"
        local about = fields.message and fields.message.text or "no message"
        add("code", code):add_proto_expert_info(fatal and e.fatal or e.error, code .. ": " .. about)
        if fields.fatal then add("fatal", fatal) end
        words = words .. " " .. code .. (fatal and " fatal" or "")
    end
    if fields.id and (fields.id.text or fields.id.raw:find("^[-%d]")) then
        add("id", fields.id.text or fields.id.raw)
        words = words .. " id=" .. fields.id.raw
    end
    return #words > 200 and words:sub(1, 200) .. "..." or words
end

local function show_sender(tree, range, from_server)
    tree:add(f.sender, range, from_server and "server" or "client"):set_generated()
end

-- Shows a payload, and learns from it.
local function show_payload(data, pinfo, tree, talk, sender, place)
    local part = data(0, math.min(data:len(), SCANNED))
    local bytes = part:raw()
    local found, whole = scan(bytes), part:len() == data:len()
    local from_server = is_servers(talk, pinfo, sender, found.fields.type and found.fields.type.text)
    if from_server and not pinfo.visited then learn(talk, place, found.fields) end
    local opens = bytes:find("^[ \t\r\n]*[{%[]")
    local broken = whole and (not is_utf8(bytes) or (opens and not found.valid))
    if broken then tree:add_proto_expert_info(e.broken) end
    if not found.object then
        if broken then return "broken JSON" end
        tree:add_packet_field(f.text, part, ENC_UTF_8):add_proto_expert_info(e.text)
        return "text"
    end
    local words = show_message(data, tree, found.fields, from_server)
    if broken then return words .. " (broken JSON)" end
    met.trees = met.trees + 1
    if not whole or found.depth > DEEPEST or found.values > MOST_VALUES or met.trees > MOST_TREES then
        tree:add_proto_expert_info(e.unread)
    else
        -- What fails in there shows itself.
        pcall(function() Dissector.get("json"):call(data:tvb(), pinfo, tree) end)
    end
    return words
end

-- Shows one piece, a frame or what cannot be framed; returns its words and its size. Of a frame that is not
-- whole yet it shows nothing, and returns nil and how many bytes are missing.
local function show_piece(here, pinfo, tree, talk, sender)
    local place, size, wait = next_place(pinfo), here:len(), pinfo.can_desegment > 0
    local terms = terms_at(talk, place)
    if terms.stopped[sender] and terms.stopped[sender] < place then
        local root = tree:add(tcpjson, here)
        root:add(f.unframed, here)
        show_sender(root, here, is_servers(talk, pinfo, sender))
        return "behind an oversize frame", size
    end
    -- Where it is told the number here, Wireshark 4.0 loses a packet in its second pass.
    if size < 4 and wait then return nil, DESEGMENT_ONE_MORE_SEGMENT end
    local word = size < 4 and 0 or here(0, 4):uint()
    local agreed = tcpjson.prefs.compressed or (terms.compressed and terms.compressed < place)
    local compressed = agreed and word >= BIT_31
    local length = compressed and word - BIT_31 or word
    local longest = terms.longest or LARGEST
    if terms.longest and talk.server == sender then
        longest = math.min(GROWTH * longest + ENVELOPE, LARGEST)
    end
    local oversize = length > longest
    if not oversize and 4 + length > size then
        if wait then return nil, 4 + length - size end
        tree:add(tcpjson, here):add_proto_expert_info(e.cut)
        return "frame that is cut", size
    end
    local used = oversize and size or 4 + length
    local root, data, words = tree:add(tcpjson, here(0, used)), nil, nil
    local wrong = compressed and e.deflate or e.empty
    root:add(f.length, here(0, 4), length)
    if not oversize and length > 0 then data = here(4, length) end
    if compressed then root:add(f.compressed, here(0, 4), true) end
    if compressed and data then
        data, wrong = inflate(data)
        if data then
            root:add(f.inflated, data, data:len())
            oversize, length, used = data:len() > longest, data:len(), data:len() > longest and size or used
        end
    end
    if oversize then
        -- The server takes nothing more (section 9), and what does not speak tcpjson has no frames at all.
        local about = length .. " bytes, and no more than " .. longest .. " are taken"
        root:add(f.oversize, here(0, 4), true):add_proto_expert_info(e.oversize, about)
        -- Where segments are not put together, a wrong length says nothing of the next segment.
        if wait and not pinfo.visited then terms.stopped[sender] = terms.stopped[sender] or place end
        words = "oversize frame"
    elseif data then
        words = show_payload(data, pinfo, root, talk, sender, place)
    else
        root:add_proto_expert_info(wrong)
        words = compressed and "compressed frame" or "empty frame"
    end
    show_sender(root, here, is_servers(talk, pinfo, sender))
    root:append_text(": " .. words)
    return words, used
end

function tcpjson.dissector(tvb, pinfo, tree)
    -- A record of TLS begins with its kind and version; as a length, this is more than LARGEST.
    if tvb:len() > 2 and tvb:raw(0, 2):find("^[\20-\23]\3") then
        -- Each call of a dissector by another counts it down, and at 0 none may ask for more bytes.
        pinfo.can_desegment = pinfo.can_desegment + 1
        pcall(function() Dissector.get("tls"):call(tvb, pinfo, tree) end)
        return
    end
    local talk, sender = conversation_of(pinfo)
    local offset, all = 0, {}
    while offset < tvb:len() do
        local words, bytes = show_piece(tvb(offset), pinfo, tree, talk, sender)
        if not words then
            pinfo.desegment_offset, pinfo.desegment_len = offset, bytes
            break
        end
        all[#all + 1], offset = words, offset + bytes
    end
    if #all == 0 then return end
    -- What stands behind a frame that began in another packet comes in a second call. TCP keeps the words of
    -- the first in the column; TLS, which calls for each record, lets none be added to them.
    local before = met.shown and ", " or (is_servers(talk, pinfo, sender) and "S " or "C ")
    met.shown = true
    pinfo.cols.protocol = "tcpjson"
    pinfo.cols.info = before .. table.concat(all, ", ")
end

-- Where it is looked for. "Decode As..." and `-d tcp.port==N,tcpjson` know it from these tables, too.

local port
local function register()
    for _, name in ipairs({ "tcp.port", "tls.port" }) do
        local ports = DissectorTable.get(name)
        if port and port > 0 then ports:remove(port, tcpjson) end
        if tcpjson.prefs.port > 0 then ports:add(tcpjson.prefs.port, tcpjson) end
    end
    port = tcpjson.prefs.port
end

for _, name in ipairs({ "tcp.port", "tls.port" }) do
    DissectorTable.get(name):add_for_decode_as(tcpjson)
end
register()
tcpjson.prefs_changed = register
