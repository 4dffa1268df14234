// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of IOMMUs that come and go: what becomes of the devices, who can
 * take a reference on struct iommu_device, what iommu_device_unregister() does to
 * those who have one, and when it returns.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/console.h>
#include <linux/delay.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/mmu_notifier.h>
#include <linux/pci.h>
#include <linux/pci-ats.h>
#include <linux/platform_device.h>
#include <linux/property.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/string.h>

#include "iommu-priv.h"

struct test_iommu {
	struct iommu_device iommu;
	struct device *hwdev;
	struct fwnode_handle *fwnode;
	/* A device behind the IOMMU */
	struct platform_device *pdev;
	/* What the driver does when it is asked about a device */
	bool one_group;
	/* In whose group the device is */
	struct device *group_of;
	int (*probe)(struct test_iommu *t, struct device *dev);
	bool unplugging;
	unsigned int finalized;
	/* Stop when a device is released, until it is told to go on */
	bool release_slowly;
	struct completion releasing;
	struct completion go;
	unsigned int released;
	/* What the device was attached to that was released last */
	struct iommu_domain *released_from;
	/* What the driver has been told about PASIDs and their domains */
	unsigned int pasids;
	unsigned int sva_domains;
	unsigned int flushes;
	/* It does not come out of a callback before this */
	struct completion *flushing;
	struct completion *flush;
	bool freed_too_early;
	/* It takes page requests while there is a domain that wants them */
	struct iopf_queue *queue;
	unsigned int iopf_domains;
	unsigned int responses;
	enum iommu_page_response_code response;
	struct iommu_sva *bond;

	struct task_struct *thread;
	struct completion begun;
	struct completion ended;
	/* What another thread does something with, and what that gave */
	struct device *dev;
	int probed;
};

static int test_attach(struct iommu_domain *domain, struct device *dev,
		       struct iommu_domain *old)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->released_from = old;
	return 0;
}

static int test_attach_pasid(struct iommu_domain *domain, struct device *dev,
			     ioasid_t pasid, struct iommu_domain *old)
{
	struct test_iommu **t = dev_get_platdata(dev);
	struct iopf_queue *queue = (*t)->queue;

	if (domain->type == IOMMU_DOMAIN_BLOCKED) {
		(*t)->pasids--;
		if (queue && old->iopf_handler && !--(*t)->iopf_domains)
			iopf_queue_remove_device(queue, dev);
		return 0;
	}
	(*t)->pasids++;
	if (queue && domain->iopf_handler && !(*t)->iopf_domains++)
		return iopf_queue_add_device(queue, dev);
	return 0;
}

static void test_page_response(struct device *dev, struct iopf_fault *fault,
			       struct iommu_page_response *response)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->responses++;
	(*t)->response = response->code;
}

static const struct iommu_domain_ops test_domain_ops = {
	.attach_dev = test_attach,
	.set_dev_pasid = test_attach_pasid,
};

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &test_domain_ops,
};

static struct iommu_domain test_default_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &test_domain_ops,
};

static struct iommu_device *test_probe_device(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);
	int ret = 0;

	if (!t)
		return ERR_PTR(-ENODEV);
	if ((*t)->probe)
		ret = (*t)->probe(*t, dev);
	return ret ? ERR_PTR(ret) : &(*t)->iommu;
}

static void test_probe_finalize(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->finalized++;
}

static struct iommu_group *test_device_group(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	if ((*t)->group_of)
		return iommu_group_ref_get((*t)->group_of->iommu_group);
	return (*t)->one_group ? generic_single_device_group(dev) :
				 generic_device_group(dev);
}

static void test_release_device(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->released++;
	if ((*t)->release_slowly) {
		complete(&(*t)->releasing);
		wait_for_completion(&(*t)->go);
	}
}

#if IS_ENABLED(CONFIG_IOMMU_SVA) && IS_ENABLED(CONFIG_MMU_NOTIFIER) && \
	IS_ENABLED(CONFIG_IOMMU_IOPF)
#define TEST_SVA 1

struct test_sva {
	struct iommu_domain domain;
	struct mmu_notifier notifier;
	struct test_iommu *t;
};

static void test_sva_free(struct iommu_domain *domain)
{
	struct test_sva *sva = container_of(domain, struct test_sva, domain);

	sva->t->sva_domains--;
	mmu_notifier_put(&sva->notifier);
}

static void test_sva_flush(struct mmu_notifier *mn, struct mm_struct *mm,
			   unsigned long start, unsigned long end)
{
	struct test_iommu *t = container_of(mn, struct test_sva, notifier)->t;

	/* The driver is looking into its instance */
	t->flushes++;
	if (!t->flush)
		return;
	complete(t->flushing);
	wait_for_completion(t->flush);
	t->freed_too_early = completion_done(&t->ended);
}

static void test_sva_free_notifier(struct mmu_notifier *mn)
{
	kfree(container_of(mn, struct test_sva, notifier));
}

static const struct mmu_notifier_ops test_sva_notifier_ops = {
	.arch_invalidate_secondary_tlbs = test_sva_flush,
	.free_notifier = test_sva_free_notifier,
};

static struct iommu_domain *test_alloc_sva(struct device *dev,
					   struct mm_struct *mm)
{
	static const struct iommu_domain_ops ops = {
		.set_dev_pasid = test_attach_pasid,
		.free = test_sva_free,
	};
	struct test_iommu **t = dev_get_platdata(dev);
	struct test_sva *sva;
	int ret;

	sva = kzalloc_obj(*sva);
	if (!sva)
		return ERR_PTR(-ENOMEM);
	sva->t = *t;
	sva->domain.ops = &ops;
	sva->notifier.ops = &test_sva_notifier_ops;
	ret = mmu_notifier_register(&sva->notifier, mm);
	if (ret) {
		kfree(sva);
		return ERR_PTR(ret);
	}
	(*t)->sva_domains++;
	return &sva->domain;
}
#endif

static const struct iommu_ops test_ops = {
	.default_domain = &test_default_domain,
	.blocked_domain = &test_blocked_domain,
	.release_domain = &test_blocked_domain,
	.probe_device = test_probe_device,
	.probe_finalize = test_probe_finalize,
	.release_device = test_release_device,
	.device_group = test_device_group,
#ifdef TEST_SVA
	.domain_alloc_sva = test_alloc_sva,
	.page_response = test_page_response,
#endif
};

/* A device that will be probed when an instance is registered */
static struct platform_device *test_add(struct test_iommu *t)
{
	struct platform_device *pdev;
	int ret;

	pdev = platform_device_register_data(NULL, "iommu-device-test-dev",
					     PLATFORM_DEVID_AUTO, &t,
					     sizeof(t));
	if (IS_ERR(pdev))
		return pdev;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	if (ret) {
		platform_device_unregister(pdev);
		return ERR_PTR(ret);
	}
	return pdev;
}

/* The instance that a device is behind, or NULL */
static struct iommu_device *test_iommu_of(struct device *dev)
{
	return dev->iommu ? dev->iommu->iommu_dev : NULL;
}

static int test_plug(struct test_iommu *t)
{
	struct platform_device *pdev = test_add(t);

	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	t->pdev = pdev;
	return iommu_probe_device(&t->pdev->dev);
}

static void test_unplug(struct test_iommu *t)
{
	platform_device_unregister(t->pdev);
	t->pdev = NULL;
}

static void test_init_iommu(struct test_iommu *t)
{
	init_completion(&t->begun);
	init_completion(&t->ended);
	init_completion(&t->releasing);
	init_completion(&t->go);
}

static int test_init(struct kunit *test)
{
	struct test_iommu *t;

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	test->priv = t;
	test_init_iommu(t);

	t->hwdev = kunit_device_register(test, "iommu-device-test");
	if (IS_ERR(t->hwdev))
		return PTR_ERR(t->hwdev);
	t->fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(t->fwnode))
		return PTR_ERR(t->fwnode);
	set_primary_fwnode(t->hwdev, t->fwnode);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_sysfs_add(&t->iommu, t->hwdev,
							NULL, "%s",
							"test_iommu"));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	return 0;
}

static void test_exit(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	if (!t || IS_ERR_OR_NULL(t->fwnode))
		return;
	if (t->pdev)
		test_unplug(t);
	/* Does nothing where the test has done it */
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
	if (t->iommu.dev)
		iommu_device_sysfs_remove(&t->iommu);
	set_primary_fwnode(t->hwdev, NULL);
	fwnode_remove_software_node(t->fwnode);
}

static int unregister_thread(void *arg)
{
	struct test_iommu *t = arg;

	complete(&t->begun);
	iommu_device_unregister(&t->iommu);
	complete(&t->ended);
	return 0;
}

/* Unregister in a thread, until it has begun */
static void unregister_start_of(struct kunit *test, struct test_iommu *t)
{
	t->thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->thread));
	wait_for_completion(&t->begun);
	while (READ_ONCE(t->iommu.state) != IOMMU_DEVICE_UNREGISTERED)
		usleep_range(1000, 2000);
}

static void unregister_start(struct kunit *test)
{
	unregister_start_of(test, test->priv);
}

static bool unregister_ends(struct test_iommu *t)
{
	return wait_for_completion_timeout(&t->ended, 5 * HZ);
}

static bool unregister_waits(struct test_iommu *t)
{
	msleep(20);
	return !completion_done(&t->ended);
}

static void test_remove_other(void *data)
{
	struct test_iommu *other = data;

	iommu_device_sysfs_remove(&other->iommu);
}

static struct test_iommu *test_register_other(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	static unsigned int others;
	struct test_iommu *other;

	other = kunit_kzalloc(test, sizeof(*other), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, other);
	test_init_iommu(other);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_sysfs_add(&other->iommu,
							t->hwdev, NULL,
							"test_iommu%u",
							others++));
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, test_remove_other,
						  other));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other->iommu, &test_ops,
						       t->hwdev));
	return other;
}

static void test_get_put(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *none = kunit_device_register(test, "no-iommu");

	KUNIT_ASSERT_FALSE(test, IS_ERR(none));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV), iommu_device_get(none));

	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);

	/* The device is not held, and one that comes back finds the same */
	test_unplug(t);
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));

	/* Nor needed for another one */
	test_unplug(t);
	KUNIT_EXPECT_TRUE(test, iommu_device_tryget(&t->iommu));
	KUNIT_EXPECT_EQ(test, 4, t->iommu.users);

	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
}

static void test_unregister_waits(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device_holder holder;

	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	unregister_start(test);

	/* Refused from the beginning, while there are references */
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_FALSE(test, iommu_device_tryget(&t->iommu));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_add_holder(&t->iommu, &holder, NULL));
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&holder));

	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
}

/* The device is gone for the IOMMU as well, when unregister is over */
static void test_get_after_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
}

/*
 * A device that the driver still takes for one of the instance, which it is asked
 * about since the firmware node leads to the driver by another instance.
 */
static void test_probe_after_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device other = {};

	test_unplug(t);
	iommu_device_unregister(&t->iommu);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_plug(t));
	KUNIT_EXPECT_NULL(test, test_iommu_of(&t->pdev->dev));
	iommu_device_unregister(&other);
}

/*
 * Register an instance when there is nothing behind the first one but three devices
 * that nobody has probed so far. Then take them away.
 */
static int test_register_another(struct kunit *test, bool *probed)
{
	struct test_iommu *t = test->priv;
	struct platform_device *pdev[3];
	struct iommu_device other = {};
	int ret, i;

	test_unplug(t);
	for (i = 0; i != ARRAY_SIZE(pdev); i++) {
		pdev[i] = test_add(t);
		KUNIT_ASSERT_FALSE(test, IS_ERR(pdev[i]));
	}
	t->pdev = pdev[0];
	t->finalized = 0;
	ret = iommu_device_register(&other, &test_ops, t->hwdev);
	if (!IS_ERR_OR_NULL(t->thread))
		wait_for_completion(&t->begun);
	for (i = 0; i != ARRAY_SIZE(pdev); i++) {
		/* Perhaps the thread has unplugged it */
		if (!i && !t->pdev) {
			probed[i] = false;
			continue;
		}
		probed[i] = test_iommu_of(&pdev[i]->dev) == &t->iommu;
		platform_device_unregister(pdev[i]);
	}
	t->pdev = NULL;
	iommu_device_unregister(&other);
	return ret;
}

static void test_probe_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 3, t->finalized);
}

/* A group is found once for each of its devices */
static void test_probe_group_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->one_group = true;
	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 3, t->finalized);
}

static int test_probe_all_but_one(struct test_iommu *t, struct device *dev)
{
	return dev == &t->pdev->dev ? 0 : -ENOMEM;
}

/* The groups that were found before are not left on the list */
static void test_probe_fails_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->probe = test_probe_all_but_one;
	KUNIT_EXPECT_EQ(test, -ENOMEM, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && !probed[1] && !probed[2]);
	KUNIT_EXPECT_EQ(test, 0, t->finalized);
}

static int unplug_thread(void *arg)
{
	struct test_iommu *t = arg;

	WRITE_ONCE(t->unplugging, true);
	test_unplug(t);
	complete(&t->begun);
	return 0;
}

/*
 * While others are probed, the first one is unplugged. Who waits for a mutex that
 * others take again and again gets it in the end.
 */
static int test_probe_and_unplug(struct test_iommu *t, struct device *dev)
{
	if (!t->thread && dev != &t->pdev->dev) {
		t->thread = kthread_run(unplug_thread, t, "unplug");
		while (!IS_ERR(t->thread) && !READ_ONCE(t->unplugging))
			msleep(20);
	}
	msleep(50);
	return 0;
}

/* A group is there as long as it is on the list */
static void test_unplug_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->probe = test_probe_and_unplug;
	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, !probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 2, t->finalized);
}

/* Register the instance again, when its device is there */
static int test_register_known(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device other = {};
	int ret;

	/* The firmware node has to lead to a driver when it is told */
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&t->pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	iommu_device_unregister(&other);
	KUNIT_ASSERT_EQ(test, 0, ret);
	KUNIT_ASSERT_NULL(test, t->pdev->dev.iommu_group);

	return iommu_device_register(&t->iommu, &test_ops, t->hwdev);
}

/* An instance finds the devices that are there before it, group by group */
static void test_register_finds_devices(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_group *group;

	iommu_device_unregister(&t->iommu);
	KUNIT_ASSERT_NULL(test, t->pdev->dev.iommu_group);

	KUNIT_ASSERT_EQ(test, 0, test_register_known(test));
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, test_iommu_of(&t->pdev->dev));
	group = iommu_group_get(&t->pdev->dev);
	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_PTR_EQ(test, &test_default_domain,
			    iommu_get_domain_for_dev(&t->pdev->dev));
	test_unplug(t);
	iommu_group_put(group);
}

static void test_unregister_unregistered(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device never = {};

	iommu_device_unregister(&never);
	iommu_device_unregister(&t->iommu);
	iommu_device_unregister(&t->iommu);

	/* And it is as good as new */
	test_unplug(t);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, test_iommu_of(&t->pdev->dev));
}

/* A device that is removed while its IOMMU is unregistered */
static void test_unplug_during_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct task_struct *thread;

	t->release_slowly = true;
	t->thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->thread));
	wait_for_completion(&t->begun);
	wait_for_completion(&t->releasing);
	thread = kthread_run(unplug_thread, t, "unplug");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(50);
	complete_all(&t->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	wait_for_completion(&t->begun);
	KUNIT_EXPECT_EQ(test, 1, t->released);
}

/* And the other way round */
static void test_unregister_during_unplug(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct task_struct *thread;

	t->release_slowly = true;
	thread = kthread_run(unplug_thread, t, "unplug");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	wait_for_completion(&t->releasing);
	t->thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->thread));
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	complete_all(&t->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	/* One for each of the threads */
	wait_for_completion(&t->begun);
	wait_for_completion(&t->begun);
	KUNIT_EXPECT_EQ(test, 1, t->released);
}

static int probe_thread(void *arg)
{
	struct test_iommu *t = arg;

	t->probed = iommu_probe_device(t->dev);
	complete(&t->begun);
	return 0;
}

/* The walk over the devices has begun when another one is plugged in */
static void test_probe_during_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct platform_device *late = test_add(t);
	struct task_struct *thread;

	KUNIT_ASSERT_FALSE(test, IS_ERR(late));
	t->dev = &late->dev;
	t->release_slowly = true;
	t->thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->thread));
	wait_for_completion(&t->begun);
	wait_for_completion(&t->releasing);
	thread = kthread_run(probe_thread, t, "probe");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(50);
	complete_all(&t->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	wait_for_completion(&t->begun);
	KUNIT_EXPECT_EQ(test, -ENODEV, t->probed);
	KUNIT_EXPECT_NULL(test, late->dev.iommu_group);
	platform_device_unregister(late);
}

/* For a device that comes later, as its firmware would have it */
static int test_set_fwspec(struct test_iommu *t, struct device *dev)
{
	int ret;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(dev, t->fwnode);
	if (!ret)
		iommu_fwspec_free(dev);
	mutex_unlock(&iommu_probe_device_lock);
	return ret;
}

static int test_probe_fwspec(struct test_iommu *t, struct device *dev)
{
	/* iommu_probe_device_lock is held, as by all who call this */
	t->probed = iommu_fwspec_init(t->dev, t->fwnode);
	return 0;
}

/* What a device is told that nobody has probed so far */
static void test_fwspec_states(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct platform_device *late;

	late = platform_device_register_simple("iommu-device-test-late",
					       PLATFORM_DEVID_AUTO, NULL, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(late));
	t->dev = &late->dev;
	KUNIT_EXPECT_EQ(test, 0, test_set_fwspec(t, t->dev));
	mutex_lock(&iommu_probe_device_lock);
	dev_iommu_free(t->dev);
	mutex_unlock(&iommu_probe_device_lock);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_NE(test, 0, test_set_fwspec(t, t->dev));
	KUNIT_EXPECT_NULL(test, t->dev->iommu);

	/* Not while the devices are probed that are there */
	t->probe = test_probe_fwspec;
	KUNIT_EXPECT_EQ(test, 0, test_register_known(test));
	KUNIT_EXPECT_EQ(test, -EPROBE_DEFER, t->probed);
	KUNIT_EXPECT_NULL(test, t->dev->iommu);
	platform_device_unregister(late);
}

#ifdef CONFIG_PCI_ATS
static void test_pci_release(struct device *dev)
{
	/* The memory goes with the test */
}

/*
 * A PCI device for which a reset stops ATS first, as far as this has to do with
 * the IOMMU. It is behind @other, and in the group of the first device.
 */
static struct pci_dev *test_add_pci(struct kunit *test, struct test_iommu *other)
{
	struct test_iommu *t = test->priv;
	struct test_iommu **data;
	struct pci_dev *pdev;
	int ret;

	pdev = kunit_kzalloc(test, sizeof(*pdev), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pdev);
	data = kunit_kzalloc(test, sizeof(*data), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, data);
	*data = other;
	pdev->ats_cap = 1;
	device_initialize(&pdev->dev);
	pdev->dev.platform_data = data;
	pdev->dev.release = test_pci_release;
	KUNIT_ASSERT_EQ(test, 0,
			dev_set_name(&pdev->dev, "iommu-device-test-pci"));
	KUNIT_ASSERT_EQ(test, 0, device_add(&pdev->dev));
	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	KUNIT_ASSERT_EQ(test, 0, ret);
	KUNIT_ASSERT_EQ(test, 0, iommu_probe_device(&pdev->dev));
	return pdev;
}

/* A device that leaves is not waited for by the others in its group */
static void test_unregister_during_reset(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_iommu *other = test_register_other(test);
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_group *group = iommu_group_get(&t->pdev->dev);
	struct pci_dev *pdev;

	KUNIT_ASSERT_NOT_NULL(test, group);
	other->group_of = &t->pdev->dev;
	pdev = test_add_pci(test, other);
	KUNIT_ASSERT_EQ(test, 0, pci_dev_reset_iommu_prepare(pdev));
	KUNIT_EXPECT_EQ(test, -EBUSY, iommu_attach_group(&domain, group));

	iommu_device_unregister(&other->iommu);
	KUNIT_EXPECT_EQ(test, 1, other->released);
	KUNIT_EXPECT_PTR_EQ(test, &test_blocked_domain, other->released_from);
	KUNIT_EXPECT_EQ(test, 0, iommu_attach_group(&domain, group));
	iommu_detach_group(&domain, group);
	pci_dev_reset_iommu_done(pdev);
	KUNIT_EXPECT_EQ(test, 0, iommu_attach_group(&domain, group));
	iommu_detach_group(&domain, group);

	device_unregister(&pdev->dev);
	iommu_group_put(group);
}

/* One that comes back during the reset is not blocked any more */
static void test_register_during_reset(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_iommu *other = test_register_other(test);
	struct pci_dev *pdev;
	int ret;

	pdev = test_add_pci(test, other);
	KUNIT_ASSERT_EQ(test, 0, pci_dev_reset_iommu_prepare(pdev));
	iommu_device_unregister(&other->iommu);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other->iommu, &test_ops,
						       t->hwdev));
	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	KUNIT_ASSERT_EQ(test, 0, ret);
	KUNIT_ASSERT_EQ(test, 0, iommu_probe_device(&pdev->dev));
	pci_dev_reset_iommu_done(pdev);
	KUNIT_EXPECT_PTR_EQ(test, &test_default_domain,
			    iommu_get_domain_for_dev(&pdev->dev));
	iommu_device_unregister(&other->iommu);
	device_unregister(&pdev->dev);
}

static int reset_thread(void *arg)
{
	struct test_iommu *t = arg;

	t->probed = pci_dev_reset_iommu_prepare(to_pci_dev(t->dev));
	if (!t->probed)
		pci_dev_reset_iommu_done(to_pci_dev(t->dev));
	complete(&t->begun);
	return 0;
}

/* The group is there as long as the reset looks at it */
static void test_reset_during_unregister(struct kunit *test)
{
	struct test_iommu *other = test_register_other(test);
	struct task_struct *thread;
	struct pci_dev *pdev;

	pdev = test_add_pci(test, other);
	other->dev = &pdev->dev;
	other->release_slowly = true;
	other->thread = kthread_run(unregister_thread, other, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(other->thread));
	wait_for_completion(&other->begun);
	wait_for_completion(&other->releasing);
	thread = kthread_run(reset_thread, other, "reset");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(50);
	complete_all(&other->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(other));
	wait_for_completion(&other->begun);
	/* It is behind no IOMMU, so there is nothing to block */
	KUNIT_EXPECT_EQ(test, 0, other->probed);
	device_unregister(&pdev->dev);
}
#endif

/* What somebody asks for after the owner has lost the group, and must not get */
static void test_group_is_blocked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_attach_handle handle = {};
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_group *group = iommu_group_get(dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_device(&domain, dev));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_group(&domain, group));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_attach_group_handle(&domain, group, &handle));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_replace_group_handle(group, &domain, &handle));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_attach_device_pasid(&domain, dev, 1, &handle));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_replace_device_pasid(&domain, dev, 1, &handle));
	/* One who detaches does not get it off the blocking domain either */
	iommu_detach_group(&domain, group);
	KUNIT_EXPECT_PTR_EQ(test, &test_blocked_domain,
			    iommu_get_domain_for_dev(dev));
	iommu_group_put(group);
}

/* Who has lost the device may still have it do DMA, so nobody gets the group */
static void test_lose_dma_owner(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;

	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(dev, test));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(dev, test));
	iommu_device_revoke_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, -EPERM, iommu_device_claim_dma_owner(dev, t));
	/* Nor its owner, for another device of the group */
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_claim_dma_owner(dev, test));
	test_group_is_blocked(test);
	iommu_device_release_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_claim_dma_owner(dev, t));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_use_default_domain(dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);
}

/* What the firmware's description does when a driver is bound */
static int test_probe_again(struct test_iommu *t, struct device *dev)
{
	int ret;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	return ret ?: iommu_probe_device(dev);
}

/* As a whole. A device is in use by somebody who does not know about it. */
static void test_lose_group_owner(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_group *group = iommu_group_get(dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get_group(group));
	iommu_device_put(&t->iommu);

	KUNIT_ASSERT_EQ(test, 0, iommu_group_claim_dma_owner(group, test));
	iommu_device_lose_dma_owner(dev, group);
	iommu_group_revoke_dma_owner(group);
	KUNIT_EXPECT_FALSE(test, iommu_group_dma_owner_claimed(group));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_group_claim_dma_owner(group, t));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_use_default_domain(dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get_group(group));

	/* It is not in this group any more, and in no other before it is idle */
	iommu_device_lose_dma_owner(dev, group);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe_again(t, dev));
	KUNIT_EXPECT_FALSE(test, device_iommu_mapped(dev));
	iommu_device_forget_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, 0, test_probe_again(t, dev));
	KUNIT_EXPECT_TRUE(test, device_iommu_mapped(dev));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get_group(group));
	iommu_group_put(group);
}

/* A driver in the kernel uses a PASID, and is not told that the IOMMU goes */
static void test_lose_pasids(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};

	dev->iommu->max_pasids = 16;
	KUNIT_ASSERT_EQ(test, 0,
			iommu_attach_device_pasid(&domain, dev, 1, NULL));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_attach_device_pasid(&domain, dev, 2, NULL));
	KUNIT_EXPECT_EQ(test, 2, t->pasids);
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
}

/* A driver that uses the DMA API as well has attached a domain of its own */
static void test_revoke_device(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_domain *default_domain = iommu_get_domain_for_dev(dev);

	KUNIT_ASSERT_EQ(test, 0, iommu_device_use_default_domain(dev));
	/* It could not be revoked */
	dev->iommu->require_direct = 1;
	KUNIT_EXPECT_EQ(test, -EINVAL, iommu_attach_revocable(&domain, dev));
	KUNIT_EXPECT_PTR_EQ(test, default_domain,
			    iommu_get_domain_for_dev(dev));
	dev->iommu->require_direct = 0;

	KUNIT_ASSERT_EQ(test, 0, iommu_attach_revocable(&domain, dev));
	KUNIT_EXPECT_PTR_EQ(test, &domain, iommu_get_domain_for_dev(dev));
	KUNIT_EXPECT_EQ(test, -EBUSY, iommu_attach_revocable(&domain, dev));
	iommu_detach_device(&domain, dev);
	KUNIT_EXPECT_PTR_EQ(test, default_domain,
			    iommu_get_domain_for_dev(dev));

	KUNIT_ASSERT_EQ(test, 0, iommu_attach_revocable(&domain, dev));
	iommu_revoke_device(&domain, dev);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_revocable(&domain, dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);

	/* It may be doing DMA still, so no IOMMU gets it */
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe_again(t, dev));
	iommu_device_forget_dma_owner(dev);
	iommu_device_unuse_default_domain(dev);
	KUNIT_EXPECT_EQ(test, 0, test_probe_again(t, dev));
	KUNIT_EXPECT_TRUE(test, device_iommu_mapped(dev));
}

/* The other driver would look for its own data in it */
static void test_replace_foreign_domain(struct kunit *test)
{
	static const struct iommu_ops other_ops;
	struct test_iommu *t = test->priv;
	struct iommu_attach_handle handle = {};
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &other_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_group *group = iommu_group_get(&t->pdev->dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_ASSERT_EQ(test, 0, iommu_group_claim_dma_owner(group, test));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_replace_group_handle(group, &domain, &handle));
	domain.owner = &test_ops;
	KUNIT_EXPECT_EQ(test, 0,
			iommu_replace_group_handle(group, &domain, &handle));
	iommu_detach_group_handle(&domain, group);
	iommu_group_release_dma_owner(group);
	iommu_group_put(group);
}

struct test_holder {
	struct iommu_device_holder holder;
	struct test_iommu *t;
	/* When it was revoked, from 1 */
	unsigned int revoked;
	unsigned int *count;
	struct completion begun;
	struct completion go;
};

static bool test_revoke(struct iommu_device_holder *holder)
{
	struct test_holder *h = container_of(holder, struct test_holder,
					     holder);

	/* Twice would be seen in the count */
	h->revoked = ++*h->count;
	iommu_device_put_holder(holder);
	return true;
}

static const struct iommu_device_holder_ops test_holder_ops = {
	.name = "test holder",
	.revoke = test_revoke,
};

static const struct iommu_device_holder_ops test_movable_holder_ops = {
	.name = "movable test holder",
	.movable = true,
	.revoke = test_revoke,
};

static bool test_revoke_slowly(struct iommu_device_holder *holder)
{
	struct test_holder *h = container_of(holder, struct test_holder,
					     holder);

	complete(&h->begun);
	wait_for_completion(&h->go);
	return test_revoke(holder);
}

static const struct iommu_device_holder_ops test_slow_holder_ops = {
	.name = "slow test holder",
	.revoke = test_revoke_slowly,
};

/* As if the owner had begun to let go */
static bool test_revoke_not(struct iommu_device_holder *holder)
{
	complete(&container_of(holder, struct test_holder, holder)->begun);
	return false;
}

static const struct iommu_device_holder_ops test_unwilling_holder_ops = {
	.name = "unwilling test holder",
	.revoke = test_revoke_not,
};

static bool test_revoke_put_late(struct iommu_device_holder *holder)
{
	complete(&container_of(holder, struct test_holder, holder)->begun);
	return true;
}

static const struct iommu_device_holder_ops test_late_holder_ops = {
	.name = "late test holder",
	.revoke = test_revoke_put_late,
};

static struct test_holder *test_hold(struct kunit *test, unsigned int *count,
				     const struct iommu_device_holder_ops *ops)
{
	struct test_iommu *t = test->priv;
	struct test_holder *h;

	h = kunit_kzalloc(test, sizeof(*h), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, h);
	h->t = t;
	h->count = count;
	init_completion(&h->begun);
	init_completion(&h->go);
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_holder(&t->iommu, &h->holder, ops));
	return h;
}

static void test_let_go(struct kunit *test, struct test_holder *h)
{
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&h->holder));
	iommu_device_put_holder(&h->holder);
}

static void test_revoke_newest_first(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	unsigned int count = 0;
	struct test_holder *h[4];
	int i;

	for (i = 0; i != ARRAY_SIZE(h); i++)
		h[i] = test_hold(test, &count, &test_holder_ops);

	/* One that lets go by itself is not revoked */
	test_let_go(test, h[1]);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 3, count);
	KUNIT_EXPECT_EQ(test, 1, h[3]->revoked);
	KUNIT_EXPECT_EQ(test, 2, h[2]->revoked);
	KUNIT_EXPECT_EQ(test, 0, h[1]->revoked);
	KUNIT_EXPECT_EQ(test, 3, h[0]->revoked);

	/* Not waiting for anything, and harmless */
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&h[0]->holder));
	KUNIT_EXPECT_EQ(test, 3, count);
}

/* What a holder was built on is not revoked while that one is letting go */
static void test_claimed(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_holder_ops);
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&high->holder));
	unregister_start(test);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, count);
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
	KUNIT_EXPECT_EQ(test, 0, high->revoked);
}

/* One who lets go of two, the newer of which needs the older */
static void test_claimed_both(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_holder_ops);
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&low->holder));
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&high->holder));
	unregister_start(test);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put_holder(&low->holder);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 0, count);
}

/* The same for one that is found by the revocation before it is claimed */
static void test_claimed_late(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_unwilling_holder_ops);
	unregister_start(test);
	wait_for_completion(&high->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, count);
	test_let_go(test, high);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
}

/* To another instance, below what is there, and in the order that they had */
static void test_movable(struct kunit *test)
{
	const struct iommu_device_holder_ops *movable = &test_movable_holder_ops;
	const struct iommu_ops other_ops = test_ops;
	struct test_holder *low, *high, *fixed, *top;
	struct iommu_device other = {}, alien = {};
	struct test_iommu *t = test->priv;
	unsigned int count = 0;

	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&alien, &other_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	low = test_hold(test, &count, movable);
	high = test_hold(test, &count, movable);
	test_let_go(test, high);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_stack_holder(&low->holder,
							   &high->holder,
							   movable));
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);
	fixed = test_hold(test, &count, &test_holder_ops);
	top = test_hold(test, &count, &test_holder_ops);
	test_let_go(test, top);
	KUNIT_EXPECT_TRUE(test, iommu_device_tryget(&other));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_holder(&other, &top->holder,
						&test_holder_ops));

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 1, count);
	KUNIT_EXPECT_EQ(test, 1, fixed->revoked);
	KUNIT_EXPECT_PTR_EQ(test, &other, low->holder.iommu);
	KUNIT_EXPECT_PTR_EQ(test, &other, high->holder.iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
	KUNIT_EXPECT_EQ(test, 3, other.users);

	/* There is none left but that of another driver */
	iommu_device_unregister(&other);
	KUNIT_EXPECT_EQ(test, 2, top->revoked);
	KUNIT_EXPECT_EQ(test, 3, high->revoked);
	KUNIT_EXPECT_EQ(test, 4, low->revoked);
	KUNIT_EXPECT_EQ(test, 0, other.users);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_stack_holder(&low->holder, &high->holder,
						  movable));
	iommu_device_unregister(&alien);
}

/* Nothing older is revoked before the reference was dropped */
static void test_put_late(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_late_holder_ops);
	unregister_start(test);
	wait_for_completion(&high->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, low->revoked);
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&high->holder));
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
}

/* One that went to another instance stays below those that could not go there */
static void test_moved_lower(struct kunit *test)
{
	struct test_holder *low, *top, *more;
	struct test_iommu *other, *third;
	struct test_iommu *t = test->priv;
	unsigned int count = 0;

	other = test_register_other(test);
	low = test_hold(test, &count, &test_movable_holder_ops);
	top = test_hold(test, &count, &test_slow_holder_ops);
	more = test_hold(test, &count, &test_holder_ops);
	test_let_go(test, more);
	test_let_go(test, top);
	KUNIT_ASSERT_TRUE(test, iommu_device_tryget(&t->iommu));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_upper_holder(&t->iommu, &low->holder,
						      &top->holder,
						      &test_slow_holder_ops));
	unregister_start(test);
	wait_for_completion(&top->begun);
	KUNIT_EXPECT_PTR_EQ(test, &other->iommu, low->holder.iommu);

	unregister_start_of(test, other);
	KUNIT_EXPECT_TRUE(test, unregister_waits(other));
	KUNIT_EXPECT_EQ(test, 0, low->revoked);
	third = test_register_other(test);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_add_upper_holder(&third->iommu,
						      &low->holder,
						      &more->holder,
						      &test_holder_ops));
	iommu_device_unregister(&third->iommu);

	complete(&top->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_TRUE(test, unregister_ends(other));
	KUNIT_EXPECT_EQ(test, 1, top->revoked);
	KUNIT_EXPECT_EQ(test, 2, low->revoked);
}

/* What an instance waits for is nothing to the others of the driver */
static void test_stuck_elsewhere(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *stuck;
	struct test_iommu *other;
	unsigned int count = 0;

	other = test_register_other(test);
	low = test_hold(test, &count, &test_movable_holder_ops);
	stuck = test_hold(test, &count, &test_slow_holder_ops);
	unregister_start(test);
	wait_for_completion(&stuck->begun);
	KUNIT_EXPECT_PTR_EQ(test, &other->iommu, low->holder.iommu);

	unregister_start_of(test, other);
	KUNIT_EXPECT_TRUE(test, unregister_ends(other));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	complete(&stuck->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
}

static int claim_thread(void *arg)
{
	struct test_holder *h = arg;

	WARN_ON(iommu_device_claim_holder(&h->holder));
	/* It is ours now, so nobody may be looking at it */
	memset(&h->holder, 0xa5, sizeof(h->holder));
	complete(&h->begun);
	return 0;
}

static void test_claim_during_revoke(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	unsigned int count = 0;
	struct task_struct *thread;
	struct test_holder *h;

	h = test_hold(test, &count, &test_slow_holder_ops);
	unregister_start(test);
	wait_for_completion(&h->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));

	thread = kthread_run(claim_thread, h, "claim_holder");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(20);
	KUNIT_EXPECT_FALSE(test, completion_done(&h->begun));
	complete(&h->go);
	KUNIT_EXPECT_TRUE(test,
			  wait_for_completion_timeout(&h->begun, 5 * HZ));
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, count);
	KUNIT_EXPECT_NULL(test, memchr_inv(&h->holder, 0xa5,
					   sizeof(h->holder)));
}

static const char *test_hang_report;
static bool test_hang_unnamed;
static unsigned int test_hang_reports;
static unsigned int test_wrong_hang_reports;

static void test_console_write(struct console *console, const char *text,
			       unsigned int len)
{
	if (strnstr(text, test_hang_report, len))
		test_hang_reports++;
	else if (strnstr(text, "does not let go", len))
		test_wrong_hang_reports++;
}

static struct console test_console = {
	.name = "iommutest",
	.write = test_console_write,
	.flags = CON_ENABLED,
	.index = -1,
};

/* Unregister with two slow holders, which take that long */
static void test_hang(struct kunit *test, unsigned long hang_timeout,
		      unsigned int first_ms, unsigned int second_ms)
{
	unsigned long timeout = iommu_hang_timeout;
	int loglevel = console_loglevel;
	struct test_iommu *t = test->priv;
	struct test_holder *h, *first, *second;
	unsigned int count = 0;

	second = test_hold(test, &count, &test_slow_holder_ops);
	first = test_hold(test, &count, &test_slow_holder_ops);
	h = test_hold(test, &count, &test_holder_ops);
	if (test_hang_unnamed)
		iommu_device_sysfs_remove(&t->iommu);
	test_hang_reports = 0;
	test_wrong_hang_reports = 0;
	console_loglevel = CONSOLE_LOGLEVEL_DEBUG;
	/* It is cleared when a console is unregistered */
	test_console.flags = CON_ENABLED;
	register_console(&test_console);
	iommu_hang_timeout = hang_timeout;

	unregister_start(test);
	wait_for_completion(&first->begun);
	KUNIT_EXPECT_EQ(test, 1, h->revoked);
	msleep(first_ms);
	KUNIT_EXPECT_FALSE(test, completion_done(&second->begun));
	complete(&first->go);
	wait_for_completion(&second->begun);
	msleep(second_ms);
	KUNIT_EXPECT_FALSE(test, completion_done(&t->ended));
	complete(&second->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));

	iommu_hang_timeout = timeout;
	unregister_console(&test_console);
	console_loglevel = loglevel;
	KUNIT_EXPECT_EQ(test, 1, test_hang_reports);
	KUNIT_EXPECT_EQ(test, 0, test_wrong_hang_reports);
}

/* Reported once for the one that hangs, and nobody is reported who does not */
static void test_hang_is_reported(struct kunit *test)
{
	test_hang_report =
		"test_iommu: cannot be unregistered yet: slow test holder";
	test_hang_unnamed = false;
	test_hang(test, HZ / 10, 500, 0);
}

/* Each has its time, and an instance need not have a name */
static void test_second_hang_is_reported(struct kunit *test)
{
	test_hang_report =
		"an IOMMU: cannot be unregistered yet: slow test holder";
	test_hang_unnamed = true;
	test_hang(test, HZ, 300, 1500);
}

#ifdef TEST_SVA
static struct mm_struct *test_mm(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	/* No firmware says it */
	t->pdev->dev.iommu->max_pasids = 16;
	return mm;
}

/* Without an IOMMU that goes away */
static void test_sva(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test), *other = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iommu_sva *bond, *another;

	bond = iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	KUNIT_EXPECT_PTR_EQ(test, bond, iommu_sva_bind_device(dev, mm));
	KUNIT_EXPECT_EQ(test, 1, t->pasids);
	another = iommu_sva_bind_device(dev, other);
	KUNIT_ASSERT_FALSE(test, IS_ERR(another));
	KUNIT_EXPECT_PTR_NE(test, bond, another);
	KUNIT_EXPECT_EQ(test, 2, t->pasids);
	KUNIT_EXPECT_EQ(test, 2, t->sva_domains);
	KUNIT_EXPECT_NE(test, iommu_sva_get_pasid(bond),
			iommu_sva_get_pasid(another));

	/* Page tables of the kernel are invalidated for each mm that is bound */
	iommu_sva_invalidate_kva_range(0, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, 2, t->flushes);
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 2, t->pasids);
	iommu_sva_unbind_device(bond);
	iommu_sva_invalidate_kva_range(0, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, 3, t->flushes);
	iommu_sva_unbind_device(another);
	iommu_sva_invalidate_kva_range(0, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, 3, t->flushes);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	mmput(mm);
	mmput(other);
}

/* A bond whose device asks for pages */
static struct iommu_sva *test_sva_with_requests(struct kunit *test,
						struct mm_struct *mm)
{
	struct test_iommu *t = test->priv;

	t->queue = iopf_queue_alloc("iommu-device-test");
	KUNIT_ASSERT_NOT_NULL(test, t->queue);
	t->bond = iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->bond));
	return t->bond;
}

/* Page 1 is read */
static int test_page_request(struct iommu_sva *bond)
{
	struct iopf_fault fault = {
		.fault = {
			.type = IOMMU_FAULT_PAGE_REQ,
			.prm = {
				.flags = IOMMU_FAULT_PAGE_REQUEST_PASID_VALID |
					 IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE,
				.pasid = iommu_sva_get_pasid(bond),
				.perm = IOMMU_FAULT_PERM_READ,
				.addr = PAGE_SIZE,
			},
		},
	};

	return iommu_report_device_fault(bond->dev, &fault);
}

/* The memory of the process is not served: nobody gets its mmap_lock */
struct test_stall {
	struct mm_struct *mm;
	struct task_struct *thread;
	struct completion begun;
	struct completion go;
};

static int stall_thread(void *arg)
{
	struct test_stall *stall = arg;

	mmap_write_lock(stall->mm);
	complete(&stall->begun);
	wait_for_completion(&stall->go);
	mmap_write_unlock(stall->mm);
	return 0;
}

static void test_stall(struct kunit *test, struct test_stall *stall,
		       struct mm_struct *mm)
{
	stall->mm = mm;
	init_completion(&stall->begun);
	init_completion(&stall->go);
	stall->thread = kthread_run(stall_thread, stall, "sva-stall");
	KUNIT_ASSERT_FALSE(test, IS_ERR(stall->thread));
	get_task_struct(stall->thread);
	wait_for_completion(&stall->begun);
}

/* A page request that is being handled, until test_stall_end() */
static void test_stalled_request(struct kunit *test, struct test_stall *stall,
				 struct iommu_sva *bond, struct mm_struct *mm)
{
	test_stall(test, stall, mm);
	KUNIT_EXPECT_EQ(test, 0, test_page_request(bond));
	msleep(50);
}

static void test_stall_end(struct test_stall *stall)
{
	complete(&stall->go);
	kthread_stop(stall->thread);
	put_task_struct(stall->thread);
}

static int sva_unbind_thread(void *arg)
{
	struct test_iommu *t = arg;

	iommu_sva_unbind_device(t->bond);
	complete(&t->ended);
	return 0;
}

/* There is no such page. Then a request that is being handled when it is unbound. */
static void test_sva_request(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond = test_sva_with_requests(test, mm);
	struct test_stall stall;
	int i;

	KUNIT_EXPECT_EQ(test, 0, test_page_request(bond));
	for (i = 0; i != 100 && !READ_ONCE(t->responses); i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	KUNIT_EXPECT_EQ(test, IOMMU_PAGE_RESP_INVALID, t->response);

	test_stalled_request(test, &stall, bond, mm);
	t->thread = kthread_run(sva_unbind_thread, t, "sva-unbind");
	KUNIT_EXPECT_FALSE(test, IS_ERR(t->thread));
	/* Nobody waits for the memory */
	KUNIT_EXPECT_TRUE(test, wait_for_completion_timeout(&t->ended, 5 * HZ));
	KUNIT_EXPECT_EQ(test, 2, t->responses);
	KUNIT_EXPECT_EQ(test, IOMMU_PAGE_RESP_INVALID, t->response);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	test_stall_end(&stall);
	/* When it has been handled nobody is told again */
	msleep(50);
	KUNIT_EXPECT_EQ(test, 2, t->responses);
	iopf_queue_free(t->queue);
	mmput(mm);
}

static void test_sva_revoked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iommu_sva *bond;
	u32 pasid;

	bond = iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	KUNIT_ASSERT_PTR_EQ(test, bond, iommu_sva_bind_device(dev, mm));
	pasid = iommu_sva_get_pasid(bond);
	KUNIT_EXPECT_EQ(test, 1, t->iommu.users);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	KUNIT_EXPECT_EQ(test, pasid, iommu_sva_get_pasid(bond));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_sva_bind_device(dev, mm));
	iommu_sva_invalidate_kva_range(0, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, 0, t->flushes);

	/* The last process goes first, and the mm's notifier with it */
	mmput(mm);
	iommu_sva_unbind_device(bond);
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
}

/* The IOMMU comes back, and the mm is bound again before the old bond is let go */
static void test_sva_comes_back(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iommu_sva *bond, *again;

	bond = iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	iommu_device_unregister(&t->iommu);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, test_probe_again(t, dev));
	dev->iommu->max_pasids = 16;
	again = iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(again));
	KUNIT_EXPECT_PTR_NE(test, bond, again);
	KUNIT_EXPECT_EQ(test, iommu_sva_get_pasid(bond),
			iommu_sva_get_pasid(again));
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 1, t->pasids);
	KUNIT_EXPECT_EQ(test, 1, t->sva_domains);
	iommu_sva_unbind_device(again);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	mmput(mm);
}

static int sva_flush_thread(void *arg)
{
	struct mm_struct *mm = arg;

	mmu_notifier_arch_invalidate_secondary_tlbs(mm, 0, PAGE_SIZE);
	return 0;
}

/* The driver is in the mm's notifier when the IOMMU goes away */
static void test_sva_notified(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	DECLARE_COMPLETION_ONSTACK(flushing);
	DECLARE_COMPLETION_ONSTACK(flush);
	struct task_struct *thread;
	struct iommu_sva *bond;
	bool waits;

	t->flushing = &flushing;
	t->flush = &flush;
	bond = iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	thread = kthread_run(sva_flush_thread, mm, "sva-flush");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	get_task_struct(thread);
	wait_for_completion(&flushing);

	unregister_start(test);
	waits = unregister_waits(t);
	complete(&flush);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	kthread_stop(thread);
	put_task_struct(thread);
	KUNIT_EXPECT_FALSE(test, t->freed_too_early);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}

/* A page request that is being handled when the IOMMU goes away, and a later one */
static void test_sva_request_revoked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond = test_sva_with_requests(test, mm);
	struct test_stall stall;

	test_stalled_request(test, &stall, bond, mm);
	unregister_start(test);
	/* Nobody waits for the memory */
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	KUNIT_EXPECT_EQ(test, IOMMU_PAGE_RESP_INVALID, t->response);
	iopf_queue_free(t->queue);
	iommu_sva_unbind_device(bond);
	test_stall_end(&stall);
	msleep(50);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	mmput(mm);
}

/*
 * A page request that is being handled when the device is unplugged. Its driver
 * unbinds it later, when a file is closed.
 */
static void test_sva_unplugged(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond = test_sva_with_requests(test, mm);
	struct test_stall stall;

	test_stalled_request(test, &stall, bond, mm);
	test_unplug(t);
	/* The group is freed by now, unless the bond keeps it */
	kvfree_rcu_barrier();
	KUNIT_EXPECT_EQ(test, 1, t->released);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	KUNIT_EXPECT_EQ(test, IOMMU_PAGE_RESP_INVALID, t->response);
	test_stall_end(&stall);
	/* There is no device to tell any more */
	msleep(50);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	iopf_queue_free(t->queue);
	mmput(mm);
}

/* Another device of the group has the PASID, too, and goes on */
static void test_sva_unplugged_of_two(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond, *another;
	struct platform_device *second;

	t->group_of = &t->pdev->dev;
	second = test_add(t);
	KUNIT_ASSERT_FALSE(test, IS_ERR(second));
	KUNIT_EXPECT_EQ(test, 0, iommu_probe_device(&second->dev));
	second->dev.iommu->max_pasids = 16;
	bond = iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	KUNIT_EXPECT_EQ(test, 2, t->pasids);

	test_unplug(t);
	KUNIT_EXPECT_EQ(test, 1, t->pasids);
	KUNIT_EXPECT_EQ(test, 1, t->sva_domains);
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);

	another = iommu_sva_bind_device(&second->dev, mm);
	KUNIT_EXPECT_FALSE(test, IS_ERR(another));
	KUNIT_EXPECT_EQ(test, 1, t->pasids);
	if (!IS_ERR(another))
		iommu_sva_unbind_device(another);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	platform_device_unregister(second);
	mmput(mm);
}

/* The device is unplugged, and then the IOMMU goes away as well */
static void test_sva_unplugged_revoked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond;

	bond = iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	test_unplug(t);
	/* The group is freed by now, unless the bond keeps it */
	kvfree_rcu_barrier();
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}

static int test_sva_report(struct iopf_group *group)
{
	struct test_iommu **t = dev_get_platdata(group->fault_param->dev);

	complete((*t)->flushing);
	wait_for_completion((*t)->flush);
	return -EBUSY;
}

static int sva_report_thread(void *arg)
{
	return test_page_request(arg);
}

/* A page request that is with the handler of the bond's domain meanwhile */
static void test_sva_reported(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct iommu_sva *bond = test_sva_with_requests(test, mm);
	DECLARE_COMPLETION_ONSTACK(flushing);
	DECLARE_COMPLETION_ONSTACK(flush);
	struct task_struct *thread;
	bool waits;

	bond->handle.domain->iopf_handler = test_sva_report;
	t->flushing = &flushing;
	t->flush = &flush;
	thread = kthread_run(sva_report_thread, bond, "sva-report");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	get_task_struct(thread);
	wait_for_completion(&flushing);

	unregister_start(test);
	waits = unregister_waits(t);
	KUNIT_EXPECT_EQ(test, 1, t->sva_domains);
	complete(&flush);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 0, kthread_stop(thread));
	put_task_struct(thread);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	iopf_queue_free(t->queue);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}

struct test_sva_bind {
	struct device *dev;
	struct mm_struct *mm;
	struct completion begun;
	struct completion ended;
	struct iommu_sva *bond;
};

static int sva_bind_thread(void *arg)
{
	struct test_sva_bind *b = arg;

	complete(&b->begun);
	b->bond = iommu_sva_bind_device(b->dev, b->mm);
	complete(&b->ended);
	return 0;
}

/* One is being made, and waits for its process. The others do not. */
static void test_sva_bind_waits(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test), *other = test_mm(test);
	struct test_sva_bind b = { .dev = &t->pdev->dev, .mm = mm };
	struct task_struct *thread;
	struct test_stall stall;
	struct iommu_sva *bond;
	bool waits;

	init_completion(&b.begun);
	init_completion(&b.ended);
	bond = iommu_sva_bind_device(b.dev, other);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));

	test_stall(test, &stall, mm);
	thread = kthread_run(sva_bind_thread, &b, "sva-bind");
	KUNIT_EXPECT_FALSE(test, IS_ERR(thread));
	wait_for_completion(&b.begun);
	msleep(50);
	KUNIT_EXPECT_FALSE(test, completion_done(&b.ended));
	KUNIT_EXPECT_PTR_EQ(test, bond, iommu_sva_bind_device(b.dev, other));
	iommu_sva_unbind_device(bond);
	unregister_start(test);
	waits = unregister_waits(t);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	test_stall_end(&stall);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	wait_for_completion(&b.ended);
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV), b.bond);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	iommu_sva_unbind_device(bond);
	mmput(mm);
	mmput(other);
}
#endif /* TEST_SVA */

static struct kunit_case iommu_device_test_cases[] = {
	KUNIT_CASE(test_get_put),
	KUNIT_CASE(test_unregister_waits),
	KUNIT_CASE(test_get_after_unregister),
	KUNIT_CASE(test_probe_after_unregister),
	KUNIT_CASE(test_probe_at_register),
	KUNIT_CASE(test_probe_group_at_register),
	KUNIT_CASE(test_probe_fails_at_register),
	KUNIT_CASE(test_unplug_at_register),
	KUNIT_CASE(test_register_finds_devices),
	KUNIT_CASE(test_unregister_unregistered),
	KUNIT_CASE(test_unplug_during_unregister),
	KUNIT_CASE(test_unregister_during_unplug),
	KUNIT_CASE(test_probe_during_unregister),
	KUNIT_CASE(test_fwspec_states),
#ifdef CONFIG_PCI_ATS
	KUNIT_CASE(test_unregister_during_reset),
	KUNIT_CASE(test_register_during_reset),
	KUNIT_CASE(test_reset_during_unregister),
#endif
	KUNIT_CASE(test_lose_dma_owner),
	KUNIT_CASE(test_lose_group_owner),
	KUNIT_CASE(test_revoke_device),
	KUNIT_CASE(test_lose_pasids),
	KUNIT_CASE(test_replace_foreign_domain),
	KUNIT_CASE(test_revoke_newest_first),
	KUNIT_CASE(test_movable),
	KUNIT_CASE(test_claimed),
	KUNIT_CASE(test_claimed_both),
	KUNIT_CASE(test_claimed_late),
	KUNIT_CASE(test_claim_during_revoke),
	KUNIT_CASE(test_put_late),
	KUNIT_CASE(test_moved_lower),
	KUNIT_CASE(test_stuck_elsewhere),
#ifdef TEST_SVA
	KUNIT_CASE(test_sva),
	KUNIT_CASE(test_sva_request),
	KUNIT_CASE(test_sva_revoked),
	KUNIT_CASE(test_sva_comes_back),
	KUNIT_CASE(test_sva_notified),
	KUNIT_CASE(test_sva_request_revoked),
	KUNIT_CASE(test_sva_unplugged),
	KUNIT_CASE(test_sva_unplugged_of_two),
	KUNIT_CASE(test_sva_unplugged_revoked),
	KUNIT_CASE(test_sva_reported),
	KUNIT_CASE(test_sva_bind_waits),
#endif
	KUNIT_CASE(test_hang_is_reported),
	KUNIT_CASE(test_second_hang_is_reported),
	{}
};

static struct kunit_suite iommu_device_test_suite = {
	.name = "iommu_device",
	.init = test_init,
	.exit = test_exit,
	.test_cases = iommu_device_test_cases,
};

kunit_test_suite(iommu_device_test_suite);
