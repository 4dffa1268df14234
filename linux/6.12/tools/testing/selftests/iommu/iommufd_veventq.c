// SPDX-License-Identifier: GPL-2.0-only
/*
 * vEVENTQs: what IOMMU_VEVENTQ_ALLOC accepts, how the events of a device get to
 * the reader of the queue's file, how the loss of events is told, and what becomes of
 * the queue when things that it depends on go away.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

#define QUEUE_TYPE IOMMU_VEVENTQ_TYPE_SELFTEST
#define VIRT_ID 0x17

/* As it comes out of the queue; if events were lost there is no data */
struct vevent {
	struct iommufd_vevent_header header;
	struct iommu_viommu_event_selftest data;
};

#define LOST_SIZE sizeof(struct iommufd_vevent_header)

/* A device of the VM's, and the vDEVICE that it has */
struct guest_dev {
	uint32_t stdev_id;
	uint32_t device_id;
	uint32_t vdevice_id;
};

/* A VM whose device is attached to a nested HWPT on its vIOMMU */
struct guest {
	struct vm vm;
	struct guest_dev dev;
	uint32_t viommu_id;
	uint32_t nested_id;
	uint32_t queue_id;
	int queue;
};

/* Give a device its ID in the VM, and let the VM have it */
static int guest_attach(struct guest *guest, struct guest_dev *dev,
			uint64_t virt_id)
{
	if (_test_cmd_vdevice_alloc(guest->vm.fd, guest->viommu_id,
				    dev->device_id, virt_id, &dev->vdevice_id))
		return -1;
	return _test_cmd_mock_domain_replace(guest->vm.fd, dev->stdev_id,
					     guest->nested_id, NULL);
}

/* Another device behind the same IOMMU */
static int guest_plug(struct guest *guest, uint32_t iommu_id,
		      struct guest_dev *dev)
{
	return _test_cmd_mock_domain_iommu(guest->vm.fd, guest->vm.ioas_id,
					   iommu_id, 0, &dev->stdev_id, NULL,
					   &dev->device_id);
}

static int guest_open(struct guest *guest, uint32_t iommu_id, uint64_t virt_id)
{
	guest->queue = -1;
	if (vm_open(&guest->vm, iommu_id) ||
	    vm_viommu(&guest->vm, &guest->viommu_id) ||
	    vm_nested(&guest->vm, guest->viommu_id, &guest->nested_id))
		return -1;
	guest->dev.stdev_id = guest->vm.stdev_id;
	guest->dev.device_id = guest->vm.device_id;
	return guest_attach(guest, &guest->dev, virt_id);
}

static int guest_queue_of(struct guest *guest, uint32_t type, uint32_t depth,
			  uint32_t *queue_id, int *queue)
{
	return _test_cmd_veventq_alloc(guest->vm.fd, guest->viommu_id, type,
				       depth, queue_id, queue);
}

static int guest_queue(struct guest *guest, uint32_t depth)
{
	return guest_queue_of(guest, QUEUE_TYPE, depth, &guest->queue_id,
			      &guest->queue);
}

/* By the device that the VM has now, in an interrupt or not */
static int guest_trigger_in(struct guest *guest, bool irq)
{
	return _test_cmd_trigger_vevent(guest->vm.fd, guest->vm.device_id, irq);
}

static int dev_trigger(struct guest *guest, struct guest_dev *dev)
{
	return _test_cmd_trigger_vevent(guest->vm.fd, dev->device_id, false);
}

static int guest_trigger(struct guest *guest)
{
	return dev_trigger(guest, &guest->dev);
}

/* And so are file descriptors */
static int free_fd(void)
{
	int fd = dup(STDIN_FILENO);

	if (fd != -1)
		close(fd);
	return fd;
}

/* What poll() says at once, or -1. POLLIN stands for itself and POLLRDNORM. */
static int poll_now(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN | POLLRDNORM };

	if (poll(&pollfd, 1, 0) < 0 ||
	    !(pollfd.revents & POLLIN) != !(pollfd.revents & POLLRDNORM))
		return -1;
	return pollfd.revents & ~POLLRDNORM;
}

FIXTURE(iommufd_veventq)
{
	/* For test commands, has no objects of its own */
	int fd;
	uint32_t iommu_id;
	struct guest guest;
	uint64_t inits;
	uint64_t destroys;
};

FIXTURE_SETUP(iommufd_veventq)
{
	self->fd = stats_open(&self->inits, &self->destroys);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	ASSERT_EQ(0, guest_open(&self->guest, self->iommu_id, VIRT_ID));
}

/* The queues are gone as well, or the vIOMMUs would be there */
FIXTURE_TEARDOWN(iommufd_veventq)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	if (self->guest.queue != -1)
		EXPECT_EQ(0, close(self->guest.queue));
	EXPECT_EQ(0, vm_close(&self->guest.vm));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, stats_close(self->fd, self->inits, self->destroys));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))
#define queue_alloc(depth) ASSERT_EQ(0, guest_queue(&self->guest, depth))
#define trigger() ASSERT_EQ(0, guest_trigger(&self->guest))
#define trigger_many(number)                         \
	({                                           \
		unsigned int __number = number;      \
						     \
		while (__number--)                   \
			trigger();                   \
	})

/* An event from the VM's device, or that the last ones were lost, or nothing */
#define EXPECT_VEVENT_OF(fd, number, id)                            \
	({                                                          \
		struct vevent __event = {};                         \
								    \
		EXPECT_EQ(sizeof(__event),                          \
			  read(fd, &__event, sizeof(__event)));     \
		EXPECT_EQ(0, __event.header.flags);                 \
		EXPECT_EQ(number, __event.header.sequence);         \
		EXPECT_EQ(id, __event.data.virt_id);                \
	})
#define EXPECT_VEVENT(number) \
	EXPECT_VEVENT_OF(self->guest.queue, number, VIRT_ID)
#define EXPECT_LOST(number)                                         \
	({                                                          \
		struct vevent __event = {};                         \
								    \
		EXPECT_EQ(LOST_SIZE,                                \
			  read(self->guest.queue, &__event,         \
			       sizeof(__event)));                   \
		EXPECT_EQ(IOMMU_VEVENTQ_FLAG_LOST_EVENTS,           \
			  __event.header.flags);                    \
		EXPECT_EQ(number, __event.header.sequence);         \
	})
#define EXPECT_EMPTY_OF(fd)                                          \
	({                                                           \
		struct vevent __event;                               \
		int __fd = fd;                                       \
								     \
		EXPECT_EQ(0, poll_now(__fd));                        \
		EXPECT_EQ(0, read(__fd, &__event, sizeof(__event))); \
	})
#define EXPECT_EMPTY() EXPECT_EMPTY_OF(self->guest.queue)
/* Nothing is there, and nothing will come */
#define EXPECT_GONE_OF(fd)                                      \
	({                                                      \
		struct vevent __event;                          \
		int __fd = fd;                                  \
								\
		EXPECT_EQ(POLLHUP, poll_now(__fd));             \
		EXPECT_ERRNO(ENODEV, read(__fd, &__event,       \
					  sizeof(__event)));    \
	})
#define EXPECT_GONE() EXPECT_GONE_OF(self->guest.queue)

TEST_F(iommufd_veventq, alloc)
{
	struct guest *guest = &self->guest;

	queue_alloc(1);
	ASSERT_NE(0, guest->queue_id);
	EXPECT_EQ(FD_CLOEXEC, fcntl(guest->queue, F_GETFD));
	EXPECT_EQ(O_RDONLY, fcntl(guest->queue, F_GETFL) & O_ACCMODE);
	EXPECT_ERRNO(EBADF, write(guest->queue, "", 1));
	EXPECT_EMPTY();

	/* It is in use as long as its file is, and uses the vIOMMU */
	EXPECT_ERRNO(EBUSY, vm_destroy(&guest->vm, guest->queue_id));
	ASSERT_EQ(0, close(guest->queue));
	guest->queue = -1;
	ASSERT_EQ(0, vm_attach(&guest->vm, guest->vm.ioas_id));
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->nested_id));
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->dev.vdevice_id));
	EXPECT_ERRNO(EBUSY, vm_destroy(&guest->vm, guest->viommu_id));

	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
	EXPECT_ERRNO(ENOENT, vm_destroy(&guest->vm, guest->queue_id));
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->viommu_id));
}

/* Its ID is that of a vEVENTQ and of nothing else */
TEST_F(iommufd_veventq, id_is_no_other_object)
{
	struct vm *vm = &self->guest.vm;
	uint32_t queue_id, id;
	int queue;

	queue_alloc(1);
	id = self->guest.queue_id;
	EXPECT_ERRNO(EINVAL, vm_attach(vm, id));
	EXPECT_ERRNO(ENOENT, hw_info(vm->fd, id));
	EXPECT_ERRNO(ENOENT, _test_cmd_viommu_call(vm->fd, id));
	EXPECT_ERRNO(ENOENT,
		     _test_cmd_vdevice_alloc(vm->fd, id, vm->device_id, 1,
					     NULL));
	EXPECT_ERRNO(ENOENT,
		     _test_cmd_veventq_alloc(vm->fd, id, QUEUE_TYPE, 1,
					     &queue_id, &queue));
}

TEST_F(iommufd_veventq, alloc_bad_arguments)
{
	struct guest *guest = &self->guest;
	struct vm *vm = &guest->vm;
	struct iommu_veventq_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = guest->viommu_id,
		.type = QUEUE_TYPE,
		.veventq_depth = 1,
	};
	uint32_t id = free_id(vm->fd);
	int fd = free_fd();

	ASSERT_NE(0, id);
	ASSERT_NE(-1, fd);

#define test_err_cmd(_errno, field, value)                                     \
	({                                                                     \
		EXPECT_BAD_FIELD(_errno, vm->fd, IOMMU_VEVENTQ_ALLOC, cmd, id, \
				 field, value);                                \
		EXPECT_EQ(fd, free_fd());                                      \
	})
	test_err_cmd(EOPNOTSUPP, flags, 1);
	test_err_cmd(EOPNOTSUPP, flags, 1U << 31);
	test_err_cmd(EOPNOTSUPP, __reserved, 1);
	test_err_cmd(EOPNOTSUPP, __reserved, 1U << 31);
	test_err_cmd(EOPNOTSUPP, type, IOMMU_VEVENTQ_TYPE_DEFAULT);
	test_err_cmd(EINVAL, veventq_depth, 0);
	test_err_cmd(EINVAL, veventq_depth, (1U << 19) + 1);
	test_err_cmd(EINVAL, veventq_depth, UINT32_MAX);
	/* IDs that never were, and those of objects of another kind */
	test_err_cmd(ENOENT, viommu_id, 0);
	test_err_cmd(ENOENT, viommu_id, UINT32_MAX);
	test_err_cmd(ENOENT, viommu_id, vm->device_id);
	test_err_cmd(ENOENT, viommu_id, vm->parent_id);
	test_err_cmd(ENOENT, viommu_id, guest->nested_id);
	test_err_cmd(ENOENT, viommu_id, guest->dev.vdevice_id);

	/* Nothing of this has left a queue behind that takes events */
	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));
	queue_alloc(1U << 19);
	EXPECT_EQ(id, guest->queue_id);
	id = free_id(vm->fd);
	fd = free_fd();
	test_err_cmd(EEXIST, veventq_depth, 1);
#undef test_err_cmd
	trigger();
	EXPECT_VEVENT(0);
}

TEST_F(iommufd_veventq, alloc_size)
{
	struct iommu_veventq_alloc cmd = {
		.viommu_id = self->guest.viommu_id,
		.type = QUEUE_TYPE,
		.veventq_depth = 1,
	};
	int fd = free_fd();

	ASSERT_EQ(28, offsetofend(typeof(cmd), out_veventq_fd));
	ASSERT_EQ(32, sizeof(cmd));
	SIZE_SWEEP(self->guest.vm.fd, IOMMU_VEVENTQ_ALLOC, cmd, out_veventq_fd,
		   out_veventq_id,
		   .file = offsetof(typeof(cmd), out_veventq_fd));
	EXPECT_EQ(fd, free_fd());
}

/* The answer cannot be given, so there is no queue */
TEST_F(iommufd_veventq, L12_readonly_argument)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest *guest = &self->guest;
	uint32_t id = free_id(guest->vm.fd);
	int fd = free_fd();

	*cmd = (struct iommu_veventq_alloc){
		.size = sizeof(*cmd),
		.viommu_id = guest->viommu_id,
		.type = QUEUE_TYPE,
		.veventq_depth = 1,
	};
	EXPECT_ERRNO(EFAULT, ioctl_readonly(guest->vm.fd, IOMMU_VEVENTQ_ALLOC));

	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));
	EXPECT_ERRNO(ENOENT, vm_destroy(&guest->vm, id));
	EXPECT_EQ(id, free_id(guest->vm.fd));
	EXPECT_EQ(fd, free_fd());

	queue_alloc(1);
	EXPECT_EQ(id, guest->queue_id);
	EXPECT_EQ(fd, guest->queue);
	trigger();
	EXPECT_VEVENT(0);
}

/* Nor if there is no number for its file */
TEST_F(iommufd_veventq, L12_no_file_descriptor)
{
	struct guest *guest = &self->guest;
	uint32_t id = free_id(guest->vm.fd);
	struct rlimit limit, none;
	int fd = free_fd();

	ASSERT_NE(-1, fd);
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	EXPECT_ERRNO(EMFILE, guest_queue(guest, 1));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));

	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));
	EXPECT_EQ(id, free_id(guest->vm.fd));
	queue_alloc(1);
	EXPECT_EQ(id, guest->queue_id);
	EXPECT_EQ(fd, guest->queue);
}

/* One queue of each type; the next one begins anew */
TEST_F(iommufd_veventq, one_per_type)
{
	struct guest *guest = &self->guest;
	uint32_t other_id, id;
	int other, fd;

	queue_alloc(2);
	EXPECT_ERRNO(EEXIST, guest_queue_of(guest, QUEUE_TYPE, 2, &id, &fd));
	ASSERT_EQ(0, guest_queue_of(guest, UINT32_MAX, 2, &other_id, &other));
	ASSERT_NE(guest->queue_id, other_id);

	/* It is the other queue's business what comes there */
	trigger();
	EXPECT_VEVENT(0);
	EXPECT_EMPTY_OF(other);
	trigger_many(3);

	/* It is there until it is destroyed, with its file closed or not */
	ASSERT_EQ(0, close(guest->queue));
	guest->queue = -1;
	EXPECT_ERRNO(EEXIST, guest_queue_of(guest, QUEUE_TYPE, 2, &id, &fd));
	trigger();
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));

	/* What the last one had is gone with it */
	queue_alloc(2);
	EXPECT_EMPTY();
	trigger();
	EXPECT_VEVENT(0);
	EXPECT_EMPTY();
	EXPECT_EMPTY_OF(other);
	ASSERT_EQ(0, close(other));
	ASSERT_EQ(0, vm_destroy(&guest->vm, other_id));
}

/* A queue whose file is duplicated is in use until all of them are closed */
TEST_F(iommufd_veventq, dup)
{
	struct guest *guest = &self->guest;
	int fd;

	queue_alloc(2);
	fd = dup(guest->queue);
	ASSERT_NE(-1, fd);
	trigger_many(2);
	EXPECT_VEVENT_OF(fd, 0, VIRT_ID);
	ASSERT_EQ(0, close(guest->queue));
	EXPECT_ERRNO(EBUSY, vm_destroy(&guest->vm, guest->queue_id));
	guest->queue = fd;
	EXPECT_VEVENT(1);
	ASSERT_EQ(0, close(fd));
	guest->queue = -1;
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
}

/* Closing the iommufd finds an order, with events there and not */
TEST_F(iommufd_veventq, close_queue_first)
{
	uint32_t id;
	int fd;

	queue_alloc(2);
	ASSERT_EQ(0, guest_queue_of(&self->guest, 1, 1, &id, &fd));
	trigger_many(3);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(self->guest.queue));
	self->guest.queue = -1;
	ASSERT_EQ(0, close(self->guest.vm.fd));
	self->guest.vm.fd = -1;
}

/* The file of the queue keeps all that it needs */
TEST_F(iommufd_veventq, close_iommufd_first)
{
	queue_alloc(2);
	trigger_many(3);
	ASSERT_EQ(0, close(self->guest.vm.fd));
	self->guest.vm.fd = -1;

	EXPECT_EQ(POLLIN, poll_now(self->guest.queue));
	EXPECT_VEVENT(0);
	EXPECT_VEVENT(1);
	EXPECT_LOST(2);
	EXPECT_EMPTY();
	ASSERT_EQ(0, close(self->guest.queue));
	self->guest.queue = -1;
}

TEST_F(iommufd_veventq, L6_close_iommufd_then_unregister)
{
	queue_alloc(2);
	trigger();
	ASSERT_EQ(0, close(self->guest.vm.fd));
	self->guest.vm.fd = -1;
	unregister();
	EXPECT_EQ(POLLIN, poll_now(self->guest.queue) & POLLIN);
	EXPECT_VEVENT(0);
	EXPECT_GONE();
}

TEST_F(iommufd_veventq, read_sizes)
{
	struct vevent events[2];
	int fd;
	size_t size;

	queue_alloc(4);
	fd = self->guest.queue;

	/* Less than a header is an error also when there is nothing */
	for (size = 0; size != sizeof(events[0].header); size++)
		EXPECT_ERRNO(EINVAL, read(fd, events, size));
	for (; size <= sizeof(events); size++)
		EXPECT_EQ(0, read(fd, events, size));

	/* Neither the header, nor the data, nor a part of them */
	trigger();
	for (size = 0; size != sizeof(events[0]); size++) {
		memset(events, 0xa5, sizeof(events));
		EXPECT_ERRNO(EINVAL, read(fd, events, size));
		EXPECT_EQ(0xa5a5a5a5, events[0].header.flags);
		EXPECT_EQ(POLLIN, poll_now(fd));
	}
	EXPECT_VEVENT(0);
	EXPECT_EMPTY();

	/* The second one does not fit, and what is beyond the first is not touched */
	for (size = sizeof(events[0]); size != sizeof(events); size++) {
		trigger_many(2);
		memset(events, 0xa5, sizeof(events));
		EXPECT_EQ(sizeof(events[0]), read(fd, events, size));
		EXPECT_EQ(0, events[0].header.flags);
		EXPECT_EQ(VIRT_ID, events[0].data.virt_id);
		EXPECT_EQ(0xa5a5a5a5, events[1].header.flags);
		EXPECT_EQ(0xa5a5a5a5, events[1].data.virt_id);
		EXPECT_EQ(POLLIN, poll_now(fd));
		EXPECT_VEVENT(events[0].header.sequence + 1);
		EXPECT_EMPTY();
	}

	/* There is no position in the file */
	trigger();
	EXPECT_ERRNO(ESPIPE, pread(fd, events, sizeof(events), 0));
	EXPECT_ERRNO(ESPIPE, pread(fd, events, sizeof(events), 1));
	EXPECT_ERRNO(ESPIPE, lseek(fd, 0, SEEK_SET));
	EXPECT_ERRNO(ESPIPE, lseek(fd, 1, SEEK_SET));
	EXPECT_EQ(sizeof(events[0]), read(fd, events, sizeof(events)));
	EXPECT_EMPTY();
}

/* Those of one length do not get the memory, nor the bytes, of another one's */
TEST_F(iommufd_veventq, lengths)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_VEVENT_LONG,
		.trigger_vevent = { .dev_id = self->guest.vm.device_id },
	};
	struct iommufd_vevent_header header;
	const unsigned int len[] = { 1, MOCK_EVENT_WORDS, 1, MOCK_EVENT_WORDS };
	uint32_t words[MOCK_EVENT_WORDS];
	char buf[256], *at;
	unsigned int i, n;
	ssize_t size;

	queue_alloc(ARRAY_SIZE(len));
	for (n = 0; n != 5; n++) {
		for (i = 0; i != ARRAY_SIZE(len); i++) {
			if (len[(n + i) % ARRAY_SIZE(len)] == 1) {
				trigger();
				continue;
			}
			ASSERT_EQ(0, ioctl(self->guest.vm.fd, IOMMU_TEST_CMD,
					   &cmd));
		}
		size = read(self->guest.queue, buf, sizeof(buf));
		for (i = 0, at = buf; i != ARRAY_SIZE(len); i++) {
			unsigned int num = len[(n + i) % ARRAY_SIZE(len)];

			memcpy(&header, at, sizeof(header));
			at += sizeof(header);
			EXPECT_EQ(ARRAY_SIZE(len) * n + i, header.sequence);
			memcpy(words, at, num * sizeof(words[0]));
			at += num * sizeof(words[0]);
			while (num--)
				EXPECT_EQ(VIRT_ID + num, words[num]);
		}
		EXPECT_EQ(at - buf, size);
	}
	EXPECT_EMPTY();
}

TEST_F(iommufd_veventq, read_several)
{
	struct vevent events[8];
	unsigned int i, n;

	queue_alloc(ARRAY_SIZE(events));
	for (n = 0; n != 10; n++) {
		trigger_many(7);
		/* And room for one more */
		ASSERT_EQ(7 * sizeof(events[0]),
			  read(self->guest.queue, events, sizeof(events)));
		for (i = 0; i != 7; i++) {
			EXPECT_EQ(0, events[i].header.flags);
			EXPECT_EQ(7 * n + i, events[i].header.sequence);
			EXPECT_EQ(VIRT_ID, events[i].data.virt_id);
		}
		EXPECT_EMPTY();
	}
}

/* Without memory to write it to, the event stays where it is */
TEST_F(iommufd_veventq, read_bad_buffer)
{
	void *end = buffer + PAGE_SIZE;
	struct vevent event;
	size_t size;
	int fd;

	ASSERT_EQ(0, mprotect(end, PAGE_SIZE, PROT_NONE));
	queue_alloc(2);
	fd = self->guest.queue;

	/* There is nothing that could be written */
	EXPECT_EQ(0, read(fd, end, sizeof(event)));

	trigger_many(2);
	for (size = 0; size != sizeof(event); size++) {
		EXPECT_ERRNO(EFAULT, read(fd, end - size, sizeof(event)));
		EXPECT_EQ(POLLIN, poll_now(fd));
	}
	/* The first one is not read twice if it is the second that has no place */
	EXPECT_EQ(sizeof(event),
		  read(fd, end - sizeof(event), 2 * sizeof(event)));
	memcpy(&event, end - sizeof(event), sizeof(event));
	EXPECT_EQ(0, event.header.sequence);
	EXPECT_EQ(VIRT_ID, event.data.virt_id);
	EXPECT_VEVENT(1);
	EXPECT_EMPTY();

	/* That events were lost has its place in memory, too */
	trigger_many(3);
	EXPECT_EQ(2 * sizeof(event), read(fd, end - 2 * sizeof(event),
					  2 * sizeof(event) + LOST_SIZE));
	for (size = 0; size != LOST_SIZE; size++) {
		EXPECT_ERRNO(EFAULT, read(fd, end - size, sizeof(event)));
		EXPECT_EQ(POLLIN, poll_now(fd));
	}
	EXPECT_LOST(4);
	EXPECT_EMPTY();
}

/* Those that were not queued left a gap in the numbers */
TEST_F(iommufd_veventq, lost_in_the_middle)
{
	queue_alloc(3);
	trigger_many(5);
	EXPECT_VEVENT(0);
	/* There is room again, and an event for it: no need to tell any more */
	trigger();
	EXPECT_VEVENT(1);
	EXPECT_VEVENT(2);
	EXPECT_VEVENT(5);
	EXPECT_EMPTY();
	trigger();
	EXPECT_VEVENT(6);
	EXPECT_EMPTY();
}

/* With nothing behind them that could have a number, a header tells */
TEST_F(iommufd_veventq, lost_at_the_tail)
{
	struct {
		struct vevent event[2];
		struct iommufd_vevent_header lost;
		uint8_t more[sizeof(struct vevent)];
	} out;
	const size_t size = offsetof(typeof(out), more);
	struct iommufd_vevent_header lost;
	unsigned int i;
	int fd;

	queue_alloc(2);
	fd = self->guest.queue;
	for (i = 0; i != 3; i++) {
		trigger_many(2 + 3);
		ASSERT_EQ(size, read(fd, &out, sizeof(out)));
		EXPECT_EQ(0, out.event[0].header.flags);
		EXPECT_EQ(5 * i, out.event[0].header.sequence);
		EXPECT_EQ(0, out.event[1].header.flags);
		EXPECT_EQ(5 * i + 1, out.event[1].header.sequence);
		EXPECT_EQ(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, out.lost.flags);
		EXPECT_EQ(5 * i + 4, out.lost.sequence);
		EXPECT_EMPTY();
	}

	/* It is the last in the queue, and what does not fit stays there */
	trigger_many(4);
	ASSERT_EQ(sizeof(out.event), read(fd, &out, size - 1));
	EXPECT_EQ(POLLIN, poll_now(fd));
	for (i = 0; i != LOST_SIZE; i++)
		EXPECT_ERRNO(EINVAL, read(fd, &lost, i));
	EXPECT_EQ(POLLIN, poll_now(fd));
	ASSERT_EQ(sizeof(lost), read(fd, &lost, sizeof(lost)));
	EXPECT_EQ(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, lost.flags);
	EXPECT_EQ(18, lost.sequence);
	EXPECT_EMPTY();

	/* It goes when an event comes that is not lost */
	trigger_many(3);
	EXPECT_VEVENT(19);
	EXPECT_VEVENT(20);
	EXPECT_EQ(POLLIN, poll_now(fd));
	trigger();
	EXPECT_VEVENT(22);
	EXPECT_EMPTY();

	/* It goes also if it has been read: the next event follows the last */
	trigger_many(3);
	EXPECT_VEVENT(23);
	EXPECT_VEVENT(24);
	EXPECT_LOST(25);
	trigger();
	EXPECT_VEVENT(26);
	EXPECT_EMPTY();
}

TEST_F(iommufd_veventq, lost_with_depth_1)
{
	queue_alloc(1);
	trigger();
	EXPECT_VEVENT(0);
	EXPECT_EMPTY();
	trigger_many(3);
	EXPECT_VEVENT(1);
	EXPECT_LOST(3);
	EXPECT_EMPTY();
	trigger_many(2);
	EXPECT_VEVENT(4);
	trigger();
	EXPECT_VEVENT(6);
	EXPECT_EMPTY();
}

TEST_F(iommufd_veventq, poll)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct epoll_event edge = { .events = EPOLLIN | EPOLLET };
	int level_fd, edge_fd;
	struct epoll_event out;
	int fd;

	queue_alloc(1);
	fd = self->guest.queue;
	level_fd = epoll_create1(0);
	ASSERT_NE(-1, level_fd);
	edge_fd = epoll_create1(0);
	ASSERT_NE(-1, edge_fd);
	ASSERT_EQ(0, epoll_ctl(level_fd, EPOLL_CTL_ADD, fd, &event));
	ASSERT_EQ(0, epoll_ctl(edge_fd, EPOLL_CTL_ADD, fd, &edge));

	EXPECT_EQ(0, poll_now(fd));
	EXPECT_EQ(0, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(0, epoll_wait(edge_fd, &out, 1, 0));

	/* An event, and a loss, each are an edge of their own */
	trigger();
	EXPECT_EQ(POLLIN, poll_now(fd));
	EXPECT_EQ(1, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(EPOLLIN, out.events);
	EXPECT_EQ(1, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(1, epoll_wait(edge_fd, &out, 1, 0));
	EXPECT_EQ(EPOLLIN, out.events);
	EXPECT_EQ(0, epoll_wait(edge_fd, &out, 1, 0));
	trigger();
	EXPECT_EQ(1, epoll_wait(edge_fd, &out, 1, 0));
	EXPECT_EQ(0, epoll_wait(edge_fd, &out, 1, 0));

	EXPECT_VEVENT(0);
	EXPECT_EQ(POLLIN, poll_now(fd));
	EXPECT_EQ(1, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(EPOLLIN, out.events);
	EXPECT_LOST(1);
	EXPECT_EQ(0, poll_now(fd));
	EXPECT_EQ(0, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(0, epoll_wait(edge_fd, &out, 1, 0));

	unregister();
	EXPECT_EQ(POLLHUP, poll_now(fd));
	EXPECT_EQ(1, epoll_wait(level_fd, &out, 1, 0));
	EXPECT_EQ(EPOLLHUP, out.events);
	EXPECT_EQ(1, epoll_wait(edge_fd, &out, 1, 0));
	EXPECT_EQ(EPOLLHUP, out.events);
	ASSERT_EQ(0, close(level_fd));
	ASSERT_EQ(0, close(edge_fd));
}

/* A thread that sleeps in poll() until there is something */
struct sleeper {
	struct call call;
	short revents;
};

static int call_poll(int fd, uint32_t id, struct call *call)
{
	struct sleeper *sleeper = call->arg;
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };
	int ret;

	ret = poll(&pollfd, 1, -1);
	sleeper->revents = pollfd.revents;
	return ret == 1 ? 0 : -1;
}

static void sleeper_start(struct __test_metadata *_metadata,
			  struct sleeper *sleeper, int fd)
{
	const pid_t *tid = &sleeper->call.tid;

	sleeper->call = CALL(poll, fd, 0, .arg = sleeper);
	call_start(&sleeper->call);
	WAIT_WHILE(!thread_sleeps(__atomic_load_n(tid, __ATOMIC_ACQUIRE)));
}

TEST_F(iommufd_veventq, poll_wakes)
{
	struct sleeper sleeper[2];
	unsigned int i, irq;

	queue_alloc(1);
	for (irq = 0; irq != 2; irq++) {
		for (i = 0; i != 2; i++)
			sleeper_start(_metadata, &sleeper[i],
				      self->guest.queue);
		EXPECT_EQ(0, call_is_done(&sleeper[0].call));
		EXPECT_EQ(0, call_is_done(&sleeper[1].call));
		ASSERT_EQ(0, guest_trigger_in(&self->guest, irq));
		for (i = 0; i != 2; i++) {
			ASSERT_EQ(0, call_end(&sleeper[i].call));
			EXPECT_EQ(POLLIN, sleeper[i].revents);
		}
		EXPECT_VEVENT(irq);
		EXPECT_EMPTY();
	}
}

/* There are no events if nobody wants them, or nobody could tell whose they are */
TEST_F(iommufd_veventq, not_reported)
{
	struct guest *guest = &self->guest;
	struct guest_dev dev;
	uint32_t other_id;
	bool irq;
	int fd;

	/* Not of a mock device, or of no device */
	EXPECT_ERRNO(ENOENT, _test_cmd_trigger_vevent(guest->vm.fd, 0, false));
	EXPECT_ERRNO(ENOENT,
		     _test_cmd_trigger_vevent(guest->vm.fd, guest->viommu_id,
					      false));

	/* Without a queue, or with one of another type only */
	for (irq = false;; irq = true) {
		EXPECT_ERRNO(EOPNOTSUPP, guest_trigger_in(guest, irq));
		if (irq)
			break;
	}
	ASSERT_EQ(0, guest_queue_of(guest, QUEUE_TYPE + 1, 1, &other_id, &fd));
	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));
	EXPECT_EMPTY_OF(fd);
	ASSERT_EQ(0, close(fd));

	/* Not attached to the vIOMMU */
	queue_alloc(1);
	ASSERT_EQ(0, guest_plug(guest, self->iommu_id, &dev));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, &dev));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(guest->vm.fd, guest->viommu_id,
					     dev.device_id, VIRT_ID + 1,
					     &dev.vdevice_id));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, &dev));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(guest->vm.fd, dev.stdev_id,
						   guest->nested_id, NULL));
	ASSERT_EQ(0, dev_trigger(guest, &dev));
	EXPECT_VEVENT_OF(guest->queue, 0, VIRT_ID + 1);

	/* Not any more, and back again */
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(guest->vm.fd, dev.stdev_id,
						   guest->vm.ioas_id, NULL));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, &dev));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(guest->vm.fd, dev.stdev_id,
						   guest->nested_id, NULL));
	ASSERT_EQ(0, dev_trigger(guest, &dev));
	EXPECT_VEVENT_OF(guest->queue, 1, VIRT_ID + 1);

	/* Without a vDEVICE */
	ASSERT_EQ(0, vm_destroy(&guest->vm, dev.vdevice_id));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, &dev));
	/* What was not for the queue has no number in it */
	trigger();
	EXPECT_VEVENT(2);
	EXPECT_EMPTY();
}

/*
 * A virtual ID is given to another device while the one that had it stays attached:
 * events tell who has it now.
 */
TEST_F(iommufd_veventq, virtual_id_moves)
{
	struct guest *guest = &self->guest;
	struct guest_dev *a = &guest->dev;
	struct guest_dev b;
	uint32_t id;

	queue_alloc(8);
	trigger();
	EXPECT_VEVENT(0);

	ASSERT_EQ(0, vm_destroy(&guest->vm, a->vdevice_id));
	ASSERT_EQ(0, guest_plug(guest, self->iommu_id, &b));
	ASSERT_EQ(0, guest_attach(guest, &b, VIRT_ID));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, a));
	EXPECT_ERRNO(ENOENT,
		     _test_cmd_trigger_vevent(guest->vm.fd, a->device_id,
					      true));
	EXPECT_EMPTY();
	ASSERT_EQ(0, dev_trigger(guest, &b));
	EXPECT_VEVENT(1);

	/* A has another one, and has it at once, for it is still attached */
	EXPECT_ERRNO(EEXIST,
		     _test_cmd_vdevice_alloc(guest->vm.fd, guest->viommu_id,
					     a->device_id, VIRT_ID, &id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(guest->vm.fd, guest->viommu_id,
					     a->device_id, VIRT_ID + 1,
					     &a->vdevice_id));
	ASSERT_EQ(0, dev_trigger(guest, a));
	ASSERT_EQ(0, dev_trigger(guest, &b));
	EXPECT_VEVENT_OF(guest->queue, 2, VIRT_ID + 1);
	EXPECT_VEVENT(3);
	EXPECT_EMPTY();

	/* And they change places */
	ASSERT_EQ(0, vm_destroy(&guest->vm, a->vdevice_id));
	ASSERT_EQ(0, vm_destroy(&guest->vm, b.vdevice_id));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, a));
	EXPECT_ERRNO(ENOENT, dev_trigger(guest, &b));
	ASSERT_EQ(0, guest_attach(guest, a, VIRT_ID));
	ASSERT_EQ(0, guest_attach(guest, &b, VIRT_ID + 1));
	ASSERT_EQ(0, dev_trigger(guest, a));
	ASSERT_EQ(0, dev_trigger(guest, &b));
	EXPECT_VEVENT(4);
	EXPECT_VEVENT_OF(guest->queue, 5, VIRT_ID + 1);
	EXPECT_EMPTY();
}

/* The queue is the vIOMMU's. A device goes, another one has its place. */
TEST_F(iommufd_veventq, L1_unplug_and_replug)
{
	struct guest *guest = &self->guest;
	struct guest_dev dev;
	uint32_t i;

	queue_alloc(8);
	for (i = 0; i != 3; i++) {
		trigger();
		ASSERT_EQ(0, vm_unplug(&guest->vm));
		EXPECT_ERRNO(ENOENT, guest_trigger(guest));
		EXPECT_VEVENT(i);
		EXPECT_EMPTY();
		ASSERT_EQ(0, guest_plug(guest, self->iommu_id, &dev));
		ASSERT_EQ(0, guest_attach(guest, &dev, VIRT_ID));
		guest->dev = dev;
		guest->vm.stdev_id = dev.stdev_id;
		guest->vm.device_id = dev.device_id;
	}
}

TEST_F(iommufd_veventq, hard_interrupts)
{
	struct guest *guest = &self->guest;
	uint32_t i;

	queue_alloc(4);
	for (i = 0; i != 6; i++)
		ASSERT_EQ(0, guest_trigger_in(guest, true));
	for (i = 0; i != 4; i++)
		EXPECT_VEVENT(i);
	EXPECT_LOST(5);
	EXPECT_EMPTY();

	/* They come in turns with others */
	trigger();
	ASSERT_EQ(0, guest_trigger_in(guest, true));
	EXPECT_VEVENT(6);
	EXPECT_VEVENT(7);
	EXPECT_EMPTY();
}

/* The core does not mix up queues; nor does it know which types a driver has */
TEST_F(iommufd_veventq, two_types)
{
	static const uint32_t types[] = { 1, QUEUE_TYPE - 1, QUEUE_TYPE + 1,
					  UINT32_MAX };
	struct guest *guest = &self->guest;
	uint32_t id[ARRAY_SIZE(types)];
	int fd[ARRAY_SIZE(types)];
	unsigned int i;

	for (i = 0; i != ARRAY_SIZE(types); i++)
		ASSERT_EQ(0,
			  guest_queue_of(guest, types[i], 1, &id[i], &fd[i]));
	queue_alloc(2);
	trigger_many(3);
	for (i = 0; i != ARRAY_SIZE(types); i++) {
		EXPECT_EMPTY_OF(fd[i]);
		/* Destroying one does nothing to the others */
		ASSERT_EQ(0, close(fd[i]));
		ASSERT_EQ(0, vm_destroy(&guest->vm, id[i]));
	}
	EXPECT_VEVENT(0);
	EXPECT_VEVENT(1);
	EXPECT_LOST(2);
	trigger();
	EXPECT_VEVENT(3);
	EXPECT_EMPTY();
}

/* Two VMs on one physical IOMMU, and two vIOMMUs in one VM, get their own events */
TEST_F(iommufd_veventq, two_files)
{
	struct guest *guest = &self->guest;
	uint32_t viommu_id, queue_id;
	struct guest other;
	int queue;

	queue_alloc(4);
	ASSERT_EQ(0, guest_open(&other, self->iommu_id, VIRT_ID));
	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(&other));
	ASSERT_EQ(0, guest_queue(&other, 4));
	ASSERT_EQ(0, vm_viommu(&guest->vm, &viommu_id));
	ASSERT_EQ(0, _test_cmd_veventq_alloc(guest->vm.fd, viommu_id,
					     QUEUE_TYPE, 4, &queue_id, &queue));

	trigger_many(2);
	EXPECT_EMPTY_OF(other.queue);
	ASSERT_EQ(0, guest_trigger(&other));
	EXPECT_VEVENT(0);
	EXPECT_VEVENT(1);
	EXPECT_EMPTY();
	EXPECT_VEVENT_OF(other.queue, 0, VIRT_ID);
	EXPECT_EMPTY_OF(other.queue);
	EXPECT_EMPTY_OF(queue);

	/* One goes, the other is none the wiser */
	ASSERT_EQ(0, close(other.queue));
	ASSERT_EQ(0, close(other.vm.fd));
	trigger();
	EXPECT_VEVENT(2);
	EXPECT_EMPTY();
	ASSERT_EQ(0, close(queue));
}

/* What the readers of a queue have seen, by number */
struct seen {
	unsigned int total;
	/* How often as an event, and as the last of those lost */
	uint8_t *events;
	uint8_t *losses;
	/* By virtual ID */
	unsigned int of[2];
	int stop;
	unsigned int errors;
};

static void seen_error(struct seen *seen)
{
	__atomic_add_fetch(&seen->errors, 1, __ATOMIC_RELAXED);
}

/* One read() until it gives less than nothing; what a reader sees is in order */
static int call_reader(int fd, uint32_t id, struct call *call)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };
	struct seen *seen = call->arg;
	struct vevent *event;
	char out[100];
	int64_t last = -1;
	ssize_t len, pos;
	uint32_t seq;
	int stop;

	for (;;) {
		stop = __atomic_load_n(&seen->stop, __ATOMIC_ACQUIRE);
		len = read(fd, out, sizeof(out));
		if (len < 0)
			return -1;
		if (!len) {
			if (stop)
				return 0;
			if (poll(&pollfd, 1, 10) < 0)
				return -1;
		}
		for (pos = 0; pos < len;) {
			event = (void *)out + pos;
			seq = event->header.sequence;
			if (seq >= seen->total || seq <= last) {
				seen_error(seen);
				return 0;
			}
			last = seq;
			if (event->header.flags) {
				__atomic_add_fetch(&seen->losses[seq], 1,
						   __ATOMIC_RELAXED);
				pos += LOST_SIZE;
				continue;
			}
			__atomic_add_fetch(&seen->events[seq], 1,
					   __ATOMIC_RELAXED);
			pos += sizeof(*event);
			if (event->data.virt_id > 1)
				seen_error(seen);
			else
				__atomic_add_fetch(&seen->of[event->data.virt_id],
						   1, __ATOMIC_RELAXED);
		}
	}
}

/* call->arg is how many to trigger; every third one is from an interrupt */
static int call_trigger_many(int fd, uint32_t id, struct call *call)
{
	unsigned int i, number = *(unsigned int *)call->arg;

	for (i = 0; i != number; i++) {
		/* What is lost for lack of memory has a number as well */
		if (_test_cmd_trigger_vevent(fd, id, !(i % 3)) &&
		    errno != ENOMEM)
			return -1;
	}
	return 0;
}

/*
 * Two threads for each of two devices, and three readers. If there is room for all
 * events, all arrive, otherwise the numbers tell how many do not.
 */
static void many_threads(struct __test_metadata *_metadata,
			 struct _test_data_iommufd_veventq *self,
			 unsigned int number, uint32_t depth,
			 unsigned int before)
{
	struct guest_dev dev[2], *one;
	struct guest *guest = &self->guest;
	struct call reader[3], trigger[4];
	unsigned int i, lost = 0;
	bool told = true;
	struct seen seen = { .total = 4 * number + before };

	seen.events = calloc(2, seen.total);
	ASSERT_NE(NULL, seen.events);
	seen.losses = seen.events + seen.total;
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, guest_plug(guest, self->iommu_id, &dev[i]));
		ASSERT_EQ(0, guest_attach(guest, &dev[i], i));
	}
	queue_alloc(depth);
	for (i = 0; i != before; i++)
		ASSERT_EQ(0, dev_trigger(guest, &dev[0]));

	for (i = 0; i != ARRAY_SIZE(trigger); i++) {
		one = &dev[i % 2];
		trigger[i] = CALL(trigger_many, guest->vm.fd, one->device_id,
				  .arg = &number);
		call_start(&trigger[i]);
	}
	for (i = 0; i != ARRAY_SIZE(reader); i++) {
		reader[i] = CALL(reader, guest->queue, 0, .arg = &seen);
		call_start(&reader[i]);
	}
	for (i = 0; i != ARRAY_SIZE(trigger); i++)
		ASSERT_EQ(0, pthread_join(trigger[i].thread, NULL));
	__atomic_store_n(&seen.stop, 1, __ATOMIC_RELEASE);
	for (i = 0; i != ARRAY_SIZE(reader); i++)
		ASSERT_EQ(0, call_end(&reader[i]));
	for (i = 0; i != ARRAY_SIZE(trigger); i++)
		EXPECT_EQ(0, trigger[i].err);

	EXPECT_EQ(0, seen.errors);
	for (i = 0; i != seen.total; i++) {
		/* Once, or lost, and then there is something behind it */
		ASSERT_GE(1, seen.events[i] + seen.losses[i]);
		told = seen.events[i] || seen.losses[i];
		lost += !seen.events[i];
	}
	EXPECT_TRUE(told);
	EXPECT_EQ(seen.total - lost, seen.of[0] + seen.of[1]);
	EXPECT_GE(2 * number + before, seen.of[0]);
	EXPECT_GE(2 * number, seen.of[1]);
	EXPECT_LE(before > depth ? before - depth : 0, lost);
	if (depth >= seen.total)
		EXPECT_EQ(0, lost);
	EXPECT_EMPTY();
	free(seen.events);
}

TEST_F_TIMEOUT(iommufd_veventq, threads, 120)
{
	many_threads(_metadata, self, 3000, 4 * 3000, 0);
}

TEST_F_TIMEOUT(iommufd_veventq, threads_lose_events, 120)
{
	many_threads(_metadata, self, 3000, 8, 40);
}

TEST_F(iommufd_veventq, L6_drain_revoked)
{
	struct guest *guest = &self->guest;
	uint32_t id;
	int fd;

	queue_alloc(2);
	trigger_many(3);
	unregister();

	/* There are no new ones, nor new queues */
	EXPECT_ERRNO(ENODEV, guest_trigger(guest));
	EXPECT_ERRNO(ENODEV, guest_queue_of(guest, QUEUE_TYPE, 1, &id, &fd));
	EXPECT_ERRNO(ENODEV,
		     guest_queue_of(guest, QUEUE_TYPE + 1, 1, &id, &fd));

	EXPECT_EQ(POLLIN, poll_now(guest->queue) & POLLIN);
	EXPECT_ERRNO(EINVAL, read(guest->queue, &id, sizeof(id)));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_NONE));
	EXPECT_ERRNO(EFAULT, read(guest->queue, buffer, PAGE_SIZE));
	EXPECT_VEVENT(0);
	EXPECT_EQ(POLLIN, poll_now(guest->queue) & POLLIN);
	EXPECT_VEVENT(1);
	EXPECT_EQ(POLLIN, poll_now(guest->queue) & POLLIN);
	EXPECT_LOST(2);
	EXPECT_GONE();
	EXPECT_GONE();
	EXPECT_ERRNO(ENODEV, read(guest->queue, buffer, 0));
	EXPECT_ERRNO(ENODEV, read(guest->queue, buffer, PAGE_SIZE));
}

/* One read() gives all that there is, and only the next one says that it was all */
TEST_F(iommufd_veventq, L6_drain_at_once)
{
	struct vevent events[4];

	queue_alloc(2);
	trigger_many(2);
	unregister();
	EXPECT_EQ(2 * sizeof(events[0]),
		  read(self->guest.queue, events, sizeof(events)));
	EXPECT_EQ(0, events[0].header.sequence);
	EXPECT_EQ(1, events[1].header.sequence);
	EXPECT_GONE();
}

/* A revoked queue is an ID, in use until its file is closed, of no vIOMMU */
TEST_F(iommufd_veventq, L6_revoked_queue_is_an_id)
{
	struct guest *guest = &self->guest;
	struct vm *vm = &guest->vm;
	uint32_t id;

	queue_alloc(2);
	trigger();
	ASSERT_EQ(0, vm_unplug(vm));
	unregister();
	ASSERT_EQ(0, vm_plug(vm, 0));
	EXPECT_ERRNO(ENODEV, vm_attach(vm, guest->queue_id));
	EXPECT_ERRNO(EBUSY, vm_destroy(vm, guest->queue_id));
	ASSERT_EQ(0, vm_destroy(vm, guest->nested_id));
	ASSERT_EQ(0, vm_destroy(vm, guest->viommu_id));
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm->fd, &id));
	EXPECT_NE(guest->queue_id, id);
	EXPECT_ERRNO(EBUSY, vm_destroy(vm, guest->queue_id));

	/* The vIOMMU was not needed to read it */
	EXPECT_VEVENT(0);
	EXPECT_GONE();
	ASSERT_EQ(0, close(guest->queue));
	guest->queue = -1;
	ASSERT_EQ(0, vm_destroy(vm, guest->queue_id));
	EXPECT_ERRNO(ENOENT, vm_destroy(vm, guest->queue_id));
}

/* One that is closed, with events unread, can be destroyed after as well */
TEST_F(iommufd_veventq, L6_destroy_closed_queue)
{
	struct guest *guest = &self->guest;

	queue_alloc(2);
	trigger_many(3);
	ASSERT_EQ(0, close(guest->queue));
	guest->queue = -1;
	unregister();
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
}

TEST_F(iommufd_veventq, L6_poller_wakes)
{
	struct sleeper sleeper[2];
	unsigned int i;

	queue_alloc(2);
	for (i = 0; i != 2; i++)
		sleeper_start(_metadata, &sleeper[i], self->guest.queue);
	EXPECT_EQ(0, call_is_done(&sleeper[0].call));
	EXPECT_EQ(0, call_is_done(&sleeper[1].call));
	unregister();
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, call_end(&sleeper[i].call));
		EXPECT_EQ(POLLHUP, sleeper[i].revents);
	}
	EXPECT_GONE();
}

/* Two who each want to be the only one that is woken; here both have to be */
TEST_F(iommufd_veventq, L6_exclusive_pollers_wake)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLEXCLUSIVE };
	struct sleeper sleeper[2];
	int epoll_fd[2];
	unsigned int i;

	queue_alloc(2);
	for (i = 0; i != 2; i++) {
		epoll_fd[i] = epoll_create1(EPOLL_CLOEXEC);
		ASSERT_NE(-1, epoll_fd[i]);
		ASSERT_EQ(0, epoll_ctl(epoll_fd[i], EPOLL_CTL_ADD,
				       self->guest.queue, &event));
		sleeper_start(_metadata, &sleeper[i], epoll_fd[i]);
	}
	unregister();
	for (i = 0; i != 2; i++) {
		EXPECT_EQ(0, call_end(&sleeper[i].call));
		ASSERT_EQ(1, epoll_wait(epoll_fd[i], &event, 1, 0));
		EXPECT_EQ(EPOLLHUP, event.events);
		ASSERT_EQ(0, close(epoll_fd[i]));
	}
}

static int call_trigger(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_trigger_vevent(fd, id, false);
}

/* Allocate a queue, and be stopped when the answer is written to @cmd's page */
static int stall_alloc(struct __test_metadata *_metadata, struct guest *guest,
		       struct iommu_veventq_alloc *cmd, uint32_t type,
		       struct call *alloc)
{
	int uffd;

	*cmd = (struct iommu_veventq_alloc){
		.size = sizeof(*cmd),
		.viommu_id = guest->viommu_id,
		.type = type,
		.veventq_depth = 4,
	};
	*alloc = CALL(ioctl, guest->vm.fd, IOMMU_VEVENTQ_ALLOC, .arg = cmd);
	uffd = uffd_open(cmd, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		return -1;
	call_start(alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	return uffd;
}

/* Triggered in a thread, so that it is seen if it waits for the allocation */
static int trigger_ends(struct guest *guest)
{
	struct call trigger = CALL(trigger, guest->vm.fd, guest->vm.device_id);

	call_start(&trigger);
	return call_end(&trigger);
}

/* A queue that is made slowly does not hold up the events of another one */
TEST_F(iommufd_veventq, L4_alloc_stalled_other_queue)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest other;
	struct call alloc;
	int uffd;

	queue_alloc(4);
	ASSERT_EQ(0, guest_open(&other, self->iommu_id, VIRT_ID));
	ASSERT_EQ(0, guest_queue(&other, 4));
	uffd = stall_alloc(_metadata, &self->guest, cmd, QUEUE_TYPE + 1,
			   &alloc);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);

	EXPECT_EQ(0, trigger_ends(&self->guest));
	EXPECT_VEVENT(0);
	/* Nor those of other VMs */
	EXPECT_EQ(0, trigger_ends(&other));
	EXPECT_VEVENT_OF(other.queue, 0, VIRT_ID);
	ASSERT_EQ(0, close(other.queue));
	ASSERT_EQ(0, close(other.vm.fd));

	ASSERT_EQ(0, unstall(_metadata, &alloc, uffd, cmd, true));
	trigger();
	EXPECT_VEVENT(1);
	EXPECT_EMPTY();
	EXPECT_EMPTY_OF(cmd->out_veventq_fd);
	ASSERT_EQ(0, close(cmd->out_veventq_fd));
}

/* The queue itself takes events, if it can be seen already */
TEST_F(iommufd_veventq, L4_alloc_stalled)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest *guest = &self->guest;
	uint32_t id = free_id(guest->vm.fd);
	struct call alloc;
	int first, uffd;
	uint32_t other;
	int fd;

	uffd = stall_alloc(_metadata, guest, cmd, QUEUE_TYPE, &alloc);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	first = trigger_ends(guest);
	if (first)
		EXPECT_EQ(-EOPNOTSUPP, first);
	EXPECT_ERRNO(EEXIST, guest_queue_of(guest, QUEUE_TYPE, 1, &other, &fd));
	/* It is not there for user space yet */
	EXPECT_ERRNO(ENOENT, vm_destroy(&guest->vm, id));
	EXPECT_ERRNO(EBUSY, vm_destroy(&guest->vm, guest->viommu_id));

	ASSERT_EQ(0, unstall(_metadata, &alloc, uffd, cmd, true));
	guest->queue = cmd->out_veventq_fd;
	EXPECT_EQ(id, cmd->out_veventq_id);
	if (!first)
		EXPECT_VEVENT(0);
	EXPECT_EMPTY();
	trigger();
	EXPECT_VEVENT(first ? 0 : 1);
}

/* And they are gone with it, if it does not come to be */
TEST_F(iommufd_veventq, L12_alloc_stalled_and_failed)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest *guest = &self->guest;
	uint32_t id = free_id(guest->vm.fd);
	struct call alloc;
	int fd = free_fd();
	int uffd;

	uffd = stall_alloc(_metadata, guest, cmd, QUEUE_TYPE, &alloc);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	trigger_ends(guest);
	EXPECT_EQ(-EFAULT, unstall(_metadata, &alloc, uffd, cmd, false));
	EXPECT_ERRNO(EOPNOTSUPP, guest_trigger(guest));
	EXPECT_EQ(id, free_id(guest->vm.fd));
	EXPECT_EQ(fd, free_fd());

	queue_alloc(1);
	EXPECT_EQ(id, guest->queue_id);
	EXPECT_EMPTY();
	trigger();
	EXPECT_VEVENT(0);
}

/* Nor is it waited for. What the allocation gives is a revoked queue. */
TEST_F(iommufd_veventq, L4_alloc_stalled_unregister)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest *guest = &self->guest;
	struct call alloc;
	struct call unreg = CALL(unregister, self->fd, self->iommu_id);
	int reported;
	int uffd;

	uffd = stall_alloc(_metadata, guest, cmd, QUEUE_TYPE, &alloc);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	reported = trigger_ends(guest);
	call_start(&unreg);
	EXPECT_EQ(0, call_end(&unreg));
	ASSERT_EQ(0, unstall(_metadata, &alloc, uffd, cmd, true));

	guest->queue_id = cmd->out_veventq_id;
	guest->queue = cmd->out_veventq_fd;
	if (!reported)
		EXPECT_VEVENT(0);
	EXPECT_GONE();
	EXPECT_ERRNO(EBUSY, vm_destroy(&guest->vm, guest->queue_id));
	ASSERT_EQ(0, close(guest->queue));
	guest->queue = -1;
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
}

TEST_F(iommufd_veventq, L12_alloc_fails_after_revocation)
{
	struct iommu_veventq_alloc *cmd = buffer;
	struct guest *guest = &self->guest;
	uint32_t id = free_id(guest->vm.fd);
	struct call alloc;
	int fd = free_fd();
	int uffd;

	uffd = stall_alloc(_metadata, guest, cmd, QUEUE_TYPE, &alloc);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	trigger_ends(guest);
	unregister();
	EXPECT_EQ(-EFAULT, unstall(_metadata, &alloc, uffd, cmd, false));
	EXPECT_EQ(id, free_id(guest->vm.fd));
	EXPECT_EQ(fd, free_fd());
}

/* @id is how much to read to call->arg, which gives call->out_id */
static int call_read(int fd, uint32_t id, struct call *call)
{
	ssize_t len = read(fd, call->arg, id);

	call->out_id = len;
	return len < 0 ? -1 : 0;
}

/* Read an event, and be stopped when it is written to @page */
static int stall_read(struct __test_metadata *_metadata, int queue, void *page,
		      uint32_t size, struct call *call)
{
	int uffd;

	*call = CALL(read, queue, size, .arg = page);
	/* There has to be a page that could be protected */
	memset(page, 0, PAGE_SIZE);
	uffd = uffd_open(page, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		return -1;
	call_start(call);
	ASSERT_EQ(0, uffd_wait(uffd));
	return uffd;
}

TEST_F(iommufd_veventq, L4_read_stalled)
{
	struct call call;
	struct call unreg = CALL(unregister, self->fd, self->iommu_id);
	struct vevent *event = buffer;
	int uffd;

	queue_alloc(4);
	trigger_many(2);
	uffd = stall_read(_metadata, self->guest.queue, buffer,
			  2 * sizeof(*event), &call);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	/* Events go on, and are not held up by a thread that reads */
	EXPECT_EQ(0, trigger_ends(&self->guest));
	call_start(&unreg);
	EXPECT_EQ(0, call_end(&unreg));
	EXPECT_EQ(0, unstall(_metadata, &call, uffd, buffer, true));
	EXPECT_EQ(2 * sizeof(*event), call.out_id);
	EXPECT_EQ(0, event[0].header.sequence);
	EXPECT_EQ(VIRT_ID, event[0].data.virt_id);
	EXPECT_EQ(1, event[1].header.sequence);
	EXPECT_EQ(VIRT_ID, event[1].data.virt_id);
	EXPECT_VEVENT(2);
	EXPECT_GONE();
}

/* A signal ends the read with the event that it finds in work */
TEST_F(iommufd_veventq, read_signal)
{
	struct sigaction action = { .sa_handler = no_action };
	struct vevent *event = buffer;
	struct call call;
	int uffd;

	ASSERT_EQ(0, sigaction(SIGUSR1, &action, NULL));
	queue_alloc(4);
	trigger_many(2);
	uffd = stall_read(_metadata, self->guest.queue, buffer,
			  2 * sizeof(*event), &call);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	ASSERT_EQ(0, pthread_kill(call.thread, SIGUSR1));
	EXPECT_EQ(0, unstall(_metadata, &call, uffd, buffer, true));
	EXPECT_EQ(sizeof(*event), call.out_id);
	EXPECT_EQ(0, event[0].header.sequence);
	EXPECT_VEVENT(1);
	EXPECT_EMPTY();
}

TEST_F(iommufd_veventq, L4_read_stalled_and_failed)
{
	struct call call;
	int uffd;

	queue_alloc(4);
	trigger_many(2);
	uffd = stall_read(_metadata, self->guest.queue, buffer, 100, &call);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	unregister();
	EXPECT_EQ(-EFAULT, unstall(_metadata, &call, uffd, buffer, false));
	EXPECT_EQ(POLLIN, poll_now(self->guest.queue) & POLLIN);
	EXPECT_VEVENT(0);
	EXPECT_VEVENT(1);
	EXPECT_GONE();
}

/* An event that comes back finds the queue full, and is not lost for that */
TEST_F(iommufd_veventq, failed_read_of_full_queue)
{
	struct call call;
	int uffd;

	queue_alloc(1);
	trigger();
	uffd = stall_read(_metadata, self->guest.queue, buffer, 100, &call);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	/* There may be room for another one meanwhile, or not */
	trigger();
	EXPECT_EQ(-EFAULT, unstall(_metadata, &call, uffd, buffer, false));
	EXPECT_VEVENT(0);
	EXPECT_VEVENT(1);
	EXPECT_EMPTY();
	trigger_many(2);
	EXPECT_VEVENT(2);
	EXPECT_LOST(3);
	EXPECT_EMPTY();
}

/* Nor is the loss of events forgotten; but it is not told when it is past */
TEST_F(iommufd_veventq, failed_read_of_lost)
{
	struct vevent event;
	struct call call;
	int uffd, i;

	queue_alloc(1);
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
		trigger_many(2);
		EXPECT_VEVENT(3 * i);
		uffd = stall_read(_metadata, self->guest.queue, buffer, 100,
				  &call);
		if (uffd == -1)
			SKIP(return, NEEDS_UFFD);
		if (i)
			trigger();
		EXPECT_EQ(-EFAULT,
			  unstall(_metadata, &call, uffd, buffer, false));
		if (i) {
			EXPECT_VEVENT(5);
		} else {
			EXPECT_LOST(1);
			trigger();
			EXPECT_VEVENT(2);
		}
		EXPECT_EQ(0, read(self->guest.queue, &event, sizeof(event)));
	}
}

/* Two have an event each that they cannot write: they come back in their order */
TEST_F(iommufd_veventq, two_failed_reads)
{
	void *page[2] = { buffer, buffer + PAGE_SIZE };
	struct call call[2];
	int uffd[2], i, n;

	queue_alloc(4);
	for (n = 0; n != 2; n++) {
		ASSERT_EQ(0, mprotect(buffer, 2 * PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
		trigger_many(3);
		for (i = 0; i != 2; i++) {
			uffd[i] = stall_read(_metadata, self->guest.queue,
					     page[i], sizeof(struct vevent),
					     &call[i]);
			if (uffd[i] == -1)
				SKIP(return, NEEDS_UFFD);
		}
		for (i = 0; i != 2; i++)
			EXPECT_EQ(-EFAULT, unstall(_metadata, &call[i ^ n],
						   uffd[i ^ n], page[i ^ n],
						   false));
		for (i = 0; i != 3; i++)
			EXPECT_VEVENT(3 * n + i);
		EXPECT_EMPTY();
	}
}

/* A thread that sleeps while another one tries to read learns of the event again */
TEST_F(iommufd_veventq, failed_read_wakes)
{
	struct sleeper sleeper;
	struct call call;
	int uffd, ret;

	queue_alloc(4);
	trigger();
	uffd = stall_read(_metadata, self->guest.queue, buffer, 100, &call);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	if (!poll_now(self->guest.queue))
		sleeper_start(_metadata, &sleeper, self->guest.queue);
	else
		SKIP(return, "an event that is being read is to be seen");
	EXPECT_EQ(-EFAULT, unstall(_metadata, &call, uffd, buffer, false));
	ret = call_end(&sleeper.call);
	EXPECT_EQ(0, ret);
	if (ret) {
		/* It is in nobody's way any more */
		trigger();
		ASSERT_EQ(0, call_end(&sleeper.call));
	}
	EXPECT_EQ(POLLIN, sleeper.revents);
	EXPECT_VEVENT(0);
}

/*
 * Unregister has begun when an allocation is refused, and waits for a driver that
 * is about to report an event. What it reports arrives, or the driver is told.
 */
TEST_F(iommufd_veventq, L3_event_parked)
{
	struct guest *guest = &self->guest;
	struct call event = CALL(trigger, guest->vm.fd, guest->vm.device_id);
	struct call unreg = CALL(unregister, self->fd, self->iommu_id);
	struct vm probe = { .fd = -1 };
	uint32_t queue_id;
	int queue, ret;

	queue_alloc(2);
	trigger();
	park_call(EVENT, &event);
	unregister_begin(_metadata, &unreg, &probe);
	EXPECT_ERRNO(ENODEV, guest_queue_of(guest, QUEUE_TYPE + 1, 1, &queue_id,
					    &queue));
	EXPECT_WAITING(&unreg);
	/* Reading goes on */
	EXPECT_VEVENT(0);
	park(EVENT, RELEASE);
	ret = call_end(&event);
	EXPECT_EQ(0, call_end(&unreg));
	if (!ret)
		EXPECT_VEVENT(1);
	else
		EXPECT_TRUE(ret == -ENOENT || ret == -EOPNOTSUPP);
	EXPECT_GONE();
	ASSERT_EQ(0, close(probe.fd));
}

/* The vDEVICE is destroyed when the event is on its way: it has no ID any more */
TEST_F(iommufd_veventq, event_parked_vdevice_destroyed)
{
	struct guest *guest = &self->guest;
	struct call event = CALL(trigger, guest->vm.fd, guest->vm.device_id);

	queue_alloc(2);
	park_call(EVENT, &event);
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->dev.vdevice_id));
	park(EVENT, RELEASE);
	EXPECT_EQ(-ENOENT, call_end(&event));
	EXPECT_EMPTY();
}

/* And the queue, and another one is made */
TEST_F(iommufd_veventq, event_parked_queue_destroyed)
{
	struct guest *guest = &self->guest;
	struct call event = CALL(trigger, guest->vm.fd, guest->vm.device_id);
	int again;

	for (again = 0; again != 2; again++) {
		queue_alloc(2);
		trigger();
		park_call(EVENT, &event);
		ASSERT_EQ(0, close(guest->queue));
		guest->queue = -1;
		ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
		if (again)
			queue_alloc(2);
		park(EVENT, RELEASE);
		EXPECT_EQ(again ? 0 : -EOPNOTSUPP, call_end(&event));
	}
	EXPECT_VEVENT(0);
	EXPECT_EMPTY();
}

/* Queues of ever new types, each destroyed when the next is there */
struct alloc_loop {
	unsigned int count;
	uint32_t queue_id;
	int queue;
};

static int call_alloc_loop(int fd, uint32_t id, struct call *call)
{
	struct alloc_loop *loop = call->arg;
	uint32_t queue_id, type = 1;
	int ret = 0, queue;

	while (!ret) {
		ret = _test_cmd_veventq_alloc(fd, id, type++, 1, &queue_id,
					      &queue);
		if (!ret && loop->queue != -1) {
			ret = close(loop->queue);
			if (!ret)
				ret = _test_ioctl_destroy(fd, loop->queue_id);
			if (ret)
				errno = EIO;
		}
		if (!ret) {
			loop->queue_id = queue_id;
			loop->queue = queue;
		}
		__atomic_add_fetch(&loop->count, 1, __ATOMIC_RELEASE);
	}
	return ret;
}

TEST_F_TIMEOUT(iommufd_veventq, L5_alloc_races_unregister, 120)
{
	struct alloc_loop loop[2];
	struct call alloc[2];
	struct guest guest[2];
	uint32_t iommu_id;
	int i, n;

	for (i = 0; i != 20; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(0, guest_open(&guest[n], iommu_id, VIRT_ID));
			loop[n] = (struct alloc_loop){ .queue = -1 };
			alloc[n] = CALL(alloc_loop, guest[n].vm.fd,
					guest[n].viommu_id, .arg = &loop[n]);
			call_start(&alloc[n]);
		}
		for (n = 0; n != 2; n++)
			while (__atomic_load_n(&loop[n].count,
					       __ATOMIC_ACQUIRE) < 3)
				ASSERT_EQ(0, call_is_done(&alloc[n]));
		ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(-ENODEV, call_end(&alloc[n]));
			EXPECT_GONE_OF(loop[n].queue);
			EXPECT_ERRNO(EBUSY, vm_destroy(&guest[n].vm,
						       loop[n].queue_id));
			ASSERT_EQ(0, close(loop[n].queue));
			ASSERT_EQ(0,
				  vm_destroy(&guest[n].vm, loop[n].queue_id));
			ASSERT_EQ(0, close(guest[n].vm.fd));
		}
	}
}

static int call_trigger_loop(int fd, uint32_t id, struct call *call)
{
	unsigned int *count = call->arg;

	while (!_test_cmd_trigger_vevent(fd, id, *count & 1))
		__atomic_add_fetch(count, 1, __ATOMIC_RELEASE);
	return -1;
}

/*
 * Events, a reader, the destruction of a queue and the close of a file, all of them
 * while the IOMMU goes away
 */
TEST_F_TIMEOUT(iommufd_veventq, L7_all_race_unregister, 120)
{
	struct call event, reader, destroy, closing, unreg;
	struct guest guest, other;
	uint32_t iommu_id, last;
	struct vevent out;
	unsigned int count;
	struct seen seen;
	ssize_t len;
	int i;

	for (i = 0; i != 30; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		ASSERT_EQ(0, guest_open(&guest, iommu_id, 1));
		ASSERT_EQ(0, guest_queue(&guest, 1000));
		ASSERT_EQ(0, guest_open(&other, iommu_id, VIRT_ID));
		ASSERT_EQ(0, guest_queue(&other, 1000));
		/* One of each VM's is about to be destroyed, or closed */
		ASSERT_EQ(0, close(other.queue));
		ASSERT_EQ(0, _test_cmd_veventq_alloc(guest.vm.fd,
						     guest.viommu_id,
						     QUEUE_TYPE + 1, 1,
						     &last, &other.queue));
		ASSERT_EQ(0, close(other.queue));

		count = 0;
		seen = (struct seen){ .total = 1 << 20 };
		seen.events = calloc(2, seen.total);
		ASSERT_NE(NULL, seen.events);
		seen.losses = seen.events + seen.total;
		event = CALL(trigger_loop, guest.vm.fd, guest.vm.device_id,
			     .arg = &count);
		reader = CALL(reader, guest.queue, 0, .arg = &seen);
		destroy = CALL(destroy, guest.vm.fd, last);
		closing = CALL(close, other.vm.fd, 0);
		unreg = CALL(unregister, self->fd, iommu_id);
		call_start(&event);
		call_start(&reader);
		while (__atomic_load_n(&count, __ATOMIC_ACQUIRE) < 10)
			ASSERT_EQ(0, call_is_done(&event));
		call_start(&unreg);
		call_start(&destroy);
		call_start(&closing);
		ASSERT_EQ(0, call_end(&closing));
		ASSERT_EQ(0, call_end(&destroy));
		ASSERT_EQ(0, call_end(&unreg));
		/* Until it is detached, without a queue, or the device is gone */
		len = call_end(&event);
		EXPECT_TRUE(len == -ENOENT || len == -EOPNOTSUPP ||
			    len == -ENODEV || len == -ENOMEM);
		ASSERT_EQ(-ENODEV, call_end(&reader));
		EXPECT_EQ(0, seen.errors);

		/* What was reported is there, or its loss was told */
		while ((len = read(guest.queue, &out, sizeof(out))) > 0)
			EXPECT_EQ(0, len);
		EXPECT_GONE_OF(guest.queue);
		EXPECT_EQ(1, seen.events[count - 1] + seen.losses[count - 1]);
		EXPECT_EQ(0, seen.events[count] + seen.losses[count]);
		free(seen.events);
		ASSERT_EQ(0, close(guest.queue));
		ASSERT_EQ(0, vm_destroy(&guest.vm, guest.queue_id));
		ASSERT_EQ(0, close(guest.vm.fd));
	}
}

/* A memory cgroup of its own, in which a queue can be allocated */
FIXTURE(iommufd_veventq_memcg)
{
	struct _test_data_iommufd_veventq veventq;
	char own[512];
	char path[64];
};

#define CGROUP_ROOT "/sys/fs/cgroup"

static int cgroup_write(const char *cgroup, const char *name, const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", cgroup, name);
	return write_file(path, text);
}

static int cgroup_read(const char *cgroup, const char *name, char *text,
		       size_t size)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", cgroup, name);
	return read_file(path, text, size);
}

/* memory.current in bytes, or -1 */
static long long cgroup_memory(const char *cgroup)
{
	char text[32];

	if (cgroup_read(cgroup, "memory.current", text, sizeof(text)))
		return -1;
	return strtoll(text, NULL, 10);
}

/* The cgroup that the test is in */
static int cgroup_own(char *cgroup, size_t size)
{
	char text[256], *end;

	if (cgroup_read("/proc/self", "cgroup", text, sizeof(text)) ||
	    strncmp(text, "0::/", 4))
		return -1;
	end = strchr(text, '\n');
	if (end)
		*end = 0;
	snprintf(cgroup, size, CGROUP_ROOT "%s", text + 3);
	return 0;
}

FIXTURE_SETUP(iommufd_veventq_memcg)
{
	struct guest *guest = &self->veventq.guest;
	cpu_set_t cpus;

	/* Memory is charged ahead for each CPU, so be on one of them only */
	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpus), &cpus));

	self->veventq.fd = -1;
	guest->queue = -1;
	guest->vm.fd = -1;
	snprintf(self->path, sizeof(self->path),
		 CGROUP_ROOT "/iommufd_veventq.%d", getpid());
	if (cgroup_own(self->own, sizeof(self->own)))
		SKIP(return, "needs cgroup2");
	/* Perhaps it is enabled already */
	cgroup_write(CGROUP_ROOT, "cgroup.subtree_control", "+memory");
	if (mkdir(self->path, 0700))
		SKIP(return, "needs cgroup2 and may make a cgroup");
	if (cgroup_memory(self->path) < 0) {
		rmdir(self->path);
		SKIP(return, "needs memory cgroups");
	}

	self->veventq.fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->veventq.fd);
	ASSERT_EQ(0, unpark_all(self->veventq.fd));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->veventq.fd, 0,
					      &self->veventq.iommu_id));
	ASSERT_EQ(0, guest_open(guest, self->veventq.iommu_id, VIRT_ID));

	/* What the queue will hold is for this cgroup, whoever triggers events */
	ASSERT_EQ(0, cgroup_write(self->path, "cgroup.procs", "0"));
	ASSERT_EQ(0, guest_queue(guest, 1 << 19));
	ASSERT_EQ(0, cgroup_write(self->own, "cgroup.procs", "0"));
}

FIXTURE_TEARDOWN(iommufd_veventq_memcg)
{
	struct guest *guest = &self->veventq.guest;

	if (self->veventq.fd == -1)
		return;
	EXPECT_EQ(0, close(guest->queue));
	EXPECT_EQ(0, close(guest->vm.fd));
	EXPECT_EQ(0, _test_cmd_iommu_unregister(self->veventq.fd,
						self->veventq.iommu_id));
	EXPECT_EQ(0, close(self->veventq.fd));
	/* Unless the test has done that */
	rmdir(self->path);
}

/* Far more than what is charged ahead. Some are triggered from interrupts. */
#define MANY 20000
#define MANY_IRQ(i) (!((i) % 16))

/* Events are charged to the process that allocated the queue; few stay when read */
TEST_F_TIMEOUT(iommufd_veventq_memcg, charged, 120)
{
	struct guest *guest = &self->veventq.guest;
	const size_t size = MANY * sizeof(struct vevent);
	struct vevent *events = malloc(size);
	long long before, full, after;
	int i;

	ASSERT_NE(NULL, events);
	before = cgroup_memory(self->path);
	ASSERT_LE(0, before);
	for (i = 0; i != MANY; i++)
		ASSERT_EQ(0, guest_trigger_in(guest, MANY_IRQ(i)));
	full = cgroup_memory(self->path);
	EXPECT_LE((long long)size, full - before);

	ASSERT_EQ(size, read(guest->queue, events, size));
	EXPECT_EMPTY_OF(guest->queue);
	EXPECT_EQ(MANY - 1, events[MANY - 1].header.sequence);
	after = cgroup_memory(self->path);
	EXPECT_LE(0, after);
	EXPECT_LE((long long)size, full - after);
	free(events);
}

/* And they are not charged any more when the queue is gone */
TEST_F_TIMEOUT(iommufd_veventq_memcg, uncharged, 120)
{
	struct guest *guest = &self->veventq.guest;
	const size_t size = MANY * sizeof(struct vevent);
	long long full;
	int i;

	for (i = 0; i != MANY; i++)
		ASSERT_EQ(0, guest_trigger(guest));
	full = cgroup_memory(self->path);
	ASSERT_EQ(0, close(guest->queue));
	ASSERT_EQ(0, vm_destroy(&guest->vm, guest->queue_id));
	EXPECT_LE((long long)size, full - cgroup_memory(self->path));
	ASSERT_EQ(0, guest_queue(guest, 1));
}

/* When it has no more to pay with, events are lost, and nothing worse */
TEST_F_TIMEOUT(iommufd_veventq_memcg, limit, 120)
{
	struct guest *guest = &self->veventq.guest;
	unsigned int i, errors = 0, got = 0, next = 0;
	struct vevent event = {};
	char text[512], *kills;
	ssize_t len;

	snprintf(text, sizeof(text), "%lld",
		 cgroup_memory(self->path) + 256 * 1024);
	ASSERT_EQ(0, cgroup_write(self->path, "memory.max", text));
	for (i = 0; i != MANY; i++) {
		if (!guest_trigger_in(guest, MANY_IRQ(i)))
			continue;
		ASSERT_EQ(ENOMEM, errno);
		errors++;
	}
	EXPECT_LT(0, errors);
	EXPECT_GT(MANY, errors);
	/* Nobody was killed for it */
	ASSERT_EQ(0, cgroup_read(self->path, "memory.events", text,
				 sizeof(text)));
	kills = strstr(text, "\noom_kill ");
	ASSERT_NE(NULL, kills);
	EXPECT_EQ(0, strtol(kills + strlen("\noom_kill "), NULL, 10));

	/* As many are missing as could not be queued, and the end is told */
	for (;;) {
		len = read(guest->queue, &event, sizeof(event));
		if (len <= 0)
			break;
		ASSERT_LE(next, event.header.sequence);
		next = event.header.sequence + 1;
		if (len == sizeof(event)) {
			got++;
			continue;
		}
		ASSERT_EQ(LOST_SIZE, len);
		ASSERT_EQ(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, event.header.flags);
	}
	EXPECT_EQ(0, len);
	EXPECT_EQ(MANY, next);
	EXPECT_EQ(MANY - errors, got);

	/* It goes on as soon as there is memory again */
	ASSERT_EQ(0, cgroup_write(self->path, "memory.max", "max"));
	ASSERT_EQ(0, guest_trigger(guest));
	EXPECT_VEVENT_OF(guest->queue, MANY, VIRT_ID);
}

/* One that fails keeps nothing of the cgroup that it was called in */
TEST_F(iommufd_veventq_memcg, L12_alloc_fails)
{
	char parent[80], child[96], stat[128];
	int status;
	pid_t pid;

	snprintf(parent, sizeof(parent), "%s.parent", self->path);
	snprintf(child, sizeof(child), "%s/child", parent);
	ASSERT_EQ(0, mkdir(parent, 0700));
	ASSERT_EQ(0, cgroup_write(parent, "cgroup.subtree_control", "+memory"));
	ASSERT_EQ(0, mkdir(child, 0700));

	/* In a process, whose own memory is freed when it ends */
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		if (cgroup_write(child, "cgroup.procs", "0"))
			_exit(1);
		_exit(!guest_queue(&self->veventq.guest, 1) || errno != EEXIST);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	ASSERT_EQ(0, rmdir(child));
	WAIT_WHILE(cgroup_read(parent, "cgroup.stat", stat, sizeof(stat)) ||
		   !strstr(stat, "nr_dying_descendants 0\n"));
	EXPECT_EQ(0, rmdir(parent));
}

/* The cgroup is removed under the queue */
TEST_F(iommufd_veventq_memcg, removed)
{
	struct guest *guest = &self->veventq.guest;
	unsigned int i;

	ASSERT_EQ(0, guest_trigger(guest));
	ASSERT_EQ(0, rmdir(self->path));
	for (i = 0; i != 1000; i++)
		ASSERT_EQ(0, guest_trigger_in(guest, i & 1));
	for (i = 0; i != 1001; i++)
		EXPECT_VEVENT_OF(guest->queue, i, VIRT_ID);
	EXPECT_EMPTY_OF(guest->queue);
}

TEST_HARNESS_MAIN
