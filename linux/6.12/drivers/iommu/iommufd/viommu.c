// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vIOMMU is a VM's slice of one physical IOMMU. User space names the physical
 * IOMMU by a device behind it, but the vIOMMU holds the physical IOMMU itself:
 *
 *    vIOMMU --users----------> nesting parent HWPT
 *    vIOMMU --iommu_device_tryget()--> struct iommu_device --> driver's module
 *
 * It holds nothing of the device, which may be unplugged while the vIOMMU
 * stays.
 *
 * The physical IOMMU may go away as well, without waiting for user space:
 * iommu_device_unregister() revokes the vIOMMU, which then drops both
 * references and stays as an ID that answers ENODEV.
 */
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <uapi/linux/iommufd.h>

#include "iommufd_private.h"

static void iommufd_viommu_undo_init(struct iommufd_viommu *viommu)
{
	if (viommu->ops->destroy)
		viommu->ops->destroy(viommu);
}

static void iommufd_viommu_release(struct iommufd_viommu *viommu)
{
	iommufd_viommu_undo_init(viommu);
	/* The driver, its ops included, may be gone from here on */
	iommu_device_put_holder(&viommu->holder);
	/* Last, since the parent's holder must outlive this one's */
	refcount_dec(&viommu->hwpt->common.obj.users);
}

/*
 * The physical IOMMU goes away. This can race with everything that user space
 * does with the file, including closing it:
 *
 *  - ioctls that have looked up the vIOMMU are waited for, others get ENODEV;
 *  - an allocation that has not published the vIOMMU yet does not need the
 *    driver any more. It goes on and publishes the revoked vIOMMU;
 *  - a destroy that has begun releases the vIOMMU by itself, and is waited for;
 *    a later one waits in iommu_device_claim_holder().
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
	/* A reservation that failed can have left nodes */
	if (!xa_empty(&viommu->vdevs))
		xa_destroy(&viommu->vdevs);
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
	 * viommu_init() expects a parent that the same driver made. A parent
	 * that belongs to another instance could go away before this vIOMMU.
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
	xa_init_flags(&viommu->vdevs, XA_FLAGS_ACCOUNT);
	spin_lock_init(&viommu->virt_id_lock);
	spin_lock_init(&viommu->veventqs_lock);
	viommu->veventqs = RB_ROOT;

	rc = ops->viommu_init(viommu, hwpt_paging->common.domain, user_data);
	if (!rc && WARN_ON_ONCE(!viommu->ops))
		rc = -EINVAL;
	if (rc) {
		iommufd_object_abort(ictx, obj);
		return ERR_PTR(rc);
	}

	refcount_inc(&hwpt_paging->common.obj.users);

	/* From here on the vIOMMU can be revoked, the driver is not needed */
	rc = iommu_device_add_upper_holder(iommu_dev,
					   &hwpt_paging->common.holder,
					   &viommu->holder,
					   &iommufd_viommu_holder_ops);
	if (rc) {
		iommufd_viommu_undo_init(viommu);
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
	u8 small[IOMMUFD_USER_DATA_SMALL] __uninitialized;
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

	rc = iommufd_user_data_read(&user_data, small);
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
	iommufd_user_data_free(&user_data, small);
	return rc;
}

/*
 * Three paths can tear a vDEVICE down at the same time: user space destroys it or
 * closes the file; its device is unbound; the physical IOMMU goes away and it is
 * revoked. One of them takes it, under the xa_lock of ictx->objects, and does the work:
 *
 *  - user space, by taking the ID out of the xarray first. The unbind waits for it
 *    in iommufd_device_remove_vdevice(), the revocation as for every holder;
 *  - the unbind, if the object is not being destroyed. It leaves nothing behind but
 *    the reservation of the ID, and never waits for a path that waits for it;
 *  - the revocation, if neither of them was there. It leaves an object that answers
 *    ENODEV, for user space to destroy.
 *
 * idev->vdev is set until the work is done, since it needs the device.
 */
static bool iommufd_vdevice_take(struct iommufd_vdevice *vdev)
{
	lockdep_assert_held(&vdev->ictx->objects.xa_lock);

	if (vdev->taken)
		return false;
	vdev->taken = true;
	return true;
}

/* Let the driver look up the device by virtual ID, and the ID by device */
static void iommufd_vdevice_publish(struct iommufd_vdevice *vdev)
{
	struct iommufd_viommu *viommu = vdev->viommu;
	struct dev_iommu *param = vdev->idev->dev->iommu;

	xa_lock(&viommu->vdevs);
	vdev->hidden = false;
	xa_unlock(&viommu->vdevs);

	spin_lock_irq(&viommu->virt_id_lock);
	param->virt_id = vdev->virt_id;
	WRITE_ONCE(param->viommu, viommu);
	spin_unlock_irq(&viommu->virt_id_lock);
}

/* The ID stays reserved: a caller that looked it up means this device */
static void iommufd_vdevice_unpublish(struct iommufd_vdevice *vdev)
{
	struct iommufd_viommu *viommu = vdev->viommu;
	struct dev_iommu *param = vdev->idev->dev->iommu;

	spin_lock_irq(&viommu->virt_id_lock);
	WRITE_ONCE(param->viommu, NULL);
	spin_unlock_irq(&viommu->virt_id_lock);

	xa_lock(&viommu->vdevs);
	vdev->hidden = true;
	xa_unlock(&viommu->vdevs);
}

static void iommufd_vdevice_undo_init(struct iommufd_vdevice *vdev)
{
	iommufd_vdevice_unpublish(vdev);
	if (vdev->destroy)
		vdev->destroy(vdev);
	xa_erase(&vdev->viommu->vdevs, vdev->virt_id);
	refcount_dec(&vdev->viommu->obj.users);
}

/* Only for the path that owns the tear-down, see iommufd_vdevice_take() */
static void iommufd_vdevice_release(struct iommufd_vdevice *vdev)
{
	struct iommufd_device *idev = vdev->idev;
	struct iommufd_ctx *ictx = vdev->ictx;

	iommufd_vdevice_undo_init(vdev);
	iommu_device_put_holder(&vdev->holder);

	/* Others that see these stores may free the device and the vDEVICE */
	xa_lock(&ictx->objects);
	/* Pairs with iommufd_device_remove_vdevice() */
	smp_store_release(&idev->vdev, NULL);
	/* Pairs with iommufd_vdevice_wait_released() */
	smp_store_release(&vdev->released, true);
	xa_unlock(&ictx->objects);
	if (wq_has_sleeper(&ictx->destroy_wait))
		wake_up_all(&ictx->destroy_wait);
}

static void iommufd_vdevice_wait_released(struct iommufd_vdevice *vdev)
{
	/* Pairs with iommufd_vdevice_release() */
	wait_event(vdev->ictx->destroy_wait, smp_load_acquire(&vdev->released));
}

static bool iommufd_vdevice_revoke(struct iommu_device_holder *holder)
{
	struct iommufd_vdevice *vdev =
		container_of(holder, struct iommufd_vdevice, holder);
	struct iommufd_ctx *ictx = vdev->ictx;

	xa_lock(&ictx->objects);
	if (!refcount_read(&vdev->obj.users) || !iommufd_vdevice_take(vdev)) {
		xa_unlock(&ictx->objects);
		return false;
	}
	vdev->obj.revoked = true;
	xa_unlock(&ictx->objects);

	iommufd_object_drain(ictx, &vdev->obj);
	iommufd_vdevice_release(vdev);
	return true;
}

static const struct iommu_device_holder_ops iommufd_vdevice_holder_ops = {
	.name = "iommufd vDEVICE",
	.revoke = iommufd_vdevice_revoke,
};

/* Also for one that is not published yet. Its device may be unbound by now. */
void iommufd_vdevice_destroy(struct iommufd_object *obj)
{
	struct iommufd_vdevice *vdev =
		container_of(obj, struct iommufd_vdevice, obj);
	bool taken;

	xa_lock(&vdev->ictx->objects);
	taken = iommufd_vdevice_take(vdev);
	xa_unlock(&vdev->ictx->objects);

	if (!taken && vdev->removed) {
		iommufd_vdevice_wait_released(vdev);
		return;
	}
	/* If this claims it, the revocation did not run and will not */
	if (iommu_device_claim_holder(&vdev->holder))
		iommufd_vdevice_release(vdev);
}

/*
 * The device is being unbound and is not in use any more. So a vDEVICE that is
 * found here is complete, though its object may not be finalized yet.
 */
static void iommufd_device_remove_vdevice(struct iommufd_device *idev)
{
	struct iommufd_ctx *ictx = idev->ictx;
	struct iommufd_vdevice *vdev;
	bool published = false;
	bool taken = false;

	xa_lock(&ictx->objects);
	vdev = idev->vdev;
	if (vdev && refcount_read(&vdev->obj.users))
		taken = iommufd_vdevice_take(vdev);
	if (taken) {
		vdev->removed = true;
		published = vdev->obj.finalized;
		/* The slot is there, so this does not allocate memory */
		if (published)
			__xa_store(&ictx->objects, vdev->obj.id, XA_ZERO_ENTRY,
				   GFP_NOWAIT);
	}
	xa_unlock(&ictx->objects);

	if (!taken) {
		/* Pairs with iommufd_vdevice_release() */
		wait_event(ictx->destroy_wait, !smp_load_acquire(&idev->vdev));
		return;
	}

	/* A look-up for any type may hold it for a moment: wait for that */
	if (published)
		iommufd_object_drain(ictx, &vdev->obj);
	iommu_device_claim_holder(&vdev->holder);
	iommufd_vdevice_release(vdev);
	/* Otherwise the ioctl that makes it frees it */
	if (published)
		kfree(vdev);
}

/* If the device was unbound meanwhile, free the vDEVICE and reserve its ID */
static void iommufd_vdevice_finalize(struct iommufd_vdevice *vdev)
{
	struct iommufd_ctx *ictx = vdev->ictx;
	bool removed;

	xa_lock(&ictx->objects);
	removed = vdev->removed;
	if (removed)
		__xa_store(&ictx->objects, vdev->obj.id, XA_ZERO_ENTRY,
			   GFP_NOWAIT);
	else
		__iommufd_object_finalize(ictx, &vdev->obj);
	xa_unlock(&ictx->objects);

	if (removed) {
		iommufd_vdevice_wait_released(vdev);
		kfree(vdev);
	}
}

static struct iommufd_vdevice *
iommufd_vdevice_alloc(struct iommufd_viommu *viommu,
		      struct iommufd_device *idev, unsigned long virt_id)
{
	const struct iommufd_viommu_ops *ops = viommu->ops;
	struct iommufd_ctx *ictx = viommu->ictx;
	struct iommufd_vdevice *vdev;
	struct iommufd_object *obj;
	size_t size;
	int rc;

	/* Both hold the instance that they point to, so it is there */
	if (idev->iommu_dev != viommu->iommu_dev)
		return ERR_PTR(-EINVAL);

	size = ops->vdevice_size ?: sizeof(*vdev);
	if (WARN_ON_ONCE(size < sizeof(*vdev)))
		return ERR_PTR(-EOPNOTSUPP);

	obj = _iommufd_object_alloc(ictx, size, IOMMUFD_OBJ_VDEVICE);
	if (IS_ERR(obj))
		return ERR_CAST(obj);
	vdev = container_of(obj, struct iommufd_vdevice, obj);
	vdev->ictx = ictx;
	vdev->viommu = viommu;
	vdev->idev = idev;
	vdev->virt_id = virt_id;

	/* An unbind of the device waits until the caller is done with it */
	xa_lock(&ictx->objects);
	rc = idev->vdev ? -EEXIST : 0;
	if (!rc) {
		idev->vdev = vdev;
		idev->remove_vdevice = iommufd_device_remove_vdevice;
	}
	xa_unlock(&ictx->objects);
	if (rc)
		goto out_abort;

	/* Takes the ID. No look-up finds it before iommufd_vdevice_publish(). */
	vdev->hidden = true;
	rc = xa_insert(&viommu->vdevs, virt_id, vdev, GFP_KERNEL_ACCOUNT);
	if (rc) {
		if (rc == -EBUSY)
			rc = -EEXIST;
		goto out_idev;
	}

	if (ops->vdevice_init) {
		rc = ops->vdevice_init(vdev);
		if (rc)
			goto out_erase;
	}
	iommufd_vdevice_publish(vdev);
	refcount_inc(&viommu->obj.users);

	/* From here on it can be revoked, and removed when the device is put */
	rc = iommu_device_stack_holder(&viommu->holder, &vdev->holder,
				       &iommufd_vdevice_holder_ops);
	if (rc)
		goto out_destroy;
	return vdev;

out_destroy:
	iommufd_vdevice_undo_init(vdev);
	goto out_idev;
out_erase:
	xa_erase(&viommu->vdevs, virt_id);
out_idev:
	xa_lock(&ictx->objects);
	idev->vdev = NULL;
	xa_unlock(&ictx->objects);
out_abort:
	iommufd_object_abort(ictx, obj);
	return ERR_PTR(rc);
}

int iommufd_vdevice_alloc_ioctl(struct iommufd_ucmd *ucmd)
{
	struct iommu_vdevice_alloc *cmd = ucmd->cmd;
	struct iommufd_vdevice *vdev;
	struct iommufd_viommu *viommu;
	struct iommufd_device *idev;
	int rc;

	/* It is the index of an xarray */
	if (cmd->virt_id > ULONG_MAX)
		return -EINVAL;

	viommu = iommufd_get_viommu(ucmd, cmd->viommu_id);
	if (IS_ERR(viommu))
		return PTR_ERR(viommu);

	idev = iommufd_get_device(ucmd, cmd->dev_id);
	if (IS_ERR(idev)) {
		iommufd_put_object(ucmd->ictx, &viommu->obj);
		return PTR_ERR(idev);
	}

	vdev = iommufd_vdevice_alloc(viommu, idev, cmd->virt_id);
	/* User space decides how long it takes to write to its memory */
	iommufd_put_object(ucmd->ictx, &idev->obj);
	iommufd_put_object(ucmd->ictx, &viommu->obj);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);

	cmd->out_vdevice_id = vdev->obj.id;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
	if (rc)
		iommufd_object_abort_and_destroy(ucmd->ictx, &vdev->obj);
	else
		iommufd_vdevice_finalize(vdev);
	return rc;
}

static void iommufd_hw_queue_undo_init(struct iommufd_hw_queue *hw_queue)
{
	if (hw_queue->destroy)
		hw_queue->destroy(hw_queue);
	refcount_dec(&hw_queue->viommu->obj.users);
}

/*
 * Stop the physical IOMMU's access to the queue. The memory stays pinned until
 * user space destroys the queue. Unpinning it takes locks of the IOAS, and
 * others can hold these for as long as user space likes, while they pin pages.
 */
static void iommufd_hw_queue_release(struct iommufd_hw_queue *hw_queue)
{
	iommufd_hw_queue_undo_init(hw_queue);
	iommu_device_put_holder(&hw_queue->holder);
}

static bool iommufd_hw_queue_revoke(struct iommu_device_holder *holder)
{
	struct iommufd_hw_queue *hw_queue =
		container_of(holder, struct iommufd_hw_queue, holder);

	if (!iommufd_object_revoke(hw_queue->access->ictx, &hw_queue->obj))
		return false;
	iommufd_hw_queue_release(hw_queue);
	return true;
}

static const struct iommu_device_holder_ops iommufd_hw_queue_holder_ops = {
	.name = "iommufd HW queue",
	.revoke = iommufd_hw_queue_revoke,
};

static void iommufd_hw_queue_unpin(struct iommufd_access *access,
				   unsigned long iova, unsigned long length)
{
	iommufd_access_unpin_pages(access, iova - offset_in_page(iova),
				   length + offset_in_page(iova));
	iommufd_access_destroy_internal(access);
}

void iommufd_hw_queue_destroy(struct iommufd_object *obj)
{
	struct iommufd_hw_queue *hw_queue =
		container_of(obj, struct iommufd_hw_queue, obj);

	if (iommu_device_claim_holder(&hw_queue->holder))
		iommufd_hw_queue_release(hw_queue);
	iommufd_hw_queue_unpin(hw_queue->access, hw_queue->base_addr,
			       hw_queue->length);
}

static struct iommufd_access *
iommufd_hw_queue_pin(struct iommufd_ctx *ictx, struct iommufd_ioas *ioas,
		     unsigned long iova, unsigned long length, phys_addr_t *pa)
{
	struct iommufd_access *access;
	int rc;

	access = iommufd_access_create_internal(ictx, ioas);
	if (IS_ERR(access))
		return access;
	rc = iommufd_access_pin_contig(access, iova, length, pa);
	if (rc) {
		iommufd_access_destroy_internal(access);
		return ERR_PTR(rc);
	}
	return access;
}

/* The access moves into the queue, unless this fails */
static struct iommufd_hw_queue *
iommufd_hw_queue_alloc(struct iommufd_viommu *viommu, size_t size,
		       const struct iommu_hw_queue_alloc *cmd,
		       struct iommufd_access *access, phys_addr_t pa)
{
	struct iommufd_hw_queue *hw_queue;
	struct iommufd_object *obj;
	int rc;

	obj = _iommufd_object_alloc(viommu->ictx, size, IOMMUFD_OBJ_HW_QUEUE);
	if (IS_ERR(obj))
		return ERR_CAST(obj);
	hw_queue = container_of(obj, struct iommufd_hw_queue, obj);
	hw_queue->viommu = viommu;
	hw_queue->access = access;
	hw_queue->base_addr = cmd->nesting_parent_iova;
	hw_queue->length = cmd->length;
	hw_queue->type = cmd->type;

	rc = viommu->ops->hw_queue_init_phys(hw_queue, cmd->index, pa);
	if (rc)
		goto out_abort;
	refcount_inc(&viommu->obj.users);

	/* From here on it can be revoked, which waits until it is not in use */
	refcount_inc(&obj->shortterm_users);
	rc = iommu_device_stack_holder(&viommu->holder, &hw_queue->holder,
				       &iommufd_hw_queue_holder_ops);
	if (rc)
		goto out_destroy;
	/* Holders go newest first: no need to hold off @depended any more */
	if (hw_queue->depended) {
		hw_queue->depended_locked = false;
		iommufd_object_pause(viommu->ictx, &hw_queue->depended->obj);
	}
	iommufd_object_pause(viommu->ictx, obj);
	return hw_queue;

out_destroy:
	iommufd_hw_queue_undo_init(hw_queue);
out_abort:
	iommufd_object_abort(viommu->ictx, obj);
	return ERR_PTR(rc);
}

int iommufd_hw_queue_alloc_ioctl(struct iommufd_ucmd *ucmd)
{
	struct iommu_hw_queue_alloc *cmd = ucmd->cmd;
	struct iommufd_hw_queue *hw_queue;
	struct iommufd_viommu *viommu;
	struct iommufd_access *access;
	struct iommufd_ioas *ioas;
	size_t size = 0;
	phys_addr_t pa;
	u64 last;
	int rc;

	if (cmd->flags || cmd->type == IOMMU_HW_QUEUE_TYPE_DEFAULT)
		return -EOPNOTSUPP;
	if (!cmd->length)
		return -EINVAL;
	if (check_add_overflow(cmd->nesting_parent_iova, cmd->length - 1,
			       &last) ||
	    last > ULONG_MAX)
		return -EOVERFLOW;

	viommu = iommufd_get_viommu(ucmd, cmd->viommu_id);
	if (IS_ERR(viommu))
		return PTR_ERR(viommu);

	if (viommu->ops->get_hw_queue_size && viommu->ops->hw_queue_init_phys)
		size = viommu->ops->get_hw_queue_size(viommu, cmd->type);
	if (!size || WARN_ON_ONCE(size < sizeof(*hw_queue))) {
		iommufd_put_object(ucmd->ictx, &viommu->obj);
		return -EOPNOTSUPP;
	}

	/* User space decides how long it takes to pin its memory */
	ioas = viommu->hwpt->ioas;
	refcount_inc(&ioas->obj.users);
	iommufd_object_pause(ucmd->ictx, &viommu->obj);
	access = iommufd_hw_queue_pin(ucmd->ictx, ioas,
				      cmd->nesting_parent_iova, cmd->length,
				      &pa);
	refcount_dec(&ioas->obj.users);
	if (IS_ERR(access)) {
		rc = PTR_ERR(access);
		goto out_viommu;
	}
	if (!iommufd_object_resume(ucmd->ictx, &viommu->obj)) {
		rc = -ENODEV;
		goto out_unpin;
	}

	hw_queue = iommufd_hw_queue_alloc(viommu, size, cmd, access, pa);
	iommufd_object_pause(ucmd->ictx, &viommu->obj);
	if (IS_ERR(hw_queue)) {
		rc = PTR_ERR(hw_queue);
		goto out_unpin;
	}
	refcount_dec(&viommu->obj.users);

	cmd->out_hw_queue_id = hw_queue->obj.id;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
	if (rc)
		iommufd_object_abort_and_destroy(ucmd->ictx, &hw_queue->obj);
	else
		iommufd_object_finalize(ucmd->ictx, &hw_queue->obj);
	return rc;

out_unpin:
	iommufd_hw_queue_unpin(access, cmd->nesting_parent_iova, cmd->length);
out_viommu:
	refcount_dec(&viommu->obj.users);
	return rc;
}
