/* SPDX-License-Identifier: GPL-2.0-only */
/* What bench.c runs on, on x86-64: devices behind the mock IOMMU */

#define MOCK true
#define VIOMMU_TYPE IOMMU_VIOMMU_TYPE_SELFTEST
#define NESTED_TYPE IOMMU_HWPT_DATA_SELFTEST
#define INVALIDATE_TYPE IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST
#define nested_data iommu_hwpt_selftest
#define entry_data iommu_viommu_invalidate_selftest

/* dev is what the device is known by to the calls here */
static int device_open(int fd, uint32_t pt_id, uint32_t *dev, uint32_t *dev_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN,
		.id = pt_id,
	};

	if (ioctl(fd, IOMMU_TEST_CMD, &cmd))
		return -1;
	*dev = cmd.mock_domain.out_stdev_id;
	*dev_id = cmd.mock_domain.out_idev_id;
	return 0;
}

/* It goes with the file */
static void device_close(uint32_t dev)
{
	(void)dev;
}

static int attach(struct row *row, int fd, uint32_t dev, uint32_t pt_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
		.id = dev,
		.mock_domain_replace = { .pt_id = pt_id },
	};

	return timed_ioctl(row, fd, IOMMU_TEST_CMD, &cmd);
}

static void fill_nested(struct nested_data *data)
{
	data->iotlb = IOMMU_TEST_IOTLB_DEFAULT;
}

static void fill_entry(struct entry_data *entry, uint32_t virt_id, uint32_t i)
{
	entry->vdev_id = virt_id;
	entry->cache_id = i % MOCK_DEV_CACHE_NUM;
}

/* Only for an SMMUv3 */
#define CMD_NONE 0
#define CMD_CFGI_CD 0
#define CMD_CFGI_CD_ALL 0
static void fill_entry_device(struct entry_data *entry, uint32_t virt_id, uint64_t op)
{
	fill_entry(entry, virt_id, op);
}
