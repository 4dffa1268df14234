#!/bin/sh
# QEMU 11.1.3 (trixie-backports; 10.0 is the same): how many bits of IOVAs a virtio-iommu
# has depends on the machine. "-device virtio-iommu-pci,help" says 64 for all of them, and
# that is so on "pc"; on "q35" it is 39. QEMU 7.2 had 64 everywhere, so a guest that comes
# from there has lost what is above 512 GiB.
# Guess before the first run: 64, as the help says.
# So a VMM asks IOMMU_IOAS_IOVA_RANGES, and who needs more gives aw-bits=64.
# Downloads 100 MB. No guest runs.
set -eu
. "$(dirname "$0")/fetch"
fetch_all qemu-system-x86 '1:11.1.3+ds-1~bpo13+1' trixie-backports
q() { run qemu-system-x86_64 -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"; }
# aw_bits MACHINE [MORE]: as QEMU has it once the machine is made
aw_bits() {
	printf '%s\n' 'qom-get /machine/peripheral/i aw-bits' quit |
		q -S -machine "$1" -accel tcg -nodefaults -no-user-config -display none \
			-device "virtio-iommu-pci,id=i${2-}" -monitor stdio | tr -d '\r' | grep '^[0-9]'
}
expect "the help" 0 'aw-bits=.*default: 64' q -device virtio-iommu-pci,help
expect "q35" 0 '^39$' aw_bits q35
expect "pc" 0 '^64$' aw_bits pc
expect "q35, aw-bits=64" 0 '^64$' aw_bits q35 ,aw-bits=64
