/* SPDX-License-Identifier: GPL-2.0-only */
/* What bench.c runs on, on arm64: a PCI device behind an SMMUv3, by vfio-pci */

#include <endian.h>
#include <linux/vfio.h>

#define MOCK false
#define VIOMMU_TYPE IOMMU_VIOMMU_TYPE_ARM_SMMUV3
#define NESTED_TYPE IOMMU_HWPT_DATA_ARM_SMMUV3
#define INVALIDATE_TYPE IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
#define nested_data iommu_hwpt_arm_smmuv3
#define entry_data iommu_viommu_arm_smmuv3_invalidate

#define STE0_V UINT64_C(1)
#define STE0_S1_TRANS (UINT64_C(5) << 1)

#define CMD_NONE UINT64_C(0x00)
#define CMD_CFGI_CD UINT64_C(0x05)
#define CMD_CFGI_CD_ALL UINT64_C(0x06)
#define CMD_TLBI_NH_VA UINT64_C(0x12)

/* dev is the file of the device, which vfio-pci has */
static int device_open(int fd, uint32_t pt_id, uint32_t *dev, uint32_t *dev_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = pt_id,
	};
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = fd,
	};
	int vfio;

	vfio = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
	if (vfio == -1)
		return -1;
	if (ioctl(vfio, VFIO_DEVICE_BIND_IOMMUFD, &bind) ||
	    ioctl(vfio, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)) {
		close(vfio);
		return -1;
	}
	*dev = vfio;
	*dev_id = bind.out_devid;
	return 0;
}

static void device_close(uint32_t dev)
{
	close(dev);
}

static int attach(struct row *row, int fd, uint32_t dev, uint32_t pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = pt_id,
	};

	(void)fd;
	return timed_ioctl(row, dev, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

/* The guest's stage 1 is at another place each time. Nothing does DMA, nobody reads it. */
static void fill_nested(struct nested_data *data)
{
	static uint64_t tables;

	tables ^= 4096;
	data->ste[0] = htole64(STE0_V | STE0_S1_TRANS | (1 << 24) | tables);
}

/* A page of the guest's, as its driver would drop it: by address and ASID */
static void fill_entry(struct entry_data *entry, uint32_t virt_id, uint32_t i)
{
	(void)virt_id;
	entry->cmd[0] = htole64(CMD_TLBI_NH_VA | UINT64_C(5) << 48);
	entry->cmd[1] = htole64((uint64_t)i << 12 | 1);
}

/* Something that names a device */
static void fill_entry_device(struct entry_data *entry, uint32_t virt_id, uint64_t op)
{
	entry->cmd[0] = htole64(op | (uint64_t)virt_id << 32);
	entry->cmd[1] = 0;
}
