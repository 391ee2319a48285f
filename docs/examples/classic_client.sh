#!/usr/bin/env bash
# A client of bash and GNU coreutils alone: bash classic_client.sh [HOST [PORT]]
# Requests are fixed texts here, and a field is found by its name alone; for more take jq.
set -o pipefail
LC_ALL=C    # so that ${#text} counts bytes
trap '' PIPE # writing to a closed connection fails, and does not end this without a word

host=${1:-localhost} port=${2:-9999}
timeout=10         # seconds, for each wait
wrap=4096          # what stands around the max_length bytes that a server takes, when they come back
max_length=1048576 # until the welcome says it

fail() {
    printf 'classic_client: %s\n' "$1" >&2
    exit 1
}

# read_failed STATUS: timeout ends with 124.
read_failed() {
    (($1 != 124)) || fail "nothing came for $timeout seconds"
    fail "the connection ended before a whole message was there"
}

# send JSON: the length in network byte order, and the text. printf goes on until all is written.
send() {
    local length=${#1} head
    ((length <= max_length)) || fail "the server takes no message of $length bytes"
    printf -v head '\\x%02x' $((length >> 24 & 255)) $((length >> 16 & 255)) $((length >> 8 & 255)) $((length & 255))
    { printf "$head%s" "$1" >&3; } 2>/dev/null || fail "the connection is gone"
}

# receive: sets payload. GNU head reads until it has so many bytes, and not one more.
receive() {
    local text head length status
    text=$(timeout "$timeout" head -c 4 <&3 2>/dev/null | od -An -v -tu1)
    status=$?
    read -r -a head <<<"$text"
    ((${#head[@]} == 4)) || read_failed $status
    length=$((head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3]))
    ((length <= max_length + wrap)) || fail "a message of $length bytes is too long"
    # The x keeps the new lines at the end. Zero bytes, which JSON has none of, are lost.
    { payload=$(timeout "$timeout" head -c "$length" <&3; status=$?; printf x; exit $status); } 2>/dev/null
    status=$?
    payload=${payload%x}
    ((${#payload} == length)) || read_failed $status
    [[ $payload =~ ^[[:space:]]*\{ ]] || fail "what came is no JSON object"
}

# field NAME: sets value, to the first such field of the payload, as JSON.
field() {
    local pattern="\"$1\"[[:space:]]*:[[:space:]]*(\"([^\"\\[:cntrl:]]|\\\\[^[:cntrl:]])*\"|[^],}[:space:][:cntrl:]]+)"
    value=null
    # U+0080 to U+009F JSON leaves as they are; terminals obey them.
    [[ ! $payload =~ $pattern ]] || value=${BASH_REMATCH[1]//$'\xc2'[$'\x80'-$'\x9f']/?}
}

# wait_for TYPE: the next such message. Others come at any time: somebody's broadcast, or an error.
wait_for() {
    local code
    while receive && field type && [[ $value != "\"$1\"" ]]; do
        if [[ $value == '"error"' ]]; then
            field code && code=$value && field message
            fail "error $code: $value"
        fi
        printf 'meanwhile: %s\n' "$value"
    done
}

ask() {
    send "$1"
    wait_for "$2"
}

{ exec 3<>"/dev/tcp/$host/$port"; } 2>/dev/null || fail "cannot connect to $host port $port"
wait_for welcome
field max_length
[[ ! $value =~ ^[1-9][0-9]{0,8}$ ]] || max_length=$value
field client_id
printf 'welcome: client_id %s\n' "$value"
ask '{"type": "ping"}' pong
echo pong
ask '{"type": "echo", "content": {"text": "тест"}}' echo_response
field text
# The two ways in which JSON spells it.
[[ $value == '"тест"' || $value == '"\u0442\u0435\u0441\u0442"' ]] || fail "the echo is another"
echo "echo_response: the same content"
ask '{"type": "broadcast", "content": {"text": "тест"}}' broadcast_sent
field recipients
printf 'broadcast_sent: recipients %s\n' "$value"
ask '{"type": "get_stats"}' server_stats
field connected_clients
printf 'server_stats: connected_clients %s\n' "$value"
ask '{"type": "move", "x": 1, "y": 2}' response
echo response
exec 3>&- # every answer is here: nothing is lost
