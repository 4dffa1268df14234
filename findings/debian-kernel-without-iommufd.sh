#!/bin/sh
# Debian's own kernels for amd64, 6.12.117 (Debian 12, security) and 7.3.4 (Debian 13,
# backports): neither has iommufd, not even as a module, so there is no /dev/iommu and no
# /dev/vfio/devices. VFIO with type 1 containers is there, and virtio-iommu as a module.
# A VMM that wants iommufd needs a kernel of its own on Debian.
# Guess before the first run: CONFIG_IOMMUFD=m, with VFIO_DEVICE_CDEV.
# Downloads 5 MB.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-headers-6.12.117+deb12-amd64 6.12.117-1~deb12u1
fetch linux-base-7.3.4+deb13-amd64 7.3.4-1~bpo13+1 trixie-backports
a="$root/usr/src/linux-headers-6.12.117+deb12-amd64/.config"
b="$root/usr/lib/modules/7.3.4+deb13-amd64/config"
for config in "$a" "$b"; do
	expect "iommufd" 0 '^# CONFIG_IOMMUFD is not set' grep -E '^(# )?CONFIG_IOMMUFD( |=)' "$config"
	expect "  ... VFIO's devices without a group" 1 '' grep 'VFIO_DEVICE_CDEV' "$config"
	expect "  ... containers" 0 '=y' grep '^CONFIG_VFIO_CONTAINER=' "$config"
	expect "  ... virtio-iommu" 0 '=m' grep '^CONFIG_VIRTIO_IOMMU=' "$config"
done
