#!/bin/sh
# Linux 6.12.117 (Debian 12: linux-source-6.12 6.12.117-1~deb12u1) and 7.3.4 (Debian 13's
# backports: linux-source-7.3 7.3.4-1~bpo13+1): on x86 6.12.117 refuses each SVA bond.
# iommu_sva_bind_device() returns -EOPNOTSUPP there for a kernel that has CONFIG_X86, before
# it asks anything of the IOMMU. CONFIG_INTEL_IOMMU_SVM can be set all the same, and selects
# what it takes. 7.3.4 has no such
# line: it invalidates what the IOMMU knows of kernel addresses instead, which 6.12 cannot.
# Guess before the first look: what a point release of a stable series can do with a driver,
# the next one can, too.
# So on x86 a driver that binds a process to a device (idxd) can do so with 7.3, and not with
# a 6.12 that is up to date.
# Downloads 300 MB.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-source-6.12 6.12.117-1~deb12u1
fetch linux-source-7.3 7.3.4-1~bpo13+1 trixie-backports
for v in 6.12 7.3; do
	mkdir $v
	tar -xf "$root"/usr/src/linux-source-$v.tar.xz -C $v --strip-components=1 linux-source-$v/drivers/iommu/iommu-sva.c \
		linux-source-$v/drivers/iommu/intel/Kconfig
done
bind() { sed -n '/^struct iommu_sva \*iommu_sva_bind_device(/,/^}/p' "$1/drivers/iommu/iommu-sva.c"; }
expect "6.12.117: what it asks" 0 'IS_ENABLED(CONFIG_X86)' bind 6.12
expect "6.12.117: what it answers" 0 'EOPNOTSUPP' bind 6.12
expect "7.3.4: it does not ask" 0 '!CONFIG_X86' bind 7.3
expect "7.3.4: it invalidates instead" 0 'iommu_sva_invalidate_kva_range' grep -m 1 iommu_sva_invalidate_kva_range 7.3/drivers/iommu/iommu-sva.c
expect "6.12.117: it cannot" 1 '' grep iommu_sva_invalidate_kva_range 6.12/drivers/iommu/iommu-sva.c
expect "6.12.117: and can be configured all the same" 0 '^config INTEL_IOMMU_SVM' grep INTEL_IOMMU_SVM 6.12/drivers/iommu/intel/Kconfig
