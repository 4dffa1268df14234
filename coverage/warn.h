/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scripts/coverage puts this after the headers of what it counts: WARN_ON() warns as
 * ever, which fails the run, but the compiler takes it for false, and what is in its
 * argument, being in a function of its own, is not counted.
 */
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#undef WARN_ON
#undef WARN_ON_ONCE
#define WARN_ON_ONCE(condition) WARN_ON(condition)
#define WARN_ON(condition)						\
	({								\
		noinline __no_profile void __warn_on(void)		\
		{							\
			if (condition)					\
				__WARN();				\
		}							\
		__warn_on();						\
		/* A constant is known to the compiler, not to a test */ \
		__builtin_choose_expr(__is_constexpr(!!(condition)),	\
				      !!(condition), false);		\
	})

/*
 * What headers have inlined always brings its own branches, which depend on what the
 * compiler knows, to the line that calls it.
 */
static noinline __no_profile __maybe_unused unsigned long
__coverage_copy_from_user(void *to, const void __user *from, unsigned long n)
{
	return copy_from_user(to, from, n);
}
#define copy_from_user __coverage_copy_from_user

static noinline __no_profile __maybe_unused unsigned long
__coverage_copy_to_user(void __user *to, const void *from, unsigned long n)
{
	return copy_to_user(to, from, n);
}
#define copy_to_user __coverage_copy_to_user

static noinline __no_profile __maybe_unused void *
__coverage_kmalloc(size_t size, gfp_t flags)
{
	return kmalloc(size, flags);
}
#undef kmalloc
#define kmalloc __coverage_kmalloc

static noinline __no_profile __maybe_unused void
__coverage_list_add(struct list_head *new, struct list_head *head)
{
	list_add(new, head);
}
#define list_add __coverage_list_add
