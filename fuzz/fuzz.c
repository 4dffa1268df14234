// SPDX-License-Identifier: GPL-2.0-only
/*
 * A fuzzer for iommufd with the mock driver, which is guided by the coverage of
 * drivers/iommu (KCOV). It runs in the virtual machine; scripts/fuzz drives it.
 *
 * A program is a list of calls on three threads. The table of ops says what the
 * fields of a call are, so that most calls are right, but for something here and
 * there. A program that gets somewhere new is made as short as it can be, and kept:
 * later programs are changed ones of those.
 *
 * usage: fuzz [-s SEED] [-t SECONDS] [-f FILE]   find programs, FILE has some
 *        fuzz -r N [-t SECONDS] -f FILE          run FILE N times
 *        fuzz -m N [-t SECONDS] -f FILE          run what is simpler, each N times
 *        fuzz -c -f FILE                         print FILE as a C program
 *
 * FILE has a program on each line; for -r, -m and -c they are run one after the
 * other. What is printed is for the script, by the first letter of the line:
 *
 *   X program	is going to be run: the last one of these is what a crash is from
 *   C program	is new
 *   K program	one of those that make up the coverage, at the end
 *   P address	of the code that was reached, at the end
 *   S text	figures
 *   B text	what the kernel has reported
 *   M		-m has tried all, or has no more time
 *   I text	other messages
 */
#include "run.h"

#include <stdarg.h>

#ifdef SERIES_7_3
/* Values of the mock driver of 6.12, which mean nothing here */
#define IOMMU_TEST_IOTLB_NONE 0xbadbeee
#define IOMMU_TEST_REGION_MMIO 0xbad10000
#define IOMMU_TEST_REGION_HALF 0xbad10001
#define IOMMU_TEST_REGION_TOO_LARGE 0xbad10002
#define IOMMU_TEST_VIRT_ID_REFUSED 0xbadd1d
#define IOMMU_HW_QUEUE_TYPE_SELFTEST_PLAIN 0xdeadbeee
#define MOCK_FLAGS_DEVICE_HUGE_IOVA (1 << 1)
#define MOCK_IOMMU_NO_VIOMMU (1 << 4)
#define MOCK_IOMMU_HALF_VIOMMU (1 << 5)
#endif

/* Kinds of results, which are also what fields are to be */
enum kind {
	FILE_FD,
	IOAS,
	/* That an IOAS makes of itself, and that are allocated */
	AUTO_HWPT,
	HWPT,
	NESTED,
	DEVICE,
	STDEV,
	FAULT,
	FAULT_FD,
	VIOMMU,
	VDEVICE,
	VEVENTQ,
	VEVENTQ_FD,
	HW_QUEUE,
	REGION,
	ACCESS_FD,
	PAGES,
	IOMMU,
	/* An IOVA */
	MAPPED,
	NUM_KINDS,
};

#define K(kind) (1U << (kind))
#define OBJECTS                                                              \
	(K(IOAS) | K(AUTO_HWPT) | K(HWPT) | K(NESTED) | K(DEVICE) |          \
	 K(STDEV) | K(FAULT) | K(VIOMMU) | K(VDEVICE) | K(VEVENTQ) | K(HW_QUEUE))
/* What is known in all files */
#define GLOBAL (K(FILE_FD) | K(IOMMU) | K(ACCESS_FD) | K(FAULT_FD) | K(VEVENTQ_FD))

enum type {
	/* One of the values; the first one is what it is most often */
	CONST,
	/* Some of the values, or'ed; as above */
	FLAGS,
	/* What another call has given out, or one of the values if there are any */
	REF,
	/* Where the data of the call is */
	DATA_PTR,
	/* Given out by the call */
	OUT,
};

enum area { ARG, DATA };

#define MAX_FIELDS 14
#define MAX_VALS 11

struct field {
	const char *name;
	enum area area;
	unsigned short offset;
	unsigned char size;
	enum type type;
	unsigned int kinds;
	unsigned char num_vals;
	uint64_t vals[MAX_VALS];
};

struct op {
	const char *name;
	/* In 1000 or so */
	unsigned short weight;
	/* An ioctl, with its argument, of which at least min_size must be there */
	const char *ioctl_name;
	unsigned int ioctl;
	const char *type;
	unsigned short size;
	unsigned short min_size;
	/* For IOMMU_TEST_CMD */
	const char *test_name;
	unsigned int test_op;
	/* Or else a function of run.h, and the kind of its result */
	const char *fn_name;
	long (*fn)(const unsigned long *a);
	unsigned int ret;
	unsigned int undo;
	struct field fields[MAX_FIELDS];
};

#define NUM_ARGS(...) (sizeof((uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t))
#define MEMBER(s, m) \
	.name = #m, .offset = offsetof(struct s, m), \
	.size = sizeof(((struct s *)0)->m)
#define VALS(...) .num_vals = NUM_ARGS(__VA_ARGS__), .vals = { __VA_ARGS__ }

#define A_CONST(s, m, ...) { MEMBER(s, m), .type = CONST, VALS(__VA_ARGS__) }
#define A_FLAGS(s, m, ...) { MEMBER(s, m), .type = FLAGS, VALS(__VA_ARGS__) }
#define A_REF(s, m, k) { MEMBER(s, m), .type = REF, .kinds = k }
#define A_IOVA(s, m) { MEMBER(s, m), .type = REF, .kinds = K(MAPPED), VALS(IOVAS) }
#define A_PTR(s, m) { MEMBER(s, m), .type = DATA_PTR }
#define A_OUT(s, m, k) { MEMBER(s, m), .type = OUT, .kinds = k }
#define D_AT(n, o, sz) .name = n, .area = DATA, .offset = o, .size = sz
#define D_CONST(n, o, sz, ...) { D_AT(n, o, sz), .type = CONST, VALS(__VA_ARGS__) }
#define D_FLAGS(n, o, sz, ...) { D_AT(n, o, sz), .type = FLAGS, VALS(__VA_ARGS__) }
#define D_OUT(n, o, sz, k) { D_AT(n, o, sz), .type = OUT, .kinds = k }
#define T_CONST(m, ...) A_CONST(iommu_test_cmd, m, __VA_ARGS__)
#define T_FLAGS(m, ...) A_FLAGS(iommu_test_cmd, m, __VA_ARGS__)
#define T_IOVA(m) A_IOVA(iommu_test_cmd, m)
#define T_REF(m, k) A_REF(iommu_test_cmd, m, k)
#define T_OUT(m, k) A_OUT(iommu_test_cmd, m, k)

/* Of a function */
#define P_AT(n, i) .name = n, .offset = (i) * 8, .size = 8
#define P_CONST(i, n, ...) { P_AT(n, i), .type = CONST, VALS(__VA_ARGS__) }
#define P_REF(i, n, k) { P_AT(n, i), .type = REF, .kinds = k }

#define FD_OF(k) { .name = "fd", .offset = 0xffff, .size = 8, .type = REF, .kinds = k }
#define FD FD_OF(K(FILE_FD))

#define IOCTL(n, w, nr, s, last)                                             \
	.name = n, .weight = w, .ioctl_name = #nr, .ioctl = nr, .type = #s,  \
	.size = sizeof(struct s),                                            \
	.min_size = offsetof(struct s, last) + sizeof(((struct s *)0)->last)
#define TEST(n, w, nr)                                                       \
	IOCTL(n, w, IOMMU_TEST_CMD, iommu_test_cmd, last), .test_name = #nr, \
	.test_op = nr
#define CALL(n, w, f) .name = n, .weight = w, .fn_name = #f, .fn = f

#define IOVAS                                                                \
	MOCK_APERTURE_START, MOCK_APERTURE_START + PAGE,                     \
		MOCK_APERTURE_START + 2 * PAGE, MOCK_APERTURE_START + 4 * PAGE, \
		MOCK_APERTURE_START + 0x200000, MOCK_APERTURE_START + PAGE / 2, \
		0, MOCK_APERTURE_LAST - (PAGE - 1), ~0ULL - PAGE + 1, 1
#define LENGTHS \
	PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE, PAGE / 2, 0x200000, 1, 0, ~0ULL, 5 * PAGE
#define ADDRS                                                                \
	ARENA, ARENA + PAGE, ARENA + 4 * PAGE, ARENA + 0x200000, ARENA + 100, \
		ARENA + ARENA_SIZE - PAGE, WINDOW, SLOTS, RDONLY, 0

static const struct op ops[] = {
	{ CALL("open", 6, sys_open), .ret = K(FILE_FD), .fields = {
		P_CONST(0, "flags", 0, O_NONBLOCK) } },
	{ CALL("close", 12, sys_close), .fields = {
		P_REF(0, "fd", K(FILE_FD) | K(FAULT_FD) | K(VEVENTQ_FD) |
			       K(ACCESS_FD)) } },
	{ CALL("dup", 3, sys_dup), .ret = K(FILE_FD), .fields = {
		P_REF(0, "fd", K(FILE_FD)) } },
	{ IOCTL("destroy", 60, IOMMU_DESTROY, iommu_destroy, id), .fields = {
		FD, A_REF(iommu_destroy, id, OBJECTS) } },
	{ IOCTL("ioas_alloc", 10, IOMMU_IOAS_ALLOC, iommu_ioas_alloc, out_ioas_id),
	  .fields = {
		FD, A_FLAGS(iommu_ioas_alloc, flags, 0, 1),
		A_OUT(iommu_ioas_alloc, out_ioas_id, K(IOAS)) } },
	{ IOCTL("ioas_allow_iovas", 4, IOMMU_IOAS_ALLOW_IOVAS, iommu_ioas_allow_iovas,
		allowed_iovas), .fields = {
		FD, A_REF(iommu_ioas_allow_iovas, ioas_id, K(IOAS)),
		A_CONST(iommu_ioas_allow_iovas, num_iovas, 1, 0, 2, 3, 1000),
		A_CONST(iommu_ioas_allow_iovas, __reserved, 0, 1),
		A_PTR(iommu_ioas_allow_iovas, allowed_iovas),
		D_CONST("[0].start", 0, 8, IOVAS),
		D_CONST("[0].last", 8, 8, MOCK_APERTURE_START + 8 * PAGE - 1,
			MOCK_APERTURE_LAST, PAGE - 1, ~0ULL, 0),
		D_CONST("[1].start", 16, 8, MOCK_APERTURE_START + 16 * PAGE, 0, PAGE),
		D_CONST("[1].last", 24, 8, MOCK_APERTURE_LAST, ~0ULL, 0) } },
	{ IOCTL("ioas_iova_ranges", 4, IOMMU_IOAS_IOVA_RANGES, iommu_ioas_iova_ranges,
		out_iova_alignment), .fields = {
		FD, A_REF(iommu_ioas_iova_ranges, ioas_id, K(IOAS)),
		A_CONST(iommu_ioas_iova_ranges, num_iovas, 4, 0, 1, 2, 300),
		A_CONST(iommu_ioas_iova_ranges, __reserved, 0, 1),
		A_PTR(iommu_ioas_iova_ranges, allowed_iovas),
		D_CONST("[0]", 0, 8, 0), D_CONST("[3]", 56, 8, 0) } },
	{ IOCTL("ioas_map", 20, IOMMU_IOAS_MAP, iommu_ioas_map, iova), .fields = {
		FD, A_FLAGS(iommu_ioas_map, flags, 7, 1, 2, 4, 8),
		A_REF(iommu_ioas_map, ioas_id, K(IOAS)),
		A_CONST(iommu_ioas_map, __reserved, 0, 1),
		A_CONST(iommu_ioas_map, user_va, ADDRS),
		A_CONST(iommu_ioas_map, length, LENGTHS),
		A_CONST(iommu_ioas_map, iova, IOVAS),
		A_OUT(iommu_ioas_map, iova, K(MAPPED)) } },
	{ IOCTL("ioas_copy", 5, IOMMU_IOAS_COPY, iommu_ioas_copy, src_iova), .fields = {
		FD, A_FLAGS(iommu_ioas_copy, flags, 7, 1, 2, 4, 8),
		A_REF(iommu_ioas_copy, dst_ioas_id, K(IOAS)),
		A_REF(iommu_ioas_copy, src_ioas_id, K(IOAS)),
		A_CONST(iommu_ioas_copy, length, LENGTHS),
		A_CONST(iommu_ioas_copy, dst_iova, IOVAS),
		A_IOVA(iommu_ioas_copy, src_iova) } },
	{ IOCTL("ioas_unmap", 14, IOMMU_IOAS_UNMAP, iommu_ioas_unmap, length),
	  .fields = {
		FD, A_REF(iommu_ioas_unmap, ioas_id, K(IOAS)),
		A_IOVA(iommu_ioas_unmap, iova),
		A_CONST(iommu_ioas_unmap, length, LENGTHS) } },
	{ IOCTL("option", 3, IOMMU_OPTION, iommu_option, val64), .fields = {
		FD, A_CONST(iommu_option, option_id, 1, 0, 2),
		A_CONST(iommu_option, op, 0, 1, 2),
		A_CONST(iommu_option, __reserved, 0, 1),
		A_REF(iommu_option, object_id, K(IOAS)),
		A_CONST(iommu_option, val64, 0, 1, 2) } },
	{ IOCTL("vfio_ioas", 3, IOMMU_VFIO_IOAS, iommu_vfio_ioas, __reserved),
	  .fields = {
		FD, A_REF(iommu_vfio_ioas, ioas_id, K(IOAS)),
		A_CONST(iommu_vfio_ioas, op, 1, 0, 2, 3),
		A_CONST(iommu_vfio_ioas, __reserved, 0, 1) } },
	{ IOCTL("hwpt_alloc", 30, IOMMU_HWPT_ALLOC, iommu_hwpt_alloc, __reserved),
	  .fields = {
		FD, A_FLAGS(iommu_hwpt_alloc, flags, 1, 0, 1, 2, 4, 8),
		A_REF(iommu_hwpt_alloc, dev_id, K(DEVICE)),
		A_REF(iommu_hwpt_alloc, pt_id, K(IOAS)),
		A_CONST(iommu_hwpt_alloc, __reserved, 0, 1),
		A_CONST(iommu_hwpt_alloc, data_type, 0, IOMMU_HWPT_DATA_SELFTEST, 1),
		A_CONST(iommu_hwpt_alloc, data_len, 0, 8, 1),
		A_OUT(iommu_hwpt_alloc, out_hwpt_id, K(HWPT)) } },
	{ IOCTL("hwpt_alloc_nested", 60, IOMMU_HWPT_ALLOC, iommu_hwpt_alloc,
		__reserved), .fields = {
		FD, A_FLAGS(iommu_hwpt_alloc, flags, 0, IOMMU_HWPT_FAULT_ID_VALID,
			    IOMMU_HWPT_FAULT_ID_VALID, 1, 2, 8),
		A_REF(iommu_hwpt_alloc, dev_id, K(DEVICE)),
		A_REF(iommu_hwpt_alloc, pt_id, K(VIOMMU) | K(HWPT)),
		A_CONST(iommu_hwpt_alloc, __reserved, 0, 1),
		A_CONST(iommu_hwpt_alloc, data_type, IOMMU_HWPT_DATA_SELFTEST, 0, 1),
		A_CONST(iommu_hwpt_alloc, data_len, 8, 4, 0, 9, 4096, 5000),
		A_PTR(iommu_hwpt_alloc, data_uptr),
		A_REF(iommu_hwpt_alloc, fault_id, K(FAULT)),
		D_CONST("iotlb", 0, 4, IOMMU_TEST_IOTLB_DEFAULT, IOMMU_TEST_IOTLB_NONE, 0),
		D_CONST("pagetable_type", 4, 4, 0, 1),
		A_OUT(iommu_hwpt_alloc, out_hwpt_id, K(NESTED)) } },
	{ IOCTL("hw_info", 6, IOMMU_GET_HW_INFO, iommu_hw_info, __reserved),
	  .fields = {
		FD, A_FLAGS(iommu_hw_info, flags, 0, 1),
		A_REF(iommu_hw_info, dev_id, K(DEVICE)),
		A_CONST(iommu_hw_info, data_len, 8, 0, 4, 16, 5000, 0xffffffff),
		A_PTR(iommu_hw_info, data_uptr),
		D_CONST("[0]", 0, 8, 0) } },
	{ IOCTL("set_dirty_tracking", 4, IOMMU_HWPT_SET_DIRTY_TRACKING,
		iommu_hwpt_set_dirty_tracking, __reserved), .fields = {
		FD, A_FLAGS(iommu_hwpt_set_dirty_tracking, flags, 1, 0, 2),
		A_REF(iommu_hwpt_set_dirty_tracking, hwpt_id, K(HWPT) | K(AUTO_HWPT)),
		A_CONST(iommu_hwpt_set_dirty_tracking, __reserved, 0, 1) } },
	{ IOCTL("get_dirty_bitmap", 4, IOMMU_HWPT_GET_DIRTY_BITMAP,
		iommu_hwpt_get_dirty_bitmap, data), .fields = {
		FD, A_REF(iommu_hwpt_get_dirty_bitmap, hwpt_id, K(HWPT) | K(AUTO_HWPT)),
		A_FLAGS(iommu_hwpt_get_dirty_bitmap, flags, 0, 1, 2),
		A_CONST(iommu_hwpt_get_dirty_bitmap, __reserved, 0, 1),
		A_IOVA(iommu_hwpt_get_dirty_bitmap, iova),
		A_CONST(iommu_hwpt_get_dirty_bitmap, length, LENGTHS),
		A_CONST(iommu_hwpt_get_dirty_bitmap, page_size, 2048, 4096, 0x200000,
			1, 0),
		A_PTR(iommu_hwpt_get_dirty_bitmap, data),
		D_CONST("[0]", 0, 8, 0), D_CONST("[15]", 120, 8, 0) } },
	{ IOCTL("invalidate_nested", 20, IOMMU_HWPT_INVALIDATE, iommu_hwpt_invalidate,
		__reserved), .fields = {
		FD, A_REF(iommu_hwpt_invalidate, hwpt_id, K(NESTED)),
		A_PTR(iommu_hwpt_invalidate, data_uptr),
		A_CONST(iommu_hwpt_invalidate, data_type,
			IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
			IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID, 0),
		A_CONST(iommu_hwpt_invalidate, entry_len, 8, 12, 4, 0, 100, 4096,
			5000),
		A_CONST(iommu_hwpt_invalidate, entry_num, 1, 2, 0, 3, 512, 1 << 19,
			0xffffffff),
		A_CONST(iommu_hwpt_invalidate, __reserved, 0, 1),
		D_FLAGS("[0].flags", 0, 4, 0, 1, 2),
		D_CONST("[0].iotlb_id", 4, 4, 0, 1, 3, 4),
		D_FLAGS("[1].flags", 8, 4, 0, 1, 2),
		D_CONST("[1].iotlb_id", 12, 4, 0, 1, 3, 4) } },
	{ IOCTL("invalidate_viommu", 40, IOMMU_HWPT_INVALIDATE, iommu_hwpt_invalidate,
		__reserved), .fields = {
		FD, A_REF(iommu_hwpt_invalidate, hwpt_id, K(VIOMMU)),
		A_PTR(iommu_hwpt_invalidate, data_uptr),
		A_CONST(iommu_hwpt_invalidate, data_type,
			IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
			IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID, 0),
		A_CONST(iommu_hwpt_invalidate, entry_len, 12, 8, 0, 16, 4096, 5000),
		A_CONST(iommu_hwpt_invalidate, entry_num, 1, 2, 0, 3, 400, 1 << 19,
			0xffffffff),
		A_CONST(iommu_hwpt_invalidate, __reserved, 0, 1),
		D_FLAGS("[0].flags", 0, 4, 0, 1, 2),
		D_CONST("[0].vdev_id", 4, 4, 0, 1, 2, 3),
		D_CONST("[0].cache_id", 8, 4, 0, 1, 3, 4),
		D_FLAGS("[1].flags", 12, 4, 0, 1, 2),
		D_CONST("[1].vdev_id", 16, 4, 0, 1, 2, 3),
		D_CONST("[1].cache_id", 20, 4, 0, 1, 3, 4) } },
	{ IOCTL("fault_queue_alloc", 6, IOMMU_FAULT_QUEUE_ALLOC, iommu_fault_alloc,
		out_fault_fd), .fields = {
		FD, A_FLAGS(iommu_fault_alloc, flags, 0, 1),
		A_OUT(iommu_fault_alloc, out_fault_id, K(FAULT)),
		A_OUT(iommu_fault_alloc, out_fault_fd, K(FAULT_FD)) } },
	{ IOCTL("viommu_alloc", 60, IOMMU_VIOMMU_ALLOC, iommu_viommu_alloc,
		out_viommu_id), .fields = {
		FD, A_FLAGS(iommu_viommu_alloc, flags, 0, 1),
		A_CONST(iommu_viommu_alloc, type, IOMMU_VIOMMU_TYPE_SELFTEST, 0, 1),
		A_REF(iommu_viommu_alloc, dev_id, K(DEVICE)),
		A_REF(iommu_viommu_alloc, hwpt_id, K(HWPT)),
		A_CONST(iommu_viommu_alloc, data_len,
			sizeof(struct iommu_viommu_selftest), 0, 4, 8, 32, 4096, 5000),
		A_CONST(iommu_viommu_alloc, __reserved, 0, 1),
		A_PTR(iommu_viommu_alloc, data_uptr),
		D_CONST("in_data", 0, 4, 0, IOMMU_TEST_REGION_MMIO,
			IOMMU_TEST_REGION_HALF, IOMMU_TEST_REGION_TOO_LARGE),
		D_CONST("out_data", 4, 4, 0),
		A_OUT(iommu_viommu_alloc, out_viommu_id, K(VIOMMU)),
		D_OUT("out_mmap_offset", 8, 8, K(REGION)),
		D_CONST("out_mmap_length", 16, 8, 0) } },
	{ IOCTL("vdevice_alloc", 60, IOMMU_VDEVICE_ALLOC, iommu_vdevice_alloc,
		virt_id), .fields = {
		FD, A_REF(iommu_vdevice_alloc, viommu_id, K(VIOMMU)),
		A_REF(iommu_vdevice_alloc, dev_id, K(DEVICE)),
		A_CONST(iommu_vdevice_alloc, virt_id, 0, 1, 2, 3, 64, 1ULL << 40,
			~0ULL, IOMMU_TEST_VIRT_ID_REFUSED),
		A_OUT(iommu_vdevice_alloc, out_vdevice_id, K(VDEVICE)) } },
	{ IOCTL("veventq_alloc", 40, IOMMU_VEVENTQ_ALLOC, iommu_veventq_alloc,
		__reserved), .fields = {
		FD, A_FLAGS(iommu_veventq_alloc, flags, 0, 1),
		A_REF(iommu_veventq_alloc, viommu_id, K(VIOMMU)),
		A_CONST(iommu_veventq_alloc, type, IOMMU_VEVENTQ_TYPE_SELFTEST, 0, 1,
			2),
		A_CONST(iommu_veventq_alloc, veventq_depth, 2, 1, 3, 1 << 19, 0,
			(1 << 19) + 1),
		A_CONST(iommu_veventq_alloc, __reserved, 0, 1),
		A_OUT(iommu_veventq_alloc, out_veventq_id, K(VEVENTQ)),
		A_OUT(iommu_veventq_alloc, out_veventq_fd, K(VEVENTQ_FD)) } },
	{ IOCTL("hw_queue_alloc", 50, IOMMU_HW_QUEUE_ALLOC, iommu_hw_queue_alloc,
		length), .fields = {
		FD, A_FLAGS(iommu_hw_queue_alloc, flags, 0, 1),
		A_REF(iommu_hw_queue_alloc, viommu_id, K(VIOMMU)),
		A_CONST(iommu_hw_queue_alloc, type, IOMMU_HW_QUEUE_TYPE_SELFTEST,
			IOMMU_HW_QUEUE_TYPE_SELFTEST_PLAIN, 0, 1),
		A_CONST(iommu_hw_queue_alloc, index, 0, 1, 1, 2),
		A_IOVA(iommu_hw_queue_alloc, nesting_parent_iova),
		A_CONST(iommu_hw_queue_alloc, length, LENGTHS),
		A_OUT(iommu_hw_queue_alloc, out_hw_queue_id, K(HW_QUEUE)) } },

	{ TEST("mock_domain", 10, IOMMU_TEST_OP_MOCK_DOMAIN), .fields = {
		FD, T_REF(id, K(IOAS) | K(HWPT) | K(NESTED)),
		T_OUT(mock_domain.out_stdev_id, K(STDEV)),
		T_OUT(mock_domain.out_idev_id, K(DEVICE)),
		T_OUT(mock_domain.out_hwpt_id, K(AUTO_HWPT)) } },
	{ TEST("mock_domain_iommu", 30, IOMMU_TEST_OP_MOCK_DOMAIN_IOMMU), .fields = {
		FD, T_REF(id, K(IOAS) | K(HWPT) | K(NESTED)),
		T_FLAGS(mock_domain_iommu.dev_flags, 0, MOCK_FLAGS_DEVICE_NO_DIRTY,
			MOCK_FLAGS_DEVICE_HUGE_IOVA, MOCK_FLAGS_DEVICE_PASID,
			MOCK_FLAGS_DEVICE_PLUG_ONLY, MOCK_FLAGS_DEVICE_BIND_ONLY,
			MOCK_FLAGS_DEVICE_NO_COHERENCY),
		T_REF(mock_domain_iommu.iommu_id, K(IOMMU)),
		T_OUT(mock_domain_iommu.out_stdev_id, K(STDEV)),
		T_OUT(mock_domain_iommu.out_idev_id, K(DEVICE)),
		T_OUT(mock_domain_iommu.out_hwpt_id, K(AUTO_HWPT)) } },
	{ TEST("replace", 50, IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE), .fields = {
		FD, T_REF(id, K(STDEV)),
		T_REF(mock_domain_replace.pt_id, K(NESTED) | K(HWPT) | K(IOAS)) } },
	{ TEST("add_reserved", 3, IOMMU_TEST_OP_ADD_RESERVED), .fields = {
		FD, T_REF(id, K(IOAS)),
		T_CONST(add_reserved.start, IOVAS),
		T_CONST(add_reserved.length, LENGTHS) } },
	{ TEST("check_map", 2, IOMMU_TEST_OP_MD_CHECK_MAP), .fields = {
		FD, T_REF(id, K(HWPT) | K(AUTO_HWPT)), T_IOVA(check_map.iova),
		T_CONST(check_map.length, LENGTHS),
		T_CONST(check_map.uptr, ADDRS) } },
	{ TEST("check_iotlb", 2, IOMMU_TEST_OP_MD_CHECK_IOTLB), .fields = {
		FD, T_REF(id, K(NESTED)),
		T_CONST(check_iotlb.id, 0, 1, 3, 4),
		T_CONST(check_iotlb.iotlb, IOMMU_TEST_IOTLB_DEFAULT, 0) } },
	{ TEST("check_cache", 4, IOMMU_TEST_OP_DEV_CHECK_CACHE), .fields = {
		FD, T_REF(id, K(DEVICE)),
		T_CONST(check_dev_cache.id, 0, 1, 3, 4),
		T_CONST(check_dev_cache.cache, IOMMU_TEST_DEV_CACHE_DEFAULT, 0) } },
	{ TEST("create_access", 4, IOMMU_TEST_OP_CREATE_ACCESS), .fields = {
		FD, T_REF(id, K(IOAS)),
		T_FLAGS(create_access.flags, 1, 0, 2),
		T_OUT(create_access.out_access_fd, K(ACCESS_FD)) } },
	{ TEST("access_replace_ioas", 2, IOMMU_TEST_OP_ACCESS_REPLACE_IOAS), .fields = {
		FD, T_REF(id, K(ACCESS_FD)),
		T_REF(access_replace_ioas.ioas_id, K(IOAS)) } },
	{ TEST("access_pages", 4, IOMMU_TEST_OP_ACCESS_PAGES), .fields = {
		FD, T_REF(id, K(ACCESS_FD)),
		T_FLAGS(access_pages.flags, 1, 0, MOCK_FLAGS_ACCESS_SYZ),
		T_IOVA(access_pages.iova),
		T_CONST(access_pages.length, LENGTHS),
		T_CONST(access_pages.uptr, 0, ADDRS),
		T_OUT(access_pages.out_access_pages_id, K(PAGES)) } },
	{ TEST("destroy_access_pages", 2, IOMMU_TEST_OP_DESTROY_ACCESS_PAGES),
	  .fields = {
		FD, T_REF(id, K(ACCESS_FD)),
		T_REF(destroy_access_pages.access_pages_id, K(PAGES)) } },
	{ TEST("access_rw", 4, IOMMU_TEST_OP_ACCESS_RW), .fields = {
		FD, T_REF(id, K(ACCESS_FD)),
		T_FLAGS(access_rw.flags, 0, 1, 4, MOCK_FLAGS_ACCESS_SYZ),
		T_IOVA(access_rw.iova),
		T_CONST(access_rw.length, LENGTHS),
		T_CONST(access_rw.uptr, ADDRS) } },
	{ TEST("memory_limit", 1, IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT),
	  .undo = UNDO_LIMIT, .fields = {
		FD, T_CONST(memory_limit.limit, 16, 24, 4096, 65536, 0) } },
	{ TEST("dirty", 3, IOMMU_TEST_OP_DIRTY), .fields = {
		FD, T_REF(id, K(HWPT) | K(AUTO_HWPT)), T_FLAGS(dirty.flags, 0, 1, 2),
		T_IOVA(dirty.iova), T_CONST(dirty.length, LENGTHS),
		T_CONST(dirty.page_size, 2048, 4096, 0x200000, 0),
		T_CONST(dirty.uptr, ADDRS) } },
	{ TEST("iopf", 30, IOMMU_TEST_OP_TRIGGER_IOPF), .fields = {
		FD, T_REF(trigger_iopf.dev_id, K(DEVICE)),
		T_CONST(trigger_iopf.pasid, 1, 0, 0xfffff),
		T_CONST(trigger_iopf.grpid, 1, 2, 3),
		T_CONST(trigger_iopf.perm, 1, 2, 4),
		T_CONST(trigger_iopf.addr, IOVAS) } },
	{ TEST("vevent", 40, IOMMU_TEST_OP_TRIGGER_VEVENT), .fields = {
		FD, T_REF(trigger_vevent.dev_id, K(DEVICE)) } },
#ifdef SERIES_7_3
	{ TEST("pasid_attach", 20, IOMMU_TEST_OP_PASID_ATTACH), .fields = {
		FD, T_REF(id, K(STDEV)), T_CONST(pasid_attach.pasid, 1, 2, 0, 1024),
		T_REF(pasid_attach.pt_id, K(NESTED) | K(HWPT) | K(IOAS)) } },
	{ TEST("pasid_replace", 20, IOMMU_TEST_OP_PASID_REPLACE), .fields = {
		FD, T_REF(id, K(STDEV)), T_CONST(pasid_replace.pasid, 1, 2, 0, 1024),
		T_REF(pasid_replace.pt_id, K(NESTED) | K(HWPT) | K(IOAS)) } },
	{ TEST("pasid_detach", 10, IOMMU_TEST_OP_PASID_DETACH), .fields = {
		FD, T_REF(id, K(STDEV)), T_CONST(pasid_detach.pasid, 1, 2, 0, 1024) } },
#else
	{ TEST("vevent_irq", 20, IOMMU_TEST_OP_TRIGGER_VEVENT_IRQ), .fields = {
		FD, T_REF(trigger_vevent.dev_id, K(DEVICE)) } },
	{ TEST("vevent_long", 20, IOMMU_TEST_OP_TRIGGER_VEVENT_LONG), .fields = {
		FD, T_REF(trigger_vevent.dev_id, K(DEVICE)) } },
#endif
	{ TEST("iommu_register", 8, IOMMU_TEST_OP_IOMMU_REGISTER), .fields = {
		FD, T_FLAGS(iommu_register.flags, 0, MOCK_IOMMU_ONE_GROUP,
			    MOCK_IOMMU_SAME_ADDRESS, MOCK_IOMMU_SYSFS_FIRST,
			    MOCK_IOMMU_SHARED_DOMAINS, MOCK_IOMMU_NO_VIOMMU,
			    MOCK_IOMMU_HALF_VIOMMU),
		T_OUT(iommu_register.out_iommu_id, K(IOMMU)) } },
	{ TEST("iommu_unregister", 14, IOMMU_TEST_OP_IOMMU_UNREGISTER), .fields = {
		FD, T_REF(id, K(IOMMU)) } },
#ifndef SERIES_7_3
	{ TEST("viommu_call", 20, IOMMU_TEST_OP_VIOMMU_CALL), .fields = {
		FD, T_REF(id, K(VIOMMU)) } },
	{ TEST("state", 2, IOMMU_TEST_OP_STATE), .fields = {
		FD, T_CONST(state.uptr, ARENA, 0, RDONLY, WINDOW),
		T_REF(state.ioas_id, K(IOAS)), T_REF(state.iommu_id, K(IOMMU)) } },
	{ TEST("viommu_stats", 1, IOMMU_TEST_OP_VIOMMU_STATS), .fields = { FD } },
#endif
	{ TEST("park", 4, IOMMU_TEST_OP_PARK), .undo = UNDO_PARK, .fields = {
		FD, T_CONST(park.point, 13, 0, 4, 5, 6, 9, 10, 11, 12, 18),
		T_CONST(park.action, MOCK_PARK_RELEASE, MOCK_PARK_ARM,
			MOCK_PARK_WAIT, 3) } },

	{ CALL("mmap", 30, sys_mmap), .fields = {
		P_REF(0, "fd", K(FILE_FD)), P_REF(1, "offset", K(REGION)),
		P_CONST(2, "length", 2 * PAGE, PAGE, 3 * PAGE, 0),
		P_CONST(3, "prot", 3, 1, 0, 7, 2), P_CONST(4, "slot", 0, 1, 2, 3, 4),
		P_CONST(5, "private", 0, 1) } },
	{ CALL("munmap", 8, sys_munmap), .fields = {
		P_CONST(0, "page", 0, 1, 2, 3, 4, 6, 8),
		P_CONST(1, "more", 0, 1, 2, 3) } },
	{ CALL("mprotect", 6, sys_mprotect), .fields = {
		P_CONST(0, "page", 0, 1, 2, 3, 4, 6, 8),
		P_CONST(1, "more", 0, 1, 2, 3), P_CONST(2, "prot", 1, 0, 3, 7) } },
	{ CALL("mremap", 8, sys_mremap), .fields = {
		P_CONST(0, "from", 0, 1, 2, 3, 4, 6, 8),
		P_CONST(1, "pages", 1, 2, 0, 3), P_CONST(2, "more", 0, 1, 2, 3),
		P_CONST(3, "to", 8, 10, 12, 0, 2, 9) } },
	{ CALL("access", 16, sys_access), .fields = {
		P_CONST(0, "page", 0, 1, 2, 3, 4, 6, 8, 10),
		P_CONST(1, "offset", 0, 4, 2048), P_CONST(2, "write", 0, 1) } },
	{ CALL("madvise", 2, sys_madvise), .fields = {
		P_CONST(0, "page", 0, 1, 2, 4, 8), P_CONST(1, "more", 0, 1, 2, 3),
		P_CONST(2, "remove", 0, 1) } },
	{ CALL("read", 24, sys_read), .fields = {
		P_REF(0, "fd", K(VEVENTQ_FD) | K(FAULT_FD) | K(FILE_FD)),
		P_CONST(1, "buf", ARENA, 0, WINDOW, RDONLY, SLOTS + PAGE - 16),
		P_CONST(2, "count", 256, 12, 24, 8, 0, 11, 40, 80) } },
	{ CALL("write", 3, sys_write), .fields = {
		P_REF(0, "fd", K(FAULT_FD) | K(VEVENTQ_FD)),
		P_CONST(1, "buf", ARENA, 0, WINDOW, SLOTS + PAGE - 4),
		P_CONST(2, "count", 8, 16, 0, 7) } },
	{ CALL("answer", 16, sys_answer), .fields = {
		P_REF(0, "fd", K(FAULT_FD)), P_CONST(1, "code", 0, 1, 2),
		P_CONST(2, "plus", 0, 1, 0xffffffff) } },
	{ CALL("poll", 12, sys_poll), .fields = {
		P_REF(0, "fd", K(VEVENTQ_FD) | K(FAULT_FD)),
		P_CONST(1, "out", 0, 1), P_CONST(2, "ms", 0, 1, 30, 299) } },
	{ CALL("fork", 4, sys_fork), .fields = { P_CONST(0, "slot", 0, 1) } },
	{ CALL("kill", 4, sys_kill), .fields = { P_CONST(0, "slot", 0, 1) } },
	{ CALL("serve", 3, sys_serve), .fields = { P_CONST(0, "none", 0) } },
	{ CALL("sleep", 2, sys_sleep), .fields = {
		P_CONST(0, "us", 1000, 0, 10000) } },
};

#define NUM_OPS (sizeof(ops) / sizeof(ops[0]))
#define for_each_field(f, op) \
	for ((f) = 0; (f) != MAX_FIELDS && (op)->fields[f].name; (f)++)

enum how { IS_CONST, IS_REF, IS_PLACE };

struct val {
	enum how how;
	uint64_t v;
};

/* Of val.v if it is a reference: which of the results of which call */
#define REF_TO(call, out) ((call) * MAX_OUTS + (out))
#define REF_CALL(v) ((v) / MAX_OUTS)
#define REF_OUT(v) ((v) % MAX_OUTS)

struct call {
	unsigned char op;
	unsigned char thread;
	bool async;
	unsigned char fail;
	unsigned char place;
	/* What the argument says that its size is */
	unsigned short size;
	struct val vals[MAX_FIELDS];
};

struct prog {
	unsigned int n;
	struct call calls[MAX_CALLS];
};

#define MAP_BITS (1U << 18)
#define MAX_EDGES 65536
#define COVER_SIZE (64 << 10)
#define NUM_PCS (1U << 16)

/* What the process that runs programs has in common with the one that makes them */
static struct shared {
	struct prog prog;
	uint32_t todo;
	uint32_t done;
	bool stuck;
	uint64_t calls;
	uint64_t good[NUM_OPS];
	uint64_t bad[NUM_OPS];
	uint32_t num_edges;
	uint32_t edges[MAX_EDGES];
	uint8_t map[MAP_BITS / 8];
	/* Where it has been at all: the lower half of the addresses */
	uint32_t pcs[NUM_PCS];
} *shared;

/* Coverage */

#define KCOV_INIT_TRACE _IOR('c', 1, unsigned long)
#define KCOV_ENABLE _IO('c', 100)
#define KCOV_TRACE_PC 0

static __thread unsigned long *cover;

static void thread_begin(void)
{
	int fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;
	if (ioctl(fd, KCOV_INIT_TRACE, COVER_SIZE))
		fatal("KCOV_INIT_TRACE");
	cover = mmap(NULL, COVER_SIZE * sizeof(long), PROT_READ | PROT_WRITE,
		     MAP_SHARED, fd, 0);
	if (cover == MAP_FAILED || ioctl(fd, KCOV_ENABLE, KCOV_TRACE_PC))
		fatal("KCOV_ENABLE");
}

static void call_begin(void)
{
	if (cover)
		__atomic_store_n(&cover[0], 0, __ATOMIC_RELAXED);
}

static void count_pc(uint32_t pc)
{
	uint32_t i = pc * 0x9e3779b1U % NUM_PCS, was = 0;

	while (shared->pcs[i] != pc) {
		if (!shared->pcs[i] &&
		    __atomic_compare_exchange_n(&shared->pcs[i], &was, pc, false,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return;
		was = 0;
		if (shared->pcs[i] != pc)
			i = (i + 1) % NUM_PCS;
	}
}

static void call_end(void)
{
	unsigned long n, i;
	uint32_t prev = 0;

	if (!cover)
		return;
	n = __atomic_load_n(&cover[0], __ATOMIC_RELAXED);
	for (i = 1; i <= n; i++) {
		uint32_t pc = cover[i];
		uint32_t edge = (pc ^ prev) * 0x9e3779b1U % MAP_BITS;
		uint8_t bit = 1 << edge % 8;
		uint32_t at;

		prev = pc * 0x85ebca6bU;
		if (shared->map[edge / 8] & bit ||
		    __atomic_fetch_or(&shared->map[edge / 8], bit,
				      __ATOMIC_RELAXED) & bit)
			continue;
		count_pc(pc);
		at = __atomic_fetch_add(&shared->num_edges, 1, __ATOMIC_RELAXED);
		if (at < MAX_EDGES)
			shared->edges[at] = edge;
	}
}

/* The process that runs programs */

static int num_outs(const struct op *op)
{
	unsigned int f, n = !!op->ret;

	for_each_field(f, op)
		n += op->fields[f].type == OUT;
	return n;
}

static unsigned int data_size(const struct op *op)
{
	unsigned int f, size = 0;

	for_each_field(f, op) {
		const struct field *field = &op->fields[f];

		if (field->area == DATA && size < field->offset + field->size)
			size = field->offset + field->size;
	}
	return size;
}

static void do_call(unsigned int i)
{
	const struct call *call = &shared->prog.calls[i];
	const struct op *op = &ops[call->op];
	uint8_t buf[512] = {}, data[128] = {};
	unsigned long args[8] = {};
	unsigned int f, out = 0, size = data_size(op);
	uint64_t data_at = 0;
	int fd = -1;
	void *at;

	for_each_field(f, op) {
		const struct field *field = &op->fields[f];
		uint64_t v = call->vals[f].v;

		if (call->vals[f].how == IS_REF)
			v = r[REF_CALL(v)][REF_OUT(v)];
		if (field->area == DATA)
			memcpy(data + field->offset, &v, field->size);
	}
	for_each_field(f, op) {
		const struct field *field = &op->fields[f];
		uint64_t v = call->vals[f].v;

		if (field->area == DATA || field->type == OUT)
			continue;
		if (call->vals[f].how == IS_REF)
			v = r[REF_CALL(v)][REF_OUT(v)];
		else if (call->vals[f].how == IS_PLACE)
			v = data_at = put_data(i, v, data, size);
		if (op->fn)
			args[field->offset / 8] = v;
		else if (field->offset == 0xffff)
			fd = v;
		else
			memcpy(buf + field->offset, &v, field->size);
	}
	__atomic_add_fetch(&shared->calls, 1, __ATOMIC_RELAXED);
	if (op->fn) {
		r[i][0] = op->fn(args);
		__atomic_add_fetch(r[i][0] < 0 ? &shared->bad[call->op] :
						 &shared->good[call->op],
				   1, __ATOMIC_RELAXED);
		return;
	}

	memcpy(buf, &(uint32_t){ call->size }, 4);
	if (op->test_name)
		memcpy(buf + 4, &op->test_op, 4);
	if (call->size > op->size && call->size % 2)
		buf[call->size - 1] = 1;
	at = put_arg(i, call->place, buf, call->size < 4 ? 4 : call->size);
	if (ioctl(fd, op->ioctl, at)) {
		__atomic_add_fetch(&shared->bad[call->op], 1, __ATOMIC_RELAXED);
		return;
	}
	__atomic_add_fetch(&shared->good[call->op], 1, __ATOMIC_RELAXED);
	if (!get(buf, at, op->size))
		return;
	get(data, (void *)data_at, size);
	for_each_field(f, op) {
		const struct field *field = &op->fields[f];
		uint64_t v = 0;

		if (field->type != OUT)
			continue;
		memcpy(&v, (field->area == DATA ? data : buf) + field->offset,
		       field->size);
		r[i][out++] = v;
	}
}

static uint64_t needs(const struct call *call)
{
	uint64_t calls = 0;
	unsigned int f;

	for (f = 0; f != MAX_FIELDS; f++)
		if (call->vals[f].how == IS_REF)
			calls |= 1ULL << REF_CALL(call->vals[f].v);
	return calls;
}

static void run_prog(void)
{
	const struct prog *prog = &shared->prog;
	struct step steps[MAX_CALLS];
	unsigned int i, undo = 0;
	uint64_t iommus = 0;

	for (i = 0; i != prog->n; i++) {
		const struct call *call = &prog->calls[i];

		steps[i] = (struct step){
			.thread = call->thread,
			.async = call->async,
			.needs = needs(call),
			.fail = call->fail,
		};
		undo |= ops[call->op].undo;
		if (ops[call->op].ret == 0 && ops[call->op].test_name &&
		    ops[call->op].test_op == IOMMU_TEST_OP_IOMMU_REGISTER)
			iommus |= 1ULL << i;
	}
	shared->stuck = !run(steps, prog->n, iommus, undo);
}

static void runner_main(void)
{
	uint32_t last = shared->todo;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	thread_begin();
	run_init();
	store_wake(&shared->done, last);
	for (;;) {
		wait_not(&shared->todo, last, 1000000);
		last = __atomic_load_n(&shared->todo, __ATOMIC_ACQUIRE);
		if (shared->done == last)
			continue;
		run_prog();
		store_wake(&shared->done, last);
	}
}

static pid_t runner;
static unsigned int runner_left;
static int kmsg, tainted;
static bool seen_bug;
static uint64_t execs;
static uint64_t seed = 1;

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
	static char buf[1 << 17];
	size_t done = 0, n;
	va_list ap;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	while (done < n) {
		ssize_t ret = write(1, buf + done, n - done);

		if (ret < 0)
			_exit(2);
		done += ret;
	}
}

static unsigned long read_tainted(void)
{
	char buf[32] = {};

	return pread(tainted, buf, sizeof(buf) - 1, 0) < 0 ? 0 : atol(buf);
}

/*
 * Whether the kernel has reported a bug: what sets the taint flags for a warning, an
 * Oops, a bad page or a soft lockup, and what it says of the rest in the log.
 */
static bool look_for_bug(void)
{
	static const char *const words[] = {
		"WARNING: ", "BUG:", "Oops", "KASAN: ", "UBSAN: ", "refcount_t: ",
		"kernel BUG", "blocked for", "stall", "lockup", "corruption",
		"general protection", "Time out waiting",
	};
	char buf[1024];
	unsigned int i;
	ssize_t n;

	for (;;) {
		n = read(kmsg, buf, sizeof(buf) - 1);
		if (n < 0 && errno == EPIPE)
			continue;
		if (n <= 0)
			break;
		buf[n] = 0;
		for (i = 0; i != sizeof(words) / sizeof(words[0]); i++) {
			if (!strstr(buf, words[i]) || seen_bug)
				continue;
			seen_bug = true;
			say("B %s", strchr(buf, ';') ? strchr(buf, ';') + 1 : buf);
		}
	}
	/* WARN, BUG or Oops, bad page or KASAN, soft lockup */
	if (!seen_bug && read_tainted() & (1 << 9 | 1 << 7 | 1 << 5 | 1 << 14)) {
		seen_bug = true;
		say("B the kernel is tainted: %lu\n", read_tainted());
	}
	return seen_bug;
}

static void stop_runner(void)
{
	unsigned int i;

	if (!runner)
		return;
	kill(runner, SIGKILL);
	for (i = 0; i != 9000; i++) {
		if (waitpid(runner, NULL, WNOHANG) == runner) {
			runner = 0;
			return;
		}
		usleep(10000);
		if (i % 100 == 99 && look_for_bug())
			break;
	}
	runner = 0;
	if (!seen_bug)
		say("B a process that was killed does not end\n");
	seen_bug = true;
}

/* Run it once. False if the kernel has reported a bug. */
static bool exec_prog(const struct prog *prog)
{
	uint32_t turn;

	if (runner && !runner_left)
		stop_runner();
	if (seen_bug)
		return false;
	shared->prog = *prog;
	if (!runner) {
		turn = ++shared->todo;
		shared->done = turn - 1;
		runner = fork();
		if (runner < 0)
			fatal("fork");
		if (!runner)
			runner_main();
		if (!wait_not(&shared->done, turn - 1, 30000))
			fatal("the runner did not start");
		runner_left = 1000;
	}
	for (turn = 0; turn != shared->num_edges && turn != MAX_EDGES; turn++)
		shared->map[shared->edges[turn] / 8] = 0;
	shared->num_edges = 0;
	shared->stuck = false;
	turn = shared->done;
	store_wake(&shared->todo, turn + 1);
	if (!wait_not(&shared->done, turn, 30000) || shared->stuck) {
		say("I a call does not end\n");
		stop_runner();
		shared->num_edges = 0;
		memset(shared->map, 0, sizeof(shared->map));
	}
	runner_left--;
	execs++;
	return !look_for_bug();
}

/* Text */

static const struct val *default_val(const struct op *op, unsigned int f)
{
	static __thread struct val val;
	const struct field *field = &op->fields[f];

	val = (struct val){ IS_CONST, field->num_vals ? field->vals[0] : 0 };
	if (field->type == DATA_PTR)
		val = (struct val){ IS_PLACE, AT_BEGIN };
	return &val;
}

static char *print_prog(char *to, const struct prog *prog)
{
	unsigned int i, f;

	for (i = 0; i != prog->n; i++) {
		const struct call *call = &prog->calls[i];
		const struct op *op = &ops[call->op];

		to += sprintf(to, "%s", i ? "; " : "");
		if (call->thread || call->async)
			to += sprintf(to, "%u%s ", call->thread,
				      call->async ? "!" : "");
		to += sprintf(to, "%s", op->name);
		if (call->fail)
			to += sprintf(to, " /%u", call->fail);
		if (!op->fn && call->place)
			to += sprintf(to, " %%%u", call->place);
		if (!op->fn && call->size != op->size)
			to += sprintf(to, " #%u", call->size);
		for_each_field(f, op) {
			const struct val *val = &call->vals[f];
			const struct val *def = default_val(op, f);

			if (op->fields[f].type == OUT ||
			    (val->how == def->how && val->v == def->v))
				continue;
			to += sprintf(to, " %s=", op->fields[f].name);
			if (val->how == IS_REF) {
				to += sprintf(to, "r%u", (int)REF_CALL(val->v));
				if (REF_OUT(val->v))
					to += sprintf(to, ".%u",
						      (int)REF_OUT(val->v));
			} else if (val->how == IS_PLACE) {
				to += sprintf(to, "&%u", (int)val->v);
			} else {
				to += sprintf(to, val->v < 10 ? "%llu" : "0x%llx",
					      (unsigned long long)val->v);
			}
		}
	}
	*to = 0;
	return to;
}

static const struct op *find_op(const char *name)
{
	unsigned int i;

	for (i = 0; i != NUM_OPS; i++)
		if (!strcmp(ops[i].name, name))
			return &ops[i];
	return NULL;
}

static void init_call(struct call *call, const struct op *op)
{
	unsigned int f;

	memset(call, 0, sizeof(*call));
	call->op = op - ops;
	call->size = op->size;
	for_each_field(f, op)
		call->vals[f] = *default_val(op, f);
}

/* One call; false if it makes no sense */
static bool parse_call(struct call *call, char *text, unsigned int at)
{
	unsigned int thread = 0, f, c, o;
	const struct op *op;
	bool async = false;
	char *word, *save;

	word = strtok_r(text, " ", &save);
	if (word && *word >= '0' && *word <= '9') {
		thread = *word - '0';
		async = word[1] == '!';
		word = strtok_r(NULL, " ", &save);
	}
	op = word ? find_op(word) : NULL;
	if (!op || thread >= NUM_THREADS)
		return false;
	init_call(call, op);
	call->thread = thread;
	call->async = async;
	while ((word = strtok_r(NULL, " ", &save))) {
		char *eq = strchr(word, '=');

		if (*word == '/') {
			call->fail = atoi(word + 1);
			continue;
		}
		if (*word == '%') {
			call->place = atoi(word + 1) % NUM_PLACES;
			continue;
		}
		if (*word == '#') {
			call->size = atoi(word + 1);
			if (call->size > op->size + 64)
				return false;
			continue;
		}
		if (!eq)
			return false;
		*eq++ = 0;
		for_each_field(f, op)
			if (!strcmp(op->fields[f].name, word))
				break;
		if (f == MAX_FIELDS || !op->fields[f].name)
			return false;
		if (*eq == 'r') {
			o = 0;
			if (sscanf(eq, "r%u.%u", &c, &o) < 1 || c >= at ||
			    o >= MAX_OUTS)
				return false;
			call->vals[f] = (struct val){ IS_REF, REF_TO(c, o) };
		} else if (*eq == '&') {
			call->vals[f] = (struct val){ IS_PLACE,
						      atoi(eq + 1) % NUM_PLACES };
		} else {
			call->vals[f] = (struct val){ IS_CONST,
						      strtoull(eq, NULL, 0) };
		}
	}
	return true;
}

static bool parse_prog(struct prog *prog, char *text)
{
	char *part, *save;

	prog->n = 0;
	for (part = strtok_r(text, ";\n", &save); part;
	     part = strtok_r(NULL, ";\n", &save)) {
		if (prog->n == MAX_CALLS ||
		    !parse_call(&prog->calls[prog->n], part, prog->n))
			return false;
		prog->n++;
	}
	return prog->n;
}

/* Random numbers */

static uint64_t rnd64(void)
{
	/* xorshift64, never 0 */
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * 0x2545f4914f6cdd1dULL;
}

static unsigned int rnd(unsigned int limit)
{
	return (rnd64() >> 33) % limit;
}

static bool one_in(unsigned int n)
{
	return !rnd(n);
}

/* Making programs */

static unsigned int out_kinds(const struct op *op, unsigned int out)
{
	unsigned int f, n = 0;

	if (op->ret)
		return out ? 0 : op->ret;
	for_each_field(f, op)
		if (op->fields[f].type == OUT && n++ == out)
			return op->fields[f].kinds;
	return 0;
}

static void insert_call(struct prog *prog, unsigned int at, const struct call *call)
{
	unsigned int i, f;

	memmove(&prog->calls[at + 1], &prog->calls[at],
		(prog->n - at) * sizeof(*call));
	prog->calls[at] = *call;
	prog->n++;
	for (i = at + 1; i != prog->n; i++) {
		for (f = 0; f != MAX_FIELDS; f++) {
			struct val *val = &prog->calls[i].vals[f];

			if (val->how == IS_REF && REF_CALL(val->v) >= at)
				val->v += MAX_OUTS;
		}
	}
}

static void remove_call(struct prog *prog, unsigned int at)
{
	unsigned int i, f;

	prog->n--;
	memmove(&prog->calls[at], &prog->calls[at + 1],
		(prog->n - at) * sizeof(prog->calls[0]));
	for (i = at; i != prog->n; i++) {
		for (f = 0; f != MAX_FIELDS; f++) {
			struct val *val = &prog->calls[i].vals[f];

			if (val->how != IS_REF)
				continue;
			if (REF_CALL(val->v) == at)
				*val = (struct val){ IS_CONST, 0 };
			else if (REF_CALL(val->v) > at)
				val->v -= MAX_OUTS;
		}
	}
}

/* The open() that the file of a call is from, or -1 */
static int file_of(const struct prog *prog, const struct call *call)
{
	const struct val *val = &call->vals[0];
	const struct call *from;

	if (strcmp(ops[call->op].fields[0].name, "fd") || val->how != IS_REF)
		return -1;
	from = &prog->calls[REF_CALL(val->v)];
	if (!strcmp(ops[from->op].name, "dup"))
		return file_of(prog, from);
	return REF_CALL(val->v);
}

static bool add_call(struct prog *prog, unsigned int *at, const struct op *op,
		     int file, unsigned int depth);

/* A call before @at that has given out such a thing, if any, more likely a late one */
static bool find_ref(const struct prog *prog, unsigned int at, unsigned int kinds,
		     int file, struct val *val)
{
	unsigned int i, out, n = 0;

	for (i = 0; i != at; i++) {
		const struct call *call = &prog->calls[i];
		const struct op *op = &ops[call->op];

		for (out = 0; out != (unsigned int)num_outs(op); out++) {
			unsigned int is = out_kinds(op, out) & kinds;

			if (!is || (!(is & GLOBAL) && file >= 0 &&
				    file_of(prog, call) != file && !one_in(20)))
				continue;
			n++;
			if (n == 1 || one_in(n < 3 ? 2 : 3))
				*val = (struct val){ IS_REF, REF_TO(i, out) };
		}
	}
	return n;
}

/* What has been asked for is made by a call that is put before @at */
static bool make_ref(struct prog *prog, unsigned int *at, unsigned int kinds, int file,
		     unsigned int depth, struct val *val)
{
	unsigned int total = 0, i, out;
	const struct op *op = NULL;

	for (i = 0; i != NUM_OPS; i++) {
		for (out = 0; out != (unsigned int)num_outs(&ops[i]); out++) {
			if (!(out_kinds(&ops[i], out) & kinds) ||
			    !strcmp(ops[i].name, "dup"))
				continue;
			total += ops[i].weight;
			if (rnd(total) < ops[i].weight)
				op = &ops[i];
		}
	}
	if (!op || depth > 6 || !add_call(prog, at, op, file, depth + 1))
		return false;
	for (out = 0; !(out_kinds(op, out) & kinds); out++)
		;
	*val = (struct val){ IS_REF, REF_TO(*at - 1, out) };
	return true;
}

static uint64_t rnd_word(uint64_t old)
{
	switch (rnd(7)) {
	case 0:
		return 0;
	case 1:
		return UINT32_MAX;
	case 2:
		return old ^ 1ULL << rnd(one_in(2) ? 32 : 64);
	case 3:
		return old + 1 - 2 * rnd(2);
	case 4:
		return rnd(64);
	case 5:
		return ~0ULL << rnd(64);
	default:
		return rnd64() >> rnd(64);
	}
}

/* @wild: how likely it is something that makes little sense, of 100 */
static void rnd_field(struct prog *prog, unsigned int *at, const struct field *field,
		      int file, unsigned int depth, unsigned int wild,
		      struct val *val)
{
	bool mad = rnd(100) < wild;
	bool other = mad || one_in(wild > 10 ? 3 : 8);
	unsigned int i, kinds, had;

	switch (field->type) {
	case CONST:
		*val = (struct val){ IS_CONST, field->vals[0] };
		if (mad && one_in(2))
			val->v = rnd_word(val->v);
		else if (other)
			val->v = field->vals[rnd(field->num_vals)];
		break;
	case FLAGS:
		*val = (struct val){ IS_CONST, field->vals[0] };
		if (mad && one_in(2))
			val->v ^= 1ULL << rnd(32);
		else if (other)
			for (val->v = 0, i = 0; i != field->num_vals; i++)
				if (one_in(3))
					val->v |= field->vals[i];
		break;
	case DATA_PTR:
		*val = (struct val){ IS_PLACE, AT_BEGIN };
		if (mad)
			val->v = rnd(NUM_PLACES);
		if (mad && one_in(3))
			*val = (struct val){ IS_CONST, one_in(2) ? ARENA : rnd64() };
		break;
	case REF:
		kinds = field->kinds;
		if (field->num_vals && one_in(3)) {
			*val = (struct val){ IS_CONST, field->vals[0] };
			if (other)
				val->v = field->vals[rnd(field->num_vals)];
			break;
		}
		if (mad && one_in(3)) {
			*val = (struct val){ IS_CONST, one_in(2) ? rnd(12) :
							rnd_word(0) };
			break;
		}
		if (mad) {
			kinds = ~0U;
			file = -1;
		}
		/* A physical IOMMU is there anyway, with the ID 0 */
		if (kinds == K(IOMMU) && !strcmp(field->name, "mock_domain_iommu.iommu_id") &&
		    one_in(2)) {
			*val = (struct val){ IS_CONST, 0 };
			break;
		}
		had = *at;
		if (!find_ref(prog, *at, kinds, file, val) ||
		    (one_in(12) && kinds != K(FILE_FD))) {
			/* One kind of it, the first most likely */
			while (kinds & (kinds - 1) && one_in(2))
				kinds &= kinds - 1;
			kinds &= -kinds;
			if (!make_ref(prog, at, kinds, file, depth, val) &&
			    had == *at && !find_ref(prog, *at, field->kinds, file, val))
				*val = (struct val){ IS_CONST, 0 };
		}
		break;
	case OUT:
		*val = (struct val){ IS_CONST, 0 };
		break;
	}
	if (val->how == IS_CONST && field->size < 8)
		val->v &= (1ULL << 8 * field->size) - 1;
}

/* Add a call at @at, after those that make what it needs; @at is then after it */
static bool add_call(struct prog *prog, unsigned int *at, const struct op *op,
		     int file, unsigned int depth)
{
	unsigned int f, i;
	struct call call;

	if (prog->n >= MAX_CALLS - 1)
		return false;
	init_call(&call, op);
	for_each_field(f, op) {
		const struct field *field = &op->fields[f];

		if (field->offset == 0xffff && file >= 0 && !one_in(30)) {
			call.vals[f] = (struct val){ IS_REF, REF_TO(file, 0) };
			continue;
		}
		rnd_field(prog, at, field, file, depth, 4, &call.vals[f]);
		if (field->offset == 0xffff && call.vals[f].how == IS_REF)
			file = file_of(prog, &call) >= 0 ? file_of(prog, &call) : file;
	}
	if (prog->n >= MAX_CALLS)
		return false;
	if (!op->fn && one_in(25))
		call.place = rnd(NUM_PLACES);
	if (!op->fn && one_in(40))
		call.size = one_in(2) ? rnd(op->size + 64) : op->min_size;
	if (one_in(30))
		call.fail = 1 + rnd(one_in(3) ? 60 : 12);
	i = rnd(20);
	if (i < 3) {
		call.thread = 1 + rnd(NUM_THREADS - 1);
		call.async = i < 2;
	}
	insert_call(prog, *at, &call);
	(*at)++;
	return true;
}

static const struct op *rnd_op(void)
{
	static unsigned int total;
	unsigned int i, dice;

	if (!total)
		for (i = 0; i != NUM_OPS; i++)
			total += ops[i].weight;
	dice = rnd(total);
	for (i = 0; dice >= ops[i].weight; i++)
		dice -= ops[i].weight;
	return &ops[i];
}

static int rnd_file(const struct prog *prog, unsigned int at)
{
	struct val val;

	if (!find_ref(prog, at, K(FILE_FD), -1, &val))
		return -1;
	if (!strcmp(ops[prog->calls[REF_CALL(val.v)].op].name, "dup"))
		return -1;
	return REF_CALL(val.v);
}

static void add_rnd_call(struct prog *prog, unsigned int at)
{
	const struct op *op = rnd_op();
	unsigned int f, tries;
	struct val val;

	/* More likely one whose objects are there */
	for (tries = rnd(5); tries; tries--) {
		for_each_field(f, op)
			if (op->fields[f].type == REF &&
			    !find_ref(prog, at, op->fields[f].kinds, -1, &val))
				break;
		if (f == MAX_FIELDS || !op->fields[f].name)
			break;
		op = rnd_op();
	}
	add_call(prog, &at, op, rnd_file(prog, at), 0);
}

static void generate(struct prog *prog)
{
	unsigned int n = 3 + rnd(12);

	prog->n = 0;
	while (prog->n < n)
		add_rnd_call(prog, prog->n);
}

/* Corpus */

#define MAX_CORPUS 6000

static struct prog *corpus[MAX_CORPUS];
static unsigned int num_corpus;

/* The next call at @at stops there, and others go on meanwhile */
static void park_at(struct prog *prog, unsigned int at)
{
	const struct op *op = find_op("park");
	struct call call;
	int file = rnd_file(prog, at);

	if (file < 0 || prog->n > MAX_CALLS - 4)
		return;
	init_call(&call, op);
	call.vals[0] = (struct val){ IS_REF, REF_TO(file, 0) };
	call.vals[1].v = rnd(MOCK_PARK_NUM);
	call.vals[2].v = MOCK_PARK_ARM;
	insert_call(prog, at, &call);
	prog->calls[at + 1].async = true;
	prog->calls[at + 1].thread = 1 + rnd(NUM_THREADS - 1);
	if (one_in(2)) {
		call.vals[2].v = MOCK_PARK_WAIT;
		insert_call(prog, at + 2, &call);
	}
	if (one_in(2)) {
		call.vals[2].v = MOCK_PARK_RELEASE;
		insert_call(prog, at + 2 + rnd(prog->n - at - 1), &call);
	}
}

static void mutate(struct prog *prog)
{
	unsigned int times = 1 + rnd(4), at, to, f, n;
	const struct prog *other;
	struct call call;

	while (times--) {
		if (!prog->n) {
			generate(prog);
			continue;
		}
		at = rnd(prog->n);
		switch (rnd(12)) {
		case 0:
		case 1:
		case 2:
			add_rnd_call(prog, one_in(2) ? prog->n : at + 1);
			break;
		case 3:
		case 4:
		case 5:
			/* A field or two, of a call that has any */
			n = 0;
			for_each_field(f, &ops[prog->calls[at].op])
				n++;
			if (!n)
				break;
			for (to = 1 + rnd(2); to; to--) {
				struct val val;

				f = rnd(n);
				if (ops[prog->calls[at].op].fields[f].type == OUT)
					continue;
				rnd_field(prog, &at, &ops[prog->calls[at].op].fields[f],
					  file_of(prog, &prog->calls[at]), 3, 40,
					  &val);
				prog->calls[at].vals[f] = val;
			}
			break;
		case 6:
			remove_call(prog, at);
			break;
		case 7:
			/* Twice, at the end or somewhere after it */
			if (prog->n == MAX_CALLS)
				break;
			call = prog->calls[at];
			insert_call(prog, at + 1 + rnd(prog->n - at), &call);
			break;
		case 8:
			to = rnd(8);
			if (to < 3)
				prog->calls[at].fail = rnd(4) ? 1 + rnd(30) : 0;
			else if (to < 4 && !ops[prog->calls[at].op].fn)
				prog->calls[at].place = rnd(NUM_PLACES);
			else if (to < 5 && !ops[prog->calls[at].op].fn)
				prog->calls[at].size =
					rnd(ops[prog->calls[at].op].size + 64);
			else
				prog->calls[at].async ^= 1;
			break;
		case 9:
			/* Some calls go on threads of their own */
			for (to = at; to != prog->n && to != at + 3; to++) {
				prog->calls[to].thread = rnd(NUM_THREADS);
				prog->calls[to].async = one_in(2);
			}
			break;
		case 10:
			park_at(prog, at);
			break;
		case 11:
			/* The end of another one, or all of it */
			if (!num_corpus)
				break;
			other = corpus[rnd(num_corpus)];
			n = prog->n;
			/* With the same file, if they begin with one */
			to = one_in(2) && !strcmp(ops[prog->calls[0].op].name, "open");
			for (at = 0; at != other->n && prog->n != MAX_CALLS; at++) {
				call = other->calls[at];
				for (f = 0; f != MAX_FIELDS; f++)
					if (call.vals[f].how == IS_REF &&
					    !(to && call.vals[f].v == 0))
						call.vals[f].v += n * MAX_OUTS;
				prog->calls[prog->n++] = call;
			}
			break;
		}
	}
	if (!prog->n)
		generate(prog);
}

/*
 * Bugs of the base that are not in drivers/iommu, and would be found all the time: if
 * a device with a software node (MOCK_FLAGS_DEVICE_PASID) cannot be added for lack of
 * memory, software_node_notify_remove() puts what software_node_notify() did not get.
 */
static void avoid_known(struct prog *prog)
{
	unsigned int i, f;

	for (i = 0; i != prog->n; i++) {
		struct call *call = &prog->calls[i];
		const struct op *op = &ops[call->op];

		for_each_field(f, op)
			if (call->fail && !strcmp(op->fields[f].name,
						  "mock_domain_iommu.dev_flags"))
				call->vals[f].v &= ~(uint64_t)MOCK_FLAGS_DEVICE_PASID;
	}
}

/*
 * Seconds since the start. Under emulation on a busy host the kernel takes the speed
 * of its clock from a measurement that may be wrong by half; the RTC is the host's.
 */
static int port;

static unsigned int cmos(unsigned char reg)
{
	unsigned char v;

	if (pwrite(port, &reg, 1, 0x70) != 1 || pread(port, &v, 1, 0x71) != 1)
		fatal("no access to the RTC");
	return (v >> 4) * 10 + (v & 15);
}

static unsigned int time_of_day(void)
{
	unsigned int s, m, h;

	do {
		s = cmos(0);
		m = cmos(2);
		h = cmos(4);
	} while (s != cmos(0));
	return h * 3600 + m * 60 + s;
}

static unsigned int seconds_run(void)
{
	static unsigned int last = ~0U, sum;
	unsigned int now = time_of_day();

	if (last == ~0U)
		last = now;
	sum += (now + 86400 - last) % 86400;
	last = now;
	return sum;
}

static unsigned int time_limit;

/* All edges so far */
static uint8_t known[MAP_BITS / 8];
static unsigned int num_known;

static char text[1 << 16];

static bool run_logged(const struct prog *prog)
{
	print_prog(text, prog);
	say("X %s\n", text);
	return exec_prog(prog);
}

static bool has_edge(uint32_t edge)
{
	return shared->map[edge / 8] >> edge % 8 & 1;
}

static bool has_all(const uint32_t *edges, unsigned int n)
{
	unsigned int i;

	for (i = 0; i != n; i++)
		if (!has_edge(edges[i]))
			return false;
	return true;
}

/* What of the last run is new, which is known from then on */
static unsigned int new_edges(uint32_t *edges, unsigned int max)
{
	unsigned int i, n = 0;

	for (i = 0; i != shared->num_edges && i != MAX_EDGES; i++) {
		uint32_t edge = shared->edges[i];

		if (known[edge / 8] >> edge % 8 & 1)
			continue;
		known[edge / 8] |= 1 << edge % 8;
		num_known++;
		if (n != max)
			edges[n++] = edge;
	}
	return n;
}

static void keep(const struct prog *prog)
{
	struct prog **slot = &corpus[num_corpus];

	if (num_corpus == MAX_CORPUS)
		slot = &corpus[rnd(num_corpus)];
	else
		num_corpus++;
	*slot = malloc(sizeof(*prog));
	if (!*slot)
		fatal("no memory");
	**slot = *prog;
}

/* It got somewhere new: keep what of it always does. False for a bug. */
static bool triage(struct prog *prog, uint32_t *edges, unsigned int n)
{
	unsigned int i, kept, tries;
	struct prog less;
	int at;

	/* What depends on the timing does not tell which calls are needed */
	for (tries = 0; tries != 2; tries++) {
		if (!run_logged(prog))
			return false;
		for (i = kept = 0; i != n; i++)
			if (has_edge(edges[i]))
				edges[kept++] = edges[i];
		n = kept;
	}
	if (!n)
		return true;
	for (at = prog->n - 1; at >= 0; at--) {
		if (prog->n == 1)
			break;
		less = *prog;
		remove_call(&less, at);
		if (!run_logged(&less))
			return false;
		if (has_all(edges, n))
			*prog = less;
	}
	keep(prog);
	print_prog(text, prog);
	say("C %s\n", text);
	return true;
}

static void print_figures(void)
{
	say("S %u s, %llu executions, %llu calls, %u edges, %u programs\n",
	    seconds_run(), (unsigned long long)execs, (unsigned long long)shared->calls, num_known,
	    num_corpus);
}

/* The lines of the file, or none */
static struct prog *read_progs(const char *name, unsigned int *num)
{
	struct prog *progs = NULL;
	char *line = NULL, *part, *save;
	size_t size = 0;
	FILE *file = fopen(name, "r");

	*num = 0;
	if (!file)
		fatal(name);
	while (getline(&line, &size, file) > 0) {
		for (part = strtok_r(line, "|", &save); part;
		     part = strtok_r(NULL, "|", &save)) {
			progs = realloc(progs, (*num + 1) * sizeof(*progs));
			if (!progs)
				fatal("no memory");
			if (parse_prog(&progs[*num], part))
				++*num;
			else
				fprintf(stderr, "fuzz: not a program: %s\n", name);
		}
	}
	fclose(file);
	free(line);
	return progs;
}

static int shorter(const void *a, const void *b)
{
	const struct prog *pa = a, *pb = b;

	return (int)pa->n - (int)pb->n;
}

/* The seeds are run first; of those that others make needless nothing is kept */
static bool load_corpus(const char *name)
{
	static uint32_t edges[MAX_EDGES];
	unsigned int num, i;
	struct prog *progs = read_progs(name, &num);

	qsort(progs, num, sizeof(*progs), shorter);
	for (i = 0; i != num; i++) {
		if (!run_logged(&progs[i]))
			return false;
		if (new_edges(edges, MAX_EDGES))
			keep(&progs[i]);
	}
	free(progs);
	return true;
}

static int fuzz(const char *name)
{
	static uint32_t edges[MAX_EDGES];
	unsigned int said = 0, now;
	struct prog prog;
	unsigned int n, i;

	if (name && !load_corpus(name))
		return 1;
	say("I %u programs loaded, %u edges\n", num_corpus, num_known);
	for (;;) {
		now = seconds_run();
		if (now > time_limit)
			break;
		if (now - said >= 10) {
			print_figures();
			said = now;
		}
		if (!num_corpus || one_in(20)) {
			generate(&prog);
		} else {
			/* The last ones have been tried least */
			i = num_corpus > 20 && one_in(3) ? num_corpus - 1 - rnd(20) :
							   rnd(num_corpus);
			prog = *corpus[i];
			mutate(&prog);
		}
		avoid_known(&prog);
		if (!run_logged(&prog))
			break;
		n = new_edges(edges, MAX_EDGES);
		if (n && !triage(&prog, edges, n))
			break;
	}
	print_figures();
	for (i = 0; i != NUM_OPS; i++)
		say("I %-22s %9llu good %9llu bad\n", ops[i].name,
		    (unsigned long long)shared->good[i],
		    (unsigned long long)shared->bad[i]);
	for (i = 0; !seen_bug && i != num_corpus; i++) {
		print_prog(text, corpus[i]);
		say("K %s\n", text);
	}
	for (i = 0; i != NUM_PCS; i++)
		if (shared->pcs[i])
			say("P ffffffff%08x\n", shared->pcs[i]);
	stop_runner();
	look_for_bug();
	return seen_bug;
}

/* A line of one or several programs */

static void say_list(const struct prog *progs, unsigned int num)
{
	unsigned int i;

	say("X ");
	for (i = 0; i != num; i++) {
		print_prog(text, &progs[i]);
		say("%s%s", i ? " | " : "", text);
	}
	say("\n");
}

static bool run_list(const struct prog *progs, unsigned int num, unsigned int times)
{
	unsigned int i;

	/* The rest is as simple as it can be had in the time */
	if (seconds_run() > time_limit)
		return true;
	say_list(progs, num);
	while (times--) {
		for (i = 0; i != num; i++)
			if (!exec_prog(&progs[i]))
				return false;
		/* What is freed when the process ends belongs to it */
		if (!times || one_in(10))
			runner_left = 0;
	}
	stop_runner();
	return !look_for_bug();
}

static int repeat(const char *name, unsigned int times)
{
	unsigned int num, i;
	struct prog *progs = read_progs(name, &num);

	for (i = 0; i != times && seconds_run() <= time_limit; i++) {
		say("I run %u\n", i + 1);
		if (!run_list(progs, num, 1))
			return 1;
	}
	return 0;
}

/*
 * Try what is simpler, until something of it makes the kernel report a bug: the last
 * one that was printed. The script goes on with that, in a new machine.
 */
static int minimise(const char *name, unsigned int times)
{
	unsigned int num, i, c, f, part;
	struct prog *progs = read_progs(name, &num);
	struct prog *all = calloc(num + 1, sizeof(*all));
	struct prog less;

	if (!num || !all)
		fatal("no program");
	/* Fewer programs, halves first */
	for (part = num / 2; part; part /= 2) {
		for (i = 0; i + part <= num; i += part) {
			memcpy(all, progs, i * sizeof(*all));
			memcpy(all + i, progs + i + part,
			       (num - i - part) * sizeof(*all));
			if (!run_list(all, num - part, times))
				return 1;
		}
	}
	memcpy(all, progs, num * sizeof(*all));
	for (i = 0; i != num; i++) {
		const struct prog *prog = &progs[i];

		/* Fewer calls */
		for (part = prog->n / 2; part; part /= 2) {
			for (c = prog->n; c >= part; c -= part) {
				less = *prog;
				for (f = 0; f != part; f++)
					remove_call(&less, c - 1 - f);
				all[i] = less;
				if (!run_list(all, num, times))
					return 1;
			}
		}
		/* Simpler calls */
		for (c = 0; c != prog->n; c++) {
			const struct op *op = &ops[prog->calls[c].op];
			struct call *call = &less.calls[c];

#define TRY(expr)                                                         \
	do {                                                              \
		less = *prog;                                             \
		expr;                                                     \
		all[i] = less;                                            \
		if (memcmp(call, &prog->calls[c], sizeof(*call)) &&       \
		    !run_list(all, num, times))                           \
			return 1;                                         \
	} while (0)

			TRY(call->async = false; call->thread = 0);
			TRY(call->async = false);
			TRY(call->fail = 0);
			TRY(call->place = AT_BEGIN);
			TRY(call->size = op->size);
			for_each_field(f, op)
				if (op->fields[f].type != REF)
					TRY(call->vals[f] = *default_val(op, f));
		}
		all[i] = *prog;
	}
	say("M\n");
	return 0;
}

/* As a C program */

static void c_val(const struct prog *prog, unsigned int i, unsigned int f)
{
	const struct val *val = &prog->calls[i].vals[f];
	static const char *const places[] = {
		"AT_BEGIN", "AT_END", "AT_CUT", "AT_RDONLY", "AT_NULL", "AT_HOLE",
		"AT_WINDOW", "AT_SLOW_READ", "AT_SLOW_WRITE",
	};

	if (val->how == IS_REF)
		printf("r[%u][%u]", (int)REF_CALL(val->v), (int)REF_OUT(val->v));
	else if (val->how == IS_PLACE)
		printf("put_data(%u, %s, data, sizeof(data))", i, places[val->v]);
	else
		printf(val->v < 10 ? "%llu" : "0x%llx", (unsigned long long)val->v);
}

static void c_call(const struct prog *prog, unsigned int i)
{
	const struct call *call = &prog->calls[i];
	const struct op *op = &ops[call->op];
	unsigned int f, out = 0, size = data_size(op), word;
	bool data_out = false;
	const char *ptr = NULL;

	printf("\tcase %u: {\n", i);
	if (op->fn) {
		printf("\t\t/* %s */\n\t\tr[%u][0] = %s((unsigned long[]){ ", op->name,
		       i, op->fn_name);
		for_each_field(f, op) {
			printf(f ? ", " : "");
			c_val(prog, i, f);
		}
		printf(" });\n\t\tbreak;\n\t}\n");
		return;
	}
	if (size) {
		printf("\t\tuint32_t data[%u] = {\n", size / 4);
		for_each_field(f, op) {
			const struct field *field = &op->fields[f];

			if (field->area != DATA || field->type == OUT)
				continue;
			for (word = 0; word != field->size / 4u; word++)
				printf("\t\t\t[%u] = 0x%x,%s%s%s\n",
				       field->offset / 4 + word,
				       (uint32_t)(call->vals[f].v >> 32 * word),
				       word ? "" : " /* ", word ? "" : field->name,
				       word ? "" : " */");
		}
		printf("\t\t};\n");
	}
	printf("\t\tstruct {\n\t\t\tstruct %s cmd;\n\t\t\tunsigned char more[64];\n"
	       "\t\t} a = { .cmd = {\n\t\t\t.size = %u,\n",
	       op->type, call->size);
	if (op->test_name)
		printf("\t\t\t.op = %s,\n", op->test_name);
	for_each_field(f, op) {
		const struct field *field = &op->fields[f];

		if (field->area == DATA || field->type == OUT ||
		    field->offset == 0xffff)
			continue;
		if (field->type == DATA_PTR)
			ptr = field->name;
		printf("\t\t\t.%s = ", field->name);
		c_val(prog, i, f);
		printf(",\n");
	}
	printf("\t\t} };\n\t\tvoid *at;\n\n");
	if (call->size > op->size && call->size % 2)
		printf("\t\ta.more[%u] = 1;\n", call->size - op->size - 1);
	printf("\t\tat = put_arg(%u, %u, &a, %u);\n\t\tif (ioctl(", i, call->place,
	       call->size < 4 ? 4 : call->size);
	c_val(prog, i, 0);
	printf(", %s, at))\n\t\t\tbreak;\n", op->ioctl_name);
	for_each_field(f, op)
		if (op->fields[f].type == OUT)
			break;
	if (f != MAX_FIELDS && op->fields[f].name)
		printf("\t\tif (!get(&a.cmd, at, sizeof(a.cmd)))\n\t\t\tbreak;\n");
	for_each_field(f, op) {
		const struct field *field = &op->fields[f];

		if (field->type != OUT)
			continue;
		if (field->area != DATA) {
			printf("\t\tr[%u][%u] = a.cmd.%s;\n", i, out++, field->name);
			continue;
		}
		if (!data_out)
			printf("\t\tget(data, (void *)(uintptr_t)a.cmd.%s, sizeof(data));\n",
			       ptr);
		data_out = true;
		printf("\t\tr[%u][%u] = data[%u] | (uint64_t)data[%u] << 32; /* %s */\n",
		       i, out++, field->offset / 4, field->offset / 4 + 1,
		       field->name);
	}
	printf("\t\tbreak;\n\t}\n");
}

static int print_c(const char *name)
{
	unsigned int num, p, i, undo;
	struct prog *progs = read_progs(name, &num);
	uint64_t iommus;

	printf("\nstatic void thread_begin(void) {}\nstatic void call_begin(void) {}\n"
	       "static void call_end(void) {}\n\nstatic unsigned int prog;\n\n");
	for (p = 0; p != num; p++) {
		print_prog(text, &progs[p]);
		printf("/* %s */\nstatic void do_call_%u(unsigned int i)\n{\n\tswitch (i) {\n",
		       text, p);
		for (i = 0; i != progs[p].n; i++)
			c_call(&progs[p], i);
		printf("\t}\n}\n\nstatic const struct step steps_%u[] = {\n", p);
		for (i = 0; i != progs[p].n; i++)
			printf("\t{ .thread = %u, .async = %u, .needs = 0x%llx, .fail = %u },\n",
			       progs[p].calls[i].thread, progs[p].calls[i].async,
			       (unsigned long long)needs(&progs[p].calls[i]),
			       progs[p].calls[i].fail);
		printf("};\n\n");
	}
	printf("static void do_call(unsigned int i)\n{\n\tswitch (prog) {\n");
	for (p = 0; p != num; p++)
		printf("\tcase %u:\n\t\tdo_call_%u(i);\n\t\tbreak;\n", p, p);
	printf("\t}\n}\n\n"
	       "/* usage: PROGRAM [TIMES], since it may take luck */\n"
	       "int main(int argc, char *argv[])\n{\n"
	       "\tunsigned long times = argc > 1 ? strtoul(argv[1], NULL, 0) : 1;\n\n"
	       "\tset_up_faults();\n"
	       "\trun_init();\n\twhile (times--) {\n");
	for (p = 0; p != num; p++) {
		undo = 0;
		iommus = 0;
		for (i = 0; i != progs[p].n; i++) {
			const struct op *op = &ops[progs[p].calls[i].op];

			undo |= op->undo;
			if (op->test_op == IOMMU_TEST_OP_IOMMU_REGISTER)
				iommus |= 1ULL << i;
		}
		printf("\t\tprog = %u;\n"
		       "\t\tif (!run(steps_%u, %u, 0x%llx, %u))\n"
		       "\t\t\treturn 1;\n",
		       p, p, progs[p].n, (unsigned long long)iommus, undo);
	}
	printf("\t}\n\treturn 0;\n}\n");
	return 0;
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 60, times = 0;
	const char *name = NULL;
	char mode = 0;
	int opt;

	while ((opt = getopt(argc, argv, "s:t:f:r:m:c")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtoul(optarg, NULL, 0);
			break;
		case 'f':
			name = optarg;
			break;
		case 'r':
		case 'm':
			times = strtoul(optarg, NULL, 0);
			/* fall through */
		case 'c':
			mode = opt;
			break;
		default:
			return 2;
		}
	}
	if (optind != argc || (mode && !name)) {
		fprintf(stderr, "usage: see the top of fuzz.c\n");
		return 2;
	}
	/* So that small seeds differ, too, and none is 0 */
	seed = (seed + 1) * 0x9e3779b97f4a7c15ULL;
	if (!seed)
		seed = 1;
	if (mode == 'c')
		return print_c(name);

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	tainted = open("/proc/sys/kernel/tainted", O_RDONLY | O_CLOEXEC);
	if (shared == MAP_FAILED || kmsg < 0 || tainted < 0)
		fatal("cannot begin");
	if (access("/sys/kernel/debug/kcov", R_OK))
		fatal("no KCOV in this kernel");
	lseek(kmsg, 0, SEEK_END);
	/* What is no warning is too much for the serial line */
	write_file("/sys/module/printk/parameters/ignore_loglevel", "N");
	write_file("/proc/sys/kernel/printk", "5");
	set_up_faults();
	port = open("/dev/port", O_RDWR | O_CLOEXEC);
	time_limit = seconds;
	seconds_run();
	if (mode == 'r')
		return repeat(name, times);
	if (mode == 'm')
		return minimise(name, times);
	return fuzz(name);
}
