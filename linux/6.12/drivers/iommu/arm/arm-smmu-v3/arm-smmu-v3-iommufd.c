// SPDX-License-Identifier: GPL-2.0-only
/*
 * iommufd support of the SMMUv3: nested translation and vIOMMUs.
 *
 * Section numbers are those of the ARM SMMUv3 specification, IHI 0070.
 */
#include <kunit/visibility.h>
#include <linux/iommufd.h>
#include <linux/slab.h>

#include "arm-smmu-v3.h"

/* What a guest may set in the first two words of its STE */
#define STRTAB_STE_0_GUEST                                               \
	(STRTAB_STE_0_V | STRTAB_STE_0_CFG | STRTAB_STE_0_S1FMT |        \
	 STRTAB_STE_0_S1CTXPTR_MASK | STRTAB_STE_0_S1CDMAX)
#define STRTAB_STE_1_GUEST                                               \
	(STRTAB_STE_1_S1DSS | STRTAB_STE_1_S1CIR | STRTAB_STE_1_S1COR |  \
	 STRTAB_STE_1_S1CSH | STRTAB_STE_1_S1STALLD | STRTAB_STE_1_EATS)

static struct arm_vsmmu *to_vsmmu(struct iommufd_viommu *viommu)
{
	return container_of(viommu, struct arm_vsmmu, core);
}

void *arm_smmu_hw_info(struct device *dev, u32 *length, u32 *type)
{
	struct arm_smmu_master *master = dev_iommu_priv_get(dev);
	void __iomem *base = master->smmu->base;
	struct iommu_hw_info_arm_smmuv3 *info;
	unsigned int i;

	info = kzalloc(sizeof(*info), GFP_KERNEL);
	if (!info)
		return ERR_PTR(-ENOMEM);

	for (i = 0; i != ARRAY_SIZE(info->idr); i++)
		info->idr[i] = readl_relaxed(base + ARM_SMMU_IDR0 +
					     i * sizeof(u32));
	info->iidr = readl_relaxed(base + ARM_SMMU_IIDR);
	info->aidr = readl_relaxed(base + ARM_SMMU_AIDR);

	*length = sizeof(*info);
	*type = IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
	return info;
}

static unsigned int arm_smmu_nested_cfg(struct arm_smmu_nested_domain *nested)
{
	return FIELD_GET(STRTAB_STE_0_CFG, le64_to_cpu(nested->ste[0]));
}

/*
 * The guest's table of context descriptors is at intermediate physical
 * addresses, so all its accesses are translated by the parent. See 3.3.2
 * "Translation with nested stages" and 5.2 "Stream Table Entry".
 */
VISIBLE_IF_KUNIT
void arm_smmu_make_nested_domain_ste(struct arm_smmu_ste *target,
				     struct arm_smmu_master *master,
				     struct arm_smmu_nested_domain *nested,
				     bool ats_enabled)
{
	struct arm_vsmmu *vsmmu = nested->vsmmu;
	unsigned int cfg = arm_smmu_nested_cfg(nested);
	u64 word;

	if (!(nested->ste[0] & cpu_to_le64(STRTAB_STE_0_V)) ||
	    cfg == STRTAB_STE_0_CFG_ABORT) {
		arm_smmu_make_abort_ste(target);
		return;
	}

	arm_smmu_make_s2_domain_ste(target, master, vsmmu->s2_parent,
				    ats_enabled);
	/* No stalls (S2S), since nobody would resume a stalled transaction */
	word = le64_to_cpu(target->data[2]);
	word &= ~(STRTAB_STE_2_S2VMID | STRTAB_STE_2_S2S);
	word |= FIELD_PREP(STRTAB_STE_2_S2VMID, vsmmu->vmid);
	target->data[2] = cpu_to_le64(word);
	/* A guest must not fill the event queue, which others need as well */
	target->data[1] |= cpu_to_le64(STRTAB_STE_1_MEV);

	if (cfg != STRTAB_STE_0_CFG_S1_TRANS)
		return;

	word = le64_to_cpu(nested->ste[0]) & ~STRTAB_STE_0_CFG;
	word |= FIELD_PREP(STRTAB_STE_0_CFG, STRTAB_STE_0_CFG_NESTED);
	target->data[0] = cpu_to_le64(word);
	target->data[1] |= nested->ste[1] & cpu_to_le64(~STRTAB_STE_1_EATS);
	if (vsmmu->smmu->features & ARM_SMMU_FEAT_STALLS)
		target->data[1] |= cpu_to_le64(STRTAB_STE_1_S1STALLD);
}
EXPORT_SYMBOL_IF_KUNIT(arm_smmu_make_nested_domain_ste);

static int arm_smmu_attach_dev_nested(struct iommu_domain *domain,
				      struct device *dev)
{
	struct arm_smmu_nested_domain *nested = to_smmu_nested_domain(domain);
	struct arm_smmu_master *master = dev_iommu_priv_get(dev);
	struct arm_smmu_attach_state state = {
		.master = master,
		.old_domain = iommu_get_domain_for_dev(dev),
		.vsmmu = nested->vsmmu,
		.ssid = IOMMU_NO_PASID,
	};
	struct arm_smmu_ste ste;
	int ret;

	if (nested->vsmmu->smmu != master->smmu)
		return -EINVAL;
	/* The vIOMMU may have been allocated with another device */
	if (!arm_smmu_master_canwbs(master) &&
	    !arm_smmu_domain_s2fwb(nested->vsmmu->s2_parent))
		return -EINVAL;
	if (arm_smmu_ssids_in_use(&master->cd_table))
		return -EBUSY;
	state.disable_ats = FIELD_GET(STRTAB_STE_1_EATS,
				      le64_to_cpu(nested->ste[1])) !=
			    STRTAB_STE_1_EATS_TRANS;

	mutex_lock(&arm_smmu_asid_lock);
	ret = arm_smmu_attach_prepare(&state, domain);
	if (ret) {
		mutex_unlock(&arm_smmu_asid_lock);
		return ret;
	}
	arm_smmu_make_nested_domain_ste(&ste, master, nested,
					state.ats_enabled);
	arm_smmu_install_ste_for_dev(master, &ste);
	arm_smmu_attach_commit(&state);
	mutex_unlock(&arm_smmu_asid_lock);

	arm_smmu_clear_cd(master, IOMMU_NO_PASID);
	return 0;
}

static struct iommu_domain *
arm_smmu_get_msi_mapping_domain(struct iommu_domain *domain)
{
	return &to_smmu_nested_domain(domain)->vsmmu->s2_parent->domain;
}

static void arm_smmu_domain_free_nested(struct iommu_domain *domain)
{
	kfree(to_smmu_nested_domain(domain));
}

static const struct iommu_domain_ops arm_smmu_nested_ops = {
	.attach_dev = arm_smmu_attach_dev_nested,
	.get_msi_mapping_domain = arm_smmu_get_msi_mapping_domain,
	.free = arm_smmu_domain_free_nested,
};

/*
 * Refuse what the hardware would refuse as well (C_BAD_STE), so that the VMM
 * can tell the guest. Refuse also what would give the guest access to more than
 * stage 1. Copy the STE to @nested, without fields that have no effect.
 */
VISIBLE_IF_KUNIT
int arm_smmu_check_guest_ste(struct arm_smmu_device *smmu,
			     const struct iommu_hwpt_arm_smmuv3 *arg,
			     struct arm_smmu_nested_domain *nested)
{
	u64 ste[2] = { le64_to_cpu(arg->ste[0]), le64_to_cpu(arg->ste[1]) };

	/* Without V, all other fields are ignored */
	if (!(ste[0] & STRTAB_STE_0_V))
		return 0;
	if (ste[0] & ~STRTAB_STE_0_GUEST || ste[1] & ~STRTAB_STE_1_GUEST)
		return -EIO;

	switch (FIELD_GET(STRTAB_STE_0_CFG, ste[0])) {
	case STRTAB_STE_0_CFG_ABORT:
	case STRTAB_STE_0_CFG_BYPASS:
		ste[0] &= STRTAB_STE_0_V | STRTAB_STE_0_CFG;
		nested->ste[0] = cpu_to_le64(ste[0]);
		return 0;
	case STRTAB_STE_0_CFG_S1_TRANS:
		break;
	default:
		return -EIO;
	}

	/* ATS support is known only at attach, which ignores EATS without it */
	if (FIELD_GET(STRTAB_STE_1_EATS, ste[1]) > STRTAB_STE_1_EATS_TRANS)
		return -EIO;

	/* With one context descriptor the table has no format, nor substreams */
	if (!FIELD_GET(STRTAB_STE_0_S1CDMAX, ste[0])) {
		ste[0] &= ~STRTAB_STE_0_S1FMT;
		ste[1] &= ~STRTAB_STE_1_S1DSS;
	}
	if (FIELD_GET(STRTAB_STE_0_S1CDMAX, ste[0]) > smmu->ssid_bits)
		return -EIO;
	switch (FIELD_GET(STRTAB_STE_0_S1FMT, ste[0])) {
	case STRTAB_STE_0_S1FMT_LINEAR:
		break;
	case STRTAB_STE_0_S1FMT_4K_L2:
	case STRTAB_STE_0_S1FMT_64K_L2:
		if (smmu->features & ARM_SMMU_FEAT_2_LVL_CDTAB)
			break;
		fallthrough;
	default:
		return -EIO;
	}
	if (FIELD_GET(STRTAB_STE_1_S1DSS, ste[1]) > STRTAB_STE_1_S1DSS_SSID0)
		return -EIO;

	nested->ste[0] = cpu_to_le64(ste[0]);
	nested->ste[1] = cpu_to_le64(ste[1] & ~STRTAB_STE_1_S1STALLD);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(arm_smmu_check_guest_ste);

static struct iommu_domain *
arm_vsmmu_alloc_domain_nested(struct iommufd_viommu *viommu, u32 flags,
			      const struct iommu_user_data *user_data)
{
	struct arm_vsmmu *vsmmu = to_vsmmu(viommu);
	struct arm_smmu_nested_domain *nested;
	struct iommu_hwpt_arm_smmuv3 arg;
	int ret;

	if (flags)
		return ERR_PTR(-EOPNOTSUPP);
	ret = iommu_copy_struct_from_user(&arg, user_data,
					  IOMMU_HWPT_DATA_ARM_SMMUV3, ste);
	if (ret)
		return ERR_PTR(ret);

	nested = kzalloc(sizeof(*nested), GFP_KERNEL_ACCOUNT);
	if (!nested)
		return ERR_PTR(-ENOMEM);
	ret = arm_smmu_check_guest_ste(vsmmu->smmu, &arg, nested);
	if (ret) {
		kfree(nested);
		return ERR_PTR(ret);
	}
	nested->domain.type = IOMMU_DOMAIN_NESTED;
	nested->domain.ops = &arm_smmu_nested_ops;
	nested->vsmmu = vsmmu;
	return &nested->domain;
}

static bool arm_vsmmu_domain_needs_vdevice(struct iommu_domain *domain)
{
	return arm_smmu_nested_cfg(to_smmu_nested_domain(domain)) ==
	       STRTAB_STE_0_CFG_S1_TRANS;
}

/* Look-ups have ended. Wait for event reports that still use the virtual ID. */
static void arm_vsmmu_vdevice_destroy(struct iommufd_vdevice *vdev)
{
	struct arm_smmu_device *smmu = to_vsmmu(vdev->viommu)->smmu;

	mutex_lock(&smmu->streams_mutex);
	mutex_unlock(&smmu->streams_mutex);
}

/* A device with several streams would need one virtual ID for each */
static int arm_vsmmu_vdevice_init(struct iommufd_vdevice *vdev)
{
	struct device *dev = iommufd_vdevice_to_device(vdev);
	struct arm_smmu_master *master = dev_iommu_priv_get(dev);

	if (master->num_streams != 1)
		return -EOPNOTSUPP;
	if (vdev->virt_id > U32_MAX)
		return -EINVAL;
	vdev->destroy = arm_vsmmu_vdevice_destroy;
	return 0;
}

/* Find the device by the virtual stream ID of a command, if it has one */
static const struct arm_vsmmu_stream *
arm_vsmmu_find_stream(struct arm_vsmmu *vsmmu, const u64 *cmd,
		      struct arm_vsmmu_stream *stream)
{
	struct arm_smmu_device *smmu = vsmmu->smmu;
	struct arm_smmu_master *master;
	struct device *dev;

	switch (FIELD_GET(CMDQ_0_OP, cmd[0])) {
	case CMDQ_OP_ATC_INV:
	case CMDQ_OP_CFGI_CD:
	case CMDQ_OP_CFGI_CD_ALL:
		break;
	default:
		return NULL;
	}

	xa_lock(&vsmmu->core.vdevs);
	dev = iommufd_viommu_find_dev(&vsmmu->core,
				      FIELD_GET(CMDQ_CFGI_0_SID, cmd[0]));
	if (dev) {
		master = dev_iommu_priv_get(dev);
		stream->sid = master->streams[0].id;
		stream->ssid_bits = master->ssid_bits;
		/* Maybe it is only the host's own CD table that limits them */
		if (master->ssid_bits == CTXDESC_LINEAR_CDMAX &&
		    !(smmu->features & ARM_SMMU_FEAT_2_LVL_CDTAB))
			stream->ssid_bits = smmu->ssid_bits;
		stream->ats = arm_smmu_ats_supported(master);
	}
	xa_unlock(&vsmmu->core.vdevs);
	return dev ? stream : NULL;
}

/*
 * Convert a guest's command (4.3 to 4.5) so that it affects only the VM. The
 * result must not be illegal: the SMMU would stop processing commands until the
 * error is fixed (7.1 "Command queue errors"). @stream is the device that it
 * names, if any.
 * Returns 1 if there is nothing to be done.
 */
VISIBLE_IF_KUNIT
int arm_vsmmu_convert_cmd(struct arm_vsmmu *vsmmu,
			  const struct arm_vsmmu_stream *stream, u64 *cmd)
{
	struct arm_smmu_device *smmu = vsmmu->smmu;
	const u64 asids = (1ULL << smmu->asid_bits) - 1;
	const u64 ssids = (1ULL << smmu->ssid_bits) - 1;
	u64 known[CMDQ_ENT_DWORDS] = { CMDQ_0_OP };
	u8 op = FIELD_GET(CMDQ_0_OP, cmd[0]);
	unsigned int tg;

	switch (op) {
	case CMDQ_OP_TLBI_NSNH_ALL:
		break;
	case CMDQ_OP_TLBI_NH_VA:
		known[0] |= FIELD_PREP(CMDQ_TLBI_0_ASID, asids);
		fallthrough;
	case CMDQ_OP_TLBI_NH_VAA:
		known[0] |= CMDQ_TLBI_0_VMID;
		known[1] = CMDQ_TLBI_1_LEAF | CMDQ_TLBI_1_VA_MASK;
		if (smmu->features & ARM_SMMU_FEAT_RANGE_INV) {
			known[0] |= CMDQ_TLBI_0_NUM | CMDQ_TLBI_0_SCALE;
			known[1] |= CMDQ_TLBI_1_TTL | CMDQ_TLBI_1_TG;
		}
		break;
	case CMDQ_OP_TLBI_NH_ASID:
		known[0] |= FIELD_PREP(CMDQ_TLBI_0_ASID, asids);
		fallthrough;
	case CMDQ_OP_TLBI_NH_ALL:
		known[0] |= CMDQ_TLBI_0_VMID;
		break;
	case CMDQ_OP_ATC_INV:
		known[0] |= CMDQ_ATC_0_GLOBAL | CMDQ_ATC_0_SID |
			    FIELD_PREP(CMDQ_ATC_0_SSID, ssids);
		if (ssids)
			known[0] |= CMDQ_0_SSV;
		known[1] = CMDQ_ATC_1_SIZE | CMDQ_ATC_1_ADDR_MASK;
		break;
	case CMDQ_OP_CFGI_CD:
		known[0] |= FIELD_PREP(CMDQ_CFGI_0_SSID, ssids);
		known[1] = CMDQ_CFGI_1_LEAF;
		fallthrough;
	case CMDQ_OP_CFGI_CD_ALL:
		known[0] |= CMDQ_CFGI_0_SID;
		break;
	default:
		return -EIO;
	}
	if (cmd[0] & ~known[0] || cmd[1] & ~known[1])
		return -EIO;

	switch (op) {
	case CMDQ_OP_TLBI_NSNH_ALL:
		/* As it is, the command would affect all VMs and the host */
		cmd[0] = FIELD_PREP(CMDQ_0_OP, CMDQ_OP_TLBI_NH_ALL);
		break;
	case CMDQ_OP_TLBI_NH_VA:
	case CMDQ_OP_TLBI_NH_VAA:
		/*
		 * Not every SMMU supports level 1 with 16 KiB (IDR5.DS); the
		 * others ignore it. Clear the level. This invalidates more than
		 * asked for if there is one.
		 */
		if (FIELD_GET(CMDQ_TLBI_1_TG, cmd[1]) == 2 &&
		    FIELD_GET(CMDQ_TLBI_1_TTL, cmd[1]) == 1)
			cmd[1] &= ~CMDQ_TLBI_1_TTL;
		/*
		 * A range of one page without a level is reserved (4.4.1), but
		 * some guests use it. Convert it to the same command without a
		 * range. Without a granule, the other range fields mean
		 * nothing.
		 */
		if (!(cmd[0] & (CMDQ_TLBI_0_NUM | CMDQ_TLBI_0_SCALE)) &&
		    !(cmd[1] & CMDQ_TLBI_1_TTL))
			cmd[1] &= ~CMDQ_TLBI_1_TG;
		if (!(cmd[1] & CMDQ_TLBI_1_TG)) {
			cmd[0] &= ~(CMDQ_TLBI_0_NUM | CMDQ_TLBI_0_SCALE);
			cmd[1] &= ~CMDQ_TLBI_1_TTL;
		}
		/* 4, 16 or 64 KiB */
		tg = FIELD_GET(CMDQ_TLBI_1_TG, cmd[1]);
		if (tg && !(smmu->pgsize_bitmap & BIT(10 + 2 * tg)))
			return -EIO;
		break;
	case CMDQ_OP_ATC_INV:
		if (FIELD_GET(CMDQ_ATC_1_SIZE, cmd[1]) > ATC_INV_SIZE_ALL)
			return -EIO;
		fallthrough;
	case CMDQ_OP_CFGI_CD:
	case CMDQ_OP_CFGI_CD_ALL:
		if (!stream)
			return -EIO;
		/* Without ATS the device would not answer: a timeout */
		if (op == CMDQ_OP_ATC_INV && !stream->ats)
			return 1;
		if (op == CMDQ_OP_ATC_INV && cmd[0] & CMDQ_0_SSV) {
			/* Without PASIDs nothing is cached for one */
			if (!stream->ssid_bits)
				return 1;
			if (FIELD_GET(CMDQ_ATC_0_SSID, cmd[0]) >>
			    stream->ssid_bits) {
				if (!(cmd[0] & CMDQ_ATC_0_GLOBAL))
					return 1;
				/* Global: any valid PASID will do */
				cmd[0] &= ~CMDQ_ATC_0_SSID;
			}
		}
		cmd[0] &= ~CMDQ_CFGI_0_SID;
		cmd[0] |= FIELD_PREP(CMDQ_CFGI_0_SID, stream->sid);
		return 0;
	}

	cmd[0] &= ~CMDQ_TLBI_0_VMID;
	cmd[0] |= FIELD_PREP(CMDQ_TLBI_0_VMID, vsmmu->vmid);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(arm_vsmmu_convert_cmd);

/*
 * As long as the SMMU has the old translation, a device may fetch that again
 * (4.5.1 "CMD_ATC_INV"). @last is the last command before @op that was not
 * followed by a CMD_SYNC, or 0.
 */
VISIBLE_IF_KUNIT bool arm_vsmmu_needs_sync(u8 last, u8 op)
{
	return op == CMDQ_OP_ATC_INV && last && last != CMDQ_OP_ATC_INV;
}
EXPORT_SYMBOL_IF_KUNIT(arm_vsmmu_needs_sync);

/* The bits of an ASID that the SMMU has, in their place in a command. Others are RES0. */
VISIBLE_IF_KUNIT u64 arm_vsmmu_asids(const struct arm_smmu_device *smmu)
{
	return FIELD_PREP(CMDQ_TLBI_0_ASID, (1ULL << smmu->asid_bits) - 1);
}
EXPORT_SYMBOL_IF_KUNIT(arm_vsmmu_asids);

/*
 * Fast path for the most frequent command, which names one page of one ASID
 * without a range. Only the VMID has to be changed in it.
 * arm_vsmmu_convert_cmd() has the same result, but checks each field. @asids
 * and @vmid are in their places in cmd[0].
 * Returns false, and changes nothing, if it is another command.
 */
VISIBLE_IF_KUNIT bool arm_vsmmu_convert_page(u64 *cmd, u64 asids, u64 vmid)
{
	if ((cmd[0] & ~(asids | CMDQ_TLBI_0_VMID)) != CMDQ_OP_TLBI_NH_VA ||
	    (cmd[1] & ~(CMDQ_TLBI_1_LEAF | CMDQ_TLBI_1_VA_MASK)))
		return false;
	cmd[0] = (cmd[0] & ~CMDQ_TLBI_0_VMID) | vmid;
	return true;
}
EXPORT_SYMBOL_IF_KUNIT(arm_vsmmu_convert_page);

/*
 * The commands are queued in order. One CMD_SYNC follows all of them, or those
 * that have to complete before the next one. Only a CMD_SYNC tells what has
 * completed.
 */
static int arm_vsmmu_cache_invalidate(struct iommufd_viommu *viommu,
				      struct iommu_user_data_array *array)
{
	const unsigned int type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
	const struct iommu_viommu_arm_smmuv3_invalidate *entries;
	u64 cmds[CMDQ_BATCH_ENTRIES * CMDQ_ENT_DWORDS];
	struct arm_vsmmu *vsmmu = to_vsmmu(viommu);
	struct arm_smmu_device *smmu = vsmmu->smmu;
	struct arm_smmu_cmdq *cmdq = &smmu->cmdq;
	const u64 asids = arm_vsmmu_asids(smmu);
	const u64 vmid = FIELD_PREP(CMDQ_TLBI_0_VMID, vsmmu->vmid);
	struct arm_vsmmu_stream found;
	u32 num = array->entry_num;
	int ret = 0, sync_ret = 0;
	unsigned int n = 0;
	u32 i, done = 0;
	u8 last = 0;

	entries = iommu_user_array_entries(array, type, sizeof(*entries));
	array->entry_num = 0;
	if (!entries)
		return num || array->type != type ? -EINVAL : 0;

	for (i = 0; i != num; i++) {
		const struct arm_vsmmu_stream *stream;
		u64 page[CMDQ_ENT_DWORDS] = {
			le64_to_cpu(entries[i].cmd[0]),
			le64_to_cpu(entries[i].cmd[1]),
		};
		bool is_page = arm_vsmmu_convert_page(page, asids, vmid);
		u64 *cmd;
		u8 op;

		/* Only if more follow: the last ones go with the CMD_SYNC */
		if (n == CMDQ_BATCH_ENTRIES) {
			arm_smmu_cmdq_issue_cmdlist(smmu, cmdq, cmds, n, false);
			n = 0;
		}
		cmd = &cmds[n * CMDQ_ENT_DWORDS];
		cmd[0] = page[0];
		cmd[1] = page[1];
		if (is_page) {
			last = CMDQ_OP_TLBI_NH_VA;
			n++;
			continue;
		}
		stream = arm_vsmmu_find_stream(vsmmu, cmd, &found);
		ret = arm_vsmmu_convert_cmd(vsmmu, stream, cmd);
		if (ret < 0)
			break;
		if (ret)
			continue;
		op = FIELD_GET(CMDQ_0_OP, cmd[0]);
		if (arm_vsmmu_needs_sync(last, op)) {
			sync_ret = arm_smmu_cmdq_issue_cmdlist(smmu, cmdq, cmds,
							       n, true);
			last = 0;
			if (sync_ret)
				break;
			done = i;
			cmds[0] = cmd[0];
			cmds[1] = cmd[1];
			n = 0;
		}
		last = op;
		n++;
	}

	if (last)
		sync_ret = arm_smmu_cmdq_issue_cmdlist(smmu, cmdq, cmds, n,
						       true);
	array->entry_num = sync_ret ? done : i;
	if (sync_ret)
		return sync_ret;
	return ret < 0 ? ret : 0;
}

/*
 * Report an event (7.3 "Event records") to the VM, if the guest's own tables
 * have caused it. The lock keeps the master from leaving the vIOMMU meanwhile.
 */
int arm_vsmmu_report_event(struct arm_smmu_master *master, const u64 *evt)
{
	struct iommu_vevent_arm_smmuv3 vevt = {};
	struct arm_vsmmu *vsmmu = master->vsmmu;
	unsigned long vsid;

	lockdep_assert_held(&master->smmu->streams_mutex);

	if (!vsmmu)
		return -EOPNOTSUPP;
	/* Events older than the attach may belong to another VM */
	if (master->smmu->evtq.removed <= master->vsmmu_since)
		return -EOPNOTSUPP;

	switch (FIELD_GET(EVTQ_0_ID, evt[0])) {
	case EVT_ID_TRANSLATION_FAULT:
	case EVT_ID_ADDR_SIZE_FAULT:
	case EVT_ID_ACCESS_FAULT:
	case EVT_ID_PERMISSION_FAULT:
		if (evt[1] & EVTQ_1_S2)
			return -EOPNOTSUPP;
		break;
	case EVT_ID_BAD_ATS_TREQ:
	case EVT_ID_STREAM_DISABLED:
	case EVT_ID_TRANSL_FORBIDDEN:
	case EVT_ID_BAD_SUBSTREAMID:
	case EVT_ID_BAD_CD:
		break;
	default:
		return -EOPNOTSUPP;
	}

	if (iommufd_viommu_get_vdev_id(&vsmmu->core, master->dev, &vsid))
		return -EOPNOTSUPP;

	vevt.evt[0] = cpu_to_le64((evt[0] & ~EVTQ_0_SID) |
				  FIELD_PREP(EVTQ_0_SID, vsid));
	vevt.evt[1] = cpu_to_le64(evt[1]);
	vevt.evt[2] = cpu_to_le64(evt[2]);
	/* The fourth word is left 0: it has stage 2 and fetch addresses */
	return iommufd_viommu_report_event(&vsmmu->core,
					   IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
					   &vevt, sizeof(vevt));
}

/* No STE has the VMID any more */
static void arm_vsmmu_destroy(struct iommufd_viommu *viommu)
{
	struct arm_vsmmu *vsmmu = to_vsmmu(viommu);
	unsigned long flags;

	spin_lock_irqsave(&vsmmu->s2_parent->devices_lock, flags);
	list_del(&vsmmu->s2_parent_elm);
	spin_unlock_irqrestore(&vsmmu->s2_parent->devices_lock, flags);

	/* The next user of the VMID must not find old TLB entries */
	arm_smmu_tlb_inv_vmid(vsmmu->smmu, vsmmu->vmid);
	ida_free(&vsmmu->smmu->vmid_map, vsmmu->vmid);
}

static const struct iommufd_viommu_ops arm_vsmmu_ops = {
	.destroy = arm_vsmmu_destroy,
	.alloc_domain_nested = arm_vsmmu_alloc_domain_nested,
	.domain_needs_vdevice = arm_vsmmu_domain_needs_vdevice,
	.cache_invalidate = arm_vsmmu_cache_invalidate,
	.vdevice_init = arm_vsmmu_vdevice_init,
};

size_t arm_smmu_get_viommu_size(struct device *dev,
				enum iommu_viommu_type viommu_type)
{
	struct arm_smmu_master *master = dev_iommu_priv_get(dev);
	struct arm_smmu_device *smmu = master->smmu;

	if (viommu_type != IOMMU_VIOMMU_TYPE_ARM_SMMUV3 ||
	    !(smmu->features & ARM_SMMU_FEAT_NESTING))
		return 0;
	/* With forced stalls a guest could stall the streams of others */
	if (smmu->features & ARM_SMMU_FEAT_STALL_FORCE)
		return 0;
	/* arm_vsmmu_cache_invalidate() does not add the CMD_SYNCs for this */
	if (smmu->options & ARM_SMMU_OPT_CMDQ_FORCE_SYNC)
		return 0;
	/*
	 * Nobody cleans caches for a guest, so it must not be able to bypass them: it
	 * would see what was there before the memory was given to it.
	 */
	if (!arm_smmu_master_canwbs(master) &&
	    !(smmu->features & ARM_SMMU_FEAT_S2FWB))
		return 0;
	return VIOMMU_STRUCT_SIZE(struct arm_vsmmu, core);
}
EXPORT_SYMBOL_IF_KUNIT(arm_smmu_get_viommu_size);

int arm_vsmmu_init(struct iommufd_viommu *viommu,
		   struct iommu_domain *parent_domain,
		   const struct iommu_user_data *user_data)
{
	struct arm_smmu_device *smmu =
		container_of(viommu->iommu_dev, struct arm_smmu_device, iommu);
	struct arm_smmu_domain *s2_parent = to_smmu_domain(parent_domain);
	struct arm_vsmmu *vsmmu = to_vsmmu(viommu);
	unsigned long flags;
	int vmid;

	if (user_data)
		return -EOPNOTSUPP;
	if (s2_parent->smmu != smmu)
		return -EINVAL;

	/* See arm_smmu_domain_get_vmid() for VMID 0 */
	vmid = ida_alloc_range(&smmu->vmid_map, 1, (1 << smmu->vmid_bits) - 1,
			       GFP_KERNEL);
	if (vmid < 0)
		return vmid;

	vsmmu->smmu = smmu;
	vsmmu->s2_parent = s2_parent;
	vsmmu->vmid = vmid;
	viommu->ops = &arm_vsmmu_ops;

	spin_lock_irqsave(&s2_parent->devices_lock, flags);
	list_add(&vsmmu->s2_parent_elm, &s2_parent->vsmmus);
	spin_unlock_irqrestore(&s2_parent->devices_lock, flags);
	return 0;
}
