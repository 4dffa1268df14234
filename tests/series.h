/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the selftests' headers of another series than 6.12 lack of that one's, for the
 * programs here. Its mock driver has fewer commands.
 */
#ifndef TESTS_SERIES_H
#define TESTS_SERIES_H

#ifdef SERIES_7_3
#include <dirent.h>

/* xorshift64, the state is never 0 */
static uint64_t rnd64(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static unsigned int rnd(uint64_t *state, unsigned int limit)
{
	return (rnd64(state) >> 33) % limit;
}

/* 0 if it is not there */
static unsigned int count_dir(const char *path)
{
	unsigned int n = 0;
	DIR *dir = opendir(path);

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

/* IDs are given out lowest first, so this tells whether one was left behind */
static uint32_t free_id(int fd)
{
	uint32_t id;

	if (_test_ioctl_ioas_alloc(fd, &id) || _test_ioctl_destroy(fd, id))
		return 0;
	return id;
}

/* Those that a process has left which was killed, too */
static int unregister_all(int fd)
{
	static uint32_t first = 1;
	uint32_t last;

	if (_test_cmd_iommu_register(fd, 0, &last))
		return -1;
	for (; first <= last; first++)
		_test_cmd_iommu_unregister(fd, first);
	return 0;
}

/* It does not count them. There is a way to see that it is there. */
static int _test_cmd_viommu_stats(int fd, uint64_t *inits, uint64_t *destroys,
				  uint64_t *revokes)
{
	*inits = 0;
	*destroys = 0;
	return _test_cmd_park(fd, 0, MOCK_PARK_RELEASE);
}

/* An invalidation of nothing gets to the driver as well */
static int _test_cmd_viommu_call(int fd, uint32_t viommu_id)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = viommu_id,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
		.entry_len = sizeof(struct iommu_viommu_invalidate_selftest),
	};

	return ioctl(fd, IOMMU_HWPT_INVALIDATE, &cmd);
}

/* Never from an interrupt */
static int _test_cmd_trigger_vevent(int fd, uint32_t device_id, bool irq)
{
	return _test_cmd_trigger_vevents(fd, device_id, 1);
}

static int hw_info(int fd, uint32_t device_id)
{
	return _test_cmd_get_hw_info(fd, device_id, IOMMU_HW_INFO_TYPE_DEFAULT,
				     NULL, 0, NULL, NULL);
}

static int trigger_iopf(int fd, uint32_t device_id, uint32_t grpid)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_IOPF,
		.trigger_iopf = {
			.dev_id = device_id,
			.pasid = 0x1,
			.grpid = grpid,
			.perm = IOMMU_PGFAULT_PERM_READ,
		},
	};

	return ioctl(fd, IOMMU_TEST_CMD, &cmd);
}
#endif
#endif
