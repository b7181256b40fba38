#!/bin/sh
# The client for restore_command of a server in a container, which has no Python and no way to a socket but its own:
#
#     sh thin_fetch.sh FOLDER NAME PATH
#
# It asks the prefetcher by a file in FOLDER, and waits for the file with the answer; see pgkeep.wal.by_files. Exit codes are those
# of pgkeep.wal.thin_fetch: 0 there it is, 1 absent everywhere, 199 nobody answers, above 125 for all else.
folder=$1 name=$2 path=$3
request=$folder/request.$$ answer=$folder/answer.$$

tell() { printf 'pgkeep: %s\n' "$*" >&2; }

# who does not wait any more must not find the file there later
trap 'rm -f "$request"; exit 143' TERM
trap 'rm -f "$request"; exit 131' QUIT
rm -f "$answer"
printf '%s\n%s\n' "$name" "$path" >"$request.new" && mv "$request.new" "$request" || {
    tell "cannot ask in $folder"
    exit 199
}
until [ -e "$answer" ]; do
    [ -e "$folder/serving" ] || {
        rm -f "$request"
        tell "no prefetcher answers in $folder"
        exit 199
    }
    sleep 0.02
done
read -r code message <"$answer"
rm -f "$answer"
[ -z "$message" ] || tell "$message"
case $code in
0)
    # PostgreSQL would take a success without a file for "absent"
    [ -e "$path" ] || {
        tell "$path was to be there, and is not"
        exit 201
    }
    exit 0
    ;;
[1-9] | [1-9][0-9] | [1-9][0-9][0-9]) exit "$code" ;;
*)
    tell "the prefetcher's answer makes no sense: $code"
    exit 199
    ;;
esac
