#!/bin/sh
# QEMU 11.1.3 (trixie-backports): VT-d's scalable mode is "scalable-mode" now, and the name
# that it had up to 10.0, "x-scalable-mode", is unknown: QEMU does not start. There is no
# name that works with both. (A name with x- promises nothing, but every guide has it.)
# Guess before the first run: the old name works, perhaps with a warning.
# So a script asks "-device intel-iommu,help" which one there is, as vm/run does.
# Downloads 100 MB. No guest runs.
set -eu
. "$(dirname "$0")/fetch"
fetch_all qemu-system-x86 '1:11.1.3+ds-1~bpo13+1' trixie-backports
q() { run qemu-system-x86_64 -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"; }
start() {
	echo quit | q -S -machine q35 -accel tcg -nodefaults -no-user-config -display none \
		-device "intel-iommu,$1=on" -monitor stdio
}
expect "the old name" 1 'x-scalable-mode.* not found' start x-scalable-mode
expect "the new name" 0 '' start scalable-mode
