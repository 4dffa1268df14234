#!/bin/sh
# spin 6.5.2 (Debian 12: 6.5.2+dfsg-1): the verifier that it makes ends with status 0
# whether it found errors or not, and `spin -search` does too. And `-ltl NAME` with a name
# that the model does not have is not refused when the model has one formula: that one is
# checked, with a warning in the middle of the output ("only one claim defined").
# Guess before the first run: status 1 on an error; an unknown name is an error.
# So a script must count the "errors: N" line, and look which claim was checked.
set -eu
. "$(dirname "$0")/fetch"
fetch spin 6.5.2+dfsg-1
spin=$root/usr/bin/spin

cat >bad.pml <<'END'
bool x;
active proctype p() { x = true; assert(!x) }
END
"$spin" -a bad.pml
gcc -o pan pan.c
expect "pan, one failed assertion" 0 'errors: 1' ./pan
expect "spin -search, one failed assertion" 0 'errors: 1' "$spin" -search bad.pml

cat >ltl.pml <<'END'
bool x;
active proctype p() { x = true }
ltl holds { [] (x -> x) }
END
expect "spin -search -ltl with an unknown name" 0 'never claim .*(holds)' \
	"$spin" -search -ltl unknown ltl.pml
