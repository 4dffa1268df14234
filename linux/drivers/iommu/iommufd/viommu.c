// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vIOMMU is a VM's slice of one physical IOMMU. User space names the physical
 * IOMMU by a device behind it, but the vIOMMU holds the physical IOMMU itself:
 *
 *    vIOMMU --users----------> nesting parent HWPT
 *    vIOMMU --iommu_device_tryget()--> struct iommu_device --> driver's module
 *
 * and nothing of the device, which may be unplugged while the vIOMMU stays.
 *
 * The physical IOMMU may go away as well. It does not wait for user space then:
 * iommu_device_unregister() revokes the vIOMMU, which parts with both of them
 * and stays as an ID that answers ENODEV.
 */
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <uapi/linux/iommufd.h>

#include "iommufd_private.h"

/* Release the driver's part, and the references that are held for it */
static void iommufd_viommu_release(struct iommufd_viommu *viommu)
{
	if (viommu->ops->destroy)
		viommu->ops->destroy(viommu);
	refcount_dec(&viommu->hwpt->common.obj.users);
	/* The driver, its ops included, may be gone from here on */
	iommu_device_put_holder(&viommu->holder);
}

/*
 * The physical IOMMU goes away. This runs against everything that a file can do
 * meanwhile, up to being closed:
 *
 *  - ioctls that have looked the vIOMMU up are waited for, others get ENODEV;
 *  - an allocation that has not published the vIOMMU yet goes on and publishes
 *    what is left of it, for it does not need the driver any more;
 *  - a destroy that has begun releases the vIOMMU by itself, and is waited for, and
 *    one that has not waits in iommu_device_claim_holder().
 */
static bool iommufd_viommu_revoke(struct iommu_device_holder *holder)
{
	struct iommufd_viommu *viommu =
		container_of(holder, struct iommufd_viommu, holder);

	if (!iommufd_object_revoke(viommu->ictx, &viommu->obj))
		return false;
	iommufd_viommu_release(viommu);
	return true;
}

static const struct iommu_device_holder_ops iommufd_viommu_holder_ops = {
	.name = "iommufd vIOMMU",
	.revoke = iommufd_viommu_revoke,
};

void iommufd_viommu_destroy(struct iommufd_object *obj)
{
	struct iommufd_viommu *viommu =
		container_of(obj, struct iommufd_viommu, obj);

	if (iommu_device_claim_holder(&viommu->holder))
		iommufd_viommu_release(viommu);
}

/* The reference on iommu_dev moves into the vIOMMU, unless this fails */
static struct iommufd_viommu *
iommufd_viommu_alloc(struct iommufd_ctx *ictx, struct iommu_device *iommu_dev,
		     size_t size, enum iommu_viommu_type type,
		     struct iommufd_hwpt_paging *hwpt_paging,
		     const struct iommu_user_data *user_data)
{
	const struct iommu_ops *ops = iommu_dev->ops;
	struct iommufd_viommu *viommu;
	struct iommufd_object *obj;
	int rc;

	/*
	 * A parent that another driver made is not what viommu_init() expects. One
	 * that goes away with another instance could go before this.
	 */
	if (!hwpt_paging->nest_parent ||
	    hwpt_paging->common.domain->owner != ops)
		return ERR_PTR(-EINVAL);
	if (!iommufd_hwpt_is_shared(&hwpt_paging->common) &&
	    hwpt_paging->common.holder.iommu != iommu_dev)
		return ERR_PTR(-EINVAL);

	obj = _iommufd_object_alloc(ictx, size, IOMMUFD_OBJ_VIOMMU);
	if (IS_ERR(obj))
		return ERR_CAST(obj);

	viommu = container_of(obj, struct iommufd_viommu, obj);
	viommu->ictx = ictx;
	viommu->iommu_dev = iommu_dev;
	viommu->hwpt = hwpt_paging;
	viommu->type = type;

	rc = ops->viommu_init(viommu, hwpt_paging->common.domain, user_data);
	if (!rc && WARN_ON_ONCE(!viommu->ops))
		rc = -EINVAL;
	if (rc) {
		iommufd_object_abort(ictx, obj);
		return ERR_PTR(rc);
	}

	refcount_inc(&hwpt_paging->common.obj.users);

	/* From here on the vIOMMU can be revoked, the driver is not needed */
	rc = iommu_device_add_holder(iommu_dev, &viommu->holder,
				     &iommufd_viommu_holder_ops);
	if (rc) {
		if (viommu->ops->destroy)
			viommu->ops->destroy(viommu);
		refcount_dec(&hwpt_paging->common.obj.users);
		iommufd_object_abort(ictx, obj);
		return ERR_PTR(rc);
	}
	return viommu;
}

static int iommufd_user_data_write(const struct iommu_user_data *user_data)
{
	struct iommu_user_buffer *buffer = user_data->buffer;

	if (buffer && buffer->written &&
	    copy_to_user(user_data->uptr, buffer->data, user_data->len))
		return -EFAULT;
	return 0;
}

/*
 * The reference on the physical IOMMU is held while the driver makes its part of
 * the vIOMMU. User memory is read before that and written after it, since user
 * space decides how long that takes.
 */
int iommufd_viommu_alloc_ioctl(struct iommufd_ucmd *ucmd)
{
	struct iommu_viommu_alloc *cmd = ucmd->cmd;
	struct iommu_user_data user_data = {
		.type = cmd->type,
		.uptr = u64_to_user_ptr(cmd->data_uptr),
		.len = cmd->data_len,
	};
	struct iommufd_hwpt_paging *hwpt_paging;
	struct iommu_device *iommu_dev;
	const struct iommu_ops *ops;
	struct iommufd_viommu *viommu;
	struct iommufd_device *idev;
	size_t size = 0;
	int rc;

	if (cmd->flags || cmd->__reserved ||
	    cmd->type == IOMMU_VIOMMU_TYPE_DEFAULT)
		return -EOPNOTSUPP;

	rc = iommufd_user_data_read(&user_data);
	if (rc)
		return rc;

	idev = iommufd_get_device(ucmd, cmd->dev_id);
	if (IS_ERR(idev)) {
		rc = PTR_ERR(idev);
		goto out_free_data;
	}

	iommu_dev = idev->iommu_dev;
	if (!iommu_device_tryget(iommu_dev)) {
		rc = -ENODEV;
		iommufd_put_object(ucmd->ictx, &idev->obj);
		goto out_free_data;
	}

	ops = iommu_dev->ops;
	if (ops->get_viommu_size && ops->viommu_init)
		size = ops->get_viommu_size(idev->dev, cmd->type);

	/* The device has served its purpose, do not delay its unplug */
	iommufd_put_object(ucmd->ictx, &idev->obj);

	if (!size || WARN_ON_ONCE(size < sizeof(*viommu))) {
		rc = -EOPNOTSUPP;
		goto out_put_iommu;
	}

	hwpt_paging = iommufd_get_hwpt_paging(ucmd, cmd->hwpt_id);
	if (IS_ERR(hwpt_paging)) {
		rc = PTR_ERR(hwpt_paging);
		goto out_put_iommu;
	}

	viommu = iommufd_viommu_alloc(ucmd->ictx, iommu_dev, size, cmd->type,
				      hwpt_paging,
				      user_data.len ? &user_data : NULL);
	iommufd_put_object(ucmd->ictx, &hwpt_paging->common.obj);
	if (IS_ERR(viommu)) {
		rc = PTR_ERR(viommu);
		goto out_put_iommu;
	}

	cmd->out_viommu_id = viommu->obj.id;
	rc = iommufd_user_data_write(&user_data);
	if (!rc)
		rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
	if (rc)
		iommufd_object_abort_and_destroy(ucmd->ictx, &viommu->obj);
	else
		iommufd_object_finalize(ucmd->ictx, &viommu->obj);
	goto out_free_data;

out_put_iommu:
	iommu_device_put(iommu_dev);
out_free_data:
	kfree(user_data.buffer);
	return rc;
}
