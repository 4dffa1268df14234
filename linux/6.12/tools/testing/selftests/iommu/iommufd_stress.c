// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads of several processes do at random all that can be done with vIOMMUs,
 * HWPTs, what lives on a vIOMMU, and the devices and the physical IOMMUs under
 * them: plug, unplug, allocate, attach, map, send and answer page requests, call,
 * invalidate, send and read events, destroy, open, close, register, unregister, and
 * be stopped and killed while at it. Every call must end, with success or with an
 * error that fits, and at the end everything must be as in the beginning. What else
 * may go wrong the kernel tells.
 *
 * Usage: iommufd_stress [seconds [seed]]; up to 20 times as long, if something has not
 * been used until then
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>

#define __EXPORTED_HEADERS__
#include "../kselftest.h"
#include "iommufd_utils.h"

#define NUM_PROCS 3
#define NUM_THREADS 3
#define NUM_IOMMUS 3
#define NUM_VMS 3
#define NUM_VIOMMUS 3
#define NUM_HWPTS 4
#define NUM_CHILDREN 8
#define NUM_VIRT_IDS 2

enum op {
	OP_OPEN,
	OP_CLOSE,
	OP_PLUG,
	OP_UNPLUG,
	OP_PLUG_ONLY,
	OP_HWPT,
	OP_ATTACH,
	OP_MAP,
	OP_UNMAP,
	OP_IOPF,
	OP_ANSWER,
	OP_ALLOC,
	OP_CHILD,
	OP_DESTROY,
	OP_CALL,
	OP_INVALIDATE,
	OP_EVENT,
	OP_READ,
	OP_REGISTER,
	OP_UNREGISTER,
	OP_STOP,
	OP_KILL,
	OP_NUM,
};

static const struct {
	const char *name;
	/* Of 1000 */
	unsigned int chance;
	/* Beside those of a file or an object that another thread has ended */
	int errors[4];
} ops[OP_NUM] = {
	/* EPERM: another file has the group */
	[OP_OPEN] = { "open", 15, { ENODEV, EPERM } },
	[OP_CLOSE] = { "close", 6, {} },
	[OP_PLUG] = { "plug", 40, { ENODEV, EPERM, EINVAL } },
	[OP_UNPLUG] = { "unplug", 25, { EBUSY } },
	[OP_PLUG_ONLY] = { "plug only", 5, {} },
	[OP_HWPT] = { "hwpt", 90, { ENODEV, EINVAL } },
	[OP_ATTACH] = { "attach", 110, { ENODEV, EINVAL } },
	[OP_MAP] = { "map", 40, { EEXIST } },
	[OP_UNMAP] = { "unmap", 15, { EBUSY } },
	[OP_IOPF] = { "iopf", 40, { ENODEV } },
	[OP_ANSWER] = { "answer", 40, { EINVAL } },
	[OP_ALLOC] = { "alloc", 100, { ENODEV, EINVAL } },
	/* EEXIST: there is one; EINVAL: a device, or memory, that will not do */
	[OP_CHILD] = { "child", 170, { ENODEV, EEXIST, EINVAL } },
	[OP_DESTROY] = { "destroy", 90, { EBUSY } },
	[OP_CALL] = { "call", 30, { ENODEV } },
	/* EINVAL: no such virtual ID */
	[OP_INVALIDATE] = { "invalidate", 60, { ENODEV, EINVAL } },
	/* EOPNOTSUPP: nobody has asked for events */
	[OP_EVENT] = { "event", 90, { ENODEV, EOPNOTSUPP } },
	[OP_READ] = { "read", 20, { ENODEV } },
	[OP_REGISTER] = { "register", 7, {} },
	[OP_UNREGISTER] = { "unregister", 7, {} },
	/* These two are for the parent of the processes */
	[OP_STOP] = { "stop", 0, {} },
	[OP_KILL] = { "kill", 0, {} },
};

/* Everything here is read and written by all at any time */
struct shared {
	uint32_t iommu_id[NUM_IOMMUS];
	uint64_t done[OP_NUM];
	uint64_t refused[OP_NUM];
	/* The two sides of the races with unregister that an ioctl can lose */
	uint64_t alloc_late;
	uint64_t revoked;
	uint64_t device_revoked;
	uint64_t hwpt_revoked;
	uint64_t child_revoked;
	uint32_t stop;
	uint32_t bad_op;
	int bad_errno;
};

struct vm {
	int fd;
	uint32_t ioas_id;
	uint32_t parent_id;
	uint32_t stdev_id;
	uint32_t device_id;
	uint32_t fault_id;
	uint32_t fault_fd;
	uint32_t event_fd;
	uint32_t viommu_id[NUM_VIOMMUS];
	uint32_t hwpt_id[NUM_HWPTS];
	uint32_t child_id[NUM_CHILDREN];
};

static struct shared *shared;
static struct vm vms[NUM_VMS];

#define get(var) __atomic_load_n(&(var), __ATOMIC_RELAXED)
#define set(var, value) __atomic_store_n(&(var), value, __ATOMIC_RELAXED)
#define count(var) __atomic_add_fetch(&(var), 1, __ATOMIC_RELAXED)

static uint32_t rnd_flags(uint64_t *state)
{
	if (rnd(state, 2))
		return 0;
	if (rnd(state, 2))
		return MOCK_IOMMU_ONE_GROUP;
	return MOCK_IOMMU_SHARED_DOMAINS;
}

static int do_open(struct vm *vm, uint32_t iommu_id)
{
	struct vm new = {};

	new.fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (new.fd < 0)
		return -1;
	if (_test_ioctl_ioas_alloc(new.fd, &new.ioas_id) ||
	    _test_ioctl_fault_alloc(new.fd, &new.fault_id, &new.fault_fd))
		goto err_close;
	if (_test_cmd_mock_domain_iommu(new.fd, new.ioas_id, iommu_id, 0,
					&new.stdev_id, NULL, &new.device_id) ||
	    _test_cmd_hwpt_alloc(new.fd, new.device_id, new.ioas_id, 0,
				 IOMMU_HWPT_ALLOC_NEST_PARENT, &new.parent_id,
				 IOMMU_HWPT_DATA_NONE, NULL, 0)) {
		int err = errno;

		close(new.fault_fd);
		errno = err;
		goto err_close;
	}
	set(vm->ioas_id, new.ioas_id);
	set(vm->parent_id, new.parent_id);
	set(vm->stdev_id, new.stdev_id);
	set(vm->device_id, new.device_id);
	set(vm->fault_id, new.fault_id);
	/* Another thread may have opened one at the same time */
	new.fault_fd = __atomic_exchange_n(&vm->fault_fd, new.fault_fd,
					   __ATOMIC_RELAXED);
	new.fd = __atomic_exchange_n(&vm->fd, new.fd, __ATOMIC_RELAXED);
	if (new.fd >= 0) {
		close(new.fault_fd);
		close(new.fd);
	}
	return 0;

err_close:
	{
		int err = errno;

		close(new.fd);
		errno = err;
	}
	return -1;
}

static int do_hwpt(struct vm *vm, uint32_t *hwpt, uint64_t *state)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t fault_id = 0, flags = 0, id;
	int ret;

	if (rnd(state, 2)) {
		if (rnd(state, 2)) {
			flags = IOMMU_HWPT_FAULT_ID_VALID;
			fault_id = get(vm->fault_id);
		}
		ret = _test_cmd_hwpt_alloc(get(vm->fd), get(vm->device_id),
					   get(vm->parent_id), fault_id, flags,
					   &id, IOMMU_HWPT_DATA_SELFTEST, &data,
					   sizeof(data));
	} else {
		flags = rnd(state, 2) ? IOMMU_HWPT_ALLOC_NEST_PARENT :
					IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
		ret = _test_cmd_hwpt_alloc(get(vm->fd), get(vm->device_id),
					   get(vm->ioas_id), 0, flags, &id,
					   IOMMU_HWPT_DATA_NONE, NULL, 0);
	}
	if (!ret)
		set(*hwpt, id);
	return ret;
}

static int do_iopf(struct vm *vm, uint64_t *state)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_IOPF,
		.trigger_iopf = {
			.dev_id = get(vm->device_id),
			.pasid = 1,
			.grpid = rnd(state, 1000),
			.perm = IOMMU_PGFAULT_PERM_READ,
		},
	};

	return ioctl(get(vm->fd), IOMMU_TEST_CMD, &cmd);
}

static int do_answer(struct vm *vm)
{
	struct iommu_hwpt_page_response response = {
		.code = IOMMUFD_PAGE_RESP_SUCCESS,
	};
	struct iommu_hwpt_pgfault fault;
	int fd = get(vm->fault_fd);

	if (fd <= 0 || read(fd, &fault, sizeof(fault)) != sizeof(fault))
		return 0;
	response.cookie = fault.cookie;
	return write(fd, &response, sizeof(response)) == sizeof(response) ?
		       0 : -1;
}

/* Of the four kinds that live on a vIOMMU */
static int do_child(struct vm *vm, uint32_t viommu_id, unsigned int kind,
		    uint32_t *hwpt, uint64_t *state)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t *child = &vm->child_id[rnd(state, NUM_CHILDREN)];
	int fd = get(vm->fd), event_fd, ret;
	uint32_t id;

	switch (kind % 4) {
	case 0:
		ret = _test_cmd_vdevice_alloc(fd, viommu_id,
					      get(vm->device_id),
					      rnd(state, NUM_VIRT_IDS), &id);
		break;
	case 1:
		child = hwpt;
		ret = _test_cmd_hwpt_alloc(fd, get(vm->device_id), viommu_id, 0,
					   0, &id, IOMMU_HWPT_DATA_SELFTEST,
					   &data, sizeof(data));
		break;
	case 2:
		ret = _test_cmd_veventq_alloc(fd, viommu_id,
					      IOMMU_VEVENTQ_TYPE_SELFTEST, 4,
					      &id, &event_fd);
		if (ret)
			break;
		event_fd = __atomic_exchange_n(&vm->event_fd, event_fd,
					       __ATOMIC_RELAXED);
		if (event_fd)
			close(event_fd);
		break;
	default:
		ret = _test_cmd_hw_queue_alloc(fd, viommu_id,
					       IOMMU_HW_QUEUE_TYPE_SELFTEST, 0,
					       MOCK_APERTURE_START, PAGE_SIZE,
					       &id);
	}
	if (!ret)
		set(*child, id);
	return ret;
}

static int do_invalidate(struct vm *vm, uint32_t viommu_id, uint64_t *state)
{
	struct iommu_viommu_invalidate_selftest entry = {
		.vdev_id = rnd(state, NUM_VIRT_IDS),
		.cache_id = rnd(state, MOCK_DEV_CACHE_NUM),
	};
	uint32_t num = 1;

	return _test_cmd_hwpt_invalidate(get(vm->fd), viommu_id, &entry,
					 IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					 sizeof(entry), &num);
}

/* A file that another thread has closed, and the number is another's, is EINVAL */
static int do_read(struct vm *vm)
{
	struct {
		struct iommufd_vevent_header header;
		struct iommu_viommu_event_selftest event;
	} events[2];
	int fd = get(vm->event_fd);

	if (fd <= 0 || read(fd, events, sizeof(events)) >= 0 ||
	    errno == EINVAL)
		return 0;
	return -1;
}

static int do_op(enum op op, uint64_t *state)
{
	struct vm *vm = &vms[rnd(state, NUM_VMS)];
	uint32_t *viommu = &vm->viommu_id[rnd(state, NUM_VIOMMUS)];
	uint32_t *hwpt = &vm->hwpt_id[rnd(state, NUM_HWPTS)];
	uint32_t *iommu = &shared->iommu_id[rnd(state, NUM_IOMMUS)];
	__u64 iova = MOCK_APERTURE_START + BUFFER_SIZE * rnd(state, 4);
	uint32_t id, id2, i;
	int fd, ret;

	switch (op) {
	case OP_OPEN:
		return do_open(vm, get(*iommu));
	case OP_CLOSE:
		fd = __atomic_exchange_n(&vm->fd, -1, __ATOMIC_RELAXED);
		if (fd < 0)
			return 0;
		/* Which one goes first makes a difference */
		id = __atomic_exchange_n(&vm->fault_fd, 0, __ATOMIC_RELAXED);
		id2 = __atomic_exchange_n(&vm->event_fd, 0, __ATOMIC_RELAXED);
		if (rnd(state, 2)) {
			if (id)
				close(id);
			if (id2)
				close(id2);
			return close(fd);
		}
		ret = close(fd);
		if (id)
			close(id);
		if (id2)
			close(id2);
		return ret;
	case OP_PLUG:
		ret = _test_cmd_mock_domain_iommu(get(vm->fd),
						  get(vm->ioas_id), get(*iommu),
						  0, &id, NULL, &id2);
		if (!ret) {
			set(vm->stdev_id, id);
			set(vm->device_id, id2);
		}
		return ret;
	case OP_PLUG_ONLY:
		fd = get(vm->fd);
		ret = _test_cmd_mock_domain_iommu(fd, 0, get(*iommu),
						  MOCK_FLAGS_DEVICE_PLUG_ONLY,
						  &id, NULL, NULL);
		if (!ret)
			_test_ioctl_destroy(fd, id);
		return ret;
	case OP_UNPLUG:
		return _test_ioctl_destroy(get(vm->fd), get(vm->stdev_id));
	case OP_HWPT:
		return do_hwpt(vm, hwpt, state);
	case OP_ATTACH:
		id = rnd(state, 4) ? get(*hwpt) :
		     rnd(state, 2) ? get(vm->parent_id) :
				     get(vm->ioas_id);
		ret = _test_cmd_mock_domain_replace(get(vm->fd),
						    get(vm->stdev_id), id,
						    NULL);
		if (ret && errno == ENODEV)
			count(shared->hwpt_revoked);
		return ret;
	case OP_MAP:
		return _test_ioctl_ioas_map(get(vm->fd), get(vm->ioas_id),
					    buffer, BUFFER_SIZE, &iova,
					    IOMMU_IOAS_MAP_FIXED_IOVA |
						    IOMMU_IOAS_MAP_WRITEABLE |
						    IOMMU_IOAS_MAP_READABLE);
	case OP_UNMAP:
		return _test_ioctl_ioas_unmap(get(vm->fd), get(vm->ioas_id),
					      iova, BUFFER_SIZE, NULL);
	case OP_IOPF:
		ret = do_iopf(vm, state);
		if (ret && errno == ENODEV)
			count(shared->device_revoked);
		return ret;
	case OP_ANSWER:
		return do_answer(vm);
	case OP_ALLOC:
		ret = _test_cmd_viommu_alloc(get(vm->fd), get(vm->device_id),
					     get(vm->parent_id), 0,
					     IOMMU_VIOMMU_TYPE_SELFTEST, NULL,
					     0, &id);
		if (!ret)
			set(*viommu, id);
		else if (errno == ENODEV)
			count(shared->alloc_late);
		return ret;
	case OP_CHILD:
		id = get(*viommu);
		id2 = rnd(state, 4);
		for (i = 0; i != 4; i++) {
			ret = do_child(vm, id, id2 + i, hwpt, state);
			if (ret && errno != EEXIST)
				break;
		}
		if (ret && errno == ENODEV)
			count(shared->child_revoked);
		return ret;
	case OP_DESTROY:
		switch (rnd(state, 3)) {
		case 0:
			id = get(*viommu);
			break;
		case 1:
			id = get(*hwpt);
			break;
		default:
			id = get(vm->child_id[rnd(state, NUM_CHILDREN)]);
		}
		return _test_ioctl_destroy(get(vm->fd), id);
	case OP_CALL:
		ret = _test_cmd_viommu_call(get(vm->fd), get(*viommu));
		if (ret && errno == ENODEV)
			count(shared->revoked);
		return ret;
	case OP_INVALIDATE:
		ret = do_invalidate(vm, get(*viommu), state);
		if (ret && errno == ENODEV)
			count(shared->child_revoked);
		return ret;
	case OP_EVENT:
		return _test_cmd_trigger_vevent(get(vm->fd), get(vm->device_id),
						rnd(state, 2));
	case OP_READ:
		return do_read(vm);
	case OP_REGISTER:
		fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
		ret = _test_cmd_iommu_register(fd, rnd_flags(state), &id);
		if (!ret) {
			id = __atomic_exchange_n(iommu, id, __ATOMIC_RELAXED);
			if (id)
				_test_cmd_iommu_unregister(fd, id);
		}
		close(fd);
		return ret;
	case OP_UNREGISTER:
		fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
		id = __atomic_exchange_n(iommu, 0, __ATOMIC_RELAXED);
		ret = id ? _test_cmd_iommu_unregister(fd, id) : 0;
		close(fd);
		return ret;
	default:
		return 0;
	}
}

static void *worker(void *arg)
{
	uint64_t state = (uintptr_t)arg;
	unsigned int dice, i;
	enum op op;

	while (!get(shared->stop)) {
		dice = rnd(&state, 1000);
		for (op = 0; dice >= ops[op].chance; op++)
			dice -= ops[op].chance;

		errno = 0;
		if (!do_op(op, &state)) {
			count(shared->done[op]);
			continue;
		}
		count(shared->refused[op]);
		/* The file or the object is not, or no longer, there */
		if (errno == EBADF || errno == ENOENT || errno == ENOTTY)
			continue;
		for (i = 0; i != ARRAY_SIZE(ops[op].errors); i++)
			if (errno == ops[op].errors[i])
				break;
		if (i == ARRAY_SIZE(ops[op].errors)) {
			set(shared->bad_errno, errno);
			set(shared->bad_op, op + 1);
		}
	}
	return NULL;
}

static pid_t start_process(uint64_t seed)
{
	pthread_t threads[NUM_THREADS];
	unsigned int i;
	pid_t pid;

	pid = fork();
	if (pid)
		return pid;
	for (i = 0; i != NUM_VMS; i++)
		vms[i].fd = -1;
	for (i = 0; i != NUM_THREADS; i++)
		assert(!pthread_create(&threads[i], NULL, worker,
				       (void *)(uintptr_t)(seed * 64 + i + 1)));
	for (i = 0; i != NUM_THREADS; i++)
		pthread_join(threads[i], NULL);
	exit(0);
}

static bool all_used(void)
{
	return get(shared->revoked) && get(shared->done[OP_CALL]) &&
	       get(shared->hwpt_revoked) && get(shared->done[OP_ATTACH]) &&
	       get(shared->device_revoked) && get(shared->done[OP_IOPF]) &&
	       get(shared->child_revoked) && get(shared->done[OP_CHILD]) &&
	       get(shared->done[OP_INVALIDATE]) &&
	       get(shared->done[OP_EVENT]) &&
	       get(shared->done[OP_UNREGISTER]);
}

/* What is there of the mock and comes and goes */
static void count_all(unsigned int *counts)
{
	counts[0] = count_dir("/sys/bus/iommufd_mock/devices");
	counts[1] = count_dir("/sys/class/iommu");
	counts[2] = count_dir("/sys/kernel/iommu_groups");
}

int main(int argc, char *argv[])
{
	unsigned long seconds = argc > 1 ? strtoul(argv[1], NULL, 0) : 30;
	uint64_t inits[2], destroys[2], revokes[2], seed, state;
	unsigned int before[3], after[3], i, op;
	pid_t pid[NUM_PROCS];
	bool good;
	time_t end;
	int fd;

	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * 4;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
	ksft_print_header();
	ksft_set_plan(3);
	if (argc > 2)
		seed = strtoull(argv[2], NULL, 0);
	else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		ksft_exit_fail_msg("no seed\n");
	seed &= 0xffffffff;
	state = seed | 1ULL << 40;
	ksft_print_msg("%lu seconds with seed %llu\n", seconds,
		       (unsigned long long)seed);

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_skip("no /dev/iommu\n");
	if (_test_cmd_viommu_stats(fd, &inits[0], &destroys[0], &revokes[0]))
		ksft_exit_skip("no IOMMUFD_TEST\n");
	if (unregister_all(fd))
		ksft_exit_fail_msg("no IOMMU\n");
	count_all(before);

	for (i = 0; i != NUM_PROCS; i++)
		pid[i] = start_process(state + i);
	/* On a slow machine longer, until it has met all there is to meet */
	end = time(NULL) + seconds;
	while (!get(shared->bad_op) &&
	       (time(NULL) < end ||
		(!all_used() && time(NULL) < end + 19 * seconds))) {
		usleep(1000 * (1 + rnd(&state, 200)));
		i = rnd(&state, NUM_PROCS);
		if (rnd(&state, 4)) {
			kill(pid[i], SIGSTOP);
			usleep(1000 * rnd(&state, 100));
			kill(pid[i], SIGCONT);
			count(shared->done[OP_STOP]);
		} else {
			kill(pid[i], SIGKILL);
			waitpid(pid[i], NULL, 0);
			count(shared->done[OP_KILL]);
			pid[i] = start_process(state);
		}
	}
	set(shared->stop, 1);
	for (i = 0; i != NUM_PROCS; i++)
		waitpid(pid[i], NULL, 0);
	if (unregister_all(fd))
		ksft_exit_fail_msg("no IOMMU\n");

	for (op = 0; op != OP_NUM; op++)
		ksft_print_msg("%-10s %10llu done %10llu refused\n",
			       ops[op].name,
			       (unsigned long long)shared->done[op],
			       (unsigned long long)shared->refused[op]);
	if (shared->bad_op)
		ksft_print_msg("%s gave the error %d, %s\n",
			       ops[shared->bad_op - 1].name, shared->bad_errno,
			       strerror(shared->bad_errno));
	ksft_test_result(!shared->bad_op, "every error fits\n");

	ksft_print_msg("met a revoked one: %llu calls, %llu attaches, %llu page requests\n",
		       (unsigned long long)shared->revoked,
		       (unsigned long long)shared->hwpt_revoked,
		       (unsigned long long)shared->device_revoked);
	ksft_print_msg("and %llu of what lives on a vIOMMU\n",
		       (unsigned long long)shared->child_revoked);
	ksft_print_msg("%llu allocations met an IOMMU that goes away\n",
		       (unsigned long long)shared->alloc_late);
	ksft_test_result(all_used(), "all was used and revoked\n");

	count_all(after);
	if (_test_cmd_viommu_stats(fd, &inits[1], &destroys[1], &revokes[1]))
		ksft_exit_fail_msg("no statistics\n");
	ksft_print_msg("%llu vIOMMUs made, %llu destroyed, %llu of them by revocation\n",
		       (unsigned long long)(inits[1] - inits[0]),
		       (unsigned long long)(destroys[1] - destroys[0]),
		       (unsigned long long)(revokes[1] - revokes[0]));
	good = inits[1] - inits[0] == destroys[1] - destroys[0] &&
	       !memcmp(before, after, sizeof(before));
	ksft_test_result(good, "nothing is left\n");
	ksft_finished();
}
