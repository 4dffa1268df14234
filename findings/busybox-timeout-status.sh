#!/bin/sh
# busybox 1.35.0 (Debian 12: busybox-static 1:1.35.0-4+deb12u1+b1): `timeout` whose time is
# over ends with 143 (128 + SIGTERM), where coreutils' ends with 124, which scripts look
# for. With -k and a program that ignores SIGTERM it is 137, as with coreutils.
# Guess before the first run: 124, as POSIX.1-2024 has it for timeout.
# In an initramfs 143 therefore does not tell a time-out from a program that somebody
# else ended.
set -eu
. "$(dirname "$0")/fetch"
fetch busybox-static '1:1.35.0-4+deb12u1+b1'
bb=$root/bin/busybox

expect "coreutils: time over" 124 '' timeout 1 sleep 9
expect "busybox: time over" 143 '' "$bb" timeout 1 sleep 9
expect "busybox: ended by somebody else's SIGTERM" 143 '' "$bb" timeout 9 sh -c 'kill -TERM $$'
expect "coreutils: -k, SIGTERM ignored" 137 "" timeout -k 1 1 sh -c 'trap "" TERM; sleep 9 & wait; sleep 9'
expect "busybox: -k, SIGTERM ignored" 137 '' "$bb" timeout -k 1 1 sh -c 'trap "" TERM; sleep 9 & wait; sleep 9'
