// SPDX-License-Identifier: GPL-2.0-only
/*
 * An IOMMU driver in a module of its own, to test that it cannot be unloaded
 * under what iommufd made with it. The mock driver cannot tell, since it is a
 * part of iommufd.
 *
 * Opening /dev/iommufd_test_driver plugs a device in behind its IOMMU, an ioctl
 * binds it to an iommufd, and closing unbinds and unplugs it.
 */
#include <linux/fs.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/property.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <uapi/linux/iommufd.h>

#include "iommufd_test.h"

#define TEST_DEVICE_NAME "iommufd_test_driver_dev"

static bool fwnode = true;
module_param(fwnode, bool, 0444);
MODULE_PARM_DESC(fwnode,
		 "Give the IOMMU a firmware node by which its devices name it. If not, it can have them if no other IOMMU is without one (default: Y)");

static struct iommu_device test_iommu;
static struct platform_device *test_hwdev;
static struct fwnode_handle *test_fwnode;

struct test_device {
	/* Guards idev and ictx */
	struct mutex lock;
	struct platform_device *pdev;
	struct iommufd_device *idev;
	struct iommufd_ctx *ictx;
};

/* Bytes of the module that its callbacks need */
static int test_magic = 0x7e57;

struct test_viommu {
	struct iommufd_viommu core;
	int magic;
};

static void test_viommu_destroy(struct iommufd_viommu *viommu)
{
	WARN_ON(container_of(viommu, struct test_viommu, core)->magic !=
		test_magic);
}

static const struct iommufd_viommu_ops test_viommu_ops = {
	.destroy = test_viommu_destroy,
};

static size_t test_get_hw_queue_size(struct iommufd_viommu *viommu,
				     enum iommu_hw_queue_type queue_type)
{
	return sizeof(struct iommufd_hw_queue);
}

/* It has get_hw_queue_size, but no hw_queue_init_phys */
static const struct iommufd_viommu_ops test_plain_viommu_ops = {
	.get_hw_queue_size = test_get_hw_queue_size,
};

static size_t test_get_viommu_size(struct device *dev,
				   enum iommu_viommu_type viommu_type)
{
	if (viommu_type == IOMMU_VIOMMU_TYPE_SELFTEST_PLAIN)
		return sizeof(struct iommufd_viommu);
	if (viommu_type != IOMMU_VIOMMU_TYPE_SELFTEST)
		return 0;
	return VIOMMU_STRUCT_SIZE(struct test_viommu, core);
}

static int test_viommu_init(struct iommufd_viommu *viommu,
			    struct iommu_domain *parent_domain,
			    const struct iommu_user_data *user_data)
{
	if (viommu->type == IOMMU_VIOMMU_TYPE_SELFTEST_PLAIN) {
		viommu->ops = &test_plain_viommu_ops;
		return 0;
	}
	container_of(viommu, struct test_viommu, core)->magic = test_magic;
	viommu->ops = &test_viommu_ops;
	return 0;
}

static int test_attach_dev(struct iommu_domain *domain, struct device *dev)
{
	return 0;
}

static void test_domain_free(struct iommu_domain *domain)
{
	kfree(domain);
}

static const struct iommu_domain_ops test_domain_ops = {
	.attach_dev = test_attach_dev,
	.free = test_domain_free,
};

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &(const struct iommu_domain_ops){
		.attach_dev = test_attach_dev,
	},
};

/* Nothing is mapped in the tests, so there is no page table */
static struct iommu_domain *
test_domain_alloc_user(struct device *dev, u32 flags,
		       struct iommu_domain *parent,
		       const struct iommu_user_data *user_data)
{
	struct iommu_domain *domain;

	if (parent || user_data || (flags & ~IOMMU_HWPT_ALLOC_NEST_PARENT))
		return ERR_PTR(-EOPNOTSUPP);
	domain = kzalloc(sizeof(*domain), GFP_KERNEL);
	if (!domain)
		return ERR_PTR(-ENOMEM);
	domain->type = IOMMU_DOMAIN_UNMANAGED;
	domain->ops = &test_domain_ops;
	domain->pgsize_bitmap = PAGE_SIZE;
	domain->geometry.aperture_end = ULONG_MAX;
	return domain;
}

static bool test_capable(struct device *dev, enum iommu_cap cap)
{
	return cap == IOMMU_CAP_CACHE_COHERENCY;
}

static struct iommu_device *test_probe_device(struct device *dev)
{
	/* Without a node it would be asked about all devices without one */
	if (dev->bus != &platform_bus_type ||
	    strcmp(to_platform_device(dev)->name, TEST_DEVICE_NAME))
		return ERR_PTR(-ENODEV);
	return &test_iommu;
}

static const struct iommu_ops test_ops = {
	.owner = THIS_MODULE,
	.capable = test_capable,
	.default_domain = &test_blocked_domain,
	.blocked_domain = &test_blocked_domain,
	.domain_alloc_user = test_domain_alloc_user,
	.probe_device = test_probe_device,
	.device_group = generic_device_group,
	.get_viommu_size = test_get_viommu_size,
	.viommu_init = test_viommu_init,
};

/* What firmware code does for a device that is described as behind an IOMMU */
static int test_set_fwspec(struct device *dev)
{
	struct iommu_fwspec *fwspec;

	if (!test_fwnode)
		return 0;
	fwspec = kzalloc(sizeof(*fwspec), GFP_KERNEL);
	dev->iommu = kzalloc(sizeof(*dev->iommu), GFP_KERNEL);
	if (!fwspec || !dev->iommu) {
		kfree(fwspec);
		kfree(dev->iommu);
		dev->iommu = NULL;
		return -ENOMEM;
	}
	mutex_init(&dev->iommu->lock);
	fwspec->iommu_fwnode = fwnode_handle_get(test_fwnode);
	dev_iommu_fwspec_set(dev, fwspec);
	return 0;
}

static int test_open(struct inode *inode, struct file *file)
{
	struct test_device *test;
	int rc;

	test = kzalloc(sizeof(*test), GFP_KERNEL);
	if (!test)
		return -ENOMEM;
	test->pdev = platform_device_alloc(TEST_DEVICE_NAME,
					   PLATFORM_DEVID_AUTO);
	if (!test->pdev) {
		kfree(test);
		return -ENOMEM;
	}
	rc = test_set_fwspec(&test->pdev->dev);
	if (!rc)
		rc = platform_device_add(test->pdev);
	if (rc) {
		platform_device_put(test->pdev);
		kfree(test);
		return rc;
	}
	mutex_init(&test->lock);
	file->private_data = test;
	return 0;
}

static int test_bind(struct test_device *test, int iommufd, u32 *dev_id)
{
	int rc;

	lockdep_assert_held(&test->lock);

	if (test->idev)
		return -EBUSY;
	test->ictx = iommufd_ctx_from_fd(iommufd);
	if (IS_ERR(test->ictx))
		return PTR_ERR(test->ictx);
	test->idev = iommufd_device_bind(test->ictx, &test->pdev->dev, dev_id);
	if (IS_ERR(test->idev)) {
		rc = PTR_ERR(test->idev);
		test->idev = NULL;
		iommufd_ctx_put(test->ictx);
		return rc;
	}
	return 0;
}

static void test_unbind(struct test_device *test)
{
	if (!test->idev)
		return;
	iommufd_device_unbind(test->idev);
	iommufd_ctx_put(test->ictx);
	test->idev = NULL;
}

static long test_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct test_device *test = file->private_data;
	void __user *uptr = (void __user *)arg;
	struct iommufd_test_driver_bind bind;
	int rc;

	if (cmd != IOMMUFD_TEST_DRIVER_BIND)
		return -ENOTTY;
	if (copy_from_user(&bind, uptr, sizeof(bind)))
		return -EFAULT;

	mutex_lock(&test->lock);
	rc = test_bind(test, bind.iommufd, &bind.out_dev_id);
	if (!rc && copy_to_user(uptr, &bind, sizeof(bind))) {
		test_unbind(test);
		rc = -EFAULT;
	}
	mutex_unlock(&test->lock);
	return rc;
}

static int test_release(struct inode *inode, struct file *file)
{
	struct test_device *test = file->private_data;

	test_unbind(test);
	platform_device_unregister(test->pdev);
	kfree(test);
	return 0;
}

static const struct file_operations test_fops = {
	.owner = THIS_MODULE,
	.open = test_open,
	.release = test_release,
	.unlocked_ioctl = test_ioctl,
};

static struct miscdevice test_misc_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "iommufd_test_driver",
	.fops = &test_fops,
	.mode = 0600,
};

static int __init test_driver_init(void)
{
	struct platform_device_info info = {
		.name = "iommufd_test_driver_iommu",
	};
	int rc;

	if (fwnode) {
		test_fwnode = fwnode_create_software_node(NULL, NULL);
		if (IS_ERR(test_fwnode))
			return PTR_ERR(test_fwnode);
		info.fwnode = test_fwnode;
	}
	test_hwdev = platform_device_register_full(&info);
	if (IS_ERR(test_hwdev)) {
		rc = PTR_ERR(test_hwdev);
		goto err_fwnode;
	}
	rc = iommu_device_sysfs_add(&test_iommu, &test_hwdev->dev, NULL, "%s",
				    info.name);
	if (rc)
		goto err_hwdev;
	rc = iommu_device_register(&test_iommu, &test_ops, &test_hwdev->dev);
	if (rc)
		goto err_sysfs;
	rc = misc_register(&test_misc_dev);
	if (rc)
		goto err_iommu;
	return 0;

err_iommu:
	iommu_device_unregister(&test_iommu);
err_sysfs:
	iommu_device_sysfs_remove(&test_iommu);
err_hwdev:
	platform_device_unregister(test_hwdev);
err_fwnode:
	fwnode_remove_software_node(test_fwnode);
	return rc;
}
module_init(test_driver_init);

static void __exit test_driver_exit(void)
{
	misc_deregister(&test_misc_dev);
	iommu_device_unregister(&test_iommu);
	iommu_device_sysfs_remove(&test_iommu);
	platform_device_unregister(test_hwdev);
	fwnode_remove_software_node(test_fwnode);
}
module_exit(test_driver_exit);

MODULE_IMPORT_NS(IOMMUFD);
MODULE_DESCRIPTION("IOMMU driver for tests of its removal");
MODULE_LICENSE("GPL");
